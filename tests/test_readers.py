"""Other libraries on published files and exports, value by value; tests/readers has those that need an environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import duckdb
import geopandas as gpd
import lancedb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rioxarray  # noqa: F401 (it gives xarray's objects `.rio`)
import shapely
import xarray as xr
from distributed import Client
from readers import environment, known

import daskembed
from daskembed.exports.settings import Sizes
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

NAMES = ("mean", "patch", "windows")
DAYS = tuple(str(date(2024, 1, 1) + timedelta(day)) for day in range(25))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def exported(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the published files."""
    folder = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        daskembed.export(str(known.PUBLISHED / name), to=str(folder / name), cluster=client)
    return folder


@pytest.fixture(scope="module")
def large(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported file of four row groups, as at the usual sizes: of 11,025 rows each, side by side."""
    folder = tmp_path_factory.mktemp("large")
    write_published(folder / "output", ["33TUL", "33TVL", "33TUM", "33TVM"], shape=(1,), days=DAYS)
    sizes = Sizes(group=4 * 11_025, page=4096)
    run_export(str(folder / "output"), str(folder / "export"), Asked(cluster=client), sizes)
    (path,) = (folder / "export").glob("*.parquet")
    assert pq.ParquetFile(path).num_row_groups == 4
    return path


@pytest.fixture(params=[(name, kind) for name in NAMES for kind in ("published", "exported")], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """What is in a file, and the file."""
    name, kind = request.param
    if kind == "published":
        return name, known.path(name)
    return name, known.path(name, request.getfixturevalue("exported"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_is_what_is_there(name: str) -> None:
    table = pq.read_table(known.path(name))
    places = shapely.from_wkb(table["geometry"].to_pylist())
    vectors = table["embeddings"].combine_chunks().to_numpy_ndarray().reshape(len(table), -1)
    found = zip(table["source_url"].to_pylist(), table["date"].to_pylist(), vectors, places, strict=True)
    known.check((known.Row(url, day, vector, place.bounds) for url, day, vector, place in found), known.rows(name))


def test_a_value_that_differs_is_seen() -> None:
    row, other = known.rows("mean")
    vector = row.vector.copy()
    vector[-1] += 1
    for changed in (
        known.Row(row.source_url, row.date, vector, row.box),
        known.Row(row.source_url, row.date, row.vector.astype(float), row.box),
        known.Row(row.source_url, row.date, row.vector, other.box),
        known.Row(row.source_url, other.date, row.vector, row.box),
    ):
        with pytest.raises(AssertionError, match=r"claytile_33TUL_0001\.tif"):
            known.check([changed, other], [row, other])
    with pytest.raises(AssertionError, match="rows"):
        known.check([row], [row, other])


def test_geopandas(case: tuple[str, Path]) -> None:
    name, path = case
    frame = gpd.read_parquet(path, columns=["source_url", "date", "embeddings", "geometry"])
    found = zip(frame.source_url, frame.date, frame.embeddings, frame.geometry, strict=True)
    known.check((known.Row(url, day, vector, place.bounds) for url, day, vector, place in found), known.rows(name))


def test_geopandas_takes_columns_and_a_box_together(exported: Path) -> None:
    first, other = known.rows("mean")
    west, south, east, north = first.box
    inside = ((3 * west + east) / 4, south, (west + 3 * east) / 4, north)
    frame = gpd.read_parquet(exported / "mean", columns=["source_url", "embeddings", "geometry"], bbox=inside)
    assert list(frame.columns) == ["source_url", "embeddings", "geometry"]
    assert list(frame.source_url) == [first.source_url] != [other.source_url]
    np.testing.assert_array_equal(frame.embeddings[0], first.vector)
    assert frame.geometry[0].bounds == first.box


def test_polars(case: tuple[str, Path]) -> None:
    name, path = case
    frame = pl.read_parquet(path)
    places = shapely.from_wkb(frame["geometry"].to_list())
    found = zip(frame["source_url"], frame["date"], frame["embeddings"].to_numpy(), places, strict=True)
    known.check(
        (known.Row(url, day, vector.reshape(-1), place.bounds) for url, day, vector, place in found), known.rows(name)
    )


def test_duckdb_without_its_extension(case: tuple[str, Path]) -> None:
    name, path = case
    query = f"SELECT source_url, date, embeddings, geometry FROM read_parquet('{path}')"
    dtype = known.rows(name)[0].vector.dtype
    found = [
        known.Row(url, day, np.array(vector, dtype), shapely.from_wkb(bytes(place)).bounds)
        for url, day, vector, place in duckdb.sql(query).fetchall()
    ]
    known.check(found, known.rows(name))


@pytest.fixture
def spatial(duckdb_home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with its spatial extension."""
    with duckdb.connect(config={"extension_directory": str(duckdb_home / ".duckdb/extensions")}) as connection:
        connection.execute("LOAD spatial")
        yield connection


def test_duckdb_with_its_spatial_extension(case: tuple[str, Path], spatial: duckdb.DuckDBPyConnection) -> None:
    name, path = case
    dtype = known.rows(name)[0].vector.dtype
    box = "ST_XMin(geometry), ST_YMin(geometry), ST_XMax(geometry), ST_YMax(geometry)"

    def read(where: str) -> Iterator[known.Row]:
        query = f"SELECT source_url, date, embeddings, {box} FROM read_parquet('{path}') WHERE {where}"
        for url, day, vector, *edges in spatial.sql(query).fetchall():
            yield known.Row(url, day, np.array(vector, dtype), tuple(edges))

    known.check(read("true"), known.rows(name))
    first, *others = known.rows(name)
    inside = f"ST_Within(ST_Centroid(geometry), ST_MakeEnvelope{first.box})"
    known.check(read(inside), [first])
    known.check(read(f"NOT {inside}"), others)


def test_duckdb_finds_the_nearest_vector(exported: Path) -> None:
    first, second = known.rows("mean")
    query = "SELECT source_url FROM read_parquet(?) ORDER BY list_cosine_similarity(embeddings, ?::FLOAT[]) DESC"
    for path in (known.path("mean"), known.path("mean", exported)):
        found = duckdb.execute(query, [str(path), second.vector.tolist()]).fetchall()
        assert found == [(second.source_url,), (first.source_url,)]


def test_duckdb_reads_only_the_row_groups_that_a_box_meets(
    large: Path, spatial: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    frame = gpd.read_parquet(large, columns=["source_url", "geometry"])
    edges = groups_edge(large, "bbox.ymax")
    beside, north = sorted(edges)[-2:]
    south = (beside + north) / 2
    box = (-180.0, south, 180.0, north)
    expected = sorted(frame.source_url[frame.intersects(shapely.box(*box))])
    # All else is damaged, so that whoever reads it is found.
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(without_groups(large, all_but=edges.index(north)))
    query = f"SELECT source_url, embeddings FROM read_parquet('{damaged}')"
    near = f"bbox.ymax >= {south} AND bbox.ymin <= {north} AND ST_Intersects(geometry, ST_MakeEnvelope{box})"
    assert sorted(url for url, _ in spatial.sql(f"{query} WHERE {near}").fetchall()) == expected
    assert 0 < len(expected) < len(frame)
    with pytest.raises(duckdb.Error):
        spatial.sql(query).fetchall()


def columns(path: Path, number: int) -> list[pq.ColumnChunkMetaData]:
    group = pq.ParquetFile(path).metadata.row_group(number)
    return [group.column(number) for number in range(group.num_columns)]


def groups_edge(path: Path, name: str) -> list[float]:
    """The largest value of a column in each row group."""
    groups = range(pq.ParquetFile(path).num_row_groups)
    return [one.statistics.max for group in groups for one in columns(path, group) if one.path_in_schema == name]


def without_groups(path: Path, all_but: int) -> bytes:
    """A file in which all values are overwritten but those of one row group."""
    data = bytearray(path.read_bytes())
    for group in {*range(pq.ParquetFile(path).num_row_groups)} - {all_but}:
        for one in columns(path, group):
            start = one.dictionary_page_offset or one.data_page_offset
            data[start : start + one.total_compressed_size] = b"\xff" * one.total_compressed_size
    return bytes(data)


def check_by_gpio(path: Path, home: Path) -> list[str]:
    """What `gpio check` of geoparquet-io finds in a file, or in all files of a folder; its exit status is 0 anyhow."""
    command = [Path(sys.executable).parent / "gpio", "check", "all", path, *(["--all-files"] if path.is_dir() else [])]
    # With credentials of a store in its environment, gpio asks for an extension that no file of this machine needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {"HOME": str(home)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout or "passed (" in done.stdout, done.stdout + done.stderr
    return re.findall(r"(?:WARNING|ERROR): \S+ - (.*)", done.stdout)


def test_gpio_passes_exports(exported: Path, large: Path, duckdb_home: Path) -> None:
    assert check_by_gpio(exported, duckdb_home) == []
    assert check_by_gpio(large, duckdb_home) == []


def without_covering(table: pa.Table) -> pa.Table:
    geo = json.loads(table.schema.metadata[b"geo"])
    del geo["columns"]["geometry"]["covering"]
    return table.replace_schema_metadata(table.schema.metadata | {b"geo": json.dumps(geo)})


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(0).permutation(len(table)))


def check_rewritten(table: pa.Table, groups: int, home: Path, folder: Path) -> list[str]:
    """What it finds in a file of these rows, in so many row groups."""
    path = folder / "rewritten.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=-(-len(table) // groups))
    return check_by_gpio(path, home)


UNORDERED = "Poor spatial ordering (overlap ratio: 1.00)"


@pytest.mark.parametrize(
    ("change", "expected"),
    [(without_covering, "Bbox column exists but missing metadata covering"), (shuffled, UNORDERED)],
)
def test_gpio_finds_what_is_wrong(
    change: Callable[[pa.Table], pa.Table], expected: str, large: Path, duckdb_home: Path, tmp_path: Path
) -> None:
    assert check_rewritten(change(pq.read_table(large)), 4, duckdb_home, tmp_path) == [expected]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        # It asks of row groups that follow on each other that their boxes do not overlap, which those of chips always
        # do, and looks for more than that from three of them on: files of 129 to 256 MB of vectors have two.
        (2, UNORDERED),
        # 128 MB are 170 rows of whole chips with 16 x 16 patches.
        (30, "Row count per group is very low. Target 10,000-200,000 rows per group"),
    ],
)
def test_gpio_warns_of_sound_files_too(
    groups: int, expected: str, large: Path, duckdb_home: Path, tmp_path: Path
) -> None:
    assert check_rewritten(pq.read_table(large), groups, duckdb_home, tmp_path) == [expected]


def test_gpio_finds_that_published_files_are_no_exports(duckdb_home: Path, tmp_path: Path) -> None:
    published = shutil.copy(known.path("mean"), tmp_path / "named_as_gpio_asks.parquet")
    assert check_by_gpio(published, duckdb_home) == [
        "GeoParquet version 1.0.0 is outdated",
        "No bbox column found",
    ]


def test_lancedb(case: tuple[str, Path], tmp_path: Path) -> None:
    name, path = case
    table = lancedb.connect(tmp_path).create_table("embeddings", pq.read_table(path))
    stored = table.to_arrow()
    places = shapely.from_wkb(stored["geometry"].to_pylist())
    lists = stored["embeddings"].combine_chunks()
    lists = lists.storage if isinstance(lists, pa.ExtensionArray) else lists
    vectors = lists.flatten().to_numpy().reshape(len(stored), -1)
    found = zip(stored["source_url"].to_pylist(), stored["date"].to_pylist(), vectors, places, strict=True)
    known.check((known.Row(url, day, vector, place.bounds) for url, day, vector, place in found), known.rows(name))
    for row in known.rows(name):
        nearest = table.search(row.vector, vector_column_name="embeddings").metric("cosine").limit(1).to_list()
        assert [one["source_url"] for one in nearest] == [row.source_url]


def test_xarray_and_rioxarray() -> None:
    (path,) = (known.PUBLISHED / "patch").glob("*.zarr")
    store = xr.open_zarr(path)
    assert store.rio.crs.to_epsg() == 32633
    for row, day, (west, north) in zip(
        known.rows("patch"), ("2019-04-01", "2019-04-16"), ((299_995, 5_100_005), (305_115, 5_094_885)), strict=True
    ):
        assert date.fromisoformat(day) == row.date
        inside = store.embeddings.sel(time=day).rio.clip_box(west + 1, north - 5119, west + 5119, north - 1)
        np.testing.assert_array_equal(inside.transpose("y", "x", "embedding"), row.vector.reshape(16, 16, 256))


def test_a_script_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        environment.enter("nothing", python=(sys.version_info[0], sys.version_info[1] + 1))
    assert ended.value.code == environment.NOT_RUN
    assert "there is no python3." in capsys.readouterr().out
