"""Scores in single or half precision at the speed of the memory, and how wrong they may be (pure)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.footers import Affine
    from daskembed.explore.topk import Queries

_FEW = 4
"""Queries up to which a dot product a row is faster than a matrix product: it goes at the speed of the memory."""
_STEP = 1024
"""Vectors that several products look at while they are in the processor's cache."""
_CHUNK = 2048
"""Vectors that are compared with many queries at a time."""
_HALF = 2.0**-10
"""By which numbers in half precision are off, twice the rounding of one."""
_HALF_LARGEST = 2.0**15
_TINY = 2.0**-126
"""Numbers nearer to 0 may be taken for 0 in single precision."""


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
        self.scaled = affine is not None
        scale = np.ones(len(shift))
        if affine is not None:
            scale, shift = affine.scale, shift + affine.offset
        lengths = np.sqrt(np.vecdot(targets, targets))
        self.units = np.ones(len(targets))
        """What the scores of each query are multiples of: powers of two."""
        if self.metric != "l2":
            # Queries of any length become such as half precision can tell; the cosine is the same.
            powers = np.exp2(np.frexp(np.where(np.isfinite(lengths), lengths, 1))[1])
            targets, lengths = targets / powers[:, None], lengths / powers
            if self.metric == "dot":
                self.units = powers
        self.gamma = np.float32(2.0**-24 * (len(shift) / 4 + 16))
        self.lengths = lengths.astype(np.float32)
        self.exact = targets * scale
        rows = [self.exact]
        self.crossed = self.metric != "dot" and bool(shift.any())
        if self.crossed:
            rows.append((scale * shift)[None])
        with np.errstate(over="ignore"):
            self.weights = np.ascontiguousarray(np.concatenate(rows), np.float32)
        self.bias = (targets @ shift).astype(np.float32)
        self.constant = np.float32(shift @ shift)
        self.shift = np.float32(np.sqrt(shift @ shift))

    def estimates(self, vectors: NDArray[Any], squares: NDArray[np.float32]) -> Iterator[Estimate]:
        """Of some vectors at a time, as they are stored, ``(vector, dims)``, and of what `squares_of` says of them."""
        few = len(self.weights) <= _FEW
        halves = few and vectors.dtype == np.float16 and not (self.crossed or self.scaled)
        chunk = max(1, len(vectors)) if few else _CHUNK
        room = _room(vectors, _STEP if few else _CHUNK)
        more: Any = np.float32(0)
        for start in range(0, len(vectors), chunk):
            part, there = vectors[start : start + chunk], squares[start : start + chunk]
            with np.errstate(all="ignore"):  # of NaN, and of numbers that are too large
                if halves:
                    products, more = self._halves(part, there)
                else:
                    products = self._products(part, room, few)
                yield Estimate(start, *self._scores(products, more, there))

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

    def _halves(
        self, part: NDArray[np.float16], squares: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same of numbers that are stored in half precision, and how far they are off for being rounded to it."""
        import torch

        longest = np.sqrt(np.max(squares, where=np.isfinite(squares), initial=_TINY), dtype=np.float64)
        power = np.exp2(np.floor(np.log2(min(_HALF_LARGEST / 2 / longest, _HALF_LARGEST))))
        weights = (self.exact * power).astype(np.float16)
        lost = self.exact - weights.astype(np.float64) / power
        values = torch.from_numpy(_writable(part))
        products = np.stack([torch.mv(values, torch.from_numpy(one)).numpy() for one in weights]).astype(np.float32)
        products /= np.float32(power)
        more: NDArray[np.float32] = np.float32(_HALF) * np.abs(products)
        missed = np.sqrt(np.vecdot(lost, lost)).astype(np.float32)
        more += missed[:, None] * np.sqrt(squares)
        more += np.float32(2.0**-24 / power)
        return products, more

    def _scores(
        self, products: NDArray[np.float32], more: Any, squares: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores, and by how much they may be wrong, of products that are `more` off than single precision is."""
        gamma, lengths = self.gamma, self.lengths[:, None]
        scores = products[: len(lengths)]
        scores += self.bias[:, None]
        tiny = np.float32(4 * self.weights.shape[1] * _TINY)
        reach = np.sqrt(squares + tiny) + self.shift
        if self.metric == "dot":
            off = (gamma * lengths) * reach
            off += more + tiny
        else:
            own = squares + self.constant
            if self.crossed:
                own += 2 * products[-1]
            if self.metric == "l2":
                scores *= 2
                scores -= own
                scores -= np.square(lengths)
                off = gamma * np.square(reach + lengths)
                off += 2 * more + tiny
            else:
                own = np.sqrt(np.maximum(own, 0))
                scores /= own
                scores /= lengths
                share = reach / own
                off = more / (lengths * own)
                off += gamma * share * (1 + share)
                # What has next to no length may have any direction.
                short = ~(2 * gamma * np.square(share) < 1)
                scores[:, short], off[:, short] = 0, 2
        if not np.isfinite(scores).all():
            wild = ~np.isfinite(scores)
            scores[wild], off[wild] = 0, np.inf
        if np.isnan(squares).any():
            missing = np.isnan(squares)
            scores[:, missing], off[:, missing] = -np.inf, 0
        return scores, off


class _Alone:
    """How many threads have torch work in them alone, and how many torch had before the first of them."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, 0


_ALONE = _Alone()


@contextlib.contextmanager
def one_thread(dtype: str) -> Iterator[None]:
    """Torch without more threads than the one that calls: each of those that search has a product of its own."""
    if dtype != "float16":
        yield
        return
    import torch

    with _ALONE.lock:
        # A thread that is new has what was set last, be it for another one.
        if not _ALONE.inside:
            _ALONE.before = torch.get_num_threads()
        _ALONE.inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _ALONE.lock:
            torch.set_num_threads(_ALONE.before)
            _ALONE.inside -= 1


def _room(vectors: NDArray[Any], most: int) -> NDArray[np.float32]:
    return np.empty((min(most, len(vectors)), vectors.shape[1]), np.float32)


def _as_float32(part: NDArray[Any], room: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers in single precision, in `room` unless they are stored so."""
    if part.dtype == np.float32:
        return part
    values = room[: len(part)]
    if part.dtype != np.float16:
        np.copyto(values, part, casting="same_kind")
        return values
    # NumPy takes eight times as long for it.
    import torch

    torch.from_numpy(values).copy_(torch.from_numpy(_writable(part)))
    return values


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, which nobody writes to: torch warns of arrays that say that they cannot be written to."""
    return np.asarray(_Memory(array))


class _Memory:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array  # keeps it
        known = array.__array_interface__
        self.__array_interface__ = known | {"data": (known["data"][0], False)}
