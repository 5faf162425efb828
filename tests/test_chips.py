"""Where MGRS tiles lie, against PROJ and against known tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pyproj
import pytest

from daskembed.errors import InputError
from daskembed.geo.chips import ChipGrid
from daskembed.geo.mgrs import Square, check_tile, square_of

BANDS = "CDEFGHJKLMNPQRSTUVWX"


@pytest.mark.parametrize(
    ("tile", "square"),
    [
        ("33TUL", Square(32633, 300_000, 5_000_000)),
        ("22JGS", Square(32722, 700_000, 7_100_000)),
        ("33NZA", Square(32633, 800_000, 0)),
        ("60KZF", Square(32760, 800_000, 8_000_000)),
        ("32VKM", Square(32632, 200_000, 6_600_000)),
        ("33XXG", Square(32633, 600_000, 8_600_000)),
    ],
)
def test_known_tiles(tile, square):
    assert square_of(tile) == square


@pytest.mark.parametrize("zone", [1, 2, 3, 30, 60])
def test_squares_lie_in_their_bands(zone):
    """PROJ gives the middle of each square a latitude in its band or next to it, and no two have the same place."""
    places = set()
    to_degrees = {
        epsg: pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True) for epsg in (32600 + zone, 32700 + zone)
    }
    columns = ["STUVWXYZ", "ABCDEFGH", "JKLMNPQR"][zone % 3]
    for band, column, row in itertools.product(BANDS, columns, "ABCDEFGHJKLMNPQRSTUV"):
        try:
            square = square_of(check_tile(f"{zone:02d}{band}{column}{row}"))
        except InputError:
            continue
        places.add((band, square.epsg, square.west, square.south))
        _, north = to_degrees[square.epsg].transform(square.west + 50_000, square.south + 50_000)
        least = 8 * BANDS.index(band) - 80
        assert least - 1.5 < north < least + (12 if band == "X" else 8) + 1.5
    # A band is at least 8 squares of latitude high and has 8 columns.
    assert len(places) >= 20 * 8 * 8


def test_a_square_that_its_band_has_not():
    with pytest.raises(InputError) as error:
        square_of("33TUA")
    assert str(error.value) == "33TUA is not an MGRS tile: zone 33, band T has no square UA"


@pytest.mark.parametrize("shape", [(512, 512), (513, 1024), (1100, 1600), (10980, 10980)])
@pytest.mark.parametrize("offset", [(0, 0), (0, 1), (256, 256), (511, 511)])
@pytest.mark.parametrize("pad", [True, False])
def test_what_chips_cover(shape: tuple[int, int], offset: tuple[int, int], pad: bool) -> None:
    """As counted pixel by pixel."""
    grid = ChipGrid(shape, offset, pad)
    covered, beyond = np.zeros(shape, bool), 0
    for number in range(1, grid.count + 1):
        y, x = grid.start(number)
        covered[y : y + 512, x : x + 512] = True
        beyond += y + 512 > shape[0] or x + 512 > shape[1]
    if grid.count:
        assert grid.uncovered == pytest.approx(1 - covered.mean(), abs=1e-12)
        assert (grid.uncovered == 0) == covered.all()
    assert grid.padded == beyond
