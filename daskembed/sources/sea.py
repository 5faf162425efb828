"""Sea: where an elevation model has no tile, its level is 0, if the scene classification shows water there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from daskembed.geo.footprints import to_lonlat
from daskembed.sources.findings import Finding
from daskembed.sources.pixel_rules import CLEAR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources.pieces import Pixels
    from daskembed.sources.scene import Scene

WATER = 6
"""Class of Sentinel-2's scene classification."""
MOSTLY = 0.9
"""Share of the ground that is seen in a gap which has to be water."""


class Levelled(NamedTuple):
    """A window of a scene, with sea where that was found."""

    pixels: Pixels
    findings: list[Finding]
    land: str | None
    """Why the chip cannot be used: it has no elevation where there is land, or may be."""


def level(pixels: Pixels, scene: Scene, y: int, x: int) -> Levelled:
    """Put 0 where there is no elevation but sea.

    Parameters
    ----------
    pixels
        What is stored of a window.
    scene
        Its scene, of whose scales those that say `sea` are of heights.
    y, x
        Its first pixel.
    """
    stored, masked, classes = pixels
    heights = [number for number, scale in enumerate(scene.scales) if scale.sea]
    if masked is None or not heights or not masked[heights].any():
        return Levelled(pixels, [], None)
    findings, land = [], None
    for number in heights:
        gap = masked[number]
        share = float(np.mean(gap))
        if not share:
            continue
        if classes is not None and _is_sea(classes[gap]):
            stored, masked = stored.copy(), masked.copy()
            stored[number][gap], masked[number] = 0, False
            what = "is sea, of which there is no elevation: 0 is taken,"
            findings.append(Finding(scene.bands[number], what, share, missing=False))
            continue
        land = (
            f"has no elevation ({scene.bands[number]}) in {share:.4%} of its pixels, at {_place(scene, gap, y, x)}, "
            f"and {_why(classes, gap)}: expected a tile of the elevation model there"
        )
    return Levelled(type(pixels)(stored, masked if masked.any() else None, classes), findings, land)


def _is_sea(classes: NDArray[np.generic]) -> bool:
    ground = int(np.count_nonzero(np.isin(classes, CLEAR)))
    return ground > 0 and int(np.count_nonzero(classes == WATER)) >= MOSTLY * ground


def _why(classes: NDArray[np.generic] | None, gap: NDArray[np.bool_]) -> str:
    if classes is None:
        return "no scene classification tells whether that is sea"
    if not np.isin(classes[gap], CLEAR).any():
        return "its clouds hide whether that is sea"
    return "its scene classification shows land there"


def _place(scene: Scene, gap: NDArray[np.bool_], y: int, x: int) -> str:
    """The middle of the gap's first pixel in degrees."""
    row, col = (int(place) for place in np.argwhere(gap)[0])
    bounds = np.array([scene.bounds_of((y + row, x + col), (1, 1))])
    lon, lat, _ = to_lonlat(scene.epsg, bounds)
    return f"{abs(lat[0]):.4f} {'N' if lat[0] >= 0 else 'S'}, {abs(lon[0]):.4f} {'E' if lon[0] >= 0 else 'W'}"
