"""Scenes of catalogues as listings: what is kept of them, and what a tile goes on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import catalogues
import numpy as np
import pytest

import daskembed
from daskembed.errors import InputError, TileError
from daskembed.sensors.table import get_sensor
from daskembed.sources.listing import Listing
from daskembed.sources.origin import Origin, open_source
from daskembed.sources.reading import Reading, parse_dates
from daskembed.sources.registry import list_tile, read_headers
from daskembed.storage.urls import local_path
from daskembed.testing import HeightImage, OpticalImage, RadarImage, write_scenes
from daskembed.testing.scenes import Scenes

TILE = "33TUL"
READING = Reading(sensor=get_sensor("sentinel-2-l2a"), dates=parse_dates("2024-05-01/2024-09-30"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """A clear date, one with more clouds, and one that is too cloudy; the first chip of the tile."""
    images = (
        OpticalImage("2024-06-02T10:20:31Z"),
        OpticalImage("2024-07-02T10:20:31Z", cloud=30, baseline="03.01"),
        OpticalImage("2024-06-12T10:20:31Z", cloud=71.5, listed_only=True),
    )
    return write_scenes(tmp_path_factory.mktemp("world"), images=images, shape=(516, 516))


@pytest.fixture
def mine(tmp_path: Path, world: Scenes) -> Origin:
    """A catalogue of them."""
    return open_source(str(catalogues.describe(tmp_path, world)))


def listed(source: Origin, reading: Reading = READING, kept: Listing | None = None, *, again: bool = False) -> Listing:
    # As a receipt gives it back.
    scenes = () if kept is None else json.loads(json.dumps(kept.kept))
    return list_tile(TILE, source, reading, scenes, again=again)


def test_the_chips_of_a_scene(mine: Origin, world: Scenes) -> None:
    listing = listed(mine)
    (scene,) = listing.scenes
    assert (scene.date, scene.time) == (date(2024, 6, 2), datetime(2024, 6, 2, 10, 20, 31, tzinfo=UTC))
    assert (scene.epsg, scene.west, scene.north, scene.step) == (32633, 300_000, 5_100_000, 10)
    index = read_headers(listing, READING)
    assert len(index) == 441
    assert set(index["source"]) == {"stac"}
    assert index["source_url"][22] == f"{world.items[0]['links'][0]['href']}#2024-06-02/0023"
    assert index["quarantined"].isna().all()
    row = index.iloc[22]
    assert (row.west, row.south, row.east, row.north) == (305_120, 5_089_760, 310_240, 5_094_880)


def test_the_pixels_of_a_chip(mine: Origin, world: Scenes) -> None:
    chip = read_headers(listed(mine), READING)["chip"][0]
    pixels = chip.read()
    files = world.rasters[world.items[0]["id"]]
    rows, cols = np.arange(512)[:, None], np.arange(512)
    for band, names in zip(pixels, READING.sensor.bands, strict=True):
        raster = files[names.aliases[0]]
        step = round(raster.steps[0] / 10)
        stored = raster.values(rows // step, cols // step).astype(int)
        np.testing.assert_array_equal(band, np.where(stored >= 1, np.maximum(stored - 1000, 1), 0))


def test_what_is_kept_of_a_scene(mine: Origin, world: Scenes) -> None:
    ((scene,),) = (listed(mine).kept,)
    (item,) = scene["items"]
    told = world.items[0]
    assert scene["day"] == "2024-06-02"
    assert item["images"].keys() == {*READING.sensor.names, "scl"}
    assert {name: item[name] for name in ("catalogue", "collection", "id", "url", "role", "time", "share")} == {
        "catalogue": "mine",
        "collection": "sentinel-2-l2a",
        "id": told["id"],
        "url": told["links"][0]["href"],
        "role": "optical",
        "time": "2024-06-02T10:20:31+00:00",
        "share": 1.0,
    }
    assert (item["baseline"], item["orbit_state"], item["relative_orbit"]) == ("05.10", "descending", 122)
    assert item["offsets"] == dict.fromkeys(READING.sensor.names, 1000)
    assert item["offset_why"] == "processing baseline 05.10; in the numbers of the files there"
    blue = item["images"]["blue"]
    assert (blue["asset"], blue["url"]) == ("B02", told["assets"]["B02"]["href"])
    assert (blue["size"], blue["height"]) == (local_path(blue["url"]).stat().st_size, 516)


def test_what_is_done_to_the_numbers_is_told_by_image(tmp_path: Path, world: Scenes, mine: Origin) -> None:
    new, old = listed(mine, replace(READING, choice=replace(READING.choice, scenes=2))).scenes
    assert new.note == "1000 taken out (processing baseline 05.10; in the numbers of the files there)"
    assert old.note == "nothing taken out (processing baseline 03.01, before 04.00)"
    assert all(scale.offset_applied and not scale.taken_out for scale in (*new.scales, *old.scales))


def test_kept_scenes_are_listed_without_the_catalogue(tmp_path: Path, world: Scenes, mine: Origin) -> None:
    first = listed(mine)
    catalogues.lists(tmp_path, world, catalogues.of_day("2024-07-02"))
    # No file is looked at, either.
    hidden = world.folder.rename(tmp_path / "hidden")
    try:
        again = listed(mine, kept=first)
    finally:
        hidden.rename(world.folder)
    assert (again, again.fingerprint, again.chips, again.kept) == (first, first.fingerprint, first.chips, first.kept)
    assert {entry.path[-15:-5] for entry in listed(mine).entries} == {"2024-07-02"}


def test_the_listing_changes_with_files_and_decisions(tmp_path: Path, mine: Origin, world: Scenes) -> None:
    first = listed(mine)
    assert listed(mine).fingerprint == first.fingerprint
    other = replace(READING, offset_applied="yes")
    assert listed(mine, other).fingerprint != first.fingerprint
    folder = shutil.copytree(world.folder, tmp_path / "copy")
    changed = json.loads((folder / "items.json").read_text().replace(str(world.folder), str(folder)))
    copy = replace(world, folder=folder, items=changed["features"], root=f"file://{folder}")
    theirs = open_source(str(catalogues.describe(folder, copy)))
    before = listed(theirs)
    blue = local_path(changed["features"][0]["assets"]["B02"]["href"])
    blue.write_bytes(blue.read_bytes())
    assert listed(theirs).fingerprint != before.fingerprint


def test_what_decides_on_no_pixel_changes_no_listing(tmp_path: Path, mine: Origin, world: Scenes) -> None:
    first = listed(mine)
    items = json.loads(json.dumps(world.items))
    items[0]["properties"]["eo:cloud_cover"] = 4.5
    catalogues.lists(tmp_path, replace(world, items=items))
    again = listed(mine)
    assert again.kept[0]["items"][0]["cloud"] == 4.5
    assert again.fingerprint == first.fingerprint
    items[0]["properties"]["s2:processing_baseline"] = "05.11"
    catalogues.lists(tmp_path, replace(world, items=items))
    assert listed(mine).fingerprint != first.fingerprint


@pytest.fixture
def broken(tmp_path: Path, world: Scenes) -> tuple[Origin, Path]:
    """A catalogue whose first scene has lost a band, and that band's file in another place."""
    folder = shutil.copytree(world.folder, tmp_path / "broken")
    items = json.loads((folder / "items.json").read_text().replace(str(world.folder), str(folder)))["features"]
    lost = local_path(items[0]["assets"]["B05"]["href"])
    lost.rename(lost.with_suffix(".gone"))
    theirs = replace(world, folder=folder, items=items, root=f"file://{folder}")
    return open_source(str(catalogues.describe(folder, theirs))), lost


def test_a_file_that_is_gone_is_named_with_its_item(broken: tuple[Origin, Path], world: Scenes) -> None:
    why = f"rededge1: the asset 'B05' of {world.items[0]['id']} is not there"
    with pytest.raises(TileError, match=why):
        listed(broken[0])
    both = listed(broken[0], replace(READING, choice=replace(READING.choice, scenes=2)))
    index = read_headers(both, READING)
    # The other date is as good as before.
    assert index["quarantined"].isna().sum() == 441
    (reason,) = index["quarantined"].dropna()
    assert why in reason


def test_files_that_could_not_be_read_are_looked_at_again(broken: tuple[Origin, Path]) -> None:
    source, lost = broken
    two = replace(READING, choice=replace(READING.choice, scenes=2))
    first = listed(source, two)
    assert len(first.scenes) == 1
    lost.with_suffix(".gone").rename(lost)
    # As long as the tile is finished, nothing is.
    assert listed(source, two, first).fingerprint == first.fingerprint
    mended = listed(source, two, first, again=True)
    assert len(mended.scenes) == 2
    assert mended.fingerprint == listed(source, two).fingerprint
    # One that was replaced is read as it is, too.
    lost.write_bytes(lost.read_bytes())
    assert listed(source, two, mended).fingerprint == mended.fingerprint
    assert listed(source, two, mended, again=True).fingerprint == listed(source, two).fingerprint != mended.fingerprint


def test_no_scene_is_said_with_what_was_searched_and_why(mine: Origin, world: Scenes) -> None:
    where = f"no scene of tile {TILE} in mine from 2024-06-10 to 2024-06-20: searched sentinel-2-l2a"
    with pytest.raises(TileError) as told:
        listed(mine, replace(READING, dates=parse_dates("2024-06-10/2024-06-20")))
    assert where in str(told.value)
    assert f"1 items are left out (1 such as {world.items[2]['id']}: " in str(told.value)
    assert "`max_scene_cloud`" in str(told.value)
    with pytest.raises(TileError, match=r"where nothing is of it; check the tile id, `dates` and `source`"):
        listed(mine, replace(READING, dates=parse_dates("2019-06-10/2019-06-20")))


def test_an_offset_that_nobody_knows_of_is_refused(tmp_path: Path, world: Scenes) -> None:
    unknown = open_source(str(catalogues.describe(tmp_path, world, told=False)))
    with pytest.raises(TileError, match=r"nothing tells whether the 1000 .*: `offset_applied` yes .* or no .* decides"):
        listed(unknown)
    for said, out in (("yes", 0), ("no", 1000)):
        (scene,) = listed(unknown, replace(READING, offset_applied=said)).kept
        assert set(scene["items"][0]["offsets"].values()) == {out}


def test_files_are_reached_as_the_catalogue_says_and_not_the_output(mine: Origin) -> None:
    first = listed(mine)
    kept = json.loads(json.dumps(first.kept))
    for image in kept[0]["items"][0]["images"].values():
        image["access"] = [["endpoint", "https://elsewhere.example"]]
    again = list_tile(TILE, mine, READING, kept)
    assert (again, again.kept) == (first, first.kept)


def test_damaged_scenes_are_refused(mine: Origin) -> None:
    with pytest.raises(TileError, match=r"what is kept of the scenes of tile 33TUL is damaged: .*'day'; `refresh"):
        list_tile(TILE, mine, READING, [{"items": []}])


def test_a_tile_that_there_is_not_is_refused(mine: Origin) -> None:
    with pytest.raises(TileError, match=r"33TUA is not an MGRS tile"):
        list_tile("33TUA", mine, READING)


def test_thirteen_bands_of_three_collections(tmp_path: Path) -> None:
    images = (OpticalImage("2024-06-02T10:20:31Z"), RadarImage("2024-06-01T05:10:02Z"), HeightImage())
    world = write_scenes(tmp_path / "world", images=images, shape=(516, 516))
    source = open_source(str(catalogues.describe(tmp_path, world)))
    listing = listed(source, Reading(dates=READING.dates))
    (scene,) = listing.kept
    assert [item["role"] for item in scene["items"]] == ["optical", "radar", *["height"] * 4]
    chip = read_headers(listing, Reading())["chip"][0]
    assert chip.bands == Reading().sensor.names
    assert np.isfinite(chip.read()).all()
    # The files have 516 of the tile's 10,980 pixels each way, but for elevation, which has all of them.
    assert sum(entry.size for entry in listing.entries) > 0


def test_a_tile_at_sea_without_any_elevation(tmp_path: Path) -> None:
    images = (OpticalImage("2024-06-02T10:20:31Z", classes=6), RadarImage("2024-06-01T05:10:02Z"))
    world = write_scenes(tmp_path / "world", images=images, shape=(516, 516))
    listing = listed(open_source(str(catalogues.describe(tmp_path, world))), Reading(dates=READING.dates))
    assert "no elevation in 100 % of the tile" in listing.notes
    chip = read_headers(listing, Reading())["chip"][0]
    assert not chip.read()[-1].any()


def test_index_tile_takes_the_choice_as_keywords(tmp_path: Path, world: Scenes) -> None:
    source = str(catalogues.describe(tmp_path, world))
    encoder = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5", precision="fp32")
    index = daskembed.index_tile(TILE, source, encoder=encoder, dates="2024-05-01/2024-09-30", scenes=2)
    assert sorted(set(index["date"])) == [date(2024, 6, 2), date(2024, 7, 2)]
    index = daskembed.index_tile(
        TILE, source, encoder=encoder, dates="2024-05-01/2024-09-30", scenes=2, max_scene_cloud=10
    )
    assert set(index["date"]) == {date(2024, 6, 2)}
    with pytest.raises(InputError, match=r"`dates`: expected the period"):
        daskembed.index_tile(TILE, source, encoder=encoder)
    with pytest.raises(InputError, match=r"no catalogue|is none"):
        daskembed.index_tile(TILE, str(tmp_path), encoder=encoder, scenes=2)
