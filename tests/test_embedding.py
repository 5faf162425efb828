"""Embeddings of a lazy cube: that nothing is done early or twice, and that the numbers are the encoder's own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import xarray as xr
from reference import relative_error

import daskembed
from daskembed import embedding
from daskembed.compute import device
from daskembed.encoders import clay_v0
from daskembed.encoders.clay_v0 import LEVELS
from daskembed.encoders.description import Place
from daskembed.encoders.loading import takes_time
from daskembed.encoders.protocol import Encoder
from daskembed.encoders.untrained import untrained_state
from daskembed.errors import InputError
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources import geotiff
from daskembed.testing import refuse_to_compute

TILE = "33TUL"
SHAPES = {"mean": (256,), "patch": (16, 16, 256), "group": (6, 16, 16, 256)}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return daskembed.load_encoder("untrained:least", precision="fp32", batch_size=4, readers=2)


@pytest.fixture(scope="module")
def index(chips: Path) -> gpd.GeoDataFrame:
    """The index of three chips."""
    return daskembed.index_tile(TILE, str(chips)).iloc[:3]


@pytest.fixture(scope="module")
def cube(index: gpd.GeoDataFrame) -> xr.DataArray:
    """Three chips in a block of two and a block of one."""
    return daskembed.open_tile(index, chips_a_block=2)


@pytest.fixture(scope="module")
def loaded(cube: xr.DataArray) -> xr.DataArray:
    """The same chips as a plain array; not to be changed."""
    return cube.compute()


@pytest.fixture(scope="module")
def expected(loaded: xr.DataArray) -> dict[str, np.ndarray]:
    """Embeddings of the three chips by the encoder alone, at each level."""
    return {level: encode_directly(loaded, level) for level in LEVELS}


def encode_directly(loaded: xr.DataArray, level: str) -> np.ndarray:
    model = clay_v0.build(
        untrained_state(clay_v0, "least", 0), clay_v0.describe("least"), device=torch.device("cpu"), dtype=torch.float32
    )
    lat, lon, day = (loaded.coords[name].to_numpy() for name in ("lat", "lon", "date"))
    latlon, time = clay_v0.metadata(Place(lat[:, None], lon[:, None], day, np.full(len(lat), 10.0)))
    with torch.inference_mode():
        pixels = torch.from_numpy(loaded.to_numpy())
        return model(pixels, torch.from_numpy(latlon), torch.from_numpy(time), level=level).numpy()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several chips a batch, on a CPU too."""
    device._load.cache_clear()
    monkeypatch.setattr(device, "CPU_BATCH", 4)
    yield
    device._load.cache_clear()


def test_the_time_of_day_is_told_where_it_is_known(chips: Path) -> None:
    """To Clay v1.5, which knows the hour; noon where only the day is known, as before there were times."""
    seeing = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", precision="fp32")
    found = daskembed.index_tile(TILE, str(chips), encoder=seeing).iloc[[0, 0, 0, 0]]
    assert found["datetime"].isna().all()
    assert str(found["datetime"].dtype) == "datetime64[ms, UTC]"
    noon, morning = "2019-04-16T12:00:00", "2019-04-16T10:05:59"
    times = pd.Series([None, noon + "Z", morning + ".024Z", "2019-04-16T12:05:59+02:00"], found.index)
    cube = daskembed.open_tile(found.assign(datetime=pd.to_datetime(times, utc=True, format="ISO8601")))
    assert embedding._times(cube).astype("datetime64[s]").astype(str).tolist() == [noon, noon, morning, morning]
    assert embedding._times(cube.drop_vars("datetime")).astype("datetime64[s]").astype(str).tolist() == [noon] * 4
    vectors = daskembed.embed(cube, seeing).to_numpy()
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[2], vectors[3])
    assert not np.allclose(vectors[0], vectors[2], rtol=1e-4)


def test_which_encoders_make_something_of_the_time_of_day() -> None:
    assert takes_time("clay-v1.5", 4)
    assert not takes_time("clay-v0", 1)


class Calls:
    """What was read and encoded."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.blocks: list[int] = []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """URLs of the chips that are read and sizes of the blocks that are encoded, from here on."""
    seen, lock = Calls(), threading.Lock()
    read_chip, encode = geotiff.read_chip, device.Device.encode

    def counting_read(url: str, bands: tuple[int, ...], *listed: Any) -> Any:
        with lock:
            seen.reads.append(url)
        return read_chip(url, bands, *listed)

    def counting_encode(self: device.Device, chips: Any, *args: Any, **options: Any) -> Any:
        with lock:
            seen.blocks.append(len(chips))
        return encode(self, chips, *args, **options)

    monkeypatch.setattr(geotiff, "read_chip", counting_read)
    monkeypatch.setattr(device.Device, "encode", counting_encode)
    return seen


# What is done when


def test_nothing_is_done_before_it_is_asked_for(index: gpd.GeoDataFrame, encoder: Encoder, calls: Calls) -> None:
    with dask.config.set(scheduler=refuse_to_compute):
        for level in LEVELS:
            embeddings = daskembed.embed(daskembed.open_tile(index, chips_a_block=1), encoder, level)
            repr(embeddings), embeddings._repr_html_()
            embeddings.isel(chip=[0, 2]) * 2
            frame = daskembed.to_geodataframe(embeddings)
            repr(frame)
            frame.to_delayed()
    assert calls.reads == []
    assert calls.blocks == []


COMPUTE: dict[str, Any] = {
    "the array": lambda e: e.compute(),
    "array and coordinates": lambda e: dask.compute(e, e.coords["quarantined"], e.coords["filled"]),
    "their dask arrays": lambda e: dask.compute(e.data, e.coords["quarantined"].data, e.coords["filled"].data),
    "a part of each": lambda e: dask.compute(e[:, 0].data, e.coords["filled"].data),
    "a dataset": lambda e: e.to_dataset().compute(),
    "persisted": lambda e: e.persist().compute(),
    "the frame": lambda e: daskembed.to_geodataframe(e).compute(),
    "two columns of the frame": lambda e: daskembed.to_geodataframe(e)[["source_url", "filled"]].compute(),
    "the frame's partitions": lambda e: dask.compute(daskembed.to_geodataframe(e).to_delayed()),
}


@pytest.mark.parametrize("way", COMPUTE)
def test_everything_is_done_exactly_once(index: gpd.GeoDataFrame, encoder: Encoder, calls: Calls, way: str) -> None:
    embeddings = daskembed.embed(daskembed.open_tile(index[:2], chips_a_block=1), encoder)
    with dask.config.set(scheduler="threads"):
        COMPUTE[way](embeddings)
    assert sorted(calls.reads) == list(index["source_url"][:2])
    assert calls.blocks == [1, 1]


def test_partitions_one_by_one_are_done_once_each(
    index: gpd.GeoDataFrame, cube: xr.DataArray, encoder: Encoder, calls: Calls
) -> None:
    first, second = daskembed.to_geodataframe(daskembed.embed(cube, encoder)).to_delayed()
    assert len(first.compute(scheduler="threads")) == 2
    assert sorted(calls.reads) == list(index["source_url"][:2])
    assert len(second.compute(scheduler="threads")) == 1
    assert sorted(calls.reads) == list(index["source_url"])
    assert calls.blocks == [2, 1]


@pytest.mark.parametrize("key", [slice(1, 2), slice(None, None, 2)], ids=["slice", "step"])
def test_selected_chips_alone_are_read(
    index: gpd.GeoDataFrame,
    cube: xr.DataArray,
    encoder: Encoder,
    calls: Calls,
    expected: dict[str, np.ndarray],
    key: Any,
) -> None:
    embeddings = daskembed.embed(cube.isel(chip=key), encoder).compute(scheduler="threads")
    assert sorted(calls.reads) == sorted(index["source_url"].to_numpy()[key])
    assert relative_error(embeddings.values, expected["mean"][key]) < 1e-6


# What comes of it


@pytest.mark.parametrize("level", LEVELS)
def test_embeddings_are_the_encoders(
    cube: xr.DataArray, encoder: Encoder, expected: dict[str, np.ndarray], level: str
) -> None:
    embeddings = daskembed.embed(cube, encoder, level)
    assert embeddings.dims == ("chip", *LEVELS[level])
    assert embeddings.shape == (3, *SHAPES[level])
    assert embeddings.chunks[0] == (2, 1)
    assert embeddings.dtype == np.float32
    computed = embeddings.compute()
    assert type(computed.data) is np.ndarray
    assert computed.dtype == np.float32
    assert relative_error(computed.values, expected[level]) < 1e-6
    assert pd.isna(computed.coords["quarantined"].values).all()
    assert list(computed.coords["filled"].values) == [0] * 3


@pytest.mark.parametrize(("chips_a_block", "batch_size"), [(1, 4), (3, 1), (64, 2)])
@pytest.mark.usefixtures("batches")
def test_embeddings_do_not_depend_on_blocks_and_batches(
    index: gpd.GeoDataFrame, expected: dict[str, np.ndarray], chips_a_block: int, batch_size: int
) -> None:
    encoder = daskembed.load_encoder("untrained:least", precision="fp32", batch_size=batch_size, readers=1)
    embeddings = daskembed.embed(daskembed.open_tile(index, chips_a_block=chips_a_block), encoder)
    assert relative_error(embeddings.values, expected["mean"]) < 1e-6


def test_coordinates_and_attributes(cube: xr.DataArray, encoder: Encoder) -> None:
    embeddings = daskembed.embed(cube, encoder, "patch")
    kept = {"chip", "source_url", "date", "epsg", "lat", "lon", "west", "south", "east", "north", "geometry"}
    kept |= {"inside_y", "inside_x"}
    assert set(embeddings.coords) == {*kept, "datetime", "quarantined", "rejected", "filled", "noted", "cloud"}
    for name in kept:
        assert embeddings.coords[name].identical(cube.coords[name].drop_vars("band", errors="ignore")) or (
            list(embeddings.coords[name].values) == list(cube.coords[name].values)
        )
    for name in ("quarantined", "rejected", "filled", "noted", "cloud"):
        assert embeddings.coords[name].chunks == ((2, 1),)
    assert embeddings.name == "embeddings"
    assert embeddings.attrs == {"encoder": "clay-v0", "level": "patch"}


def test_place_and_date_matter(loaded: xr.DataArray, encoder: Encoder, expected: dict[str, np.ndarray]) -> None:
    """Each chip gets its own: turned around, they give other embeddings, which are the encoder's too."""
    turned = loaded.assign_coords(
        lat=("chip", loaded.lat.values[::-1] - 30),
        lon=("chip", loaded.lon.values[::-1] + 90),
        date=("chip", np.array(["2019-01-31", "2020-02-29", "2017-12-01"], "datetime64[ns]")),
    )
    found = daskembed.embed(turned.chunk(chip=2), encoder).values
    assert relative_error(found, encode_directly(turned, "mean")) < 1e-6
    assert np.abs(found - expected["mean"]).max() > 1e-3


FORMS: dict[str, Any] = {
    "NumPy": lambda a: a,
    "dask": lambda a: a.chunk(chip=1),
    "dask in small pieces": lambda a: a.chunk(chip=2, band=5, y=200, x=512),
    "no index": lambda a: a.drop_vars(["chip", "band"]),
    "float64": lambda a: a.astype("float64"),
    "out of order in memory": lambda a: a.copy(data=np.asfortranarray(a.values)),
    "read-only": lambda a: a.copy(data=np.broadcast_to(a.values, a.shape)),
    "computed": lambda a: (a.chunk(chip=1) * 2) / 2,
}


@pytest.mark.parametrize("form", FORMS)
def test_any_array_of_chips_is_taken(
    loaded: xr.DataArray, encoder: Encoder, expected: dict[str, np.ndarray], form: str
) -> None:
    embeddings = daskembed.embed(FORMS[form](loaded[:2]), encoder)
    assert embeddings.chunks is not None
    assert relative_error(embeddings.values, expected["mean"][:2]) < 1e-6


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32"])
def test_whole_numbers_are_taken(loaded: xr.DataArray, encoder: Encoder, dtype: str) -> None:
    whole = loaded[:2].astype(dtype)
    embeddings = daskembed.embed(whole, encoder).values
    assert relative_error(embeddings, encode_directly(whole.astype("float32"), "mean")) < 1e-6


def test_plain_arrays_become_blocks(loaded: xr.DataArray, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CHIPS_A_BLOCK", 2)
    with dask.config.set(scheduler=refuse_to_compute):
        assert daskembed.embed(loaded, encoder).chunks[0] == (2, 1)


# Names


def names(embeddings: xr.DataArray) -> tuple[str, ...]:
    return tuple(array.data.name for array in (embeddings, embeddings.quarantined, embeddings.filled))


def test_same_work_same_names(index: gpd.GeoDataFrame, cube: xr.DataArray, encoder: Encoder) -> None:
    again = daskembed.load_encoder("untrained:least:0", precision="fp32", batch_size=4, readers=2)
    reopened = daskembed.open_tile(index, chips_a_block=2)
    assert names(daskembed.embed(reopened, again)) == names(daskembed.embed(cube, encoder))


def test_other_work_other_names(index: gpd.GeoDataFrame, cube: xr.DataArray, encoder: Encoder) -> None:
    other = daskembed.load_encoder("untrained:least:1", precision="fp32", batch_size=4, readers=2)
    later = cube.assign_coords(date=("chip", cube.date.values + np.timedelta64(1, "D")))
    works = [
        daskembed.embed(cube, encoder),
        daskembed.embed(cube, other),
        daskembed.embed(cube, encoder, "patch"),
        daskembed.embed(cube, encoder, on_nan="fill"),
        daskembed.embed(later, encoder),
        daskembed.embed(cube[::-1], encoder),
    ]
    assert len({name for work in works for name in names(work)}) == 3 * len(works)


# Values that are not finite, and chips that cannot be read


def spoiled(loaded: xr.DataArray) -> xr.DataArray:
    """Chip 1 with values that are not finite: 3 in vh, 1 in dem; the other chips as they are."""
    pixels = loaded.values.copy()
    pixels[1, 10, 0, :3] = [np.nan, np.inf, -np.inf]
    pixels[1, 12, 511, 511] = np.nan
    return loaded.copy(data=pixels)


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("level", ["mean", "group"])
def test_chip_that_is_not_finite_is_quarantined(loaded: xr.DataArray, encoder: Encoder, level: str) -> None:
    clean = daskembed.embed(loaded, encoder, level).compute()
    embeddings = daskembed.embed(spoiled(loaded), encoder, level).compute()
    reasons = list(embeddings.coords["quarantined"].values)
    assert list(pd.isna(reasons)) == [True, False, True]
    assert reasons[1].startswith("has values that are not finite: 3 in vh, 1 in dem (`on_nan='fill'` ")
    assert list(embeddings.coords["filled"].values) == [0, 0, 0]
    assert np.isnan(embeddings.values[1]).all()
    # One batch: the good chips do not notice their neighbour, down to the last bit.
    np.testing.assert_array_equal(embeddings.values[[0, 2]], clean.values[[0, 2]])


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("level", ["mean", "patch"])
def test_values_that_are_not_finite_are_filled(loaded: xr.DataArray, encoder: Encoder, level: str) -> None:
    bad = spoiled(loaded)
    means = np.array([band.mean for band in CLAY_V0.bands], np.float32)
    mended = bad.copy(data=np.where(np.isfinite(bad.values), bad.values, means[:, None, None]))
    embeddings = daskembed.embed(bad, encoder, level, on_nan="fill").compute()
    assert pd.isna(embeddings.coords["quarantined"].values).all()
    assert list(embeddings.coords["filled"].values) == [0, 4, 0]
    np.testing.assert_array_equal(embeddings.values, daskembed.embed(mended, encoder, level).values)


def test_filling_leaves_the_users_array_alone(loaded: xr.DataArray, encoder: Encoder) -> None:
    bad = spoiled(loaded)
    daskembed.embed(bad, encoder, on_nan="fill").compute()
    assert np.count_nonzero(~np.isfinite(bad.values)) == 4


def test_chip_of_nothing_but_nan(loaded: xr.DataArray, encoder: Encoder) -> None:
    empty = xr.full_like(loaded[:1], np.nan)
    embeddings = daskembed.embed(empty, encoder).compute()
    assert np.isnan(embeddings.values).all()
    assert all("262144 in B02, 262144 in B03" in reason for reason in embeddings.coords["quarantined"].values)
    filled = daskembed.embed(empty, encoder, on_nan="fill").compute()
    assert list(filled.coords["filled"].values) == [13 * 512 * 512]
    assert np.isfinite(filled.values).all()


@pytest.fixture
def my_chips(chips: Path, tmp_path: Path) -> Path:
    """A copy of the chips that a test may change; the folder of the files."""
    return Path(shutil.copytree(chips, tmp_path / "chips")) / TILE / "2019-04-16"


def test_chips_that_turn_out_bad(my_chips: Path, encoder: Encoder) -> None:
    """Everything that an index cannot see, in one block: cut off, deleted and not a number since."""
    cube = daskembed.open_tile(daskembed.index_tile(TILE, str(my_chips.parent.parent)))
    clean = daskembed.embed(cube, encoder).compute()
    _, cut, gone, nan = (Path(url) for url in cube.coords["source_url"].values)
    cut.write_bytes(cut.read_bytes()[:1_000_000])
    gone.unlink()
    with rasterio.open(nan, "r+") as file:
        band = file.read(11)
        band[7, 7] = np.nan
        file.write(band, 11)
    embeddings = daskembed.embed(cube, encoder).compute()
    reasons = embeddings.coords["quarantined"].values
    assert pd.isna(reasons[0])
    assert reasons[1].startswith("cannot be decoded, it is damaged or truncated: ")
    assert reasons[2] == "is gone: it was listed, but the store no longer has it"
    assert reasons[3].startswith("has values that are not finite: 1 in vh ")
    assert np.isnan(embeddings.values[1:]).all()
    np.testing.assert_array_equal(embeddings.values[0], clean.values[0])


@pytest.mark.parametrize("key", [slice(1, 3), [2, 1], np.array([False, True, True])], ids=["slice", "list", "mask"])
def test_selected_chips_that_turn_out_bad(my_chips: Path, encoder: Encoder, key: Any) -> None:
    """A selection of a cube is as forgiving as the cube."""
    cube = daskembed.open_tile(daskembed.index_tile(TILE, str(my_chips.parent.parent)).iloc[:3])
    Path(str(cube.coords["source_url"].values[1])).unlink()
    embeddings = daskembed.embed(cube.isel(chip=key), encoder).compute()
    bad = [url == cube.coords["source_url"].values[1] for url in embeddings.coords["source_url"].values]
    assert list(pd.notna(embeddings.coords["quarantined"].values)) == bad
    assert list(np.isnan(embeddings.values).all(axis=1)) == bad


# What is refused


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda a: a.transpose("band", "chip", "y", "x"), r"\('band', 'chip', 'y', 'x'\)"),
        (lambda a: a[0], r"\('band', 'y', 'x'\)"),
        (lambda a: a.rename(chip="time"), r"\('time', 'band', 'y', 'x'\)"),
        (lambda a: a.expand_dims("time"), r"\('time', 'chip', 'band', 'y', 'x'\)"),
    ],
    ids=["transposed", "one chip", "renamed", "another dimension"],
)
def test_other_dimensions_are_refused(cube: xr.DataArray, encoder: Encoder, change: Any, found: str) -> None:
    message = rf"the cube has the dimensions {found}, expected \('chip', 'band', 'y', 'x'\)"
    with pytest.raises(InputError, match=message):
        daskembed.embed(change(cube), encoder)


@pytest.mark.parametrize("names", [["lat"], ["lon"], ["date"], ["date", "lat", "lon"]], ids=" ".join)
def test_missing_coordinates_are_refused(cube: xr.DataArray, encoder: Encoder, names: list[str]) -> None:
    with pytest.raises(InputError, match=f"the cube lacks the coordinates {', '.join(names)}: daskembed.open_tile"):
        daskembed.embed(cube.drop_vars(names), encoder)


@pytest.mark.parametrize("level", ["Mean", "pixel", ""])
def test_other_levels_are_refused(cube: xr.DataArray, encoder: Encoder, level: str) -> None:
    with pytest.raises(InputError, match=f"unknown level '{level}': Clay v0 has mean, patch, group"):
        daskembed.embed(cube, encoder, level)


@pytest.mark.parametrize("on_nan", ["drop", "", None])
def test_other_answers_to_nan_are_refused(cube: xr.DataArray, encoder: Encoder, on_nan: Any) -> None:
    with pytest.raises(InputError, match=f"unknown `on_nan` {on_nan!r}: choose one of quarantine, fill"):
        daskembed.embed(cube, encoder, on_nan=on_nan)


def test_nothing_is_computed_to_refuse(cube: xr.DataArray, encoder: Encoder) -> None:
    lazy = cube.copy(data=da.zeros(cube.shape, chunks=cube.chunks))
    with dask.config.set(scheduler=refuse_to_compute), pytest.raises(InputError):
        daskembed.embed(lazy, encoder, "pixel")
