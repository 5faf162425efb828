"""Encoders that see windows of a chip: a row each in the file, with a place of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from distributed import Client, LocalCluster

import daskembed
from daskembed.compute import device
from daskembed.errors import InputError, TileError
from daskembed.output.validate.check import validate
from daskembed.runs import stages
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.tiles import resolve
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources.cutting import SceneChip
from daskembed.sources.registry import list_tile, read_headers
from daskembed.testing import landscape

TILE = "33TUL"
ENCODER = "clay-v1.5"
WEIGHTS: dict[str, Any] = {"checkpoint": "untrained:least", "encoder": ENCODER, "precision": "fp32"}
SENTINEL2 = CLAY_V0.names[:10]


@pytest.fixture(scope="module")
def client() -> Any:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def embed(folder: Path, level: str = "cls", *, encoder: Any = None, **options: Any) -> xr.DataArray:
    chosen = encoder or daskembed.load_encoder(**WEIGHTS)
    index = daskembed.index_tile(TILE, str(folder), encoder=chosen, **options)
    return daskembed.embed(daskembed.open_tile(index), chosen, level)


def compute(lazy: Any) -> Any:
    with dask.config.set(scheduler="synchronous"):
        return lazy.compute()


@pytest.mark.parametrize(("level", "shape"), [("cls", (192,)), ("mean", (192,)), ("patch", (32, 32, 192))])
def test_a_chip_is_four_rows(level: str, shape: tuple[int, ...], chips: Path, client: Client, tmp_path: Path) -> None:
    result = daskembed.run(TILE, source=str(chips), output=str(tmp_path), level=level, cluster=client, **WEIGHTS)
    assert (result.exit_status, result.chips) == (0, 4)
    frame = gpd.read_parquet(result.tiles[0].file)
    index = daskembed.index_tile(TILE, str(chips))
    starts = ["0,0", "0,256", "256,0", "256,256"]
    assert list(frame["source_url"]) == [f"{url}#window={start}" for url in index["source_url"] for start in starts]
    vectors = np.stack(frame["embeddings"]).reshape(16, *shape)
    expected = compute(embed(chips, level)).values.reshape(16, *shape)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert len(np.unique(vectors.reshape(16, -1)[:, 0])) == 16


def test_windows_tell_their_share_of_the_image(tmp_path: Path) -> None:
    """Of a chip that reaches beyond it, some windows have nothing of it."""
    write_ten_bands(tmp_path, landscape(600, 700)[:10], SENTINEL2)
    rows = compute(daskembed.to_geodataframe(embed(tmp_path, edge="pad")))
    right, below = (700 - 512) / 256, (600 - 512) / 256
    shares = [1, 1, 1, 1, right, 0, right, 0, below, below, 0, 0, right * below, 0, 0, 0]
    np.testing.assert_allclose(rows["coverage"], shares)


def test_padded_windows_are_told_as_the_rows_are(tmp_path: Path) -> None:
    """Those that reach beyond the image, each with its own share, under the `source_url` of its row."""
    write_ten_bands(tmp_path, landscape(600, 700)[:10], SENTINEL2)
    rows = compute(daskembed.to_geodataframe(embed(tmp_path, edge="pad")))
    asked = {"source": str(tmp_path), "output": str(tmp_path), "level": "cls", "edge": "pad", **WEIGHTS}
    settings = resolve(Options.of(asked, RunOptions))("fp32")
    found = stages.index(replace(settings, carried=True), TILE, None, [])
    assert found is not None
    told = {row: share for shares in found[0].padded.values() for row, share in shares.items()}
    beyond = rows[rows["coverage"] < 1]
    assert told == dict(zip(beyond["source_url"], beyond["coverage"].round(4), strict=True))
    assert 0 in told.values()


def test_the_receipt_says_which_time_of_day_was_told(tmp_path: Path) -> None:
    """That of the scene, as a catalogue knows it, or noon; an encoder that makes nothing of it needs no word."""
    write_ten_bands(tmp_path, landscape(600, 1100)[:10], SENTINEL2)
    asked = {"source": str(tmp_path), "output": str(tmp_path), **WEIGHTS}
    settings = replace(resolve(Options.of(asked, RunOptions))("fp32"), carried=True)
    found = stages.index(settings, TILE, None, [])
    assert found is not None
    assert "2 chips: the encoder is told noon, as only their day is known" in found[0].notes

    listing = list_tile(TILE, settings.source, settings.reading)
    assert all(isinstance(chip, SceneChip) for chip in listing.chips)
    when = datetime(2019, 4, 16, 10, 5, 59, 24_000, tzinfo=UTC)
    first, second = (chip for chip in listing.chips if isinstance(chip, SceneChip))
    timed = replace(first, scene=replace(first.scene, time=when))
    index = read_headers(replace(listing, chips=(timed, second)), settings.reading)
    assert index["datetime"].isna().tolist() == [False, True]
    assert index["datetime"].iloc[0] == when
    assert stages._time_notes(settings, index) == [
        "1 chip: the encoder is told the time of day of their scene",
        "1 chip: the encoder is told noon, as only their day is known",
    ]
    other = resolve(Options.of({**asked, "encoder": "clay-v0"}, RunOptions))("fp32")
    assert stages._time_notes(other, index) == []


def test_windows_have_footprints_of_their_own(chips: Path) -> None:
    index = daskembed.index_tile(TILE, str(chips))
    rows = compute(daskembed.to_geodataframe(embed(chips)))
    assert len(rows) == 16
    for number, chip in enumerate(index.geometry):
        four = rows.geometry.iloc[4 * number : 4 * number + 4]
        assert shapely.union_all(list(four)).symmetric_difference(chip).area < 1e-3 * chip.area
        corners = [tuple(np.round(shape.centroid.coords[0], 4)) for shape in four]
        (west_n, north_w), (east_n, _), (_, south_w), _ = corners
        assert west_n < east_n
        assert north_w > south_w


def test_the_place_of_a_window_is_what_the_encoder_is_told(chips: Path) -> None:
    lazy = embed(chips)
    centres = [shape.centroid for shape in lazy.coords["footprint"].values[0]]
    told = []

    def spy(self: Any, reads: Any, place: Any, **options: Any) -> Any:
        told.append(place)
        return encode(self, reads, place, **options)

    encode = device.Device.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device.Device, "encode", spy)
        compute(lazy[:1])
    np.testing.assert_allclose(told[0].lon[0], [point.x for point in centres], atol=2e-5)
    np.testing.assert_allclose(told[0].lat[0], [point.y for point in centres], atol=2e-5)
    assert told[0].resolution[0] == 10
    assert str(told[0].date[0]) == "2019-04-16T12:00:00"


@pytest.mark.parametrize(("window", "count"), [(128, 16), (512, 1)])
def test_other_windows(window: int, count: int, chips: Path) -> None:
    encoder = daskembed.load_encoder(**WEIGHTS, window=window)
    rows = compute(daskembed.to_geodataframe(embed(chips, "mean", encoder=encoder)))
    assert len(rows) == 4 * count
    assert rows["source_url"].iloc[count - 1].endswith(f"#window={512 - window},{512 - window}")


def test_many_windows_are_in_order(chips: Path, client: Client, tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": str(chips), "output": str(tmp_path), "cluster": client, **WEIGHTS}
    result = daskembed.run(TILE, **given, window=64)
    assert [str(one) for one in validate(str(result.tiles[0].file))] == []
    daskembed.run(TILE, **given, version="002")
    with pytest.raises(InputError, match="mixes embeddings"):
        daskembed.open_embeddings(str(tmp_path))


@pytest.mark.parametrize("window", [200, 250, 4, 1024, 0])
def test_windows_that_do_not_fit_are_refused(window: int) -> None:
    with pytest.raises(InputError, match=f"`window={window}`: .*expected 8, 16, 32, 64, 128, 256 or 512"):
        daskembed.load_encoder(**WEIGHTS, window=window)


def write_ten_bands(folder: Path, pixels: np.ndarray, names: Any) -> None:
    path = folder / f"{TILE}_20190416.tif"
    folder.mkdir(parents=True, exist_ok=True)
    origin = rasterio.Affine(10, 0, 300_000, 0, -10, 5_100_000)
    profile = {"driver": "GTiff", "dtype": "float32", "crs": "EPSG:32633", "transform": origin, "tiled": True}
    with rasterio.open(path, "w", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], **profile) as file:
        file.write(pixels)
        if names:
            file.descriptions = names


@pytest.mark.parametrize("names", [SENTINEL2, SENTINEL2[::-1], None, "common"], ids=["ids", "turned", "none", "common"])
def test_ten_bands_of_sentinel_2_are_enough(names: Any, chips: Path, tmp_path: Path) -> None:
    pixels = landscape(1024, 512, seed=4)
    given = pixels[9::-1] if names == SENTINEL2[::-1] else pixels[:10]
    encoder = daskembed.load_encoder(**WEIGHTS)
    if names == "common":
        names = encoder.description.bands
    write_ten_bands(tmp_path, np.ascontiguousarray(given), names)
    found = compute(embed(tmp_path))
    assert found.shape == (2, 4, 192)
    all_bands = tmp_path / "thirteen"
    write_ten_bands(all_bands, pixels, CLAY_V0.names)
    np.testing.assert_array_equal(found.values, compute(embed(all_bands)).values)


def test_nine_bands_are_refused(tmp_path: Path) -> None:
    write_ten_bands(tmp_path, landscape(512, 512)[:9], None)
    with pytest.raises(TileError, match="has 9 bands, expected 10: blue green red"):
        embed(tmp_path)


def test_another_resolution_is_the_files_own(tmp_path: Path, chips: Path) -> None:
    pixels = landscape(512, 512)[:10]
    write_ten_bands(tmp_path, pixels, SENTINEL2)
    fine = compute(embed(tmp_path))
    v0 = daskembed.load_encoder("untrained:least", precision="fp32")
    with pytest.raises(TileError, match=r"has the bands B02 .* B12: vh, vv, dem are missing"):
        embed(tmp_path, "mean", encoder=v0)
    with rasterio.open(tmp_path / f"{TILE}_20190416.tif", "r+") as file:
        file.transform = rasterio.Affine(20, 0, 300_000, 0, -20, 5_100_000)
    coarse = compute(embed(tmp_path))
    assert np.abs(coarse.values - fine.values).max() > 1e-3


@pytest.mark.real
@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.faults)])
def test_real_chips_through_the_whole_flow(size: str, shared: Path, tmp_path: Path, client: Client) -> None:
    golden = np.load(shared / f"golden/clay-v1.5-{size}-seed0.npz")
    expected = dict(zip(golden["windows"], golden["cls"], strict=True))
    result = daskembed.run(
        "48QUE",
        source=str(shared / "data/chips"),
        output=str(tmp_path),
        cluster=client,
        checkpoint=f"untrained:{size}",
        encoder=ENCODER,
        precision="fp32",
    )
    assert result.exit_status == 0
    frame = gpd.read_parquet(result.tiles[0].file)
    for url, vector in zip(frame["source_url"], frame["embeddings"], strict=True):
        chip, _, start = url.partition("#window=")
        row, col = (int(value) // 256 for value in start.split(","))
        name = f"{Path(chip).relative_to(shared / 'data')}#{2 * row + col}"
        wanted = expected.get(name, expected.get(name.removeprefix("chips/")))
        assert wanted is not None, (name, list(expected)[:3])
        assert np.linalg.norm(vector - wanted) / np.linalg.norm(wanted) <= 5e-6


def test_a_folder_of_both_encoders_is_read_by_encoder(chips: Path, client: Client, tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": str(chips), "output": str(tmp_path), "cluster": client, "precision": "fp32"}
    daskembed.run(TILE, **given, checkpoint="untrained:least", version="001")
    daskembed.run(TILE, **given, checkpoint="untrained:least", encoder=ENCODER, version="002")
    for name, rows, dim in (("clay-v0", 4, 256), (ENCODER, 16, 192)):
        frame = compute(daskembed.open_embeddings(str(tmp_path), encoder=name))
        assert len(frame) == rows
        assert {len(vector) for vector in frame["embeddings"]} == {dim}
    with pytest.raises(InputError, match=r"clay-v0.*clay-v1\.5"):
        daskembed.open_embeddings(str(tmp_path))
    for file in tmp_path.glob("*.gpq"):
        assert not [finding for finding in validate(str(file)) if finding.severity == "problem"]


def test_sentinel_1_is_taken_out_of_13_band_chips(chips: Path) -> None:
    encoder = daskembed.load_encoder(**WEIGHTS, sensor="sentinel-1-rtc")
    index = daskembed.index_tile(TILE, str(chips), encoder=encoder)
    assert index["chip"][0].bands == ("vv", "vh")
    assert index["chip"][0].numbers == (12, 11)
    assert np.isfinite(compute(embed(chips, encoder=encoder)).values).all()
