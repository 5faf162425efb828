"""Other libraries on published files and exports, value by value; tests/readers has those that need an environment."""

from __future__ import annotations

import sys
from datetime import date
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

NAMES = ("mean", "patch", "windows")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the published files."""
    folder = tmp_path_factory.mktemp("exported")
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        for name in NAMES:
            daskembed.export(str(known.PUBLISHED / name), to=str(folder / name), cluster=client)
    return folder


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
    query = f"SELECT source_url, date, embeddings, geometry::BLOB FROM read_parquet('{path}')"
    dtype = known.rows(name)[0].vector.dtype
    found = [
        known.Row(url, day, np.array(vector, dtype), shapely.from_wkb(bytes(place)).bounds)
        for url, day, vector, place in duckdb.sql(query).fetchall()
    ]
    known.check(found, known.rows(name))


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
