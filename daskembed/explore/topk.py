"""The most similar of many vectors: blocks of them against all queries, and the best so far (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.footers import Affine

Metric = Literal["cosine", "l2", "dot"]
METRICS: tuple[Metric, ...] = ("cosine", "l2", "dot")
_FEW = 4
"""Queries up to which a dot product a row is faster than a matrix product: it goes at the speed of the memory."""
_STEP = 256
"""Vectors that are looked at while they are in the processor's cache."""
_CLOSE = 1e-5
"""By which single precision may be off, of the size of the numbers: what is as close to the best is looked at again."""


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

    def estimate(self, vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores in single precision, ``(query, vector)``, and which vectors can be compared: the others are NaN."""
        plan = _Plan(self, vectors.dtype)
        count, queries = len(vectors), len(self.vectors)
        found = np.empty((queries, count), np.float32)
        squares = None if self.metric == "dot" else np.empty(count, np.float32)
        step = _STEP if queries <= _FEW else 8 * _STEP
        room = np.empty((min(step, count), vectors.shape[1]), np.float32)
        with np.errstate(all="ignore"):  # of NaN, and of numbers that are too large
            for start in range(0, count, step):
                part = vectors[start : start + step]
                values, end = plan.values(part, room[: len(part)]), start + len(part)
                if queries <= _FEW:
                    for number, weights in enumerate(plan.weights):
                        np.vecdot(values, weights, out=found[number, start:end])
                else:
                    np.matmul(plan.weights, values.T, out=found[:, start:end])
                if squares is not None:
                    np.vecdot(values, values, out=squares[start:end])
            found += plan.bias[:, None]
            if squares is None:
                return found, np.asarray(np.isfinite(found).all(axis=0))
            if self.metric == "l2":
                found *= 2
                found -= squares
                found -= plan.lengths[:, None] ** 2
            else:
                found = _quotient(found, np.sqrt(squares) * plan.lengths[:, None])
        return found, np.isfinite(squares)


class _Plan:
    """How stored numbers become the values that are multiplied, with as few steps as the metric allows."""

    def __init__(self, queries: Queries, dtype: np.dtype[Any]) -> None:
        targets, centre, affine = queries.vectors, queries.centre, queries.affine
        if centre is not None:
            targets = targets - centre
        shift = np.zeros(targets.shape[1]) if centre is None else -centre
        scale = None
        if affine is not None:
            scale, shift = affine.scale, shift + affine.offset
        self.lengths = np.sqrt(np.vecdot(targets, targets)).astype(np.float32)
        # Of a dot product alone the centre and the scale can be taken to the query's side.
        plain = queries.metric == "dot"
        self.bias = (targets @ shift if plain else np.zeros(len(targets))).astype(np.float32)
        weights = targets if scale is None or not plain else targets * scale
        self.weights = np.ascontiguousarray(weights, np.float32)
        self._scale = None if plain or scale is None else scale.astype(np.float32)
        self._shift = None if plain or not shift.any() else shift.astype(np.float32)
        self._as_stored = dtype == np.float32 and self._scale is None and self._shift is None

    def values(self, part: NDArray[Any], room: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values of some vectors, in `room` unless they are stored like that."""
        if self._as_stored:
            return part
        if part.dtype == np.float32 and self._scale is None and self._shift is not None:
            np.add(part, self._shift, out=room)
            return room
        np.copyto(room, part)
        if self._scale is not None:
            room *= self._scale
        if self._shift is not None:
            room += self._shift
        return room


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
    def none(cls, queries: int) -> Best:
        """Of no vectors."""
        return cls((np.empty(0),) * queries, (np.empty((0, 2), np.int64),) * queries)

    def merge(self, other: Best, k: int) -> Best:
        """The best `k` of both."""
        scores, places = [], []
        for query in range(len(self.scores)):
            both = np.concatenate([self.scores[query], other.scores[query]])
            where = np.concatenate([self.places[query], other.places[query]])
            order = np.lexsort((where[:, 1], where[:, 0], -both))[:k]
            scores.append(both[order])
            places.append(where[order])
        return Best(tuple(scores), tuple(places), self.seen + other.seen, self.left_out + other.left_out)

    def worst(self, query: int, k: int) -> float:
        """What a score has to reach to be among the best `k`."""
        return float(self.scores[query][k - 1]) if len(self.scores[query]) >= k else -np.inf


def best_of(
    queries: Queries, k: int, piece: int, numbers: NDArray[np.int64], vectors: NDArray[Any], so_far: Best
) -> Best:
    """The best `k` of each query, of some vectors and those that were found before.

    Parameters
    ----------
    queries, k
        What is searched for, and how many are wanted of each.
    piece, numbers
        Where the vectors are from, ``(vector,)``.
    vectors
        As they are stored, ``(vector, dims)``.
    so_far
        Of the vectors before.
    """
    estimates, comparable = queries.estimate(vectors)
    bad = len(vectors) - int(np.count_nonzero(comparable))
    if bad:
        estimates[:, ~comparable] = -np.inf
    scores, places = [], []
    for query, found in enumerate(estimates):
        least = so_far.worst(query, k)
        size = 1.0 if queries.metric == "cosine" else float(np.abs(found[comparable]).max(initial=0))
        near = np.flatnonzero(found >= least - _CLOSE * size) if np.isfinite(least) else np.flatnonzero(comparable)
        if len(near) > k:
            kth = np.partition(found[near], len(near) - k)[len(near) - k]
            near = near[found[near] >= kth - _CLOSE * size]
        near = near[comparable[near]]
        scores.append(queries.score(query, vectors[near]))
        places.append(np.stack([np.full(len(near), piece), numbers[near]], axis=1))
    here = Best(tuple(scores), tuple(places), len(vectors) - bad, bad)
    return so_far.merge(here, k)


def _quotient(product: NDArray[Any], length: NDArray[Any]) -> NDArray[Any]:
    """`product` / `length`; 0 where there is no length, which has no direction that could be compared."""
    found = np.zeros_like(product)
    np.divide(product, length, out=found, where=length != 0)
    return found
