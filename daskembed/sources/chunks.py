"""Which pixels were never written, or were lost: a block of storage that is not there reads as the fill value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.errors import ChipError, StorageError
from daskembed.storage.stores import Storage, zarr_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DIMS = ("band", "y", "x")


def lost_pixels(
    window: NDArray[np.generic],
    start: Sequence[int],
    sides: Sequence[int],
    is_there: Callable[[tuple[int, ...], np.generic], bool],
) -> NDArray[np.bool_] | None:
    """Pixels of a window that lie in blocks of storage that are not there; None if there are none.

    Parameters
    ----------
    window
        What was read.
    start
        Place of its first pixel in all that is stored, by axis.
    sides
        Lengths of a block, by axis.
    is_there
        Whether the block of a place, of which all pixels that were read have a value, is stored.
    """
    lost: NDArray[np.bool_] | None = None
    parts = [_parts(*axis) for axis in zip(start, window.shape, sides, strict=True)]
    for part in itertools.product(*parts):
        # Nearly all blocks differ in some pixels, and none that does is missing.
        values = window[part]
        first = values.flat[0]
        if not (values.flat[-1] == first and values.flat[values.size // 2] == first and (values == first).all()):
            continue
        place = tuple(begin + inner.start for begin, inner in zip(start, part, strict=True))
        if not is_there(place, first):
            lost = np.zeros(window.shape, np.bool_) if lost is None else lost
            lost[part] = True
    return lost


class ZarrChunks:
    """The chunks of a Zarr array.

    Parameters
    ----------
    storage, variable
        The store, and path of the array in it.
    dims, chunks
        Of the array: names, and lengths of a chunk.
    """

    def __init__(self, storage: Storage, variable: str, dims: Sequence[str], chunks: Sequence[int]) -> None:
        self._storage, self._variable, self._dims = storage, variable, tuple(dims)
        self._sides = dict(zip(dims, chunks, strict=True))
        self._twins: dict[tuple[int, bool], Any] = {}
        self._keys: dict[str, set[str]] = {}

    def lost(self, window: NDArray[np.generic], start: Mapping[str, int]) -> NDArray[np.bool_] | None:
        """`lost_pixels` of a window ``([band,] y, x)``, which begins at `start`, by dimension."""
        dims = [name for name in _DIMS if name in self._dims]

        def is_there(place: tuple[int, ...], value: np.generic) -> bool:
            return self._is_there(value, {**start, **dict(zip(dims, place, strict=True))})

        return lost_pixels(window, [start[name] for name in dims], [self._sides[name] for name in dims], is_there)

    def _is_there(self, value: np.generic, place: Mapping[str, int]) -> bool:
        """Whether the chunk of a pixel is stored, whose value is known: a missing one takes on any fill value.

        A store that says wrongly that it has no such chunk is not believed: it is asked again, past caches, and for the
        chunk's name. What was read before may be fill values, and is to be read again.
        """
        other = 0 if value else 1
        spot = tuple(place[name] for name in self._dims)
        seen = self._twin(other, fresh=self._storage.fresh)[spot]
        if seen == value or (seen != seen and value != value):
            return True
        if seen == other and self._twin(other, fresh=True)[spot] == other and not self._is_listed(spot):
            return False
        if not self._storage.fresh:
            raise ChipError(f"has a chunk of {self._variable} of which the store said that it is not there")
        raise StorageError(
            f"{self._storage.url_of(self._variable)}: the store says of a chunk that it is not there, and that it is; "
            "look at the store, and at what caches its answers"
        )

    def _is_listed(self, spot: tuple[int, ...]) -> bool:
        """Whether the store lists the chunk of a pixel by its name, which those in shards do not have."""
        array = self._twin(0, fresh=True)
        if array.shards:
            return False
        place = tuple(at // side for at, side in zip(spot, array.chunks, strict=True))
        path = f"{self._variable}/{array.metadata.encode_chunk_key(place)}"
        folder = path.rpartition("/")[0]
        if folder not in self._keys:
            found = replace(self._storage, fresh=True).entries(folder, recursive=False)
            self._keys[folder] = {entry.path for entry in found}
        return path in self._keys[folder]

    def _twin(self, fill: int, *, fresh: bool) -> Any:
        """The array with another fill value than it has."""
        from zarr import Array, AsyncArray, open_array

        if (fill, fresh) not in self._twins:
            store = zarr_store(replace(self._storage, fresh=fresh))
            found = open_array(store, path=self._variable, mode="r")
            described = found.metadata.to_dict() | {"fill_value": fill}
            made = AsyncArray(metadata=type(found.metadata).from_dict(described), store_path=found.store_path)
            self._twins[fill, fresh] = Array(made)
        return self._twins[fill, fresh]


def _parts(start: int, length: int, side: int) -> list[slice]:
    """Where chunks of `side` cut a range that begins at `start`."""
    inner = range((start // side + 1) * side - start, length, side)
    ends = [0, *inner, length]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]
