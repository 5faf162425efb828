"""What chips of synthetic scenes are, pixel by pixel, from what is known of their files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import TILE, tile_corner
from daskembed.testing.scenes import Raster, Scenes

SIDE = TILE // 10
"""Pixels of a side of a tile."""


def places(tile: str, start: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eastings and northings of the centres of the pixels of a chip; beyond the tile, of its last ones."""
    _, west, north = tile_corner(tile)
    rows, cols = (np.minimum(first + np.arange(CHIP), SIDE - 1) for first in start)
    y, x = np.meshgrid(north - 10 * (rows + 0.5), west + 10 * (cols + 0.5), indexing="ij")
    return x, y


def pixels_of(raster: Raster, epsg: int, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """What a file holds at some places, NaN where it is elsewhere or has nothing: of the pixel in which each lies."""
    if raster.epsg != epsg:
        x, y = Transformer.from_crs(epsg, raster.epsg, always_xy=True).transform(x, y)
    if raster.epsg == 4326:
        middle = raster.west + 0.5
        x = (x - middle + 180) % 360 - 180 + middle
    rows = np.floor((raster.north - y) / raster.steps[1]).astype(int)
    cols = np.floor((x - raster.west) / raster.steps[0]).astype(int)
    inside = (rows >= 0) & (rows < raster.shape[0]) & (cols >= 0) & (cols < raster.shape[1])
    values = raster.values(np.where(inside, rows, 0), np.where(inside, cols, 0)).astype(float)
    if raster.nothing is not None:
        inside &= values != raster.nothing
    if raster.added:
        values = np.maximum(values - raster.added, 1)
    return np.where(inside, values, np.nan)


def chip_of(scenes: Scenes, used: Mapping[str, Sequence[str]], start: tuple[int, int]) -> NDArray[np.float32]:
    """A chip.

    Parameters
    ----------
    scenes
        What there is.
    used
        Band, or ``scl`` -> ids of the items that have it, in the order in which they count.
    start
        Pixel (y, x) of the tile where it begins.

    Returns
    -------
    numpy.ndarray
        ``(band, y, x)``, NaN where no item has anything.
    """
    x, y = places(scenes.tile, start)
    epsg = tile_corner(scenes.tile)[0]
    bands = []
    for band, names in used.items():
        pixels = np.full((CHIP, CHIP), np.nan)
        for name in names:
            pixels = np.where(np.isnan(pixels), pixels_of(scenes.rasters[name][band], epsg, x, y), pixels)
        bands.append(pixels)
    return np.stack(bands).astype(np.float32)
