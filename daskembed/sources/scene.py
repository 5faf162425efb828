"""A whole tile at one date: where its pixels are stored, and the grid of chips that is laid over it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Protocol

import numpy as np

from daskembed.errors import ChipError, DaskembedError, StorageError, exact
from daskembed.geo.cells import cell_bounds
from daskembed.geo.chips import CHIP, ChipGrid
from daskembed.geo.footprints import metres_of_unit
from daskembed.health import fault_of
from daskembed.sources.reading import EDGE, Reading
from daskembed.sources.scales import Scale, note_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


MOST_PIECE_BYTES = 512 * 2**20
"""Most bytes of pixels that may have to be read at once."""

MOST_CHIPS = 250_000
"""Of an image: a tile of 110 km has 185,000 at 0.5 m. A few hundred bytes may claim any number."""


class Layer(Hashable, Protocol):
    """Some bands of a scene in one piece of storage; small, frozen and hashable."""

    @property
    def coarser(self) -> int:
        """How many pixels of the scene one of its pixels covers, each way."""

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of its bands."""

    def open(self, *, fresh: bool = False) -> Reader:
        """Open it for reading, past caches if `fresh`."""


class Reader(Protocol):
    """An open layer, for any thread.

    One that fetches from far away may have a method ``begin`` with the arguments of a call: it has the window fetched,
    and returns a function that waits for it and gives what a call gives.
    """

    def __call__(self, rows: slice, cols: slice) -> NDArray[np.generic]:
        """Stored pixels ``(band, y, x)`` of a layer, in its own grid; a masked array where some were never there.

        Raises `ChipError` or `StorageError`.
        """


@dataclass(frozen=True)
class Scene:
    """A tile at one date: what travels to the workers in place of its pixels."""

    url: str
    """Of the store or file, with the date: what a chip's URL begins with."""
    date: date
    fingerprint: str
    """Changes with the pixels."""
    bands: tuple[str, ...]
    """In the encoder's order; those of `layers`, one after the other."""
    layers: tuple[Layer, ...]
    classes: Layer | None
    """Scene classification, if it is stored by itself."""
    epsg: int
    west: float
    north: float
    step: float
    """Width and height of a pixel, in the CRS's unit."""
    grid: ChipGrid
    block: tuple[int, int]
    """Pixels (y, x) that are stored together."""
    pixel_bytes: int
    """Of all bands of one pixel."""
    classified: bool = False
    """Whether the last band of `layers` is the scene classification."""
    time: datetime | None = None
    """When it was sensed, UTC, if that is known."""

    @property
    def piece(self) -> tuple[int, int]:
        """Pixels (y, x) that are read together: whole stored blocks, and no less than a chip."""
        height, width = (min(side, length) for side, length in zip(self.block, self.grid.shape, strict=True))
        return height * -(-CHIP // height), width * -(-CHIP // width)

    @property
    def aligned(self) -> bool:
        """Whether each chip is a piece by itself."""
        return self.piece == (CHIP, CHIP) and not any(offset % CHIP for offset in self.grid.offset)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of its bands."""
        return tuple(scale for layer in self.layers for scale in layer.scales)[: len(self.bands)]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north."""
        return self.bounds_of((0, 0), self.grid.shape)

    def bounds_of(self, start: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """West, south, east and north of the rectangle of `shape` (y, x) that begins at the pixel `start`."""
        west, south, east, north = cell_bounds(self.west, self.north, (self.step, self.step), *start, shape).tolist()
        return west, south, east, north

    @property
    def note(self) -> str:
        """What is done to the file's numbers, if anything."""
        return note_of(self.bands, self.scales)

    def coverage(self, chips: int) -> Iterator[str]:
        """What of the image no chip has, and which chips have what is not in the image, if any.

        Parameters
        ----------
        chips
            How many are wanted; where a region leaves some out, what has no chip is beside the point.
        """
        grid = self.grid
        if grid.uncovered and chips == grid.count:
            share, edge = f"{100 * grid.uncovered:.3g} %", EDGE[grid.pad]
            cut = f"`edge={edge!r}`, `offset={grid.offset}`"
            yield f"{share} of the pixels of the image are in no chip ({cut})"
        if grid.padded:
            yield f"{grid.padded} of its {grid.count} chips reach beyond the image: its last pixels fill them up"

    def check(self) -> None:
        """Raise `ChipError` if too much would have to be read at once."""
        height, width = self.piece
        if (size := height * width * self.pixel_bytes) > MOST_PIECE_BYTES:
            raise ChipError(
                f"is stored in blocks of {self.block[0]} x {self.block[1]} pixels, of which {size / 1e9:.1f} GB would "
                "have to be read at once: write it with blocks of 512 x 512"
            )


def grid_of(shape: tuple[int, int], reading: Reading) -> ChipGrid:
    """The grid of chips of an image; raises `ChipError` if there is none."""
    grid = ChipGrid(shape, reading.offset, reading.edge == "pad")
    if not grid.count:
        raise ChipError(
            f"has {shape[0]} x {shape[1]} pixels: no chip of {CHIP} x {CHIP} fits in at the offset "
            f"{reading.offset[0]},{reading.offset[1]} (`edge='pad'` takes parts of chips)"
        )
    if grid.count > MOST_CHIPS:
        raise ChipError(
            f"claims {shape[0]} x {shape[1]} pixels, {grid.count:,} chips: expected a tile of at most {MOST_CHIPS:,}"
        )
    return grid


def check_resolution(steps: tuple[float, float], epsg: int, reading: Reading) -> float:
    """The step of an image's pixels, in its CRS's unit; raises `ChipError` if they will not do.

    Parameters
    ----------
    steps
        Of x and of y, in that unit.
    epsg
        Of the CRS, which says how many metres that is.
    reading
        What is wanted.
    """
    step_x, step_y = steps
    unit = metres_of_unit(epsg)
    if not (math.isclose(step_x, -step_y, rel_tol=1e-6) and 0.01 <= step_x * unit <= 1000):
        sides = f"{exact(step_x * unit)} x {exact(-step_y * unit)}"
        raise ChipError(f"has pixels of {sides}: expected squares in metres, rows from north to south")
    if reading.resolution is not None and not math.isclose(step_x * unit, reading.resolution, rel_tol=1e-6):
        feet = "" if unit == 1 else f" ({exact(step_x)} in the unit of EPSG:{epsg})"
        found = f"{exact(step_x * unit)} m{feet}"
        raise ChipError(f"has pixels of {found}, expected {exact(reading.resolution)} m: resample it")
    return step_x


@contextlib.contextmanager
def damage_is_the_chips(failures: Callable[[], DaskembedError | None] = lambda: None) -> Iterator[None]:
    """Tell what is wrong with the pixels, a `ChipError`, from a store that does not answer, a `StorageError`.

    `failures` gives what happened beneath and was swallowed, perhaps with zeros in the place of data.
    """
    try:
        yield
        if (failure := failures()) is not None:
            raise failure
    except (StorageError, ChipError):
        raise
    except Exception as error:
        if (failure := failures()) is not None:
            raise failure from None
        text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise fault_of(error, f"cannot be decoded, its part of the storage is damaged: {text[:200]}") from None
