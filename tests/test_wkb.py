import numpy as np
import pyarrow as pa
import pytest
import shapely

from daskembed.geo import wkb

SQUARES = np.array([shapely.box(west, 45, west + 0.5, 45.25) for west in range(3)])


def test_corners_of_squares_are_read_at_once() -> None:
    corners = wkb.rings_of(pa.array([None, *shapely.to_wkb(SQUARES).tolist()]).slice(1))
    assert corners is not None
    for ring, square in zip(corners, SQUARES, strict=True):
        assert ring.tolist() == shapely.get_coordinates(square).tolist()
    written = [bytes(one) for one in wkb.squares(corners)]
    assert written == shapely.to_wkb(SQUARES).tolist()


@pytest.mark.parametrize(
    "other",
    [
        None,
        b"",
        shapely.to_wkb(SQUARES[0], byte_order=0),  # big-endian, of the same length
        shapely.to_wkb(shapely.set_srid(SQUARES[0], 4326), include_srid=True)[: wkb.SQUARE.itemsize],
        shapely.to_wkb(shapely.Point(1, 2)),
        shapely.to_wkb(shapely.MultiPolygon([SQUARES[0]])),
        shapely.to_wkb(shapely.Polygon([(0, 0), (1, 0), (0, 1)])),
        shapely.to_wkb(SQUARES[0])[:-1],
        shapely.to_wkb(shapely.LineString([(0, 0), (1, 1)])).ljust(wkb.SQUARE.itemsize, b"\0"),
    ],
    ids=["none", "empty", "big-endian", "srid", "point", "two parts", "triangle", "cut", "line"],
)
def test_anything_else_is_looked_at_one_by_one(other: bytes | None) -> None:
    assert wkb.rings_of(pa.array([*shapely.to_wkb(SQUARES).tolist(), other])) is None


def test_the_first_that_is_no_polygon_is_named() -> None:
    line = shapely.to_wkb(shapely.LineString([(0, 0), (1, 1)])).ljust(wkb.SQUARE.itemsize, b"\0")
    wkb.check(shapely.to_wkb(SQUARES).tolist())
    with pytest.raises(ValueError, match="row 3 has LineString, expected a polygon"):
        wkb.check([*shapely.to_wkb(SQUARES).tolist(), line])
