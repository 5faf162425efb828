"""The rows of files of embeddings: their vectors block by block, and what else is known of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import shapely

from daskembed.explore.columns import is_text
from daskembed.explore.estimates import squares_of
from daskembed.explore.footers import opened
from daskembed.explore.patches import patch_footprints
from daskembed.geo import wkb
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.footers import Piece, Rows

BLOCK_BYTES = 2 * 2**20
"""Of the vectors that are decoded at a time: they stay in the processor's cache until they were compared."""


@dataclass(frozen=True)
class Block:
    """Some vectors of a piece, as they are stored."""

    numbers: NDArray[np.int64]
    """Of the vectors in the piece."""
    vectors: NDArray[Any]
    """``(vector, dims)``, of float32, float16 or int8; NaN where a row has none."""
    squares: NDArray[np.float32]
    """Of their lengths; see `daskembed.explore.estimates.squares_of`."""


@dataclass(frozen=True)
class Facts:
    """What is known of the rows of a piece beside their vectors."""

    urls: list[str | None]
    dates: list[date | None]
    footprints: NDArray[np.object_]
    """Polygons in degrees."""
    cells: NDArray[np.int64] | None
    """Row and column of the patch that each is, ``(row, 2)``; None if they are no patches."""


def read_facts(rows: Rows, piece: Piece) -> Facts:
    """What is known of the rows of a piece beside their vectors, which are not read."""
    names = rows.names
    columns = [names[one] for one in ("url", "date", "row", "col") if one in names]
    with opened(rows.storage, piece.file, rows.footers[piece.file]) as file:
        table = file.read_row_group(piece.group, columns=[*columns, "geometry"])
        none: list[Any] = [None] * len(table)
        urls = table[names["url"]].to_pylist() if "url" in names else none
        days = _days(table[names["date"]]).to_pylist() if "date" in names else none
        cells = None
        if "row" in names and "col" in names:
            cells = np.stack([table[names[one]].to_numpy() for one in ("row", "col")], axis=1).astype(np.int64)
        return Facts(urls, days, _footprints(table["geometry"]), cells)


def wanted_vectors(rows: Rows, piece: Piece) -> NDArray[np.bool_] | None:
    """Which vectors of a piece are of the days and the region that are wanted; None for all."""
    if rows.dates is None and rows.region is None:
        return None
    facts = read_facts(rows, piece)
    wanted = np.ones(len(facts.urls), bool)
    if rows.dates is not None:
        first, last = rows.dates
        wanted &= [day is not None and first <= day <= last for day in facts.dates]
    if rows.region is None or not wanted.any():
        return np.repeat(wanted, rows.patches)
    area = shapely.from_wkt(rows.region)
    shapely.prepare(area)
    wanted &= shapely.intersects(area, facts.footprints)
    if rows.patches == 1 or not wanted.any():
        return np.repeat(wanted, rows.patches)
    met = np.zeros((len(wanted), rows.patches), bool)
    met[wanted] = shapely.intersects(area, patch_footprints(facts.footprints[wanted], rows.grid))
    return met.reshape(-1)


def read_blocks(rows: Rows, piece: Piece, block_bytes: int | None = None) -> Iterator[Block]:
    """The vectors of a piece that are wanted, `block_bytes` at a time, or as few as are decoded fastest.

    Raises
    ------
    InputError
        If the file is gone, or is not what its footer says.
    """
    wanted = wanted_vectors(rows, piece)
    if wanted is not None and not wanted.any():
        return
    name = rows.names["vectors"]
    length, start = int(np.prod(rows.shape)), 0
    batch = max(1, (block_bytes or BLOCK_BYTES) // (length * np.dtype(rows.dtype).itemsize))
    with opened(rows.storage, piece.file, rows.footers[piece.file]) as file:
        for one in file.iter_batches(batch, row_groups=[piece.group], columns=[name], use_threads=False):
            vectors = _flat(one.column(0), length).reshape(-1, *rows.shape)
            if len(rows.shape) == 4:
                vectors = np.moveaxis(vectors, 1, 3)
            vectors = vectors.reshape(-1, rows.dims)
            numbers = np.arange(start, start + len(vectors))
            start += len(vectors)
            if wanted is not None and not (chosen := wanted[numbers]).all():
                numbers, vectors = numbers[chosen], vectors[chosen]
            if len(numbers):
                yield Block(numbers, vectors, squares_of(vectors, rows.affine))


def read_ahead(rows: Rows, piece: Piece) -> None:
    """Have the system fetch the vectors of a piece, of a local file, before they are asked for."""
    if not is_local(rows.storage.url) or not hasattr(os, "posix_fadvise"):
        return
    group = rows.footers[piece.file].row_group(piece.group)
    columns = [group.column(number) for number in range(group.num_columns)]
    # Who reads the piece will say what is wrong with the file.
    with contextlib.suppress(OSError), Path(rows.storage.url_of(piece.file)).open("rb") as file:
        for one in columns:
            if one.path_in_schema.partition(".")[0] == rows.names["vectors"]:
                start = one.dictionary_page_offset or one.data_page_offset
                os.posix_fadvise(file.fileno(), start, one.total_compressed_size, os.POSIX_FADV_WILLNEED)


def _footprints(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Polygons in degrees of their well-known binary, none of them empty."""
    wkb.check(places := column.to_pylist())
    found: NDArray[np.object_] = shapely.from_wkb(np.array(places, object))
    if none := int((shapely.is_missing(found) | shapely.is_empty(found)).sum()):
        raise ValueError(f"{none:,} of {len(found):,} rows have no footprint: leave them out")
    west, south, east, north = shapely.total_bounds(found)
    if not (west >= -540 and east <= 540 and south >= -90 and north <= 90):
        raise ValueError(f"its footprints reach from {west:g},{south:g} to {east:g},{north:g}, expected degrees")
    return found


def _days(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_text(column.type):
        return pa.chunked_array([pa.array([_day(text) for text in column.to_pylist()], pa.date32())])
    return column.cast(pa.date32(), safe=False)


def _day(text: str | None) -> date | None:
    """Of ISO 8601, with or without hyphens and a time, which a space may precede."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text.strip().partition(" ")[0].partition("T")[0])
    except ValueError:
        raise ValueError(f"the date {text[:40]!r}: expected one of ISO 8601, such as 2022-06-10") from None


def _flat(column: pa.Array, length: int) -> NDArray[Any]:
    """The numbers of some rows, ``(row, length)``; those of a row that has none are NaN."""
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    values: NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    missing = lists.is_null().to_numpy(zero_copy_only=False) if lists.null_count else np.zeros(len(lists), bool)
    if len(values) != length * (len(lists) - missing.sum()) or not _even(lists, length):
        raise ValueError(f"its vectors are not all of {length} numbers")
    if not missing.any():
        return values.reshape(-1, length)
    kind = np.result_type(values.dtype, np.float16) if values.dtype.kind == "i" else values.dtype
    found = np.full((len(lists), length), np.nan, kind)
    found[~missing] = values.reshape(-1, length)
    return found


def _even(lists: pa.Array, length: int) -> bool:
    """Whether all lists that are there have one length."""
    if pa.types.is_fixed_size_list(lists.type):
        return True
    lengths: Sequence[int | None] = lists.value_lengths().unique().to_pylist()
    return set(lengths) <= {length, None}
