"""Colours of a tile's rows as one image: on the grid of its projection, and in that of web maps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.warp import Resampling, reproject, transform_bounds

from daskembed.explore.places import metres_of
from daskembed.geo.cells import Grid, common_grid
from daskembed.geo.mgrs import square_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RADIUS = 6378137.0
"""Of the sphere of web maps, metres."""
_FINE, _FINEST = 768, 1536
"""Pixels of a side of an image of a page that is made finer than its patches, and of one that is made so at all."""
_FINER = (2, 8)
"""Pixels of an image along a side of a patch: nearest neighbours move it by a quarter of one at most."""
_PIXELS = 512
"""Of a row's side: neighbours may be a small share of one apart."""


@dataclass(frozen=True)
class Mosaic:
    """Colours of patches on a grid in the tile's projection."""

    grid: Grid
    colours: NDArray[np.uint8]
    """``(y, x, 3)``; 0 in all three where nothing is."""


def mosaic(tile: str, urls: Sequence[str], footprints: NDArray[np.object_], colours: NDArray[np.uint8]) -> Mosaic:
    """Put the colours of some rows next to each other.

    Parameters
    ----------
    tile
        MGRS id, whose zone they lie in.
    urls, footprints
        Of the rows.
    colours
        Of their patches, ``(row, down, across, 3)``.

    Raises
    ------
    TileError
        If the rows do not lie on one grid.
    """
    down, across = colours.shape[1:3]
    epsg = np.full(len(urls), square_of(tile).epsg)
    grid, y, x = common_grid(
        list(urls),
        epsg,
        metres_of(tile, footprints),
        (down, across),
        pixels=_PIXELS,
        why="an image has one grid",
    )
    image = np.zeros((grid.height, grid.width, 3), np.uint8)
    for one, top, left in zip(colours, y, x, strict=True):
        image[top : top + down, left : left + across] = one
    return Mosaic(grid, image)


def for_web(image: Mosaic) -> tuple[bytes, list[list[float]]]:
    """A PNG in the projection of web maps, and the degrees of its corners: from the north-western one, clockwise.

    Degrees of longitude may be beyond 180, so that they meet across it.
    """
    grid = image.grid
    transform = _transform(grid)
    source = rasterio.crs.CRS.from_epsg(grid.epsg)
    zone = (grid.epsg % 100 - 1) * 6 - 177
    # As EPSG:3857, from the middle of the zone: nothing breaks off at 180 degrees.
    target = rasterio.crs.CRS.from_proj4(
        f"+proj=merc +a={_RADIUS} +b={_RADIUS} +lon_0={zone} +units=m +nadgrids=@null +no_defs"
    )
    side, (least, most) = max(grid.height, grid.width), _FINER
    finer = max(1, min(max(least, min(most, _FINE / side)), _FINEST / side))
    wide, high = round(grid.width * finer), round(grid.height * finer)
    # MapLibre asks for a smaller copy of square images whose side is a power of two, and makes none: they are black.
    width, height = wide + (wide == high), high
    # Not GDAL's own suggestion, which ends after a whole number of its pixels: that may cut a patch off.
    left, bottom, right, top = transform_bounds(source, target, *grid.bounds)
    to = rasterio.Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
    bands = np.zeros((4, height, width), np.uint8)
    stored = np.moveaxis(image.colours, -1, 0)
    there = np.full(stored.shape[1:], 255, np.uint8) * stored.any(axis=0)
    reproject(
        np.concatenate([stored, there[None]]),
        bands,
        src_transform=transform,
        src_crs=source,
        dst_transform=to,
        dst_crs=target,
        resampling=Resampling.nearest,
    )
    west, east = (zone + np.degrees(x / _RADIUS) for x in (left, right))
    north, south = (np.degrees(2 * np.arctan(np.exp(y / _RADIUS)) - np.pi / 2) for y in (top, bottom))
    corners = [[west, north], [east, north], [east, south], [west, south]]
    return _encoded(bands, driver="PNG"), [[round(float(one), 7) for one in corner] for corner in corners]


def as_geotiff(image: Mosaic) -> bytes:
    """A cloud-optimised GeoTIFF of red, green and blue; 0 is nodata."""
    return _encoded(
        np.moveaxis(image.colours, -1, 0),
        driver="COG",
        crs=rasterio.crs.CRS.from_epsg(image.grid.epsg),
        transform=_transform(image.grid),
        nodata=0,
        compress="DEFLATE",
        overview_resampling="NEAREST",
    )


def _transform(grid: Grid) -> Any:
    return rasterio.Affine(grid.step_x, 0, grid.west, 0, -grid.step_y, grid.north)


def _encoded(bands: NDArray[np.uint8], **profile: Any) -> bytes:
    count, height, width = bands.shape
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a page's image says by its corners where it is
        with memory.open(count=count, height=height, width=width, dtype="uint8", **profile) as file:
            file.write(bands)
        return bytes(memory.getbuffer())
