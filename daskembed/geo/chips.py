"""Where an MGRS tile lies, and its grid of chips (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


from dataclasses import dataclass

from daskembed.errors import InputError
from daskembed.geo.chips import CHIP

SIDE = 100_000
"""Metres of a square's side."""
CHIPS_A_TILE = 441
"""Chips of 512 x 512 pixels of 10 m in a whole tile: 21 x 21."""
_COLUMNS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
_DEGREE = 111_086
"""Metres of a degree of latitude in UTM, near enough to tell squares 2,000 km apart."""


@dataclass(frozen=True)
class Square:
    """The 100 km square that gives a tile its name; a Sentinel-2 tile reaches 9.8 km beyond it, east and south."""

    epsg: int
    """Code of the UTM zone."""
    west: int
    """Least easting, metres."""
    south: int
    """Least northing, metres."""


def square_of(tile: str) -> Square:
    """The 100 km square of an MGRS tile id as `daskembed.geo.mgrs.check_tile` gives it.

    Raises
    ------
    InputError
        If the latitude band of that zone has no such square.

    Examples
    --------
    >>> square_of("33TUL")
    Square(epsg=32633, west=300000, south=5000000)
    """
    zone, letter = int(tile[:2]), tile[2]
    band = _BANDS.index(letter)
    # Column letters repeat every three zones, row letters every 2,000 km, and in even zones they begin with F.
    column = _COLUMNS.index(tile[3]) - 8 * ((zone - 1) % 3)
    row = _ROWS.index(tile[4]) - 5 * (zone % 2 == 0)
    # A band is 8 degrees high, X 12; of the squares of that letter, the one nearest to the band's middle is meant.
    half = (6 if letter == "X" else 4) * _DEGREE
    middle = (8 * band - 80) * _DEGREE + half
    centre = SIDE * row + SIDE // 2
    centre += round((middle - centre) / (20 * SIDE)) * 20 * SIDE
    if abs(middle - centre) > half + SIDE:
        raise InputError(f"{tile} is not an MGRS tile: zone {tile[:2]}, band {letter} has no square {tile[3:]}")
    northern = letter >= "N"
    south = centre - SIDE // 2 + (0 if northern else 10_000_000)
    return Square((32600 if northern else 32700) + zone, SIDE * (column + 1), south)


@dataclass(frozen=True)
class ChipGrid:
    """The chips of an image: squares of 512 pixels, numbered from 1, row-major."""

    shape: tuple[int, int]
    """Pixels of the image, (y, x)."""
    offset: tuple[int, int] = (0, 0)
    """Of the first chip's north-west corner, (y, x)."""
    pad: bool = False
    """Whether chips that reach beyond the image count."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of chips."""
        rows, cols = (
            max(0, -(-(length - offset) // CHIP) if self.pad else (length - offset) // CHIP)
            for length, offset in zip(self.shape, self.offset, strict=True)
        )
        return rows, cols

    @property
    def count(self) -> int:
        """Chips."""
        rows, cols = self.size
        return rows * cols

    @property
    def uncovered(self) -> float:
        """Share of the image's pixels that no chip has.

        Examples
        --------
        >>> ChipGrid((10980, 10980)).uncovered, ChipGrid((10980, 10980), pad=True).uncovered
        (0.0411..., 0.0)
        """
        sides = zip(self.shape, self.offset, self.size, strict=True)
        covered = [min(length - offset, CHIP * chips) / length for length, offset, chips in sides]
        return 1 - covered[0] * covered[1]

    @property
    def padded(self) -> int:
        """Chips that reach beyond the image."""
        return self.count - ChipGrid(self.shape, self.offset).count

    def start(self, number: int) -> tuple[int, int]:
        """First pixel (y, x) of a chip.

        Examples
        --------
        >>> ChipGrid((10980, 10980)).size, ChipGrid((10980, 10980)).start(23)
        ((21, 21), (512, 512))
        """
        row, col = divmod(number - 1, self.size[1])
        return self.offset[0] + row * CHIP, self.offset[1] + col * CHIP


CHIP = 512
"""Pixels along each side of a chip: what is read, quarantined and numbered at a time, whatever the encoder."""
