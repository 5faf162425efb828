"""Scores in the precision that vectors are stored in, at the speed of the memory, and how wrong they may be (pure)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numkong
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.footers import Affine
    from daskembed.explore.topk import Queries

_FEW = 4
"""Queries up to which a dot product a row is faster than a matrix product: it goes at the speed of the memory."""
_STEP = 1024
"""Vectors that several products look at while they are in the processor's cache."""
_LONG_STEP = 8192
"""The same of a product that looks once for all: the fewer calls, the less threads wait for Python."""
_CHUNK = 2048
"""Vectors that are compared with many queries at a time."""
_TINY = 2.0**-126
"""Numbers nearer to 0 may be taken for 0 in single precision."""
_PARTS = {"float16": 1, "int8": 2}
"""Types that queries are rounded to, and in how many parts: what the first one leaves, and so on."""
_LITTLE = 0.01
"""What a dot product may be off, as a share of the lengths of both vectors: a few more are compared exactly."""
_LARGEST = {"float16": 2.0**10, "int8": 127.0}
"""What the largest number of a part becomes; its products with vectors are far from the ends of single precision."""


@dataclass(frozen=True)
class Estimate:
    """Scores of some vectors, in units of `Screen.units`."""

    start: int
    """Number of the first of them in the block."""
    scores: NDArray[np.float32]
    """``(query, vector)``; minus infinity for what cannot be compared."""
    off: NDArray[np.float32]
    """By which each may be wrong, likewise."""


def squares_of(vectors: NDArray[Any], affine: Affine | None) -> NDArray[np.float32]:
    """Squares of the lengths of stored vectors, times the scale they have, ``(vector,)``.

    They are NaN for vectors with NaN or infinity, and infinite for those that are too long for single precision.
    """
    squares = np.empty(len(vectors), np.float32)
    scales = None if affine is None else np.square(affine.scale).astype(np.float32)
    room = _room(vectors, _STEP)
    with np.errstate(all="ignore"):
        for start in range(0, len(vectors), _STEP):
            values = _as_float32(vectors[start : start + _STEP], room)
            out = squares[start : start + _STEP]
            if scales is None:
                np.vecdot(values, values, out=out)
            else:
                np.vecdot(np.square(values, out=room[: len(values)]), scales, out=out)
    if not np.isfinite(squares).all():
        wild = np.flatnonzero(~np.isfinite(squares))
        squares[wild] = np.where(np.isfinite(vectors[wild]).all(axis=1), np.inf, np.nan)
    return squares


@dataclass(frozen=True)
class _Rounded:
    """Weights in the type of the vectors."""

    stored: NDArray[Any]
    """``(part * weight, dims)``."""
    steps: NDArray[np.float64]
    """What they are multiples of, ``(part, weight, 1)``."""
    lost: NDArray[np.float32]
    """By how much a product with a vector of length 1 may be wrong, of rounding and of adding up, ``(weight, 1)``."""

    @functools.cached_property
    def packed(self) -> Any:
        """For products of matrices."""
        return numkong.dots_pack(self.stored)


class Screen:
    """What stored numbers v are multiplied by: they stand for x = v * scale + shift, without the centre.

    With t for a query without the centre, ``x @ t = v @ (scale * t) + shift @ t`` and
    ``|x|² = |scale * v|² + 2 v @ (scale * shift) + |shift|²``. A sum of n products in single precision is off by no
    more than gamma times the lengths of both vectors (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    3.1), where gamma grows by a rounding with each number that is added up: BLAS goes on at least four sums at a time.
    """

    def __init__(self, queries: Queries) -> None:
        targets, affine, self.metric = queries.vectors, queries.affine, queries.metric
        shift = np.zeros(targets.shape[1])
        if queries.centre is not None:
            targets, shift = targets - queries.centre, shift - queries.centre
        scale = np.ones(len(shift))
        if affine is not None:
            scale, shift = affine.scale, shift + affine.offset
        lengths = np.sqrt(np.vecdot(targets, targets))
        self.units = np.ones(len(targets))
        """What the scores of each query are multiples of: powers of two."""
        if self.metric != "l2":
            # Queries of any length become such as single precision can tell; the cosine is the same.
            powers = np.exp2(np.frexp(np.where(np.isfinite(lengths), lengths, 1))[1])
            targets, lengths = targets / powers[:, None], lengths / powers
            if self.metric == "dot":
                self.units = powers
        self.gamma = np.float32(2.0**-24 * (len(shift) / 4 + 16))
        rows = [targets * scale]
        self.crossed = self.metric != "dot" and bool(shift.any())
        if self.crossed:
            rows.append((scale * shift)[None])
        self.exact, self.scale = np.concatenate(rows), scale
        self.rounded: dict[str, _Rounded] = {}
        with np.errstate(over="ignore"):  # what is infinite then is compared exactly
            self.weights = np.ascontiguousarray(self.exact, np.float32)
            self.lengths = lengths.astype(np.float32)
            self.bias = (targets @ shift).astype(np.float32)
            self.constant = np.float32(shift @ shift)
            self.shift = np.float32(np.sqrt(shift @ shift))

    def estimates(self, vectors: NDArray[Any], squares: NDArray[np.float32]) -> Iterator[Estimate]:
        """Of some vectors at a time, as they are stored, ``(vector, dims)``, and of what `squares_of` says of them."""
        few = len(self.weights) <= _FEW
        rounded = self._in_type(vectors.dtype.name) if vectors.dtype.name in _PARTS else None
        chunk = max(1, len(vectors)) if few else _CHUNK
        room = _room(vectors, _STEP if few else _CHUNK)
        for start in range(0, len(vectors), chunk):
            part, there = vectors[start : start + chunk], squares[start : start + chunk]
            with np.errstate(all="ignore"):  # of NaN, and of numbers that are too large
                if rounded is None:
                    products, more = self._products(part, room, few), None
                else:
                    products, more = _rounded_products(part, rounded, few), rounded.lost * np.sqrt(there)
                yield Estimate(start, *self._scores(products, more, there))

    def _in_type(self, dtype: str) -> _Rounded:
        """The weights in a type: rounded, and what is left of them rounded again, as often as is worth while."""
        if dtype not in self.rounded:
            left = self.exact
            stored: list[NDArray[Any]] = []
            steps: list[NDArray[np.float64]] = []
            whole = lost = self._lengths(self.exact)
            # Dot products differ by much of what they are made of, squares of distances may not.
            enough = _LITTLE * whole if self.metric == "dot" else 0 * whole
            while not stored or (len(stored) < _PARTS[dtype] and (lost > enough).any()):
                step = np.max(np.abs(left), axis=1, keepdims=True) / _LARGEST[dtype]
                step[~((step > 0) & np.isfinite(step))] = 1
                part = np.rint(left / step) if dtype == "int8" else left / step
                stored.append(part.astype(dtype))
                steps.append(step)
                left = left - stored[-1] * step
                lost = self._lengths(left)
            lost = lost + 2.0**-24 * (2 * self.exact.shape[1] + 16) * whole
            self.rounded[dtype] = _Rounded(np.concatenate(stored), np.stack(steps), lost.astype(np.float32))
        return self.rounded[dtype]

    def _lengths(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """What products with stored vectors v are no more than, times the length of scale * v, ``(weight, 1)``.

        It is the length of the weights w / scale, as ``w @ v = (w / scale) @ (scale * v)``.
        """
        known = self.scale != 0
        found: NDArray[np.float64] = np.sqrt(
            np.square(weights[:, known] / self.scale[known]).sum(axis=1, keepdims=True)
        )
        return found

    def _products(self, part: NDArray[Any], room: NDArray[np.float32], few: bool) -> NDArray[np.float32]:
        """Of each row of weights with each vector, ``(weights, vector)``."""
        products = np.empty((len(self.weights), len(part)), np.float32)
        # What is looked at once needs no cache.
        once = few and part.dtype == np.float32 and len(self.weights) == 1
        step = len(part) if once else len(room)
        for start in range(0, len(part), step):
            here, values = slice(start, start + step), _as_float32(part[start : start + step], room)
            if few:
                for number, weights in enumerate(self.weights):
                    np.vecdot(values, weights, out=products[number, here])
            else:
                np.matmul(self.weights, values.T, out=products[:, here])
        return products

    def _scores(
        self, products: NDArray[np.float32], more: NDArray[np.float32] | None, squares: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores, and by how much they may be wrong, of products that are `more` off than single precision is."""
        gamma, lengths = self.gamma, self.lengths[:, None]
        scores = products[: len(lengths)]
        scores += self.bias[:, None]
        tiny = np.float32(4 * self.weights.shape[1] * _TINY)
        reach = np.sqrt(squares + tiny) + self.shift
        if self.metric == "dot":
            off = (gamma * lengths) * reach
            off += tiny
            if more is not None:
                off += more
        else:
            own = squares + self.constant
            if self.crossed:
                own += 2 * products[-1]
            if self.metric == "l2":
                scores *= 2
                scores -= own
                scores -= np.square(lengths)
                off = gamma * np.square(reach + lengths)
                off += tiny
                if more is not None:
                    off += 2 * more[: len(lengths)]
                    if self.crossed:
                        off += 2 * more[-1]
            else:
                own = np.sqrt(np.maximum(own, 0))
                scores /= own
                scores /= lengths
                share = reach / own
                off = np.tile(gamma * share * (1 + share), (len(lengths), 1))
                doubt = 2 * gamma * np.square(share)
                if more is not None:
                    off += more[: len(lengths)] / (lengths * own)
                    if self.crossed:
                        # A quotient by the root of what is off by a share is off by no more than this share.
                        wrong = 2 * more[-1] / np.square(own)
                        off += np.abs(scores) * wrong
                        off *= 1 + wrong
                        doubt += 2 * wrong
                # What has next to no length may have any direction, and so may what is too long to tell.
                any_way = ~(doubt < 1) | np.isinf(own)
                scores[:, any_way], off[:, any_way] = 0, 2
        if not (np.isfinite(scores).all() and np.isfinite(off).all()):
            wild = ~(np.isfinite(scores) & np.isfinite(off))
            scores[wild], off[wild] = 0, np.inf
        if np.isnan(squares).any():
            missing = np.isnan(squares)
            scores[:, missing], off[:, missing] = -np.inf, 0
        return scores, off


def _rounded_products(part: NDArray[Any], rounded: _Rounded, few: bool) -> NDArray[np.float32]:
    """Of each weight with each vector of its type, ``(weight, vector)``."""
    parts, weights, _ = rounded.steps.shape
    products = np.empty((weights, len(part)), np.float32)
    step = _LONG_STEP if few else _CHUNK
    for start in range(0, len(part), step):
        values, out = part[start : start + step], products[:, start : start + step]
        found = numkong.cdist(values, rounded.stored, "dot") if few else numkong.dots_packed(values, rounded.packed)
        by_part = np.asarray(found).T.reshape(parts, weights, len(values))
        np.multiply(by_part[0], rounded.steps[0], out=out, casting="same_kind")
        for one, steps in zip(by_part[1:], rounded.steps[1:], strict=True):
            np.add(out, one * steps, out=out, casting="same_kind")
    return products


def _room(vectors: NDArray[Any], most: int) -> NDArray[np.float32]:
    return np.empty((min(most, len(vectors)), vectors.shape[1]), np.float32)


def _as_float32(part: NDArray[Any], room: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers in single precision, in `room` unless they are stored so."""
    if part.dtype == np.float32:
        return part
    values = room[: len(part)]
    if part.dtype == np.float16:  # NumPy takes eight times as long for it
        numkong.astype(part, "float32", out=values)
    else:
        np.copyto(values, part, casting="same_kind")
    return values
