"""What of a tile the footprints of items cover, on the tile's own grid (pure)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely

from daskembed.geo.footprints import bounding_box, to_lonlat
from daskembed.geo.mgrs import TILE, tile_corner

_FAR = 3_000_000
"""Metres."""
_BEND = 200
"""Metres by which the sides of a tile bend in degrees, at most: 60 at 82 degrees north."""


@dataclass(frozen=True)
class Ground:
    """The ground of a Sentinel-2 tile."""

    epsg: int
    west: int
    north: int

    @staticmethod
    def of(tile: str) -> Ground:
        """That of a tile; raises `InputError` if there is no such square."""
        return Ground(*tile_corner(tile))

    @property
    def square(self) -> shapely.Polygon:
        """In metres of its UTM zone."""
        return shapely.box(self.west, self.north - TILE, self.west + TILE, self.north)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Of all of it: west, south, east and north, degrees; west is more than east across 180 degrees."""
        around = self.square.buffer(_BEND).bounds
        return bounding_box(to_lonlat(self.epsg, np.array([around]))[2])

    def part(self, footprint: str) -> shapely.Geometry:
        """What a footprint, WKT in OGC:CRS84, covers of the tile, in metres; empty if nothing.

        Footprints are taken to be straight between their corners in the tile's zone, as those of Sentinel-2 are; then
        it does not matter whether they cross 180 degrees.
        """
        shape = shapely.from_wkt(footprint)
        metres = shapely.transform(shape, self._project)
        away = np.abs(shapely.get_coordinates(metres) - (self.west, self.north))
        if not (away < _FAR).all():
            # A large one, of which some corner is beyond what the projection is good for.
            west, south, east, north = self.bounds
            near = shapely.clip_by_rect(shape, west - 1, south - 1, east + 1, north + 1)
            metres = shapely.transform(near, self._project)
        return shapely.intersection(shapely.make_valid(metres), self.square)

    def share(self, parts: Iterable[shapely.Geometry]) -> float:
        """The share of the tile that parts of it cover together."""
        return float(shapely.area(shapely.union_all(list(parts)))) / TILE**2

    def _project(self, degrees: np.ndarray) -> np.ndarray:
        return np.stack(_transformer(self.epsg).transform(*degrees.T), axis=-1)


@functools.cache
def _transformer(epsg: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs("OGC:CRS84", epsg, always_xy=True)
