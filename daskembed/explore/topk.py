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
_STEP = 512
"""Vectors that are looked at while they are in the processor's cache."""
_CLOSE = 1e-5
"""By which single precision may be off, of the size of the numbers: what is as close to the best is looked at again."""
_TORCH_PIECE = 32_768
"""Numbers up to which torch does not share its work out to threads."""


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

    def estimate(self, vectors: NDArray[Any]) -> Estimate:
        """Scores in single precision, and how far off they may be."""
        plan = _Plan(self)
        count, queries = len(vectors), len(self.vectors)
        products = np.empty((queries, count), np.float32)
        squares, crossed = (np.zeros(count, np.float32) for _ in range(2))
        step = _STEP if queries <= _FEW else 4 * _STEP
        room = np.empty((min(step, count), vectors.shape[1]), np.float32)
        with np.errstate(all="ignore"):  # of NaN, and of numbers that are too large
            for start in range(0, count, step):
                part = vectors[start : start + step]
                here, values = slice(start, start + len(part)), _as_float32(part, room)
                if queries <= _FEW:
                    for number, weights in enumerate(plan.weights):
                        np.vecdot(values, weights, out=products[number, here])
                else:
                    np.matmul(plan.weights, values.T, out=products[:, here])
                if self.metric == "dot":
                    continue
                if plan.cross is not None:
                    np.vecdot(values, plan.cross, out=crossed[here])
                if plan.scales is None:
                    np.vecdot(values, values, out=squares[here])
                else:
                    np.vecdot(np.square(values, out=values), plan.scales, out=squares[here])
            products += plan.bias[:, None]
            if self.metric == "dot":
                comparable = np.isfinite(products.sum(axis=0))
                off = np.full(count, _CLOSE * float(np.abs(products[:, comparable]).max(initial=0)), np.float32)
                return Estimate(products, off, comparable)
            comparable = np.isfinite(squares)
            # Of a sum of numbers the rounding is that of the largest.
            parts = squares + 2 * np.abs(crossed) + plan.constant
            lengths = np.maximum(squares + 2 * crossed + plan.constant, 0)
            if self.metric == "l2":
                products *= 2
                products -= lengths
                products -= np.square(plan.lengths)[:, None]
                return Estimate(products, _CLOSE * (parts + np.square(plan.lengths).max()), comparable)
            products /= np.sqrt(lengths)
            products /= plan.lengths[:, None]
            # What has next to no length may have any direction.
            known = lengths > _CLOSE * parts
            products[:, ~known & comparable] = 0
            off = np.where(known, _CLOSE * parts / lengths, 2).astype(np.float32)
        return Estimate(np.nan_to_num(products, copy=False), off, comparable)


@dataclass(frozen=True)
class Estimate:
    """Scores of some vectors in single precision."""

    scores: NDArray[np.float32]
    """``(query, vector)``."""
    off: NDArray[np.float32]
    """By which each may be wrong, ``(vector,)``."""
    comparable: NDArray[np.bool_]
    """Which are without NaN and infinity."""


class _Plan:
    """What stored numbers v are multiplied by: they stand for v * scale + shift, without the centre."""

    def __init__(self, queries: Queries) -> None:
        targets, affine = queries.vectors, queries.affine
        shift = np.zeros(targets.shape[1])
        if queries.centre is not None:
            targets, shift = targets - queries.centre, shift - queries.centre
        scale = np.ones(len(shift))
        if affine is not None:
            scale, shift = affine.scale, shift + affine.offset
        self.lengths = np.sqrt(np.vecdot(targets, targets)).astype(np.float32)
        self.weights = np.ascontiguousarray(targets * scale, np.float32)
        self.bias = (targets @ shift).astype(np.float32)
        self.scales = None if affine is None else np.square(scale).astype(np.float32)
        self.cross = (scale * shift).astype(np.float32) if shift.any() else None
        self.constant = np.float32(shift @ shift)


def _as_float32(part: NDArray[Any], room: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers in single precision, in `room` unless they are stored so."""
    if part.dtype == np.float32:
        return part
    values = room[: len(part)]
    if part.dtype != np.float16:
        np.copyto(values, part, casting="same_kind")
        return values
    # NumPy takes eight times as long for it. Of so few numbers torch makes one piece, and has no threads wait.
    import torch

    rows = max(1, _TORCH_PIECE // part.shape[1])
    # A copy, as torch warns of what cannot be written to.
    source, target = torch.from_numpy(part.copy()), torch.from_numpy(values)
    for start in range(0, len(part), rows):
        target[start : start + rows].copy_(source[start : start + rows])
    return values


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
    estimate = queries.estimate(vectors)
    comparable = np.flatnonzero(estimate.comparable)
    bad = len(vectors) - len(comparable)
    off = estimate.off if not bad else estimate.off[comparable]
    scores, places = [], []
    for query, found in enumerate(estimate.scores if not bad else estimate.scores[:, comparable]):
        least = so_far.worst(query, k)
        near = np.flatnonzero(found + off >= least)
        if len(near) > k:
            surely = (found - off)[near]
            near = near[found[near] + off[near] >= np.partition(surely, len(near) - k)[len(near) - k]]
        near = comparable[near]
        scores.append(queries.score(query, vectors[near]))
        places.append(np.stack([np.full(len(near), piece), numbers[near]], axis=1))
    here = Best(tuple(scores), tuple(places), len(vectors) - bad, bad)
    return so_far.merge(here, k)


def _quotient(product: NDArray[Any], length: NDArray[Any]) -> NDArray[Any]:
    """`product` / `length`; 0 where there is no length, which has no direction that could be compared."""
    found = np.zeros_like(product)
    np.divide(product, length, out=found, where=length != 0)
    return found
