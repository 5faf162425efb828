"""Exports end to end: what is in them, who opens them, and what they refuse."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import shapely
from distributed import Client

import daskembed
from daskembed.exports.settings import Sizes
from daskembed.geo.hilbert import hilbert_keys
from daskembed.runs.export_options import Asked
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "33TUM", "01JBG", "27WXN")
DAYS = ("2024-06-01", "2024-07-01")
SIDE, DIMS = 4, 8
SMALL = Sizes(file=48 * 4 * DIMS, group=10 * 4 * DIMS, page=4 * DIMS)
"""Files of about 48 rows, in groups of 10, a vector a page."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of five tiles, one of them at 180 degrees; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=SIDE, shape=(DIMS,), days=DAYS)
    return folder


def make(output: Path, to: Path, client: Client, sizes: Sizes = SMALL, **asked: object) -> ExportResult:
    return run_export(str(output), str(to), Asked(cluster=client, **asked), sizes)


@pytest.fixture(scope="module")
def exported(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their export; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    result = make(output, folder, client)
    assert (result.exit_status, result.rows, result.tiles) == (0, len(TILES) * SIDE**2 * len(DAYS), len(TILES))
    assert len(result.files) == result.written >= 3
    return folder


def published(output: Path) -> gpd.GeoDataFrame:
    frames = [gpd.read_parquet(path) for path in sorted(output.glob("*.gpq"))]
    return gpd.pd.concat(frames).set_index("source_url").sort_index()


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


def test_all_rows_are_there_once_and_bit_by_bit(output: Path, exported: Path) -> None:
    table = ds.dataset(exported, format="parquet").to_table()
    before = published(output)
    rows = table["source_url"].to_pylist()
    assert sorted(rows) == [*before.index]
    vectors = np.stack(before.loc[rows, "embeddings"].to_numpy())
    assert np.array_equal(np.stack(table["embeddings"].to_numpy()), vectors)
    assert table["date"].to_pylist() == before.loc[rows, "date"].to_list()
    assert (shapely.from_wkb(table["geometry"].to_pylist()) == before.loc[rows].geometry.to_numpy()).all()


def test_rows_are_in_the_order_of_the_curve_and_then_of_their_dates(exported: Path) -> None:
    table = pq.read_table(exported, columns=["date", "geometry", "source_url"])
    shapes = shapely.from_wkb(table["geometry"].to_pylist())
    across = np.array([shape.geom_type == "MultiPolygon" for shape in shapes])
    around = np.where(across, shapely.transform(shapes, lambda xy: np.where(xy < 0, np.add(xy, (360, 0)), xy)), shapes)
    west, south, east, north = shapely.bounds(around).T
    lon = (west + east) / 2
    keys = hilbert_keys(np.where(lon > 180, lon - 360, lon), (south + north) / 2)
    order = [*zip(keys.tolist(), table["date"].to_pylist(), table["source_url"].to_pylist(), strict=True)]
    assert order == sorted(order)
    assert any(a[0] == b[0] and a[1] < b[1] for a, b in itertools.pairwise(order))


def test_geopandas_finds_by_box(output: Path, exported: Path) -> None:
    box = (12.45, 45.95, 12.75, 46.05)
    frame = gpd.read_parquet(exported, columns=["source_url", "geometry"], bbox=box)
    before = published(output)
    assert sorted(frame["source_url"]) == [*before.index[before.intersects(shapely.box(*box))]]
    assert 0 < len(frame) < len(before)
    assert frame.crs == "OGC:CRS84"


def test_what_reaches_across_180_degrees_is_found_on_both_sides(exported: Path) -> None:
    east, west = (
        set(gpd.read_parquet(exported, columns=["source_url", "geometry"], bbox=box)["source_url"])
        for box in ((179.9999, -90, 180, 90), (-180, -90, -179.9999, 90))
    )
    frame = gpd.read_parquet(exported)
    across = set(frame["source_url"][frame.geometry.geom_type == "MultiPolygon"])
    assert across
    assert across <= east & west


def test_duckdb_reads_vectors_and_boxes(output: Path, exported: Path) -> None:
    rows = duckdb.sql(
        f"SELECT source_url, embeddings FROM '{exported}/*.parquet' WHERE bbox.xmin < 12.5 AND bbox.xmax > 12.4 "
        "AND bbox.ymin < 46 AND bbox.ymax > 45.9"
    ).fetchall()
    before = published(output)
    assert rows
    assert all(np.array_equal(np.float32(vector), before.loc[url, "embeddings"]) for url, vector in rows)


def test_files_say_what_they_are(exported: Path) -> None:
    for path in exported.glob("*.parquet"):
        file = pq.ParquetFile(path)
        geo = json.loads(file.metadata.metadata[b"geo"])
        assert geo["version"] == "1.1.0"
        assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
        made = json.loads(file.metadata.metadata[b"daskembed"])
        assert (made["encoder"], made["level"], made["shape"], made["export"]["rows"]) == (
            "clay-v0",
            "mean",
            [8],
            "chip",
        )
        group = file.metadata.row_group(0)
        assert group.num_rows == 10
        assert group.column(2).has_offset_index
        assert group.column(0).has_column_index


def test_a_second_export_is_the_same_byte_by_byte(output: Path, exported: Path, tmp_path: Path) -> None:
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as other:
        make(output, tmp_path / "again", other)
    assert files(tmp_path / "again") == files(exported)


def test_a_finished_export_is_left_as_it_is_without_a_cluster(output: Path, exported: Path) -> None:
    before = files(exported)
    asked = Asked(cluster="tcp://127.0.0.1:1")
    result = run_export(str(output), str(exported), asked, SMALL)
    assert (result.written, result.exit_status, len(result.files)) == (0, 0, len(before))
    assert files(exported) == before


def test_open_embeddings_opens_it(exported: Path) -> None:
    frame = daskembed.open_embeddings(str(exported)).compute()
    assert len(frame) == len(TILES) * SIDE**2 * len(DAYS)
    assert frame["embeddings"].iloc[0].shape == (DIMS,)
    assert "bbox" not in frame.columns
