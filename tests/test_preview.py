"""Previews of published files: what the page is told, where things lie, what is refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import shapely
from distributed import Client
from rasterio.io import MemoryFile

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.explore import preview
from daskembed.explore.colours import rgb_of
from daskembed.explore.mosaic import Mosaic, for_web
from daskembed.explore.pages import box_round
from daskembed.explore.places import metres_of, places_of
from daskembed.geo.cells import Grid
from daskembed.output.state import read_receipt, receipt_path, write_receipt
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILE, DAYS = "33TUL", ("2024-06-01", "2024-07-01")
PUBLISHED = Path(__file__).parent / "data" / "published"


def told(folder: Path, name: str) -> Any:
    """A document of a page: by its name, of which the page's index knows the end."""
    (found,) = [*(folder / "data").glob(f"{name}.js"), *(folder / "data").glob(f"{name}.{'[0-9a-f]' * 12}.js")]
    text = found.read_text()
    assert text.startswith("daskembed.")
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


def hilly(tile: str, rows: int) -> np.ndarray:
    """Vectors that vary much in one direction, less in others."""
    rng = np.random.default_rng(int.from_bytes(tile.encode(), "big"))
    return (rng.normal(size=(rows, 12)) * np.geomspace(5, 0.1, 12) + 7).astype(np.float32)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles of 9 chips on two days; of one, chips are set aside."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, [TILE, "33TVL"], side=3, shape=(12,), days=DAYS, vectors=hilly)
    storage = Storage(str(folder))
    receipt = read_receipt(storage, receipt_path(TILE, "001"))
    write_receipt(
        storage,
        replace(
            receipt,
            quarantined={f"s3://made-up/chips/{TILE}/claytile_{TILE}_0011.tif": "cut off <b>&\u202e"},
            rejected={"s3://made-up/elsewhere.tif": "cloud 0.7"},
        ),
    )
    return folder


def table(output: Path, tile: str = TILE) -> Any:
    return pq.read_table(next(output.glob(f"{tile}_*.gpq")))


def corners(entry: dict[str, Any], steps: list[int]) -> np.ndarray:
    return (np.cumsum(np.array(steps).reshape(-1, 2), axis=0) + entry["origin"]) / 100_000


def test_page_is_told_each_chip(output: Path, tmp_path: Path) -> None:
    made = daskembed.preview(str(output), to=str(tmp_path))
    assert (made.page, made.tiles, made.rows, made.vectors) == (str(tmp_path / "index.html"), 2, 36, 36)
    index = told(tmp_path, "index")
    assert [one["tile"] for one in index["tiles"]] == [TILE, "33TVL"]
    entry = index["tiles"][0]
    assert [one[:2] for one in entry["dates"]] == [[day, 9] for day in DAYS]
    assert entry["bad"] == [1, 1]
    assert not index["untrained"]
    tile = told(tmp_path, Path(entry["file"]).stem)
    rows = table(output)
    basis = daskembed.principal_components(str(output))
    vectors = rows["embeddings"].combine_chunks().to_numpy_ndarray()
    expected = rgb_of(basis, basis.scores(vectors))
    for chip, url, colour, place in zip(
        tile["chips"], rows["source_url"], expected, shapely.from_wkb(rows["geometry"].to_pylist()), strict=True
    ):
        date, found, name, steps = chip
        assert tile["prefix"] + name == url.as_py()
        assert entry["dates"][date][0] in url.as_py()
        assert bytes.fromhex(found) == colour.tobytes()
        ring = corners(entry, steps)
        assert len(ring) == 4
        np.testing.assert_allclose(shapely.Polygon(ring).symmetric_difference(place).area, 0, atol=1e-6)
        # The north-western corner first, then clockwise.
        west, south, east, north = place.bounds
        np.testing.assert_allclose(ring, [[west, north], [east, north], [east, south], [west, south]], atol=0.004)
    assert index["basis"]["explained"] == [round(one, 4) for one in basis.explained]
    assert json.loads((tmp_path / "basis.json").read_text())["axes"] == basis.axes


def test_chips_set_aside_are_told_with_their_reasons_and_places(output: Path, tmp_path: Path) -> None:
    """The numbers of these names are dates of others: a place is told by numbers that mean one place only."""
    daskembed.preview(str(output), to=str(tmp_path))
    entry = told(tmp_path, "index")["tiles"][0]
    bad = told(tmp_path, Path(entry["file"]).stem)["bad"]
    assert [one[:3] for one in bad] == [
        ["quarantined", f"s3://made-up/chips/{TILE}/claytile_{TILE}_0011.tif", "cut off <b>&\\u202e"],
        ["rejected", "s3://made-up/elsewhere.tif", "cloud 0.7"],
    ]
    assert [one[3] for one in bad] == [None, None]


def test_tiles_of_which_all_chips_are_set_aside(output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    receipt = read_receipt(Storage(str(copy)), receipt_path("33TVL", "001"))
    lost = replace(receipt, tile="60WWT", files=[], chips=0, quarantined={"s3://made-up/a.tif": "is cut off"})
    write_receipt(Storage(str(copy)), lost)
    # Of another level, and of another encoder: of these files' kind they are not.
    write_receipt(Storage(str(copy)), replace(lost, tile="33TWL", settings=lost.settings | {"level": "patch"}))
    write_receipt(
        Storage(str(copy)), replace(lost, tile="33TXL", settings=lost.settings | {"encoder": "clay-v1.5 large"})
    )
    made = daskembed.preview(str(copy), to=str(tmp_path / "to"))
    entries = told(tmp_path / "to", "index")["tiles"]
    assert (made.tiles, [one["tile"] for one in entries]) == (2, [TILE, "33TVL", "60WWT"])
    assert (entries[-1]["dates"], entries[-1]["bad"]) == ([], [1, 0])
    west, south, east, north = entries[-1]["box"]
    assert 176 < west < east < 181
    assert 60 < south < north < 66
    assert told(tmp_path / "to", "60WWT_v001")["bad"] == [["quarantined", "s3://made-up/a.tif", "is cut off", None]]
    daskembed.preview(str(copy), to=str(tmp_path / "to"), tiles=TILE)
    assert [one["tile"] for one in told(tmp_path / "to", "index")["tiles"]] == [TILE]
    assert not list((tmp_path / "to" / "data").glob("60WWT*"))


def names(numbers: np.ndarray, day: str = "20240601") -> list[str]:
    return [f"s3://made-up/{TILE}/{day}/claytile_{TILE}_{day}_v02_{number:04d}.tif" for number in numbers]


def test_places_of_chips_without_rows(output: Path) -> None:
    rows = table(output)
    places = shapely.from_wkb(rows["geometry"].to_pylist())[::2]  # one day, row by row
    numbers = np.array([row * 21 + col + 1 for row in range(3) for col in range(3)])
    # On another day chip 23 is there: it has that place. Chip 24 is nowhere: the numbers of the others tell its place.
    there = np.delete(np.arange(9), [4, 5])
    urls = [*names(numbers[there]), *names(numbers[4:5], "20240701")]
    wanted = names(numbers[4:6])
    found = places_of(TILE, urls, np.array([*places[there], places[4]]), wanted)
    assert list(found) == wanted
    for url, place in zip(wanted, places[4:6], strict=True):
        np.testing.assert_allclose(found[url].symmetric_difference(place).area, 0, atol=1e-7)
    # Nobody knows how many chips a row has if there is but one.
    assert places_of(TILE, names(numbers[:2]), places[:2], names(numbers[4:5])) == {}
    # One number, several places: it is no number of a chip.
    assert places_of(TILE, [*names(numbers[:1]), *names(numbers[:1], "x")], places[:2], names(numbers[:1], "y")) == {}
    windows = [f"{names(numbers[:1])[0]}#window=0,{x}" for x in (0, 256)]
    assert places_of(TILE, windows, places[:2], names(numbers[:1], "20250101"))


def test_patches_lie_in_their_true_place(tmp_path: Path) -> None:
    def north_west(tile: str, rows: int) -> np.ndarray:
        """All alike, but for one patch of each chip."""
        found = np.zeros((rows, 4, 4, 6), np.float32)
        found[:, 0, 1] = [1, 0, 0, 0, 0, 0]
        return found

    write_published(tmp_path, [TILE], side=2, shape=(4, 4, 6), vectors=north_west)
    made = daskembed.preview(str(tmp_path), geotiff=True)
    assert made.page == str(tmp_path / "_preview" / "index.html")
    assert (made.rows, made.vectors) == (4, 64)
    (date, png, places), *others = told(tmp_path / "_preview", f"{TILE}_20240601_20240601_v001")["images"]
    assert (date, others) == (0, [])
    with MemoryFile(base64.b64decode(png)) as memory, memory.open() as file:
        image = file.read()
    (west, north), _, (east, south), _ = places
    for row in range(2):
        for col in range(2):
            chip = shapely.from_wkb(table(tmp_path)["geometry"][row * 2 + col].as_py())
            ring = shapely.get_coordinates(chip)
            corner = ring[np.argmin(ring[:, 0] - ring[:, 1])]
            size = chip.bounds[2] - chip.bounds[0], chip.bounds[3] - chip.bounds[1]
            for number, brightest in ((0, False), (1, True), (2, False)):
                lon, lat = corner[0] + (number + 0.5) / 4 * size[0], corner[1] - size[1] / 8
                mercator = [np.arcsinh(np.tan(np.radians(one))) for one in (north, lat, south)]
                y = (mercator[0] - mercator[1]) / (mercator[0] - mercator[2]) * image.shape[1]
                x = (lon - west) / (east - west) * image.shape[2]
                assert (image[0, int(y), int(x)] == 255) == brightest
                assert image[3, int(y), int(x)] == 255
    (tif,) = made.geotiffs
    with rasterio.open(tif) as file:
        assert (file.crs.to_epsg(), file.res, file.shape, file.nodata) == (32633, (1280.0, 1280.0), (8, 8), 0)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        red = file.read(1)
        bounds = metres_of(TILE, shapely.from_wkb(table(tmp_path)["geometry"].to_pylist()))
        np.testing.assert_allclose(file.bounds, [*bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0)], atol=0.02)
    assert (np.argwhere(red == 255) % 4 == [0, 1]).all()
    assert (red == 255).sum() == 4


def test_image_is_none_that_maplibre_shows_black() -> None:
    """A square one whose side is a power of two; see the comment there."""
    grid = Grid(epsg=32633, west=300_000, north=5_100_000, step_x=320, step_y=320, height=64, width=64)
    png, _ = for_web(Mosaic(grid, np.full((64, 64, 3), 9, np.uint8)))
    with MemoryFile(png) as memory, memory.open() as file:
        assert file.height != file.width


@pytest.mark.parametrize(("side", "west"), [(16, 300_000), (16, 660_000), (7, 500_000), (200, 300_000)])
def test_image_has_all_patches_in_their_places(side: int, west: int) -> None:
    """Those at its edges too, wherever the tile lies in its zone: at the middle of each is its colour, none is cut."""
    grid = Grid(epsg=32633, west=west, north=5_100_000, step_x=480, step_y=480, height=side, width=side)
    seen = np.random.default_rng(side).integers(1, 256, (side, side, 3)).astype(np.uint8)
    png, corners = for_web(Mosaic(grid, seen))
    with MemoryFile(png) as memory, memory.open() as file:
        image = file.read()
    to_degrees = pyproj.Transformer.from_crs(32633, "OGC:CRS84", always_xy=True)
    (left, north), (right, south) = corners[0], corners[2]
    around = to_degrees.transform_bounds(*grid.bounds)
    np.testing.assert_allclose([left, south, right, north], around, rtol=0, atol=1e-6)
    edges = (np.arange(side) + 0.5) * 480
    lon, lat = to_degrees.transform(*np.meshgrid(west + edges, 5_100_000 - edges))
    down = [np.arcsinh(np.tan(np.radians(one))) for one in (lat, north, south)]
    across = np.floor((lon - left) / (right - left) * image.shape[2]).astype(int)
    rows = np.floor((down[0] - down[1]) / (down[2] - down[1]) * image.shape[1]).astype(int)
    np.testing.assert_array_equal(np.moveaxis(image[:, rows, across], 0, -1)[..., :3], seen)


def test_across_the_antimeridian(tmp_path: Path) -> None:
    """A tile of which chips lie on both sides of 180 degrees, and some are cut by it."""
    write_published(tmp_path, ["01WCN", "60WWT"], side=21, shape=(2, 2, 4))
    footprints = shapely.from_wkb(table(tmp_path, "01WCN")["geometry"].to_pylist())
    cut = [isinstance(one, shapely.MultiPolygon) for one in footprints]
    assert 10 < sum(cut) < 40
    assert {one.bounds[0] > 0 for one, is_cut in zip(footprints, cut, strict=True) if not is_cut} == {True, False}
    made = daskembed.preview(str(tmp_path), to=str(tmp_path / "to"), geotiff=True)
    index = told(tmp_path / "to", "index")
    for entry, place in zip(index["tiles"], (-180, 178), strict=True):
        west, _, east, _ = entry["box"]
        assert west < place < east < west + 3
        assert np.ptp(corners(entry, entry["outline"])[:, 0]) < 3
        tile = told(tmp_path / "to", Path(entry["file"]).stem)
        for chip in tile["chips"]:
            ring = corners(entry, chip[3])
            assert len(ring) == 4
            assert 0.05 < np.ptp(ring[:, 0]) < 0.2
        ((_, _, places),) = tile["images"]
        assert west - 0.1 < places[0][0] < west + 0.1 < east - 0.1 < places[1][0] < east + 0.1
    # The page begins where its tiles are: not with the whole world between them.
    west, _, east, _ = index["box"]
    assert 176 < west < 180 < east < 184
    for path in made.geotiffs:
        with rasterio.open(path) as file:
            assert (file.shape, file.res) == ((42, 42), (2560.0, 2560.0))


@pytest.mark.parametrize(
    ("boxes", "found"),
    [
        ([[10, 1, 12, 3], [11, 0, 13, 2]], [10, 0, 13, 3]),
        ([[-181, 0, -179, 1], [177, 0, 178, 1]], [177, 0, 181, 1]),
        ([[170, 0, 190, 1], [-179, 0, -178, 1]], [170, 0, 190, 1]),
        ([[-120, 0, -119, 1], [120, 0, 121, 1], [150, 0, 151, 1]], [120, 0, 241, 1]),
        ([[537, 0, 538, 1]], [177, 0, 178, 1]),
    ],
)
def test_narrowest_box(boxes: list[list[float]], found: list[float]) -> None:
    assert box_round(boxes) == found


def test_few_vectors_and_words_of_untrained_weights(tmp_path: Path) -> None:
    for case in ("mean", "patch", "windows"):
        daskembed.preview(str(PUBLISHED / case), to=str(tmp_path / case))
        index = told(tmp_path / case, "index")
        assert index["untrained"]
        tile = told(tmp_path / case, Path(index["tiles"][0]["file"]).stem)
        assert tile["facts"]["checkpoint"] == "untrained:tiny:0"
    # The places of these are made up: they lie on no grid.
    assert (len(tile["chips"]), tile["images"]) == (4, [])
    assert tile["notes"][0].startswith("2019-04-01: drawn chip by chip: ")


def test_chips_of_one_colour_are_no_image_unless_geotiffs_are_wanted(tmp_path: Path) -> None:
    """Two chips that share no grid: nobody asks for it where there is no image."""
    (name,) = write_published(tmp_path / "output", [TILE], side=2, shape=(12,), vectors=hilly)
    rows = pq.read_table(tmp_path / "output" / name)
    places = shapely.from_wkb(rows["geometry"].to_pylist())
    places[1] = shapely.transform(places[1], lambda xy: xy + 0.01)
    column = rows.schema.get_field_index("geometry")
    moved = rows.set_column(column, rows.schema.field(column), [pa.array(shapely.to_wkb(places), pa.binary())])
    pq.write_table(moved, tmp_path / "output" / name)
    for geotiff, count in ((False, 0), (True, 1)):
        made = daskembed.preview(str(tmp_path / "output"), to=str(tmp_path / "to"), geotiff=geotiff)
        notes = told(tmp_path / "to", Path(name).stem)["notes"]
        assert (made.geotiffs, len(notes)) == ([], count)
    assert notes[0].startswith("2024-06-01: no GeoTIFF: ")


def test_small_vectors_of_the_pages_search(output: Path, tmp_path: Path) -> None:
    daskembed.preview(str(output), to=str(tmp_path))
    search = told(tmp_path, "index")["search"]
    name = next(output.glob(f"{TILE}_*.gpq")).stem
    steps = np.frombuffer(base64.b64decode(told(tmp_path, f"{name}.vectors")["values"]), np.int8).reshape(-1, 12)
    vectors = table(output)["embeddings"].combine_chunks().to_numpy_ndarray()
    basis = daskembed.principal_components(str(output))
    assert search["dims"] == 12
    far = np.abs(vectors - basis.mean) > 4 * np.array(basis.deviation)
    error = np.abs(steps * search["step"] - (vectors - np.array(basis.mean))) / search["step"]
    assert error[~far].max() <= 0.51


def test_vectors_with_nan_have_no_colour(tmp_path: Path) -> None:
    def gaps(tile: str, rows: int) -> np.ndarray:
        found = hilly(tile, rows)
        found[4, 3] = np.nan
        return found

    write_published(tmp_path, [TILE], side=3, shape=(12,), vectors=gaps)
    daskembed.preview(str(tmp_path))
    index = told(tmp_path / "_preview", "index")
    assert index["basis"]["left_out"] == 1
    name = f"{TILE}_20240601_20240601_v001"
    assert [chip[1] == "0000" for chip in told(tmp_path / "_preview", name)["chips"]] == [n == 4 for n in range(9)]
    small = np.frombuffer(base64.b64decode(told(tmp_path / "_preview", f"{name}.vectors")["values"]), np.int8)
    assert ((small.reshape(9, 12) == -128).all(axis=1) == (np.arange(9) == 4)).all()


def test_same_colours_of_another_output(output: Path, tmp_path: Path) -> None:
    write_published(tmp_path / "other", ["33TVL"], side=3, shape=(12,), days=DAYS, vectors=hilly)
    daskembed.preview(str(output), to=str(tmp_path / "first"))
    daskembed.preview(str(tmp_path / "other"), to=str(tmp_path / "own"))
    daskembed.preview(str(tmp_path / "other"), to=str(tmp_path / "same"), basis=str(tmp_path / "first" / "basis.json"))
    name = "33TVL_20240601_20240701_v001"
    first, own, same = (told(tmp_path / one, name)["chips"] for one in ("first", "own", "same"))
    assert same == first != own


def test_search_and_shares_are_of_the_vectors_shown_whatever_the_basis(output: Path, tmp_path: Path) -> None:
    def far(tile: str, rows: int) -> np.ndarray:
        """Ten standard deviations away, of less spread in what was the first component; one has NaN."""
        found = hilly(tile, rows) * np.array([0.1, *[1] * 11], np.float32) + 50
        found[4, 3] = np.nan
        return found

    write_published(tmp_path / "far", [TILE, "33TVL"], side=3, shape=(12,), vectors=far)
    basis = daskembed.principal_components(str(output))
    own = daskembed.principal_components(str(tmp_path / "far"))
    made = daskembed.preview(str(tmp_path / "far"), to=str(tmp_path / "to"), basis=basis)
    index = told(tmp_path / "to", "index")
    read = np.concatenate(
        [table(tmp_path / "far", tile)["embeddings"].combine_chunks().to_numpy_ndarray() for tile in (TILE, "33TVL")]
    ).astype(np.float64)
    known = read[np.isfinite(read).all(axis=1)]
    covariance = np.cov(known.T, bias=True)
    shares = [axis @ covariance @ axis / np.trace(covariance) for axis in np.array(basis.axes)]
    np.testing.assert_allclose(made.explained, shares, rtol=1e-9)
    assert index["basis"] == {
        "explained": [round(one, 4) for one in shares],
        "count": basis.count,
        "left_out": 2,
        "foreign": True,
    }
    steps = [
        np.frombuffer(
            base64.b64decode(told(tmp_path / "to", f"{tile}_20240601_20240601_v001.vectors")["values"]), np.int8
        )
        for tile in (TILE, "33TVL")
    ]
    small = np.concatenate(steps).reshape(-1, 12) * np.array(index["search"]["step"])
    exact = read - own.mean

    def cosines(vectors: np.ndarray) -> np.ndarray:
        found = vectors[[one for one in range(18) if one % 9 != 4]]
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found @ found.T)

    np.testing.assert_allclose(cosines(small), cosines(exact), atol=0.05)


def test_a_page_is_as_it_was_until_all_of_it_is_new(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, to = tmp_path / "copy", tmp_path / "to"
    shutil.copytree(output, copy)
    daskembed.preview(str(copy), to=str(to))
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    # Of the first tile there are other chips, and another comes first.
    write_published(copy, ["33TTL", TILE], side=2, shape=(12,), days=DAYS, vectors=hilly)

    def stop(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preview, "_index", stop)
        with pytest.raises(KeyboardInterrupt):
            daskembed.preview(str(copy), to=str(to))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(to.rglob("*.js"))) > len([path for path in before if path.suffix == ".js"])
    daskembed.preview(str(copy), to=str(to))
    index = told(to, "index")
    assert [one["tile"] for one in index["tiles"]] == ["33TTL", TILE, "33TVL"]
    named = {f"{one[kind]}.js" for one in index["tiles"] for kind in ("document", "vectors")}
    assert {path.name for path in (to / "data").iterdir()} == named | {"index.js"}
    assert {told(to, one[kind])["file"] for one in index["tiles"] for kind in ("document", "vectors")} == {
        path.name for path in copy.glob("*.gpq")
    }


def test_a_file_without_rows(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "copy")
    (name,) = (tmp_path / "copy").glob("33TVL_*.gpq")
    pq.write_table(pq.read_table(name).slice(0, 0), name)
    made = daskembed.preview(str(tmp_path / "copy"), to=str(tmp_path / "to"), geotiff=True)
    assert (made.tiles, made.rows) == (2, 18)
    _, entry = told(tmp_path / "to", "index")["tiles"]
    assert (entry["tile"], entry["dates"], entry["outline"], "vectors" in entry) == ("33TVL", [], [], False)
    document = told(tmp_path / "to", entry["document"])
    assert (document["chips"], document["facts"]["encoder"]) == ([], "clay-v0 made-up")


def test_tiles_wanted_that_are_not_there_are_told(
    output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert daskembed.preview(str(output), to=str(tmp_path), tiles=f"{TILE},33TWL").tiles == 1
    assert "33TWL" in caplog.text


def test_again_what_is_gone_is_gone(output: Path, tmp_path: Path) -> None:
    copy, to = tmp_path / "copy", tmp_path / "to"
    shutil.copytree(output, copy)
    daskembed.preview(str(copy), to=str(to), geotiff=True)
    (to / "mine.txt").write_text("not ours")
    kept = {path.name: path.read_bytes() for path in (to / "data").glob(f"{TILE}*v001.[!v]*.js")}
    assert len(kept) == 1
    next(copy.glob("33TVL_*.gpq")).unlink()
    daskembed.preview(str(copy), to=str(to), basis=str(to / "basis.json"))
    # Vectors are told around the mean of those that are left.
    vectors = {path.name for path in (to / "data").glob(f"{TILE}*.vectors.*.js")}
    assert {path.name for path in (to / "data").iterdir()} == {"index.js", *kept, *vectors}
    assert len(vectors) == 1
    assert (to / "mine.txt").read_text() == "not ours"
    assert not (to / "geotiff").exists()
    assert {name: (to / "data" / name).read_bytes() for name in kept} == kept


def test_what_is_refused(output: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no published files"):
        daskembed.preview(str(tmp_path))
    with pytest.raises(InputError, match="a folder of its own"):
        daskembed.preview(str(output), to=str(output))
    with pytest.raises(InputError, match=r"no `basis` .*gone\.json"):
        daskembed.preview(str(output), basis=str(tmp_path / "gone.json"))
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(InputError, match=r"`basis` .*other\.json: no basis: "):
        daskembed.preview(str(output), basis=str(tmp_path / "other.json"))
    basis = daskembed.principal_components(str(output))
    for change, what in (
        ({"encoder": "clay-v1.5"}, "encoder is clay-v1.5, that of the files clay-v0"),
        ({"level": "patch"}, "level is patch, that of the files mean"),
        ({"mean": [0.0] * 3, "axes": [[1.0, 0.0, 0.0]] * 3}, "dimensions is 3, that of the files 12"),
    ):
        with pytest.raises(InputError, match=what):
            daskembed.preview(str(output), basis=replace(basis, **change), to=str(tmp_path / "to"))
    mixed = tmp_path / "mixed"
    shutil.copytree(output, mixed)
    write_published(mixed, ["33TWL"], side=1, shape=(2, 2, 12))
    with pytest.raises(InputError, match="level"):
        daskembed.preview(str(mixed))
    assert daskembed.preview(str(mixed), level="mean").tiles == 2


def test_the_command(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", str(output), "--to", str(tmp_path), "--geotiff", "--tiles", TILE]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tiles        1, 18 chips"
    assert "of the variance" in said[1]
    assert said[2] == f"GeoTIFFs     2 in {tmp_path / 'geotiff'}"
    assert said[-1] == f"page         {tmp_path / 'index.html'}: open this and click a field"
    assert main(["preview", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err


@contextmanager
def command(*words: str, browser: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, whose browser is a program; stopped at the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daskembed", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"BROWSER": f"{browser} %s", "PYTHONUNBUFFERED": ""},
    )
    last = threading.Timer(120, process.kill)
    last.start()
    try:
        yield process
    finally:
        last.cancel()
        process.kill()
        process.communicate()


def test_page_is_opened_and_served(output: Path, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}"\n')
    browser.chmod(0o755)
    asked = ("preview", str(output), "--to", str(tmp_path / "to"))
    with command(*asked, "--open", browser=browser) as process:
        assert process.wait() == 0
    assert opened.read_text() == (tmp_path / "to" / "index.html").as_uri()
    with command(*asked, "--open", "--serve", browser=browser) as process:
        assert process.stdout is not None
        address = next(line.split()[0] for line in process.stdout if line.startswith("http://127.0.0.1:"))
        end = time.monotonic() + 60
        while opened.read_text() != address and time.monotonic() < end:
            time.sleep(0.02)
        assert opened.read_text() == address
        part = urllib.request.Request(address, headers={"Range": "bytes=0-14"})
        with urllib.request.urlopen(part, timeout=60) as answer:
            assert (answer.status, answer.read()) == (206, b"<!doctype html>")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=60)


def test_machine_without_a_browser(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)  # as where Python finds none
    assert main(["preview", str(output), "--to", str(tmp_path), "--open"]) == 0
    told = f"no browser can be started here: open {(tmp_path / 'index.html').as_uri()} in one"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_interrupt_that_ends_no_sleep_ends_the_server(tmp_path: Path) -> None:
    """As one does that comes just before a sleep begins; here it is another thread that takes the signal."""
    program = f"""
import signal, threading, time
from types import SimpleNamespace
from daskembed.cli import preview

ready = threading.Event()

def interrupt():
    ready.wait()
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

preview.describe = lambda made: []
preview.say = lambda address: ready.set()
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
raise SystemExit(preview.show(SimpleNamespace(page={str(tmp_path / "index.html")!r}), serve=True, browse=False))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


@pytest.mark.parametrize("flag", ["--open", "--serve"])
def test_page_elsewhere_is_refused_before_any_work(output: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is read, nobody is asked: neither the output nor the bucket is there."""
    for words in (["gone", "--to", "s3://key:secret@bucket/page"], ["s3://bucket/output"]):
        assert main(["preview", *words, flag]) == 2
        assert "is not on this machine: give a folder with --to to open or serve the page" in (
            said := capsys.readouterr().err
        )
        assert "secret" not in said


def test_run_ends_with_a_preview(chips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        made: dict[str, Any] = {"source": str(chips), "checkpoint": "untrained:least", "cluster": client}
        # Of what there is of another kind, nothing is shown.
        write_published(tmp_path / "out", ["33TVL"], side=1, shape=(2, 2, 12))
        result = daskembed.run("33TUL", output=str(tmp_path / "out"), preview=True, **made)
        assert result.preview == str(tmp_path / "out" / "_preview" / "index.html")
        assert f"preview      {result.preview}" in repr(result)
        index = told(tmp_path / "out" / "_preview", "index")
        assert ([one["tile"] for one in index["tiles"]], index["untrained"]) == (["33TUL"], True)
        # The receipt knows nothing of it: the same run without one finds its tile finished.
        again = daskembed.run("33TUL", output=str(tmp_path / "out"), **made)
        assert [(tile.status, again.preview) for tile in again.tiles] == [("skipped", None)]
        store = daskembed.run(
            "33TUL", output=str(tmp_path / "zarr"), format="zarr", level="patch", preview=True, **made
        )
        assert (store.exit_status, store.preview) == (0, None)
        assert "no preview: it is made of GeoParquet files, and this run has none" in caplog.text
