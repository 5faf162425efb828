"""Grids of cells, be they pixels or patches, and how squares lie on them (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.errors import TileError, exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

EDGES = ("west", "south", "east", "north")
"""Of a rectangle, in the order of its bounds; columns of frames are called like that."""
MOST_OFF = 1 / 32
"""Pixels by which a square may be larger than the first, or beside its grid: those of coordinates that were rounded to
a tenth of a metre are 0.005 off. Half a pixel is another grid."""


@dataclass(frozen=True)
class Grid:
    """Cells from a north-western corner."""

    epsg: int
    west: float
    """Of the westernmost cells, their western edge, in the CRS's unit; likewise `north`."""
    north: float
    step_x: float
    """Width of a cell, in the CRS's unit; likewise `step_y`."""
    step_y: float
    height: int
    """Cells from north to south."""
    width: int
    """Cells from west to east."""

    @property
    def bounds(self) -> NDArray[np.float64]:
        """West, south, east and north of all of it."""
        return cell_bounds(self.west, self.north, (self.step_y, self.step_x), 0, 0, (self.height, self.width))


@dataclass(frozen=True)
class Placed:
    """Squares of some days on a grid that just holds all of them."""

    grid: Grid
    y: NDArray[np.int64]
    """First cell of each, from north; likewise `x` from west."""
    x: NDArray[np.int64]
    days: NDArray[np.datetime64]


def cell_bounds(
    west: Any, north: Any, step: tuple[Any, Any], y: Any, x: Any, cells: tuple[int, int]
) -> NDArray[np.float64]:
    """West, south, east and north, along the last axis, of rectangles on grids; all arguments broadcast.

    Parameters
    ----------
    west, north
        Of the grids' north-western corners.
    step
        Height and width of a cell.
    y, x
        Of the north-western cell of each rectangle.
    cells
        Of a rectangle, down and across.
    """
    left, top = west + x * step[1], north - y * step[0]
    found: NDArray[np.float64] = np.stack([left, top - cells[0] * step[0], left + cells[1] * step[1], top], axis=-1)
    return found


def window_bounds(bounds: NDArray[np.float64], across: int) -> NDArray[np.float64]:
    """Bounds of the windows of some squares, row-major: ``(square, 4)`` to ``(square, across * across, 4)``."""
    west, south, east, north = bounds.T[..., None]
    row, col = np.divmod(np.arange(across**2), across)
    return cell_bounds(west, north, ((north - south) / across, (east - west) / across), row, col, (1, 1))


def common_grid(
    names: Sequence[str],
    epsg: NDArray[Any],
    bounds: NDArray[np.float64],
    cells: tuple[int, int],
    *,
    pixels: int,
    every: int = 1,
    why: str,
) -> tuple[Grid, NDArray[np.int64], NDArray[np.int64]]:
    """The grid that some squares share, and each one's first cell.

    Parameters
    ----------
    names
        What the squares are called in errors.
    epsg
        Code of the CRS of each.
    bounds
        West, south, east and north of each, ``(square, 4)``.
    cells
        Of a square, down and across.
    pixels
        Along each side of a square.
    every
        Cells of which a multiple lies between any two squares, in both directions.
    why
        They have to share one, for the end of errors, and what can be done.

    Returns
    -------
    Grid
        That just holds all of them.
    arrays
        Row and column of the north-western cell of each.

    Raises
    ------
    TileError
        If one has another CRS, another size or is off the grid of the first.
    """
    first, (rows, cols) = names[0], cells
    kind = "pixels" if cells == (pixels, pixels) else "cells"
    if len(other := np.flatnonzero(epsg != epsg[0])):
        raise TileError(f"{names[other[0]]} is in EPSG:{epsg[other[0]]}, {first} in EPSG:{epsg[0]}: {why}")
    west, south, east, north = bounds.T
    step_y, step_x = (north - south) / rows, (east - west) / cols
    off = np.maximum(np.abs(step_y / step_y[0] - 1), np.abs(step_x / step_x[0] - 1)) * pixels > MOST_OFF
    if off.any():
        bad = int(np.argmax(off))
        sizes = [f"{exact(step_x[one])} x {exact(step_y[one])}" for one in (bad, 0)]
        raise TileError(f"{names[bad]} has {kind} of {sizes[0]}, {first} of {sizes[1]}: {why}")
    y, x = (north[0] - north) / step_y[0], (west - west[0]) / step_x[0]
    down, across = (every * np.round(place / every).astype(np.int64) for place in (y, x))
    off = np.maximum(np.abs(y - down) / rows, np.abs(x - across) / cols) * pixels > MOST_OFF
    if off.any():
        bad = int(np.argmax(off))
        whole = "not a whole number" if every == 1 else f"not multiples of {every}"
        raise TileError(
            f"{names[bad]} lies {exact(round(x[bad], 3))} {kind} east and {exact(round(y[bad], 3))} south of {first}, "
            f"{whole}: {why}"
        )
    top, left = int(down.argmin()), int(across.argmin())
    grid = Grid(
        epsg=int(epsg[0]),
        west=float(west[left]),
        north=float(north[top]),
        step_x=float(step_x[left]),
        step_y=float(step_y[top]),
        height=int(np.ptp(down)) + rows,
        width=int(np.ptp(across)) + cols,
    )
    return grid, down - down.min(), across - across.min()


def find_overlap(
    y: NDArray[np.int64], x: NDArray[np.int64], cells: tuple[int, int], days: NDArray[Any]
) -> tuple[int, int] | None:
    """The first square of a day that has a cell of an earlier one, and that one; None if all are apart.

    Parameters
    ----------
    y, x
        First cell of each square, from 0.
    cells
        Of a square, down and across.
    days
        Of the squares.
    """
    (rows, cols), shape = cells, (y.max(initial=0) + cells[0], x.max(initial=0) + cells[1])
    for day in np.unique(days):
        owners = np.full(shape, -1)
        for number in np.flatnonzero(days == day):
            there = owners[y[number] : y[number] + rows, x[number] : x[number] + cols]
            if there.max() >= 0:
                return int(number), int(there.max())
            there[...] = number
    return None


def place(
    names: Sequence[str],
    epsg: NDArray[Any],
    bounds: NDArray[np.float64],
    days: NDArray[np.datetime64],
    cells: tuple[int, int],
    *,
    pixels: int,
    what: str,
) -> Placed:
    """Squares that share a grid, and of which no two have a cell of one day in common.

    Parameters
    ----------
    names, epsg, bounds, cells, pixels
        See `common_grid`.
    days
        Of the squares.
    what
        That needs this, for errors, such as ``a GeoTIFF``.

    Raises
    ------
    TileError
        If they are not so.
    """
    instead = "give `format='geoparquet'`"
    grid, y, x = common_grid(names, epsg, bounds, cells, pixels=pixels, why=f"{what} has one grid; {instead}")
    if overlap := find_overlap(y, x, cells, days):
        one, other = overlap
        raise TileError(
            f"{names[one]} and {names[other]} overlap on {days[one]}: {what} has one vector a place and date; {instead}"
        )
    return Placed(grid, y, x, days)
