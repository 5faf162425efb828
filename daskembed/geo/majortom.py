"""The grid of Major TOM: cells of about 10 km in rows around the Earth, as its paper defines them (pure).

Francis and Czerkawski, "Major TOM: Expandable Datasets for Earth Observation", arXiv:2402.12095, section 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KILOMETRES = 10
"""Of a cell's sides, at most."""
_RADIUS = 6378.137
"""Kilometres of the Earth, taken for a sphere."""
_ROWS = math.ceil(math.pi * _RADIUS / KILOMETRES)
"""From pole to pole; an even number, so that one begins at the equator."""


def cells_at(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Row, counted northwards from the equator, and column, eastwards from Greenwich, of the cells of some places.

    What lies on the line between two cells is in the southern or western one.

    Parameters
    ----------
    lon, lat
        Degrees of OGC:CRS84.
    """
    row = np.ceil(lat * _ROWS / 180).astype(np.int64) - 1
    # A row has as many columns as its southern edge is long.
    around = 2 * math.pi * _RADIUS * np.cos(np.deg2rad(row * 180 / _ROWS))
    columns = np.ceil(around / KILOMETRES).astype(np.int64)
    col = np.ceil(lon * columns / 360).astype(np.int64) - 1
    # The last one in the east reaches across 180 degrees where their number is odd.
    col = np.where(col < -(columns // 2), (columns - 1) // 2, col)
    return row.astype(np.int16), col.astype(np.int16)


def cell_names(row: NDArray[np.int16], col: NDArray[np.int16]) -> list[str]:
    """What cells are called, such as ``451U_946L``: up or down from the equator, right or left from Greenwich."""
    pairs = zip(row.tolist(), col.tolist(), strict=True)
    return [f"{abs(y)}{'U' if y >= 0 else 'D'}_{abs(x)}{'R' if x >= 0 else 'L'}" for y, x in pairs]
