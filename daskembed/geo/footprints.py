"""Bounds in a projection to centres and footprints in degrees, and what of them is at a tile (pure)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely

from daskembed.geo.mgrs import SIDE, square_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 20_000
"""Metres by which what belongs to a tile may lie outside its 100 km square: Sentinel-2 tiles reach 9.8 km beyond it."""


def to_lonlat(
    epsg: int, bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """Centres and footprints in degrees of `bounds`, ``(chip, 4)`` as west, south, east, north in `epsg`.

    Where they are outside of the projection, NaN and None.
    """
    west, south, east, north = bounds.T
    transform = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True).transform
    lon, lat = transform((west + east) / 2, (south + north) / 2)
    x, y = transform(np.stack([east, east, west, west], axis=1), np.stack([south, north, north, south], axis=1))
    inside = np.isfinite(lon) & np.isfinite(lat) & np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    lon[~inside], lat[~inside] = np.nan, np.nan
    around = np.ptp(np.where(inside[:, None], x, 0), axis=1) > 180
    x[around[:, None] & (x < 0)] += 360
    polygons = np.full(len(bounds), None, dtype=object)
    polygons[inside] = split_at_antimeridian(np.stack([x, y], axis=-1)[inside])
    return lon, lat, polygons


def split_at_antimeridian(rings: NDArray[np.float64]) -> NDArray[np.object_]:
    """Polygons of rings in degrees, cut in two where they cross 180 degrees, as RFC 7946 (section 3.1.9) asks.

    Parameters
    ----------
    rings
        ``(ring, ..., corner, 2)``. Longitudes go on beyond 180 where a ring reaches over it.
    """
    polygons: NDArray[np.object_] = shapely.polygons(rings)
    for number in zip(*np.nonzero((rings[..., 0] > 180).any(axis=-1)), strict=True):
        east = shapely.clip_by_rect(polygons[number], 0, -90, 180, 90)
        west = shapely.transform(shapely.clip_by_rect(polygons[number], 180, -90, 360, 90), lambda xy: xy - [360, 0])
        parts = [one for one in (east, west) if not one.is_empty]
        polygons[number] = shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0]
    return polygons


def bounding_box(shapes: NDArray[np.object_]) -> tuple[float, float, float, float]:
    """West, south, east and north of footprints in degrees, NaN if there are none.

    Across 180 degrees west is more than east, as RFC 7946 (section 5.2) asks.
    """
    return box_around(shapely.bounds(shapely.get_parts(shapes)).reshape(-1, 4))


def box_around(boxes: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """West, south, east and north around boxes ``(box, 4)`` none of which crosses 180 degrees; NaN if there are none.

    It reaches across 180 degrees, with west more than east, where it is less than half as wide as the Earth then.
    """
    if not len(boxes):
        return (np.nan,) * 4
    west, south, east, north = boxes.T
    if east.max() - west.min() > 180:
        order = np.argsort(west, kind="stable")
        reached = np.maximum.accumulate(east[order])
        gaps = west[order][1:] - reached[:-1]
        if len(gaps) and gaps.max() > 180:
            begins = int(gaps.argmax()) + 1
            west, east = west[order[begins:]], east[order[:begins]]
    return float(west.min()), float(south.min()), float(east.max()), float(north.max())


def box(west: float, south: float, east: float, north: float) -> shapely.Polygon | shapely.MultiPolygon:
    """The area of a bounding box: in two halves where it reaches across 180 degrees."""
    if not west > east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


@functools.cache
def metres_of_unit(epsg: int) -> float:
    """Metres of the unit of a projected CRS: 1 but for those in feet and the like."""
    return float(pyproj.CRS.from_epsg(epsg).axis_info[0].unit_conversion_factor)


def at_tile(tile: str, bounds: NDArray[np.float64], crs: int | pyproj.CRS) -> NDArray[np.bool_]:
    """Which of some rectangles are at a tile: at most `MARGIN` away from its square, or in it.

    Parameters
    ----------
    tile
        MGRS tile id.
    bounds
        ``(rectangle, 4)`` as west, south, east, north in `crs`.
    crs
        A projected one.

    Raises
    ------
    InputError
        If there is no such square.
    """
    square = square_of(tile)
    west, south, east, north = bounds.T
    # In the zone's own metres, zones 60 and 1 meet like any others, and 32V and 31X to 37X are no exceptions.
    transform = pyproj.Transformer.from_crs(crs, square.epsg, always_xy=True).transform
    x, y = transform(np.stack([east, east, west, west]), np.stack([south, north, north, south]))
    # PROJ gives infinity for places that the zone's projection does not reach.
    near: NDArray[np.bool_] = np.isfinite(x).all(axis=0) & np.isfinite(y).all(axis=0)
    for values, start in ((x, square.west), (y, square.south)):
        near &= (values.max(axis=0) >= start - MARGIN) & (values.min(axis=0) <= start + SIDE + MARGIN)
    return near


def place_of(tile: str) -> str:
    """Where what belongs to a tile lies, in words."""
    square = square_of(tile)
    return (
        f"within {MARGIN // 1000} km of easting {square.west} to {square.west + SIDE}, northing {square.south} to "
        f"{square.south + SIDE} of EPSG:{square.epsg}"
    )


def elsewhere(tile: str, bounds: NDArray[np.float64], epsg: int) -> list[str | None]:
    """Why some rectangles do not belong to a tile, None of those that do; see `at_tile`."""
    reasons = [
        f"is not at tile {tile}: its bounds in EPSG:{epsg} are {', '.join(f'{edge:.10g}' for edge in edges)} (west, "
        f"south, east, north), expected {place_of(tile)}"
        for edges in bounds
    ]
    return [None if near else why for near, why in zip(at_tile(tile, bounds, epsg), reasons, strict=True)]
