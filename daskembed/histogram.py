"""How often each dimension of many vectors has which value: a statistic that adds up exactly, in any order (pure)."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 2**14
"""Of values: a sign, the powers of two that float32 has, and 32 steps from each to the next: 2 to 3 % wide."""
_SHIFT = 18
_SIGN = np.uint32(2**31)
_MOST_DIMENSIONS = 2**16
_FORM = 1


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values by dimension and bucket, and the extremes.

    All of it are whole numbers and comparisons, so that a sum is the same to the last bit whatever was added to what
    first, and on however many workers.
    """

    rows: int
    """Vectors counted."""
    least: NDArray[np.float32]
    """By dimension."""
    most: NDArray[np.float32]
    """By dimension."""
    counts: NDArray[np.int64]
    """``(dimension, bucket)``, buckets in the order of their values."""

    @classmethod
    def of(cls, vectors: NDArray[np.floating]) -> Histogram:
        """Of some vectors ``(row, dimension)``; raises `ValueError` if there is none, or a value is not finite."""
        values = np.asarray(vectors, np.float32)
        if not values.size:
            raise ValueError("no vectors to be counted")
        least, most = values.min(axis=0), values.max(axis=0)
        if not (np.isfinite(least) & np.isfinite(most)).all():
            raise ValueError("a value is NaN or infinite")
        bits = np.ascontiguousarray(values).view(np.uint32)
        # Of negative numbers the larger ones have larger bits: turned over, the order is that of the values.
        buckets = np.ascontiguousarray(((np.where(bits & _SIGN, ~bits, bits | _SIGN)) >> _SHIFT).astype(np.uint16).T)
        counts = np.stack([np.bincount(one, minlength=BUCKETS) for one in buckets])
        return cls(len(values), least, most, counts)

    def __add__(self, other: Histogram) -> Histogram:
        """Of the vectors of both."""
        return Histogram(
            self.rows + other.rows,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
            self.counts + other.counts,
        )

    def range(self, percentile: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Between which values of each dimension nearly all are.

        Parameters
        ----------
        percentile
            At most so many per cent less than 100 of the values are below the lower limit, and as many above the upper
            one. Limits lie on the edges of buckets, so that fewer may be, and not beyond the extremes.
        """
        left_out = int(round(self.rows * (100 - percentile), 6) / 100)  # 100 - 99.9 is a little less than 0.1
        below = self.counts.cumsum(axis=1)
        lower = (below > left_out).argmax(axis=1)
        upper = (below >= self.rows - left_out).argmax(axis=1)
        first = (lower.astype(np.uint32)) << _SHIFT
        last = ((upper.astype(np.uint32)) << _SHIFT) | np.uint32(2**_SHIFT - 1)
        return np.maximum(_values(first), self.least), np.minimum(_values(last), self.most)

    def pack(self) -> bytes:
        """As bytes: an ``.npz`` of the buckets that are not empty; the same for the same counts."""
        flat = self.counts.ravel()
        filled = np.flatnonzero(flat)
        file = io.BytesIO()
        np.savez_compressed(
            file,
            form=np.int64(_FORM),
            rows=np.int64(self.rows),
            least=self.least,
            most=self.most,
            # Neighbours are mostly filled too, so that their distances compress to next to nothing.
            steps=np.diff(filled, prepend=0).astype(np.int32),
            counts=flat[filled],
        )
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Histogram:
        """What `pack` gave; raises `ValueError` if that is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                form, rows = int(file["form"]), int(file["rows"])
                least, most, steps, kept = (file[name] for name in ("least", "most", "steps", "counts"))
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no counts of values: {error}") from None
        dims = least.size
        if form != _FORM or not 0 < dims <= _MOST_DIMENSIONS or least.shape != most.shape or steps.shape != kept.shape:
            raise ValueError("it holds no counts of values of this form")
        counts = np.zeros(dims * BUCKETS, np.int64)
        filled = steps.astype(np.int64).cumsum()
        if filled.size == 0 or filled[0] < 0 or filled[-1] >= counts.size or (steps[1:] <= 0).any():
            raise ValueError("it holds counts of values that there are not")
        counts[filled] = kept
        found = cls(rows, least.astype(np.float32), most.astype(np.float32), counts.reshape(dims, BUCKETS))
        if (found.counts.sum(axis=1) != rows).any():
            raise ValueError("its counts do not add up")
        return found


def _values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Numbers, by their place in the order of all."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)
