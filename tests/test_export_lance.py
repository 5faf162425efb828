"""Exports as a table of Lance: read back by LanceDB, searched, and made once whatever happened before."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import geopandas as gpd
import lancedb
import numpy as np
import pandas as pd
import pytest
import shapely
from distributed import Client

from daskembed.errors import InputError
from daskembed.exports import lance
from daskembed.exports.settings import Sizes
from daskembed.runs.export_options import Asked
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

TILES, SIDE, DIMS = ("33TUL", "33TVL"), 16, 32
ROWS = len(TILES) * SIDE**2
SMALL = Sizes(file=200 * 4 * DIMS)
"""Files of about 200 rows."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=SIDE, shape=(DIMS,))
    return folder


def make(output: object, to: object, client: Client, **asked: object) -> ExportResult:
    return run_export(str(output), str(to), Asked(cluster=client, format="lance", **asked), SMALL)


@pytest.fixture(scope="module")
def exported(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    result = make(output, folder, client)
    assert (result.exit_status, result.rows, result.written > 1) == (0, ROWS, True)
    assert result.notes == ("no index: 512 rows are too few for one to pay; LanceDB compares with all rows",)
    return folder


def test_lance_warns_of_nothing(
    output: Path, client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its level of logging is the user's, who may have imported it before."""
    assert "LANCE_LOG" not in os.environ
    assert make(output, tmp_path, client).exit_status == 0
    assert "WARN" not in capfd.readouterr().err


def published(output: Path) -> gpd.GeoDataFrame:
    return pd.concat([gpd.read_parquet(path) for path in sorted(output.glob("*.gpq"))]).set_index("source_url")


def open_table(folder: object) -> lancedb.table.Table:
    return lancedb.connect(str(folder)).open_table("embeddings")


def data_files(folder: Path) -> dict[str, str]:
    paths = (folder / lance.FOLDER).iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_lancedb_reads_all_rows(output: Path, exported: Path) -> None:
    table = open_table(exported).to_arrow()
    before = published(output).loc[table["source_url"].to_pylist()]
    assert len(table) == len(set(table["source_url"].to_pylist())) == ROWS
    vectors = table["embeddings"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
    np.testing.assert_array_equal(vectors, np.stack(before["embeddings"]))
    assert table["date"].to_pylist() == list(before["date"])
    assert (shapely.from_wkb(table["geometry"].to_pylist()) == before.geometry.to_numpy()).all()


def test_a_search_finds_the_row_whose_vector_it_is(output: Path, exported: Path) -> None:
    table, before = open_table(exported), published(output)
    for url in before.index[[0, 300, 511]]:
        search = table.search(before.loc[url, "embeddings"], vector_column_name="embeddings").metric("cosine")
        assert search.limit(1).to_list()[0]["source_url"] == url
        _, south, east, _ = before.loc[url].geometry.bounds
        here = f"bbox.xmax > {east} AND bbox.ymin <= {south}"
        others = search.where(here, prefilter=True).limit(ROWS).to_list()
        assert {row["source_url"] for row in others} == set(
            before.index[(before.bounds.maxx > east) & (before.bounds.miny <= south)]
        )


def test_with_an_index_too(output: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "INDEXED", ROWS)
    assert make(output, tmp_path, client).notes == ()
    table, before = open_table(tmp_path), published(output)
    (index,) = table.list_indices()
    assert (index.index_type, index.columns) == ("IvfPq", ["embeddings"])
    for url in before.index[::100]:
        search = table.search(before.loc[url, "embeddings"], vector_column_name="embeddings").metric("cosine")
        assert search.refine_factor(10).limit(1).to_list()[0]["source_url"] == url


def test_the_same_rows_make_the_same_data_files(output: Path, exported: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client)
    assert data_files(tmp_path) == data_files(exported)


def test_what_is_finished_is_left_and_begun_again_only_to_replace_it(
    output: Path, client: Client, tmp_path: Path
) -> None:
    make(output, tmp_path, client)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert make(output, tmp_path, client).written == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    make(output, tmp_path, client, tiles="33TUL", overwrite=True)
    assert open_table(tmp_path).count_rows() == SIDE**2
    run_export(str(output), str(tmp_path), Asked(cluster=client, overwrite=True), SMALL)
    assert not (tmp_path / lance.TABLE).exists()


def test_a_commit_that_was_interrupted_is_made_again(
    output: Path, exported: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lance, "_why_no_index", stop)
        with pytest.raises(KeyboardInterrupt):
            make(output, tmp_path, client)
    # What a worker that was killed leaves.
    shutil.copy(next((tmp_path / lance.FOLDER).iterdir()), tmp_path / lance.FOLDER / "stray.lance")
    result = make(output, tmp_path, client)
    assert (result.exit_status, result.written) == (0, 0)
    assert open_table(tmp_path).count_rows() == ROWS
    assert open_table(tmp_path).version == 1
    assert data_files(tmp_path) == data_files(exported)


def test_in_a_store(output: Path, client: Client, s3: str) -> None:
    assert make(output, f"{s3}/copy", client).rows == ROWS
    before = published(output)
    found = open_table(f"{s3}/copy").search(before["embeddings"].iloc[7], vector_column_name="embeddings").limit(1)
    assert found.to_list()[0]["source_url"] == before.index[7]


def test_without_its_package_it_says_what_to_install(
    output: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(InputError, match=r"pip install 'daskembed\[lance\]'"):
        make(output, tmp_path, client)
    assert not [*tmp_path.iterdir()]
