"""The principal components of published files: what is read for them, a part of the files at a time."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from daskembed.errors import InputError
from daskembed.explore.basis import COMPONENTS, Basis, Moments, basis_of
from daskembed.explore.colours import BINS, count_scores, with_colours
from daskembed.explore.tiles import dims_of, parts_of, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import Selection
    from daskembed.storage.stores import Storage

_One = TypeVar("_One")
_Found = TypeVar("_Found")
_UNKNOWN = "unknown"
"""Of files that do not say how they were made."""


def part_moments(output: Storage, shape: Sequence[int], names: Sequence[str]) -> Moments:
    """The sums over some published files, one after another."""
    total = Moments.none(shape[-1])
    for name in names:
        for rows in read_rows(output, name, shape):
            total += Moments.of(rows.flat)
    return total


def part_counts(output: Storage, shape: Sequence[int], names: Sequence[str], basis: Basis) -> NDArray[np.int64]:
    """How often scores occur in some published files; see `count_scores`."""
    counts = count_scores(basis, np.zeros((0, shape[-1])))
    for name in names:
        for rows in read_rows(output, name, shape):
            counts += count_scores(basis, rows.flat)
    return counts


def find_components(output: Storage, selection: Selection) -> Basis:
    """The basis of some published files, in this process.

    Raises
    ------
    InputError
        If they hold no vector, or one is not what its footer says.
    """
    parts = parts_of(selection.tiles)
    found = in_order(lambda names: part_moments(output, selection.shape, names), parts)
    # Added up as they come, which is in the order of their names.
    total = next(found)
    for one in found:
        total += one
    basis = named_basis(selection, total)
    return with_colours(basis, in_order(lambda names: part_counts(output, selection.shape, names, basis), parts))


def named_basis(selection: Selection, moments: Moments) -> Basis:
    """The basis of sums over all files of a selection."""
    made = selection.made
    return basis_of(
        moments,
        encoder=str(made.get("encoder", _UNKNOWN)),
        checkpoint=str(made.get("checkpoint", _UNKNOWN)),
        sha256=made.get("sha256"),
        level=str(made.get("level", _UNKNOWN)),
    )


def keep_moments(output: Storage, path: str, shape: Sequence[int], names: Sequence[str]) -> int:
    """On a worker: keep the sums over some published files in the output; gives the vectors in them."""
    found = part_moments(output, shape, names)
    output.put(path, found.pack())
    return found.count


def keep_counts(output: Storage, path: str, shape: Sequence[int], names: Sequence[str], basis: Basis) -> int:
    """On a worker: keep how often scores occur in some published files; gives the vectors in them."""
    counts = part_counts(output, shape, names, basis)
    file = io.BytesIO()
    np.savez_compressed(file, counts=counts)
    output.put(path, file.getvalue())
    return int(counts[0].sum())


def kept_moments(output: Storage, path: str, dims: int) -> Moments:
    """What `keep_moments` kept; raises `InputError` if it is gone, or something else."""
    with _kept(output, path):
        return Moments.unpack(output.get(path), dims)


def kept_counts(output: Storage, path: str) -> NDArray[np.int64]:
    """What `keep_counts` kept; raises `InputError` if it is gone, or something else."""
    with _kept(output, path):
        try:
            with np.load(io.BytesIO(output.get(path)), allow_pickle=False) as file:
                counts: NDArray[np.int64] = file["counts"]
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no counts of scores: {error}") from None
        if counts.shape != (COMPONENTS, BINS) or counts.dtype != np.int64:
            raise ValueError("it holds no counts of scores of this form")
        return counts


@contextlib.contextmanager
def _kept(output: Storage, path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{output.url_of(path)} is gone: the same command makes it again") from None
    except ValueError as error:
        raise InputError(
            f"{output.url_of(path)} is not what was kept of some vectors: {error}; delete it, and the same command "
            "makes it again"
        ) from None


def check_basis(basis: Basis, selection: Selection) -> None:
    """Raise `InputError` if a basis is not of such vectors as some files hold."""
    made, dims = selection.made, dims_of(selection)
    pairs = {
        "encoder": (basis.encoder, made.get("encoder")),
        "checkpoint": (basis.checkpoint, made.get("checkpoint")),
        "SHA-256 of the checkpoint": (basis.sha256, made.get("sha256")),
        "level": (basis.level, made.get("level")),
        "number of dimensions": (len(basis.mean), dims),
    }
    if basis.sha256 and made.get("sha256"):
        del pairs["checkpoint"]  # whatever its copies are called
    for what, (there, here) in pairs.items():
        if None not in (there, here) and _UNKNOWN not in (there, here) and there != here:
            raise InputError(
                f"the `basis` does not fit: its {what} is {there}, that of the files {here}; leave it out, or give one "
                "of such files"
            )


def in_order(function: Callable[[_One], _Found], items: Iterable[_One]) -> Iterator[_Found]:
    """What a function gives for each item, in their order; some are worked on at a time."""
    workers = min(4, os.cpu_count() or 1)
    left = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[Future[_Found]] = [pool.submit(function, one) for one in islice(left, 2 * workers)]
        try:
            while ahead:
                yield ahead.pop(0).result()
                ahead += [pool.submit(function, one) for one in islice(left, 1)]
        finally:
            for one in ahead:
                one.cancel()
