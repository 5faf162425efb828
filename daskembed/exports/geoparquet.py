"""Exported rows as GeoParquet 1.1: boxes to choose by, an index of pages, rows in the order of the plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj

from daskembed.exports.gather import BBOX, bounds_of
from daskembed.output.geoparquet import Hashing
from daskembed.quantization import KEY

if TYPE_CHECKING:
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile

SUFFIX = ".parquet"
FOLDER = ""
UNIT: Literal["range", "tile", "day"] = "range"
_KINDS = {3: "Polygon", 6: "MultiPolygon"}
_ENCODING = {"float32": "BYTE_STREAM_SPLIT", "float16": "PLAIN"}
"""Of vectors, as in published files. Parquet has no integers of less than four bytes: those of int8 go by a dictionary,
whose numbers take one byte each."""


def check(export: Export) -> None:
    """Any rows will do."""


def finish(export: Export, written: Sequence[ExportedFile]) -> list[str]:
    """Each file is whole by itself."""
    return []


def write(export: Export, name: str, rows: pa.Table) -> tuple[int, str]:
    """Make one GeoParquet 1.1.0 file of some rows; see `daskembed.exports.protocol.RangeFormat`."""
    metadata = {b"geo": json.dumps(_geo(rows)), b"daskembed": json.dumps(export.provenance, sort_keys=True)}
    metadata |= quantization(export)
    metadata |= rows.schema.metadata or {}
    values = f"{export.vectors}.list.element"
    others = [field.name for field in rows.schema if not (pa.types.is_nested(field.type) or field.name == "geometry")]
    statistics = [*others, *(f"bbox.{edge}" for edge in BBOX)]
    a_group = max(1, export.sizes.group // export.row_bytes)
    with export.target.open_writer(name) as plain:
        file = Hashing(plain)
        with pq.ParquetWriter(
            file,
            rows.schema.with_metadata(metadata),
            compression="zstd",
            use_dictionary=others if export.dtype in _ENCODING else [*others, values],
            write_statistics=statistics,
            write_page_index=True,
            data_page_size=export.sizes.page,
            # After so many rows the writer looks whether the page is full.
            write_batch_size=max(1, min(1024, export.sizes.page // export.row_bytes)),
            column_encoding={values: _ENCODING[export.dtype]} if export.dtype in _ENCODING else None,
        ) as writer:
            for start in range(0, len(rows), a_group):
                writer.write_table(rows.slice(start, a_group), row_group_size=a_group)
    return file.size, file.hash.hexdigest()


def quantization(export: Export) -> dict[bytes, str]:
    """What a file's metadata say of how floats come back, of values of int8."""
    if export.calibration is None:
        return {}
    text = export.calibration.text()
    # pandas and GeoPandas give what is under this name as the `attrs` of their frames.
    return {KEY.encode(): text, b"PANDAS_ATTRS": json.dumps({KEY: text})}


def _geo(rows: pa.Table) -> dict[str, Any]:
    """The ``geo`` footer of GeoParquet 1.1.0 (geoparquet.org/releases/v1.1.0)."""
    column = {
        "encoding": "WKB",
        "geometry_types": _types(rows["geometry"]),
        "crs": pyproj.CRS("OGC:CRS84").to_json_dict(),
        "edges": "planar",
        "bbox": bounds_of(rows),
        "covering": {"bbox": {edge: ["bbox", edge] for edge in BBOX}},
    }
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _types(geometry: pa.ChunkedArray) -> list[str]:
    heads = pc.unique(pc.binary_slice(geometry, 0, 5)).to_pylist()
    codes = {int(np.frombuffer(head[1:5], "<u4" if head[0] else ">u4")[0]) for head in heads}
    return sorted(_KINDS[code % 1000] for code in codes)
