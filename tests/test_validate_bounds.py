"""Files that somebody else made: findings, and neither a crash nor gigabytes nor a traceback."""

from __future__ import annotations

import json
import os
import re
import struct
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

import daskembed
from daskembed.errors import InputError
from daskembed.geo import wkb
from daskembed.output.state import receipt_path
from daskembed.output.status import status
from daskembed.output.validate.bounds import MOST_ROWS
from daskembed.output.validate.check import validate

NAME = "33TUL_20190416_20190416_v001.gpq"
BOX = shapely.box(12.4, 46.0, 12.5, 46.1)
GEO = {
    "version": "1.0.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "bbox": [12.4, 46.0, 12.5, 46.1]}},
}


def write(folder: Path, *, rows: int = 2, geo: Any = None, made: Any = None, **columns: Any) -> Path:
    """A file as Clay's reference implementation makes them, with some columns changed."""
    arrays = {
        "source_url": pa.array([f"s3://b/{number}.tif" for number in range(rows)]),
        "date": pa.array([date(2019, 4, 16)] * rows),
        "embeddings": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32())),
        "geometry": pa.array([shapely.to_wkb(BOX)] * rows),
        **columns,
    }
    metadata = {"geo": json.dumps(GEO) if geo is None else geo, **({} if made is None else {"daskembed": made})}
    path = folder / NAME
    pq.write_table(pa.table(arrays, metadata=metadata), path, compression="zstd")
    return path


def problems(path: Path) -> list[str]:
    before = psutil.Process().memory_info().rss
    found = [str(finding) for finding in validate(str(path)) if finding.severity == "problem"]
    assert psutil.Process().memory_info().rss < before + 2**29
    return found


def test_a_sound_file(tmp_path: Path) -> None:
    assert problems(write(tmp_path)) == []


DEEP = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"geo": DEEP}, "`geo` in the footer is not a JSON object"),
        ({"made": DEEP}, "`daskembed` in the footer is not a JSON object"),
        ({"made": json.dumps({"a": "x" * 5_000_000})}, "`daskembed` in the footer is not a JSON object"),
        ({"made": json.dumps({"chips": [1]})}, "the footer's chips [1] is no number"),
        ({"made": json.dumps({"shape": [1, "a"]})}, "the footer's shape [1, 'a'] is no list of lengths"),
        ({"made": json.dumps({"identity": "x", "tile": 3})}, "the footer's identity x is no object"),
        ({"geo": json.dumps(GEO | {"version": "\x1b[2J"})}, r"GeoParquet version \x1b[2J, expected 1.0.0"),
        ({"geo": json.dumps(GEO | {"version": ["x" * 10**6]})}, "GeoParquet version ['xxx"),
    ],
)
def test_footers(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = problems(write(tmp_path, **changed))
    assert any(one.startswith(said) for one in found), found
    assert all(len(one) < 1100 for one in found)


def test_texts_of_a_row_group_that_are_too_long(tmp_path: Path) -> None:
    long = pa.array(["x" * 50_000_000, "y"])
    (found,) = problems(write(tmp_path, source_url=long))
    assert re.fullmatch(r"column source_url has [0-9,]{10,} bytes in 2 rows, expected at most 1,056,768", found)
    path = write(tmp_path, geometry=pa.array([b"\0" * 50_000_000, b""]))
    assert any("column geometry has " in one for one in problems(path))


def test_one_long_text_that_many_rows_have(tmp_path: Path) -> None:
    """Of 60,000 rows it would be 6 GB; in the file it is there once."""
    rows = 60_000
    urls = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 100_000]))
    places = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([shapely.to_wkb(BOX)]))
    numbers = pa.array(np.zeros(rows, np.float32))
    columns = {
        "source_url": urls,
        "date": pa.array(np.full(rows, np.datetime64("2019-04-16")), pa.date32()),
        "embeddings": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), numbers),
        "geometry": places,
    }
    # Without pyarrow's own schema nothing says that these were dictionaries: the columns are plain texts.
    table = pa.table(columns, metadata={"geo": json.dumps(GEO)})
    pq.write_table(table, tmp_path / NAME, compression="zstd", store_schema=False)
    assert (tmp_path / NAME).stat().st_size < 1_000_000
    assert f"row 0, without source_url (and {rows - 1} more): a source_url of more than 4,096 bytes" in problems(
        tmp_path / NAME
    )


def test_more_rows_than_can_be_looked_at(tmp_path: Path) -> None:
    rows = MOST_ROWS + 1
    kinds = (pa.string(), pa.date32(), pa.list_(pa.float32()), pa.binary())
    names = ("source_url", "date", "embeddings", "geometry")
    path = write(tmp_path, rows=0, **{name: pa.nulls(rows, kind) for name, kind in zip(names, kinds, strict=True)})
    assert path.stat().st_size < 1_000_000
    assert "10,000,001 rows, of which at most 10,000,000 can be looked at" in problems(path)


def nested(kind: int, levels: int) -> bytes:
    return b"".join(struct.pack("<BII", 1, kind, 1) for _ in range(levels))


CRASHING = {
    "collections": nested(7, 200_000),
    "few collections": nested(7, 1500),
    "multipolygons": nested(6, 1500),
    "multipoints": nested(4, 1500),
    "curves": nested(10, 1500),
    "surfaces": nested(12, 1500),
    "a multipolygon of collections": struct.pack("<BII", 1, 6, 1) + nested(7, 1500),
    "a multipolygon without end": struct.pack("<BII", 1, 6, 2**32 - 1),
    "a polygon without end": struct.pack("<BIII", 1, 3, 2**32 - 1, 2**32 - 1),
    "a polygon of many corners": shapely.to_wkb(shapely.Point(0, 0).buffer(1, quad_segs=10_000)),
    "an order of bytes that there is not": b"\2" + bytes(20),
}


@pytest.mark.parametrize("name", CRASHING)
def test_geometries_that_geos_must_not_see(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, geometry=pa.array([shapely.to_wkb(BOX), CRASHING[name]]))
    (found,) = problems(path)
    assert found.startswith(
        ("row s3://b/1.tif: no geometry, or none in WKB", "row s3://b/1.tif: the geometry is a ", "column geometry has")
    )
    with pytest.raises(InputError, match=r"cannot be read as GeoParquet: ValueError: row 1 has .*expected a polygon"):
        daskembed.open_embeddings(str(tmp_path)).compute()


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("flavor", ["iso", "extended"])
@pytest.mark.parametrize("z", [False, True])
def test_what_well_known_binary_says(order: int, flavor: str, z: bool) -> None:
    box = shapely.force_3d(BOX) if z else BOX
    two = shapely.MultiPolygon([box, shapely.transform(box, lambda xyz: xyz + 1, include_z=z)])
    for shape in (
        box,
        two,
        shapely.Point(1, 2),
        shapely.GeometryCollection([box]),
        shapely.LineString([(0, 0), (1, 1)]),
    ):
        data = shapely.to_wkb(shape, byte_order=order, flavor=flavor, output_dimension=3)
        assert wkb.kind_of(data) == shape.geom_type
    data = shapely.to_wkb(shapely.set_srid(two, 4326), include_srid=True, byte_order=order, output_dimension=3)
    assert wkb.kind_of(data) == "MultiPolygon"
    assert [wkb.kind_of(data[:end]) for end in range(len(data))] == [""] * len(data)
    assert wkb.kind_of(None) == ""


def test_receipts_of_other_types_and_without_end(tmp_path: Path) -> None:
    path = tmp_path / receipt_path("33TUL", "001")
    path.parent.mkdir(parents=True)
    good = {
        **dict.fromkeys(("tile", "version", "listing", "started", "finished"), ""),
        **{key: {} for key in ("quarantined", "rejected", "filled", "settings")},
        "files": [],
        "notes": [],
        "chips": 0,
    }
    path.write_text(json.dumps(good))
    assert status(str(tmp_path)).counts == {"done": 1}
    for text, said in (
        (json.dumps(good | {"quarantined": [1]}), "the field 'quarantined' is a list"),
        (json.dumps(good | {"files": [{"name": 1, "size": 1, "sha256": ""}]}), "the field 'name' is 1, expected str"),
        (json.dumps(good | {"chips": "1"}), "the field 'chips' is '1', expected int"),
        ("[" * 200_000 + "]" * 200_000, "nested deeper than 32 levels"),
        (" " * (33 * 2**20), "has 34,603,008 bytes, expected at most 33,554,432"),
    ):
        path.write_text(text)
        (tile,) = status(str(tmp_path)).tiles
        assert tile.status == "damaged"
        assert said in str(tile.reason)


@pytest.mark.timeout(60)
def test_a_pipe_is_no_published_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(InputError, match="is a pipe or a device: expected a file"):
        validate(str(tmp_path / NAME))
