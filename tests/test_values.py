"""How stored numbers become values, and which pixels are there: the same answer whatever holds them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.transform import Affine

import daskembed
from daskembed.errors import ChipError, ChipRejectedError, InputError, TileError
from daskembed.runs.settings import sensor_id
from daskembed.sensors.bands import CLAY_V0, UNSAID, Band, Sensor
from daskembed.sensors.table import get_sensor
from daskembed.sources.baseline import Evidence, offset_of
from daskembed.sources.findings import summarise
from daskembed.sources.reading import Reading
from daskembed.sources.registry import list_tile
from daskembed.sources.rules import Rules
from daskembed.sources.scales import Scale, settle
from daskembed.sources.values import to_values
from daskembed.storage.stores import Storage

TILE, DAY, WEST, NORTH = "33TUL", "2019-04-16", 300_000.0, 5_100_000.0
BANDS = CLAY_V0.names
RGBN = ("red", "green", "blue", "nir")
KEEP = Rules(keep_all=True)
KEPT = "(`Rules(nan=False)` `on_nan='fill'` keeps it)"
BASELINE_4 = "S2A_MSIL2A_20220305T100031_N0400_R122_T33TUL_20220305T134015.SAFE"


def pixels_of(side: int = 512, bands: tuple[str, ...] = BANDS) -> np.ndarray:
    """Numbers that each band can have, all different."""
    middle = {"vh": 0.02, "vv": 0.1, "dem": 300.0} | dict.fromkeys(RGBN, 100.0)
    spread = np.linspace(0.5, 1.5, side * side, dtype=np.float32).reshape(side, side)
    return np.stack([np.float32(middle.get(band, 1500.0)) * spread for band in bands]).round(4)


def naip() -> np.ndarray:
    return pixels_of(bands=RGBN).round().astype(np.uint8)


def write(path: Path, pixels: np.ndarray, names: Any = BANDS, tags: Any = None, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scales, offsets = profile.pop("scales", None), profile.pop("offsets", None)
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    place: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(10, 0, WEST, 0, -10, NORTH)}
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **shape, **place, **profile) as file:
        file.write(pixels)
        if names is not None:
            file.descriptions = tuple(names)
        if scales is not None:
            file.scales, file.offsets = scales, offsets
        file.update_tags(**{"date": DAY, **(tags or {})})
    return path


def as_chip(folder: Path, pixels: np.ndarray, names: Any = BANDS, **options: Any) -> Path:
    return write(folder / TILE / DAY / f"claytile_{TILE}_20190416_v02_0001.tif", pixels, names, **options)


def as_raster(folder: Path, pixels: np.ndarray, names: Any = BANDS, **options: Any) -> Path:
    return write(folder / f"{TILE}_20190416.tif", pixels, names, **options)


def as_zarr(
    folder: Path, pixels: np.ndarray, names: Any = BANDS, *, form: int = 3, attrs: Any = None, **own: Any
) -> Path:
    at = {"band": list(names), "y": NORTH - 5 - 10 * np.arange(pixels.shape[1])}
    at["x"] = WEST + 5 + 10 * np.arange(pixels.shape[2])
    array = xr.DataArray(pixels, dims=("band", "y", "x"), coords=at, name="pixels", attrs=attrs or {}).to_dataset()
    array.attrs |= {"proj:code": "EPSG:32633", "date": DAY}
    path = folder / f"{TILE}.zarr"
    folder.mkdir(parents=True, exist_ok=True)
    array.to_zarr(path, mode="w", zarr_format=form, consolidated=False, encoding={"pixels": own} if own else None)
    return path


FORMS = {"chip": as_chip, "raster": as_raster, "zarr": as_zarr}


def encoder_of(sensor: str) -> Any:
    return daskembed.load_encoder("untrained:least", encoder="clay-v1.5", sensor=sensor, precision="fp32")


def chip_of(folder: Path | str, sensor: str | None = None, **options: Any) -> Any:
    frame = daskembed.index_tile(TILE, str(folder), encoder=sensor and encoder_of(sensor), **options)
    assert frame["quarantined"][0] is None, frame["quarantined"][0]
    return frame["chip"][0]


def fate(folder: Path | str, sensor: str | None = None, **options: Any) -> str:
    """What a chip is rejected for; else what is told of it."""
    try:
        return f"kept: {summarise(chip_of(folder, sensor, **options).read_with_findings().findings)}"
    except ChipRejectedError as error:
        return str(error)


# Stored numbers or values


def one_band(sensor: str, kind: str, scale: float, offset: float, **flags: Any) -> bool:
    found = CLAY_V0 if sensor in BANDS else get_sensor(sensor)
    band = next(band for band in found.bands if sensor not in BANDS or band.name == sensor)
    reading, evidence = Reading(found, **flags), Evidence("/x.tif", None)
    (made,) = settle([Scale((), scale, offset)], [band], found, np.dtype(kind), reading, evidence)
    return made.applied


@pytest.mark.parametrize(
    ("sensor", "kind", "scale", "offset", "applied"),
    [
        ("B02", "uint16", 1e-4, -0.1, False),
        ("B12", "float32", 1e-4, 0.0, False),
        ("B02", "int32", 1e-4, 0.0, False),
        ("B02", "uint16", 1.0, -1000.0, False),
        ("B02", "uint8", 40.0, 0.0, True),
        ("landsat-c2l2-sr", "uint16", 2.75e-5, -0.2, False),
        ("naip", "uint8", 1 / 255, 0.0, False),
        ("modis", "int16", 1e-4, 0.0, False),
        ("dem", "int16", 0.1, 0.0, True),
        ("dem", "uint16", 1.0, -500.0, True),
        ("vv", "uint16", 1e-4, 0.0, True),
        ("sentinel-1-rtc", "uint16", 1e-4, 0.0, True),
    ],
)
def test_what_the_encoder_was_trained_on_is_taken(
    sensor: str, kind: str, scale: float, offset: float, applied: bool
) -> None:
    assert one_band(sensor, kind, scale, offset) is applied


@pytest.mark.parametrize(
    ("sensor", "kind", "scale", "what"),
    [("B02", "uint8", 1e-4, "neither the numbers stored nor the values"), ("naip", "int8", 1e3, "neither")],
)
def test_what_can_be_meant_in_no_way_is_refused(sensor: str, kind: str, scale: float, what: str) -> None:
    with pytest.raises(
        ChipError, match=f"in .*, stored as {kind}: .* {what} .* `numbers='stored'` or `numbers='values'`"
    ):
        one_band(sensor, kind, scale, 0.0)
    assert one_band(sensor, kind, scale, 0.0, numbers="values")
    assert not one_band(sensor, kind, scale, 0.0, numbers="stored")


@pytest.mark.parametrize(
    ("sensor", "kind", "scale", "offset"),
    [
        ("B02", "uint16", 0.2, 0.0),
        ("B02", "uint16", 0.1, 0.0),
        ("B02", "int32", 0.5, 100.0),
        ("sentinel-2-l2a", "int16", 1.0, 1000.0),
        ("landsat-c2l2-sr", "uint16", 0.5, 0.0),
        ("modis", "int32", 0.1, 0.0),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused(sensor: str, kind: str, scale: float, offset: float) -> None:
    with pytest.raises(
        ChipError, match=r"both the numbers stored and the values .* `numbers='stored'` or `numbers='val"
    ):
        one_band(sensor, kind, scale, offset)
    assert one_band(sensor, kind, scale, offset, numbers="values")
    assert not one_band(sensor, kind, scale, offset, numbers="stored")


@pytest.mark.parametrize(("sensor", "kind"), [("B02", "uint8"), ("landsat-c2l2-sr", "int8"), ("modis", "uint8")])
def test_integers_that_the_encoder_cannot_take_are_refused(sensor: str, kind: str) -> None:
    with pytest.raises(ChipError, match=f"has {kind} without a scale in .* `numbers='stored'`"):
        one_band(sensor, kind, 1.0, 0.0)
    one_band(sensor, kind, 1.0, 0.0, numbers="stored")


@pytest.mark.parametrize("sensor", ["sentinel-2-l2a", "landsat-c2l2-sr", "naip", "modis"])
@pytest.mark.parametrize("tag", [None, 1e-4])
@pytest.mark.parametrize("gap", [np.nan, -9999.0, 100_000.0])
def test_reflectance_is_not_taken_for_digital_numbers(sensor: str, tag: float | None, gap: float) -> None:
    found = get_sensor(sensor)
    stored = np.linspace(0.02, 1.4, len(found.bands) * 64, dtype=np.float32).reshape(-1, 8, 8)
    stored[:, 0, 0] = gap

    def read(pixels: np.ndarray, **flags: Any) -> np.ndarray:
        given = [Scale((-9999.0,), tag or 1.0)] * len(found.bands)
        scales = settle(given, found.bands, found, pixels.dtype, Reading(found, **flags), Evidence("/x.tif", None))
        return to_values(pixels, found.names, scales)[0]

    with pytest.raises(
        ChipError, match=r"has no number above .*: it looks like reflectance, the encoder takes digital"
    ):
        read(stored)
    read(stored, numbers="stored")
    read(np.zeros_like(stored))
    read(np.ones_like(stored))
    stored[:, 1, 1] = 100
    read(stored)


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 1.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_tags_that_are_no_numbers_are_refused(scale: float, offset: float) -> None:
    with pytest.raises(ChipError, match="expected numbers, and a scale other than 0"):
        one_band("dem", "int16", scale, offset)


def own_sensor(tmp_path: Path, mean: float, std: float, **said: Any) -> Sensor:
    band = {"name": "red", "mean": mean, "std": std, "wavelength": 0.65}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"name": "own", "gsd": 10, "bands": [band]} | said))
    return get_sensor(str(path))


@pytest.mark.parametrize(
    ("mean", "std", "kind", "scale", "applied"),
    [(0.1, 0.05, "uint16", 1e-4, True), (1000, 500, "uint16", 1e-4, False), (110, 45, "uint8", 0.9, None)],
)
def test_numbers_of_a_sensor_of_ones_own(
    mean: float, std: float, kind: str, scale: float, applied: bool | None, tmp_path: Path
) -> None:
    def applies(sensor: Sensor) -> bool:
        given = ([Scale((), scale)], sensor.bands, sensor, np.dtype(kind), Reading(sensor), Evidence("/x", None))
        return settle(*given)[0].applied

    plain = own_sensor(tmp_path, mean, std)
    if applied is None:
        with pytest.raises(ChipError, match="both the numbers stored and the values"):
            applies(plain)
    else:
        assert applies(plain) is applied
    assert applies(own_sensor(tmp_path, mean, std, numbers="values"))
    assert applies(own_sensor(tmp_path, mean, std, numbers="stored")) is bool(applied)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"numbers": "DN"}, "numbers is 'DN': expected one of stored, values, sentinel-2, power, height"),
        ({"range": [1]}, r"range is \[1\]: expected the least and the largest number"),
        ({"range": [9, 1]}, r"range is \[9, 1\]: expected the least number first"),
    ],
)
def test_bad_descriptions_of_numbers(said: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        own_sensor(tmp_path, 1, 1, **said)


def test_sensors_are_called_as_before_their_numbers_were_described(tmp_path: Path) -> None:
    bands = (Band("green", 100.0, 40.5, (), 0.56), Band("red", 110.0, 45.0, ("R", "B04"), 0.65))
    assert sensor_id(Sensor("my-drone", 0.6, bands)) == "my-drone 1059db8b16d0"
    assert sensor_id(CLAY_V0) == "clay-v0"
    assert sensor_id(get_sensor("naip")) == "naip"
    plain, said = own_sensor(tmp_path, 1, 1), own_sensor(tmp_path, 1, 1, numbers="stored")
    assert plain.bands[0].numbers == UNSAID
    assert sensor_id(plain) != sensor_id(said)
    assert Reading().identity.keys() == {"offset", "edge", "rules"}
    assert Reading(numbers="stored", offset_applied="no").identity.items() >= {
        ("numbers", "stored"),
        ("offset_applied", "no"),
    }


@pytest.mark.parametrize("form", FORMS)
def test_reflectance_tags_change_nothing(form: str, tmp_path: Path) -> None:
    stored = pixels_of().round(2)
    if form == "zarr":
        tagged = {"attrs": {"scale_factor": 1e-4, "add_offset": -0.1}}
        stored, names = stored[:10].round().astype(np.uint16), BANDS[:10]
        sensor = "sentinel-2-l2a"
    else:
        tagged = {"scales": (1e-4,) * 10 + (1.0,) * 3, "offsets": (-0.1,) * 10 + (0.0,) * 3}
        names, sensor = BANDS, None
    FORMS[form](tmp_path, stored, names, **tagged)
    np.testing.assert_array_equal(chip_of(tmp_path, sensor).read(), stored)


def test_heights_in_decimetres_are_metres(tmp_path: Path) -> None:
    stored = pixels_of()
    stored[12] = np.round(stored[12] * 10)
    as_chip(tmp_path, stored, scales=(1.0,) * 12 + (0.1,), offsets=(0.0,) * 13)
    chip = chip_of(tmp_path)
    np.testing.assert_allclose(chip.read()[12], stored[12] / 10, rtol=1e-6)
    assert chip.note == "dem: times 0.1 plus 0"


# The +1000 of processing baseline 04.00

LATE, EARLY = date(2022, 3, 5), date(2019, 4, 16)


@pytest.mark.parametrize(
    ("url", "day", "tags", "asked", "tagged", "inside", "said"),
    [
        ("/a.tif", EARLY, {}, None, False, False, ""),
        ("/a.tif", LATE, {}, None, False, False, "nothing tells"),
        ("/a.tif", EARLY, {}, None, True, False, "nothing tells"),
        ("/a.tif", LATE, {}, "yes", True, False, ""),
        ("/a.tif", LATE, {}, "no", False, True, "`offset_applied='no'`"),
        ("/a.tif", EARLY, {"PROCESSING_BASELINE": "05.00"}, None, False, True, "processing baseline 05.00"),
        ("/a.tif", LATE, {"PROCESSING_BASELINE": "03.01"}, None, True, False, ""),
        ("/a.tif", EARLY, {"PROCESSING_BASELINE": "02.09"}, "no", False, False, ""),
        ("/a.tif", LATE, {"Processing_Baseline": "5.1"}, None, False, True, "processing baseline 05.10"),
        (
            "/a.tif",
            LATE,
            {"s2:processing_baseline": "05.09"},
            None,
            False,
            False,
            "not the processing baseline 05.09 of",
        ),
        ("/a.tif", EARLY, {"processing:version": "05.00"}, None, False, False, "nothing tells"),
        ("/a.tif", LATE, {"processing:version": "03.01"}, None, True, False, ""),
        ("/a.tif", LATE, {"s2:processing_baseline": "05.09"}, "no", False, True, "`offset_applied='no'`"),
        ("/a.tif", EARLY, {}, "no", False, False, "of images before 2022-01-25 only those have the 1000"),
        ("/a.tif", EARLY, {}, "no", True, False, "of images before 2022-01-25 only those have the 1000"),
        ("/a.tif", EARLY, {"s2:processing_baseline": "05.00"}, "no", False, True, "`offset_applied='no'`"),
        ("/a.tif", LATE, {"processing_baseline": "99.99"}, None, False, False, "nothing tells"),
        ("/a.tif", LATE, {"earthsearch:boa_offset_applied": "True"}, None, False, False, "nothing tells"),
        (
            f"/x/{BASELINE_4}/a.zarr",
            LATE,
            {"earthsearch:s3_path": "s3://sentinel-cogs/a", "processing_baseline": "05.09"},
            None,
            False,
            False,
            "nothing tells",
        ),
        (f"/x/{BASELINE_4}/B02.jp2", LATE, {}, None, False, True, "processing baseline 04.00"),
        (f"/x/{BASELINE_4.replace('N0400', 'N0301')}/B02.jp2", LATE, {}, None, False, False, ""),
        ("s3://sentinel-cogs/S2A_33TUL_20220305_0_L2A/B02.tif", LATE, {}, None, True, False, ""),
        ("s3://other/B02.tif", LATE, {}, None, True, False, "nothing tells"),
    ],
)
def test_what_tells_of_the_offset(
    url: str, day: date, tags: Any, asked: Any, tagged: bool, inside: bool, said: str
) -> None:
    found = offset_of(Evidence(url, day, tags), asked=asked, tagged=tagged)
    assert found.inside is inside
    assert said in found.remark
    assert bool(said) is bool(found.remark)
    assert found.applied is (asked == "yes")


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        *[
            (text, "04.00")
            for text in ("04.00", "4.00", 4, 4.0, 400, "0400", "N0400", "V04.00", "baseline 04.00", " 4 ")
        ],
        *[("5.1", "05.10"), (511, "05.11"), ("05.09", "05.09"), ("9.99", "09.99")],
        *[(text, "") for text in (209, 301, "2.09", "03.01", "00.01", 2.1, "baseline 02.14")],
        *[(text, None) for text in ("99.99", "20.90", 1000, "10.00", 40, "040", "4.000", "", "none", "04.00.1")],
    ],
)
def test_baselines_as_they_are_written(text: Any, baseline: str | None) -> None:
    found = offset_of(Evidence("/a.tif", LATE, {"PROCESSING_BASELINE": text}), asked=None, tagged=False)
    assert found.inside is bool(baseline)
    assert ("nothing tells" in found.remark) is (baseline is None)
    assert (baseline or "") in found.remark


def scene(folder: Path, tags: Any, names: Any = None, **profile: Any) -> Path:
    """A file a band of Sentinel-2, with the tags of some."""
    bands = BANDS[:10]
    for band, image in zip(bands, pixels_of(bands=bands).round(), strict=True):
        own = {"date": str(LATE)} | tags.get(band, {})
        write(folder / TILE / "scene" / f"{band}.tif", image[None], names, own, **profile)
    return folder


def test_one_file_tells_for_all_bands_of_a_scene(tmp_path: Path) -> None:
    scene(tmp_path, {"B03": {"PROCESSING_BASELINE": "04.00"}})
    chip = chip_of(tmp_path, "sentinel-2-l2a")
    assert chip.scene.note == "1000 taken out (processing baseline 04.00)"
    np.testing.assert_array_equal(chip.read(), np.maximum(pixels_of(bands=BANDS[:10]).round() - 1000, 1))


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    told = {"B02": {"PROCESSING_BASELINE": "03.01"}, "B03": {"PROCESSING_BASELINE": "04.00"}}
    scene(tmp_path, told)
    found = r"of the processing baselines 03\.01 \(.*B02\.tif\) and 04\.00 \(.*B03\.tif\): .* `offset_applied='yes'`"
    with pytest.raises(TileError, match=found):
        chip_of(tmp_path, "sentinel-2-l2a")
    stored = pixels_of(bands=BANDS[:10]).round()
    np.testing.assert_array_equal(chip_of(tmp_path, "sentinel-2-l2a", offset_applied="yes").read(), stored)


def virtual(folder: Path, *sources: str) -> Path:
    """A virtual raster of rasters in folders of these names, one above the other."""
    for name in sources:
        write(folder / name / "all.tif", pixels_of().round(), tags={"date": str(LATE)})
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{number}"><Description>{band}</Description>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}/all.tif</SourceFilename><SourceBand>{number}'
            f'</SourceBand><DstRect xOff="0" yOff="{512 * row}" xSize="512" ySize="512"/></SimpleSource>'
            for row, name in enumerate(sources)
        )
        + "</VRTRasterBand>"
        for number, band in enumerate(BANDS, 1)
    )
    place = f"<SRS>EPSG:32633</SRS><GeoTransform>{WEST}, 10, 0, {NORTH}, 0, -10</GeoTransform>"
    size = f'rasterXSize="512" rasterYSize="{512 * len(sources)}"'
    path = folder / f"{TILE}_{LATE:%Y%m%d}.vrt"
    path.write_text(f"<VRTDataset {size}>{place}{bands}</VRTDataset>")
    return folder


def test_a_virtual_raster_is_what_its_sources_names_tell(tmp_path: Path) -> None:
    virtual(tmp_path, BASELINE_4, "more")
    assert "1000 taken out (processing baseline 04.00)" in chip_of(tmp_path).scene.note
    virtual(tmp_path / "both", BASELINE_4, BASELINE_4.replace("N0400", "N0301"))
    with pytest.raises(TileError, match=r"of the processing baselines 03\.01 \(.*N0301.*\) and 04\.00 \(.*N0400"):
        chip_of(tmp_path / "both")


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(f"/x/{BASELINE_4.replace('L2A', 'L1C')}/B02.jp2", LATE),
        Evidence("s3://sentinel-s2-l1c/tiles/33/T/UL/2022/3/5/0/B02.jp2", LATE),
        Evidence("/a.tif", LATE, {"PROCESSING_LEVEL": "Level-1C"}),
        Evidence("/x/S2A_33TUL_20220305_0_L1C/B02.tif", LATE),
        Evidence("/a.vrt", LATE, {}, (Evidence(f"/{BASELINE_4.replace('L2A', 'L1C')}/B02.jp2", LATE),)),
    ],
)
def test_level_1c_is_refused(evidence: Evidence) -> None:
    sensor = get_sensor("sentinel-2-l2a")
    given = [Scale()] * 10, sensor.bands, sensor, np.dtype("uint16"), Reading(sensor)
    with pytest.raises(ChipError, match=r"is of level 1C, as .*: expected level 2A"):
        settle(*given, evidence)
    settle(*given, Evidence(f"/old_L1C/{BASELINE_4}/B02.jp2", LATE, {"PROCESSING_LEVEL": "Level-2A"}))


def test_a_tag_of_the_numbers_themselves_tells_of_the_offset(tmp_path: Path) -> None:
    scene(tmp_path, {}, scales=(1.0,), offsets=(-1000.0,))
    chip = chip_of(tmp_path, "sentinel-2-l2a")
    assert "1000 taken out (tags of scale 1 and offset -1000 say that it is there)" in chip.scene.note
    assert chip.scene.scales[0].taken_out == 1000
    assert "nothing tells" in chip_of(tmp_path, "sentinel-2-l2a", numbers="stored").scene.note
    # Of one band alone it tells nothing.
    scene(tmp_path, {})
    write(
        tmp_path / TILE / "scene" / "B02.tif", pixels_of()[:1], None, {"date": str(LATE)}, scales=[1], offsets=[-1000]
    )
    assert [scale.taken_out for scale in chip_of(tmp_path, "sentinel-2-l2a").scene.scales] == [0] * 10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_the_offset_is_taken_out_of_sentinel_2(form: str, kind: str, tmp_path: Path) -> None:
    stored = np.maximum(pixels_of().round(), 1).astype(kind)
    stored[1, 0, :4] = 0, 1, 1000, 1002
    folder = tmp_path / BASELINE_4
    FORMS[form](folder, stored)
    chip = chip_of(folder)
    values, found, _ = chip.read_with_findings()
    expected = stored.astype(np.int64)
    expected[:10] = np.where(expected[:10] >= 1, np.maximum(expected[:10] - 1000, 1), 0)
    np.testing.assert_array_equal(values[:10], expected[:10])
    np.testing.assert_array_equal(values[10:], stored[10:])
    assert summarise(found) == "B03 is 0 in 0.0004% of its pixels"
    assert "1000 taken out (processing baseline 04.00)" in chip.note
    np.testing.assert_array_equal(chip_of(folder, offset_applied="yes").read(), stored)


def test_a_baseline_a_time_of_a_cube(tmp_path: Path) -> None:
    stored = pixels_of().round(2)
    store = as_zarr(tmp_path, stored)
    cube = xr.open_zarr(store).load()
    both = xr.concat([cube, cube], "time").assign_coords(time=np.array(["2022-01-01", "2022-03-01"], "datetime64[ns]"))
    both = both.assign_coords({"processing_baseline": ("time", ["03.01", "04.00"])})
    both["pixels"] = both.pixels.transpose("time", "band", "y", "x")
    del both.attrs["date"]
    both.drop_encoding().to_zarr(tmp_path / "two" / f"{TILE}.zarr", consolidated=False)
    first, second = (chip.read() for chip in daskembed.index_tile(TILE, str(tmp_path / "two"))["chip"])
    np.testing.assert_array_equal(first, stored)
    np.testing.assert_array_equal(second[:10], np.maximum(stored[:10] - 1000, 1))


# Which pixels are there


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("band", "value", "what"),
    [
        ("B05", -1.0, "B05 is below 0 in 0.0004% of its pixels"),
        ("B05", 65_535.0, "B05 is above 65000 in 0.0004% of its pixels"),
        ("vv", 0.0, "vv is 0 or less in 0.0004% of its pixels"),
        ("vh", -17.5, "vh is 0 or less in 0.0004% of its pixels"),
        ("vv", 1e6, "vv is above 100000 in 0.0004% of its pixels"),
        ("dem", -9999.0, "dem is below -500 in 0.0004% of its pixels"),
        ("dem", 32_767.0, "dem is above 9000 in 0.0004% of its pixels"),
        ("dem", np.nan, "dem is NaN in 0.0004% of its pixels"),
        ("B02", np.inf, "B02 is infinite in 0.0004% of its pixels"),
    ],
)
@pytest.mark.parametrize("tagged", [True, False])
def test_what_a_band_cannot_be_is_missing(
    form: str, band: str, value: float, what: str, tagged: bool, tmp_path: Path
) -> None:
    stored, place = pixels_of(), (BANDS.index(band), 7, 9)
    stored[place] = value
    tag: dict[str, Any] = {"nodata": value}
    if form == "zarr":
        tag = {"attrs": {"nodata": value}}
    FORMS[form](tmp_path, stored, **(tag if tagged else {}))
    assert fate(tmp_path, rules=Rules(nan=True)) == f"{what} {KEPT}"
    values = chip_of(tmp_path, rules=KEEP).read()
    assert np.isnan(values[place])
    assert np.isnan(values).sum() == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("band", "told"), [("dem", ""), ("B12", "B12 is 0 in 1.9531% of its pixels")])
def test_a_zero_is_a_zero_whatever_the_tag_says(form: str, tagged: bool, band: str, told: str, tmp_path: Path) -> None:
    stored = pixels_of()
    stored[BANDS.index(band), :, :10] = 0
    tag = {"attrs": {"_FillValue": np.float32(0)}} if form == "zarr" else {"nodata": 0}
    FORMS[form](tmp_path, stored, **(tag if tagged else {}))
    assert fate(tmp_path) == f"kept: {told}"
    np.testing.assert_array_equal(chip_of(tmp_path).read(), stored)


def test_declared_nodata_that_is_possible_is_missing(tmp_path: Path) -> None:
    stored = naip()
    stored[:, :5, :5] = 200
    as_raster(tmp_path, stored, RGBN, nodata=200)
    share = f"{np.mean(stored[0] == 200):.4%}"
    assert fate(tmp_path, "naip").startswith("red is nodata (200) in ")
    assert share in fate(tmp_path, "naip")


def test_fill_of_landsat_is_missing_with_and_without_a_tag(tmp_path: Path) -> None:
    sensor = get_sensor("landsat-c2l2-sr")
    stored = np.full((6, 512, 512), 10_000, np.uint16) + np.arange(512, dtype=np.uint16)
    stored[:, :, :128] = 0
    for name, tag in (("with", {"nodata": 0, "scales": (2.75e-5,) * 6, "offsets": (-0.2,) * 6}), ("without", {})):
        as_raster(tmp_path / name, stored, sensor.names, **tag)
        said = f"red is below 1 in 25.0000% of its pixels, 5 more bands likewise {KEPT}"
        assert fate(tmp_path / name, "landsat-c2l2-sr") == said


def masked_file(write_file: Any, folder: Path, *, internal: bool) -> Path:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path: Path = write_file(folder, naip(), RGBN)
        mask = np.full((512, 512), 255, np.uint8)
        mask[:, :128] = 0
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    assert path.with_name(f"{path.name}.msk").exists() is not internal
    return path


@pytest.mark.parametrize("form", ["chip", "raster"])
@pytest.mark.parametrize("internal", [True, False])
def test_masks_of_files_are_seen(form: str, internal: bool, tmp_path: Path) -> None:
    masked_file(FORMS[form], tmp_path, internal=internal)
    said = f"red is masked or was never written in 25.0000% of its pixels, 3 more bands likewise {KEPT}"
    assert fate(tmp_path, "naip", rules=Rules(nan=True)) == said
    values = chip_of(tmp_path, "naip", rules=KEEP).read()
    assert np.isnan(values[:, :, :128]).all()
    np.testing.assert_array_equal(values[:, :, 128:], naip()[:, :, 128:])


@pytest.mark.parametrize("form", ["chip", "raster"])
def test_what_lies_beside_a_file_in_a_bucket_is_seen_and_counts(form: str, tmp_path: Path, s3: str) -> None:
    stored = pixels_of()
    stored[0, :, :128] = 777
    path = FORMS[form](tmp_path, stored)
    storage, name = Storage(f"{s3}/in"), path.relative_to(tmp_path).as_posix()
    storage.put(name, path.read_bytes())
    storage.put(f"{name}.ovr", b"nothing that is wanted")
    before = list_tile(TILE, storage, Reading()).fingerprint
    assert fate(storage.url, rules=Rules(nan=True)) == "kept: "
    pam = '<PAMDataset><PAMRasterBand band="1"><NoDataValue>777</NoDataValue></PAMRasterBand></PAMDataset>'
    storage.put(f"{name}.aux.xml", pam.encode())
    assert list_tile(TILE, storage, Reading()).fingerprint != before
    said = f"B02 is nodata (777) in 25.0000% of its pixels {KEPT}"
    assert fate(storage.url, rules=Rules(nan=True)) == said


def test_a_near_infrared_is_no_alpha_and_an_alpha_is(tmp_path: Path) -> None:
    stored = naip()
    stored[3, :, :128] = 0
    path = as_raster(tmp_path / "nir", stored, RGBN)
    with rasterio.open(path) as file:
        assert file.colorinterp[3].name == "alpha"
    assert fate(tmp_path / "nir", "naip") == "kept: "
    alpha = np.concatenate([naip(), stored[3:]])
    path = as_raster(tmp_path / "alpha", alpha, [*RGBN, "alpha"], alpha="yes", photometric="minisblack")
    with rasterio.open(path, "r+") as file:
        use = rasterio.enums.ColorInterp
        file.colorinterp = (use.red, use.green, use.blue, use.undefined, use.alpha)
    assert fate(tmp_path / "alpha", "naip").startswith("red is masked or was never written in 25.0000% of its pixels")


def test_a_band_that_is_described_is_no_alpha(tmp_path: Path) -> None:
    stored = naip()
    stored[3, :, :128] = 0
    path = as_raster(tmp_path, stored, RGBN)
    with rasterio.open(path) as file:
        assert file.colorinterp[3].name == "alpha"
    assert fate(tmp_path, "linz") == "kept: "


def test_intensities_of_a_sensor_in_decibels_may_be_as_large_as_it_says(tmp_path: Path) -> None:
    sensor = own_sensor(tmp_path, 60, 8, decibels=True)
    stored = np.full((1, 2, 2), 2e6, np.float32)
    stored[0, 0, 0] = 1e12
    scales = settle([Scale()], sensor.bands, sensor, stored.dtype, Reading(sensor), Evidence("/x.tif", None))
    np.testing.assert_array_equal(np.isnan(to_values(stored, ["x"], scales)[0][0]), [[True, False], [False, False]])


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("shards", [None, (4, 512, 512)])
def test_chunks_that_are_missing_are_told_from_those_that_are_empty(form: int, shards: Any, tmp_path: Path) -> None:
    if form == 2 and shards:
        pytest.skip("Zarr 2 has no shards")
    stored = naip()
    stored[:, 256:, 256:] = 0
    own: dict[str, Any] = {"chunks": (4, 256, 256), "write_empty_chunks": True} | ({"shards": shards} if shards else {})
    as_zarr(tmp_path / "there", stored, RGBN, form=form, **own)
    assert fate(tmp_path / "there", "naip") == "kept: "
    as_zarr(tmp_path / "not", stored, RGBN, form=form, **(own | {"write_empty_chunks": False}))
    why = "has no chunk (write_empty_chunks=True keeps those of zeros)"
    said = f"red {why} in 25.0000% of its pixels, 3 more bands likewise {KEPT}"
    assert fate(tmp_path / "not", "naip") == said
    values = chip_of(tmp_path / "not", "naip", rules=KEEP).read()
    assert np.isnan(values[:, 256:, 256:]).all()
    np.testing.assert_array_equal(values[:, :256], stored[:, :256])


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_blocks_that_were_never_written_are_told_from_zeros(interleave: str, tmp_path: Path) -> None:
    stored = naip()
    stored[:, 256:, 256:] = 0
    blocks = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": interleave}
    as_raster(tmp_path / "there", stored, RGBN, **blocks)
    assert fate(tmp_path / "there", "naip") == "kept: "
    as_raster(tmp_path / "not", stored, RGBN, **blocks, sparse_ok=True)
    assert fate(tmp_path / "not", "naip").startswith("red is masked or was never written in 25.0000% of its pixels, 3")


@pytest.mark.parametrize("gap", [0.0, np.nan, -1.0])
def test_classes_that_are_missing_are_unclear(gap: float, tmp_path: Path) -> None:
    classes = np.full((1, 512, 512), 4, np.float32)
    classes[:, :256] = gap
    said = "clouds, shadows or nodata in 50.0000% of its pixels (`Rules(max_cloud=0.3)`)"
    both = np.concatenate([pixels_of(), classes])
    as_raster(tmp_path / "raster", both, [*BANDS, "SCL"], nodata=gap)
    as_zarr(tmp_path / "zarr", both, [*BANDS, "SCL"])
    assert fate(tmp_path / "raster") == fate(tmp_path / "zarr") == said


def test_classes_that_are_packed_with_the_bands_are_unpacked(tmp_path: Path) -> None:
    classes = np.full((1, 512, 512), 4, np.float64)
    classes[:, :64] = 9
    both = (np.concatenate([pixels_of()[:10], classes]) * 2).astype(np.uint16)
    as_zarr(tmp_path, both, [*BANDS[:10], "SCL"], attrs={"scale_factor": 0.5})
    assert fate(tmp_path, "sentinel-2-l2a", numbers="values") == "kept: "
    said = fate(tmp_path, "sentinel-2-l2a", numbers="values", rules=Rules(max_cloud=0.1))
    assert said.startswith("clouds, shadows or nodata in 12.5")


# Attributes of Zarr


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"scale_factor": [1.0] * 13}, "has 13 numbers in the attribute scale_factor of pixels: expected one for all"),
        ({"add_offset": "none"}, "has 'none' in the attribute add_offset of pixels: expected a number"),
        ({"scale_factor": {"B02": 1}}, "in the attribute scale_factor of pixels: expected a number"),
        ({"nodata": True}, "has True in the attribute nodata of pixels: expected a number"),
        ({"scale_factor": 0.0}, "has the scale 0 and the offset 0 in B02: expected numbers"),
        ({"_Unsigned": "true"}, "has the attribute _Unsigned in pixels"),
    ],
)
def test_odd_attributes_are_refused_in_words(attrs: Any, said: str, tmp_path: Path) -> None:
    as_zarr(tmp_path, pixels_of(), attrs=attrs)
    with pytest.raises(TileError, match=said):
        chip_of(tmp_path)


def test_one_scale_of_digital_numbers_and_values_is_refused_until_it_is_said_which(tmp_path: Path) -> None:
    stored = pixels_of()
    as_zarr(tmp_path, stored, attrs={"scale_factor": 1e-4})
    with pytest.raises(
        TileError, match=r"has one scale \(0.0001\) and offset \(0\) for bands that are digital numbers and"
    ):
        chip_of(tmp_path)
    np.testing.assert_allclose(chip_of(tmp_path, numbers="values").read(), stored / 1e4, rtol=1e-6)
    np.testing.assert_array_equal(chip_of(tmp_path, numbers="stored").read(), stored)


@pytest.mark.parametrize(
    "attrs",
    [
        {"missing_value": [777.0, 778.0]},
        {"_FillValue": np.float32(777), "missing_value": 778.0},
        {"nodata": [777, 778]},
    ],
)
def test_all_of_several_fill_values_are_missing(attrs: Any, tmp_path: Path) -> None:
    stored = pixels_of()
    stored[0, :64], stored[0, 64:128] = 777, 778
    as_zarr(tmp_path, stored, attrs=attrs)
    assert np.isnan(chip_of(tmp_path, rules=KEEP).read()[0, :128]).all()


def test_one_number_in_a_list_is_that_number(tmp_path: Path) -> None:
    stored = pixels_of().round(2)
    as_zarr(tmp_path, stored, attrs={"scale_factor": [1.0], "add_offset": [0], "nodata": "NaN"})
    np.testing.assert_array_equal(chip_of(tmp_path).read(), stored)


# Arithmetic


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_sound_numbers_are_not_touched(kind: str) -> None:
    stored = np.full((2, 4, 4), 100, kind)
    scales = [Scale(nodata=(0.0, -3.4028234663852886e38), numbers=band.numbers) for band in CLAY_V0.bands[:2]]
    values, found = to_values(stored, BANDS[:2], scales)
    assert values is stored
    assert found == []


def test_nodata_that_float32_rounds_is_found() -> None:
    stored = np.full((1, 2, 2), 5, np.float32)
    stored[0, 0, 0] = 0.1
    values, found = to_values(stored, ["x"], [Scale(nodata=(0.1,))])
    assert np.isnan(values[0, 0, 0])
    assert summarise(found) == "x is nodata (0.1) in 25.0000% of its pixels"


def test_nan_hides_no_nodata() -> None:
    stored = np.full((1, 2, 2), 100, np.float32)
    stored[0, 0] = np.nan, -9999
    values, found = to_values(stored, ["x"], [Scale(nodata=(-9999.0,))])
    np.testing.assert_array_equal(np.isnan(values[0]), [[True, True], [False, False]])
    assert summarise(found) == "x is NaN in 25.0000% of its pixels; x is nodata (-9999) in 25.0000% of its pixels"


@pytest.mark.parametrize("offset", [100.0, 0.0, -100.0])
def test_zeros_are_those_that_are_stored(offset: float) -> None:
    stored = np.full((1, 2, 2), 20, np.uint8)
    stored[0, 0, 0] = 0
    values, found = to_values(stored, ["x"], [Scale(scale=40.0, offset=offset, numbers=CLAY_V0.bands[0].numbers)])
    np.testing.assert_array_equal(values[0], [[0, 800 + offset], [800 + offset, 800 + offset]])
    assert summarise(found) == "x is 0 in 25.0000% of its pixels"


def test_a_nodata_tag_that_counts_for_nothing_is_not_named() -> None:
    assert str(Scale((0.0,), numbers=CLAY_V0.bands[0].numbers)) == ""
    assert str(Scale((0.0, 9.0), numbers=CLAY_V0.bands[0].numbers)) == "nodata 9"
    assert str(Scale((0.0,))) == "nodata 0"


@pytest.mark.filterwarnings("error:.*grid_mapping")
def test_a_grid_mapping_that_is_not_there_is_no_matter(tmp_path: Path) -> None:
    as_zarr(tmp_path, pixels_of(), attrs={"grid_mapping": "nowhere"})
    assert fate(tmp_path) == "kept: "
