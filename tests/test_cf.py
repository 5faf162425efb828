"""Place and time of Zarr stores: coordinates that are packed or of corners, transforms, CRSs, times, odd attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import xarray as xr

import daskembed
from daskembed.errors import ChipError, TileError
from daskembed.sources.cf import epsg_of, georeferencing, plain, times_of
from daskembed.sources.reading import Reading

TILE, DAY = "33TUL", "2019-04-16"
WEST, NORTH, SIDE = 300_000.0, 5_100_000.0, 520
CENTRES_X, CENTRES_Y = WEST + 5 + 10 * np.arange(SIDE), NORTH - 5 - 10 * np.arange(SIDE)
CORNERS_X, CORNERS_Y = CENTRES_X - 5, CENTRES_Y + 5
AFFINE = [10.0, 0.0, WEST, 0.0, -10.0, NORTH]
GDAL = f"{WEST} 10 0 {NORTH} 0 -10"


def dataset_of(
    x: Any = CENTRES_X,
    y: Any = CENTRES_Y,
    *,
    mapping: Mapping[str, Any] | None = None,
    x_attrs: Mapping[str, Any] | None = None,
    y_attrs: Mapping[str, Any] | None = None,
    array: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> xr.Dataset:
    coords: dict[str, Any] = {} if x is None else {"x": ("x", x, x_attrs), "y": ("y", y, y_attrs)}
    pixels = xr.DataArray(np.zeros((1, SIDE, SIDE), np.uint8), dims=("band", "y", "x"), coords=coords, attrs=array)
    found = xr.Dataset({"pixels": pixels}, attrs={"proj:code": "EPSG:32633", **attributes})
    return found if mapping is None else found.assign_coords(spatial_ref=((), 0, mapping))


def place(dataset: xr.Dataset, epsg: int = 32633, resolution: float | None = 10.0) -> tuple[float, float, float]:
    return georeferencing(dataset, dataset["pixels"], epsg, Reading(resolution=resolution))


# Coordinates and transforms

SAME: dict[str, xr.Dataset] = {
    "centres": dataset_of(),
    "float32": dataset_of(CENTRES_X.astype("f4"), CENTRES_Y.astype("f4")),
    "integers": dataset_of(CENTRES_X.astype("i4"), CENTRES_Y.astype("i4")),
    "packed": dataset_of(
        np.arange(SIDE, dtype="i2"),
        -np.arange(SIDE, dtype="i2"),
        x_attrs={"scale_factor": 10.0, "add_offset": WEST + 5},
        y_attrs={"scale_factor": [10.0], "add_offset": NORTH - 5},
    ),
    "centres beside GeoZarr": dataset_of(**{"spatial:transform": AFFINE}),
    "corners beside GeoZarr": dataset_of(CORNERS_X, CORNERS_Y, **{"spatial:transform": AFFINE}),
    "nodes of GeoZarr": dataset_of(
        **{"spatial:transform": [10, 0, WEST + 5, 0, -10, NORTH - 5], "spatial:registration": "node"}
    ),
    "corners beside rioxarray": dataset_of(CORNERS_X, CORNERS_Y, mapping={"GeoTransform": GDAL}),
    "corners beside a list of GDAL": dataset_of(
        CORNERS_X, CORNERS_Y, mapping={"GeoTransform": [WEST, 10, 0, NORTH, 0, -10]}
    ),
    "corners beside STAC": dataset_of(CORNERS_X, CORNERS_Y, array={"proj:transform": [*AFFINE, 0, 0, 1]}),
    "corners beside stackstac": dataset_of(CORNERS_X, CORNERS_Y, array={"transform": [*AFFINE, 0, 0, 1]}),
    "corners beside two that agree": dataset_of(
        CORNERS_X, CORNERS_Y, mapping={"GeoTransform": GDAL}, **{"spatial:transform": AFFINE}
    ),
    "a part of what rioxarray had": dataset_of(mapping={"GeoTransform": f"{WEST - 70} 10 0 {NORTH + 120} 0 -10"}),
    "a part of what stackstac had": dataset_of(array={"transform": [10, 0, WEST - 70, 0, -10, NORTH]}),
    "no coordinates beside GeoZarr": dataset_of(None, None, **{"spatial:transform": AFFINE}),
    "another transform": dataset_of(transform="by hand"),
    "the transform of no transform": dataset_of(mapping={"GeoTransform": "0 1 0 0 0 1"}),
}


@pytest.mark.parametrize("what", SAME)
def test_all_say_the_same_place(what: str) -> None:
    assert place(SAME[what]) == (WEST, NORTH, 10.0)


def test_a_rounded_coordinate_is_made_good_by_a_transform() -> None:
    x, y = (CENTRES_X + 0.2).astype("f4"), (CENTRES_Y + 0.2).astype("f4")
    assert place(dataset_of(x, y, **{"spatial:transform": [10, 0, WEST + 0.2, 0, -10, NORTH + 0.2]}))[:2] == (
        WEST + 0.2,
        NORTH + 0.2,
    )


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (
            dataset_of(CENTRES_X - 3, CENTRES_Y, mapping={"GeoTransform": GDAL}),
            "has coordinates from 300002, 5099995 in steps of 10, -10, but a GeoTransform from 300000, ",
        ),
        (
            dataset_of(CORNERS_X, CENTRES_Y, **{"spatial:transform": AFFINE}),
            "expected the centres of its pixels, or their corners",
        ),
        (dataset_of(CORNERS_X + 10, CORNERS_Y - 10, **{"spatial:transform": AFFINE}), "but a spatial:transform from"),
        (dataset_of(CENTRES_X - 70, CENTRES_Y, **{"spatial:transform": AFFINE}), "but a spatial:transform from"),
        (dataset_of(**{"spatial:transform": [20.0, 0, WEST, 0, -20.0, NORTH]}), "in steps of 20, -20: expected the"),
        (
            dataset_of(
                mapping={"GeoTransform": f"{WEST + 5} 10 0 {NORTH - 5} 0 -10"},
                **{"spatial:transform": [10, 0, WEST - 70, 0, -10, NORTH]},
            ),
            "that are corners of pixels by one of spatial:transform and GeoTransform, and centres by another",
        ),
        (
            dataset_of(mapping={"GeoTransform": GDAL}, **{"spatial:transform": [10, 0, WEST + 5, 0, -10, NORTH - 5]}),
            "has a spatial:transform from 300005, 5099995 beside a GeoTransform from 300000, 5100000: ",
        ),
        (dataset_of(**{"spatial:transform": [10, 1, WEST, 1, -10, NORTH]}), "expected one that is not rotated"),
        (
            dataset_of(**{"spatial:transform": [10, 0, WEST]}),
            r"has the spatial:transform \[10, 0, 300000.0\]",
        ),
        (dataset_of(mapping={"GeoTransform": "here"}), "has the GeoTransform here, expected six numbers"),
        (dataset_of(None, None), "lacks the coordinates x, y"),
        (dataset_of(CENTRES_X, CENTRES_Y[::-1]), "has pixels of 10 x -10: expected squares in metres, rows from north"),
        (dataset_of(CENTRES_X**2), "has a coordinate x that is not evenly spaced"),
        (
            dataset_of(np.where(CENTRES_X > WEST + 50, CENTRES_X, np.nan)),
            "has a coordinate x that is not evenly spaced",
        ),
        (dataset_of(np.full(SIDE, "a")), "has a coordinate x of 1 dimensions and <U1: expected numbers"),
        (
            dataset_of(x_attrs={"scale_factor": [1, 2]}),
            r"has the attribute scale_factor \[1, 2\], expected a number",
        ),
        (
            dataset_of(np.arange(SIDE), x_attrs={"scale_factor": 10.0, "add_offset": WEST, "_FillValue": 3}),
            "has a coordinate x that is not evenly spaced",
        ),
    ],
)
def test_contradictions_and_what_is_no_place(dataset: xr.Dataset, said: str) -> None:
    with pytest.raises(ChipError, match=said):
        place(dataset)


def test_feet_are_no_metres() -> None:
    """New York's state plane is in US survey feet."""
    feet = 10 / 0.3048006096012192
    dataset = dataset_of(980_000 + feet * (0.5 + np.arange(SIDE)), 200_000 - feet * (0.5 + np.arange(SIDE)))
    west, north, step = place(dataset, 2263)
    assert (west, north, step) == pytest.approx((980_000, 200_000, feet))
    ten = dataset_of(980_005 + 10 * np.arange(SIDE), 199_995 - 10 * np.arange(SIDE))
    said = r"has pixels of 3.0480\d+ m \(10 in the unit of EPSG:2263\), expected 10 m: resample it"
    with pytest.raises(ChipError, match=said):
        place(ten, 2263)
    assert place(ten, 2263, None) == (980_000, 200_000, 10)


# CRSs


@pytest.mark.parametrize(
    "attributes",
    [
        {"proj:code": "EPSG:32633"},
        {"proj:code": ["EPSG:32633"]},
        {"proj:code": None, "proj:epsg": 32633},
        {"proj:code": None, "proj:epsg": 32633.0},
        {"proj:code": None, "proj:epsg": [32633]},
        {"proj:code": None, "crs": b"EPSG:32633"},
        {"proj:code": None, "crs": np.int64(32633)},
        {"proj:code": "", "proj:projjson": pyproj.CRS(32633).to_json_dict()},
        {"proj:code": [], "proj:wkt2": pyproj.CRS(32633).to_wkt()},
    ],
)
def test_a_crs_in_many_forms(attributes: dict[str, Any]) -> None:
    assert epsg_of(dataset_of(**attributes)) == 32633


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"proj:code": ["EPSG:32633", "EPSG:32634"]}, "has a CRS that PROJ does not know: "),
        ({"proj:code": None, "crs": {"a": 1}}, "has a CRS that PROJ does not know: {'a': 1}"),
        ({"proj:code": None, "crs": 10**30}, "has a CRS that PROJ does not know: 1000"),
        ({"proj:code": None, "crs": True}, "has a CRS that PROJ does not know: True"),
        ({"proj:code": None}, "has no CRS"),
        ({"crs": 32634}, "has the CRSs "),
    ],
)
def test_what_is_no_crs(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(ChipError, match=said):
        epsg_of(dataset_of(**attributes))


# Times


def days(found: list[Any]) -> list[str]:
    return [f"{label} {day} {number}" for label, day, number in found]


ALONG = ["2019-04-16 2019-04-16 0", "2019-04-21 2019-04-21 1"]


@pytest.mark.parametrize(
    ("values", "attributes"),
    [
        ([18_002, 18_007], {"units": "days since 1970-01-01"}),
        ([18_002.4, 18_007.9], {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}),
        (np.array([0, 10], "i2"), {"units": "days since 2019-04-16", "scale_factor": 0.5}),
        (np.array([2, 7], "i2"), {"units": "days since 1970-01-01", "add_offset": 18_000}),
        (["2019-04-16", "2019-04-21"], {}),
        (["2019-04-16T10:00:31Z", "2019-04-21T10:00:31.5+00:00"], {}),
        (np.array([b"2019-04-16", b"2019-04-21"], "S10"), {}),
        (np.array(["20190416", "20190421"], object), {}),
    ],
)
def test_times_along_a_dimension(values: Any, attributes: dict[str, Any]) -> None:
    values = np.asarray(values)
    time = xr.Variable(("time",), values, attributes)
    dataset = xr.Dataset({"pixels": (("time",), np.zeros(2))}, coords={"time": time})
    assert days(times_of(dataset, dataset.pixels, f"{TILE}.zarr")) == ALONG


@pytest.mark.parametrize(
    ("values", "attributes", "said"),
    [
        ([20190416, 20190421], {}, "has a dimension time without dates: .* it is of int64 without units"),
        ([0, 5], {"units": "parsecs since 1970"}, "has a coordinate time that is not to be decoded: "),
        ([0, 5], {"units": "days since 2019-04-16", "calendar": "360_day"}, "has a coordinate time that is not to be"),
        ([0, 5], {"units": ["days"]}, "has a dimension time without dates"),
        (["2019-04-16", "spring"], {}, "has a coordinate time that is no date: Invalid isoformat string: 'spring'"),
        ([0, -1], {"units": "days since 2019-04-16", "_FillValue": -1}, "lacks a date at time 1"),
        ([np.nan, 1.0], {"units": "days since 2019-04-16"}, "lacks a date at time 0"),
        ([1, 1], {"units": "days since 2019-04-16"}, "has several images of one time"),
    ],
)
def test_times_that_are_none(values: Any, attributes: dict[str, Any], said: str) -> None:
    time = xr.Variable(("time",), np.asarray(values), attributes)
    dataset = xr.Dataset({"pixels": (("time",), np.zeros(2))}, coords={"time": time})
    with pytest.raises(ChipError, match=said):
        times_of(dataset, dataset.pixels, f"{TILE}.zarr")


def one(time: xr.Variable | None = None, name: str = f"{TILE}.zarr", **attributes: Any) -> list[Any]:
    dataset = xr.Dataset({"pixels": (("band",), np.zeros(1))}, attrs=attributes)
    dataset = dataset if time is None else dataset.assign_coords(time=time)
    pixels = dataset.pixels.expand_dims(time=dataset.time) if "time" in dataset.dims else dataset.pixels
    return times_of(dataset, pixels, name)


UNITS = {"units": "days since 1970-01-01"}


@pytest.mark.parametrize(
    "found",
    [
        lambda: one(xr.Variable((), 18_002, UNITS)),
        lambda: one(xr.Variable((), 18_002.9, UNITS)),
        lambda: one(xr.Variable((), "2019-04-16")),
        lambda: one(xr.Variable(("t",), [18_002], UNITS)),
        lambda: one(xr.Variable((), np.nan, UNITS), date=DAY),
        lambda: one(xr.Variable((), np.nan, UNITS), f"{TILE}_20190416.zarr"),
        lambda: one(date=DAY),
        lambda: one(date=[DAY]),
        lambda: one(date=20190416),
        lambda: one(date="2019-04-15T23:30-05:00"),
        lambda: one(xr.Variable((), "2019-04-15T23:30:00-05:00")),
        lambda: one(date=b"2019-04-16T10:00:31Z"),
        lambda: one(name=f"{TILE}_20190416.zarr"),
        lambda: one(xr.Variable((), 18_002, UNITS), f"{TILE}_2019-04-16.zarr"),
    ],
)
def test_one_time(found: Any) -> None:
    assert found() == [(DAY, date(2019, 4, 16), None)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda: one(), "tells no date"),
        (lambda: one(xr.Variable((), np.nan, UNITS)), "tells no date"),
        (lambda: one(xr.Variable(("t",), [1, 2], UNITS)), "has a coordinate time of 2 days and no dimension time"),
        (lambda: one(xr.Variable((), 18_002)), "has a dimension time without dates: .* it is of int64 without units"),
        (
            lambda: one(date=[DAY, "2019-04-17"]),
            r"has the attribute date \['2019-04-16', '2019-04-17'\]",
        ),
        (lambda: one(date="spring"), "has the attribute date 'spring', expected YYYY-MM-DD"),
        (lambda: one(date={"of": 1}), "has the attribute date {'of': 1}, expected YYYY-MM-DD"),
        (
            lambda: one(name=f"{TILE}_20190417.zarr", date=DAY),
            "is named after 2019-04-17 and has the attribute date 2019-04-16: expected one day",
        ),
        (
            lambda: one(xr.Variable((), 18_002, UNITS), date="2020-01-01"),
            "has a coordinate time of 2019-04-16 and has the",
        ),
        (
            lambda: one(xr.Variable(("time",), [18_002], UNITS), date="2020-01-01"),
            "has a time of 2019-04-16 and has the",
        ),
        (
            lambda: one(xr.Variable(("time",), [18_002], UNITS), f"{TILE}_20210101.zarr"),
            "is named after 2021-01-01 and has a time of 2019-04-16: expected one day",
        ),
    ],
)
def test_no_time(found: Any, said: str) -> None:
    with pytest.raises(ChipError, match=said):
        found()


@pytest.mark.parametrize(
    ("value", "expected"),
    [([1], 1), ((b"a",), "a"), (np.array([2.5]), 2.5), (np.float32(1), 1.0), ([1, 2], [1, 2]), (b"\xff", "\ufffd")],
)
def test_plain_values(value: Any, expected: Any) -> None:
    assert plain(value) == expected


# Stores


def store(folder: Path, *, form: int, days: int = 2, consolidated: bool = True) -> Path:
    dims, coords = ("time", "band", "y", "x"), {"band": ["red", "green", "blue", "nir"], "y": CENTRES_Y, "x": CENTRES_X}
    start = np.datetime64(DAY, "ns")
    coords["time"] = start + np.arange(days) * np.timedelta64(1, "D")
    pixels = np.ones((days, 4, SIDE, SIDE), np.uint8)
    found = xr.DataArray(pixels, dims=dims, coords=coords, name="pixels").to_dataset()
    found = found.assign_attrs({"proj:code": "EPSG:32633"})
    found.to_zarr(folder / f"{TILE}.zarr", zarr_format=form, consolidated=consolidated)
    return folder / f"{TILE}.zarr"


def index(folder: Path) -> Any:
    reading = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5", sensor="naip", precision="fp32")
    return daskembed.index_tile(TILE, str(folder), encoder=reading)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("form", [2, 3])
def test_consolidated_metadata_that_are_old_hide_nothing(form: int, tmp_path: Path) -> None:
    path = store(tmp_path, form=form)
    more = xr.open_zarr(path).isel(time=[0]).load().assign_coords(time=np.array(["2019-05-01"], "datetime64[ns]"))
    for name in more.variables:
        more[name].encoding.clear()
    more.to_zarr(path, append_dim="time", zarr_format=form, consolidated=False)
    assert [str(day) for day in index(tmp_path)["date"]] == ["2019-04-16", "2019-04-17", "2019-05-01"]


@pytest.mark.parametrize("form", [2, 3])
def test_stray_files_are_none_of_a_store(form: int, tmp_path: Path) -> None:
    path = store(tmp_path, form=form)
    before = index(tmp_path)
    (path / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "._pixels", "Thumbs.db", "desktop.ini", "pixels/.DS_Store", ".ipynb_checkpoints/x"):
        (path / name).write_bytes(b"x")
    after = index(tmp_path)
    assert after["quarantined"].isna().all()
    assert list(after["etag"]) == list(before["etag"])
    np.testing.assert_array_equal(after["chip"][1].read(), np.ones((4, 512, 512), np.uint8))
    (path / "README.txt").write_text("our data")
    assert index(tmp_path)["quarantined"].isna().all()


def test_packed_coordinates_of_a_store(tmp_path: Path) -> None:
    path = store(tmp_path, form=3)
    cube = xr.open_zarr(path).load()
    pack = {"dtype": "int32", "scale_factor": 10.0, "_FillValue": None}
    encoding = {"x": {**pack, "add_offset": WEST + 5}, "y": {**pack, "add_offset": NORTH - 5}}
    for name in cube.variables:
        cube[name].encoding.clear()
    cube.to_zarr(path, mode="w", encoding=encoding, consolidated=False)
    assert json.loads((path / "x/zarr.json").read_text())["data_type"] == "int32"
    assert (index(tmp_path)["west"][0], index(tmp_path)["north"][0]) == (WEST, NORTH)


def test_a_store_that_lies_elsewhere(tmp_path: Path) -> None:
    path = store(tmp_path, form=3)
    path.rename(tmp_path / "31SFA.zarr")
    encoder = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5", sensor="naip", precision="fp32")
    said = (
        r"31SFA.zarr is not at tile 31SFA: its bounds in EPSG:32633 are 300000, 5094800, 305200, 5100000 \(west, "
        r"south, east, north\), expected within 20 km of easting 600000 to 700000, northing 4000000 to 4100000 of EPSG:"
    )
    with pytest.raises(TileError, match=said):
        daskembed.index_tile("31SFA", str(tmp_path), encoder=encoder)


def test_a_store_that_lies_elsewhere_is_one_among_others(tmp_path: Path) -> None:
    """Not one for each of its dates."""
    other = store(tmp_path, form=3).rename(tmp_path / f"{TILE}_other.zarr")
    meta = json.loads((other / "zarr.json").read_text())
    meta["attributes"]["proj:code"] = "EPSG:32631"
    (other / "zarr.json").write_text(json.dumps(meta))
    store(tmp_path, form=3)
    frame = index(tmp_path)
    assert list(frame["quarantined"].isna()) == [True, True, False]
    assert frame["source_url"][2] == str(other)


@pytest.mark.parametrize(
    ("where", "attributes", "said"),
    [
        ("zarr.json", {"proj:code": {"a": [1]}}, "has a CRS that PROJ does not know: {'a'"),
        ("zarr.json", {"spatial:transform": "nowhere"}, "has the spatial:transform nowhere, expected six numbers"),
        ("x/zarr.json", {"scale_factor": "ten"}, "has the attribute scale_factor 'ten', expected a number"),
        ("y/zarr.json", {"add_offset": {}}, "has the attribute add_offset {}, expected a number"),
        ("time/zarr.json", {"units": 7}, "has a dimension time without dates"),
        ("time/zarr.json", {"calendar": "martian"}, "has a coordinate time that is not to be decoded: "),
    ],
)
def test_odd_attributes_of_a_store_are_told(where: str, attributes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = store(tmp_path, form=3, consolidated=False)
    meta = json.loads((path / where).read_text())
    meta["attributes"] |= attributes
    (path / where).write_text(json.dumps(meta))
    with pytest.raises(TileError, match=said):
        index(tmp_path)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("crs", ["+init=epsg:32633", "+INIT=EPSG:32633 +type=crs"])
def test_old_words_for_a_code_are_read_without_a_warning(crs: str) -> None:
    assert epsg_of(xr.Dataset(attrs={"crs": crs})) == 32633
