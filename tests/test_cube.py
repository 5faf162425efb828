"""The lazy cube of an index: what it holds, and that nothing is read before it is asked for."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import xarray as xr

import daskembed
from daskembed.errors import ChipError, InputError
from daskembed.sources import geotiff
from daskembed.sources.frame import INDEX_COLUMNS
from daskembed.testing import refuse_to_compute


@pytest.fixture(scope="module")
def index(chips: Path) -> gpd.GeoDataFrame:
    """The index of four chips."""
    return daskembed.index_tile("33TUL", str(chips))


@pytest.fixture(scope="module")
def expected(index: gpd.GeoDataFrame) -> np.ndarray:
    """The pixels of the four chips, read by rasterio alone."""
    pixels = []
    for url in index["source_url"]:
        with rasterio.open(url) as file:
            pixels.append(file.read())
    return np.stack(pixels)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of the chips that are read, in the order in which their reading begins."""
    read_chip, seen, lock = geotiff.read_chip, [], threading.Lock()

    def counting(url: str, bands: tuple[int, ...], *listed: Any) -> Any:
        with lock:
            seen.append(url)
        return read_chip(url, bands, *listed)

    monkeypatch.setattr(geotiff, "read_chip", counting)
    return seen


def fake_index(count: int) -> gpd.GeoDataFrame:
    """An index of chips that do not exist."""
    names = [f"/nowhere/33TUL/2019-04-16/claytile_33TUL_20190416_v02_{n + 1:04d}.tif" for n in range(count)]
    columns = {
        "source_url": names,
        "source": "geotiff",
        "date": [pd.Timestamp("2019-04-16").date()] * count,
        "epsg": pd.array([32633] * count, dtype="Int32"),
        "lat": np.linspace(45, 46, count),
        "lon": np.linspace(12, 13, count),
        "west": np.linspace(300_000, 400_000, count),
        "south": 5_000_000.0,
        "east": np.linspace(305_120, 405_120, count),
        "north": 5_005_120.0,
        "coverage": 1.0,
        "chip": [geotiff.GeotiffChip(name, geotiff.BANDS, tuple(range(1, 14))) for name in names],
        "size": range(9_000_000, 9_000_000 + count),
        "etag": [f'"{n:032x}"' for n in range(count)],
        "quarantined": pd.Series([None] * count, dtype=object),
    }
    return gpd.GeoDataFrame(columns, geometry=[shapely.box(12, 45, 12.1, 45.1)] * count, crs="OGC:CRS84")


def test_nothing_is_read_before_it_is_asked_for(index: gpd.GeoDataFrame, reads: list[str]) -> None:
    with dask.config.set(scheduler=refuse_to_compute):
        cube = daskembed.open_tile(index, chips_a_block=2)
        repr(cube), cube._repr_html_(), cube.nbytes, cube.dtype
        derived = [
            cube.isel(chip=1),
            cube.isel(chip=[0, 2], y=slice(0, 10)),
            cube.sel(band="B08"),
            cube.mean(("y", "x")),
            cube.astype("float64") / 10_000,
            cube.where(cube > 0),
            cube.chunk(chip=1),
            xr.concat([cube, cube], "chip"),
        ]
    assert all(array.chunks is not None for array in derived)
    assert reads == []


def test_the_strict_scheduler_refuses(index: gpd.GeoDataFrame) -> None:
    cube = daskembed.open_tile(index)
    with dask.config.set(scheduler=refuse_to_compute), pytest.raises(AssertionError, match="lazy was computed"):
        cube.compute()


ALONG_CHIP = ("source_url", "epsg", "lat", "lon", "west", "south", "east", "north", "geometry")


def test_form_and_coordinates(index: gpd.GeoDataFrame) -> None:
    cube = daskembed.open_tile(index, chips_a_block=3)
    assert cube.dims == ("chip", "band", "y", "x")
    assert cube.shape == (4, 13, 512, 512)
    assert cube.chunks == ((3, 1), (13,), (512,), (512,))
    assert cube.dtype == np.float32
    assert cube.name == "chips"
    assert set(cube.coords) == {"chip", "band", *ALONG_CHIP, "date", "datetime", "inside_y", "inside_x"}
    assert list(cube.coords["chip"].values) == [0, 1, 2, 3]
    assert list(cube.coords["band"].values) == list(geotiff.BANDS)
    for name in ALONG_CHIP:
        assert cube.coords[name].dims == ("chip",)
        assert list(cube.coords[name].values) == list(index[name])
    assert set(cube.coords["inside_y"].values) == set(cube.coords["inside_x"].values) == {512}
    assert cube.coords["date"].dtype.kind == "M"
    assert list(cube.coords["date"].values.astype("datetime64[D]").astype(object)) == list(index["date"])


@pytest.mark.parametrize("chips_a_block", [1, 2, 3, 64])
def test_values_are_those_of_the_files(
    index: gpd.GeoDataFrame, expected: np.ndarray, reads: list[str], chips_a_block: int
) -> None:
    cube = daskembed.open_tile(index, chips_a_block=chips_a_block)
    computed = cube.compute()
    assert type(computed.data) is np.ndarray
    assert computed.dtype == np.float32
    np.testing.assert_array_equal(computed.data, expected)
    assert sorted(reads) == list(index["source_url"])


SELECTIONS: dict[str, tuple[Any, list[int]]] = {
    "one": (np.s_[2], [2]),
    "last": (np.s_[-1], [3]),
    "first of a block": (np.s_[0], [0]),
    "slice within a block": (np.s_[0:1], [0]),
    "slice over blocks": (np.s_[1:3], [1, 2]),
    "every other": (np.s_[::2], [0, 2]),
    "list": (np.s_[[3, 0]], [3, 0]),
    "list within a block": (np.s_[[1, 0]], [1, 0]),
    "mask": (np.array([True, False, False, True]), [0, 3]),
    "one band of one chip": (np.s_[1, 4], [1]),
    "some bands": (np.s_[1, [12, 0]], [1]),
    "window": (np.s_[3, 2:5, 100:200, -1], [3]),
    "window of two chips": (np.s_[1:3, :, 256:], [1, 2]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_read_what_they_need(
    index: gpd.GeoDataFrame, expected: np.ndarray, reads: list[str], selection: str
) -> None:
    key, needed = SELECTIONS[selection]
    cube = daskembed.open_tile(index, chips_a_block=2)
    values = cube[key].values
    np.testing.assert_array_equal(values, expected[key])
    assert values.dtype == np.float32
    if isinstance(key, tuple | slice | int):
        assert sorted(reads) == sorted(index["source_url"][row] for row in needed)
    else:
        # Dask picks rows by number out of whole blocks.
        assert set(reads) >= {index["source_url"][row] for row in needed}


OPERATIONS: dict[str, Any] = {
    "add": lambda a: a + 1,
    "add from the left": lambda a: 1 + a,
    "astype": lambda a: a.astype("float64"),
    "compare": lambda a: a > 1000,
    "negate": lambda a: -a,
    "transpose": lambda a: a.transpose("x", "y", "band", "chip"),
    "isfinite": np.isfinite,
    "maximum": lambda a: a.max(("band", "y", "x")),
    "clip": lambda a: a.clip(0, 1000),
    "where": lambda a: a.where(a > 500, 0.0),
    "index": lambda a: (a.sel(band="B08") - a.sel(band="B04")) / (a.sel(band="B08") + a.sel(band="B04")),
    "coarsen": lambda a: a.coarsen(y=32, x=32).max(),
    "rechunk": lambda a: a.chunk(chip=1, band=13, y=256, x=256) if a.chunks else a,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("chips_a_block", [1, 2], ids=["two blocks", "one block"])
def test_operations_of_xarray(
    index: gpd.GeoDataFrame, expected: np.ndarray, operation: str, chips_a_block: int
) -> None:
    cube = daskembed.open_tile(index.iloc[:2], chips_a_block=chips_a_block)
    operate = OPERATIONS[operation]
    simple = xr.DataArray(expected[:2], dims=cube.dims, coords={"band": list(geotiff.BANDS)})
    lazy, direct = operate(cube), operate(simple)
    assert lazy.chunks is not None
    computed = lazy.compute()
    assert type(computed.data) is np.ndarray
    assert computed.dtype == direct.dtype
    np.testing.assert_array_equal(computed.data, direct.data)


def test_mean(index: gpd.GeoDataFrame, expected: np.ndarray) -> None:
    mean = daskembed.open_tile(index, chips_a_block=3).mean(("y", "x"), dtype="float64")
    np.testing.assert_allclose(mean.values, expected.mean((2, 3), dtype="float64"), rtol=1e-12)


def test_numpy_takes_a_cube(index: gpd.GeoDataFrame, expected: np.ndarray) -> None:
    cube = daskembed.open_tile(index.iloc[:1])
    np.testing.assert_array_equal(np.asarray(cube), expected[:1])
    np.testing.assert_array_equal(np.asarray(cube.data[0]), expected[0])


def test_bands_of_a_file_come_in_the_encoders_order(index: gpd.GeoDataFrame, expected: np.ndarray) -> None:
    turned = index.copy()
    turned["chip"] = [
        replace(chip, numbers=tuple(range(13, 0, -1)), scales=chip.scales[::-1]) for chip in index["chip"]
    ]
    np.testing.assert_array_equal(daskembed.open_tile(turned)[0].values, expected[0, ::-1])


def test_same_index_same_name(index: gpd.GeoDataFrame, chips: Path) -> None:
    name = daskembed.open_tile(index).data.name
    assert daskembed.open_tile(index.copy()).data.name == name
    assert daskembed.open_tile(daskembed.index_tile("33TUL", str(chips))).data.name == name
    assert daskembed.open_tile(pickle.loads(pickle.dumps(index))).data.name == name


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("etag", '"other"'),
        ("size", 1),
        ("source_url", "/elsewhere/claytile_33TUL_20190416_v02_0001.tif"),
        ("chip", geotiff.GeotiffChip("claytile_33TUL_20190416_v02_0001.tif", geotiff.BANDS, (2, *range(2, 14)))),
        ("quarantined", "has no CRS"),
    ],
)
def test_another_chip_another_name(index: gpd.GeoDataFrame, column: str, value: Any) -> None:
    changed = index.copy()
    changed.at[1, column] = value
    assert daskembed.open_tile(changed).data.name != daskembed.open_tile(index).data.name


def test_another_order_another_name(index: gpd.GeoDataFrame) -> None:
    assert daskembed.open_tile(index.iloc[::-1]).data.name != daskembed.open_tile(index).data.name


def test_quarantined_chips_are_left_out(index: gpd.GeoDataFrame, expected: np.ndarray) -> None:
    some = index.copy()
    some.loc[[0, 2], "quarantined"] = "has no CRS"
    some.loc[[0, 2], ["date", "epsg", "lat", "lon", "chip", "geometry"]] = None
    cube = daskembed.open_tile(some)
    assert list(cube.coords["chip"].values) == [0, 1]
    assert list(cube.coords["source_url"].values) == list(index["source_url"][[1, 3]])
    assert list(cube.coords["lat"].values) == list(index["lat"][[1, 3]])
    np.testing.assert_array_equal(cube.values, expected[[1, 3]])


def test_index_of_two_tiles(index: gpd.GeoDataFrame, expected: np.ndarray) -> None:
    cube = daskembed.open_tile(pd.concat([index.iloc[3:], index.iloc[:1]]))
    assert list(cube.coords["chip"].values) == [0, 1]
    np.testing.assert_array_equal(cube.values, expected[[3, 0]])


def test_no_usable_chip(index: gpd.GeoDataFrame) -> None:
    bad = index.copy()
    bad["quarantined"] = "has no CRS"
    with pytest.raises(InputError, match="has no usable chip: the column `quarantined` says why"):
        daskembed.open_tile(bad)


@pytest.mark.parametrize("column", [column for column in INDEX_COLUMNS if column != "datetime"])
def test_index_without_a_column(index: gpd.GeoDataFrame, column: str) -> None:
    with pytest.raises(InputError, match=f"lacks the columns {column}: make it with daskembed.index_tile"):
        daskembed.open_tile(index.drop(columns=column))


def test_index_without_two_columns(index: gpd.GeoDataFrame) -> None:
    with pytest.raises(InputError, match="lacks the columns lat, etag:"):
        daskembed.open_tile(index.drop(columns=["etag", "lat"]))


def test_chip_that_cannot_be_read_is_named(index: gpd.GeoDataFrame, tmp_path: Path) -> None:
    whole = Path(index["source_url"][1])
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[:1_000_000])
    some = index.copy()
    some.loc[1, "chip"] = replace(some.loc[1, "chip"], url=str(cut))
    cube = daskembed.open_tile(some)
    with pytest.raises(ChipError, match=f"^{cut} cannot be decoded, it is damaged or truncated"):
        cube[:2].compute()
    assert cube[0].values.shape == (13, 512, 512)


@pytest.mark.parametrize("chips_a_block", [64, 1])
def test_graphs_are_small(chips_a_block: int) -> None:
    cube = daskembed.open_tile(fake_index(1000), chips_a_block=chips_a_block)
    assert cube.data.npartitions == -(-1000 // chips_a_block)
    assert len(pickle.dumps(cube.data.dask)) < 300_000


def test_graphs_hold_no_pixels() -> None:
    """A thousand chips are 13.6 GB: computing one that does not exist fails, opening all of them does not."""
    cube = daskembed.open_tile(fake_index(1000))
    assert cube.nbytes == 1000 * 13 * 512 * 512 * 4
    assert len(pickle.dumps(cube)) < 1_000_000
