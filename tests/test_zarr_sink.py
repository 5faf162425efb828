"""Zarr stores: their content read by xarray, rioxarray and GDAL, their form, and what interrupted writers leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 (it gives xarray's objects `.rio`)
import shapely
import xarray as xr
import zarr
from distributed import Client, LocalCluster

import daskembed
from daskembed.cli.main import main
from daskembed.encoders.description import Description
from daskembed.errors import ConflictError, InputError, StorageError, TileError
from daskembed.output import geoparquet, zarr_store
from daskembed.output import zarr as sink
from daskembed.output.geozarr import digest
from daskembed.output.parts import write_part
from daskembed.output.protocol import Published, get_format, parse_formats
from daskembed.output.published import published_files
from daskembed.output.state import read_receipt, receipt_path, write_receipt
from daskembed.output.validate.check import files_of, validate
from daskembed.runs import settings
from daskembed.runs import tiles as pipeline
from daskembed.sensors.bands import CLAY_V0
from daskembed.storage.stores import Storage
from daskembed.table import block_frame
from daskembed.testing import write_chips

NAME = "33TUL_20190401_20190416_v001.zarr"
FILE = NAME.replace(".zarr", ".gpq")
DAYS = (date(2019, 4, 1), date(2019, 4, 16))
WEST, NORTH, CHIP = 299_995.0, 5_100_005.0, 5120.0
ROOT = f"{NAME}/zarr.json"
TINY: dict[str, Any] = {"checkpoint": "untrained:least", "precision": "fp32"}


def provenance(level: str = "patch", **more: Any) -> dict[str, Any]:
    dims = {"patch": ["row", "col", "embedding"], "group": ["group", "row", "col", "embedding"]}[level]
    labels = {"labels": {"group": ["rgb", "rededge", "nir", "swir", "sar", "dem"]}} if level == "group" else {}
    made = {
        "encoder": "clay-v0",
        "checkpoint": "hf://made-with-clay/Clay@2033cf5/v0/a.ckpt",
        "level": level,
        "dims": dims,
        "window": 512,
        "dtype": "float32",
        "tile": "33TUL",
        "identity": {"source": "s3://clay-tiles-02/02"},
    }
    return made | labels | more


SHAPES = {"patch": (16, 16, 8), "group": (6, 16, 16, 8)}


def frame_of(
    cells: list[tuple[int, int, int]],
    shape: tuple[int, ...],
    *,
    bad: dict[int, str] | None = None,
    rejected: dict[int, str] | None = None,
    seed: int = 0,
    **changed: dict[int, Any],
) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """A partition of chips at (day, row, col) of a tile's grid of chips, and their vectors."""
    vectors = np.random.default_rng(seed).standard_normal((len(cells), *shape), np.float32)
    west = np.array([WEST + CHIP * col for _, _, col in cells])
    north = np.array([NORTH - CHIP * row for _, row, _ in cells])
    columns: dict[str, Any] = {
        "source_url": [f"/chips/{DAYS[day]}/{21 * row + col + 1:04d}.tif" for day, row, col in cells],
        "date": [DAYS[day] for day, _, _ in cells],
        "epsg": np.full(len(cells), 32633),
        "west": west,
        "south": north - CHIP,
        "east": west + CHIP,
        "north": north,
    }
    for name, values in changed.items():
        for number, value in values.items():
            columns[name][number] = value
    columns["chip_url"] = columns["source_url"]
    rows = gpd.GeoDataFrame(columns, geometry=[shapely.box(12, 45, 12.1, 45.1)] * len(cells), crs="OGC:CRS84")
    reasons, rules = (
        np.array([(given or {}).get(n) for n in range(len(cells))], dtype=object) for given in (bad, rejected)
    )
    counts, notes = np.zeros(len(cells), np.int64), np.full(len(cells), None, object)
    clouds = np.full(len(rows), np.nan)
    return block_frame(vectors, reasons, rules, counts, notes, clouds, rows=rows), vectors


GRID = [(day, row, col) for day in (0, 1) for row in (0, 1) for col in (0, 1, 2)]


def parts_of(output: Storage, frame: gpd.GeoDataFrame, shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[str]:
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append(f"_daskembed/parts/33TUL_v001/k/{number:05d}.parquet")
        with output.open_writer(parts[-1]) as file:
            write_part(frame.iloc[start : start + size], file, shape)
        start += size
    assert start == len(frame)
    return parts


def make(
    output: Storage,
    cells: list[tuple[int, int, int]] = GRID,
    level: str = "patch",
    *,
    sizes: tuple[int, ...] | None = None,
    made: dict[str, Any] | None = None,
    **given: Any,
) -> tuple[Published, np.ndarray]:
    frame, vectors = frame_of(cells, SHAPES[level], **given)
    parts = parts_of(output, frame, SHAPES[level], sizes or (len(cells),))
    return sink.publish(output, NAME, parts, provenance(level) | (made or {})), vectors


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "output"))


@pytest.fixture(params=SHAPES)
def level(request: pytest.FixtureRequest) -> str:
    return request.param


def open_store(output: Storage, name: str = NAME) -> xr.Dataset:
    return xr.open_zarr(output.url_of(name))


def objects(output: Storage) -> dict[str, bytes]:
    return {entry.path: output.get(entry.path) for entry in output.entries(NAME)}


# Content, read by others


def test_sink_by_name() -> None:
    assert get_format("zarr") is sink
    assert sink.SUFFIX == ".zarr"


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1,) * 12])
def test_every_patch_is_in_its_place(output: Storage, level: str, sizes: tuple[int, ...]) -> None:
    _, vectors = make(output, level=level, sizes=sizes)
    cube = open_store(output)
    groups = ("group",) if level == "group" else ()
    assert cube.embeddings.dims == ("time", *groups, "embedding", "y", "x")
    assert cube.embeddings.shape == (2, *SHAPES[level][:-3], 8, 32, 48)
    assert cube.embeddings.dtype == np.float32
    values = cube.embeddings.transpose("time", *groups, "y", "x", "embedding").to_numpy()
    for (day, row, col), expected in zip(GRID, vectors, strict=True):
        found = values[day, ..., 16 * row : 16 * row + 16, 16 * col : 16 * col + 16, :]
        np.testing.assert_array_equal(found, expected)


def test_coordinates(output: Storage, level: str) -> None:
    make(output, level=level)
    cube = open_store(output)
    assert list(cube.time.to_numpy()) == [np.datetime64("2019-04-01"), np.datetime64("2019-04-16")]
    np.testing.assert_array_equal(cube.x, WEST + 160 + 320 * np.arange(48))
    np.testing.assert_array_equal(cube.y, NORTH - 160 - 320 * np.arange(32))
    if level == "group":
        assert list(cube.group.to_numpy()) == ["rgb", "rededge", "nir", "swir", "sar", "dem"]
        assert cube.sel(group="sar").embeddings.sizes == {"time": 2, "embedding": 8, "y": 32, "x": 48}


def test_rioxarray_knows_the_crs_and_the_place(output: Storage) -> None:
    make(output)
    cube = open_store(output)
    assert cube.rio.crs == cube.embeddings.rio.crs == rasterio.crs.CRS.from_epsg(32633)
    assert cube.embeddings.rio.transform() == rasterio.Affine(320, 0, WEST, 0, -320, NORTH)
    assert cube.embeddings.rio.bounds() == (WEST, NORTH - 2 * CHIP, WEST + 3 * CHIP, NORTH)
    assert np.isnan(cube.embeddings.rio.nodata)
    assert list(cube.data_vars) == ["embeddings"]


def test_gdal_reads_a_raster_of_some_components(output: Storage, tmp_path: Path) -> None:
    _, vectors = make(output, GRID[:-1])
    cube = open_store(output)
    cube.embeddings.isel(time=1, embedding=slice(0, 3)).rio.to_raster(tmp_path / "three.tif")
    with rasterio.open(tmp_path / "three.tif") as raster:
        assert (raster.count, raster.shape, raster.crs.to_epsg()) == (3, (32, 48), 32633)
        assert raster.transform == rasterio.Affine(320, 0, WEST, 0, -320, NORTH)
        assert np.isnan(raster.nodata)
        pixels = raster.read()
    np.testing.assert_array_equal(pixels[:, :16, :16], vectors[6][..., :3].transpose(2, 0, 1))
    assert np.isnan(pixels[:, 16:, 32:]).all()


def test_cells_without_a_chip_are_nan(output: Storage, level: str) -> None:
    cells = [cell for cell in GRID if cell not in ((0, 0, 1), (1, 1, 1))]
    make(output, cells, level, bad={1: "is gone"}, rejected={8: "40 % cloud"})
    empty = {(0, 0, 1), (1, 1, 1), cells[1], cells[8]}
    values = open_store(output).embeddings.transpose("time", ..., "y", "x", "embedding").to_numpy()
    for day, row, col in GRID:
        found = values[day, ..., 16 * row : 16 * row + 16, 16 * col : 16 * col + 16, :]
        assert np.isnan(found).all() if (day, row, col) in empty else np.isfinite(found).all()


def test_the_grid_just_holds_the_chips(output: Storage) -> None:
    make(output, [(0, 3, 7), (1, 5, 4)])
    cube = open_store(output)
    assert cube.embeddings.rio.bounds() == (WEST + 4 * CHIP, NORTH - 6 * CHIP, WEST + 8 * CHIP, NORTH - 3 * CHIP)


def test_windows_of_a_chip(output: Storage) -> None:
    """Four rows a chip, each with a place of its own: none of them is where the order of rows would have it."""
    shape = (32, 32, 4)
    cells = [(0, row, col) for row, col in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3))]
    frame, vectors = frame_of(cells, shape)
    parts = parts_of(output, frame, shape, (3, 5))
    sink.publish(output, NAME, parts, provenance(window=256, windows=4))
    cube = open_store(output)
    for (_, row, col), expected in zip(cells, vectors, strict=True):
        found = cube.embeddings[0, :, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))
    assert cube.attrs["daskembed"]["chips"] == 2
    assert cube.attrs["geoemb:chip_layout"]["chip_size"] == [8, 8]


# Metadata


def test_metadata_are_consolidated(output: Storage) -> None:
    make(output)
    root = json.loads(output.get(ROOT))
    assert (root["zarr_format"], root["node_type"]) == (3, "group")
    assert set(root["consolidated_metadata"]["metadata"]) == {"embeddings", "time", "y", "x", "spatial_ref"}
    with xr.open_zarr(output.url_of(NAME), consolidated=True) as cube:
        assert cube.embeddings.shape == (2, 8, 32, 48)


def test_conventions(output: Storage) -> None:
    make(output)
    attributes = open_store(output).attrs
    assert [one["uuid"] for one in attributes["zarr_conventions"]] == [
        "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    ]
    assert {name: value for name, value in attributes.items() if name.startswith("geoemb:")} == {
        "geoemb:type": "chip",
        "geoemb:dimensions": 8,
        "geoemb:model": "https://huggingface.co/made-with-clay/Clay/resolve/2033cf5/v0/a.ckpt",
        "geoemb:source_data": "s3://clay-tiles-02/02",
        "geoemb:data_type": "float32",
        "geoemb:gsd": 10.0,
        "geoemb:chip_layout": {"layout_type": "regular_grid", "chip_size": [32, 32], "stride": [32, 32]},
    }
    assert attributes["proj:code"] == "EPSG:32633"
    assert attributes["spatial:dimensions"] == ["y", "x"]
    assert attributes["spatial:transform"] == [320, 0, WEST, 0, -320, NORTH]
    assert attributes["spatial:shape"] == [32, 48]
    assert attributes["spatial:bbox"] == [WEST, NORTH - 2 * CHIP, WEST + 3 * CHIP, NORTH]


@pytest.mark.parametrize(
    ("checkpoint", "model"),
    [
        ("clay.ckpt", "https://github.com/Clay-foundation/model"),
        ("untrained:tiny:0", "https://github.com/Clay-foundation/model"),
        ("s3://clay-model-ckpt/v0/a.ckpt", "s3://clay-model-ckpt/v0/a.ckpt"),
        ("hf://a/b@main/c/d.ckpt", "https://huggingface.co/a/b/resolve/main/c/d.ckpt"),
    ],
)
def test_model_is_a_url(output: Storage, checkpoint: str, model: str) -> None:
    make(output, made={"checkpoint": checkpoint, "identity": {"source": "/data/my chips"}})
    attributes = open_store(output).attrs
    assert (attributes["geoemb:model"], attributes["geoemb:source_data"]) == (model, "file:///data/my%20chips")


def test_provenance_is_that_of_the_footer(output: Storage, level: str) -> None:
    frame, _ = frame_of(GRID, SHAPES[level])
    parts = parts_of(output, frame, SHAPES[level], (12,))
    for one, name in ((sink, NAME), (geoparquet, FILE)):
        one.publish(output, name, parts, provenance(level))
    assert sink.read_provenance(output, NAME) == geoparquet.read_provenance(output, FILE)
    assert sink.read_provenance(output, NAME)["shape"] == list(SHAPES[level])
    assert open_store(output).attrs["daskembed"] == sink.read_provenance(output, NAME)


def test_provenance_of_others_stores(output: Storage) -> None:
    for name, data in (("a", b"{}"), ("b", b"no JSON"), ("c", b'{"attributes": {"daskembed": 1}}'), ("d", b"[]")):
        output.put(f"{name}.zarr/zarr.json", data)
        assert sink.read_provenance(output, f"{name}.zarr") is None
    assert sink.read_provenance(output, "e.zarr") is None


# Chunks, shards and bytes


def test_a_chunk_is_a_chip_and_a_shard_is_a_row_of_chips(output: Storage, level: str) -> None:
    make(output, level=level)
    array = zarr.open_array(output.url_of(NAME), path="embeddings", mode="r")
    one = (1,) if level == "group" else ()
    six = (6,) if level == "group" else ()
    assert array.chunks == (1, *one, 8, 16, 16)
    assert array.shards == (1, *six, 8, 16, 48)
    zeros = "0/0" if level == "group" else "0"
    shards = {f"{NAME}/embeddings/c/{day}/{zeros}/{row}/0" for day in (0, 1) for row in (0, 1)}
    assert {path for path in objects(output) if "/c/" in path and "embeddings" in path} == shards


def test_long_rows_are_cut(output: Storage, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, vectors = make(output, level=level)
    whole = open_store(output).embeddings.to_numpy()
    monkeypatch.setattr(zarr_store, "SHARD_BYTES", 2 * 4 * vectors[0].size)
    make(output, level=level)
    assert zarr.open_array(output.url_of(NAME), path="embeddings", mode="r").shards[-1] == 32
    np.testing.assert_array_equal(open_store(output).embeddings.to_numpy(), whole)


def test_a_shard_of_nothing_is_not_written(output: Storage) -> None:
    make(output, [(0, 0, 0), (0, 2, 0), (1, 1, 0)])
    shards = [path for path in objects(output) if "embeddings/c/" in path]
    assert shards == [f"{NAME}/embeddings/c/{place}" for place in ("0/0/0/0", "0/0/2/0", "1/0/1/0")]


def test_publishing_holds_a_row_group_and_a_shard(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And reads each row group once, where the rows are in the order of the grid."""
    monkeypatch.setattr("daskembed.output.parts.ROW_GROUP_BYTES", 2 * 4 * 16 * 16 * 8)  # two rows
    read: list[tuple[str, int]] = []
    read_row_group = sink.pq.ParquetFile.read_row_group

    def counting(self: Any, group: int, **options: Any) -> Any:
        read.append((id(self), group))
        return read_row_group(self, group, **options)

    monkeypatch.setattr(sink.pq.ParquetFile, "read_row_group", counting)
    make(output, sizes=(5, 7))
    assert len(read) == 3 + 4


def test_same_rows_same_bytes(tmp_path: Path, s3: str) -> None:
    first, _ = make(Storage(str(tmp_path / "first")), sizes=(12,))
    again, _ = make(Storage(str(tmp_path / "again")), sizes=(4, 1, 7))
    there, _ = make(Storage(f"{s3}/out"), sizes=(6, 6))
    other, _ = make(Storage(str(tmp_path / "other")), seed=1)
    assert first == again == there
    assert other.sha256 != first.sha256


def test_published_says_what_the_store_is(output: Storage) -> None:
    result, _ = make(output)
    found = objects(output)
    assert (result.name, result.size) == (NAME, sum(map(len, found.values())))
    paths = sorted(path.removeprefix(f"{NAME}/") for path in found)
    lines = "".join(f"{path} {hashlib.sha256(found[f'{NAME}/{path}']).hexdigest()}\n" for path in paths)
    assert result.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert sink.size(output, NAME) == result.size


def test_float16(output: Storage, level: str) -> None:
    large, vectors = make(output, level=level)
    result, _ = make(output, level=level, made={"dtype": "float16"})
    cube = open_store(output)
    assert cube.embeddings.dtype == np.float16
    found = cube.embeddings[1, ..., :16, :16].transpose(..., "y", "x", "embedding")
    np.testing.assert_array_equal(found, vectors[6].astype(np.float16))
    assert cube.attrs["geoemb:data_type"] == cube.attrs["daskembed"]["dtype"] == "float16"
    assert np.isnan(cube.embeddings.rio.nodata)
    assert result.size < 0.7 * large.size


def test_a_value_beyond_float16_is_an_error(output: Storage) -> None:
    frame, vectors = frame_of(GRID, SHAPES["patch"])
    vectors[4, 3, 2, 1] = 1e6
    frame, _ = frame_of(GRID, SHAPES["patch"])
    frame["embeddings"] = block_frame(
        vectors,
        np.full(12, None),
        np.full(12, None),
        np.zeros(12, np.int64),
        np.full(12, None),
        np.full(12, np.nan),
        rows=frame[["source_url", "chip_url", "date", "geometry"]],
    )["embeddings"]
    parts = parts_of(output, frame, SHAPES["patch"], (12,))
    with pytest.raises(
        TileError, match=r"0023\.tif has the value 1e\+06, and float16 ends at 65504: give `dtype='float32'`"
    ):
        sink.publish(output, NAME, parts, provenance(dtype="float16"))
    assert sink.size(output, NAME) is None


# What does not go into a store


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epsg": {5: 32634}}, r"0024.tif is in EPSG:32634, .*0001.tif in EPSG:32633: a Zarr store has one grid"),
        (
            {"west": {5: WEST + 2 * CHIP + 5}, "east": {5: WEST + 3 * CHIP + 5}},
            r"0024.tif lies 32.016 cells east and 16",
        ),
        ({"east": {4: WEST + 2 * CHIP + 100}}, r"0023.tif has cells of 326.25 x 320, .*0001.tif of 320 x 320"),
        ({"date": {6: DAYS[0]}}, r"2019-04-16/0001.tif and .*2019-04-01/0001.tif overlap on 2019-04-01"),
    ],
)
def test_rows_that_share_no_grid(output: Storage, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TileError, match=message):
        make(output, **changed)
    assert objects(output) == {}


def test_an_earlier_store_stays_if_the_rows_share_no_grid(output: Storage) -> None:
    result, _ = make(output)
    with pytest.raises(TileError):
        make(output, epsg={5: 32634})
    assert sink.size(output, NAME) == result.size


def description(levels: dict[str, dict[str, int]]) -> Description:
    return Description("Clay v9", CLAY_V0, 10.0, 256, levels, (0.0,), 1)


def test_levels_without_a_grid() -> None:
    mean, patch = {"window": 4, "embedding": 8}, {"window": 4, "row": 32, "col": 32, "embedding": 8}
    with pytest.raises(InputError) as error:
        sink.check_level(description({"mean": mean, "patch": patch}), "mean")
    assert str(error.value) == (
        "`format='zarr'` needs a grid of patches, and level mean of Clay v9 has none: choose `level` patch, or `format="
        "'geoparquet'`"
    )
    sink.check_level(description({"mean": mean, "patch": patch}), "patch")
    with pytest.raises(InputError, match="has none: choose `format='geoparquet'`"):
        sink.check_level(description({"mean": mean}), "mean")


def test_chips_are_looked_at_before_they_are_embedded() -> None:
    frame, _ = frame_of(GRID, SHAPES["patch"], epsg={5: 32634})
    about = description({"patch": {"window": 4, "row": 8, "col": 8, "embedding": 8}})
    with pytest.raises(TileError, match=r"0024\.tif is in EPSG:32634"):
        sink.check_chips(frame, about, "patch")
    frame.loc[5, "quarantined"] = "is gone"
    sink.check_chips(frame, about, "patch")


def test_formats() -> None:
    assert parse_formats("zarr, geoparquet,zarr") == ("geoparquet", "zarr")
    with pytest.raises(InputError) as error:
        parse_formats("zarr,shape,")
    assert str(error.value) == ("unknown `format` 'shape', '': choose geoparquet or zarr, or both as geoparquet,zarr")


# Complete or absent


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, output: Storage) -> Storage:
    return output if request.param == "local" else Storage(f"{request.getfixturevalue('s3')}/out")


def test_the_root_is_written_last_and_removed_first(place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    put, delete = Storage.put, Storage.delete
    frame, _ = frame_of(GRID, SHAPES["patch"])
    parts = parts_of(place, frame, SHAPES["patch"], (12,))
    monkeypatch.setattr(Storage, "put", lambda self, path, data: (done.append(("put", path)), put(self, path, data)))
    monkeypatch.setattr(
        Storage, "delete", lambda self, paths: (done.extend(("delete", path) for path in paths), delete(self, paths))
    )
    for _ in range(2):
        done.clear()
        sink.publish(place, NAME, parts, provenance())
        assert done[0] == ("delete", ROOT)
        assert done[-1] == ("put", ROOT)
        assert [path for what, path in done if what == "put"].count(ROOT) == 1
        assert "embeddings/c/" in done[1][1]
    done.clear()
    sink.remove(place, NAME)
    assert done[0] == ("delete", ROOT)
    assert place.entries(NAME) == []


def test_a_publish_that_fails_half_way_leaves_no_store(place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = make(place)
    for most in (0, 2, 5, 12):
        left, put = most, Storage.put

        def failing(self: Storage, path: str, data: Any, put: Any = put) -> None:
            nonlocal left
            if path.startswith(NAME):
                if not left:
                    raise StorageError("no")
                left -= 1
            put(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "put", failing)
            with pytest.raises(StorageError):
                make(place)
        assert published_files(place, "001") == {}
        assert make(place)[0] == expected


def test_a_store_made_again_has_no_objects_of_the_earlier_one(place: Storage) -> None:
    make(place, [*GRID, (1, 2, 0)], seed=3)
    place.put(f"{NAME}/embeddings/.0.ab.tmp", b"left by a dead writer")
    again, _ = make(place)
    assert sink.size(place, NAME) == again.size
    make(Storage(f"{place.url}/other"))
    assert {path.partition("/")[2] for path in objects(place)} == {
        path.partition("/")[2] for path in objects(Storage(f"{place.url}/other"))
    }


def test_a_store_of_another_level_is_replaced(place: Storage) -> None:
    make(place)
    again, _ = make(place, level="group")
    assert sink.size(place, NAME) == again.size
    back, _ = make(place)
    assert sink.size(place, NAME) == back.size


def test_an_object_that_goes_while_the_store_is_written(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run swept what it took for a dead writer's: the root must not make a store of the rest."""
    check = zarr_store._check_alone

    def sweep(*given: Any) -> None:
        output.delete([f"{NAME}/embeddings/c/0/0/1/0"])
        check(*given)

    monkeypatch.setattr(zarr_store, "_check_alone", sweep)
    with pytest.raises(StorageError, match="embeddings/c/0/0/1/0 is gone or changed while the store was written"):
        make(output)
    assert sink.size(output, NAME) is None


KILLED = """
import os, signal, sys
from daskembed.output import zarr as sink
from daskembed.storage.stores import Storage
put, left = Storage.put, int(sys.argv[1])

def deadly(self, path, data):
    global left
    if ".zarr/" in path:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    put(self, path, data)

Storage.put = deadly
"""


@pytest.mark.faults
def test_a_publish_that_is_killed(output: Storage) -> None:
    expected, _ = make(output)
    shutil.copytree(output.url, f"{output.url}-killed")
    killed = Storage(f"{output.url}-killed")
    parts = [entry.path for entry in killed.entries("_daskembed/parts")]
    code = f"{KILLED}\nsink.publish(Storage({killed.url!r}), {NAME!r}, {parts!r}, {provenance()!r})"
    for most in (1, 4):
        done = subprocess.run([sys.executable, "-c", code, str(most)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert published_files(killed, "001") == {}
    assert killed.entries(NAME)
    assert sink.publish(killed, NAME, parts, provenance()) == expected


# Runs


@pytest.fixture(scope="module")
def client() -> Any:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def source(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of 33TUL, seven chips of eight good."""
    folder = tmp_path_factory.mktemp("zarr")
    shutil.copytree(chips, folder / "chips")
    write_chips(folder / "chips", date="2022-01-31", rows=2, cols=2)
    (folder / "chips" / "33TUL" / "2022-01-31" / "claytile_33TUL_20220131_v02_0002.tif").write_bytes(b"hello")
    return folder / "chips"


STORE = "33TUL_20190416_20220131_v001.zarr"


def run(client: Any, source: Path, out: Path, **more: Any) -> Any:
    given: dict[str, Any] = {"level": "patch", "format": "geoparquet,zarr", **TINY, **more}
    return daskembed.run("33TUL", source=str(source), output=str(out), cluster=client, **given)


@pytest.fixture(scope="module")
def made(client: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a real run in both formats."""
    out = tmp_path_factory.mktemp("made") / "out"
    result = run(client, source, out)
    assert (result.exit_status, result.chips) == (3, 7)
    assert result.tiles[0].files == (str(out / STORE.replace("zarr", "gpq")), str(out / STORE))
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Storage:
    """A copy of it that a test may change."""
    return Storage(str(shutil.copytree(made, tmp_path / "out")))


def test_a_run_in_both_formats(made: Path) -> None:
    frame = gpd.read_parquet(made / STORE.replace("zarr", "gpq"))
    cube = xr.open_zarr(made / STORE)
    assert len(frame) == 7
    # Where a chip is, by its file's own georeferencing.
    for row in frame.itertuples():
        patches = row.embeddings.reshape(16, 16, 256)
        with rasterio.open(row.source_url) as chip:
            for down, across in ((0, 0), (3, 12), (15, 15)):
                x, y = chip.transform @ (32 * across + 9, 32 * down + 20)
                found = cube.embeddings.sel(time=str(row.date)).sel(x=x, y=y, method="nearest")
                np.testing.assert_array_equal(found.squeeze(), patches[down, across])
    filled = cube.embeddings.notnull().all("embedding").sum(("x", "y"))
    assert list(filled) == [4 * 256, 3 * 256]
    receipt = read_receipt(Storage(str(made)), receipt_path("33TUL", "001"))
    assert [file.name for file in receipt.files] == [STORE.replace("zarr", "gpq"), STORE]
    assert receipt.size == sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) - sum(
        path.stat().st_size for path in (made / "_daskembed").rglob("*") if path.is_file()
    )


def test_a_finished_run_is_skipped_and_a_lost_store_is_made_again(client: Any, source: Path, copy: Storage) -> None:
    again = run(client, source, Path(copy.url))
    assert [(tile.status, len(tile.files)) for tile in again.tiles] == [("skipped", 2)]
    before = read_receipt(copy, receipt_path("33TUL", "001")).files
    copy.delete([f"{STORE}/zarr.json"])
    again = run(client, source, Path(copy.url))
    assert [tile.status for tile in again.tiles] == ["done"]
    assert read_receipt(copy, receipt_path("33TUL", "001")).files == before


@pytest.mark.parametrize(
    ("other", "what"),
    [({"format": "zarr"}, "format geoparquet,zarr, not zarr"), ({"dtype": "float16"}, "dtype float32, not float16")],
)
def test_another_format_or_type_is_refused(
    client: Any, source: Path, copy: Storage, other: dict[str, str], what: str
) -> None:
    with pytest.raises(ConflictError, match=what):
        run(client, source, Path(copy.url), **other)
    copy.delete([receipt_path("33TUL", "001"), STORE.replace("zarr", "gpq")])
    with pytest.raises(ConflictError, match=what):  # the store itself says how it was made
        run(client, source, Path(copy.url), **other)


def test_overwriting_removes_what_is_not_wanted_any_more(client: Any, source: Path, copy: Storage) -> None:
    run(client, source, Path(copy.url), format="geoparquet", dtype="float16", overwrite=True)
    assert sorted(path.name for path in Path(copy.url).iterdir()) == [STORE.replace("zarr", "gpq"), "_daskembed"]
    assert gpd.read_parquet(copy.url_of(STORE.replace("zarr", "gpq"))).embeddings[0].dtype == np.float16
    assert validate(copy.url_of(STORE.replace("zarr", "gpq"))) == []


def test_stores_of_other_dates_and_half_written_ones_are_removed(client: Any, source: Path, copy: Storage) -> None:
    for name in ("33TUL_20180101_20190416_v001.zarr", "33TUL_20180102_20190416_v001.zarr"):
        copy.put(f"{name}/embeddings/c/0", b"half")
    copy.put("33TUL_20180101_20190416_v001.zarr/zarr.json", copy.get(f"{STORE}/zarr.json"))
    copy.put("33TUL_20180101_20190416_v002.zarr/embeddings/c/0", b"of another version")
    run(client, source, Path(copy.url))
    assert copy.folders() == ["33TUL_20180101_20190416_v002.zarr", STORE, "_daskembed"]


def test_parts_that_come_back_through_the_client(
    client: Any, source: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "arrange", lambda client, chosen, tiles: replace(chosen, carried=True))
    result = run(client, source, tmp_path / "out")
    assert result.exit_status == 3
    receipts = [read_receipt(Storage(str(out)), receipt_path("33TUL", "001")) for out in (made, tmp_path / "out")]
    assert receipts[0].files == receipts[1].files


def test_a_tile_whose_values_are_too_large_fails_alone(
    client: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "arrange", lambda client, chosen, tiles: replace(chosen, carried=True))
    monkeypatch.setattr(sink, "publish", lambda *given: (_ for _ in ()).throw(TileError("too large")))
    result = run(client, source, tmp_path / "out")
    assert (result.exit_status, result.tiles[0].reason) == (4, "too large")


RUN = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
import daskembed, least
from distributed import Client, LocalCluster
with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as c, Client(c) as client:
    daskembed.run("33TUL", source=sys.argv[2], output=sys.argv[3], cluster=client, level="patch",
                  format="geoparquet,zarr", checkpoint="untrained:least", precision="fp32")
"""


@pytest.mark.faults
def test_a_run_that_is_killed_while_it_publishes(client: Any, source: Path, tmp_path: Path, made: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"DASK_DASKEMBED__TORCH_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED + RUN, "3", str(source), str(out)], check=False, env=environment
    )
    assert done.returncode == -signal.SIGKILL
    assert (out / STORE / "embeddings" / "c").is_dir()
    assert main(["status", str(out)]) == 3
    (tile,) = daskembed.output.status.status(str(out)).tiles
    assert (tile.status, tile.files, tile.parts_done) == ("unfinished", [STORE.replace("zarr", "gpq")], tile.parts)
    result = run(client, source, out)
    assert (result.exit_status, result.encoded) == (3, 0)
    receipts = [read_receipt(Storage(str(folder)), receipt_path("33TUL", "001")) for folder in (made, out)]
    assert receipts[0].files[1] == receipts[1].files[1]


def test_a_run_to_a_bucket(s3: str, source: Path, made: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as there:
        result = daskembed.run(
            "33TUL", source=str(source), output=f"{s3}/out", cluster=there, level="patch", format="zarr", **TINY
        )
    assert result.exit_status == 3
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    store = ObjectStore(S3Store(s3.removeprefix("s3://"), prefix=f"out/{STORE}", client_options={"allow_http": True}))
    cube, here = xr.open_zarr(store), xr.open_zarr(made / STORE)
    assert cube.rio.crs == here.rio.crs
    np.testing.assert_array_equal(cube.embeddings.to_numpy(), here.embeddings.to_numpy())
    assert validate(f"{s3}/out/{STORE}") == []
    assert files_of(f"{s3}/out") == [f"{s3}/out/{STORE}"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--format", "zarr"],
            "--format zarr needs a grid of patches, and level mean of Clay v0 has none: choose --level",
        ),
        (["--format", "netcdf"], "unknown --format 'netcdf': choose geoparquet or zarr, or both as geoparquet,zarr"),
    ],
)
def test_flags_that_are_refused(
    flags: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tiles", "33TUL", "--source", str(source), "--checkpoint", "untrained:least", "--level", "mean"]
    for command in ("run", "plan"):
        assert main([command, *given, "--output", str(tmp_path / "out"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_types_that_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown `dtype` 'int8': choose one of float32, float16"):
        daskembed.run("33TUL", source=str(source), output=str(tmp_path), dtype="int8", **TINY)


def test_settings_say_format_and_type() -> None:
    chosen = settings.Settings.__dataclass_fields__
    assert (chosen["formats"].default, chosen["dtype"].default) == (("geoparquet",), "float32")


# Validation


def found_in(output: Storage) -> list[tuple[str, str]]:
    return [(finding.check, str(finding)) for finding in validate(output.url_of(STORE))]


def seal(output: Storage) -> None:
    """Make the receipt fit the store."""
    found = {entry.path.removeprefix(f"{STORE}/"): output.get(entry.path) for entry in output.entries(STORE)}
    sha256 = digest({path: hashlib.sha256(data).hexdigest() for path, data in found.items()})
    receipt = read_receipt(output, receipt_path("33TUL", "001"))
    files = [receipt.files[0], Published(STORE, sum(map(len, found.values())), sha256)]
    write_receipt(output, replace(receipt, files=files))


def test_a_sound_store(copy: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert found_in(copy) == []
    assert main(["validate", copy.url]) == 0
    names = (STORE.replace("zarr", "gpq"), STORE)
    assert capsys.readouterr().out == "".join(f"{copy.url_of(name)}: ok\n" for name in names)
    assert main(["validate", f"{copy.url_of(STORE)}/"]) == 0


def test_a_store_of_groups_and_of_float16(client: Any, source: Path, tmp_path: Path) -> None:
    run(client, source, tmp_path, level="group", dtype="float16", format="zarr")
    assert found_in(Storage(str(tmp_path))) == []


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        validate(str(tmp_path / STORE))


SHARD = f"{STORE}/embeddings/c/0/0/1/0"


def test_flipped_bits_are_found(copy: Storage) -> None:
    data, rng = copy.get(SHARD), np.random.default_rng(0)
    for position in rng.choice(len(data), 15, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        copy.put(SHARD, bytes(changed))
        check, message = found_in(copy)[-1]
        assert (check, message[:22]) == ("receipt", "SHA-256 of all objects")


def test_a_shard_that_cannot_be_decoded(copy: Storage) -> None:
    data = copy.get(SHARD)
    copy.put(SHARD, data[:-5] + bytes(5))
    seal(copy)
    (check, message), *_ = found_in(copy)
    assert check == "zarr"
    assert message.startswith("embeddings/c/0/0/1/0 cannot be decoded: ")


def test_a_lost_shard(copy: Storage) -> None:
    copy.delete([SHARD])
    assert [check for check, _ in found_in(copy)] == ["provenance", "receipt", "receipt"]
    seal(copy)
    assert found_in(copy) == [
        ("provenance", "5 rows, the root says 7 chips"),
        ("receipt", "values of 5 windows of chips, the receipt's chips have 7"),
    ]


def test_no_root(copy: Storage) -> None:
    copy.delete([f"{STORE}/zarr.json"])
    assert found_in(copy) == [("zarr", "no zarr.json: it was never finished, or is being written")]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_root(copy: Storage, data: bytes) -> None:
    copy.put(f"{STORE}/zarr.json", data)
    (check, message), *_ = found_in(copy)
    assert check == "zarr"
    assert message.startswith("cannot be opened, it is damaged or no store of ours: ")


def change_values(output: Storage, change: Any) -> None:
    array = zarr.open_array(output.url_of(STORE), path="embeddings", mode="r+")
    change(array)
    seal(output)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, "infinity in embeddings/c/0/0/0/0"),
        (np.nan, "NaN in some components of 1 cells of embeddings/c/0/0/0/0"),
    ],
)
def test_values_that_are_not_finite(copy: Storage, value: float, message: str) -> None:
    def change(array: Any) -> None:
        array[0, 3, 2, 1] = value

    change_values(copy, change)
    assert ("vectors", message) in found_in(copy)


def test_a_chip_that_is_lost_within_a_shard(copy: Storage) -> None:
    def change(array: Any) -> None:
        array[0, :, :16, :16] = np.nan

    change_values(copy, change)
    assert ("receipt", "values of 6 windows of chips, the receipt's chips have 7") in found_in(copy)


def change_metadata(output: Storage, change: Any) -> None:
    """In the array's own metadata and in the consolidated ones."""
    root = json.loads(output.get(f"{STORE}/zarr.json"))
    change(root["consolidated_metadata"]["metadata"], root["attributes"])
    for name, about in root["consolidated_metadata"]["metadata"].items():
        output.put(f"{STORE}/{name}/zarr.json", json.dumps(about).encode())
    output.put(f"{STORE}/zarr.json", json.dumps(root).encode())
    seal(output)


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (lambda m, a: a["daskembed"].update(tile="33TUM"), "provenance", "the root says that it is of tile 33TUM, its"),
        (lambda m, a: a["daskembed"].pop("level"), "provenance", "`daskembed` in the root lacks level"),
        (lambda m, a: a["daskembed"].update(dtype="float16"), "schema", "embeddings is of float32, expected float16"),
        (
            lambda m, a: a.update({"proj:code": "EPSG:32634"}),
            "geometry",
            "spatial_ref says WGS 84 / UTM zone 33N, proj",
        ),
        (
            lambda m, a: m["spatial_ref"]["attributes"].pop("GeoTransform"),
            "geometry",
            "spatial_ref does not have a CRS",
        ),
        (
            lambda m, a: m["spatial_ref"]["attributes"].update(GeoTransform="299000 320 0 5100005 0 -320"),
            "geometry",
            "x[0] is 300155.0, the GeoTransform says 299160.0",
        ),
        (
            lambda m, a: m["embeddings"].update(fill_value=0.0),
            "schema",
            "the fill value of embeddings is 0.0, expected",
        ),
        (
            lambda m, a: m["embeddings"].update(dimension_names=["time", "embedding", "x", "y"]),
            "schema",
            "embeddings has the dimensions time, embedding, x, y, expected time, embedding, y, x",
        ),
        (
            lambda m, a: m["time"]["attributes"].update(units="days since 1972-01-01"),
            "dates",
            "2024-01-31 is outside 2019-04-16 to",
        ),
    ],
)
def test_metadata_that_do_not_fit(copy: Storage, change: Any, check: str, message: str) -> None:
    change_metadata(copy, change)
    assert any(found == check and told.startswith(message) for found, told in found_in(copy)), found_in(copy)


def test_another_tile(copy: Storage) -> None:
    Path(copy.url_of(STORE)).rename(copy.url_of(STORE.replace("33TUL", "33TXL")))
    found = [str(one) for one in validate(copy.url_of(STORE.replace("33TUL", "33TXL")))]
    assert "the root says that it is of tile 33TUL, its name says 33TXL" in found
    assert any(one.startswith("the grid is not at tile 33TXL: expected within 20 km of easting ") for one in found)


# Real chips


@pytest.mark.real
def test_real_chips(client: Any, shared: Path, tmp_path: Path) -> None:
    chips = shared / "data" / "chips"
    result = daskembed.run(
        "29UNU",
        source=str(chips),
        output=str(tmp_path),
        cluster=client,
        level="patch",
        format="geoparquet,zarr",
        **TINY,
    )
    (tile,) = result.tiles
    assert tile.chips == 4
    cube, frame = xr.open_zarr(tile.files[1]), gpd.read_parquet(tile.files[0])
    for row in frame.itertuples():
        with rasterio.open(row.source_url) as chip:
            x, y = chip.transform @ (32 * 5 + 16, 32 * 11 + 16)
            assert cube.rio.crs == chip.crs
        found = cube.embeddings.sel(time=str(row.date)).sel(x=x, y=y, method="nearest").squeeze()
        np.testing.assert_array_equal(found, row.embeddings.reshape(16, 16, -1)[11, 5])
    assert validate(tile.files[1]) == []
