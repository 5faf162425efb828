"""Whole tiles as rasters and Zarr stores: cut into chips that are the same as files of the same pixels."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import re
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numcodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.shutil
import rioxarray  # noqa: F401 (the accessor)
import xarray as xr
from distributed import Client, LocalCluster
from rasterio.transform import Affine

import daskembed
from daskembed import embedding
from daskembed.errors import ChipError, ChipRejectedError, ConflictError, InputError, StorageError, TileError
from daskembed.output.validate.check import validate
from daskembed.runs import settings, stages, summary
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources import cutting, keeping, pieces, rasterfile, scene
from daskembed.sources.keeping import Keeping
from daskembed.sources.pieces import size_of_piece
from daskembed.sources.reading import Reading
from daskembed.sources.registry import list_tile
from daskembed.sources.rules import Rules
from daskembed.storage.stores import Storage
from daskembed.testing import landscape

KEPT = "(`Rules(nan=False)` `on_nan='fill'` keeps it)"
TILE = "33TUL"
DAY = "2019-04-16"
BANDS = CLAY_V0.names
WEST, NORTH = 300_000.0, 5_100_000.0
HEIGHT, WIDTH = 1_100, 1_600
"""Two rows of three chips, and a remainder each way."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A landscape (13, 1100, 1600) in float32."""
    return landscape(HEIGHT, WIDTH, seed=3)


@pytest.fixture(scope="module")
def corner(pixels: np.ndarray) -> np.ndarray:
    """Its first chip and a little more, for tests that read no other."""
    return pixels[:, :600, :600]


def write_raster(path: Path, pixels: np.ndarray, *, names: Any = BANDS, tags: Any = None, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(10, 0, WEST, 0, -10, NORTH)} | profile
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with rasterio.open(path, "w", dtype=profile.pop("dtype", pixels.dtype), **shape, **profile) as file:
        file.write(pixels)
        if names is not None:
            file.descriptions = tuple(names)
        file.update_tags(**({"date": DAY} if tags is None else tags))
    return path


def make_cube(pixels: np.ndarray, days: tuple[str, ...] = (DAY,), names: Any = BANDS) -> xr.Dataset:
    array = xr.DataArray(
        np.stack([pixels + 7 * number for number in range(len(days))]),
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(days, "datetime64[ns]"),
            "band": list(names),
            "y": NORTH - 5 - 10 * np.arange(pixels.shape[1]),
            "x": WEST + 5 + 10 * np.arange(pixels.shape[2]),
        },
        name="pixels",
    )
    return array.to_dataset().rio.write_crs(32633)


def write_zarr(path: Path, cube: xr.Dataset, *, chunk: int = 512, shard: int | None = None, form: int = 3) -> Path:
    encoding: dict[str, Any] = {"chunks": (1, len(cube.band), chunk, chunk), "grid_mapping": "spatial_ref"}
    if shard:
        encoding["shards"] = (1, len(cube.band), shard, shard)
    cube.pixels.encoding.pop("grid_mapping", None)
    cube.to_zarr(path, zarr_format=form, consolidated=False, encoding={"pixels": encoding}, mode="w")
    return path


def index(folder: Path, **options: Any) -> Any:
    return daskembed.index_tile(TILE, str(folder), **options)


def cut(pixels: np.ndarray, number: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The pixels of a chip, by arithmetic of the test's own."""
    across = (pixels.shape[2] - offset[1]) // 512
    top, left = offset[0] + 512 * ((number - 1) // across), offset[1] + 512 * ((number - 1) % across)
    return pixels[:, top : top + 512, left : left + 512]


def numbers_of(frame: Any) -> list[int]:
    return [int(url.rpartition("/")[2]) for url in frame["source_url"]]


# What is read is what was written

DEFLATE = {"compress": "deflate", "zlevel": 1}
FORMS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "striped GeoTIFF": lambda f, p: write_raster(f / f"{TILE}_x.tif", p, interleave="pixel", **DEFLATE),
    "tiled GeoTIFF": lambda f, p: write_raster(f / f"{TILE}.tif", p, tiled=True, **side(256)),
    "large tiles": lambda f, p: write_raster(
        f / TILE / f"T{TILE}.tif", p, tiled=True, blockxsize=1024, blockysize=1024
    ),
    "odd strips": lambda f, p: write_raster(f / f"{TILE}.tif", p, blockysize=300, interleave="band"),
    "uint16 GeoTIFF": lambda f, p: write_raster(f / f"{TILE}.tif", p, dtype="uint16"),
    "VRT": lambda f, p: vrt(f, write_raster(f / "elsewhere.tif", p)),
    "Zarr 3": lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p)),
    "Zarr 3 sharded": lambda f, p: write_zarr(f / f"{TILE}_a.zarr", make_cube(p), chunk=256, shard=1024),
    "Zarr 3 of large chunks": lambda f, p: write_zarr(f / TILE / f"{TILE}.zarr", make_cube(p), chunk=1024),
    "Zarr 2": lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p), form=2),
    "odd chunks": lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p), chunk=366),
    "one file a band": lambda f, p: write_bands(f / TILE / DAY, p),
}


def side(length: int) -> dict[str, int]:
    return {"blockxsize": length, "blockysize": length}


def vrt(folder: Path, path: Path) -> None:
    rasterio.shutil.copy(path, folder / f"{TILE}_{DAY}.vrt", driver="VRT")


def write_bands(folder: Path, pixels: np.ndarray, names: Any = BANDS, **profile: Any) -> None:
    for name, band in zip(names, pixels, strict=True):
        write_raster(folder / f"{name}.tif", band[None], names=None, tags={}, **profile)


@pytest.fixture(scope="module")
def stored(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the pixels in a form, once for all tests, which are not to change it: its folder."""

    @functools.cache
    def write(form: str) -> Path:
        folder = tmp_path_factory.mktemp("stored")
        FORMS[form](folder, np.maximum(np.round(pixels), 1) if form == "uint16 GeoTIFF" else pixels)
        return folder

    return write


@pytest.mark.parametrize("form", FORMS)
def test_chips_are_the_pixels(form: str, pixels: np.ndarray, stored: Callable[[str], Path]) -> None:
    if form == "uint16 GeoTIFF":
        pixels = np.maximum(np.round(pixels), 1)
    frame = index(stored(form))
    assert numbers_of(frame) == [1, 2, 3, 4, 5, 6]
    assert set(frame["date"]) == {date(2019, 4, 16)}
    assert list(frame["source_url"]) == sorted(frame["source_url"])
    for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
        np.testing.assert_array_equal(chip.read(), cut(pixels, number))
    cube = daskembed.open_tile(frame, chips_a_block=2)
    np.testing.assert_array_equal(cube[4].values, cut(pixels, 5))


@pytest.mark.parametrize("offset", [(0, 64), (76, 0), (100, 300)])
@pytest.mark.parametrize(
    "form", ["striped GeoTIFF", "Zarr 3", "Zarr 3 of large chunks", "odd chunks", "one file a band"]
)
def test_an_offset_moves_the_grid(
    form: str, offset: tuple[int, int], pixels: np.ndarray, stored: Callable[[str], Path]
) -> None:
    frame = index(stored(form), offset=offset)
    assert len(frame) == ((HEIGHT - offset[0]) // 512) * ((WIDTH - offset[1]) // 512)
    for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
        np.testing.assert_array_equal(chip.read(), cut(pixels, number, offset))
    first = frame.iloc[0]
    assert (first["west"], first["north"]) == (WEST + 10 * offset[1], NORTH - 10 * offset[0])


@pytest.mark.parametrize("form", ["large tiles", "Zarr 3"])
def test_chips_at_the_edge_are_padded_with_it(form: str, pixels: np.ndarray, stored: Callable[[str], Path]) -> None:
    frame = index(stored(form), edge="pad")
    assert len(frame) == 3 * 4
    last = frame["chip"].iloc[-1].read()
    assert last.shape == (13, 512, 512)
    np.testing.assert_array_equal(last[:, :76, :64], pixels[:, 1024:, 1536:])
    assert (last[:, 76:, 70] == last[:, 75:76, 63]).all()
    assert frame["east"].iloc[-1] == WEST + 10 * 2048
    right, below = 64 / 512, 76 / 512
    shares = [1, 1, 1, right, 1, 1, 1, right, below, below, below, below * right]
    np.testing.assert_allclose(frame["coverage"], shares)
    assert set(index(stored(form))["coverage"]) == {1.0}
    cube = daskembed.open_tile(frame)
    assert list(zip(cube["inside_y"].values, cube["inside_x"].values, strict=True))[3::4] == [(512, 64)] * 2 + [
        (76, 64)
    ]


def test_offsets_that_leave_no_chip_are_refused(stored: Callable[[str], Path]) -> None:
    with pytest.raises(TileError, match=r"has 1100 x 1600 pixels: no chip of 512 x 512 fits in at the offset 700,0"):
        index(stored("Zarr 3"), offset=(700, 0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"offset": (-1, 0)}, "`offset=(-1, 0)`: expected pixels of at least 0, such as 0,256"),
        ({"edge": "wrap"}, "unknown `edge` 'wrap': choose one of drop, pad"),
        ({"rules": Rules(max_cloud=30)}, "`Rules(max_cloud=30)`: expected a share from 0 to 1, such as 0.3"),
    ],
)
def test_ways_of_cutting_that_make_no_sense(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        index(tmp_path, **given)


@pytest.mark.parametrize(
    ("form", "most"),
    [("Zarr 3 of large chunks", 4), ("large tiles", 4), ("striped GeoTIFF", 2), ("odd strips", 2), ("odd chunks", 12)],
)
def test_what_is_stored_together_is_read_once(
    form: str, most: int, stored: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by many readers at once: the blocks of Zarr chunks of 1024 hold 4 chips each, a strip all of a row."""
    read, seen = pieces._read_piece, []

    def counting(of: scene.Scene, rows: slice, cols: slice) -> pieces.Pixels:
        seen.append((rows.start, cols.start))
        return read(of, rows, cols)

    monkeypatch.setattr(pieces, "_read_piece", counting)
    frame = index(stored(form))
    encoder = daskembed.load_encoder("untrained:least", precision="fp32", readers=4)
    embeddings = daskembed.embed(daskembed.open_tile(frame), encoder).compute(scheduler="synchronous")
    assert np.isfinite(embeddings.values).all()
    assert len(seen) == len(set(seen)) <= most


# Their embeddings are those of the chips


def write_chip_files(folder: Path, pixels: np.ndarray, count: int = 6) -> None:
    for number in range(1, count + 1):
        row, col = divmod(number - 1, 3)
        origin = Affine(10, 0, WEST + 5120 * col, 0, -10, NORTH - 5120 * row)
        path = folder / TILE / DAY / f"claytile_{TILE}_20190416_v02_{number:04d}.tif"
        write_raster(path, cut(pixels, number), transform=origin)


def embeddings_of(folder: Path, precision: str, level: str) -> xr.DataArray:
    encoder = daskembed.load_encoder("untrained:least", precision=precision)
    return daskembed.embed(daskembed.open_tile(index(folder)), encoder, level).compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def chip_files(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pixels as files of chips; not to be changed."""
    folder = tmp_path_factory.mktemp("chips")
    write_chip_files(folder, pixels)
    return folder


@pytest.mark.parametrize("form", ["striped GeoTIFF", "Zarr 3 of large chunks"])
@pytest.mark.parametrize("level", ["mean", "patch"])
def test_embeddings_are_those_of_chips(form: str, level: str, chip_files: Path, stored: Callable[[str], Path]) -> None:
    chips, whole = (embeddings_of(folder, "fp32", level) for folder in (chip_files, stored(form)))
    error = np.linalg.norm(whole.values - chips.values) / np.linalg.norm(chips.values)
    assert error <= 1e-6
    for name in ("lat", "lon", "epsg", "date", "west", "north"):
        np.testing.assert_array_equal(whole.coords[name].values, chips.coords[name].values)
    chips, whole = (embeddings_of(folder, "bf16", level) for folder in (chip_files, stored(form)))
    np.testing.assert_array_equal(whole.values, chips.values)


def test_bands_that_are_numbered_go_by_their_position(corner: np.ndarray, tmp_path: Path) -> None:
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(corner).assign_coords(band=np.arange(1, 14)))
    np.testing.assert_array_equal(index(tmp_path)["chip"][0].read(), cut(corner, 1))


def test_a_fill_value_of_zarr_2_is_no_nodata(corner: np.ndarray, tmp_path: Path) -> None:
    at_sea = corner.copy()
    at_sea[12, :100] = 0
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(at_sea), form=2)
    meta = tmp_path / f"{TILE}.zarr/pixels/.zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"fill_value": 0.0}))
    np.testing.assert_array_equal(index(tmp_path)["chip"][0].read(), cut(at_sea, 1))


def test_a_blue_of_zero_is_a_value_of_other_sensors(corner: np.ndarray, tmp_path: Path) -> None:
    holed = np.clip(corner[:4] // 10, 1, 255)
    holed[:, 10, 10] = 0
    encoder = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", sensor="naip", precision="fp32")
    write_raster(tmp_path / f"{TILE}.tif", holed, names=encoder.description.bands)
    index(tmp_path, encoder=encoder)["chip"][0].read()
    with pytest.raises(ChipRejectedError, match="B02 is 0"):
        index(tmp_path, encoder=encoder, rules=Rules(zeros=True))["chip"][0].read()


@pytest.mark.parametrize("form", ["tiled GeoTIFF", "Zarr 3"])
def test_what_was_replaced_is_read_anew(form: str, corner: np.ndarray, tmp_path: Path) -> None:
    FORMS[form](tmp_path, corner)
    index(tmp_path)["chip"][0].read()
    shutil.rmtree(tmp_path / f"{TILE}.zarr", ignore_errors=True)
    (tmp_path / f"{TILE}.tif").unlink(missing_ok=True)
    FORMS[form](tmp_path, corner + 1)
    np.testing.assert_array_equal(index(tmp_path)["chip"][0].read(), cut(corner + 1, 1))


def test_coarser_files_of_large_blocks_are_read_once(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = tuple(band for band in BANDS if band != "B11")
    write_bands(tmp_path / TILE / DAY, pixels[[BANDS.index(band) for band in fine]], fine)
    coarse = Affine(20, 0, WEST, 0, -20, NORTH)
    half = pixels[9:10, ::2, ::2]
    write_bands(tmp_path / TILE / DAY, half, ["B11"], transform=coarse, tiled=True, **side(1024))
    opened, seen = pieces._open, []

    def counting(layer: Any, *state: Any) -> Any:
        read = opened(layer, *state)

        def count(rows: slice, cols: slice) -> np.ndarray:
            if layer.coarser > 1:
                seen.append((rows.start, cols.start))
            return read(rows, cols)

        return count

    monkeypatch.setattr(pieces, "_open", counting)
    for chip in index(tmp_path)["chip"]:
        chip.read()
    assert seen == [(0, 0)]


# Dates


def test_times_of_a_store_are_scenes(pixels: np.ndarray, tmp_path: Path) -> None:
    days = ("2020-01-01", "2020-03-05", "2021-12-31")
    store = write_zarr(tmp_path / f"{TILE}.zarr", make_cube(pixels[:, :600, :600], days))
    frame = index(tmp_path)
    assert list(frame["source_url"]) == [f"{store}#{day}/0001" for day in days]
    for number, chip in enumerate(frame["chip"]):
        np.testing.assert_array_equal(chip.read(), pixels[:, :512, :512] + 7 * number)
    some = index(tmp_path, dates="2020-03-01/2020-12-31")
    assert list(some["date"]) == [date(2020, 3, 5)]
    with pytest.raises(TileError, match=f"no scene of tile {TILE} from 2018-01-01 to 2018-12-31: check `dates`"):
        index(tmp_path, dates="2018-01-01/2018-12-31")


def test_two_times_of_one_day_are_told_apart(pixels: np.ndarray, tmp_path: Path) -> None:
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(pixels[:, :600, :600], ("2020-01-01T10:00", "2020-01-01T10:05:30")))
    frame = index(tmp_path)
    assert [url.rpartition("#")[2] for url in frame["source_url"]] == [
        "2020-01-01T100000/0001",
        "2020-01-01T100530/0001",
    ]


@pytest.mark.parametrize(
    ("name", "tags", "expected"),
    [
        (f"{TILE}.tif", {"date": "2020-02-03"}, date(2020, 2, 3)),
        (f"T{TILE}_20200203T101031.tif", {}, date(2020, 2, 3)),
        (f"{TILE}_2020-02-03.tif", {"date": "2020-02-03"}, date(2020, 2, 3)),
    ],
)
def test_the_date_of_a_raster(name: str, tags: Any, expected: date, pixels: np.ndarray, tmp_path: Path) -> None:
    write_raster(tmp_path / name, pixels[:, :600, :600], tags=tags)
    assert list(index(tmp_path)["date"]) == [expected]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda f, p: write_raster(f / f"{TILE}.tif", p, tags={}),
            r"33TUL.tif tells no date: looked for a `date` tag \(YYYY-MM-DD\) and YYYYMMDD in the name",
        ),
        (
            lambda f, p: write_raster(f / f"{TILE}_20200101.tif", p, tags={"date": "2020-01-02"}),
            "is named after 2020-01-01 and has the `date` tag 2020-01-02: expected one day",
        ),
        (
            lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p).isel(time=0, drop=True).expand_dims("time")),
            "has a dimension time without dates: expected a coordinate of datetime64",
        ),
        (
            lambda f, p: make_cube(p).isel(time=0, drop=True).to_zarr(f / f"{TILE}.zarr", consolidated=False),
            "tells no date: looked for a coordinate time, an attribute date=YYYY-MM-DD and YYYYMMDD in the name",
        ),
    ],
    ids=["raster", "tag against name", "time without dates", "no time"],
)
def test_without_a_date_a_tile_is_refused(make: Any, said: str, corner: np.ndarray, tmp_path: Path) -> None:
    make(tmp_path, corner)
    with pytest.raises(TileError, match=said):
        index(tmp_path)


# Bands, scales, resolutions


def test_bands_are_found_by_name(corner: np.ndarray, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(13)
    extra = [*(BANDS[i] for i in order), "B01", "scl"]
    values = np.concatenate([corner[order], np.full((2, *corner.shape[1:]), 4, np.float32)])
    write_raster(tmp_path / f"{TILE}.tif", values, names=extra)
    write_zarr(tmp_path / "other" / f"{TILE}.zarr", make_cube(values, names=extra))
    for folder in (tmp_path, tmp_path / "other"):
        np.testing.assert_array_equal(index(folder)["chip"][0].read(), cut(corner, 1))


def test_coarser_bands_are_repeated(pixels: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / TILE / DAY
    coarse = {"B05", "B11", "dem"}
    write_bands(
        folder, pixels[[i for i, b in enumerate(BANDS) if b not in coarse]], [b for b in BANDS if b not in coarse]
    )
    halves = pixels[:, ::2, ::2]
    some = [i for i, b in enumerate(BANDS) if b in coarse]
    write_bands(folder, halves[some], [BANDS[i] for i in some], transform=Affine(20, 0, WEST, 0, -20, NORTH))
    expected = pixels.copy()
    expected[some] = halves[some].repeat(2, axis=1).repeat(2, axis=2)
    for offset in ((0, 0), (3, 5)):
        frame = index(tmp_path, offset=offset)
        for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
            np.testing.assert_array_equal(chip.read(), cut(expected, number, offset))


def test_nodata_scale_and_offset_are_honoured(pixels: np.ndarray, tmp_path: Path) -> None:
    stored = np.round(pixels).astype(np.int32)
    stored[:, 600, 700] = -9999
    path = write_raster(tmp_path / f"{TILE}.tif", stored, nodata=-9999)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5,) * 13, (100.0,) * 13
    frame = index(tmp_path, numbers="values")
    with pytest.raises(ChipRejectedError, match=r"B02 is below 0 in 0\.0004% of its pixels, 12 more bands likewise"):
        frame["chip"][4].read()
    free = index(tmp_path, rules=Rules(keep_all=True), numbers="values")["chip"][4]
    values = free.read()
    assert np.isnan(values[:, 88, 188]).all()
    assert np.isnan(values).sum() == 13
    np.testing.assert_allclose(values[:, 0, 0], stored[:, 512, 512] * 0.5 + 100)
    assert free.scene.note == "nodata -9999, times 0.5 plus 100"


def test_integers_stay_integers(corner: np.ndarray, tmp_path: Path) -> None:
    write_raster(tmp_path / f"{TILE}.tif", np.round(corner + 1).astype(np.uint16), nodata=0)
    assert index(tmp_path)["chip"][0].read().dtype == np.uint16


# Rules

CLOUDY = np.zeros((HEIGHT, WIDTH), np.uint8) + 4
CLOUDY[:512, :512] = 9
CLOUDY[:512, 512:700] = 3
CLOUDY[512:1024, :150] = 8


def with_classes(folder: Path, pixels: np.ndarray, form: str) -> None:
    if form == "band":
        values = np.concatenate([pixels, CLOUDY[None].astype(np.float32)])
        write_raster(folder / f"{TILE}.tif", values, names=[*BANDS, "SCL"])
    elif form == "file":
        write_bands(folder / TILE / DAY, pixels)
        write_raster(
            folder / TILE / DAY / "SCL.tif",
            CLOUDY[None, ::2, ::2],
            names=None,
            transform=Affine(20, 0, WEST, 0, -20, NORTH),
        )
    else:
        cube = make_cube(pixels)
        cube["SCL"] = (("time", "y", "x"), CLOUDY[None])
        write_zarr(folder / f"{TILE}.zarr", cube)


@pytest.mark.parametrize("form", ["band", "file", "variable"])
def test_cloudy_chips_are_rejected(form: str, pixels: np.ndarray, tmp_path: Path) -> None:
    with_classes(tmp_path, pixels, form)

    def rejected(**rules: Any) -> dict[int, str]:
        found = {}
        frame = index(tmp_path, rules=Rules(**rules))
        for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
            try:
                chip.read()
            except ChipRejectedError as error:
                found[number] = str(error)
        return found

    assert rejected() == {
        1: "clouds, shadows or nodata in 100.0000% of its pixels (`Rules(max_cloud=0.3)`)",
        2: "clouds, shadows or nodata in 36.7188% of its pixels (`Rules(max_cloud=0.3)`)",
    }
    assert list(rejected(max_cloud=0.29)) == [1, 2, 4]
    assert list(rejected(max_cloud=0.5)) == [1]
    assert rejected(max_cloud=0.0) == {
        1: "clouds, shadows or nodata in 100.0000% of its pixels (`Rules(max_cloud=0)`)",
        2: "clouds, shadows or nodata in 36.7188% of its pixels (`Rules(max_cloud=0)`)",
        4: "clouds, shadows or nodata in 29.2969% of its pixels (`Rules(max_cloud=0)`)",
    }
    assert rejected(max_cloud=1.01) == rejected(keep_all=True) == {}


@pytest.mark.parametrize("form", ["band", "file", "variable"])
def test_the_share_of_clouds_is_known_whatever_is_asked_of_it(form: str, pixels: np.ndarray, tmp_path: Path) -> None:
    with_classes(tmp_path, pixels, form)
    frame = index(tmp_path, rules=Rules(keep_all=True))
    shares = [chip.read_with_findings().cloud for chip in frame["chip"]]
    # Columns 0 to 187 of the second chip are cloud shadow, 0 to 149 of the fourth are cloud.
    assert shares == [1.0, 188 / 512, 0.0, 150 / 512, 0.0, 0.0]


def test_without_a_classification_nothing_is_said_of_clouds(corner: np.ndarray, tmp_path: Path) -> None:
    write_raster(tmp_path / f"{TILE}.tif", corner)
    assert index(tmp_path)["chip"][0].read_with_findings().cloud is None


@pytest.mark.parametrize(
    ("band", "value", "said", "off"),
    [
        ("B02", 0, r"B02 is 0 in 0.0004% of its pixels \(`Rules\(zeros=False\)` keeps it\)", {"zeros": False}),
        (
            "vv",
            np.nan,
            r"vv is NaN in 0.0004% of its pixels",
            {"nan": False},
        ),
        ("dem", np.nan, "dem is NaN", {"nan": False}),
    ],
)
def test_gaps_are_rejected(band: str, value: float, said: str, off: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    holed = pixels[:, :520, :1030].copy()
    holed[BANDS.index(band), 20, 30] = value
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(holed))
    with pytest.raises(ChipRejectedError, match=said):
        index(tmp_path)["chip"][0].read()
    index(tmp_path)["chip"][1].read()
    index(tmp_path, rules=Rules(**off))["chip"][0].read()
    write_chip_files(tmp_path / "chips", holed, 1)
    index(tmp_path / "chips")["chip"][0].read()
    asked = Rules(**dict.fromkeys(off, True))
    with pytest.raises(ChipRejectedError, match=said):
        index(tmp_path / "chips", rules=asked)["chip"][0].read()


# Bad input


def damage(path: Path) -> None:
    """Overwrite the beginning of a chunk: a codec without a checksum does not notice everything elsewhere."""
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    start = len(data) // 2 if largest.suffix == ".tif" else 0
    data[start : start + 64] = b"\xff" * 64
    largest.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path, np.ndarray], Any], str]] = {
    "12 bands without names": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p[:12], names=None),
        "33TUL.tif has 12 bands, expected 13: B02 B03",
    ),
    "a band is missing": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p[:12], names=BANDS[:12]),
        "has the bands B02 .* vv: dem is missing; expected B02",
    ),
    "a Zarr band is missing": (
        lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p[1:], names=BANDS[1:])),
        "33TUL.zarr has the bands B03 .*: B02 is missing",
    ),
    "a band's file is missing": (
        lambda f, p: write_bands(f / TILE / DAY, p[:12], BANDS[:12]),
        "2019-04-16 lacks the files of dem: expected B02.tif, B03.tif",
    ),
    "two CRSs": (
        lambda f, p: (
            write_bands(f / TILE / DAY, p[:12], BANDS[:12]),
            write_bands(f / TILE / DAY, p[12:], BANDS[12:], crs="EPSG:32634"),
        ),
        "holds dem.tif in EPSG:32634 beside others in EPSG:32633",
    ),
    "a band that does not fit": (
        lambda f, p: (
            write_bands(f / TILE / DAY, p[:12], BANDS[:12]),
            write_bands(f / TILE / DAY, p[12:, :500], BANDS[12:]),
        ),
        "holds dem.tif of 500 x 600 pixels of 10 m from 300000, 5100000, which does not fit B02.tif: 600 x 600",
    ),
    "rotated": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p, transform=Affine(10, 1, WEST, 1, -10, NORTH)),
        "has the geotransform 10, 1, 300000, 1, -10, 5100000 in 33TUL.tif: expected one that is not rotated",
    ),
    "20 m": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p, transform=Affine(20, 0, WEST, 0, -20, NORTH)),
        "has pixels of 20 m, expected 10 m: resample it",
    ),
    "no CRS": (lambda f, p: write_raster(f / f"{TILE}.tif", p, crs=None), "has no CRS in 33TUL.tif, expected a proj"),
    "degrees": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p, crs="EPSG:4326"),
        "has the CRS EPSG:4326 in 33TUL.tif, expected a projected one",
    ),
    "a Zarr store of 20 m": (
        lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p).assign_coords(x=np.arange(600) * 20.0)),
        "has pixels of 20 x 10: expected squares",
    ),
    "a Zarr store without CRS": (
        lambda f, p: make_cube(p).drop_vars("spatial_ref").to_zarr(f / f"{TILE}.zarr", consolidated=False),
        "33TUL.zarr has no CRS: looked for spatial_ref",
    ),
    "a variable a band": (
        lambda f, p: make_cube(p).pixels.to_dataset("band").to_zarr(f / f"{TILE}.zarr", consolidated=False),
        r"has the variables B02 \(time, y, x\), .*: expected one with the dimensions \[time,\] band, y, x",
    ),
    "two images of one time": (
        lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p, (DAY, DAY))),
        "has several images of one time: expected a coordinate time of which each value occurs once",
    ),
    "a band a little off": (
        lambda f, p: (
            write_bands(f / TILE / DAY, p[:12], BANDS[:12]),
            write_bands(f / TILE / DAY, p[12:], BANDS[12:], transform=Affine(10, 0, WEST, 0, -10, NORTH + 50)),
        ),
        "holds dem.tif of 600 x 600 pixels of 10 m from 300000, .* which does not fit",
    ),
    "uneven coordinates": (
        lambda f, p: write_zarr(f / f"{TILE}.zarr", make_cube(p).assign_coords(x=np.arange(600.0) ** 2)),
        "has a coordinate x that is not evenly spaced",
    ),
    "complex": (
        lambda f, p: write_raster(f / f"{TILE}.tif", p.astype(np.complex64)),
        "has complex64 pixels, expected integers or floats",
    ),
    "no raster": (
        lambda f, p: (f / f"{TILE}.tif").write_bytes(b"<html>"),
        r"33TUL.tif cannot be opened as a raster \(33TUL.tif\)",
    ),
    "no Zarr": (
        lambda f, p: (f / f"{TILE}.zarr/x").mkdir(parents=True),
        "33TUL.zarr is no Zarr group: expected zarr.json",
    ),
    "an empty group": (lambda f, p: xr.Dataset().to_zarr(f / f"{TILE}.zarr"), r"has the variables \(none\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told(what: str, corner: np.ndarray, tmp_path: Path) -> None:
    make, said = BAD[what]
    make(tmp_path, corner)
    with pytest.raises(TileError, match=said):
        index(tmp_path)


def test_grids_are_told_apart(pixels: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / TILE / DAY
    write_bands(folder, pixels)
    with rasterio.open(folder / "B03.tif", "r+") as file:
        file.transform = Affine(10, 0, WEST + 0.5, 0, -10, NORTH - 5)
    with pytest.raises(TileError) as error:
        index(tmp_path)
    assert "of 10 m from 300000.5, 5099995, which does not fit" in str(error.value)
    assert str(error.value).endswith("of 10 m from 300000, 5100000")


def test_a_bad_scene_leaves_the_others(pixels: np.ndarray, tmp_path: Path) -> None:
    write_raster(tmp_path / f"{TILE}_20200101.tif", pixels[:, :600, :600], tags={})
    write_raster(tmp_path / f"{TILE}_20200202.tif", pixels[:12, :600, :600], names=None, tags={})
    frame = index(tmp_path)
    assert list(frame["quarantined"].isna()) == [True, False]
    assert frame["source_url"][1] == f"{tmp_path}/{TILE}_20200202.tif"
    assert frame["quarantined"][1].startswith("has 12 bands, expected 13")


@pytest.mark.parametrize("form", ["Zarr 3", "Zarr 2", "Zarr 2 gzip", "Zarr 3 sharded", "tiled GeoTIFF"])
def test_damage_is_one_chips(form: str, pixels: np.ndarray, tmp_path: Path) -> None:
    if form == "tiled GeoTIFF":
        write_raster(tmp_path / f"{TILE}.tif", pixels, tiled=True, **side(512), compress="zstd")
    elif form == "Zarr 2 gzip":
        encoding = {"pixels": {"chunks": (1, 13, 512, 512), "compressors": [numcodecs.GZip(1)]}}
        make_cube(pixels).to_zarr(tmp_path / f"{TILE}.zarr", zarr_format=2, consolidated=False, encoding=encoding)
    else:
        FORMS[form](tmp_path, pixels)
    damage(tmp_path)
    bad = {}
    frame = index(tmp_path)
    for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
        try:
            np.testing.assert_array_equal(chip.read(), cut(pixels, number))
        except ChipError as error:
            bad[number] = str(error)
    assert len(bad) == 1
    assert next(iter(bad.values())).startswith("cannot be decoded, its part of the storage is damaged")


@pytest.mark.parametrize("most", [0, 50_000_000, 10**9])
def test_pieces_are_bounded_together(
    most: int, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads read: those that are kept and those that are being read; one may be larger."""
    write_raster(tmp_path / f"{TILE}.tif", pixels, tiled=True, blockxsize=512, blockysize=256)
    frame = index(tmp_path, offset=(100, 100))
    cache, read_piece, seen = Keeping[Any](size_of_piece), pieces._read_piece, []
    size = 13 * 4 * 512**2

    def read(scene: Any, *parts: slice) -> Any:
        seen.append((len(cache._found), sum(cache._sizes.values())))
        return read_piece(scene, *parts)

    monkeypatch.setattr(keeping, "allowance", lambda: most)
    monkeypatch.setattr(pieces, "_pieces", cache)
    monkeypatch.setattr(pieces, "_read_piece", read)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda chip: chip.read(), frame["chip"]))
    for number, chip in zip(numbers_of(frame), found, strict=True):
        np.testing.assert_array_equal(chip, cut(pixels, number, (100, 100)))
        assert chip.base is None, "a view would keep its piece"
    assert max(count for count, _ in seen) == max(1, min(most // size, max(count for count, _ in seen)))
    assert max(held for _, held in seen) <= max(most, size)


def test_a_piece_that_is_damaged_leaves_no_pixels(pixels: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    write_raster(tmp_path / f"{TILE}.tif", pixels, tiled=True, blockxsize=512, blockysize=256)
    frame, alive = index(tmp_path, offset=(100, 100)), []

    def fail(scene: Any, *parts: slice) -> Any:
        held = np.zeros(1000).view(Watched)
        alive.append(weakref.ref(held))
        raise ChipError("is damaged")

    monkeypatch.setattr(pieces, "_read_piece", fail)
    gc.collect()
    gc.disable()
    try:
        for chip in frame["chip"]:
            with contextlib.suppress(ChipError):
                chip.read()
    finally:
        gc.enable()
    assert len(alive) >= len(frame)
    assert not any(one() is not None for one in alive)


class Watched(np.ndarray):
    """Pixels that can be watched."""


def test_a_chunk_that_is_missing_is_no_data(pixels: np.ndarray, tmp_path: Path) -> None:
    """Zarr leaves out chunks that hold nothing but the fill value."""
    store = write_zarr(tmp_path / f"{TILE}.zarr", make_cube(pixels))
    (store / "pixels/c/0/0/1/1").unlink()
    frame = index(tmp_path)
    rejected = {}
    for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
        try:
            np.testing.assert_array_equal(chip.read(), cut(pixels, number))
        except ChipRejectedError as error:
            rejected[number] = str(error)
    assert rejected == {5: f"B02 is NaN in 100.0000% of its pixels, 12 more bands likewise {KEPT}"}


@pytest.mark.parametrize("shard", [None, 512])
@pytest.mark.parametrize("times", [1, 2])
def test_a_chunk_that_a_store_once_denies_is_no_missing_one(
    shard: int | None, times: int, pixels: np.ndarray, s3: str, lying: Any, tmp_path: Path
) -> None:
    """However the answers fall: the window, then what is looked at to tell a missing chunk from fill values."""
    stored = np.maximum(pixels[:, :512, :512].astype(np.uint16), 2)
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(stored), chunk=256, shard=shard)
    upload(s3, tmp_path)
    (chip,) = daskembed.index_tile(TILE, s3)["chip"]
    lying({"/pixels/c/0/0/0/0": (404, b"<Error><Code>NoSuchKey</Code></Error>")}, times)
    np.testing.assert_array_equal(chip.read(), stored)


def test_a_store_that_goes_on_denying_what_it_lists_condemns_no_chip(
    pixels: np.ndarray, s3: str, lying: Any, tmp_path: Path
) -> None:
    stored = np.maximum(pixels[:, :512, :512].astype(np.uint16), 2)
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(stored), chunk=256)
    upload(s3, tmp_path)
    (chip,) = daskembed.index_tile(TILE, s3)["chip"]
    lying({"/pixels/c/0/0/0/0": (404, b"<Error><Code>NoSuchKey</Code></Error>")}, 100)
    with pytest.raises(StorageError, match="says of a chunk that it is not there"):
        chip.read()


def test_what_is_read_again_leaves_other_scenes_alone(pixels: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    """A bad chip has its own scene opened anew, past caches."""
    for day in ("20190416", "20190501"):
        write_raster(tmp_path / f"{TILE}_{day}.tif", pixels, tags={}, tiled=True, blockxsize=512, blockysize=256)
    frame = index(tmp_path, offset=(100, 100))
    chips = [frame["chip"][0], frame["chip"].iloc[-1]]
    assert chips[0].scene != chips[1].scene
    expected = [chip.read() for chip in chips]
    open_layer, opened = rasterfile.RasterLayer.open, []

    def watch(layer: Any, *, fresh: bool = False) -> Any:
        opened.append((Path(layer.url).name, fresh))
        return open_layer(layer, fresh=fresh)

    check, failures = cutting.check_pixels, [ChipError("is bad")]

    def fail_once(*args: Any) -> None:
        if failures:
            raise failures.pop()
        check(*args)

    monkeypatch.setattr(rasterfile.RasterLayer, "open", watch)
    monkeypatch.setattr(cutting, "check_pixels", fail_once)
    kept = {key for key in pieces._pieces._found if key[0] == chips[1].scene.url}
    assert kept
    for chip, found in zip(chips, expected, strict=True):
        np.testing.assert_array_equal(chip.read(), found)
    assert opened == [(f"{TILE}_20190416.tif", True)]
    assert kept <= {*pieces._pieces._found}


def test_pieces_are_kept_where_giving_them_up_makes_no_room(pixels: np.ndarray, monkeypatch: Any) -> None:
    cache = Keeping[Any](size_of_piece)
    done: Future[Any] = Future()
    done.set_result(None)
    cache._found.update({("done",): done, ("read",): Future()})
    cache._sizes.update({("done",): 10, ("read",): 50})
    monkeypatch.setattr(keeping, "allowance", lambda: 70)
    assert not cache._fits(30)
    assert ("done",) in cache._found
    assert cache._fits(20)
    assert ("done",) not in cache._found


def test_chunks_that_are_too_large_are_refused(stored: Callable[[str], Path], monkeypatch: Any) -> None:
    folder = stored("Zarr 3 of large chunks")
    monkeypatch.setattr(scene, "MOST_PIECE_BYTES", 10_000_000)
    with pytest.raises(
        TileError, match=r"is stored in blocks of 1024 x 1024 pixels, of which 0\.1 GB would have to be"
    ):
        index(folder)


def upload(url: str, folder: Path) -> None:
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        Storage(url).put(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.mark.parametrize("form", ["striped GeoTIFF", "Zarr 3 sharded", "one file a band"])
def test_whole_tiles_in_a_bucket(form: str, pixels: np.ndarray, stored: Callable[[str], Path], s3: str) -> None:
    upload(f"{s3}/tiles", stored(form))
    frame = daskembed.index_tile(TILE, f"{s3}/tiles")
    assert all(url.startswith(f"{s3}/tiles/") for url in frame["source_url"])
    for number, chip in zip(numbers_of(frame), frame["chip"], strict=True):
        np.testing.assert_array_equal(chip.read(), cut(pixels, number))


# Cubes of them


@pytest.mark.parametrize("form", ["large tiles", "one file a band"])
def test_a_cube_of_a_whole_tile_has_all_its_pixels(
    form: str, pixels: np.ndarray, stored: Callable[[str], Path], client: Client, tmp_path: Path
) -> None:
    result = daskembed.write_cubes(TILE, source=str(stored(form)), output=str(tmp_path / "cubes"), cluster=client)
    assert result.exit_status == 0
    cube = xr.open_zarr(tmp_path / "cubes" / f"{TILE}.zarr")["pixels"]
    np.testing.assert_array_equal(cube[0].values, pixels)
    again = index(tmp_path / "cubes")
    assert numbers_of(again) == [1, 2, 3, 4, 5, 6]
    for number, chip in zip(numbers_of(again), again["chip"], strict=True):
        np.testing.assert_array_equal(chip.read(), cut(pixels, number))


def test_damage_anywhere_in_a_chip_of_a_cube_is_noticed(chips: Path, client: Client, tmp_path: Path) -> None:
    result = daskembed.write_cubes(TILE, source=str(chips), output=str(tmp_path), cluster=client)
    assert result.exit_status == 0
    (shard,) = (path for path in (tmp_path / f"{TILE}.zarr/pixels/c").rglob("*") if path.is_file())
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    # Behind the chunks of a shard lies its index.
    for place in rng.integers(0, len(whole) - 1000, 12):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(data)
        bad = []
        for chip in index(tmp_path)["chip"]:
            try:
                chip.read()
            except ChipRejectedError:
                raise
            except ChipError as error:
                bad.append(str(error))
        assert len(bad) == 1
        assert bad[0].startswith("cannot be decoded, its part of the storage is damaged")


# Runs


@pytest.fixture(scope="module")
def client() -> Any:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def run(source: Path, output: Path, client: Client, **options: Any) -> Any:
    chosen = {"checkpoint": "untrained:least", "precision": "fp32", "cluster": client} | options
    return daskembed.run(TILE, source=str(source), output=str(output), **chosen)


def test_a_refused_tile_counts_as_its_chips_where_a_file_would_become_shorter(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    stored = np.maximum(np.round(pixels), 1).astype(np.int16)
    write_raster(tmp_path / f"{TILE}_20190416.tif", stored, tags={})
    bad = write_raster(tmp_path / f"{TILE}_20190501.tif", stored[:12], names=None, tags={})
    encoder = daskembed.load_encoder("untrained:least", precision="fp32")
    places = Storage(str(tmp_path)), Storage(str(tmp_path / "out"))
    chosen = settings.Settings(*places, encoder, "mean", "quarantine", Reading(), "001", 64)
    found = stages._look(chosen, TILE, None, [], {}, None)
    assert found is not None
    assert list(found[0].quarantined) == [str(bad)]
    with pytest.raises(TileError, match=r"6 of its 12 chips would newly be quarantined.*20190501.tif has 12 bands"):
        stages._look(chosen, TILE, None, ["earlier.parquet"], {}, None)
    assert stages._look(chosen, TILE, None, ["earlier.parquet"], found[0].quarantined, None) is not None
    assert stages._look(replace(chosen, max_quarantined=1), TILE, None, ["earlier.parquet"], {}, None) is not None


def test_what_is_finished_beside_a_refused_tile_stays_so_whatever_messages_call_arguments(tmp_path: Path) -> None:
    pixels = landscape(512, 512, seed=3)
    write_raster(tmp_path / f"{TILE}_20190416.tif", pixels, tags={})
    bad = write_raster(tmp_path / f"{TILE}_20190501.tif", pixels[:, :300], tags={})
    listing = list_tile(TILE, Storage(str(tmp_path)), Reading())
    frame = index(tmp_path).set_index("source_url")
    said = "has 300 x 512 pixels: no chip of 512 x 512 fits in at the offset 0,0 ({} takes parts of chips)"
    assert frame["quarantined"][str(bad)] == said.format("`edge='pad'`")
    # What receipts were written with when messages had flags.
    good, refused = listing.entries
    digest = frame["etag"][str(bad)].split()[0]
    entries = (good, replace(refused, etag=f"{digest} {said.format('--edge pad')}"))
    assert listing.fingerprint == hashlib.sha256(repr((listing.storage.url, entries)).encode()).hexdigest()


def test_a_run_tells_of_rejected_and_bad_chips_and_of_what_it_did(
    pixels: np.ndarray, tmp_path: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = np.maximum(np.round(pixels), 1).astype(np.int16)
    stored[:10, :5, :5] = -1
    stored[9, 600:605, 600:605] = 0
    write_raster(tmp_path / f"{TILE}_20190416.tif", stored, nodata=-1, tags={})
    write_raster(tmp_path / f"{TILE}_20190501.tif", stored[:12], names=None, tags={})
    result = run(tmp_path, tmp_path / "out", client)
    assert (result.exit_status, result.chips) == (3, 5)
    store = f"{tmp_path}/{TILE}_20190416.tif#2019-04-16"
    assert result.rejected == {
        f"{store}/0001": f"B02 is below 0 in 0.0095% of its pixels, 9 more bands likewise {KEPT}"
    }
    assert list(result.quarantined) == [f"{tmp_path}/{TILE}_20190501.tif"]
    receipt = json.loads((tmp_path / "out/_daskembed/receipts" / f"{TILE}_v001.json").read_text())
    assert receipt["rejected"] == result.rejected
    zero = f"{store}/0005: B12 is 0 in 0.0095% of its pixels"
    left_out = "10.6 % of the pixels of the image are in no chip (`edge='drop'`, `offset=(0, 0)`)"
    assert receipt["notes"] == [f"{store}: nodata -1", f"{store}: {left_out}", zero]
    told = summary.summary(result)
    assert f"note         {store}: nodata -1\nnote         {store}: {left_out}\n" in told
    assert "rejected     1 (the receipts say why)" in told
    # The dates of its name are those in the file.
    assert Path(result.tiles[0].file).name == f"{TILE}_20190416_20190416_v001.gpq"
    frame = gpd.read_parquet(result.tiles[0].file)
    assert list(frame["source_url"]) == [f"{store}/{number:04d}" for number in range(2, 7)]
    assert run(tmp_path, tmp_path / "out", client).tiles[0].status == "skipped"
    for rules, told in ((Rules(keep_all=True), "keep_all True"), (Rules(max_cloud=0.0), "max_cloud 0.0")):
        with pytest.raises(ConflictError, match=f"rules all, not {told}"):
            run(tmp_path, tmp_path / "out", client, rules=rules)


def test_padded_chips_are_told(pixels: np.ndarray, tmp_path: Path, client: Client) -> None:
    """In the receipt, and in the footer, which those of other runs have nothing of."""
    pixels = pixels.copy()
    pixels[0, 1024:, 1536:] = 0
    write_raster(tmp_path / f"{TILE}_20190416.tif", pixels)
    store = f"{tmp_path}/{TILE}_20190416.tif#2019-04-16"
    result = run(tmp_path, tmp_path / "out", client, edge="pad")
    assert list(result.rejected) == [f"{store}/0012"]
    assert result.tiles[0].notes == (
        f"{store}: 6 of its 12 chips reach beyond the image: its last pixels fill them up",
    )
    made = json.loads(pq.read_metadata(result.tiles[0].file).metadata[b"daskembed"])
    right, below = 64 / 512, round(76 / 512, 4)
    shares = {4: right, 8: right, 9: below, 10: below, 11: below}
    assert made["padded"] == {f"{store}/{number:04d}": share for number, share in shares.items()}
    assert validate(result.tiles[0].file) == []
    whole = run(tmp_path, tmp_path / "whole", client)
    assert "padded" not in json.loads(pq.read_metadata(whole.tiles[0].file).metadata[b"daskembed"])


def test_images_that_are_cut_alike_share_a_note(tmp_path: Path) -> None:
    plain = np.ones((13, HEIGHT, WIDTH), np.float32)
    write_zarr(tmp_path / f"{TILE}.zarr", make_cube(plain, ("2019-04-16", "2019-05-01", "2019-06-01")))
    listing = list_tile(TILE, Storage(str(tmp_path)), Reading(edge="pad", offset=(1, 0)))
    assert listing.coverage == (
        f"{tmp_path}/{TILE}.zarr#2019-04-16 and 2 more: 0.0909 % of the pixels of the image are in no chip "
        "(`edge='pad'`, `offset=(1, 0)`)",
        f"{tmp_path}/{TILE}.zarr#2019-04-16 and 2 more: 6 of its 12 chips reach beyond the image: its last pixels fill "
        "them up",
    )


def test_a_tile_that_changed_is_made_again(corner: np.ndarray, tmp_path: Path, client: Client) -> None:
    store = write_zarr(tmp_path / f"{TILE}.zarr", make_cube(corner))
    assert run(tmp_path, tmp_path / "out", client).encoded == 1
    assert run(tmp_path, tmp_path / "out", client).encoded == 0
    assert store == write_zarr(store, make_cube(corner + 1))
    assert run(tmp_path, tmp_path / "out", client).encoded == 1


def test_a_tile_with_none_that_can_be_used_fails_alone(pixels: np.ndarray, tmp_path: Path, client: Client) -> None:
    write_raster(tmp_path / f"{TILE}.tif", pixels[:12], names=None)
    result = run(tmp_path, tmp_path / "out", client)
    assert result.exit_status == 4
    assert result.tiles[0].reason.startswith(f"{tmp_path}/{TILE}.tif has 12 bands, expected 13")


def test_a_vrt_whose_source_was_rewritten_is_made_again(pixels: np.ndarray, tmp_path: Path, client: Client) -> None:
    FORMS["VRT"](tmp_path, pixels[:, :600, :600])
    assert run(tmp_path, tmp_path / "out", client).encoded == 1
    assert run(tmp_path, tmp_path / "out", client).encoded == 0
    write_raster(tmp_path / "elsewhere.tif", pixels[:, 100:700, :600])
    assert run(tmp_path, tmp_path / "out", client).encoded == 1


def test_a_raster_that_lies_elsewhere_is_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    there = {"crs": "EPSG:32631", "transform": Affine(10, 0, 600_000, 0, -10, 4_000_000)}
    write_raster(tmp_path / f"{TILE}_20190416.tif", pixels[:, :600, :600], **there)
    with pytest.raises(TileError, match=rf"is not at tile {TILE}: its bounds in EPSG:32631 are 600000, "):
        index(tmp_path)
    write_raster(tmp_path / f"{TILE}_20190421.tif", pixels[:, :600, :600], tags={"date": "2019-04-21"})
    frame = index(tmp_path)
    assert list(frame["quarantined"].notna()) == [True, False]


def test_chips_of_a_raster_beyond_its_tile_are_told(tmp_path: Path) -> None:
    """An image of more than the tile is taken whole, and the receipt says how much of it is elsewhere."""
    naip = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", sensor="naip", precision="fp32")
    wide = np.zeros((4, 512, 13_000), np.uint8)
    write_raster(tmp_path / f"{TILE}.tif", wide, names=("red", "green", "blue", "nir"), compress="deflate")
    frame = index(tmp_path, encoder=naip)
    # The chip that begins 122.88 km east of the square's western edge is the first whose western edge is beyond.
    assert frame["quarantined"].isna().all()
    (told,) = stages.beyond_tile(TILE, frame)
    assert told.startswith(f"1 of 25 chips are not at tile {TILE}: expected within 20 km of easting 300000 to 400000")
    assert not stages.beyond_tile(TILE, frame.iloc[:24])


def test_pixels_of_feet(tmp_path: Path) -> None:
    """Of New York's state plane in US survey feet, at tile 18TWL; the encoder is told metres."""
    naip = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", sensor="naip", precision="fp32")
    place = {"crs": "EPSG:2263", "transform": Affine(3, 0, 980_000, 0, -3, 200_000)}
    write_raster(tmp_path / "18TWL.tif", np.zeros((4, 512, 512), np.uint8), names=naip.description.bands, **place)
    frame = daskembed.index_tile("18TWL", str(tmp_path), encoder=naip)
    assert frame["quarantined"].isna().all()
    assert tuple(frame[["west", "south", "east", "north"]].iloc[0]) == (980_000, 198_464, 981_536, 200_000)
    assert (frame["lon"][0], frame["lat"][0]) == pytest.approx((-74.0, 40.71), abs=0.05)
    cube = daskembed.open_tile(frame)
    assert embedding._windows(cube, 2).resolution == pytest.approx([3 * 0.3048006096])
    write_raster(tmp_path / "18TWL.tif", np.zeros((13, 512, 512), np.uint16), **place)
    with pytest.raises(TileError, match=r"has pixels of 0.9144018\d+ m \(3 in the unit of EPSG:2263\), expected 10 m"):
        daskembed.index_tile("18TWL", str(tmp_path))


def test_a_plan_counts_the_chips_of_a_whole_tile(stored: Callable[[str], Path], tmp_path: Path) -> None:
    planned = daskembed.plan(
        TILE, source=str(stored("Zarr 3")), output=str(tmp_path / "out"), checkpoint="untrained:least", device="cpu"
    )
    assert (planned.chips, planned.chips_to_do) == (6, 6)
    left_out = "10.6 % of the pixels of the image are in no chip (`edge='drop'`, `offset=(0, 0)`)"
    assert planned.notes == (f"{stored('Zarr 3')}/{TILE}.zarr#{DAY}: {left_out}",)
    assert f"\nnote         {planned.notes[0]}\n" in summary.describe_plan(planned)
