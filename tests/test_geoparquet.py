"""Part files and published files: their content read by others' libraries, their form, their bytes."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import jsonschema
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely

from daskembed.errors import TileError
from daskembed.geo.cells import EDGES
from daskembed.output import geoparquet as sink
from daskembed.output import parts as parts_module
from daskembed.output.parts import Notes, read_notes, write_part
from daskembed.output.protocol import Published, get_format
from daskembed.storage.stores import Storage
from daskembed.table import block_frame

NAME = "33TUL_20190401_20190416_v001.gpq"
PROVENANCE = {"encoder": "clay-v0", "level": "patch", "untrained": True, "software": {"torch": "2.9"}}
SHAPES = {"mean": (8,), "patch": (16, 16, 8), "group": (6, 16, 16, 8)}


def url_of(number: int) -> str:
    return f"s3://clay-tiles-02/02/33TUL/2019-04-16/claytile_33TUL_20190416_v02_{number:04d}.tif"


def vectors_of(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def footprints(start: int, count: int) -> list[shapely.Polygon]:
    """Ring (xmax, ymin) (xmax, ymax) (xmin, ymax) (xmin, ymin), one beside the other."""
    return [shapely.box(12 + n / 10, 45, 12 + (n + 1) / 10, 45.1) for n in range(start, start + count)]


def block(
    vectors: np.ndarray,
    start: int = 0,
    *,
    quarantined: dict[int, str] | None = None,
    rejected: dict[int, str] | None = None,
    filled: dict[int, int] | None = None,
    noted: dict[int, str] | None = None,
) -> gpd.GeoDataFrame:
    """One partition: chips `start`, `start` + 1 and so on, some of them bad."""
    numbers = range(start, start + len(vectors))
    rows = gpd.GeoDataFrame(
        {
            "source_url": [url_of(n) for n in numbers],
            "chip_url": [url_of(n) for n in numbers],
            "date": [date(2019, 4, 16 if n % 2 else 1) for n in numbers],
            "epsg": 32633,
            **{edge: np.array(numbers, float) for edge in EDGES},
        },
        geometry=footprints(start, len(vectors)),
        crs="OGC:CRS84",
    )
    reasons = np.array([(quarantined or {}).get(n) for n in numbers], dtype=object)
    counts = np.array([(filled or {}).get(n, 0) for n in numbers], dtype=np.int64)
    rules = np.array([(rejected or {}).get(n) for n in numbers], dtype=object)
    notes = np.array([(noted or {}).get(n) for n in numbers], dtype=object)
    clouds = np.full(len(rows), np.nan)
    return block_frame(vectors, reasons, rules, counts, notes, clouds, rows=rows)


def write_blocks(output: Storage, vectors: np.ndarray, sizes: tuple[int, ...], **bad: Any) -> list[str]:
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append(f"_daskembed/parts/33TUL_v001/{number:05d}.parquet")
        frame = block(vectors[start : start + size], start, **bad)
        with output.open_writer(parts[-1]) as file:
            write_part(frame, file, vectors.shape[1:])
        start += size
    assert start == len(vectors)
    return parts


def make(output: Storage, vectors: np.ndarray, sizes: tuple[int, ...], **bad: Any) -> Published:
    return sink.publish(output, NAME, write_blocks(output, vectors, sizes, **bad), PROVENANCE)


def notes_of(output: Storage) -> Notes:
    return read_notes(output, [entry.path for entry in output.entries("_daskembed/parts")])


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "output"))


@pytest.fixture(params=SHAPES)
def level(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def published(output: Storage, level: str) -> tuple[Path, np.ndarray]:
    """A file of seven chips in three parts, and its vectors."""
    vectors = vectors_of(7, SHAPES[level])
    make(output, vectors, (3, 1, 3))
    return Path(output.url) / NAME, vectors


# Content, read by others


def test_sink_by_name() -> None:
    assert get_format("geoparquet") is sink
    assert sink.SUFFIX == ".gpq"


def test_geopandas_reads_it(published: tuple[Path, np.ndarray], level: str) -> None:
    path, vectors = published
    frame = gpd.read_parquet(path)
    assert list(frame.columns) == ["source_url", "date", "embeddings", "geometry"]
    assert list(frame["source_url"]) == [url_of(n) for n in range(7)]
    assert list(frame["date"]) == [date(2019, 4, 16 if n % 2 else 1) for n in range(7)]
    assert frame.crs == "OGC:CRS84"
    assert list(frame.geometry) == footprints(0, 7)
    for found, expected in zip(frame["embeddings"], vectors, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (expected.size,)
        np.testing.assert_array_equal(found.reshape(SHAPES[level]), expected)


def test_pyarrow_reads_it(published: tuple[Path, np.ndarray], level: str) -> None:
    path, vectors = published
    schema = pq.read_schema(path)
    assert schema.names == ["source_url", "date", "embeddings", "geometry"]
    assert schema.field("source_url").type == pa.string()
    assert schema.field("date").type == pa.date32()
    assert schema.field("geometry").type == pa.binary()
    kind = schema.field("embeddings").type
    assert isinstance(kind, pa.FixedShapeTensorType)
    assert kind.value_type == pa.float32()
    assert tuple(kind.shape) == SHAPES[level]
    found = pq.read_table(path)["embeddings"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(found, vectors)


def test_duckdb_reads_it(published: tuple[Path, np.ndarray]) -> None:
    path, vectors = published
    query = f"SELECT source_url, date, embeddings FROM read_parquet('{path}')"
    rows = duckdb.sql(query).fetchall()
    assert [row[0] for row in rows] == [url_of(n) for n in range(7)]
    assert rows[1][1] == date(2019, 4, 16)
    np.testing.assert_array_equal(np.array([row[2] for row in rows], np.float32), vectors.reshape(7, -1))


def test_polars_reads_it(published: tuple[Path, np.ndarray]) -> None:
    path, vectors = published
    frame = pl.read_parquet(path)
    assert frame["source_url"].to_list() == [url_of(n) for n in range(7)]
    assert frame["date"].to_list()[1] == date(2019, 4, 16)
    found = np.array(frame["embeddings"].to_list(), np.float32)
    np.testing.assert_array_equal(found, vectors.reshape(7, -1))


def test_gdal_reads_it(published: tuple[Path, np.ndarray]) -> None:
    if "Parquet" not in pyogrio.list_drivers():
        pytest.skip("GDAL of this pyogrio has no Parquet driver")
    path, vectors = published
    frame = pyogrio.read_dataframe(path, use_arrow=True)
    assert list(frame["source_url"]) == [url_of(n) for n in range(7)]
    assert list(frame.geometry) == footprints(0, 7)
    np.testing.assert_array_equal(np.stack(list(frame["embeddings"])), vectors.reshape(7, -1))


def test_geometry_is_well_known_binary_with_its_ring_as_it_was(published: tuple[Path, np.ndarray]) -> None:
    path, _ = published
    wkb = pq.read_table(path)["geometry"].to_pylist()
    assert [shapely.from_wkb(data).wkt for data in wkb] == [polygon.wkt for polygon in footprints(0, 7)]
    assert all(data[:5] == b"\x01\x03\x00\x00\x00" for data in wkb)


# Footer


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "geoparquet-1.0.0-schema.json").read_text())


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {}}},
        {"version": "1.0.0", "primary_column": "g", "columns": {"g": {"encoding": "WKB", "geometry_types": ["Box"]}}},
        {"version": "1.0.0", "primary_column": "g", "columns": {"g": {"encoding": "point", "geometry_types": []}}},
        {
            "version": "1.0.0",
            "primary_column": "g",
            "columns": {"g": {"encoding": "WKB", "geometry_types": [], "bbox": [1, 2, 3]}},
        },
        {
            "version": "1.0.0",
            "primary_column": "g",
            "columns": {"g": {"encoding": "WKB", "geometry_types": [], "crs": "EPSG:4326"}},
        },
    ],
)
def test_schema_refuses(schema: dict[str, Any], broken: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_geo_footer(published: tuple[Path, np.ndarray], schema: dict[str, Any]) -> None:
    metadata = pq.read_metadata(published[0]).metadata
    geo = json.loads(metadata[b"geo"])
    jsonschema.validate(geo, schema)
    column = geo["columns"]["geometry"]
    assert geo["primary_column"] == "geometry"
    assert list(geo["columns"]) == ["geometry"]
    assert column["geometry_types"] == ["Polygon"]
    assert column["bbox"] == pytest.approx([12, 45, 12.7, 45.1])
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS("OGC:CRS84")


def test_geo_footer_of_footprints_across_the_antimeridian(output: Storage, schema: dict[str, Any]) -> None:
    frame = block(vectors_of(2, (4,)))
    halves = shapely.MultiPolygon([shapely.box(179.9, 65, 180, 65.1), shapely.box(-180, 65, -179.9, 65.1)])
    frame.geometry = [shapely.box(179.8, 65, 179.9, 65.1), halves]
    with output.open_writer("part") as file:
        write_part(frame, file, (4,))
    sink.publish(output, NAME, ["part"], PROVENANCE)
    path = Path(output.url) / NAME
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    jsonschema.validate(geo, schema)
    assert sorted(geo["columns"]["geometry"]["geometry_types"]) == ["MultiPolygon", "Polygon"]
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx([179.8, 65, -179.9, 65.1])
    assert gpd.read_parquet(path).geometry[1].equals(halves)


def test_geo_footer_of_parts_on_both_sides_of_the_antimeridian(output: Storage) -> None:
    """RFC 7946, 5.2: the west edge is the more eastern number."""
    for number, west in enumerate((179.7, 179.8, -180, -179.9)):
        frame = block(vectors_of(1, (4,)), number)
        frame.geometry = [shapely.box(west, -16, west + 0.1, -15.9)]
        with output.open_writer(f"part{number}") as file:
            write_part(frame, file, (4,))
    sink.publish(output, NAME, [f"part{number}" for number in range(4)], PROVENANCE)
    geo = json.loads(pq.read_metadata(Path(output.url) / NAME).metadata[b"geo"])
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx([179.7, -16, -179.8, -15.9])


def test_provenance_footer(output: Storage, published: tuple[Path, np.ndarray], level: str) -> None:
    expected = {**PROVENANCE, "shape": list(SHAPES[level]), "chips": 7}
    assert json.loads(pq.read_metadata(published[0]).metadata[b"daskembed"]) == expected
    assert sink.read_provenance(output, NAME) == expected


def test_provenance_of_others_files(output: Storage) -> None:
    folder = Path(output.url)
    folder.mkdir()
    pq.write_table(pa.table({"a": [1]}), folder / "foreign.gpq")
    (folder / "text.gpq").write_text("no Parquet at all")
    (folder / "empty.gpq").write_bytes(b"")
    assert sink.read_provenance(output, "foreign.gpq") is None
    assert sink.read_provenance(output, "text.gpq") is None
    assert sink.read_provenance(output, "empty.gpq") is None


def test_pandas_notes_of_the_parts_are_not_in_the_file(published: tuple[Path, np.ndarray]) -> None:
    assert set(pq.read_metadata(published[0]).metadata) - {b"ARROW:schema"} == {b"geo", b"daskembed"}


# Parts


@pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 3, 3, 1), (1, 9), (7, 2, 1)])
def test_rows_keep_their_order(output: Storage, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    """Whatever the blocks, and wherever a row group begins and ends."""
    monkeypatch.setattr(parts_module, "ROW_GROUP_BYTES", 4 * 4 * 4)  # four rows
    vectors = vectors_of(10, (4,))
    make(output, vectors, sizes)
    assert notes_of(output).chips == 10
    file = pq.ParquetFile(Path(output.url) / NAME)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 2]
    frame = gpd.read_parquet(Path(output.url) / NAME)
    assert list(frame["source_url"]) == [url_of(n) for n in range(10)]
    np.testing.assert_array_equal(np.stack(frame["embeddings"]), vectors)
    assert list(frame.geometry) == footprints(0, 10)


def test_row_groups_are_small_enough_to_stream(output: Storage) -> None:
    """A level of 4.5 MiB a chip: seven chips in the 32 MiB of a row group, also where a part has fewer."""
    shape = (6, 16, 16, 768)
    vectors = vectors_of(9, (1,)).reshape(9, 1, 1, 1, 1) * np.ones(shape, np.float32)
    make(output, vectors, (2, 6, 1))
    file = pq.ParquetFile(Path(output.url) / NAME)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [7, 2]
    found = file.read(columns=["embeddings"])["embeddings"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(found, vectors)


def test_vector_larger_than_a_row_group(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "ROW_GROUP_BYTES", 10)
    make(output, vectors_of(3, (4,)), (2, 1))
    file = pq.ParquetFile(Path(output.url) / NAME)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [1, 1, 1]


def test_publishing_holds_a_row_group_at_a_time(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "ROW_GROUP_BYTES", 4 * 4 * 4)
    parts = write_blocks(output, vectors_of(40, (4,)), (20, 20))
    written: list[int] = []
    write_table = pq.ParquetWriter.write_table

    def counting(self: pq.ParquetWriter, table: pa.Table, **options: Any) -> None:
        written.append(table.num_rows)
        write_table(self, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", counting)
    sink.publish(output, NAME, parts, PROVENANCE)
    assert written == [4] * 10


# Bad chips


def test_quarantined_chips_are_told_and_left_out(output: Storage) -> None:
    vectors = vectors_of(6, (4,))
    vectors[[1, 5]] = np.nan
    bad = {1: "has values that are not finite: 3 in vh", 5: "is gone"}
    told = {1: "a bad chip's", 2: "B12 is 0 in 1.0000% of its pixels"}
    make(output, vectors, (2, 3, 1), quarantined=bad, filled={0: 12, 3: 5}, noted=told)
    notes = notes_of(output)
    assert (notes.rows, notes.chips) == (4, 4)
    assert notes.quarantined == {url_of(1): bad[1], url_of(5): bad[5]}
    assert (notes.rejected, notes.filled) == ({}, {url_of(0): 12, url_of(3): 5})
    assert notes.noted == {url_of(2): told[2]}
    assert notes.days == (date(2019, 4, 1), date(2019, 4, 16))
    frame = gpd.read_parquet(Path(output.url) / NAME)
    assert list(frame["source_url"]) == [url_of(n) for n in (0, 2, 3, 4)]
    np.testing.assert_array_equal(np.stack(frame["embeddings"]), vectors[[0, 2, 3, 4]])
    geo = json.loads(pq.read_metadata(Path(output.url) / NAME).metadata[b"geo"])
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx([12, 45, 12.5, 45.1])


def test_days_are_those_of_the_rows_that_are_left(output: Storage) -> None:
    """Odd chips are of the 16th, even ones of the 1st."""
    bad = {"quarantined": {1: "is gone"}, "rejected": {3: "B02 is 0"}}
    assert read_notes(output, write_blocks(output, vectors_of(5, (4,)), (2, 3), **bad)).days == (date(2019, 4, 1),) * 2


@pytest.mark.parametrize("sizes", [(2, 2, 2), (6,), (1, 5)])
def test_parts_of_nothing_but_bad_chips(output: Storage, sizes: tuple[int, ...]) -> None:
    vectors = vectors_of(6, (4,))
    bad = dict.fromkeys((0, 1, 4, 5), "is gone")
    make(output, vectors, sizes, quarantined=bad)
    notes = notes_of(output)
    assert notes.chips == 2
    assert list(notes.quarantined) == [url_of(n) for n in bad]
    frame = gpd.read_parquet(Path(output.url) / NAME)
    assert list(frame["source_url"]) == [url_of(2), url_of(3)]


def test_nothing_but_bad_chips_leaves_no_rows(output: Storage) -> None:
    parts = write_blocks(output, vectors_of(3, (4,)), (2, 1), quarantined=dict.fromkeys(range(3), "is gone"))
    assert read_notes(output, parts) == Notes(quarantined={url_of(n): "is gone" for n in range(3)})


def test_rejected_chips_are_told_apart(output: Storage) -> None:
    vectors = vectors_of(4, (4,))
    make(output, vectors, (4,), quarantined={1: "is gone"}, rejected={0: "40 % cloud"})
    notes = notes_of(output)
    assert (notes.chips, notes.quarantined, notes.rejected) == (2, {url_of(1): "is gone"}, {url_of(0): "40 % cloud"})
    assert list(gpd.read_parquet(Path(output.url) / NAME)["source_url"]) == [url_of(2), url_of(3)]


# Encodings and sizes


def test_encodings(published: tuple[Path, np.ndarray]) -> None:
    metadata = pq.read_metadata(published[0])
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(n) for n in range(metadata.num_columns)]
        by_name = {column.path_in_schema.partition(".")[0]: column for column in columns}
        assert {column.compression for column in columns} == {"ZSTD"}
        assert "BYTE_STREAM_SPLIT" in by_name["embeddings"].encodings
        for name in ("embeddings", "geometry"):
            assert not by_name[name].has_dictionary_page
            assert not {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(by_name[name].encodings)
        assert by_name["date"].has_dictionary_page
        assert by_name["source_url"].is_stats_set
        assert not by_name["embeddings"].is_stats_set


def test_size_of_vectors_that_share_a_part(output: Storage) -> None:
    """As real ones do: a large common part, a mean cosine of about 0.9."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(768) * 0.27
    vectors = (common + rng.standard_normal((417, 768)) * 0.09).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert 0.85 < (unit @ unit.T).mean() < 0.95
    result = make(output, vectors, (200, 217))
    assert result.size < 0.9 * vectors.nbytes


# Bytes


def test_published_says_what_the_file_is(output: Storage, level: str) -> None:
    vectors = vectors_of(5, SHAPES[level])
    result = make(output, vectors, (3, 2))
    data = (Path(output.url) / NAME).read_bytes()
    assert result.name == NAME
    assert result.size == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()


def test_same_parts_same_bytes(tmp_path: Path) -> None:
    vectors = vectors_of(20, (16, 16, 8))
    first = make(Storage(str(tmp_path / "first")), vectors, (7, 7, 6))
    again = make(Storage(str(tmp_path / "again")), vectors, (7, 7, 6))
    other_blocks = make(Storage(str(tmp_path / "other")), vectors, (20,))
    assert first.sha256 == again.sha256 == other_blocks.sha256


def test_other_vectors_other_bytes(tmp_path: Path) -> None:
    first = make(Storage(str(tmp_path / "first")), vectors_of(3, (4,)), (3,))
    other = make(Storage(str(tmp_path / "other")), vectors_of(3, (4,), seed=1), (3,))
    assert first.sha256 != other.sha256


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.0, 1e-45, 3.4e38])
def test_every_float_comes_back(output: Storage, value: float) -> None:
    vectors = np.full((2, 4), value, np.float32)
    make(output, vectors, (2,))
    found = pq.read_table(Path(output.url) / NAME)["embeddings"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(found.view(np.uint32), vectors.view(np.uint32))


HALF = {**PROVENANCE, "dtype": "float16"}


def test_float16(output: Storage, level: str) -> None:
    """Read by the code that reads float32."""
    vectors = vectors_of(7, SHAPES[level])
    result = sink.publish(output, NAME, write_blocks(output, vectors, (3, 1, 3)), HALF)
    frame = gpd.read_parquet(Path(output.url) / NAME)
    assert frame.embeddings[0].dtype == np.float16
    assert frame.embeddings[0].shape == (vectors[0].size,)
    np.testing.assert_array_equal(np.stack(frame.embeddings).reshape(vectors.shape), vectors.astype(np.float16))
    assert sink.read_provenance(output, NAME)["dtype"] == "float16"
    column = pq.read_schema(Path(output.url) / NAME).field("embeddings").type
    assert (column.value_type, tuple(column.shape)) == (pa.float16(), SHAPES[level])
    path, flat = Path(output.url) / NAME, vectors.reshape(7, -1).astype(np.float16)
    assert "BYTE_STREAM_SPLIT" not in pq.read_metadata(path).row_group(0).column(2).encodings
    rows = duckdb.sql(f"SELECT embeddings FROM read_parquet('{path}')").fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in rows], np.float16), flat)
    np.testing.assert_array_equal(np.array(pl.read_parquet(path)["embeddings"].to_list(), np.float16), flat)
    np.testing.assert_array_equal(np.stack(pd.read_parquet(path)["embeddings"]), flat)
    np.testing.assert_array_equal(
        pq.read_table(path)["embeddings"].combine_chunks().to_numpy_ndarray(), vectors.astype("f2")
    )
    assert result.size < make(output, vectors, (3, 1, 3)).size * 0.7 or level == "mean"


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_a_value_beyond_float16_is_an_error(output: Storage, value: float) -> None:
    vectors = vectors_of(3, (4,))
    vectors[1, 2] = value
    parts = write_blocks(output, vectors, (3,))
    with pytest.raises(TileError) as error:
        sink.publish(output, NAME, parts, HALF)
    assert str(error.value) == (
        f"the embedding of {url_of(1)} has the value {abs(value):g}, and float16 ends at 65504: give `dtype='float32'`"
    )
    assert not (Path(output.url) / NAME).exists()


def test_the_largest_float16_and_infinities_are_none(output: Storage) -> None:
    vectors = np.array([[65504, -65504, np.inf, np.nan]], np.float32)
    sink.publish(output, NAME, write_blocks(output, vectors, (1,)), HALF)
    np.testing.assert_array_equal(gpd.read_parquet(Path(output.url) / NAME).embeddings[0], vectors[0])


class BrokenError(Exception):
    """Something that goes wrong in the middle of writing."""


def break_down(*_: Any) -> None:
    raise BrokenError


def test_file_is_complete_or_absent(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_blocks(output, vectors_of(4, (4,)), (2, 2))
    monkeypatch.setattr(parts_module, "ROW_GROUP_BYTES", 16)
    write_table, written = pq.ParquetWriter.write_table, []

    def failing(self: pq.ParquetWriter, table: pa.Table, **options: Any) -> None:
        if len(written) == 2:
            raise BrokenError
        written.append(table)
        write_table(self, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", failing)
    with pytest.raises(BrokenError):
        sink.publish(output, NAME, parts, PROVENANCE)
    assert len(written) == 2
    assert [path.name for path in Path(output.url).iterdir()] == ["_daskembed"]


def test_file_that_is_there_stays_until_the_new_one_is_complete(
    output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(output, vectors_of(3, (4,)), (3,))
    path = Path(output.url) / NAME
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sink, "_row_groups", break_down)
        with pytest.raises(BrokenError):
            sink.publish(output, NAME, ["_daskembed/parts/33TUL_v001/00000.parquet"], PROVENANCE)
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {NAME, "_daskembed"}


# Other stores


def test_publish_to_a_bucket(s3: str, tmp_path: Path) -> None:
    output, vectors = Storage(f"{s3}/embeddings"), vectors_of(7, (16, 16, 8))
    result = make(output, vectors, (3, 1, 3), quarantined={2: "is gone"})
    data = output.get(NAME)
    assert result.size == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    local = make(Storage(str(tmp_path)), vectors, (3, 1, 3), quarantined={2: "is gone"})
    assert result == local
    assert sink.read_provenance(output, NAME)["chips"] == 6
    assert [entry.path for entry in output.entries(recursive=False)] == [NAME]


def test_failure_leaves_nothing_in_a_bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Storage(s3)
    parts = write_blocks(output, vectors_of(3, (4,)), (3,))
    monkeypatch.setattr(sink, "_row_groups", break_down)
    with pytest.raises(BrokenError):
        sink.publish(output, NAME, parts, PROVENANCE)
    assert [entry.path for entry in output.entries()] == parts
