"""Where chips lie that have no row in a published file: those that were quarantined or rejected (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely

from daskembed.explore.patches import in_one_piece
from daskembed.geo.footprints import to_lonlat
from daskembed.geo.mgrs import square_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBER = re.compile(r"[_/](\d{4,6})(?:\.[A-Za-z]+)?$")
_WINDOW = "#window="
"""What stands between a chip's name and the corner of one of its windows."""
_WIDEST = 64
"""Chips from west to east of a tile that are thought of; Clay's tiles have 21."""
_OFF = 0.01
"""Share of a chip by which it may lie beside the place that its number says."""


def metres_of(tile: str, footprints: NDArray[np.object_]) -> NDArray[np.float64]:
    """West, south, east and north of footprints in degrees, in the projection of the tile, ``(row, 4)``."""
    transform = pyproj.Transformer.from_crs("OGC:CRS84", square_of(tile).epsg, always_xy=True).transform
    # Straight lines of a projection: a rectangle's corners say all of it, and where it is cut at 180 degrees are none.
    moved = shapely.transform(in_one_piece(footprints), lambda xy: np.stack(transform(*xy.T), axis=-1))
    bounds: NDArray[np.float64] = np.round(shapely.bounds(moved), 2)
    return bounds


def places_of(
    tile: str, urls: Sequence[str], footprints: NDArray[np.object_], wanted: Iterable[str]
) -> dict[str, shapely.Geometry]:
    """Footprints of chips that are not among the rows of a tile, where those that are tell it.

    The chips of a tile have a number at the end of their names, the same on all dates, and are numbered row by row.

    Parameters
    ----------
    tile
        Its MGRS id.
    urls, footprints
        Of its rows; a chip of several windows has as many rows.
    wanted
        URLs of chips without rows.

    Returns
    -------
    URL -> footprint, of those whose place is known.
    """
    numbers = {url: int(found[1]) for url in wanted if (found := _NUMBER.search(url))}
    if not numbers or not len(footprints):
        return {}
    known = _known(tile, urls, footprints)
    if not known:
        return {}
    at = {url: known[number] for url, number in numbers.items() if number in known}
    if len(at) < len(numbers) and (grid := _grid(known)):
        across, first, west, north = grid
        width, height = _sides(known)
        for url in numbers.keys() - at.keys():
            row, col = divmod(numbers[url] - first, across)
            left, top = west + col * width, north - row * height
            if numbers[url] >= first:
                at[url] = np.array([left, top - height, left + width, top])
    if not at:
        return {}
    _, _, polygons = to_lonlat(square_of(tile).epsg, np.array(list(at.values())))
    return {url: polygon for url, polygon in zip(at, polygons, strict=True) if polygon is not None}


def _known(tile: str, urls: Sequence[str], footprints: NDArray[np.object_]) -> dict[int, NDArray[np.float64]]:
    """Number of a chip -> its bounds; none if chips of one number lie in several places."""
    chips: dict[str, NDArray[np.float64]] = {}
    for url, bounds in zip(urls, metres_of(tile, footprints), strict=True):
        chip = url.partition(_WINDOW)[0]
        other = chips.get(chip, bounds)
        chips[chip] = np.array([*np.minimum(other, bounds)[:2], *np.maximum(other, bounds)[2:]])
    known: dict[int, NDArray[np.float64]] = {}
    for chip, bounds in chips.items():
        if found := _NUMBER.search(chip):
            other = known.setdefault(int(found[1]), bounds)
            if not np.abs(other - bounds).max() <= _OFF * (bounds[2] - bounds[0]):
                return {}
    return known


def _sides(known: dict[int, NDArray[np.float64]]) -> tuple[float, float]:
    """Width and height of a chip."""
    west, south, east, north = np.array(list(known.values())).T
    return float(np.median(east - west)), float(np.median(north - south))


def _grid(known: dict[int, NDArray[np.float64]]) -> tuple[int, int, float, float] | None:
    """Chips of a row, the number of the first one, and its west and north; None if the numbers do not tell."""
    numbers = np.array(list(known))
    west, _, _, north = np.array(list(known.values())).T
    width, height = _sides(known)
    for first in (1, 0):
        for across in range(1, _WIDEST + 1):
            row, col = np.divmod(numbers - first, across)
            if row.min() < 0 or np.ptp(row) == 0:
                continue
            x, y = west - col * width, north + row * height
            if np.ptp(x) <= _OFF * width and np.ptp(y) <= _OFF * height:
                return across, first, float(x.mean()), float(y.mean())
    return None
