"""Published files checked: against the format, their names, what they say of themselves, and their receipts."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError
from daskembed.output.protocol import DTYPES
from daskembed.output.state import Receipt
from daskembed.output.validate.bounds import too_much
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import Named, check_name, find_receipt
from daskembed.output.validate.provenance import check_provenance, typed, windows_of
from daskembed.output.validate.rows import KINDS, check_rows
from daskembed.storage.stores import Storage

HASHED_BYTES = 8 * 2**20
MOST_FOOTER = 4 * 2**20
"""Bytes of an object in the footer."""
COLUMNS = ("source_url", "date", "embeddings", "geometry")
_PROVENANCE = b"daskembed"


def check_file(storage: Storage, name: str) -> Iterator[Finding]:
    """Check a GeoParquet file: it is read twice, a few rows at a time."""
    try:
        with storage.open_reader(name) as reader:
            named = yield from check_name(name)
            receipt = None if named is None else (yield from _check_receipt(storage, name, named, reader))
            reader.seek(0)
            # By default whole columns of a row group are fetched ahead, and files of others are one row group.
            with pq.ParquetFile(reader, buffer_size=2**20, pre_buffer=False) as file:
                yield from _check_content(file, reader, named, receipt)
    except (FileNotFoundError, DaskembedError):
        raise
    except Exception as error:  # whatever pyarrow, shapely and PROJ raise of what somebody wrote
        reason = str(error).partition("\n")[0] or type(error).__name__
        yield Finding("parquet", f"cannot be read as Parquet, it is cut off or damaged: {reason}")


def _check_receipt(storage: Storage, name: str, named: Named, reader: Any) -> Generator[Finding, None, Receipt | None]:
    found = yield from find_receipt(storage, name, named)
    if found is None:
        return None
    receipt, file = found
    if file.size != reader.size():
        yield Finding("receipt", f"{reader.size()} bytes, the receipt says {file.size}")
        return receipt
    digest = hashlib.sha256()
    while data := reader.read(HASHED_BYTES):
        digest.update(data)
    if digest.hexdigest() != file.sha256:
        yield Finding("receipt", f"SHA-256 {digest.hexdigest()}, the receipt says {file.sha256}")
    return receipt


def _check_content(
    file: pq.ParquetFile, reader: Any, named: Named | None, receipt: Receipt | None
) -> Iterator[Finding]:
    footer = file.metadata.metadata or {}
    rows = file.metadata.num_rows
    foreign = _PROVENANCE not in footer
    made = yield from read_provenance(footer)
    shape = None if made is None else (yield from check_provenance(made, rows, named, receipt))
    column = yield from check_geo(footer)
    dtype = None if made is None else str(made.get("dtype") or "float32")
    usable = yield from _check_schema(file.schema_arrow, shape, dtype)
    if receipt is not None and receipt.chips * windows_of(made) != rows:
        yield Finding("receipt", f"{rows} rows, the receipt says {receipt.chips} chips")
    if not rows:
        yield Finding("schema", "no rows")
    elif problem := too_much(file.metadata, usable):
        yield Finding("schema", problem)
    elif usable:
        # A second time, as dictionaries: in the schema these columns would not be what they are.
        texts = [name for name in ("source_url", "geometry") if name in usable]
        options = {"metadata": file.metadata, "buffer_size": 2**20, "pre_buffer": False}
        file = pq.ParquetFile(reader, read_dictionary=texts, **options)
        yield from check_rows(file, usable, named, receipt, column, made, foreign)


def _json(footer: dict[bytes, bytes], key: bytes) -> dict[str, Any] | None:
    """An object of the footer; None if it is not JSON or no object."""
    try:
        return parse_object(footer[key], most=MOST_FOOTER)
    except ValueError:
        return None


def read_provenance(footer: dict[bytes, bytes]) -> Generator[Finding, None, dict[str, Any] | None]:
    """What the footer says of how it was made; None if it does not."""
    if _PROVENANCE not in footer:
        yield Finding("provenance", "no `daskembed` in the footer: nothing says what made the embeddings", "note")
        return None
    made = _json(footer, _PROVENANCE)
    if made is None:
        yield Finding("provenance", "`daskembed` in the footer is not a JSON object")
        return None
    return (yield from typed(made, "footer"))


def check_geo(footer: dict[bytes, bytes], expected: str = "1.0.0") -> Generator[Finding, None, dict[str, Any]]:
    """Look at the footer's `geo`, of which a version is expected; gives what it says of the geometry column."""
    if b"geo" not in footer:
        yield Finding("geo", "no `geo` in the footer: not a GeoParquet file")
        return {}
    geo = _json(footer, b"geo")
    if geo is None:
        yield Finding("geo", "`geo` in the footer is not a JSON object")
        return {}
    version, primary = geo.get("version"), geo.get("primary_column")
    if version != expected:
        later = isinstance(version, str) and version.startswith("1.") and version > expected
        message = f"GeoParquet version {version}, expected {expected}"
        yield Finding("geo", message, "note" if later else "problem")
    if primary != "geometry":
        yield Finding("geo", f"the footer's primary column is {primary}, expected geometry")
    columns = geo.get("columns")
    column = columns.get("geometry") if isinstance(columns, dict) else None
    if not isinstance(column, dict):
        yield Finding("geo", "the footer's `geo` does not describe a column geometry")
        return {}
    if column.get("encoding") != "WKB":
        yield Finding("geo", f"the footer's encoding of the geometries is {column.get('encoding')}, expected WKB")
    kinds = column.get("geometry_types")
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= set(KINDS):
        yield Finding("geo", f"the footer's geometry types are {kinds}, expected {' and '.join(KINDS)} at most")
        column = {**column, "geometry_types": None}
    yield from _check_crs(column)
    bbox = column.get("bbox")  # which may be left out
    if "bbox" in column and (
        not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(edge, (int, float)) for edge in bbox)
    ):
        yield Finding("geo", f"the footer's bbox is {bbox}, expected [west, south, east, north]")
        column = {**column, "bbox": None}
    return column


def _check_crs(column: dict[str, Any]) -> Iterator[Finding]:
    if "crs" not in column:
        return  # GeoParquet: then it is OGC:CRS84
    try:
        crs = pyproj.CRS.from_user_input(column["crs"])
    except pyproj.exceptions.CRSError:
        yield Finding("geo", "the footer's CRS is none that PROJ knows, expected OGC:CRS84")
        return
    if crs.to_authority() != ("OGC", "CRS84") and crs != pyproj.CRS("OGC:CRS84"):
        yield Finding("geo", f"the footer's CRS is {crs.name} ({crs.to_string()[:40]}), expected OGC:CRS84")


def _check_schema(
    schema: pa.Schema, shape: tuple[int, ...] | None, dtype: str | None
) -> Generator[Finding, None, list[str]]:
    """Gives the columns that can be looked at row by row; a file that does not say its `dtype` is not ours."""
    usable, foreign = [], dtype is None
    for name in COLUMNS:
        if schema.names.count(name) != 1:
            yield Finding("schema", f"{schema.names.count(name)} columns {name}, expected 1")
            continue
        kind = schema.field(name).type
        problem = _vectors_problem(kind, shape, dtype) if name == "embeddings" else _column_problem(name, kind)
        if problem is None:
            usable.append(name)
        elif problem.severity == "note":
            usable.append(name)
            yield problem
        else:
            yield problem
    if extra := [f"{name} ({schema.field(name).type})" for name in schema.names if name not in COLUMNS]:
        message = f"columns beside {', '.join(COLUMNS)}: {', '.join(extra)}"
        yield Finding("schema", message, "note" if foreign else "problem")
    return usable


def _column_problem(name: str, kind: pa.DataType) -> Finding | None:
    sound, expected = {
        "source_url": (pa.types.is_string(kind) or pa.types.is_large_string(kind), "string"),
        "date": (pa.types.is_date32(kind), "date32"),
        "geometry": (pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "binary"),
    }[name]
    return None if sound else Finding("schema", f"column {name} is {kind}, expected {expected}")


def _vectors_problem(kind: pa.DataType, shape: tuple[int, ...] | None, dtype: str | None) -> Finding | None:
    expected = dtype if dtype in DTYPES else DTYPES[0]
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.value_type != pa.from_numpy_dtype(expected):
            return Finding("schema", f"column embeddings is of {kind.value_type}, expected {expected}")
        if shape is not None and tuple(kind.shape) != shape:
            return Finding("schema", f"the embeddings have the shape {kind.shape}, the footer says {list(shape)}")
        return None
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if dtype is None and lists and pa.types.is_float32(kind.value_type):
        return Finding("schema", f"column embeddings is {kind}: nothing says its shape", "note")
    return Finding("schema", f"column embeddings is {kind}, expected a fixed-shape tensor of {expected}")
