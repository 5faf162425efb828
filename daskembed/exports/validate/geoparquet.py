"""GeoParquet files of exports checked: footer, columns, row groups and pages, and by `rows` what is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskembed.errors import DaskembedError
from daskembed.exports import profiles
from daskembed.exports.gather import BBOX
from daskembed.exports.names import PROFILES
from daskembed.exports.rows import COLUMNS
from daskembed.exports.settings import DEFAULT
from daskembed.exports.validate.known import Known, check_bytes, check_calibration, check_made
from daskembed.exports.validate.rows import check_rows
from daskembed.output.validate.bounds import rows_at_once, too_much
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.geoparquet import check_geo, read_provenance
from daskembed.output.validate.provenance import lengths_of
from daskembed.quantization import KEY
from daskembed.storage.stores import Storage

VERSION = "1.1.0"
_TYPES = {"source_url": (pa.string(),), "date": (pa.date32(),), "geometry": (pa.binary(), pa.large_binary())}
_SPARE = 1.1
"""How much larger a row group may be than asked for."""


def check_geoparquet(storage: Storage, name: str, known: Known) -> Iterator[Finding]:
    """Check a file: it is read twice, a few rows at a time."""
    try:
        with storage.open_reader(name) as reader:
            yield from check_bytes(reader, known.receipt)
            reader.seek(0)
            with pq.ParquetFile(reader, buffer_size=2**20, pre_buffer=False) as file:
                yield from _check_content(file, reader, known)
    except (FileNotFoundError, DaskembedError):
        raise
    except Exception as error:  # whatever pyarrow, shapely and PROJ raise of what somebody wrote
        reason = str(error).partition("\n")[0] or type(error).__name__
        yield Finding("parquet", f"cannot be read as Parquet, it is cut off or damaged: {reason}")


def _check_content(file: pq.ParquetFile, reader: Any, known: Known) -> Iterator[Finding]:
    footer, schema = file.metadata.metadata or {}, file.schema_arrow
    made = (yield from read_provenance(footer)) or {}
    yield from check_made(made, known.settings)
    column = yield from check_geo(footer, VERSION)
    yield from _check_covering(column, schema)
    vectors = vectors_of(schema, known)
    shape = yield from lengths_of(made, "footer")
    usable = yield from check_schema(schema, vectors, made, shape, known)
    if (yield from check_calibration(footer.get(KEY.encode()), made, shape, known, "footer")) is not None:
        yield from _check_frames(footer)
    rows = file.metadata.num_rows
    if known.receipt is not None and known.receipt.rows != rows:
        yield Finding("receipt", f"{rows} rows, the receipt says {known.receipt.rows}")
    if not rows:
        yield Finding("schema", "no rows")
        return
    yield from _check_groups(file.metadata, made, shape, known)
    if problem := too_much(file.metadata, usable):
        yield Finding("schema", problem)
        return
    # A second time, as dictionaries: in the schema these columns would not be what they are.
    texts = [name for name in ("source_url", "geometry") if name in usable]
    options = {"metadata": file.metadata, "buffer_size": 2**20, "pre_buffer": False}
    again = pq.ParquetFile(reader, read_dictionary=texts, **options)
    batches = again.iter_batches(batch_size=rows_at_once(file.metadata, usable), columns=usable)
    yield from check_rows(batches, usable, vectors, column, known)


def vectors_of(schema: pa.Schema, known: Known) -> str:
    """Which column holds the vectors."""
    if (profile := known.settings.get("profile")) in PROFILES:
        return profiles.vectors_of(profile)
    others = {profiles.vectors_of(name) for name in PROFILES}
    return next((name for name in schema.names if name in others), "embeddings")


def _check_covering(column: dict[str, Any], schema: pa.Schema) -> Iterator[Finding]:
    expected = {"bbox": {edge: ["bbox", edge] for edge in BBOX}}
    if column and column.get("covering") != expected:
        found = json.dumps(column.get("covering"))
        yield Finding("covering", f"the footer's covering is {found[:200]}, expected {json.dumps(expected)}")
    kind = schema.field("bbox").type if schema.names.count("bbox") == 1 else None
    if kind is None or not pa.types.is_struct(kind) or {one.name: one.type for one in kind} != _BOX:
        yield Finding(
            "covering", f"column bbox is {kind or 'missing'}, expected a struct of {', '.join(BBOX)} (double)"
        )


_BOX = dict.fromkeys(BBOX, pa.float64())


def check_schema(
    schema: pa.Schema, vectors: str, made: Mapping[str, Any], shape: tuple[int, ...] | None, known: Known
) -> Generator[Finding, None, list[str]]:
    """Gives the columns that can be looked at row by row."""
    how = made.get("export")
    told = known.settings or (how if isinstance(how, dict) else {})
    name = told.get("profile")
    profile = profiles.get_profile(str(name)) if name in PROFILES else None
    patches = ("row", "col") if told.get("rows") == "patch" else ()
    wanted = [*(profile.columns if profile else ("source_url", "date", *patches, vectors, "geometry"))]
    wanted += [name for name in told.get("columns") or () if isinstance(name, str)]
    if missing := [name for name in wanted if schema.names.count(name) != 1]:
        yield Finding("schema", f"no column, or several, of {', '.join(missing)}")
    if strange := [name for name in schema.names if name not in {*wanted, "bbox", *COLUMNS}]:
        yield Finding("schema", f"columns that nobody asked for: {', '.join(strange)}")
    usable = []
    for name in ("source_url", "date", "geometry"):
        if schema.names.count(name) == 1 and (kind := schema.field(name).type) in _TYPES[name]:
            usable.append(name)
        elif name in schema.names:
            yield Finding("schema", f"column {name} is {kind}, expected {_TYPES[name][0]}")
    usable += [name for name in ("row", "col") if schema.names.count(name) == 1 and name in patches]
    if schema.names.count(vectors) == 1:
        kind, dtype = schema.field(vectors).type, str(made.get("dtype") or "float32")
        length = math.prod(shape) if shape else getattr(kind, "list_size", 0)
        if pa.types.is_fixed_size_list(kind) and kind.list_size == length and str(kind.value_type) == _ARROW.get(dtype):
            usable.append(vectors)
        else:
            yield Finding("schema", f"column {vectors} is {kind}, expected a fixed-size list of {length} {dtype}")
    if schema.names.count("bbox") == 1 and pa.types.is_struct(schema.field("bbox").type):
        usable.append("bbox")
    return usable


_ARROW = {"float32": "float", "float16": "halffloat", "int8": "int8"}


def _check_frames(footer: dict[bytes, bytes]) -> Iterator[Finding]:
    """Whether frames of pandas and GeoPandas are told the same."""
    try:
        frames = json.loads(footer.get(b"PANDAS_ATTRS", b"{}")).get(KEY)
    except (ValueError, AttributeError):
        frames = None
    if frames != footer[KEY.encode()].decode(errors="replace"):
        yield Finding("quantization", "`PANDAS_ATTRS` in the footer does not say the same as `quantization`")


def _check_groups(
    metadata: pq.FileMetaData, made: Mapping[str, Any], shape: tuple[int, ...] | None, known: Known
) -> Iterator[Finding]:
    sizes = known.settings.get("sizes")
    group = sizes.get("group") if isinstance(sizes, dict) else None
    most = group if isinstance(group, int) else DEFAULT.group
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if shape and made.get("dtype") in _ARROW:
        a_row = math.prod(shape) * np.dtype(made["dtype"]).itemsize
        rows = max(1, int(most * _SPARE) // a_row)
        for number, one in enumerate(groups):
            if one.num_rows > rows:
                size = one.num_rows * a_row
                yield Finding("pages", f"row group {number} has {size:,} bytes of vectors, expected about {most:,}")
                break
    lacking = [one for one in groups for number in range(one.num_columns) if not one.column(number).has_offset_index]
    if lacking:
        yield Finding("pages", "pages without an index: who looks up one vector has to read its whole row group")
    boxes = [
        one.column(number)
        for one in groups
        for number in range(one.num_columns)
        if one.column(number).path_in_schema.startswith("bbox.")
    ]
    if not all(box.is_stats_set for box in boxes):
        yield Finding("covering", "row groups do not say between which edges their boxes are: readers skip none")
