"""The most similar of many vectors: blocks of them against all queries, and the best so far (pure)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskembed.explore.estimates import Screen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.footers import Affine
    from daskembed.explore.reading import Block

Metric = Literal["cosine", "l2", "dot"]
METRICS: tuple[Metric, ...] = ("cosine", "l2", "dot")
_STEP = 512
"""Vectors that are compared in double precision at a time."""
_MANY = 4
"""Times as many as are wanted: of more it is worth while to look first which are surely among the best."""


@dataclass(frozen=True)
class Queries:
    """What is searched for, and what counts as alike."""

    vectors: NDArray[np.float64]
    """``(query, dims)``."""
    metric: Metric
    centre: NDArray[np.float64] | None
    """What is taken out of all vectors before they are compared, ``(dims,)``."""
    affine: Affine | None = None
    """What the numbers that are searched stand for."""

    def values(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Stored vectors in double precision, without the centre."""
        found: NDArray[np.float64] = vectors.astype(np.float64)
        if self.affine is not None:
            found *= self.affine.scale
            found += self.affine.offset
        if self.centre is not None:
            found -= self.centre
        return found

    def score(self, query: int, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """How alike some vectors are to a query: more is more alike; of ``l2`` it is the squared distance below 0."""
        parts = [self._score(query, vectors[at : at + _STEP]) for at in range(0, len(vectors), _STEP)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _score(self, query: int, vectors: NDArray[Any]) -> NDArray[np.float64]:
        target = self.vectors[query] if self.centre is None else self.vectors[query] - self.centre
        values = self.values(vectors)
        if self.metric == "l2":
            values -= target
            return np.asarray(-np.vecdot(values, values))
        # Row by row, so that a vector's score is the same whatever it is read with.
        product = np.asarray(np.vecdot(values, target))
        if self.metric == "dot":
            return product
        return _quotient(product, np.sqrt(np.vecdot(values, values)) * np.sqrt(np.vecdot(target, target)))

    @functools.cached_property
    def screen(self) -> Screen:
        """What estimates scores, which is made once."""
        return Screen(self)


class Least:
    """What the scores of the best surely reach, by query: what all threads of a search have found so far.

    Where two threads raise it at once, it may keep the lower of both, which is sure as well.
    """

    def __init__(self, queries: int) -> None:
        self.scores = np.full(queries, -np.inf)

    def raise_to(self, scores: NDArray[np.float64] | float, query: Any = ...) -> None:
        """Some queries have as many vectors as are wanted of at least these scores."""
        self.scores[query] = np.maximum(self.scores[query], scores)

    def in_units(self, units: NDArray[np.float64]) -> NDArray[np.float32]:
        """The same or a little less in single precision, ``(query, 1)``; minus infinity never reaches it."""
        with np.errstate(over="ignore"):
            nearest = (self.scores / units).astype(np.float32)
        return np.maximum(np.nextafter(nearest, np.float32(-np.inf)), np.finfo(np.float32).min)[:, None]


@dataclass(frozen=True)
class Best:
    """The best so far of each query, and what could not be compared."""

    scores: tuple[NDArray[np.float64], ...]
    """By query, best first."""
    places: tuple[NDArray[np.int64], ...]
    """Number of the piece and of the vector in it, ``(hit, 2)``; of equal scores the first in this order is better."""
    seen: int = 0
    """Vectors that were compared."""
    left_out: int = 0
    """Those that could not be, as they have NaN or infinity."""

    @classmethod
    def none(cls, queries: int, seen: int = 0, left_out: int = 0) -> Best:
        """Of no vectors, or of none that is among the best."""
        return cls((np.empty(0),) * queries, (np.empty((0, 2), np.int64),) * queries, seen, left_out)

    def merge(self, other: Best, k: int) -> Best:
        """The best `k` of both."""
        scores, places = [], []
        for query in range(len(self.scores)):
            if not len(other.scores[query]):
                scores.append(self.scores[query])
                places.append(self.places[query])
                continue
            both = np.concatenate([self.scores[query], other.scores[query]])
            where = np.concatenate([self.places[query], other.places[query]])
            order = np.lexsort((where[:, 1], where[:, 0], -both))[:k]
            scores.append(both[order])
            places.append(where[order])
        return Best(tuple(scores), tuple(places), self.seen + other.seen, self.left_out + other.left_out)

    def worst(self, query: int, k: int) -> float:
        """What a score has to reach to be among the best `k`."""
        return float(self.scores[query][k - 1]) if len(self.scores[query]) >= k else -np.inf


def best_of(queries: Queries, k: int, piece: int, block: Block, so_far: Best, least: Least) -> Best:
    """The best `k` of each query, of some vectors and those that were found before.

    Parameters
    ----------
    queries, k
        What is searched for, and how many are wanted of each.
    piece, block
        The vectors, and where they are from.
    so_far
        Of the vectors before.
    least
        What is known of all vectors of the search; vectors that are surely worse are left out.
    """
    bad = int(np.isnan(block.squares).sum())
    seen = Best.none(len(queries.vectors), len(block.vectors) - bad, bad)
    query, vector = _near(queries, k, block, least)
    if not len(query):
        return so_far.merge(seen, k)
    scores, places = [], []
    starts = np.searchsorted(query, np.arange(len(queries.vectors) + 1))
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        near = vector[start:end]
        scores.append(queries.score(number, block.vectors[near]) if len(near) else np.empty(0))
        places.append(np.stack([np.full(len(near), piece), block.numbers[near]], axis=1))
    best = so_far.merge(replace(seen, scores=tuple(scores), places=tuple(places)), k)
    for number in np.unique(query):
        least.raise_to(best.worst(number, k), number)
    return best


def _near(queries: Queries, k: int, block: Block, least: Least) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query and number of the vectors that may be among the best, in the order of the queries."""
    units = queries.screen.units
    found: list[tuple[NDArray[Any], ...]] = []
    for estimate in queries.screen.estimates(block.vectors, block.squares):
        count = estimate.scores.shape[1]
        high = estimate.scores + estimate.off
        near = high >= least.in_units(units)
        if count > k and np.count_nonzero(near) > _MANY * k * len(units):
            # Little is known yet.
            sure = np.partition(estimate.scores - estimate.off, count - k, axis=1)[:, count - k]
            least.raise_to(sure * units)
            near = high >= least.in_units(units)
        places = np.flatnonzero(near)
        if not len(places):
            continue
        query, vector = np.divmod(places, count)
        low = estimate.scores[query, vector] - estimate.off[query, vector]
        found.append((query, vector + estimate.start, low, high[query, vector]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    query, vector, low, high = (np.concatenate(one) for one in zip(*found, strict=True))
    if len(found) > 1:
        order = np.argsort(query, kind="stable")
        query, vector, low, high = query[order], vector[order], low[order], high[order]
    counts = np.bincount(query, minlength=len(units))
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts > k):
        sure = low[ends[number] - counts[number] : ends[number]]
        least.raise_to(np.partition(sure, len(sure) - k)[len(sure) - k] * units[number], number)
    kept = high >= least.in_units(units)[query, 0]
    return query[kept], vector[kept]


def _quotient(product: NDArray[Any], length: NDArray[Any]) -> NDArray[Any]:
    """`product` / `length`; 0 where there is no length, which has no direction that could be compared."""
    found = np.zeros_like(product)
    np.divide(product, length, out=found, where=length != 0)
    return found
