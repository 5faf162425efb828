"""Search in files: which rows are found, which are read for it, and what is said of bad input."""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import date
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import shapely
from distributed import Client, LocalCluster
from embedded import DAY, MADE, squares, url_of, write_rows

import daskembed
from daskembed.cli.main import main
from daskembed.cli.search import _table, short_names
from daskembed.cli.text import print_table
from daskembed.errors import InputError
from daskembed.explore import reading
from daskembed.explore import search as module
from daskembed.explore.estimates import squares_of
from daskembed.explore.footers import open_rows
from daskembed.explore.reading import Block
from daskembed.explore.topk import Best, Least, Queries, best_of
from daskembed.runs.search import write_hits
from daskembed.testing import COVERS, land_cover

DIMS = 16


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(DIMS) * 2 + rng.standard_normal((count, DIMS))).astype(np.float32)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles of 200 rows side by side, in row groups of 30."""
    folder = tmp_path_factory.mktemp("output")
    found = vectors(400)
    for number, (tile, lon) in enumerate((("33TUL", 12.0), ("33TVL", 13.0))):
        write_rows(
            folder / f"{tile}_20220610_20220610_v001.gpq",
            found[200 * number : 200 * (number + 1)],
            footprints=squares(200, lon),
            tile=tile,
            made=MADE,
            group=30,
        )
    return folder


def middle(number: int, lon: float = 12.0) -> tuple[float, float]:
    """Of a square."""
    place = squares(200, lon)[number].centroid
    return place.x, place.y


def order(found: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Rows by their cosine with a query, after taking out the mean."""
    x, q = found - found.mean(axis=0), query - found.mean(axis=0)
    return np.argsort(-(x @ q) / np.linalg.norm(x, axis=1), kind="stable")


def urls(numbers: np.ndarray) -> list[str]:
    return [url_of(int(one) % 200, ("33TUL", "33TVL")[int(one) // 200]) for one in numbers]


def test_a_place(output: Path) -> None:
    hits = daskembed.search(str(output), like=middle(42), k=7)
    found = vectors(400).astype(np.float64)
    expected = order(found, found[42])
    assert expected[0] == 42
    assert list(hits["source_url"]) == urls(expected[1:8])
    assert list(hits["rank"]) == [1, 2, 3, 4, 5, 6, 7]
    assert hits.crs == "OGC:CRS84"
    centred = found - found.mean(axis=0)
    a, b = centred[42], centred[expected[1]]
    assert hits["score"][0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
    assert set(hits["date"]) == {DAY}
    assert hits.geometry[0].equals([*squares(200), *squares(200, 13.0)][expected[1]])
    told = hits.attrs["search"]
    assert (told["searched"], told["left_out"], told["encoder"]) == (400, 0, "clay-v0")
    assert told["examples"][0]["vectors"] == 1


def test_a_place_as_text_a_row_and_a_file_are_the_same(output: Path, tmp_path: Path) -> None:
    lon, lat = middle(42)
    file = tmp_path / "places.geojson"
    gpd.GeoSeries([shapely.Point(lon, lat).buffer(0.001)], crs="OGC:CRS84").to_crs(32633).to_file(
        file.with_suffix(".gpkg")
    )
    gpd.GeoSeries([shapely.Point(lon, lat)], crs="OGC:CRS84").to_file(file)
    first = daskembed.search(str(output), like=(lon, lat), k=5)
    for given in (
        {"like": f"{lon},{lat}"},
        {"like_row": url_of(42)},
        {"like": str(file)},
        {"like": file.with_suffix(".gpkg")},
        {"like": shapely.Point(lon, lat)},
        {"like": gpd.read_file(file)},
        {"like": [f"{lon},{lat}", (lon, lat)]},
    ):
        assert list(daskembed.search(str(output), **given, k=5)["source_url"]) == list(first["source_url"]), given


def test_files_of_areas_in_any_projection_and_format(tmp_path: Path) -> None:
    """Across 180 degrees, too; and what a search wrote can be searched by."""
    wests = (179.75, 179.8, 179.85, 179.9, 179.95, -180.0, -179.95, -179.9, -60.0, 60.0)
    shapes = [shapely.box(west, south, west + 0.05, south + 0.05) for south in (51.0, 51.05) for west in wests]
    write_rows(tmp_path / "rows" / "a.parquet", vectors(20), footprints=shapes, made=MADE)
    area = gpd.GeoSeries([shapely.box(179.9, 51.0, 180.1, 51.05)], crs="OGC:CRS84").segmentize(0.001)
    area = shapely.transform(area[0], lambda xy: np.where(xy > 180, xy - [360, 0], xy))
    area = gpd.GeoDataFrame(geometry=[area], crs="OGC:CRS84").to_crs(32660)
    assert area.total_bounds[2] - area.total_bounds[0] < 20_000
    area.to_file(tmp_path / "area.gpkg")
    area.to_parquet(tmp_path / "area.parquet")
    for given in (area, area.geometry, str(tmp_path / "area.gpkg"), tmp_path / "area.parquet"):
        hits = daskembed.search(str(tmp_path / "rows"), like=given, k=3)
        (example,) = hits.attrs["search"]["examples"]
        assert example["vectors"] == 4
        footprint = shapely.from_wkt(example["footprint"])
        assert [number for number in range(20) if footprint.contains(shapes[number].centroid)] == [3, 4, 5, 6]
    hits.to_parquet(tmp_path / "hits.parquet")
    again = daskembed.search(str(tmp_path / "rows"), like=str(tmp_path / "hits.parquet"), k=3)
    assert [one["vectors"] for one in again.attrs["search"]["examples"]] == [1, 1, 1]
    row = daskembed.search(str(tmp_path / "rows"), like=hits.iloc[0], k=3)
    assert row.attrs["search"]["examples"][0]["vectors"] == 1


def test_an_area_stands_for_the_rows_whose_middle_is_in_it(output: Path) -> None:
    # Of the first row of squares the middles of 3 to 6; what it only touches does not count.
    area = shapely.box(12.0 + 3 * 0.05 + 0.01, 44.96, 12.0 + 7 * 0.05 - 0.01, 45.02)
    hits = daskembed.search(str(output), like=area, k=390)
    assert hits.attrs["search"]["examples"][0]["vectors"] == 4
    found = vectors(400).astype(np.float64)
    expected = [one for one in order(found, found[3:7].mean(axis=0)) if one not in range(3, 7)]
    assert list(hits["source_url"]) == urls(np.array(expected))[:390]


def test_examples_that_are_alike_and_unlike(output: Path) -> None:
    found = vectors(400).astype(np.float64)
    query = 2 * found[[42, 43]].mean(axis=0) - found[[7, 8]].mean(axis=0)
    hits = daskembed.search(str(output), like=[middle(42), middle(43)], unlike=middle(7), unlike_row=[url_of(8)], k=9)
    again = daskembed.search(str(output), like_row=hits["source_url"], k=2)  # of a frame, as of any others
    assert [one["vectors"] for one in again.attrs["search"]["examples"]] == [1] * 9
    expected = [one for one in order(found, query) if one not in (42, 43, 7, 8)]
    assert list(hits["source_url"]) == urls(np.array(expected))[:9]


def test_each_example_for_itself(output: Path) -> None:
    places = [middle(42), middle(100), middle(5, 13.0)]
    hits = daskembed.search(str(output), like=places, combine="each", k=4)
    assert len(hits) == 12
    alone = [daskembed.search(str(output), like=place, k=6) for place in places]
    examples = {url_of(42), url_of(100), url_of(5, "33TVL")}
    for (text, group), one in zip(hits.groupby("query", sort=False), alone, strict=True):
        assert text.startswith(one.attrs["search"]["examples"][0]["given"])
        assert list(group["rank"]) == [1, 2, 3, 4]
        assert list(group["source_url"]) == [url for url in one["source_url"] if url not in examples][:4]
    # What is given near each other is told apart.
    lon, lat = middle(42)
    near = daskembed.search(str(output), like=[(lon, lat), (lon + 1e-5, lat)], combine="each", k=4)
    told = [tuple(map(float, text.split(","))) for text in near["query"].unique()]
    np.testing.assert_allclose(told, [(lon, lat), (lon + 1e-5, lat)], rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"apart": 9000}, {"combine": "each"}, {"dates": "2022-01-01/2022-12-31"}])
def test_blocks_and_threads_change_nothing(output: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    asked = {"like": [middle(42), middle(150, 13.0)], "k": 20, **options}
    whole = daskembed.search(str(output), **asked)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4 * DIMS * 7)
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    monkeypatch.setattr(module, "_FIRST", 21)
    monkeypatch.setattr(module, "_MORE", 2)
    parts = daskembed.search(str(output), **asked)
    assert list(parts["source_url"]) == list(whole["source_url"])
    np.testing.assert_allclose(parts["score"], whole["score"], rtol=1e-6)


def test_vectors_of_local_files_are_fetched_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows(tmp_path / "a.parquet", vectors(120), made=MADE, group=20)
    rows = open_rows(str(file))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda descriptor, start, length, advice: asked.append((start, start + length))
    )
    list(module._in_threads(rows, 0)(module.sum_piece))
    footer = pq.read_metadata(file)
    columns = [footer.row_group(group).column(number) for group in range(6) for number in range(footer.num_columns)]
    columns = [one for one in columns if one.path_in_schema.startswith("embeddings.")]
    assert len(columns) == 6
    starts = [one.dictionary_page_offset or one.data_page_offset for one in columns]
    assert asked == [(at, at + one.total_compressed_size) for at, one in zip(starts, columns, strict=True)]
    # What is kept is fetched once, and who reads the file says that it is gone.
    over = module._in_threads(rows, 2**30)
    for _ in range(2):
        assert sum(one.count for one in over(module.sum_piece)) == 120
    assert asked == 2 * asked[:6]
    file.unlink()
    reading.read_ahead(rows, rows.pieces[0])


def test_hits_apart(output: Path) -> None:
    near = daskembed.search(str(output), like=middle(42), k=30)
    hits = daskembed.search(str(output), like=middle(42), k=30, apart=9000)
    middles = gpd.GeoSeries(
        [shapely.Point(middle(42)), *shapely.centroid(hits.geometry.to_numpy())], crs="OGC:CRS84"
    ).to_crs(32633)
    between = np.array([middles.distance(one) for one in middles])
    assert between[~np.eye(len(between), dtype=bool)].min() > 8990
    assert hits["source_url"][0] in set(near["source_url"])
    # None that is better was left out without a reason: it is near one that is better still.
    best = daskembed.search(str(output), like=middle(42), k=399)
    place = dict(zip(best["source_url"], best.geometry.to_crs(32633).centroid, strict=True))
    taken = [middles[0]]
    for url in best["source_url"]:
        if min(place[url].distance(one) for one in taken) >= 9000:
            taken.append(place[url])
            if len(taken) > len(hits):
                break
            assert hits["source_url"][len(taken) - 2] == url


def test_days_and_a_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vectors(120)
    days = [date(2022, 1 + number // 30, 15) for number in range(120)]
    file = tmp_path / "33TUL_20220115_20220415_v001.gpq"
    write_rows(file, found, days=days, made=MADE, group=10, covering=True)
    read: list[int] = []

    def counted(rows, piece, *how):  # type: ignore[no-untyped-def]
        read.append(piece.group)
        return reading.read_blocks(rows, piece, *how)

    monkeypatch.setattr(module, "read_blocks", counted)
    asked = {"like": middle(42), "k": 100, "center": False}
    hits = daskembed.search(str(tmp_path), dates="2022-02-01/2022-03-31", **asked)
    assert sorted(set(hits["date"])) == [date(2022, 2, 15), date(2022, 3, 15)]
    assert len(hits) == 59
    assert sorted(read) == [3, 4, 5, 6, 7, 8]  # row groups of other days are not read
    read.clear()
    # Rows 20 to 29 of squares.
    west, south, east, north = shapely.total_bounds(squares(30)[20:])
    region = f"{west + 0.11},{south + 0.01},{east - 0.11},{north - 0.01}"
    hits = daskembed.search(str(tmp_path), region=region, **asked)
    assert sorted(hits["source_url"]) == [url_of(number) for number in range(22, 28)]
    assert read == [2]
    assert hits.attrs["search"]["searched"] == 6


def test_the_mean_is_that_of_all_files_whatever_part_is_searched(output: Path) -> None:
    whole = daskembed.search(str(output), like=middle(42), k=399).set_index("source_url")["score"]
    west, south, east, north = squares(200, 13.0)[57].bounds
    for asked, count in (
        ({"region": f"{west + 0.01},{south + 0.01},{east - 0.01},{north - 0.01}"}, 1),
        ({"region": f"{west - 0.01},{south - 0.01},{east + 0.01},{north + 0.01}"}, 9),
        ({"dates": "2022-06-10/2022-06-10"}, 399),
    ):
        part = daskembed.search(str(output), like=middle(42), k=399, **asked).set_index("source_url")["score"]
        assert len(part) == count
        np.testing.assert_allclose(part, whole[part.index], rtol=1e-9)


def test_the_bytes_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = np.random.default_rng(0).standard_normal((2000, 256)).astype(np.float32)
    file = write_rows(tmp_path / "part.parquet", found, footprints=squares(2000), made=MADE, group=100, covering=True)
    seen: list[tuple[int, int]] = []

    class Counting:
        def __init__(self, plain):  # type: ignore[no-untyped-def]
            self._file, self.closed = plain, False

        def read(self, size: int = -1) -> bytes:
            data = self._file.read(size)
            seen.append((self._file.tell(), len(data)))
            return data

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(self._file, name)

    from daskembed.storage.stores import Storage

    monkeypatch.setattr(
        Storage,
        "open_reader",
        lambda self, path: pa.PythonFile(Counting(open(self.url_of(path), "rb")), mode="r"),  # noqa: SIM115, PTH123
    )
    west, south, east, north = shapely.total_bounds(squares(2000)[500:600])
    hits = daskembed.search(
        str(file),
        like=middle(55),
        k=5,
        center=False,  # the mean is that of all rows
        region=f"{west + 0.01},{south + 0.01},{east - 0.01},{north - 0.01}",
    )
    assert hits.attrs["search"]["searched"] == 100
    total = sum(size for _, size in seen)
    # Of 20 row groups that of the example and that of the region.
    assert total < 0.2 * file.stat().st_size


def test_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = rng.standard_normal((6, 4, 4, DIMS)).astype(np.float32)
    found[5, 2, 3] = found[1, 0, 2] * 2 - found.reshape(-1, DIMS).mean(axis=0)
    write_rows(tmp_path / "33TUL_20220610_20220610_v001.gpq", found, made=MADE | {"level": "patch"})
    west, south, east, north = squares(6)[1].bounds
    step = (east - west) / 4
    place = (west + 2.5 * step, north - 0.5 * step)
    hits = daskembed.search(str(tmp_path), like=place, k=3)
    assert (hits["source_url"][0], hits["row"][0], hits["col"][0]) == (url_of(5), 2, 3)
    assert hits.attrs["search"]["searched"] == 96
    there = squares(6)[5].bounds
    expected = shapely.box(there[0] + 3 * step, there[3] - 3 * step, there[0] + 4 * step, there[3] - 2 * step)
    assert hits.geometry[0].equals_exact(expected, 1e-9, normalize=True)
    by_name = daskembed.search(str(tmp_path), like_row=f"{url_of(1)}#patch=0,2", k=3)
    assert list(by_name["score"]) == list(hits["score"])
    with pytest.raises(InputError, match=rf"^{url_of(1)}#patch=4,0: its patches run from 0,0 to 3,3, as ROW,COL$"):
        daskembed.search(str(tmp_path), like_row="chip_000001#patch=4,0")
    # A row is the mean of its patches.
    chip = daskembed.search(str(tmp_path), like_row=url_of(1), k=3)
    assert chip.attrs["search"]["examples"][0]["vectors"] == 16
    inside = daskembed.search(str(tmp_path), like=place, k=96, region=f"{west},{south},{east},{north - 3.5 * step}")
    assert {*zip(inside["source_url"], inside["row"], strict=True)} >= {(url_of(1), 3)}
    assert {row for url, row in zip(inside["source_url"], inside["row"], strict=True) if url == url_of(1)} == {3}


def test_patches_with_groups_of_bands(tmp_path: Path) -> None:
    found = np.random.default_rng(0).standard_normal((3, 6, 2, 2, DIMS)).astype(np.float32)
    write_rows(tmp_path / "33TUL_20220610_20220610_v001.gpq", found, made=MADE | {"level": "group"})
    hits = daskembed.search(str(tmp_path), like_row=f"{url_of(0)}#patch=1,0", k=11, metric="l2")
    flat = np.moveaxis(found, 1, 3).reshape(12, -1).astype(np.float64)
    assert hits["score"][0] == pytest.approx(np.sort(np.linalg.norm(flat - flat[2], axis=1))[1])
    assert len(hits) == 11


def test_small_vectors(tmp_path: Path) -> None:
    found = vectors(300).astype(np.float64)
    low, high = found.min(axis=0), found.max(axis=0)
    scale, offset = (high - low) / 254, (high + low) / 2
    small = np.rint((found - offset) / scale).astype(np.int8)
    quantization = {"method": "affine", "scale": scale.tolist(), "n_dims": DIMS}
    whole = write_rows(tmp_path / "float" / "a.parquet", found.astype(np.float32), made=MADE)
    half = write_rows(tmp_path / "half" / "a.parquet", found.astype(np.float16), made=MADE)
    ours = {"quantization": {**quantization, "offset": offset.tolist()}}
    field = {"quantization": {**quantization, "zero_point": (-offset / scale).tolist()}}
    files = [
        whole,
        half,
        write_rows(tmp_path / "ours" / "a.parquet", small, made=MADE, footer=ours),
        write_rows(tmp_path / "field" / "a.parquet", small, footer=field),
    ]
    hits = [daskembed.search(str(file.parent), like=middle(42), k=20) for file in files]
    for one in hits[1:]:
        assert len(set(one["source_url"]) & set(hits[0]["source_url"])) >= 18
        np.testing.assert_allclose(one["score"], hits[0]["score"], atol=0.02)
    assert list(hits[2]["source_url"]) == list(hits[3]["source_url"])
    values = small * scale + offset
    assert list(hits[2]["source_url"]) == [url_of(int(one)) for one in order(values, values[42])[1:21]]
    bad = write_rows(tmp_path / "bad" / "a.parquet", small, made=MADE)
    with pytest.raises(InputError, match="has no `quantization` that says what they stand for"):
        daskembed.search(str(bad), like=middle(42))
    scale[3] = np.nan
    footer = {"quantization": {**ours["quantization"], "scale": scale.tolist()}}
    bad = write_rows(tmp_path / "nan" / "a.parquet", small, made=MADE, footer=footer)
    with pytest.raises(InputError, match="its `quantization` has NaN or infinity, expected numbers"):
        daskembed.search(str(bad), like=middle(42))


def test_files_of_others(tmp_path: Path) -> None:
    """As the reference writes them: lists without a length, an index, no word of what made them."""
    ours = write_rows(tmp_path / "ours" / "a.parquet", found := vectors(50))
    table = pq.read_table(ours)
    lists = pa.array(list(found), pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("embeddings"), "embeddings", lists)
    theirs = tmp_path / "03WVN_20220610_20220610_v001.gpq"
    pq.write_table(table.add_column(0, "index", pa.array(range(50))), theirs)
    hits = [daskembed.search(str(file), like=middle(42), k=5) for file in (ours, theirs)]
    assert list(hits[0]["source_url"]) == list(hits[1]["source_url"])
    assert hits[1].attrs["search"]["encoder"] is None
    uneven = lists.take(pa.array(range(50))).to_pylist()
    uneven[3] = uneven[3][:-1]
    pq.write_table(table.set_column(2, "embeddings", pa.array(uneven, pa.list_(pa.float32()))), theirs)
    with pytest.raises(InputError, match=r"03WVN.*not all of 16 numbers"):
        daskembed.search(str(theirs), like=middle(42), k=5)


def test_files_without_lists_or_rows(tmp_path: Path) -> None:
    table = pq.read_table(write_rows(tmp_path / "a.parquet", vectors(50)))
    texts = table.set_column(table.schema.get_field_index("embeddings"), "embeddings", pa.array(["a"] * 50))
    pq.write_table(texts, tmp_path / "texts.parquet")
    with pytest.raises(InputError, match="its embeddings is of string, expected lists of numbers"):
        daskembed.search(str(tmp_path / "texts.parquet"), like=middle(3))
    # As pandas has columns without a value.
    none = table.slice(0, 0).set_column(table.schema.get_field_index("date"), "date", pa.nulls(0))
    pq.write_table(none, tmp_path / "none.parquet")
    with pytest.raises(InputError, match="have no rows: there is nothing to search"):
        daskembed.search(str(tmp_path / "none.parquet"), like=middle(3))


def test_files_without_urls_and_dates(tmp_path: Path) -> None:
    """As the profile of Earth Index has them: places are found, and what else is asked is refused in words."""
    ours = write_rows(tmp_path / "ours" / "a.parquet", vectors(50))
    pq.write_table(pq.read_table(ours).drop_columns(["source_url", "date"]), theirs := tmp_path / "b.parquet")
    hits, expected = (daskembed.search(str(file), like=middle(42), k=5) for file in (theirs, ours))
    assert hits["score"].tolist() == expected["score"].tolist()
    assert hits["source_url"].isna().all()
    for asked, message in (
        ({"like": middle(42), "dates": "2024-06-01/2024-06-02"}, "`dates` 2024-06-01/2024-06-02: .* say no dates"),
        ({"like_row": "chip_000001"}, "no row of the URL chip_000001 in .*: its rows have no URLs, give a place$"),
    ):
        with pytest.raises(InputError, match=message):
            daskembed.search(str(theirs), **asked)


def test_columns_of_others(tmp_path: Path) -> None:
    """What is no footprint in degrees or no day is refused, with the file's name, before it misplaces a hit."""
    file = write_rows(tmp_path / "ours" / "a.parquet", vectors(50))
    table, places = pq.read_table(file), squares(50)
    expected = list(daskembed.search(str(file), like=middle(42), k=5)["source_url"])
    theirs = tmp_path / "theirs" / "b.parquet"
    theirs.parent.mkdir()

    def search(column: str = "geometry", values: Any = None, crs: Any = "OGC:CRS84", **asked: Any) -> Any:
        changed = table.set_column(table.schema.get_field_index(column), column, values) if values else table
        geo = json.loads(table.schema.metadata[b"geo"])
        geo["columns"]["geometry"]["crs"] = pyproj.CRS(crs).to_json_dict() if isinstance(crs, str | int) else crs
        if crs == 32633:
            del geo["columns"]["geometry"]["bbox"]
        metadata = {} if crs == "none" else {"geo": json.dumps(geo)}
        pq.write_table(
            changed.replace_schema_metadata(metadata), theirs, write_statistics=asked.pop("statistics", True)
        )
        return daskembed.search(str(theirs), **{"like": middle(42), "k": 5} | asked)

    def wkb(shapes: Any) -> Any:
        return pa.array(shapely.to_wkb(np.array(shapes, object)), pa.binary())

    for days in (
        pa.array(["2022-06-10 10:00:00"] * 50),
        pa.array(["2022-06-10T10:00:00Z"] * 50).dictionary_encode(),
        pa.array([np.datetime64("2022-06-10T10:00:00", "us")] * 50),
    ):
        hits = search("date", days, crs="EPSG:4326")
        assert list(hits["source_url"]) == expected
        assert set(hits["date"]) == {DAY}
    metres = list(gpd.GeoSeries(places, crs="OGC:CRS84").to_crs(32633))
    for message, asked in (
        ("of the CRS WGS 84 / UTM zone 33N, expected OGC:CRS84 or EPSG:4326", {"values": wkb(metres), "crs": 32633}),
        ("of the CRS that nobody knows", {"crs": None}),
        (r"its footprints reach from \d+.* expected degrees", {"values": wkb(metres)}),
        ("the date 'June 2022': expected one of ISO 8601", {"column": "date", "values": pa.array(["June 2022"] * 50)}),
        ("its date is of int64, expected dates", {"column": "date", "values": pa.array(range(50))}),
        ("its source_url is of int64, expected text", {"column": "source_url", "values": pa.array(range(50))}),
        ("row 0 has Point, expected a polygon", {"values": wkb([one.centroid for one in places])}),
        ("2 of 50 rows have no footprint", {"values": wkb([None, None, *places[2:]]), "apart": 100}),
        ("2 of 50 rows have no footprint", {"values": wkb([None, None, *places[2:]]), "statistics": False}),
        ("1 of 50 rows have no footprint", {"values": wkb([shapely.Polygon(), *places[1:]]), "apart": 100}),
    ):
        with pytest.raises(InputError, match=rf"b.parquet cannot be searched.*{message}"):
            search(**asked)
    lists = pa.array([], pa.list_(pa.float32()))
    pq.write_table(table.slice(0, 0).set_column(2, "embeddings", lists), theirs)
    with pytest.raises(InputError, match=r"the files of embeddings in .*theirs have no rows"):
        daskembed.search(str(theirs), like=middle(42))
    # Beside others it is nothing that could not be compared.
    pq.write_table(table, theirs.with_name("c.parquet"))
    assert list(daskembed.search(str(theirs.parent), like=middle(42), k=5)["source_url"]) == expected


def test_rows_named_as_major_tom_names_them(tmp_path: Path) -> None:
    ours = pq.read_table(write_rows(tmp_path / "ours" / "a.parquet", vectors(50)))
    for names in ({"source_url": "product_id"}, {"source_url": "unique_id"}):
        columns = {"embeddings": "embedding", "date": "timestamp"} | names
        theirs = ours.rename_columns(columns)
        if "product_id" in columns.values():
            theirs = theirs.append_column("unique_id", pa.array([f"{number:064x}" for number in range(50)]))
        pq.write_table(theirs, tmp_path / "b.parquet")
        hits = daskembed.search(str(tmp_path / "b.parquet"), like_row=url_of(42), k=3)
        assert list(hits["source_url"]) == list(
            daskembed.search(str(tmp_path / "ours"), like=middle(42), k=3)["source_url"]
        )


def test_an_area_and_its_example_whatever_is_read_at_a_time(tmp_path: Path) -> None:
    """The middle of the area is in one row, the middle of another row in the area."""
    first, second = shapely.box(12, 45, 12.1, 45.1), shapely.box(12.1, 45, 12.12, 45.1)
    area = shapely.box(12.06, 45.04, 12.115, 45.06)
    assert area.contains(second.centroid)
    assert not area.contains(first.centroid)
    assert shapely.point_on_surface(area).within(first)
    for order in ([first, second], [second, first]):
        for group in (1, 2):
            write_rows(tmp_path / "a.parquet", vectors(2), footprints=order, made=MADE, group=group)
            hits = daskembed.search(str(tmp_path), like=area, k=1)
            (example,) = hits.attrs["search"]["examples"]
            assert example["vectors"] == 1
            assert shapely.from_wkt(example["footprint"]).contains(second.centroid)


def test_exports_of_patches(tmp_path: Path) -> None:
    """Rows that are patches, with columns that say which."""
    cells = {"row": pa.array(np.arange(40) // 4, pa.int32()), "col": pa.array(np.arange(40) % 4, pa.int32())}
    file = write_rows(tmp_path / "p.parquet", vectors(40), made=MADE | {"shape": [16, 16, DIMS]}, columns=cells)
    hits = daskembed.search(str(file), like=middle(21), k=3)
    number = int(hits["source_url"][0][-10:-4])
    assert (hits["row"][0], hits["col"][0]) == divmod(number, 4)
    named = daskembed.search(str(file), like_row=f"{url_of(21)}#patch=5,1", k=3)
    assert list(named["score"]) == list(hits["score"])
    with pytest.raises(InputError, match="#patch=4,1: its patches run from 5,1 to 5,1, as ROW,COL"):
        daskembed.search(str(file), like_row=f"{url_of(21)}#patch=4,1")


def test_rows_without_numbers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = vectors(60)
    found[[3, 30]] = np.nan
    write_rows(tmp_path / "a.parquet", found, made=MADE)
    with caplog.at_level(logging.WARNING):
        hits = daskembed.search(str(tmp_path), like=middle(42), k=100)
    assert len(hits) == 57
    assert np.isfinite(hits["score"]).all()
    assert hits.attrs["search"]["left_out"] == 2
    assert "2 vectors with NaN or infinity left out" in caplog.text
    assert "`k` 100 hits were asked for, and there are 57 beside the examples" in caplog.text
    with pytest.raises(InputError, match="vectors there have NaN or infinity: nothing can be like them"):
        daskembed.search(str(tmp_path), like=middle(3))
    write_rows(tmp_path / "a.parquet", np.full((9, DIMS), np.nan, np.float32), made=MADE)
    with pytest.raises(InputError, match="NaN or infinity"):
        daskembed.search(str(tmp_path), like=middle(3))


def test_the_weights_of_a_seed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path / "a.parquet", vectors(20), made=MADE | {"checkpoint": "untrained:tiny:0"})
    hits = daskembed.search(str(tmp_path), like=middle(3), k=3)
    assert hits.attrs["search"]["untrained"] is True
    page = (files("daskembed.explore") / "page" / "index.html").read_text()
    words = " ".join(re.sub("<[^>]*>", "", page).split())
    told = caplog.messages[-1].removeprefix("warning: untrained weights. ")
    assert "seeded noise" in told
    assert f"Untrained weights: meaningless. {told}." in words


def test_mixed_files_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "33TUL_20220610_20220610_v001.gpq", vectors(20), made=MADE)
    write_rows(tmp_path / "33TVL_20220610_20220610_v001.gpq", vectors(20), made=MADE | {"encoder": "clay-v1.5"})
    with pytest.raises(
        InputError,
        match=r"mixes embeddings that do not go together: 1 of encoder clay-v0; 1 of encoder clay-v1.5; choose by "
        "`encoder`",
    ):
        daskembed.search(str(tmp_path), like=middle(3))
    assert len(daskembed.search(str(tmp_path), like=middle(3), encoder="clay-v0", k=5)) == 5
    with pytest.raises(InputError, match=r"no files of `level` patch in .*: it holds 1 of encoder"):
        daskembed.search(str(tmp_path), like=middle(3), level="patch")
    with pytest.raises(InputError, match=r"no files of `encoder` clay-1.5 in .*; did you mean clay-v1.5\?$"):
        daskembed.search(str(tmp_path), like=middle(3), encoder="clay-1.5")
    write_rows(tmp_path / "33TVL_20220610_20220610_v001.gpq", vectors(20), made=MADE | {"sha256": "cd" * 32})
    with pytest.raises(InputError, match="of sha256 abab"):
        daskembed.search(str(tmp_path), like=middle(3))
    write_rows(tmp_path / "33TVL_20220610_20220610_v002.gpq", vectors(20), made=MADE)
    (tmp_path / "33TVL_20220610_20220610_v001.gpq").unlink()
    with pytest.raises(InputError, match="1 of version 001; 1 of version 002"):
        daskembed.search(str(tmp_path), like=middle(3))
    assert len(daskembed.search(str(tmp_path), like=middle(3), version="2", k=5)) == 5


def test_rows_by_the_ends_of_their_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [
        *(f"{tmp_path}/chips/33TUL/a_{number}.tif" for number in range(4)),
        *(f"s3://chips/{year}/b.tif#window=0,1" for year in (2019, 2020)),
    ]
    write_rows(tmp_path / "a.parquet", vectors(6), columns={"source_url": pa.array(urls)}, made=MADE, group=2)
    monkeypatch.chdir(tmp_path)

    def found(*given: str) -> list[str]:
        hits = daskembed.search(str(tmp_path), like_row=given, k=1)
        return [one["given"] for one in hits.attrs["search"]["examples"]]

    # A URL, what the table of hits has of it, a path from here, and several at once.
    for given in (urls[3], "a_3", "a_3.tif", "33TUL/a_3", "chips/33TUL/a_3.tif", "./chips/33TUL/../33TUL/a_3.tif"):
        assert found(given) == [urls[3]], given
    assert found("2020/b#window=0,1", urls[0], "a_1") == [urls[5], urls[0], urls[1]]
    names = short_names(urls)
    assert [found(name) for name in names] == [[url] for url in urls]
    for given, message in (
        ("3", "no row of the URL 3 in .*: they look like .*a_0.tif; the end of one will do"),
        ("b#window=0,1", "b#window=0,1 is the end of several rows' URLs in .*: s3://chips/2019/b.tif.*, s3://chips/20"),
        ("a_3#patch=0,0", f"{urls[3]}#patch=0,0: these files have one vector a row and no patches: give {urls[3]}$"),
    ):
        with pytest.raises(InputError, match=message):
            found(given)


def test_what_cannot_be_searched(output: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "export.parquet").touch()
    (tmp_path / "export" / "embeddings.lance" / "data").mkdir(parents=True)
    (tmp_path / "export" / "embeddings.lance" / "data" / "a").touch()
    lon, lat = middle(3)
    (table := tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "33TUL_20220610_20220610_v001.gpq").write_bytes(b"PAR1 and no more PAR1")
    cases = {
        "no files of embeddings": (tmp_path / "empty", {"like": "12,45"}),
        "is an export as a table of Lance: search .*/export/embeddings.lance": (tmp_path / "export", {"like": "12,45"}),
        "no files of `version` 002 in .*: choose 001": (output, {"like": middle(3), "version": "002"}),
        "no files of `version` 002 in .*: their names say none: leave it out": (
            tmp_path / "others",
            {"like": middle(3), "version": "002"},
        ),
        "`unlike` '12,60' is outside of all rows": (output, {"like": middle(3), "unlike": "12,60"}),
        "`unlike` 95,95: a longitude": (output, {"like": middle(3), "unlike": (95, 95)}),
        "`unlike` 'nowhere.geojson': no such file": (output, {"like": middle(3), "unlike": "nowhere.geojson"}),
        "`unlike` 12.4: expected LON,LAT": (output, {"like": middle(3), "unlike": [12.4]}),
        "no folder": (tmp_path / "none", {"like": "12,45"}),
        r"33TUL_20220610_20220610_v001.gpq cannot be searched": (tmp_path, {"like": "12,45"}),
        "give `like` or `like_row`": (output, {"unlike": "12.1,44.9"}),
        r"'12,60' is outside of all rows of .*: the nearest is 1,6[67]\d km away, in 33TUL": (
            output,
            {"like": "12,60"},
        ),
        r"the nearest is 1\.1 km away": (output, {"like": (12.2, 45.01)}),
        r"did you mean 95,12\?": (output, {"like": (12.0, 95.0)}),
        rf"longitude comes first: did you mean {lon},{lat}\?": (output, {"like": f"{lat},{lon}"}),
        "no row of the URL s3://x .* they look like s3://chips/33TUL/chip_000000.tif": (output, {"like_row": "s3://x"}),
        r"expected LON,LAT in degrees": (output, {"like": "nowhere.geojson"}),
        "`metric` 'cosin': expected cosine, l2, dot; did you mean cosine": (
            output,
            {"like": "12,45", "metric": "cosin"},
        ),
        "`k` 0: expected a whole number from 1": (output, {"like": "12,45", "k": 0}),
        r"no such file, and no place: expected LON,LAT": (output, {"like": "12.4.5,45"}),
        "`like` '': no such file": (output, {"like": ""}),
        r"'\.,\.': no such file": (output, {"like": ".,."}),
        "`like` nan,45: a longitude": (output, {"like": "nan,45"}),
        "has no geometry: expected LON,LAT": (output, {"like": str(table)}),
        "expected LON,LAT in degrees, such as 12.43,45.94, or a file": (output, {"like": pd.DataFrame({"a": [1]})}),
        "`like` 12.4: expected LON,LAT": (output, {"like": [12.4, "45"]}),
        "`like_row` 5: expected the URL of a row": (output, {"like_row": [5]}),
        "`k` 2.5: expected a whole number from 1": (output, {"like": "12,45", "k": 2.5}),
        "`apart` inf: expected metres above 0": (output, {"like": "12,45", "apart": np.inf}),
        "`apart` -1: expected metres above 0": (output, {"like": "12,45", "apart": -1}),
        "no row of the `dates` 2021-01-01/2021-12-31 is there; there are some of 2022-06-10": (
            output,
            {"like": middle(3), "dates": "2021-01-01/2021-12-31"},
        ),
        "no rows of the `region` in": (output, {"like": middle(3), "region": "1,2,3,4"}),
    }
    for message, (folder, asked) in cases.items():
        with pytest.raises(InputError, match=message):
            daskembed.search(str(folder), **asked)
    empty = gpd.GeoSeries([shapely.Point()], crs="OGC:CRS84")
    with pytest.raises(InputError, match="feature 1 is empty"):
        daskembed.search(str(output), like=empty)
    with pytest.raises(InputError, match="expected degrees"):
        daskembed.search(str(output), like=shapely.box(300000, 5000000, 300001, 5000001))


def test_across_180_degrees(tmp_path: Path) -> None:
    from daskembed.geo.footprints import to_lonlat

    west = 815_000.0 + 5120 * np.arange(8)  # of zone 60, which 180 degrees cut in the middle of one
    bounds = np.stack([west, np.full(8, 0.0), west + 5120, np.full(8, 5120.0)], axis=1)
    _, _, shapes = to_lonlat(32660, bounds)
    crossing = [number for number, shape in enumerate(shapes) if shape.geom_type == "MultiPolygon"]
    assert len(crossing) == 1
    found = np.random.default_rng(0).standard_normal((8, 2, 2, DIMS)).astype(np.float32)
    write_rows(tmp_path / "a.parquet", found, footprints=list(shapes), made=MADE | {"level": "patch"}, covering=True)
    left, right = shapely.get_parts(shapes[crossing[0]])
    for part in (left, right):
        place = part.centroid
        hits = daskembed.search(str(tmp_path), like=(place.x, place.y), k=31, apart=1000)
        example = shapely.from_wkt(hits.attrs["search"]["examples"][0]["footprint"])
        assert example.distance(place) < 1e-6
        assert example.area < 0.3 * shapes[crossing[0]].area
        near = [url for url in hits["source_url"] if url in {url_of(crossing[0] - 1), url_of(crossing[0] + 1)}]
        assert len(near) == 8  # 2.5 km and more away, not half around the Earth


def test_on_dask(output: Path) -> None:
    asked = {"like": [middle(42), middle(150, 13.0)], "k": 20, "combine": "each"}
    here = daskembed.search(str(output), **asked)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        there = daskembed.search(str(output), **asked, cluster=client)
        with pytest.raises(InputError, match="no rows of the `region`"):
            daskembed.search(str(output), **asked, region="1,2,3,4", cluster=client)
        region = "13.0,44.0,13.2,45.0"
        near = daskembed.search(str(output), **asked, region=region, cluster=client)
    assert list(near["score"]) == list(daskembed.search(str(output), **asked, region=region)["score"])
    assert list(there["source_url"]) == list(here["source_url"])
    assert list(there["score"]) == list(here["score"])
    assert there.attrs == here.attrs


def test_the_table_is_80_columns_wide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = f"/home/somebody/{'of/a/long/path/' * 4}claytile_10TUL_20220610_v02_%s.tif"
    frame = gpd.GeoDataFrame(
        {
            "rank": [1, 50],
            "score": [0.94181, -0.12341],
            "source_url": [long % "0064", long % "0001"],
            "date": [date(2022, 6, 10)] * 2,
            "row": [3, 15],
            "col": [3, 15],
            "file": ["10TUL_20220610_20220610_v001.gpq"] * 2,
        },
        geometry=[shapely.box(-112.46678, 45.86654, -112.44678, 45.88654)] * 2,
        crs="OGC:CRS84",
    )
    assert short_names([long % "0064", "s3://other/0064.tif#window=0,1"])[1] == "0064#window=0,1"
    assert short_names(["s3://chips/2019/a.tif", "s3://chips/2020/a.tif"]) == ["2019/a", "2020/a"]
    print_table(_table(frame))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert lines[2].split() == [
        *("50", "-0.1234", "claytile_10TUL_20220610_v02_0001", "2022-06-10", "-112.4568,45.8765", "15,15")
    ]


def test_the_command(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lon, lat = middle(42)
    table, places = tmp_path / "hits.parquet", tmp_path / "hits.geojson"
    assert main(["search", str(output), "--like", f"{lon},{lat}", "-k", "5", "--to", str(table)]) == 0
    told = capsys.readouterr().out
    hits = daskembed.search(str(output), like=(lon, lat), k=5)
    names = [PurePosixPath(url).stem for url in hits["source_url"]]
    for name, score in zip(names, hits["score"], strict=True):
        assert any(name in line and f"{score:.4f}" in line for line in told.splitlines())
    assert "5 hits of 400 vectors of clay-v0 mean; cosine after taking out the mean" in told
    assert main(["search", str(output), "--like-row", url_of(42), "-k", "5", "--to", str(places)]) == 0
    for file in (table, places):
        written = gpd.read_parquet(file) if file is table else gpd.read_file(file)
        assert list(written["source_url"]) == list(hits["source_url"])
        assert written.crs == "OGC:CRS84" or written.crs == "EPSG:4326"
        assert [
            one.equals_exact(two, 1e-9, normalize=True)
            for one, two in zip(written.geometry, hits.geometry, strict=True)
        ] == [True] * 5
        assert [str(day)[:10] for day in written["date"]] == ["2022-06-10"] * 5
        assert main(["search", str(output), "--like-row", url_of(42), "-k", "5", "--to", str(file)]) == 0
        assert f"\nreplaced: {file}\n" in capsys.readouterr().out
    assert f"\nwritten: {table}\n" in told
    assert pq.read_metadata(table).metadata[b"geo"].count(b"covering") == 1
    capsys.readouterr()
    assert main(["search", str(output), "--like", "-10.5,60", "--no-center"]) == 2
    assert "daskembed: --like '-10.5,60' is outside of all rows" in capsys.readouterr().err
    assert main(["search", str(output), "--like", "12,45", "--to", "hits.csv"]) == 2
    assert "--to hits.csv: expected a file that ends with .parquet or .geojson, or a folder" in capsys.readouterr().err
    for searched in (output, next(output.iterdir())):
        inside = output / ".." / output.name / "hits.parquet"
        assert main(["search", str(searched), "--like", f"{lon},{lat}", "--to", str(inside)]) == 2
        assert f"what is in {output} is searched, and these hits would be, too" in capsys.readouterr().err
    # Refused before it searches: nothing is printed.
    assert main(["search", str(output), "--like", f"{lon},{lat}", "--to", f"{output}/"]) == 2
    told = capsys.readouterr()
    assert f"{output} holds what is searched: a page of hits goes into a folder of its own" in told.err
    assert not told.out
    with pytest.raises(InputError, match="these hits would be, too"):
        write_hits(hits, str(inside))
    assert not inside.exists()
    assert main(["search", str(output), "--unlike", "12,45"]) == 2
    assert "what is searched? give --like or --like-row" in capsys.readouterr().err


@pytest.mark.real
def test_the_file_that_the_reference_published(shared: Path) -> None:
    folder = shared / "data" / "published"
    if not folder.is_dir():
        pytest.skip(f"needs a real published file, and there is none in {folder}")
    frame = gpd.read_parquet(next(folder.glob("*.gpq")))
    place = shapely.centroid(frame.geometry[200])
    hits = daskembed.search(str(folder), like=(place.x, place.y), k=20)
    assert hits.attrs["search"]["searched"] == len(frame) == 417
    found = np.stack(frame["embeddings"]).astype(np.float64)
    expected = order(found, found[200])[1:21]
    assert list(hits["source_url"]) == list(frame["source_url"][expected])
    # Neighbours of a place look alike more often than others: within 6 km are 8 of 417.
    near = hits.geometry.to_crs(32603).centroid.distance(frame.geometry.to_crs(32603).centroid[200]) < 8000
    assert near.sum() >= 3


def test_fields_are_like_fields(chips: Path, tmp_path: Path) -> None:
    """On the synthetic landscape, whose cover is known: patches of 320 m, by mean and spread of each band in them."""
    files = sorted(chips.rglob("*.tif"))
    pixels = np.stack([rasterio.open(file).read() for file in files]).reshape(4, 13, 16, 32, 16, 32).astype(np.float64)
    features = np.concatenate([pixels.mean((3, 5)), pixels.std((3, 5))], axis=1).transpose(0, 2, 3, 1)
    write_rows(
        tmp_path / "33TUL_20190416_20190416_v001.gpq", features.astype(np.float32), made=MADE | {"level": "patch"}
    )
    kinds = np.array(COVERS)[land_cover(1024, 1024).reshape(2, 16, 32, 2, 16, 32)]
    kinds = kinds.transpose(0, 3, 1, 4, 2, 5).reshape(4, 16, 16, -1)
    groups = {
        "field": ("wheat", "rape", "clover", "meadow", "maize", "stubble", "soil"),
        "wood": ("broadleaf", "conifer"),
    }
    precision, chance = {}, {}
    for name, members in groups.items():
        is_one = np.isin(kinds, members).mean(axis=-1) > 0.5
        asked = np.argwhere(np.isin(kinds, members).mean(axis=-1) > 0.8)[::15]
        rows = [f"{url_of(chip)}#patch={row},{col}" for chip, row, col in asked]
        hits = daskembed.search(str(tmp_path), like_row=rows, combine="each", k=20)
        places = [int(url[-10:-4]) for url in hits["source_url"]], hits["row"], hits["col"]
        precision[name], chance[name] = is_one[places].mean(), is_one.mean()
        assert len(hits) == 20 * len(asked) >= 200
    assert precision["field"] > 0.9 > 1.5 * chance["field"]
    assert precision["wood"] > 0.9 > 1.5 * chance["wood"]


@pytest.mark.real
def test_the_default_metric_ranks_best(shared: Path) -> None:
    """Without labels: land goes on beyond a chip's edge, so that its neighbours should be among the first hits."""
    folder = shared / "data" / "published"
    if not folder.is_dir():
        pytest.skip(f"needs a real published file, and there is none in {folder}")
    frame = gpd.read_parquet(next(folder.glob("*.gpq"))).to_crs(32603)
    middles = shapely.get_coordinates(shapely.centroid(frame.geometry.to_numpy()))
    near = np.linalg.norm(middles[:, None] - middles, axis=-1) < 7500
    vectors = np.stack(frame["embeddings"])
    found = {}
    for metric, centred in (("cosine", True), ("cosine", False), ("l2", False), ("dot", True), ("dot", False)):
        centre = vectors.mean(axis=0, dtype=np.float64) if centred else None
        queries = Queries(vectors.astype(np.float64), metric, centre)
        block = Block(np.arange(len(vectors)), vectors, squares_of(vectors, None))
        best = best_of(queries, 9, 0, block, Best.none(len(vectors)), Least(len(vectors)))
        hits = [[hit for hit in places[:, 1] if hit != one][:8] for one, places in enumerate(best.places)]
        found[metric, centred] = round(float(np.mean([near[one, there] for one, there in enumerate(hits)])), 3)
    # As docs/searching.md has them.
    assert list(found.values()) == [0.253, 0.243, 0.243, 0.087, 0.036]
