"""Exported rows as one table of Lance, which LanceDB opens: files by the workers, a commit and an index at the end."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from daskembed.errors import InputError, StorageError
from daskembed.exports.geoparquet import quantization
from daskembed.output.geoparquet import Hashing
from daskembed.storage.local_files import room_for

if TYPE_CHECKING:
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile

SUFFIX = ".lance"
UNIT: Literal["range", "tile", "day"] = "range"
TABLE = f"embeddings{SUFFIX}"
"""The table below the target, which LanceDB calls ``embeddings``."""
FOLDER = f"{TABLE}/data/"
INDEXED = 100_000
"""Rows from which on there is an index: an exact scan of fewer takes some milliseconds, and misses nothing."""
_MOST_DIMS = 4096
"""Of an index: vectors of whole chips at levels with a grid are longer, and nobody looks for one."""
_BATCH = 32 * 2**20
"""Bytes of vectors that are written at a time."""


def check(export: Export) -> None:
    """Raise `InputError` if the package that writes it is not installed."""
    _lance()


def write(export: Export, name: str, rows: pa.Table) -> tuple[int, str]:
    """Make one data file of some rows; see `daskembed.exports.protocol.RangeFormat`.

    It belongs to no table before `finish`. The same rows make the same bytes.
    """
    from lance.file import LanceFileWriter

    about = {b"daskembed": json.dumps(export.provenance, sort_keys=True)} | quantization(export)
    rows = rows.replace_schema_metadata((rows.schema.metadata or {}) | about)
    a_batch = max(1, _BATCH // export.row_bytes)
    # By way of the worker's disk, so that it appears in the target as a whole, and with the target's credentials.
    with tempfile.TemporaryDirectory(prefix="daskembed-") as folder, room_for(folder):
        made = Path(folder) / PurePosixPath(name).name
        with LanceFileWriter(str(made), rows.schema) as writer:
            for start in range(0, len(rows), a_batch):
                for batch in rows.slice(start, a_batch).to_batches():
                    writer.write_batch(batch)
        with export.target.open_writer(name) as out, made.open("rb") as file:
            hashing = Hashing(out)
            while data := file.read(8 * 2**20):
                hashing.write(data)
    return hashing.size, hashing.hash.hexdigest()


def finish(export: Export, written: Sequence[ExportedFile]) -> list[str]:
    """Make a table of the data files, and its index.

    What an earlier try has made of them, and what killed workers left, goes first.

    Returns
    -------
    list of str
        Why there is no index, if there is none.
    """
    lance, target, names = _lance(), export.target, {file.name for file in written}
    target.delete([entry.path for entry in target.entries(TABLE) if entry.path not in names])
    try:
        schema, fragments = _fragments(export, written)
        table = lance.LanceDataset.commit(target.url_of(TABLE), lance.LanceOperation.Overwrite(schema, fragments))
        if table.count_rows() != (rows := sum(file.rows for file in written)):
            raise StorageError(f"{target.url_of(TABLE)} has {table.count_rows()} rows, and {rows} were written")
        if why := _why_no_index(export, rows):
            return [f"no index: {why}; LanceDB compares with all rows"]
        table.create_index(
            export.vectors,
            "IVF_PQ",
            metric="cosine",
            # A search looks through some partitions of about 4,000 rows.
            num_partitions=max(1, min(rows // 4096, math.isqrt(rows))),
            num_sub_vectors=export.dims // 8 if export.dims % 16 else export.dims // 16,
        )
    except OSError as error:  # all of Lance's own, too
        raise StorageError(f"{target.url_of(TABLE)}: {' '.join(str(error).split())[:300]}") from None
    return []


def _why_no_index(export: Export, rows: int) -> str:
    if rows < INDEXED:
        return f"{rows:,} rows are too few for one to pay"
    if np.dtype(export.dtype).kind != "f":
        return f"it would take {export.dtype} for numbers without a scale"
    if export.dims > _MOST_DIMS or export.dims % 8:
        return f"vectors of {export.dims} values do not go into one"
    return ""


def _fragments(export: Export, written: Sequence[ExportedFile]) -> tuple[pa.Schema, list[Any]]:
    """The schema of the table, and its data files as Lance describes them."""
    from lance.file import LanceFileReader
    from lance.fragment import DataFile, FragmentMetadata, write_fragments

    first = LanceFileReader(export.target.url_of(written[0].name))
    about: Any = first.metadata()
    one = first.read_range(0, 1).to_table()
    with tempfile.TemporaryDirectory(prefix="daskembed-") as folder:
        # Which columns of a file hold which fields is Lance's own affair: so that it says it.
        ((like,),) = (fragment.files for fragment in write_fragments(one, folder, schema=about.schema))
    version = {"file_major_version": about.major_version, "file_minor_version": about.minor_version}
    return about.schema, [
        FragmentMetadata(
            number,
            [
                DataFile(
                    PurePosixPath(file.name).name,
                    like.fields,
                    like.column_indices,
                    file_size_bytes=file.size,
                    **version,
                )
            ],
            file.rows,
        )
        for number, file in enumerate(written)
    ]


def _lance() -> Any:
    # It warns of each table that it makes, that it was not there.
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lance
    except ModuleNotFoundError:
        raise InputError(
            "`format='lance'` is written with pylance, which is not installed: pip install 'daskembed[lance]', here "
            "and on the workers"
        ) from None
    return lance
