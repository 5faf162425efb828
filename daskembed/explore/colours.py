"""Colours of principal components (pure): red, green and blue between two percentiles of all tiles' scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from daskembed.explore.basis import Basis

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILES = (2, 98)
"""Of the scores of all tiles: what lies beyond is as dark or as bright as can be."""
REACH = 8
"""Standard deviations on either side that are counted. By Chebyshev's inequality no more than a 64th of any
distribution lies that far from its mean: both percentiles are within."""
BINS = 2**14
"""Of a component: a thousandth of a standard deviation each, where a step of a colour has about a sixtieth."""


def count_scores(basis: Basis, vectors: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many of some vectors have a score in each bin, ``(component, bin)``; counts of tiles add up exactly."""
    scores = basis.scores(vectors)
    scores = scores[np.isfinite(scores).all(axis=1)]
    counts = np.zeros((len(basis.axes), BINS), np.int64)
    for number, variance in enumerate(basis.variance):
        if variance > 0:
            place = (scores[:, number] / np.sqrt(variance) + REACH) / (2 * REACH) * BINS
            counts[number] = np.bincount(np.clip(place.astype(np.int64), 0, BINS - 1), minlength=BINS)
    return counts


def with_colours(basis: Basis, counts: Iterable[NDArray[np.int64]]) -> Basis:
    """A basis whose colours reach from the 2nd to the 98th percentile of the scores that were counted."""
    total = np.zeros((len(basis.axes), BINS), np.int64)
    for one in counts:
        total += one
    low, high = (
        [_percentile(total[number], percent, variance) for number, variance in enumerate(basis.variance)]
        for percent in PERCENTILES
    )
    return replace(basis, low=low, high=high)


def _percentile(counts: NDArray[np.int64], percent: float, variance: float) -> float:
    """The score below which so many lie, in the middle of its bin."""
    seen = np.cumsum(counts)
    if not seen[-1]:
        return 0.0
    place = int(np.searchsorted(seen, percent / 100 * seen[-1]))
    return float(((place + 0.5) / BINS * 2 * REACH - REACH) * np.sqrt(variance))


def rgb_of(basis: Basis, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours ``(..., 3)`` of scores ``(..., component)``: 1 to 255, and 0 in all three for scores that are NaN.

    A component without any variance is grey.
    """
    low, high = np.array(basis.low), np.array(basis.high)
    width = high - low
    with np.errstate(invalid="ignore"):
        share = np.where(width > 0, (scores - low) / np.where(width > 0, width, 1), 0.5)
    known = np.isfinite(scores).all(axis=-1, keepdims=True)
    return np.where(known, np.clip(np.rint(1 + 254 * share), 1, 255), 0).astype(np.uint8)
