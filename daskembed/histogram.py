"""How often each dimension of many vectors has which value: a statistic that adds up exactly, in any order (pure)."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS = 2**14
"""Of values: a sign, the powers of two that float32 has, and 32 steps from each to the next: 2 to 3 % wide."""
_SHIFT = 18
_SIGN = np.uint32(2**31)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values by dimension and bucket, and the extremes.

    All of it are whole numbers and comparisons, so that a sum is the same to the last bit whatever was added to what
    first, and on however many workers.
    """

    form: ClassVar[int] = 1
    """Another, whenever the same vectors give other counts."""
    rows: int
    """Vectors counted."""
    least: NDArray[np.float32]
    """By dimension."""
    most: NDArray[np.float32]
    """By dimension."""
    places: NDArray[np.int64]
    """Of the buckets that are not empty, ascending: `BUCKETS` times the dimension, and the bucket, whose order is that
    of values."""
    counts: NDArray[np.int64]
    """Values in each of them."""

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
        buckets = np.ascontiguousarray((np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _SHIFT).astype(np.uint16).T)
        places, counts = [], []
        for dimension, those in enumerate(buckets):
            counted = np.bincount(those)
            filled = np.flatnonzero(counted)
            places.append(filled + dimension * BUCKETS)
            counts.append(counted[filled])
        return cls(len(values), least, most, np.concatenate(places), np.concatenate(counts))

    def __add__(self, other: Histogram) -> Histogram:
        """Of the vectors of both."""
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places, kind="stable")  # which merges two that are in order
        places = places[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        counts = np.add.reduceat(np.concatenate([self.counts, other.counts])[order], starts)
        return Histogram(
            self.rows + other.rows,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
            places[starts],
            counts,
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
        # All dimensions have as many values, so that those before one are known.
        before = np.arange(len(self.least)) * self.rows
        passed = self.counts.cumsum()
        lower = self.places[np.searchsorted(passed, before + left_out, side="right")] % BUCKETS
        upper = self.places[np.searchsorted(passed, before + self.rows - left_out, side="left")] % BUCKETS
        first = lower.astype(np.uint32) << np.uint32(_SHIFT)
        last = (upper.astype(np.uint32) << np.uint32(_SHIFT)) | np.uint32(2**_SHIFT - 1)
        return np.maximum(_values(first), self.least), np.minimum(_values(last), self.most)

    def pack(self) -> bytes:
        """As bytes, an ``.npz``; the same for the same counts."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            form=np.int64(self.form),
            rows=np.int64(self.rows),
            least=self.least,
            most=self.most,
            # Neighbours are mostly filled too, so that their distances compress to next to nothing.
            steps=np.diff(self.places, prepend=0).astype(np.uint32),
            counts=self.counts.astype(np.min_scalar_type(self.rows)),
        )
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Histogram:
        """What `pack` gave; raises `ValueError` if that is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                form, rows = int(file["form"]), int(file["rows"])
                least, most, steps, counts = (file[name] for name in ("least", "most", "steps", "counts"))
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no counts of values: {error}") from None
        dims, places = least.size, steps.astype(np.int64).cumsum()
        alike = least.shape == most.shape == (dims,) and steps.shape == counts.shape == (steps.size,)
        if form != cls.form or not dims or not alike or not steps.size or (steps[1:] == 0).any():
            raise ValueError("it holds no counts of values of this form")
        kept, numbers = counts.astype(np.int64), np.arange(dims + 1) * BUCKETS
        sums = np.concatenate([[0], kept.cumsum()])[np.searchsorted(places, numbers)]
        if (np.diff(sums) != rows).any() or places[-1] >= numbers[-1]:
            raise ValueError("its counts do not add up")
        return cls(rows, least.astype(np.float32), most.astype(np.float32), places, kept)


def _values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Numbers, by their place in the order of all."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)
