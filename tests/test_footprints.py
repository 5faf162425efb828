"""What is at a tile; bounding boxes at 180 degrees; units."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely

from daskembed.errors import InputError
from daskembed.geo.footprints import (
    at_tile,
    bounding_box,
    box,
    box_around,
    elsewhere,
    metres_of_unit,
    split_at_antimeridian,
    to_lonlat,
)
from daskembed.geo.mgrs import SIDE, square_of

TILES = ("33TUL", "60KZF", "01KAB", "32VKM", "31XEG", "22JGS", "60XWR")


def square(tile: str, *, south: float = 0, east: float = 0, side: float = 5120) -> np.ndarray:
    """Bounds from so many metres south and east of a square's north-west corner, in its own zone."""
    found = square_of(tile)
    west, north = found.west + east, found.south + SIDE - south
    return np.array([west, north - side, west + side, north])


@pytest.mark.parametrize("tile", TILES)
def test_what_is_in_a_square_or_near_is_at_the_tile(tile: str) -> None:
    inside = np.array(
        [
            square(tile),
            square(tile, south=SIDE - 5120, east=SIDE - 5120),
            # The last chip of a Sentinel-2 tile, padded, and a coarse one that only begins there.
            square(tile, south=21 * 5120, east=21 * 5120),
            square(tile, south=21 * 5120, east=21 * 5120, side=150_000),
            square(tile, south=-20_000 - 5120),
        ]
    )
    outside = np.array([square(tile, south=-20_001 - 5120), square(tile, east=SIDE + 20_001), square(tile, south=4e5)])
    assert at_tile(tile, inside, square_of(tile).epsg).tolist() == [True] * 5
    assert at_tile(tile, outside, square_of(tile).epsg).tolist() == [False] * 3


@pytest.mark.parametrize(("tile", "epsg"), [("60KZF", 32701), ("01KAB", 32760), ("33TUL", 32632), ("33TUL", 3035)])
def test_other_crss_are_seen_from_the_tiles_zone(tile: str, epsg: int) -> None:
    """Also across 180 degrees."""
    there = pyproj.Transformer.from_crs(square_of(tile).epsg, epsg, always_xy=True)
    x, y = there.transform(*square(tile, south=50_000, east=50_000)[[0, 3]])
    bounds = np.array([[x, y - 5120, x + 5120, y], [x, y - 305_120, x + 5120, y - 300_000]])
    assert at_tile(tile, bounds, epsg).tolist() == [True, False]


def test_what_the_projection_does_not_reach_is_elsewhere() -> None:
    bounds = np.array([[1e15, 1e15, 2e15, 2e15], [np.nan] * 4])
    assert at_tile("33TUL", bounds, 32633).tolist() == [False, False]


def test_the_reason() -> None:
    here, there = square("33TUL"), square("33TUL", south=300_000)
    assert elsewhere("33TUL", np.array([here, there]), 32633) == [
        None,
        "is not at tile 33TUL: its bounds in EPSG:32633 are 300000, 4794880, 305120, 4800000 (west, south, east, "
        "north), expected within 20 km of easting 300000 to 400000, northing 5000000 to 5100000 of EPSG:32633",
    ]


def test_a_tile_that_is_none() -> None:
    with pytest.raises(InputError, match="33TUA is not an MGRS tile: zone 33, band T has no square UA"):
        at_tile("33TUA", square("33TUL")[None], 32633)


@pytest.mark.parametrize(
    ("epsg", "metres"), [(32633, 1), (3035, 1), (2263, 0.3048006096012192), (2222, 0.3048), (27700, 1)]
)
def test_metres_of_a_unit(epsg: int, metres: float) -> None:
    assert metres_of_unit(epsg) == pytest.approx(metres, rel=1e-12)


def test_a_bounding_box_is_that_of_all_footprints() -> None:
    shapes = to_lonlat(32633, np.array([square("33TUL"), square("33TUL", south=9000)]))[2]
    assert bounding_box(shapes) == tuple(shapely.total_bounds(shapes))
    assert box(*bounding_box(shapes)).equals(shapely.box(*shapely.total_bounds(shapes)))


def test_rings_are_cut_at_180_degrees() -> None:
    """Those of one side stay in one piece, also if they end there or lie beyond."""
    wests = np.array([179.9, 179.95, 180.0, 181.0])
    corners = np.array([(0.1, 0.0), (0.1, 0.1), (0.0, 0.1), (0.0, 0.0)])
    cut = split_at_antimeridian(corners + np.stack([wests, np.full(4, 51.0)], axis=-1)[:, None])
    expected = ([(179.9, 180)], [(179.95, 180), (-180, -179.95)], [(-180, -179.9)], [(-179, -178.9)])
    for shape, edges in zip(cut, expected, strict=True):
        assert shape.geom_type == ("Polygon" if len(edges) == 1 else "MultiPolygon")
        parts = [shapely.box(west, 51, east, 51.1) for west, east in edges]
        assert shape.equals_exact(shapely.union_all(parts), 1e-9, normalize=True)


@pytest.mark.parametrize("crossing", [True, False])
def test_a_bounding_box_across_180_degrees_begins_in_the_east(crossing: bool) -> None:
    """RFC 7946, 5.2; also of footprints of which each is on one side."""
    step = 5120 if crossing else 20_480
    shapes = to_lonlat(32701, np.array([square("01KAB", east=east) for east in range(-20_000, 100_000, step)]))[2]
    if not crossing:
        shapes = shapes[shapely.get_type_id(shapes) == 3]
    west, south, east, north = bounding_box(shapes)
    assert 179 < west < 180
    assert -180 < east < -178
    area = box(west, south, east, north)
    assert area.geom_type == "MultiPolygon"
    assert area.is_valid
    assert all(area.buffer(1e-9).contains(shape) for shape in shapes)
    assert area.area < 0.5 * (north - south) * 4


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(170, 180), (-180, -170)], (170, -170)),
        ([(-175, -174), (171, 172), (-179, -178)], (171, -174)),
        ([(-10, 10), (170, 180), (-180, -170)], (-180, 180)),
        ([(-120, -110), (100, 110)], (100, -110)),
        ([(-120, -110), (65, 75)], (-120, 75)),
        ([(-100, 90)], (-100, 90)),
        ([(-180, 180)], (-180, 180)),
        ([(1, 2), (3, 4)], (1, 4)),
    ],
)
def test_a_box_goes_across_180_degrees_where_it_is_narrow_then(
    spans: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    boxes = np.array([(west, -1, east, 1) for west, east in spans], float)
    for turned in (boxes, boxes[::-1]):
        assert box_around(turned) == (expected[0], -1, expected[1], 1)


def test_no_footprints_have_no_box() -> None:
    assert np.isnan(bounding_box(np.array([], object))).all()
