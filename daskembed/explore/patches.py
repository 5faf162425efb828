"""Where the patches of a row lie, and how far places are from each other (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely

from daskembed.geo.footprints import split_at_antimeridian

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TO_SPACE = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)


def patch_footprints(footprints: NDArray[np.object_], grid: tuple[int, int]) -> NDArray[np.object_]:
    """Footprints of the patches of some rows, ``(row, patch)``, row-major from the north-west; see `patches_at`."""
    count = grid[0] * grid[1]
    number = np.tile(np.arange(count), len(footprints))
    return patches_at(np.repeat(footprints, count), grid, number).reshape(len(footprints), count)


def patches_at(
    footprints: NDArray[np.object_], grid: tuple[int, int], numbers: NDArray[np.integer[Any]]
) -> NDArray[np.object_]:
    """Footprints of one patch of each of some rows.

    Lines between the corners of a row are divided evenly in degrees, which of a chip of 5 km is some metres off.

    Parameters
    ----------
    footprints
        Of the rows, squares in degrees, in two parts where they cross 180 degrees: ``(row,)``.
    grid
        Patches of a row, down and across.
    numbers
        Of the patch, row-major from the north-west, ``(row,)``.
    """
    row, col = np.divmod(numbers, grid[1])
    steps = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    y = ((row[:, None] + steps[:, 0]) / grid[0])[..., None]
    x = ((col[:, None] + steps[:, 1]) / grid[1])[..., None]
    north_west, north_east, south_east, south_west = np.moveaxis(_corners(footprints), 1, 0)[:, :, None]
    rings = (1 - y) * ((1 - x) * north_west + x * north_east) + y * ((1 - x) * south_west + x * south_east)
    return split_at_antimeridian(rings)


def in_one_piece(squares: NDArray[np.object_]) -> NDArray[np.object_]:
    """Squares in degrees, of which those that are cut at 180 degrees go on beyond it."""
    whole = squares.copy()
    cut = shapely.get_type_id(squares) == shapely.GeometryType.MULTIPOLYGON
    if cut.any():
        whole[cut] = shapely.polygons(_corners(squares[cut]))
    return whole


def centres(footprints: NDArray[np.object_]) -> NDArray[np.float64]:
    """Longitude and latitude of the middle of squares in degrees, ``(row, 2)``."""
    found: NDArray[np.float64] = _corners(footprints).mean(axis=1)
    found[:, 0] = (found[:, 0] + 180) % 360 - 180
    return found


def positions(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places in degrees, ``(place, 2)``, in space, ``(place, 3)``, metres: the way between near ones is straight."""
    lon, lat = places.T
    return np.stack(_TO_SPACE.transform(lon, lat, np.zeros(len(places))), axis=-1)


def metres_to(place: tuple[float, float], footprints: NDArray[np.object_]) -> NDArray[np.float64]:
    """How far some footprints in degrees are from a place; 0 of those that it is in."""
    lon, lat = place
    around = pyproj.CRS.from_proj4(f"+proj=aeqd +lat_0={lat} +lon_0={lon} +datum=WGS84")
    transform = pyproj.Transformer.from_crs("OGC:CRS84", around, always_xy=True).transform
    # Distances from the middle of this projection are true.
    there = shapely.transform(footprints, lambda xy: np.stack(transform(*xy.T), axis=-1))
    return np.asarray(shapely.distance(shapely.Point(0, 0), there))


def _corners(footprints: NDArray[np.object_]) -> NDArray[np.float64]:
    """North-western, north-eastern, south-eastern and south-western corner of squares, ``(row, 4, 2)``.

    Longitudes go on beyond 180 degrees where a square reaches over it.
    """
    places, owner = shapely.get_coordinates(footprints, return_index=True)
    lon, lat = places.T
    first = np.searchsorted(owner, np.arange(len(footprints)))
    east, west = np.maximum.reduceat(lon, first), np.minimum.reduceat(lon, first)
    lon = np.where((east - west > 180)[owner] & (lon < 0), lon + 360, lon)
    # Corners are the farthest in the four diagonal directions; degrees of longitude are shorter than those of latitude.
    x = lon * np.cos(np.radians(lat[first]))[owner]
    found = np.empty((len(footprints), 4, 2))
    for number, (right, up) in enumerate(((-1, 1), (1, 1), (1, -1), (-1, -1))):
        order = np.lexsort((right * x + up * lat, owner))
        last = order[np.append(first[1:], len(owner)) - 1]
        found[:, number, 0], found[:, number, 1] = lon[last], lat[last]
    return found
