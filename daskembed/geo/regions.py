"""Regions: which Sentinel-2 tiles one meets, and which chips (pure)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyproj
import shapely

from daskembed.geo.mgrs import SIDE, tile_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOUTH, NORTH = -80, 84
"""Degrees of latitude between which there are tiles: UTM ends there."""
_STEP = 0.02
"""Degrees in which edges are projected: the straight line between is nowhere 0.1 m from where it should be."""
_HAIR = 1.0
"""Metres: what reaches no further into a square only touches it, but for rounding."""
_HAIR_DEGREES = 1e-5


class _Zone(NamedTuple):
    """A UTM zone between two latitudes, in degrees."""

    number: int
    west: float
    south: float
    east: float
    north: float

    @property
    def epsg(self) -> int:
        """Code of its projection."""
        return (32600 if self.north > 0 else 32700) + self.number

    def beside(self, *, west: bool) -> _Zone:
        """The next one in the west or in the east."""
        row = [zone for zone in _ZONES if zone.south == self.south]
        return row[(row.index(self) + (-1 if west else 1)) % len(row)]


# South-western Norway and Svalbard have wider zones, and in the place of some none (NGA.STND.0037, 2.4).
_LATITUDES = ((SOUTH, 0), (0, 56), (56, 64), (64, 72), (72, NORTH))
_ODD_ZONES: dict[int, dict[int, tuple[int, int] | None]] = {
    56: {31: (0, 3), 32: (3, 12)},
    72: {31: (0, 9), 32: None, 33: (9, 21), 34: None, 35: (21, 33), 36: None, 37: (33, 42)},
}
_ZONES = tuple(
    _Zone(number, sides[0], south, sides[1], north)
    for south, north in _LATITUDES
    for number in range(1, 61)
    if (sides := _ODD_ZONES.get(south, {}).get(number, (6 * number - 186, 6 * number - 180))) is not None
)


def tiles_meeting(region: shapely.Geometry) -> tuple[str, ...]:
    """The Sentinel-2 tiles that a region meets, sorted: each place on Earth belongs to one of those that show it.

    That is the one of the MGRS square that the place is in, or, of squares at the edges of zones that are no tile by
    themselves, the next zone's that reaches over it.

    Parameters
    ----------
    region
        Valid, in degrees of OGC:CRS84, longitudes from -180 to 180. What lies beyond `SOUTH` or `NORTH` meets none.
    """
    parts = shapely.get_parts(region)
    areas = shapely.get_dimensions(parts) == 2
    # What only touches a square does not meet it; where it lies on the border of two, it is in one all the same.
    alone = [*shapely.segmentize(parts[~areas], _STEP), *shapely.point_on_surface(parts[areas])]
    found = set(filter(None, tiles_of_places(*shapely.get_coordinates(alone).T)))
    for south, north in _LATITUDES:
        row = shapely.intersection(region, shapely.box(-180, south, 180, north))
        for zone in _ZONES if not row.is_empty else ():
            if zone.south == south:
                hair = _HAIR_DEGREES
                inner = shapely.box(zone.west + hair, south + hair, zone.east - hair, north - hair)
                found.update(_tiles_in(zone, shapely.intersection(row, inner)))
    return tuple(sorted(found))


def _tiles_in(zone: _Zone, part: shapely.Geometry) -> Iterator[str]:
    """Tiles that a part of a region meets which is in a zone."""
    if part.is_empty:
        return
    projected = shapely.transform(
        shapely.segmentize(part, _STEP), _transform("OGC:CRS84", zone.epsg), interleaved=False
    )
    for column, row, square in _squares(projected):
        if tile := _tile_of(zone, column, row):
            yield tile
            continue
        beside = zone.beside(west=column < 5)
        piece = shapely.transform(
            shapely.intersection(projected, square), _transform(zone.epsg, beside.epsg), interleaved=False
        )
        yield from filter(None, (_tile_of(beside, *place) for *place, _ in _squares(piece)))


def _squares(projected: shapely.Geometry) -> Iterator[tuple[int, int, shapely.Polygon]]:
    """Column, row and area of the squares that something meets in a projection."""
    first_x, first_y, last_x, last_y = (int(edge // SIDE) for edge in projected.bounds)
    columns, rows = (one.ravel() for one in np.meshgrid(np.arange(first_x, last_x + 1), np.arange(first_y, last_y + 1)))
    xs, ys = columns * SIDE, rows * SIDE
    squares = shapely.box(xs + _HAIR, ys + _HAIR, xs + SIDE - _HAIR, ys + SIDE - _HAIR)
    shapely.prepare(projected)
    for number in np.flatnonzero(shapely.intersects(projected, squares)):
        yield int(columns[number]), int(rows[number]), squares[number]


def tiles_of_places(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.object_]:
    """The Sentinel-2 tile that each of some places belongs to, as `tiles_meeting` has it; None where there is none.

    Parameters
    ----------
    lon, lat
        Degrees of OGC:CRS84, ``(place,)``.
    """
    lon, found = np.where(lon == 180, -180, lon), np.full(len(lon), None, object)
    if not len(lon):
        return found
    west, east, low, high = lon.min(), lon.max(), lat.min(), lat.max()
    for zone in _ZONES:
        if zone.west > east or zone.east <= west or zone.south > high or zone.north <= low:
            continue
        here = np.flatnonzero((zone.west <= lon) & (lon < zone.east) & (zone.south <= lat) & (lat < zone.north))
        for (column, row), places in _by_square(zone, lon, lat, here):
            if tile := _tile_of(zone, column, row):
                found[places] = tile
                continue
            beside = zone.beside(west=column < 5)
            for square, others in _by_square(beside, lon, lat, places):
                found[others] = _tile_of(beside, *square)
    return found


def _by_square(
    zone: _Zone, lon: NDArray[np.float64], lat: NDArray[np.float64], places: NDArray[np.intp]
) -> Iterator[tuple[tuple[int, int], NDArray[np.intp]]]:
    """Columns and rows of the squares that the numbered places are in, in a zone's projection, and which they are."""
    x, y = _transform("OGC:CRS84", zone.epsg)(lon[places], lat[places])
    # One number a square: rows are no more than four digits.
    squares, which = np.unique((x // SIDE).astype(int) * 10_000 + (y // SIDE).astype(int), return_inverse=True)
    for number, (column, row) in enumerate(zip(*np.divmod(squares, 10_000), strict=True)):
        yield (int(column), int(row)), places[which == number]


def _tile_of(zone: _Zone, column: int, row: int) -> str | None:
    return tile_at(zone.number, column, row - (0 if zone.epsg < 32700 else 100))


@functools.cache
def _transform(source: str | int, target: int) -> Callable[..., Any]:
    return pyproj.Transformer.from_crs(source, target, always_xy=True).transform


def meets(region: str, footprints: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which of some chips meet a region in WKT; those of unknown footprint, None, count, so that they are reported."""
    area = shapely.from_wkt(region)
    shapely.prepare(area)
    found: NDArray[np.bool_] = shapely.intersects(area, footprints) | shapely.is_missing(footprints)
    return found
