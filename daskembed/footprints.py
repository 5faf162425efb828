"""Bounds in a projection to centres and footprints in degrees (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    polygons = np.full(len(bounds), None, dtype=object)
    polygons[inside] = shapely.polygons(np.stack([x, y], axis=-1)[inside])
    crossing = np.flatnonzero(inside & (np.ptp(np.where(inside[:, None], x, 0), axis=1) > 180))
    for row in crossing:
        polygons[row] = _split_at_antimeridian(x[row], y[row])
    return lon, lat, polygons


def _split_at_antimeridian(x: NDArray[np.float64], y: NDArray[np.float64]) -> shapely.MultiPolygon:
    """Cut a footprint that crosses 180 degrees in two, as RFC 7946 (section 3.1.9) asks."""
    around = shapely.polygons(np.stack([np.where(x < 0, x + 360, x), y], axis=-1))
    east = shapely.clip_by_rect(around, 0, -90, 180, 90)
    west = shapely.transform(shapely.clip_by_rect(around, 180, -90, 360, 90), lambda xy: xy - [360, 0])
    return shapely.MultiPolygon([east, west])
