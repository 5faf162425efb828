"""GeoParquet files: one a tile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from daskembed.documents import parse_object
from daskembed.geo import wkb
from daskembed.geo.footprints import bounding_box, box
from daskembed.output.parts import cast_vectors, rows_a_group
from daskembed.output.protocol import Place, Published
from daskembed.timings import timed

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.encoders.description import Description
    from daskembed.storage.stores import Storage

SUFFIX = ".gpq"
COLUMNS = ("source_url", "date", "embeddings", "geometry")
_PROVENANCE = b"daskembed"
# Vectors hardly compress but for the bytes of their exponents, which BYTE_STREAM_SPLIT brings together; a dictionary
# would make them larger than they are.
_WRITER: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["source_url", "date"],
    "write_statistics": ["source_url", "date"],
}
_ENCODING = {"float32": "BYTE_STREAM_SPLIT", "float16": "PLAIN"}
"""Of vectors. DuckDB (1.5 and 2.0) reads no float16 that is split; plain, these take 2.5 % more."""


def check_level(description: Description, level: str) -> None:
    """Any level will do."""


def check_chips(index: gpd.GeoDataFrame, description: Description, level: str) -> None:
    """Any chips will do."""


def publish(output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
    """Make one GeoParquet 1.0.0 file of a tile's parts, a row group in memory at a time.

    Parameters
    ----------
    output, name
        Where; the file is complete or absent.
    parts
        The tile's part files in the order of their rows.
    provenance
        What made the embeddings: written to the footer under ``daskembed``. Its `dtype` is the type of the values.

    Raises
    ------
    TileError
        If a value is too large for that.
    """
    dtype = provenance.get("dtype", "float32")
    with timed("write"):
        boxes, kinds, rows = [], set[str](), 0
        for part in parts:
            with pq.ParquetFile(output.open_reader(part)) as file:
                shapes = shapely.from_wkb(file.read(columns=["geometry"])["geometry"].to_numpy())
                schema, rows = file.schema_arrow, rows + len(shapes)
                if len(shapes):
                    boxes.append(box(*bounding_box(shapes)))
                    kinds |= {shape.geom_type for shape in shapes}
        schema = pa.schema([schema.field(column) for column in COLUMNS])
        shape = tuple(schema.field("embeddings").type.shape)
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape)
        schema = schema.set(COLUMNS.index("embeddings"), pa.field("embeddings", kind))
        metadata = {
            b"geo": json.dumps(_geo(bounding_box(np.array(boxes)), sorted(kinds))),
            _PROVENANCE: json.dumps(
                {**provenance, "shape": list(shape), "chips": rows // provenance.get("windows", 1)}, sort_keys=True
            ),
        }
        with output.open_writer(name) as plain:
            file = Hashing(plain)
            encoding = {"embeddings.list.element": _ENCODING[dtype]}
            with pq.ParquetWriter(file, schema.with_metadata(metadata), column_encoding=encoding, **_WRITER) as writer:
                for table in _row_groups(output, parts, rows_a_group(shape)):
                    if dtype != "float32":
                        table = _cast(table, kind, dtype)
                    writer.write_table(table.replace_schema_metadata(metadata), row_group_size=len(table))
    return Published(name, file.size, file.hash.hexdigest())


def size(output: Storage, name: str) -> int | None:
    """Bytes of a published file: it is complete if it is there."""
    try:
        with output.open_reader(name) as file:
            return int(file.size())
    except FileNotFoundError:
        return None


def remove(output: Storage, name: str) -> None:
    """Remove a file."""
    output.delete([name])


def read_provenance(output: Storage, name: str) -> dict[str, Any] | None:
    """What a published file's footer says under ``daskembed``; None if it was not made by this package."""
    try:
        with pq.ParquetFile(output.open_reader(name)) as file:
            text = (file.metadata.metadata or {}).get(_PROVENANCE)
        return None if text is None else parse_object(text)
    except (pa.ArrowInvalid, ValueError):
        return None


def read_place(output: Storage, name: str) -> Place:
    """The footprints of a file's rows, joined."""
    with pq.ParquetFile(output.open_reader(name)) as file:
        values = file.read(columns=["geometry"])["geometry"].to_pylist()
    wkb.check(distinct := sorted(set(values)))
    # On a grid of a centimetre neighbours meet, whatever the last digits of their corners are.
    return Place(shapely.union_all(shapely.from_wkb(distinct), grid_size=1e-7), {})


def _cast(table: pa.Table, kind: pa.DataType, dtype: str) -> pa.Table:
    number = COLUMNS.index("embeddings")
    vectors = table.column(number).combine_chunks().to_numpy_ndarray()
    flat = cast_vectors(vectors, dtype, table["source_url"].to_pylist()).reshape(-1)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.storage_type.list_size)
    return table.set_column(number, pa.field("embeddings", kind), pa.ExtensionArray.from_storage(kind, lists))


def _row_groups(output: Storage, parts: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """The rows of all parts in tables of `rows`, wherever one part ends and the next begins."""
    pending: list[pa.Table] = []
    held = 0
    for part in parts:
        with pq.ParquetFile(output.open_reader(part)) as file:
            for group in range(file.num_row_groups):
                pending.append(file.read_row_group(group, columns=list(COLUMNS)))
                held += len(pending[-1])
                while held >= rows:
                    joined = pa.concat_tables([table.replace_schema_metadata() for table in pending])
                    yield joined.slice(0, rows).combine_chunks()
                    pending, held = [joined.slice(rows)], held - rows
    if held:
        yield pa.concat_tables([table.replace_schema_metadata() for table in pending]).combine_chunks()


def _geo(bbox: Sequence[float], kinds: list[str]) -> dict[str, Any]:
    """The ``geo`` footer of GeoParquet 1.0.0 (geoparquet.org/releases/v1.0.0)."""
    crs = pyproj.CRS("OGC:CRS84").to_json_dict()
    column = {"encoding": "WKB", "geometry_types": kinds, "crs": crs, "bbox": list(bbox)}
    return {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}


class Hashing:
    """A file to write through that counts and hashes what it is given."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write on."""
        self._file.write(data)
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self.size

    def flush(self) -> None:
        """Pass on what is held back."""
        self._file.flush()

    def close(self) -> None:
        """Left to the storage, whose closing makes the object appear."""
