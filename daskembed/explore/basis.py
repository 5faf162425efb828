"""Principal components of many vectors from sums that add up (pure): one basis for all tiles of a data set.

Of each part only the number of its vectors, their sum and the sum of their outer products are kept. These add up to
what a decomposition of all vectors at once would see, so that no more than a block of them is ever in memory, and a
part that is known need not be read again. Sums of floating-point numbers depend on their order: parts are added in that
of their names.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from daskembed.documents import parse_as
from daskembed.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMPONENTS = 3
"""Of a basis: red, green and blue."""
_KIND = np.dtype(np.float64)
_BLOCK = 4096
"""Vectors that are multiplied at once: 25 MB of 768 values as float64."""


@dataclass(frozen=True)
class Moments:
    """What adds up of some vectors."""

    form: ClassVar[int] = 1
    """Another, whenever the same vectors give other sums."""
    count: int
    """Vectors that were summed: those of finite values."""
    left_out: int
    """Vectors with NaN or infinity."""
    total: NDArray[np.float64]
    """Their sum, ``(dims,)``."""
    outer: NDArray[np.float64]
    """Sum of their outer products, ``(dims, dims)``."""

    @classmethod
    def none(cls, dims: int) -> Moments:
        """Those of no vectors."""
        return cls(0, 0, np.zeros(dims), np.zeros((dims, dims)))

    @classmethod
    def of(cls, vectors: NDArray[np.floating]) -> Moments:
        """Those of vectors ``(vector, dims)`` of any floating type."""
        dims = vectors.shape[1]
        count, total, outer = 0, np.zeros(dims), np.zeros((dims, dims))
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK].astype(np.float64)
            block = block[np.isfinite(block).all(axis=1)]
            count += len(block)
            total += block.sum(axis=0)
            outer += block.T @ block
        return cls(count, len(vectors) - count, total, outer)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.left_out + other.left_out,
            self.total + other.total,
            self.outer + other.outer,
        )

    def pack(self) -> bytes:
        """As bytes: the outer products are symmetric, half of them is kept."""
        file = io.BytesIO()
        half = self.outer[np.triu_indices(len(self.total))]
        np.savez(file, counts=np.array([self.count, self.left_out]), total=self.total, half=half)
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes, dims: int) -> Moments:
        """What `pack` gave of vectors of so many dimensions; raises `ValueError` if that is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                (count, left_out), total, half = (file[name] for name in ("counts", "total", "half"))
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no sums of vectors: {error}") from None
        if total.shape != (dims,) or half.shape != (dims * (dims + 1) // 2,) or {total.dtype, half.dtype} != {_KIND}:
            raise ValueError(f"it holds no sums of vectors of {dims} dimensions")
        outer = np.zeros((dims, dims))
        outer[np.triu_indices(dims)] = half
        return cls(int(count), int(left_out), total, outer + np.triu(outer, 1).T)


@dataclass(frozen=True)
class Basis:
    """Principal components of the vectors of a data set, and what they are of; kept as JSON."""

    encoder: str
    checkpoint: str
    sha256: str | None
    """Of the checkpoint; None if it is untrained, or nobody kept it."""
    level: str
    count: int
    """Vectors it was made of."""
    left_out: int
    """Vectors that were not, for their NaN or infinity."""
    mean: list[float]
    """Of the vectors, one value a dimension."""
    deviation: list[float]
    """Standard deviation of each dimension."""
    axes: list[list[float]]
    """Directions of the components, of length 1, the one of most variance first. In each the value that is farthest
    from 0 is positive."""
    variance: list[float]
    """Along the axes, of the population."""
    total_variance: float
    """Of all dimensions together."""
    low: list[float]
    """Score that becomes the darkest of a component's colour; in `high` that of the brightest."""
    high: list[float]

    @property
    def explained(self) -> list[float]:
        """Share of the total variance that each component has."""
        return [one / self.total_variance if self.total_variance > 0 else 0.0 for one in self.variance]

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """What vectors must be for it: of this encoder, checkpoint, level and number of dimensions."""
        return self.encoder, self.sha256 or self.checkpoint, self.level, len(self.mean)

    def scores(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Coordinates ``(vector, component)`` of vectors ``(vector, dims)`` along the axes; NaN of those with NaN."""
        axes, mean = np.array(self.axes).T, np.array(self.mean)
        blocks = [
            (vectors[start : start + _BLOCK].astype(np.float64) - mean) @ axes
            for start in range(0, len(vectors), _BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(self.axes)))

    def to_json(self) -> str:
        """It as a JSON document; see `Basis.from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Basis:
        """The basis that a document describes.

        Raises
        ------
        InputError
            If it describes none.
        """
        try:
            found = parse_as(cls, text)
        except ValueError as error:
            raise InputError(
                f"no basis: {error}; expected the JSON of `daskembed.principal_components(...).to_json()`"
            ) from None
        dims, axes = len(found.mean), len(found.axes)
        if axes != COMPONENTS or {len(axis) for axis in found.axes} != {dims}:
            raise InputError(
                f"no basis: it has {axes} axes of {sorted({len(axis) for axis in found.axes})} values and a mean of "
                f"{dims}, expected {COMPONENTS} of as many as the mean has"
            )
        lengths = {"mean": dims, "deviation": dims, "variance": axes, "low": axes, "high": axes}
        for name, length in lengths.items():
            values = getattr(found, name)
            if len(values) != length:
                raise InputError(f"no basis: its {name} has {len(values)} values, expected {length}")
        every = [found.total_variance, *chain(*(getattr(found, name) for name in lengths), *found.axes)]
        if not np.isfinite(every).all():
            raise InputError("no basis: it has NaN or infinite values, expected numbers")
        return found


def basis_of(moments: Moments, *, encoder: str, checkpoint: str, sha256: str | None, level: str) -> Basis:
    """The axes of most variance, from the covariance that sums add up to.

    Parameters
    ----------
    moments
        Of all vectors.
    encoder, checkpoint, sha256, level
        What made the vectors; see `Basis`.

    Returns
    -------
    Basis
        Whose colours are those of a normal distribution until `daskembed.explore.colours` knows better. Where there
        are fewer vectors or dimensions than components, axes are missing: they are 0, and so is their variance.

    Raises
    ------
    InputError
        If there is no vector.
    """
    if not moments.count:
        raise InputError(
            f"no vector to make a basis of: {moments.left_out} have NaN or infinity, and there are no others"
        )
    mean = moments.total / moments.count
    covariance = moments.outer / moments.count - np.outer(mean, mean)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # A vector that is one of few leaves no variance but that of rounding.
    rounding = np.finfo(np.float64).eps * np.trace(moments.outer) / moments.count * len(mean)
    axes, variance = np.zeros((COMPONENTS, len(mean))), np.zeros(COMPONENTS)
    for number, which in enumerate(np.argsort(-values, kind="stable")[:COMPONENTS]):
        if values[which] > rounding:
            axis = vectors[:, which]
            axes[number] = axis * np.sign(axis[np.argmax(np.abs(axis))])
            variance[number] = values[which]
    spread = 2.0537489106318225 * np.sqrt(variance)  # standard deviations to the 2nd and 98th percentile
    return Basis(
        encoder=encoder,
        checkpoint=checkpoint,
        sha256=sha256,
        level=level,
        count=moments.count,
        left_out=moments.left_out,
        mean=mean.tolist(),
        deviation=np.sqrt(np.maximum(np.diag(covariance), 0)).tolist(),
        axes=axes.tolist(),
        variance=variance.tolist(),
        total_variance=float(max(np.trace(covariance), 0.0)),
        low=(-spread).tolist(),
        high=spread.tolist(),
    )


class Variance:
    """The share of the variance of tiles, around their own mean, that each component explains; block by block."""

    def __init__(self, basis: Basis) -> None:
        dims, axes = len(basis.mean), len(basis.axes)
        self._mean, self._count, self._squares = np.array(basis.mean), 0, 0.0
        self._total, self._along, self._along_squares = np.zeros(dims), np.zeros(axes), np.zeros(axes)

    def add(self, vectors: NDArray[np.floating], scores: NDArray[np.float64]) -> None:
        """Count some vectors ``(vector, dims)``, which have these `Basis.scores`."""
        good = np.isfinite(scores).all(axis=1)
        centred = vectors[good].astype(np.float64) - self._mean
        self._count += len(centred)
        self._squares += float((centred**2).sum())
        self._total += centred.sum(axis=0)
        self._along += scores[good].sum(axis=0)
        self._along_squares += (scores[good] ** 2).sum(axis=0)

    def __iadd__(self, other: Variance) -> Self:
        """Count the vectors of another tile, of the same basis."""
        self._count += other._count
        self._squares += other._squares
        self._total += other._total
        self._along += other._along
        self._along_squares += other._along_squares
        return self

    @property
    def explained(self) -> list[float]:
        """One share a component; 0 of fewer than two vectors."""
        count = max(self._count, 1)
        total = self._squares - float((self._total**2).sum()) / count
        along = np.maximum(self._along_squares - self._along**2 / count, 0)
        known = self._count > 1 and total > 0
        return [float(one) / total if known else 0.0 for one in along]
