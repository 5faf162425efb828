"""Rasters by the names that ESA and Earth Search give them: which file is which band, of which scene."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

import daskembed
from daskembed.errors import TileError
from daskembed.sensors.bands import CLAY_V0

TILE = "33TUL"
SENTINEL_2 = CLAY_V0.names[:10]
EARTH_SEARCH = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
COARSE = ("B05", "B06", "B07", "B8A", "B11", "B12")
V1_5 = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", precision="fp32")
V0 = daskembed.load_encoder("untrained:least", precision="fp32")


def write(path: Path, value: int, *, metres: int = 10, names: Any = None, count: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = 5200 // metres
    place = {"crs": "EPSG:32633", "transform": from_origin(300_000, 5_100_000, metres, metres)}
    kind = {"driver": "GTiff", "dtype": "uint16", "compress": "deflate"}
    with rasterio.open(path, "w", count=count, height=side, width=side, **place, **kind) as file:
        file.write(np.full((count, side, side), value, np.uint16))
        if names:
            file.descriptions = names
    return path


def index(folder: Path, encoder: Any = V1_5) -> Any:
    return daskembed.index_tile(TILE, str(folder), encoder=encoder)


def values_of(frame: Any) -> list[list[int]]:
    """What each chip has in each band."""
    return [[int(value) for value in chip.read()[:, 7, 7]] for chip in frame["chip"]]


def write_product(folder: Path, *, day: str = "20190416", tile: str = TILE, start: int = 100) -> None:
    """As in the folder IMG_DATA of ESA's Level-2A: 20 m beside 10 m, and files that are no bands."""
    for number, band in enumerate(("B02", "B03", "B04", "B08")):
        write(folder / f"R10m/T{tile}_{day}T100031_{band}_10m.tif", start + number)
        write(folder / f"R20m/T{tile}_{day}T100031_{band}_20m.tif", 1, metres=20)
    for number, band in enumerate(COARSE):
        write(folder / f"R20m/T{tile}_{day}T100031_{band}_20m.tif", start + 10 + number, metres=20)
    write(folder / f"R20m/T{tile}_{day}T100031_SCL_20m.tif", 4, metres=20)
    write(folder / f"R10m/T{tile}_{day}T100031_TCI_10m.tif", 1, count=3)
    write(folder / f"R60m/T{tile}_{day}T100031_B01_60m.tif", 1, metres=20)
    write(folder / f"R60m/T{tile}_{day}T100031_B8A_60m.tif", 1, metres=40)


PRODUCT = [100, 101, 102, 110, 111, 112, 103, 113, 114, 115]


@pytest.mark.parametrize(
    "below", [f"S2A_MSIL2A_20190416T100031_N0211_R122_T{TILE}_20190417T130540.SAFE/GRANULE/L2A/IMG_DATA", "flat"]
)
def test_a_product_of_esa(below: str, tmp_path: Path) -> None:
    write_product(tmp_path / TILE / below)
    if below == "flat":
        for file in (tmp_path / TILE / "flat").rglob("*.tif"):
            shutil.move(file, tmp_path / TILE / "flat" / file.name)
    frame = index(tmp_path)
    assert list(frame["source_url"]) == [f"{tmp_path}/{TILE}/{below}#2019-04-16/0001"]
    assert values_of(frame) == [PRODUCT]
    assert frame["chip"][0].scene.classes.url.endswith("_SCL_20m.tif")


def test_names_of_earth_search(tmp_path: Path) -> None:
    folder = tmp_path / TILE / f"S2A_{TILE}_20190416_0_L2A"
    for number, name in enumerate(EARTH_SEARCH):
        write(folder / f"{name}.tif", 100 + number, metres=20 if name == "nir08" else 10)
    for name in ("scl", "visual", "aot"):
        write(folder / f"{name}.tif", 4)
    assert values_of(index(tmp_path)) == [[100 + number for number in range(10)]]
    for number, name in enumerate(("vh", "vv", "dem")):
        write(folder / f"{name}.tif", 200 + number)
    frame = index(tmp_path, V0)
    assert values_of(frame) == [[*(100 + number for number in range(10)), 200, 201, 202]]
    assert list(frame["date"]) == [date(2019, 4, 16)]
    assert frame["chip"][0].scene.classes is not None


def test_descriptions_of_earth_search(tmp_path: Path) -> None:
    names = ("vv", "vh", "dem", *reversed(EARTH_SEARCH))
    path = write(tmp_path / f"{TILE}_20190416.tif", 0, names=names, count=13)
    with rasterio.open(path, "r+") as file:
        for number in range(1, 14):
            file.write(np.full((520, 520), 100 + number, np.uint16), number)
    assert values_of(index(tmp_path, V0)) == [[113, 112, 111, 110, 109, 108, 107, 106, 105, 104, 102, 101, 103]]


def test_scenes_in_one_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for start, day in ((100, "20190416"), (300, "20190421")):
        for number, band in enumerate(SENTINEL_2):
            write(tmp_path / TILE / f"T{TILE}_{day}T100031_{band}.tif", start + number)
    frame = index(tmp_path)
    assert [str(day) for day in frame["date"]] == ["2019-04-16", "2019-04-21"]
    assert list(frame["source_url"]) == [
        f"{tmp_path}/{TILE}/T{TILE}_{day.replace('-', '')}T100031#{day}/0001" for day in ("2019-04-16", "2019-04-21")
    ]
    assert [values[0] for values in values_of(frame)] == [100, 300]


def test_a_folder_and_its_files_tell_one_day(tmp_path: Path) -> None:
    for band in SENTINEL_2:
        write(tmp_path / TILE / "2019-04-16" / f"T{TILE}_20200611T100031_{band}_10m.tif", 100)
    said = "is named after 2019-04-16 and holds T33TUL_20200611T100031_.*_10m.tif of 2020-06-11: expected one day"
    with pytest.raises(TileError, match=said):
        index(tmp_path)


def test_bands_beside_other_tiles(tmp_path: Path) -> None:
    for tile, start in ((TILE, 100), ("33TUM", 300)):
        for number, band in enumerate(SENTINEL_2):
            write(tmp_path / f"{tile}_20190416_{band}.tif", start + number)
    frame = index(tmp_path)
    assert list(frame["source_url"]) == [f"{tmp_path}/{TILE}_20190416#2019-04-16/0001"]
    assert values_of(frame) == [[100 + number for number in range(10)]]


def test_a_band_of_a_sensor_with_one_is_the_raster(tmp_path: Path) -> None:
    sensor = tmp_path / "grey.yaml"
    sensor.write_text("{name: grey, gsd: 10, bands: [{name: pan, mean: 1, std: 1, wavelength: 0.6}]}")
    encoder = daskembed.load_encoder("untrained:least", encoder="clay-v1.5", sensor=str(sensor), precision="fp32")
    write(tmp_path / f"{TILE}_20190416_pan.tif", 7)
    frame = index(tmp_path, encoder)
    assert list(frame["source_url"]) == [f"{tmp_path}/{TILE}_20190416_pan.tif#2019-04-16/0001"]


def strays(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._T{TILE}_20190416T100031_B02_10m.tif", "._B02.tif"):
        (folder / name).write_bytes(b"x")


def test_stray_files_are_no_bands(tmp_path: Path) -> None:
    write_product(tmp_path / TILE)
    for folder in (tmp_path, tmp_path / TILE, tmp_path / TILE / "R10m"):
        strays(folder)
    (tmp_path / f"._{TILE}_20190416.tif").write_bytes(b"x")
    assert values_of(index(tmp_path)) == [PRODUCT]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: shutil.copy(folder / "R10m/T33TUL_20190416T100031_B02_10m.tif", folder / "blue_10m.tif"),
            r"holds several files of one band: .*B02_10m.tif, .*blue_10m.tif|.*blue_10m.tif, .*B02_10m.tif",
        ),
        (
            lambda folder: shutil.copy(folder / "R10m/T33TUL_20190416T100031_B02_10m.tif", folder / "B02.tif"),
            r"holds several files of one band: .*",
        ),
        (
            lambda folder: (folder / "R20m/T33TUL_20190416T100031_B11_20m.tif").unlink(),
            r"lacks the files of swir16: expected blue.tif, green.tif",
        ),
    ],
)
def test_bands_that_are_there_twice_or_not(change: Any, said: str, tmp_path: Path) -> None:
    write_product(tmp_path / TILE)
    change(tmp_path / TILE)
    with pytest.raises(TileError, match=said):
        index(tmp_path)


def test_bands_of_another_tile(tmp_path: Path) -> None:
    write_product(tmp_path / TILE / "a", tile="33TUM")
    said = r"holds 33TUL/a/R10m/T33TUM_20190416T100031_B02_10m.tif, which is named after tile 33TUM, expected 33TUL"
    with pytest.raises(TileError, match=said):
        index(tmp_path)


def test_the_encoder_that_needs_fewer_bands_is_named(tmp_path: Path) -> None:
    write_product(tmp_path / TILE)
    said = (
        r"lacks the files of vh, vv, dem: expected B02.tif, .*; `encoder='clay-v1.5'` needs those of Sentinel-2 alone"
    )
    with pytest.raises(TileError, match=said):
        index(tmp_path, V0)


def test_a_vrt_changes_with_what_it_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "pixels.tif", 7, count=10, names=SENTINEL_2)
    rasterio.shutil.copy(path, tmp_path / f"{TILE}_20190416.vrt", driver="VRT")
    before = index(tmp_path)["etag"][0]
    assert index(tmp_path)["etag"][0] == before
    write(path, 8, count=10, names=SENTINEL_2)
    frame = index(tmp_path)
    assert frame["etag"][0] != before
    assert values_of(frame) == [[8] * 10]
