"""What the index knew of the rows of a published tile, kept beside its receipt: published files have four columns."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from daskembed.documents import parse_json
from daskembed.errors import InputError
from daskembed.geo.cells import EDGES
from daskembed.output.parts import TIME
from daskembed.output.state import STATE

if TYPE_CHECKING:
    from daskembed.output.protocol import Published
    from daskembed.storage.stores import Storage

ROWS = f"{STATE}/rows"
SCHEMA = pa.schema(
    {
        "source_url": pa.string(),
        "datetime": TIME,
        "cloud": pa.float32(),
        "epsg": pa.int32(),
        **dict.fromkeys(EDGES, pa.float64()),
    }
)
"""When it was taken, UTC, where more than the day is known; share of the chip that shows no ground, by its scene
classification, where there is one; CRS, and bounds in it."""
_MOST = 256 * 2**20
"""Bytes of a file; one of 250,000 chips has fewer."""
_FILES = b"daskembed-files"


def rows_path(tile: str, version: str) -> str:
    """Path of what is kept of a tile's rows, below the output."""
    return f"{ROWS}/{tile}_v{version}.parquet"


def write_rows(output: Storage, tile: str, version: str, parts: Sequence[str], files: Sequence[Published]) -> None:
    """Keep what the parts of a tile know of its rows, in the place of an earlier file.

    Parameters
    ----------
    output, tile, version
        Of which tile.
    parts
        Paths of its parts, in the order of their rows.
    files
        What was published of them; none if it has no rows: then nothing is kept.
    """
    path = rows_path(tile, version)
    if not files:
        output.delete([path])
        return
    tables = [SCHEMA.empty_table()]
    for part in parts:
        with pq.ParquetFile(output.open_reader(part)) as file:
            tables.append(file.read(columns=SCHEMA.names).replace_schema_metadata())
    # Parts that an earlier version has left do not say all of it.
    kept = pa.concat_tables(tables, promote_options="default")
    told = {_FILES: json.dumps([file.sha256 for file in files])}
    data = io.BytesIO()
    pq.write_table(kept.replace_schema_metadata(told), data, compression="zstd")
    output.put(path, data.getvalue())


def read_rows(output: Storage, tile: str, version: str, sha256: str) -> pa.Table | None:
    """What is kept of the rows of a published file, by its SHA-256; None if nothing is, or of another file.

    Raises
    ------
    InputError
        If there is something else.
    """
    path = rows_path(tile, version)
    try:
        data = output.get(path, most=_MOST)
    except FileNotFoundError:
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            of = parse_json((file.metadata.metadata or {})[_FILES])
            table = file.read(columns=SCHEMA.names).select(SCHEMA.names).replace_schema_metadata().cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{output.url_of(path)} is not what daskembed keeps of rows: {said}; delete it") from None
    return table if isinstance(of, list) and sha256 in of else None
