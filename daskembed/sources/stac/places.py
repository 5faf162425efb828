"""Where the centres of a grid's pixels lie in a file of another grid (pure)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyproj

from daskembed.geo.cells import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    _Exact = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

_TIE = 1e-9
"""Of a pixel: what lies so near before a pixel's edge lies on it, and belongs to the next one."""
_DEGREE = 8
"""Of the polynomials that stand for a projection over a few kilometres."""
_CLOSE = 1e-4
"""Of a pixel: centres so near to an edge are projected themselves."""


class Places(NamedTuple):
    """The pixel of a file that holds the centre of each pixel of a window."""

    rows: slice
    """Of the file, in which all of them lie."""
    cols: slice
    y: NDArray[np.intp]
    """Row of each row of the window, from the first of `rows`; where the grids have not one CRS, of each pixel
    ``(y, x)`` its number in `rows` and `cols`, row-major."""
    x: NDArray[np.intp] | None
    """Likewise columns; None where the grids have not one CRS."""
    inside: NDArray[np.bool_] | None
    """Which of the centres lie in the file; None if all do."""

    def pick(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Of the pixels of `rows` and `cols` those of the window."""
        if self.x is not None:
            return pixels.take(self.y, axis=0).take(self.x, axis=1)
        return pixels.ravel().take(self.y)


def find(target: Grid, rows: slice, cols: slice, source: Grid) -> Places | None:
    """The pixels of `source` that hold the centres of those of a window of `target`; None if it has none of them."""
    y, x = _fractional(target, rows, cols, source)
    ends = y.min(), y.max(), x.min(), x.max()
    # Written so that NaN and infinity, of places outside of the projection, are not in it.
    inside = None
    if not (ends[0] >= 0 and ends[1] < source.height - _TIE and ends[2] >= 0 and ends[3] < source.width - _TIE):
        with np.errstate(invalid="ignore"):
            in_y, in_x = (
                (place + _TIE >= 0) & (place + _TIE < length)
                for place, length in ((y, source.height), (x, source.width))
            )
        inside = in_y & in_x
        if not inside.any():
            return None
        if target.epsg == source.epsg:
            y, x = np.where(in_y, y, y[in_y].min()), np.where(in_x, x, x[in_x].min())
        else:
            y, x = (np.where(inside, place, place[inside].min()) for place in (y, x))
        inside = None if inside.all() else inside
    down, across = ((place + _TIE).astype(np.intp) for place in (y, x))
    held = slice(int(down.min()), int(down.max()) + 1), slice(int(across.min()), int(across.max()) + 1)
    down -= held[0].start
    across -= held[1].start
    if target.epsg == source.epsg:
        return Places(*held, down[:, 0], across[0], inside)
    down *= held[1].stop - held[1].start
    down += across
    return Places(*held, down, None, inside)


def _fractional(
    target: Grid, rows: slice, cols: slice, source: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns of `source`, with fractions, of the centres: ``(y, 1)`` and ``(1, x)``, or ``(y, x)`` each."""
    north = target.north - (np.arange(rows.start, rows.stop)[:, None] + 0.5) * target.step_y
    east = target.west + (np.arange(cols.start, cols.stop)[None, :] + 0.5) * target.step_x
    if target.epsg == source.epsg:
        return (source.north - north) / source.step_y, (east - source.west) / source.step_x

    def exact(east: NDArray[np.float64], north: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = _transformer(target.epsg, source.epsg).transform(east, north)
        if source.epsg == 4326:
            # Either side of 180 degrees.
            centre = source.west + source.width * source.step_x / 2
            x = centre + (x - centre + 180) % 360 - 180
        return np.stack([(source.north - y) / source.step_y, (x - source.west) / source.step_x])

    found = _fitted(exact, east, north)
    if found is None:
        found = exact(*np.broadcast_arrays(east, north))
    return found[0], found[1]


def shrinkage(target: Grid, source: Grid) -> tuple[float, float]:
    """Pixels of `target`, x and y, that one of `source` takes in the middle of the target; 1 where it takes more."""
    middle = slice(target.height // 2, target.height // 2 + 2), slice(target.width // 2, target.width // 2 + 2)
    y, x = np.broadcast_arrays(*_fractional(target, *middle, source))
    across, down = abs(x[0, 1] - x[0, 0]), abs(y[1, 0] - y[0, 0])
    # A grid that is turned a little is none of larger pixels.
    across, down = (1.0 if not length > 1.01 else float(1 / length) for length in (across, down))
    return across, down


def _fitted(exact: _Exact, east: NDArray[np.float64], north: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """By a polynomial, and by `exact` where its error would matter; None if the projection is no polynomial here.

    It is 40 times as fast as projecting each centre.
    """
    if min(east.size, north.size) <= 4 * _DEGREE:
        return None
    sides = [(side.min(), side.max()) for side in (north, east)]
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    checks = np.cos(np.pi * np.arange(_DEGREE + 2) / (_DEGREE + 1))

    def at(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        (south, top), (west, right) = sides
        found: NDArray[np.float64] = exact(
            *np.broadcast_arrays(
                ((west + right) + (right - west) * x)[None, :] / 2, ((south + top) + (top - south) * y)[:, None] / 2
            )
        )
        return found

    known = at(nodes, nodes)
    if not np.isfinite(known).all():
        return None
    basis = np.polynomial.chebyshev.chebvander(nodes, _DEGREE)
    inverse = np.linalg.inv(basis)
    terms = inverse @ known @ inverse.T
    tried = np.polynomial.chebyshev.chebvander(checks, _DEGREE)
    if not np.abs(tried @ terms @ tried.T - at(checks, checks)).max() < _CLOSE / 10:
        return None
    by_row, by_col = (
        np.polynomial.chebyshev.chebvander((2 * side.ravel() - low - high) / (high - low), _DEGREE)
        for side, (low, high) in zip((north, east), sides, strict=True)
    )
    # One after the other: a product of small matrices is no work for several threads.
    found = np.stack([by_row @ (part @ by_col.T) for part in terms])
    near = (np.abs(found - np.round(found)) < _CLOSE).any(axis=0)
    if near.any():
        y, x = np.nonzero(near)
        found[:, y, x] = exact(east[0, x], north[y, 0])
    return found


# Transformers may be shared by threads.
@functools.lru_cache(64)
def _transformer(source: int, target: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source, target, always_xy=True)
