"""One published file as it is looked at: its rows, a row group at a time, and what is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import json_digest
from daskembed.errors import InputError
from daskembed.exports.selection import select
from daskembed.geo import wkb
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile, Selection

_PART_BYTES = 64 * 2**20
"""Of the files of a part, on average."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a published file."""

    urls: list[str]
    dates: list[str]
    """ISO 8601."""
    footprints: NDArray[np.object_]
    """Polygons in degrees."""
    vectors: NDArray[np.floating]
    """``(row, down, across, dims)``: one by one for levels without a grid of patches."""

    def __len__(self) -> int:
        return len(self.urls)

    @property
    def flat(self) -> NDArray[np.floating]:
        """The vectors one after another, ``(vector, dims)``."""
        return self.vectors.reshape(-1, self.vectors.shape[-1])


def grid_of(selection: Selection) -> tuple[int, int]:
    """Patches of a row, down and across; (1, 1) where the level has no grid."""
    shape = selection.shape
    return (shape[-3], shape[-2]) if len(shape) > 2 else (1, 1)


def dims_of(selection: Selection) -> int:
    """Values of a vector."""
    return selection.shape[-1]


def read_rows(output: Storage, name: str, shape: Sequence[int]) -> Iterator[Rows]:
    """The rows of a published file, a row group at a time; those without rows are passed over.

    Parameters
    ----------
    output, name
        Where.
    shape
        Of the embedding of a row: ``(dims,)``, ``(down, across, dims)``, or ``(group, down, across, dims)``, whose
        groups are averaged.

    Raises
    ------
    InputError
        If they are not what its footer says.
    """
    with _readable(output, name), pq.ParquetFile(output.open_reader(name)) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=["source_url", "date", "embeddings", "geometry"])
            if not len(table):
                continue
            column = table["embeddings"].combine_chunks()
            values = getattr(column, "storage", column).flatten().to_numpy(zero_copy_only=False)
            if len(values) != len(table) * np.prod(shape):
                raise InputError(
                    f"{output.url_of(name)}: {len(table)} rows of {len(values):,} values, expected "
                    f"{np.prod(shape):,} each: its vectors are not of one length"
                )
            vectors = values.reshape(len(table), *shape)
            if len(shape) == 1:
                vectors = vectors[:, None, None]
            elif len(shape) == 4:
                vectors = vectors.mean(axis=1, dtype=np.float32)
            places = table["geometry"].to_pylist()
            wkb.check(places)
            dates = [str(date)[:10] for date in table["date"].to_pylist()]
            yield Rows(table["source_url"].to_pylist(), dates, shapely.from_wkb(places), vectors)


@contextlib.contextmanager
def _readable(output: Storage, name: str) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{output.url_of(name)} is gone: the same command goes on without it") from None
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError, LookupError) as error:
        raise InputError(
            f"{output.url_of(name)} cannot be read: {' '.join(str(error).split())[:200]}; `daskembed validate` says "
            "more; remove it, or have its tile made again"
        ) from None


def parts_of(tiles: Mapping[str, ExportTile]) -> list[list[str]]:
    """Files that are read one after another in one task: in the order of their names, some 64 MB of them.

    Whether a file is the last of its part depends on its own name and size alone, as if by chance: a new file changes
    the part that it comes into, and no other.
    """
    parts: list[list[str]] = [[]]
    for name, tile in sorted(tiles.items()):
        parts[-1].append(name)
        if int(json_digest(name)[:8], 16) / 2**32 < tile.size / _PART_BYTES:
            parts.append([])
    return [part for part in parts if part]


def choose(output: Storage, **wanted: Any) -> Selection:
    """The published files that are looked at; see `daskembed.exports.selection.select`.

    Raises
    ------
    InputError
        If there are none, one cannot be read, or they do not go together.
    """
    output.check_exists()
    found = select(output, **wanted)
    if found.unreadable:
        raise InputError(
            f"{next(iter(found.unreadable.values()))}; `daskembed validate` says more; remove it, or have its tile "
            "made again"
        )
    return found
