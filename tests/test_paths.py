"""Folders, files and URLs as users give them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import shapely
from distributed import Client, LocalCluster

import daskembed
from daskembed.errors import InputError
from daskembed.testing import write_chips, write_published

TILE = "33TUL"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, [TILE], side=2, shape=(4,))
    return folder


def test_published_files_by_paths(output: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles.txt").write_text(f"{TILE}\n")
    there, tiles = str(output), tmp_path / "tiles.txt"
    assert daskembed.status(output, tiles) == daskembed.status(there, TILE)
    first = next(output.glob("*.gpq"))
    assert daskembed.validate(first) == daskembed.validate(str(first))
    assert len(daskembed.open_embeddings(output)) == 4
    basis = daskembed.principal_components(output, tiles=tiles)
    assert basis == daskembed.principal_components(there)
    (tmp_path / "basis.json").write_text(basis.to_json())
    made = daskembed.preview(output, to=tmp_path / "page", basis=tmp_path / "basis.json")
    assert made.page == str(tmp_path / "page" / "index.html")
    area = gpd.read_parquet(first, columns=["geometry"]).head(1)
    area.to_file(tmp_path / "area.geojson")
    found = daskembed.search(output, like=tmp_path / "area.geojson", region=tmp_path / "area.geojson", center=False)
    assert found.attrs["search"]["output"] == there
    assert daskembed.write_stac(output) == daskembed.write_stac(there)


def test_a_copy_and_a_calibration_by_paths(output: Path, tmp_path: Path, client: Client) -> None:
    made = daskembed.calibrate(output, to=tmp_path / "calibration.json", cluster=client)
    assert made.file == str(tmp_path / "calibration.json")
    done = daskembed.export(
        output, to=tmp_path / "copy", dtype="int8", calibration=tmp_path / "calibration.json", cluster=client
    )
    assert (done.output, done.to, done.rows) == (str(output), str(tmp_path / "copy"), 4)


def test_chips_by_paths(tmp_path: Path, client: Client) -> None:
    write_chips(tmp_path / "chips", rows=1, cols=1)
    (index,) = daskembed.index_tile(TILE, tmp_path / "chips").itertuples()
    area = gpd.GeoDataFrame(geometry=[index.geometry], crs=4326)
    area.to_file(tmp_path / "area.geojson")
    assert TILE in daskembed.tiles_of_region(tmp_path / "area.geojson")
    cubes = daskembed.write_cubes([TILE], source=tmp_path / "chips", output=tmp_path / "cubes", cluster=client)
    assert cubes.exit_status == 0
    run = daskembed.run(
        TILE, source=tmp_path / "chips", output=tmp_path / "out", checkpoint="untrained:least", cluster=client
    )
    assert (run.exit_status, run.output) == (0, str(tmp_path / "out"))
    assert shapely.equals(daskembed.open_embeddings(tmp_path / "out").compute().geometry.iloc[0], index.geometry)


@pytest.mark.parametrize("given", [3, b"/tmp", None])
def test_what_is_neither_text_nor_a_path_is_refused(given: Any) -> None:
    for call in (daskembed.status, daskembed.validate, daskembed.open_embeddings, daskembed.write_stac):
        with pytest.raises(InputError, match="expected a folder, a file or a URL, as text or as a path"):
            call(given)


@pytest.mark.parametrize("option", ["source", "output"])
def test_options_that_are_neither_are_refused(option: str) -> None:
    with pytest.raises(InputError, match="3: expected a folder, a file or a URL, as text or as a path"):
        daskembed.run(TILE, checkpoint="untrained:least", **{option: 3})  # type: ignore[typeddict-item]
