"""The Hilbert curve over the world: places that are near each other have keys that mostly are (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ORDER = 24
"""Cells of the curve along each side of the world, as a power of two: 2.4 m of longitude at the equator."""


def hilbert_keys(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.uint64]:
    """Places along the curve, which begins at 180 W, 90 S and ends at 180 E, 90 S.

    Parameters
    ----------
    lon, lat
        Degrees, of any one shape; 180 E is another place than 180 W.

    Returns
    -------
    NDArray
        Below ``4**ORDER``. After Wikipedia's `xy2d <https://en.wikipedia.org/wiki/Hilbert_curve>`_.

    Raises
    ------
    ValueError
        If a place is not on Earth.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    # Written so that NaN is refused.
    if not ((np.abs(lon) <= 180).all() and (np.abs(lat) <= 90).all()):
        raise ValueError("a place beyond 180 degrees of longitude or 90 of latitude, or of none")
    most = 2**ORDER - 1
    x = np.minimum((lon + 180) / 360 * 2**ORDER, most).astype(np.uint64)
    y = np.minimum((lat + 90) / 180 * 2**ORDER, most).astype(np.uint64)
    keys = np.zeros(x.shape, np.uint64)
    for level in reversed(range(ORDER)):
        bit = np.uint64(level)
        right, up = (x >> bit) & np.uint64(1), (y >> bit) & np.uint64(1)
        keys = (keys << np.uint64(2)) | ((np.uint64(3) * right) ^ up)
        # The two lower quadrants are turned, the right one also mirrored.
        low = up == 0
        mirrored = low & (right == 1)
        x, y = np.where(mirrored, most - x, x), np.where(mirrored, most - y, y)
        x, y = np.where(low, y, x), np.where(low, x, y)
    return keys
