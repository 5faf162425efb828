"""How much a Parquet file of others may have read of it at a time; see `daskembed.validate`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

MOST_ROWS = 10_000_000
"""Rows that are looked at: those of 500 full tiles' chips in 45 windows each."""
BATCH_BYTES, BATCH_ROWS = 32 * 2**20, 8192
"""Most bytes and rows held at a time."""
TEXT_BYTES = 4096
"""Of a source_url."""
KEPT_BYTES = 192 * 2**20
"""Of all source_urls, which are kept to find those that occur twice."""
VECTORS = ("embeddings", "embedding")
"""Columns that hold them: in published files, and in exports for others."""
_GROUP_BYTES = 128 * 2**20
_VECTOR_BYTES = 256 * 2**20


def too_much(metadata: pq.FileMetaData, columns: Collection[str]) -> str | None:
    """What makes reading some of a file's columns cost too much, as its footer tells; None if nothing does."""
    if metadata.num_rows > MOST_ROWS:
        return f"{metadata.num_rows:,} rows, of which at most {MOST_ROWS:,} can be looked at"
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for name, column in _columns(metadata.row_group(group), columns):
            size = _decoded(name, column)
            most = _VECTOR_BYTES * rows if name in VECTORS else min(_GROUP_BYTES, TEXT_BYTES * rows + 2**20)
            if size > most:
                return f"column {name} has {size:,} bytes in {rows:,} rows, expected at most {most:,}"
    return None


def rows_at_once(metadata: pq.FileMetaData, columns: Collection[str]) -> int:
    """How many rows of a file are read together."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    held = sum(_decoded(name, column) for group in groups for name, column in _columns(group, columns))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * int(metadata.num_rows) // max(1, held)))


def _columns(group: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    for number in range(group.num_columns):
        column = group.column(number)
        name = column.path_in_schema.partition(".")[0]
        if name in names:
            yield name, column


def _decoded(name: str, column: Any) -> int:
    # Vectors that are all alike take a few bytes in the file.
    return int(4 * column.num_values if name in VECTORS else column.total_uncompressed_size)


def decode(column: pa.Array, most: int) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Values of a column that was read as a dictionary, null where one has more than `most` bytes, and where that is.

    One long value that many rows refer to would be repeated for each.
    """
    if not pa.types.is_dictionary(column.type):
        return column, np.zeros(len(column), bool)
    values = column.dictionary
    long = pc.greater(pc.binary_length(values), most).fill_null(False)
    beyond = long.take(column.indices).fill_null(False).to_numpy(zero_copy_only=False)
    kept = pc.if_else(long, pa.scalar(None, values.type), values)
    return pa.DictionaryArray.from_arrays(column.indices, kept).dictionary_decode(), beyond
