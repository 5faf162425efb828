"""Vectors of int8, and back: how near, how much is found again, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import dask_geopandas
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

import daskembed
from benchmarks import small
from benchmarks.small import made_up, neighbours, recall
from daskembed.errors import InputError
from daskembed.exports.names import PROFILES
from daskembed.exports.profiles import vectors_of
from daskembed.histogram import Histogram
from daskembed.quantization import KEY, Calibration, dequantize, parse_calibration, quantize
from daskembed.runs.export_options import PERCENTILE
from daskembed.vectors import VectorArray, VectorDtype

MADE: dict[str, Any] = {
    "encoder": "clay-v0",
    "size": "small",
    "checkpoint": "clay-v0.ckpt",
    "sha256": "ab" * 32,
    "level": "mean",
    "shape": [64],
}


def scene(rows: int, seed: int = 0) -> np.ndarray:
    return made_up(rows, 64, seed)


def calibration(percentile: float = 99.9, rows: int = 2000) -> Calibration:
    return Calibration.of(Histogram.of(scene(rows)), percentile, MADE, 1)


def test_the_nearest_neighbours_are_found_again() -> None:
    vectors, made = scene(1500), calibration()
    truth = neighbours(vectors)
    assert recall(neighbours(dequantize(quantize(vectors, made), made)), truth) >= 0.9
    assert recall(neighbours(vectors.astype(np.float16).astype(np.float32)), truth) >= 0.99


@pytest.mark.real
def test_the_nearest_neighbours_of_a_real_file_are_found_again(shared: Path) -> None:
    found = {(row["dtype"], row["percentile"]): float(row["recall@10"]) for row in small.run()}
    assert found["float32", ""] == 1
    assert found["float16", ""] >= 0.999
    assert found["int8", f"{PERCENTILE:g}"] >= 0.985


def test_without_a_real_file_the_benchmark_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(small, "REAL", tmp_path)
    with pytest.raises(SystemExit, match="needs a real published file"):
        small.run()


def test_what_comes_back_is_half_a_step_away_at_most() -> None:
    made, vectors = calibration(percentile=100), scene(2000)
    whole = quantize(vectors, made)
    assert whole.dtype == np.int8
    assert whole.min() == -127
    assert whole.max() == 127
    back = dequantize(whole, made)
    assert back.dtype == np.float32
    # And a little, as float32 has 24 digits.
    step = np.array(made.scale)
    assert (np.abs(back.astype(np.float64) - vectors) <= 0.501 * step + 1e-7).all()


def test_what_is_beyond_the_range_is_at_its_end() -> None:
    made = calibration()
    far = np.full((1, 64), 3e38, np.float32)
    assert (quantize(far, made) == 127).all()
    assert (quantize(-far, made) == -127).all()


def test_a_dimension_that_is_everywhere_the_same_comes_back_as_it_is() -> None:
    vectors = np.tile(np.array([[0.1, 0, -7]], np.float32), (5, 1))
    made = Calibration.of(Histogram.of(vectors), 99.9, MADE, 1)
    np.testing.assert_array_equal(dequantize(quantize(vectors, made), made), vectors)
    # What is not the same is clipped, not carried far away.
    np.testing.assert_allclose(dequantize(quantize(vectors + 1, made), made), vectors, rtol=1e-4, atol=1e-30)


def test_chips_of_patches_take_the_calibration_of_patches() -> None:
    made, patches = calibration(), scene(12)
    chips = quantize(patches.reshape(3, 4, 64), made)
    assert chips.shape == (3, 4, 64)
    np.testing.assert_array_equal(chips.reshape(12, 64), quantize(patches, made))
    np.testing.assert_array_equal(quantize(patches.reshape(3, -1), made), chips.reshape(3, -1))
    np.testing.assert_array_equal(dequantize(chips.reshape(3, -1), made), dequantize(chips, made).reshape(3, -1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_whole_number_stands_for_what_is_none(bad: float) -> None:
    vectors = scene(3)
    vectors[1, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(vectors, calibration())


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="vectors of 65 values, and the `calibration` is for 64 dimensions"):
        quantize(np.zeros((2, 65), np.float32), calibration())


def test_a_calibration_is_read_as_it_was_written() -> None:
    made = calibration()
    assert parse_calibration(made.text(), "it") == made
    told = json.loads(made.text())
    assert told["method"] == "affine"
    assert told["n_dims"] == len(told["scale"]) == len(told["zero_point"]) == 64
    whole = np.arange(-127, 128)[:, None]
    scale, offset, zero = (np.array(told[name]) for name in ("scale", "offset", "zero_point"))
    np.testing.assert_allclose((whole - zero) * scale, whole * scale + offset, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale": [1.0] * 64}, "not those that it was written with"),
        ({"scale": [0.0] * 64}, "a scale is not above 0"),
        ({"offset": [1.0]}, "64 scales and 1 offsets"),
        ({"method": "binary"}, "its method is 'binary', expected 'affine'"),
        ({"level": 3}, "the field 'level' is 3, expected"),
        ({"more": 3}, "unknown field 'more'"),
    ],
)
def test_a_changed_calibration_is_refused(change: dict[str, Any], why: str) -> None:
    text = json.dumps(calibration().document() | change)
    with pytest.raises(InputError, match=f"a.json is not a calibration of daskembed: .*{why}.*daskembed calibrate"):
        parse_calibration(text, "a.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"level": "patch"}, "is for level mean, and 33TUL has patch"),
        ({"encoder": "clay-v1.5"}, "is for encoder clay-v0, and 33TUL has clay-v1.5"),
        ({"sha256": "cd" * 32}, f"is for a checkpoint of the SHA-256 {'ab' * 32}, and 33TUL has {'cd' * 32}"),
        ({"checkpoint": "b.ckpt", "sha256": None}, "is for checkpoint clay-v0.ckpt, and 33TUL has b.ckpt"),
        ({"shape": [16, 16, 32]}, "is for dimensions: 64, and 33TUL has 32"),
        ({"sensor": "sentinel-1-rtc"}, "is for sensor None, and 33TUL has sentinel-1-rtc"),
    ],
)
def test_the_calibration_of_something_else_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        calibration().check(MADE | change, "33TUL")


def test_the_calibration_of_the_same_weights_by_another_name_will_do() -> None:
    calibration().check(MADE | {"checkpoint": "s3://bucket/weights.ckpt"}, "33TUL")
    calibration().check(MADE | {"shape": [16, 16, 64]}, "33TUL")


def frame(made: Calibration, vectors: np.ndarray) -> gpd.GeoDataFrame:
    found = gpd.GeoDataFrame(
        {"source_url": [str(row) for row in range(len(vectors))], "embeddings": VectorArray(quantize(vectors, made))},
        geometry=[shapely.Point(row, row) for row in range(len(vectors))],
        crs="OGC:CRS84",
    )
    found.attrs[KEY] = made.text()
    return found


def test_a_frame_remembers_how_its_vectors_come_back(tmp_path: Path) -> None:
    made, vectors = calibration(), scene(6)
    given, truth = frame(made, vectors), dequantize(quantize(vectors, made), made)
    back = daskembed.dequantize(given)
    assert isinstance(back, gpd.GeoDataFrame)
    assert back.embeddings.dtype == VectorDtype(64, "float32")
    assert KEY in given.attrs
    assert KEY not in back.attrs
    np.testing.assert_array_equal(np.stack(back.embeddings), truth)
    # Others give a column of arrays, and what the footer says.
    given.to_parquet(tmp_path / "a.parquet")
    read = gpd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(np.stack(daskembed.dequantize(read[read.source_url > "2"]).embeddings), truth[3:])
    assert len(daskembed.dequantize(read[:0])) == 0
    renamed = daskembed.dequantize(given.rename(columns={"embeddings": "embedding"}))
    np.testing.assert_array_equal(np.stack(renamed.embedding), truth)


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_the_column_of_each_profile_is_found(profile: str | None) -> None:
    made, vectors = calibration(), scene(6)
    name = vectors_of(profile)
    back = daskembed.dequantize(frame(made, vectors).rename(columns={"embeddings": name}))
    np.testing.assert_array_equal(np.stack(back[name]), dequantize(quantize(vectors, made), made))


def test_a_column_of_any_name_can_be_said() -> None:
    made, vectors = calibration(), scene(6)
    # Beside it there may be one of a usual name, which is something else.
    given = frame(made, vectors).rename(columns={"embeddings": "vectors", "source_url": "embedding"})
    for one in (given, dask_geopandas.from_geopandas(given, npartitions=2)):
        back = daskembed.dequantize(one, column="vectors")
        found = back.vectors if one is given else back.compute(scheduler="sync").vectors
        np.testing.assert_array_equal(np.stack(found), dequantize(quantize(vectors, made), made))


def test_a_lazy_frame_stays_lazy() -> None:
    made, vectors = calibration(), scene(6)
    given, truth = frame(made, vectors), dequantize(quantize(vectors, made), made)
    lazy = daskembed.dequantize(dask_geopandas.from_geopandas(given, npartitions=2))
    assert isinstance(lazy, dask_geopandas.GeoDataFrame)
    assert lazy.dtypes["embeddings"] == VectorDtype(64, "float32")
    np.testing.assert_array_equal(np.stack(lazy.compute(scheduler="sync").embeddings), truth)
    plain = dd.from_pandas(pd.DataFrame(given.drop(columns="geometry")), npartitions=1)
    plain = daskembed.dequantize(plain, made).compute(scheduler="sync")
    np.testing.assert_array_equal(np.stack(plain.embeddings), truth)


def test_a_calibration_can_be_a_file(tmp_path: Path) -> None:
    made = calibration()
    (tmp_path / "calibration.json").write_text(made.text())
    whole = quantize(scene(3), made)
    np.testing.assert_array_equal(
        dequantize(whole, str(tmp_path / "calibration.json")), dequantize(whole, tmp_path / "calibration.json")
    )
    with pytest.raises(
        InputError, match=r"no calibration .*none\.json: give the file that `daskembed calibrate` wrote"
    ):
        dequantize(whole, tmp_path / "none.json")


def test_what_cannot_be_given_back_says_what_to_do() -> None:
    made = calibration()
    given = frame(made, scene(3))
    lost = given.copy()
    lost.attrs.clear()
    with pytest.raises(InputError, match="does not say how its vectors became int8: open the files with"):
        dequantize(lost)
    there = "in this GeoDataFrame of source_url, geometry: give the one that holds vectors of int8 as `column`"
    with pytest.raises(InputError, match=f"no column embeddings or embedding {there}"):
        dequantize(given.drop(columns="embeddings"))
    with pytest.raises(InputError, match=f"no column vectors {there}"):
        dequantize(given.drop(columns="embeddings"), column="vectors")
    with pytest.raises(InputError, match="give `calibration`"):
        dequantize(quantize(scene(3), made))
    with pytest.raises(InputError, match="vectors of float32: expected int8"):
        dequantize(scene(3), made)
    other = replace(made, percentile=99.0)
    with pytest.raises(
        InputError, match=f"calibration {made.digest[:12]} of their files, and the one given is {other.digest[:12]}"
    ):
        dequantize(given, other)
