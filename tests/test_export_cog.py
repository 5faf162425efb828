"""Exports as Cloud Optimized GeoTIFFs: each pixel is the vector of a published patch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from distributed import Client
from rio_cogeo import cog_validate

import daskembed
from daskembed.errors import InputError, TileError
from daskembed.exports import cog
from daskembed.exports.cog import parse_components
from daskembed.exports.state import PlannedFile
from daskembed.geo.mgrs import tile_corner
from daskembed.runs.export_options import Asked
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.runs.results import Progress
from daskembed.sources.region import read_region
from daskembed.testing import write_published

TILES, DAYS = ("33TUL", "01JBG"), ("2024-06-01", "2024-07-01")
SIDE, GRID, DIMS = 3, 4, 6
"""Chips along a tile's side, patches along a chip's, components."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of two tiles, one of them at 180 degrees, at level `patch`."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=SIDE, shape=(GRID, GRID, DIMS), days=DAYS)
    return folder


def make(output: Path, to: Path, client: Client, **asked: object) -> ExportResult:
    return run_export(str(output), str(to), Asked(cluster=client, format="cog", **asked))


@pytest.fixture(scope="module")
def exported(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    result = make(output, folder, client)
    assert (result.exit_status, result.written, result.rows) == (0, 4, len(TILES) * SIDE**2 * len(DAYS))
    return folder


def pixels(output: Path, tile: str, day: str, side: int = SIDE) -> np.ndarray:
    """What is published of a tile and date, put together: ``(component, y, x)``."""
    (path,) = output.glob(f"{tile}_*.gpq")
    table = pq.read_table(path)
    vectors = table["embeddings"].combine_chunks().to_numpy_ndarray()
    whole = np.full((side * GRID, side * GRID, DIMS), np.nan, vectors.dtype)
    for url, when, patches in zip(table["source_url"].to_pylist(), table["date"].to_pylist(), vectors, strict=True):
        if when.isoformat() == day:
            row, col = divmod(int(url.rpartition("/")[2].split("_")[2]) - 1, side)
            whole[row * GRID : (row + 1) * GRID, col * GRID : (col + 1) * GRID] = patches
    return np.moveaxis(whole, -1, 0)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("day", DAYS)
def test_pixels_are_the_published_vectors_in_their_place(output: Path, exported: Path, tile: str, day: str) -> None:
    epsg, west, north = tile_corner(tile)
    with rasterio.open(exported / f"{tile}_{day.replace('-', '')}_v001.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels(output, tile, day))
        assert file.crs.to_epsg() == epsg
        # Footprints are published in degrees, whose last digits are of about a nanometre.
        step = 5120 / GRID
        np.testing.assert_allclose(file.transform[:6], (step, 0, west, 0, -step, north), atol=1e-3)
        assert file.descriptions == tuple(f"embedding_{number}" for number in range(DIMS))
        assert (file.dtypes[0], np.isnan(file.nodata)) == ("float32", True)
        assert (file.tags()["date"], file.tags()["tile"]) == (day, tile)


def test_rio_cogeo_finds_them_sound(exported: Path) -> None:
    paths = sorted(exported.glob("*.tif"))
    assert len(paths) == 4
    assert [cog_validate(path, strict=True) for path in paths] == [(True, [], [])] * 4


def test_large_ones_have_overviews_of_published_vectors(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=9, shape=(64, 64, 2))
    make(tmp_path / "output", tmp_path / "to", client)
    (path,) = (tmp_path / "to").glob("*.tif")
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file:
        whole = file.read()
        assert file.overviews(1)
        assert file.shape == (576, 576)
    with rasterio.open(path, overview_level=0) as file:
        assert set(map(tuple, file.read().reshape(2, -1).T)) <= set(map(tuple, whole.reshape(2, -1).T))


def test_some_components(output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, components="4,0-1", tiles="33TUL", dates="2024-07-01/2024-07-31")
    (path,) = tmp_path.glob("*.tif")
    assert path.name == "33TUL_20240701_v001.tif"
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), pixels(output, "33TUL", DAYS[1])[[4, 0, 1]])
        assert file.descriptions == ("embedding_4", "embedding_0", "embedding_1")


def test_a_region_leaves_nodata_around_its_chips(output: Path, client: Client, tmp_path: Path) -> None:
    epsg, west, north = tile_corner("33TUL")
    assert epsg == 32633
    make(output, tmp_path, client, region=read_region("12.43,45.97,12.48,46.02"), dates="2024-06-01/2024-06-01")
    (path,) = tmp_path.glob("*.tif")
    with rasterio.open(path) as file:
        found = file.read()
        there = pixels(output, "33TUL", DAYS[0])
        x, y = (round(edge) for edge in ((file.transform.c - west) / 1280, (north - file.transform.f) / 1280))
        part = there[:, y : y + file.height, x : x + file.width]
        known = np.isfinite(found)
        np.testing.assert_array_equal(found[known], part[known])
        assert 0 < known.all(axis=0).sum() <= there[0].size


def test_groups_are_bands_one_after_another(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=1, shape=(2, GRID, GRID, 3))
    make(tmp_path / "output", tmp_path / "to", client, components="1,5")
    (path,) = (tmp_path / "to").glob("*.tif")
    vectors = pq.read_table(next((tmp_path / "output").glob("*.gpq")))["embeddings"].combine_chunks()
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), vectors.to_numpy_ndarray()[0, [0, 1], :, :, [1, 2]])


def test_values_of_float16_are_kept(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=2, shape=(GRID, GRID, DIMS), dtype="float16")
    make(tmp_path / "output", tmp_path / "to", client)
    (path,) = (tmp_path / "to").glob("*.tif")
    table = pq.read_table(next((tmp_path / "output").glob("*.gpq")))
    assert table["embeddings"].type.value_type == "halffloat"
    with rasterio.open(path) as file:
        assert file.dtypes[0] == "float32"
        first = table["embeddings"].combine_chunks().to_numpy_ndarray()[0]
        np.testing.assert_array_equal(file.read()[:, :GRID, :GRID], np.moveaxis(first, -1, 0).astype(np.float32))


def test_whole_numbers_carry_what_they_stand_for(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=2, shape=(GRID, GRID, DIMS))
    calibrated = daskembed.calibrate(str(tmp_path / "output"), cluster=client).calibration
    make(tmp_path / "output", tmp_path / "to", client, dtype="int8", components="5,2")
    (path,) = (tmp_path / "to").glob("*.tif")
    assert cog_validate(path, strict=True) == (True, [], [])
    whole = pixels(tmp_path / "output", "33TUL", DAYS[0], side=2)[[5, 2]]
    with rasterio.open(path) as file:
        assert (file.dtypes, file.nodata) == (("int8", "int8"), -128)
        assert file.scales == (calibrated.scale[5], calibrated.scale[2])
        assert file.offsets == (calibrated.offset[5], calibrated.offset[2])
        step, zero = (np.array(each)[:, None, None] for each in (file.scales, file.offsets))
        found = file.read().astype(float)
        assert (np.abs(found) < 127).any()
        inside = np.abs((whole - zero) / step) < 127
        assert (
            np.abs(found * step + zero - whole)[inside] <= (0.5001 * np.broadcast_to(step, whole.shape))[inside]
        ).all()


def test_what_is_finished_is_left_and_what_is_not_is_made(
    output: Path, exported: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cog.write_tile

    def fail(export: Any, planned: PlannedFile, tile: Any) -> tuple[int, str]:
        if planned.name == "33TUL_20240601_v001.tif":
            raise TileError("not now")
        return whole(export, planned, tile)

    with monkeypatch.context() as patch:
        patch.setattr(cog, "write_tile", fail)
        result = make(output, tmp_path, client)
    assert (result.exit_status, result.failed) == (4, {"33TUL_20240601_v001.tif": "not now"})
    result = make(output, tmp_path, client)
    assert (result.exit_status, result.written, len(result.files)) == (0, 1, 4)
    assert contents(tmp_path) == contents(exported)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tif")}


def test_a_level_without_patches_is_refused(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=1, shape=(DIMS,))
    with pytest.raises(InputError, match="level 'mean' has no patches"):
        make(tmp_path / "output", tmp_path / "to", client)


def test_components_that_are_not_there_are_refused(output: Path, client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`components` has 6, and vectors have components 0 to 5"):
        make(output, tmp_path, client, components="3-6")
    with pytest.raises(InputError, match="`components` become bands of `format='cog'`"):
        run_export(str(output), str(tmp_path), Asked(cluster=client, components="1"))


def test_components_are_numbers_and_ranges() -> None:
    assert parse_components("0,1,2") == (0, 1, 2)
    assert parse_components(" 0-3, 2 - 4,9") == (0, 1, 2, 3, 4, 9)
    for wrong in ("", "a", "3-1", "1,,2", "-1", "1-", [0, 1], 3):
        with pytest.raises(InputError, match="expected numbers from 0"):
            parse_components(wrong)  # type: ignore[arg-type]


def test_patches_as_rows_are_the_same_pixels(output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, rows="patch", tiles="33TUL")
    for day in DAYS:
        with rasterio.open(tmp_path / f"33TUL_{day.replace('-', '')}_v001.tif") as file:
            np.testing.assert_array_equal(file.read(), pixels(output, "33TUL", day))


def test_a_published_file_that_changes_meanwhile_is_told(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "out", ["33TUL"], side=2, shape=(2, 2, 3))

    def change(state: Progress) -> None:
        if state.units[0] == "files" and not state.finished:
            write_published(tmp_path / "out", ["33TUL"], side=3, shape=(2, 2, 3))

    result = make(tmp_path / "out", tmp_path / "to", client, progress=change)
    assert result.exit_status == 4
    assert "bytes, and had" in result.failed["33TUL_20240601_v001.tif"]
