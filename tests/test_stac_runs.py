"""Runs over tiles of catalogues: what is kept of their scenes, what is asked again, and what is told of them."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import catalogues
import dask
import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from catalogues import of_day
from distributed import Client, LocalCluster

import daskembed
from daskembed.cli.main import main
from daskembed.errors import ConflictError, InputError
from daskembed.output.index_rows import read_rows
from daskembed.output.state import Receipt, TileRecord, read_receipt, read_records, write_receipt, write_record
from daskembed.runs import preflight, stages
from daskembed.runs.embed_tasks import EmbedTiles
from daskembed.runs.kept import chosen_by, keepers
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.tiles import resolve
from daskembed.sources.stac import search
from daskembed.storage.stores import Storage
from daskembed.testing import HeightImage, OpticalImage, RadarImage, write_scenes
from daskembed.testing.scenes import Scenes

TILE = "33TUL"
REGION = "13.1164,45.5443,13.1364,45.5643"
"""In the chip of the eleventh row and column, which is number 221."""
FIRST, SECOND = "2024-06-02", "2024-07-02"
SENTINEL_2: dict[str, Any] = {
    "encoder": "clay-v1.5",
    "checkpoint": "untrained:least",
    "precision": "fp32",
    "region": REGION,
    "dates": "2024-05-01/2024-09-30",
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Two dates of one chip, of which the first is clearer, and a cloudy one; radar of both, and elevation."""
    images = (
        OpticalImage(f"{FIRST}T10:20:31Z"),
        OpticalImage(f"{SECOND}T10:20:31Z", cloud=30),
        OpticalImage("2024-06-12T10:20:31Z", cloud=71.5, listed_only=True),
        RadarImage(f"{FIRST}T05:10:02Z"),
        RadarImage(f"{SECOND}T05:10:02Z"),
        HeightImage(),
    )
    return write_scenes(tmp_path_factory.mktemp("world"), images=images, start=(5118, 5118), shape=(516, 516))


@pytest.fixture
def mine(tmp_path: Path, world: Scenes) -> str:
    """A catalogue of them."""
    return str(catalogues.describe(tmp_path, world))


def asked(mine: str, output: Path, **options: Any) -> dict[str, Any]:
    return SENTINEL_2 | {"source": mine, "output": str(output)} | options


def receipt_of(output: Path) -> Receipt:
    return read_receipt(Storage(str(output)), f"_daskembed/receipts/{TILE}_v001.json")


def days(kept: list[dict[str, Any]]) -> list[str]:
    return [scene["day"] for scene in kept]


@pytest.fixture
def finished(mine: str, tmp_path: Path, client: Client) -> Path:
    """The output of a finished run."""
    result = daskembed.run(**asked(mine, tmp_path / "out", cluster=client))
    assert [tile.status for tile in result.tiles] == ["done"]
    return tmp_path / "out"


def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, asking a catalogue fails."""

    def never(*given: Any) -> None:
        raise AssertionError("the catalogue was asked")

    monkeypatch.setattr("daskembed.sources.stac.selection.find_items", never)
    monkeypatch.setattr("daskembed.sources.stac.scenes.select", never)
    monkeypatch.setattr("daskembed.runs.scenes.select", never)
    monkeypatch.setattr(search, "collections_of", never)


def test_a_finished_tile_says_all_of_its_scenes_and_keeps_them(
    finished: Path, mine: str, world: Scenes, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, item = receipt_of(finished), world.items[0]
    frame = gpd.read_parquet(finished / receipt.names[0])
    chip = f"{item['links'][0]['href']}#{FIRST}/0221"
    assert list(frame["source_url"]) == [f"{chip}&window={y},{x}" for y in (0, 256) for x in (0, 256)]
    assert set(frame["date"]) == {date.fromisoformat(FIRST)}
    (used,) = receipt.scenes[0]["items"]
    assert days(receipt.scenes) == [FIRST]
    assert (used["id"], used["offsets"]["blue"], used["share"]) == (item["id"], 1000, 1.0)
    assert re.fullmatch(r"mine.yaml [0-9a-f]{12}", receipt.settings["source"])
    assert receipt.settings["scenes"].startswith("scenes 1, pick clear")
    assert f"{item['links'][0]['href']}#{FIRST}: 1000 taken out" in receipt.notes[0]
    assert daskembed.validate(str(finished / receipt.names[0])) == []
    assert daskembed.status(str(finished)).sound
    known = read_rows(Storage(str(finished)), TILE, "001", receipt.files[0].sha256)
    assert known is not None
    assert known["source_url"].to_pylist() == list(frame["source_url"])
    assert set(known["datetime"].to_pylist()) == {datetime(2024, 6, 2, 10, 20, 31, tzinfo=UTC)}
    assert set(known["cloud"].to_pylist()) == {0.0}

    # Whatever the catalogue says today, nobody asks it: neither on a cluster nor before one is started.
    catalogues.lists(Path(mine).parent, world, of_day(SECOND))
    before = {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()}
    result = daskembed.run(**asked(mine, finished, cluster=client))
    assert [tile.status for tile in result.tiles] == ["skipped"]
    unasked(monkeypatch)
    result = daskembed.run(**asked(mine, finished))
    assert [tile.status for tile in result.tiles] == ["skipped"]
    assert {path: path.read_bytes() for path in finished.rglob("*.*") if path.is_file()} == before
    (told,) = daskembed.find_scenes(**asked(mine, finished))
    assert (told.told_by, told.used, [one.id for one in told.items]) == ("receipt", 1, [item["id"]])


def test_the_catalogue_is_asked_again_if_that_is_wanted(
    finished: Path, mine: str, world: Scenes, client: Client
) -> None:
    before = receipt_of(finished)
    result = daskembed.run(**asked(mine, finished, cluster=client, refresh=True))
    # The same answer: nothing is made again.
    assert [tile.status for tile in result.tiles] == ["skipped"]
    assert receipt_of(finished) == before
    catalogues.lists(Path(mine).parent, world, of_day(SECOND))
    result = daskembed.run(**asked(mine, finished, cluster=client, refresh=True))
    assert [tile.status for tile in result.tiles] == ["done"]
    assert days(receipt_of(finished).scenes) == [SECOND]
    assert [path.name for path in finished.glob("*.gpq")] == [f"{TILE}_20240702_20240702_v001.gpq"]


def test_another_choice_is_another_setting(finished: Path, mine: str) -> None:
    with pytest.raises(ConflictError, match=r"was made with scenes scenes 1, .*, not scenes 2"):
        daskembed.run(**asked(mine, finished, scenes=2))


def begun(mine: str, output: Path, **options: Any) -> tuple[Any, stages.Indexed]:
    """What a run has done of the tile when it is killed before its first block."""
    settings = resolve(Options.of(asked(mine, output, **options), RunOptions))("fp32")
    found = stages.index(settings, TILE, None, [])
    assert found is not None
    return settings, found[0]


def test_an_unfinished_tile_goes_on_with_the_scenes_of_its_record(
    mine: str, world: Scenes, tmp_path: Path, client: Client
) -> None:
    output = tmp_path / "out"
    settings, indexed = begun(mine, output)
    record = read_records(settings.output, [TILE], "001")[TILE]
    assert (record.status, days(record.scenes)) == ("unfinished", [FIRST])
    assert record.chosen_by == chosen_by(settings.source, settings.reading)
    catalogues.lists(tmp_path, world, of_day(SECOND))
    (told,) = daskembed.find_scenes(**asked(mine, output))
    assert (told.told_by, told.items[0].used) == ("record", FIRST)
    result = daskembed.run(**asked(mine, output, cluster=client))
    assert [tile.status for tile in result.tiles] == ["done"]
    assert days(receipt_of(output).scenes) == [FIRST]
    assert receipt_of(output).listing == indexed.listing
    assert read_records(settings.output, [TILE], "001") == {}


def test_records_of_another_choice_do_not_count(mine: str, world: Scenes, tmp_path: Path) -> None:
    output = tmp_path / "out"
    begun(mine, output)
    catalogues.lists(tmp_path, world, of_day(SECOND))
    (told,) = daskembed.find_scenes(**asked(mine, output, max_scene_cloud=40))
    assert (told.told_by, told.items[0].used) == ("catalogue", SECOND)


def test_a_later_record_counts_more_than_a_receipt(
    finished: Path, mine: str, world: Scenes, client: Client, tmp_path: Path
) -> None:
    # As when `refresh` began to make it again, and did not come to the end.
    catalogues.lists(tmp_path, world, of_day(SECOND))
    begun(mine, finished)
    catalogues.lists(tmp_path, world)
    result = daskembed.run(**asked(mine, finished, cluster=client))
    assert [tile.status for tile in result.tiles] == ["done"]
    assert days(receipt_of(finished).scenes) == [SECOND]


def test_a_failure_does_not_lose_the_scenes(mine: str, tmp_path: Path) -> None:
    settings, _ = begun(mine, tmp_path / "out")
    kept = keepers(chosen_by(settings.source, settings.reading), settings.output, "001", [TILE], {})
    # Also of a run that was to ask again, and got no answer.
    for refresh in (False, True):
        work = EmbedTiles(replace(settings, refresh=refresh), {}, {}, kept)
        work.begin(TILE, 0).tile.record_failure("the catalogue was down")
    record = read_records(settings.output, [TILE], "001")[TILE]
    assert (record.status, days(record.scenes)) == ("failed", [FIRST])
    carried = replace(settings, carried=True)
    found = stages.index(carried, TILE, None, [], kept=record.scenes)
    assert found is not None
    assert days(found[0].scenes) == [FIRST]


def test_receipts_and_records_of_folders_are_as_they_were(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    told = {"tile": TILE, "version": "001", "quarantined": {}}
    at = {"started": "2024-01-01T00:00:00+00:00", "finished": "2024-01-01T00:00:01+00:00"}
    receipt = Receipt(**told, files=[], chips=0, rejected={}, filled={}, notes=[], settings={}, listing="", **at)
    write_receipt(storage, receipt)
    write_record(storage, TileRecord(**told, status="failed", parts=0, parts_folder=None, reason="why", time=""))
    for path in tmp_path.rglob("*.json"):
        assert not {"scenes", "chosen_by"} & json.loads(path.read_text()).keys()
    assert receipt_of(tmp_path) == receipt


def test_scenes_are_told_before_anything_is_read(
    mine: str, world: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No file is looked at: they could be anywhere.
    hidden = world.folder.rename(world.folder.with_name("hidden"))
    try:
        (told,) = daskembed.find_scenes(**asked(mine, tmp_path / "out"))
        command = ["scenes", "--tiles", TILE, "--source", mine, "--dates", SENTINEL_2["dates"], "--encoder"]
        command += ["clay-v1.5", "--output", str(tmp_path / "out")]
        assert main(command) == 0
        table = capsys.readouterr().out
        assert main([*command, "--json"]) == 0
    finally:
        hidden.rename(world.folder)
    assert not (tmp_path / "out").exists()
    assert [(one.used, one.role, one.share, one.cloud, one.baseline) for one in told.items if one.used] == [
        (FIRST, "optical", 1.0, 2.0, "05.10")
    ]
    left_out = {one.id: one.reason for one in told.items if not one.used}
    assert "`max_scene_cloud` is 50" in str(left_out[world.items[2]["id"]])
    head, _, first, *others = table.splitlines()
    assert head == f"{TILE}  1 scene, 2 items left out"
    cells = [FIRST, "optical", "sentinel-2-l2a", world.items[0]["id"], FIRST, "10:20", "100%", "2.0", "%"]
    assert first.split()[:9] == cells
    assert first.endswith("1000 taken out (processing baseline 05.10; in the numbers of the files there)")
    assert any(line.endswith("--max-scene-cloud is 50") for line in others)
    (document,) = json.loads(capsys.readouterr().out)
    assert [item["used"] for item in document["items"]] == [FIRST, None, None]


def test_tiles_without_scenes_are_told_with_reasons(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["scenes", "--tiles", TILE, "--source", mine, "--dates", "2024-06-10/2024-06-20", "--encoder"]
    assert main([*command, "clay-v1.5", "--output", str(tmp_path / "out")]) == 4
    told = capsys.readouterr().out
    assert told.startswith(f"{TILE}  0 scenes, 1 item left out\n")
    assert "no scene of tile 33TUL in mine.yaml from 2024-06-10 to 2024-06-20: searched sentinel-2-l2a" in told


def test_a_tile_that_is_refused_is_told_with_its_items(
    mine: str, world: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogues.edit(Path(mine), files=[])
    flags = ["--region", REGION, "--source", mine, "--encoder", "clay-v1.5", "--output", str(tmp_path / "out")]
    flags += ["--checkpoint", "untrained:least", "--dates"]
    why = "nothing tells whether the 1000 that ESA adds"
    assert main(["scenes", *flags, SENTINEL_2["dates"]]) == 4
    told = capsys.readouterr().out
    assert told.startswith(f"{TILE}  0 scenes, 3 items left out\n")
    assert f"is of the scene of {FIRST}, which is refused: see below" in told
    assert why in told.splitlines()[-1]
    assert main(["plan", *flags, SENTINEL_2["dates"], "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiles        1 would fail\n")
    assert why in told
    assert told.endswith("\na run would fail 1 tile, as said above\n")
    assert main(["scenes", *flags, "2019-06-10/2019-06-20"]) == 4
    head = f"{TILE}  no scene of tile {TILE} in mine.yaml from 2019-06-10 to 2019-06-20: searched sentinel-2-l2a"
    end = ": no item there in this period; check --dates and --source\n"
    assert capsys.readouterr().out == head + end


def test_a_plan_says_what_would_be_downloaded(mine: str, world: Scenes, tmp_path: Path) -> None:
    plan = daskembed.plan(**asked(mine, tmp_path / "out", device="cpu"))
    assert (plan.chips, plan.chips_to_do, plan.catalogue) == (1, 1, "mine.yaml")
    files = world.rasters[world.items[0]["id"]]
    total = sum((world.folder / files[name].path).stat().st_size for name in files if name not in ("B01", "B09"))
    # Of the whole tile's 441 chips.
    assert plan.bytes_to_read == pytest.approx(total / 441, rel=0.01)
    # What of the tile no chip has is beside the point of a region in its middle.
    assert not any("in no chip" in note for note in plan.notes)

    def planned(**options: Any) -> int:
        asks = asked(mine, tmp_path / "out", device="cpu", encoder="clay-v0", **options)
        return daskembed.plan(**asks).bytes_to_read

    # Elevation is of both dates, and fetched once; a part of each degree is beyond the tile.
    apart = planned() + planned(dates=f"{SECOND}/{SECOND}")
    heights = sum(path.stat().st_size for path in world.folder.rglob("*_DEM.tif")) / 441
    assert 0.2 * heights < apart - planned(scenes=2) < heights
    assert ", downloaded from where mine.yaml has its files (an estimate)" in repr(plan)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no period": ({"dates": None}, "`dates`: expected the period of which mine.yaml is to be asked"),
    "no such bands": (
        {"source": "earth-search", "encoder": "clay-v0"},
        "earth-search has no images with the bands vh, vv of clay-v0: `source` planetary-computer has all",
    ),
    "the default encoder": (
        {"source": "earth-search", "encoder": None},
        "Only clay-v0, the default encoder, needs radar and elevation: `encoder='clay-v1.5'` takes Sentinel-2 alone",
    ),
    "no such sensor": ({"sensor": "naip"}, "mine.yaml has no images with the bands red, green, blue, nir of naip"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_anything_is_asked(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    unasked(monkeypatch)
    options, why = REFUSED[case]
    for function in (daskembed.run, daskembed.plan):
        with pytest.raises(InputError) as refused:
            function(**asked(mine, tmp_path / "out", **options))
        assert why in str(refused.value)


def test_a_file_of_items_that_workers_do_not_see_is_refused(mine: str, tmp_path: Path) -> None:
    preset = tmp_path / "far.yaml"
    preset.write_text("class: distributed.LocalCluster\nshares_files: false\n")
    why = rf"the source {tmp_path}/items.json is a file of this machine, which the workers do not see \(of the cluster"
    with pytest.raises(InputError, match=why):
        daskembed.run(**asked(mine, tmp_path / "out", cluster=str(preset)))
    with pytest.raises(InputError, match=why):
        daskembed.write_cubes(
            source=mine, output=str(tmp_path / "out"), region=REGION, dates=SENTINEL_2["dates"], cluster=str(preset)
        )


def test_scenes_are_of_catalogues_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no catalogue, and has no scenes to choose from"):
        daskembed.find_scenes(TILE, source=str(tmp_path), output=str(tmp_path / "out"), encoder="clay-v1.5")


def test_what_is_to_be_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pystac_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(InputError, match=r"which is not installed: pip install 'daskembed\[stac\]'"):
        daskembed.run(**asked("earth-search", tmp_path / "out"))


def test_weights_are_fetched_after_the_catalogue_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*given: Any) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr("daskembed.encoders.checkpoint.inspect_checkpoint", fetch)
    monkeypatch.setattr(preflight, "collections_of", lambda url, again: ["landsat"])
    for function in (daskembed.run, daskembed.plan):
        with pytest.raises(InputError, match="earth-search has no collection sentinel-2-c1-l2a: found landsat"):
            function(**asked("earth-search", tmp_path / "out", checkpoint="hf://some/one@main/some.ckpt"))


def test_a_catalogue_without_the_collection_is_refused(monkeypatch: pytest.MonkeyPatch, mine: str) -> None:
    settings = resolve(Options.of(asked("earth-search", Path(mine).parent / "out"), RunOptions))("fp32")
    monkeypatch.setattr(preflight, "collections_of", lambda url, again: ["sentinel-2-l1c", "landsat"])
    with pytest.raises(InputError, match="earth-search has no collection sentinel-2-c1-l2a: found landsat, sentinel-2"):
        preflight.check_catalogue(settings.source, settings.reading, needed=True)


def test_a_cube_straight_from_a_catalogue(
    mine: str, world: Scenes, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"source": mine, "region": REGION, "dates": SENTINEL_2["dates"], "scenes": 2}
    result = daskembed.write_cubes(output=str(tmp_path / "cubes"), cluster=client, **options)
    assert [tile.status for tile in result.tiles] == ["done"]
    cube = xr.open_zarr(tmp_path / "cubes" / f"{TILE}.zarr")
    assert list(cube["time"].dt.strftime("%Y-%m-%d").values) == [FIRST, SECOND]
    pixels = cube["pixels"]
    assert pixels.sizes["band"] == 13
    assert np.isfinite(pixels.values).all()
    blue = world.rasters[world.items[0]["id"]]["B02"]
    # The files begin two pixels before the chip.
    stored = blue.values(np.arange(2, 514)[:, None], np.arange(2, 514)).astype(int)
    np.testing.assert_array_equal(pixels.sel(band="B02")[0].values[:512, :512], np.maximum(stored - 1000, 1))
    told = json.loads((tmp_path / "cubes/_daskembed/cubes" / f"{TILE}.json").read_text())
    assert days(told["scenes"]) == [FIRST, SECOND]
    assert {item["role"] for item in told["scenes"][0]["items"]} == {"optical", "radar", "height"}
    assert daskembed.validate(str(tmp_path / "cubes" / f"{TILE}.zarr")) == []

    catalogues.lists(tmp_path, world, of_day(SECOND))
    unasked(monkeypatch)
    result = daskembed.write_cubes(output=str(tmp_path / "cubes"), **options)
    assert [tile.status for tile in result.tiles] == ["skipped"]
    result = daskembed.write_cubes(output=str(tmp_path / "cubes"), cluster=client, **options)
    assert [tile.status for tile in result.tiles] == ["skipped"]
    result = daskembed.write_cubes(output=str(tmp_path / "cubes"), cluster=client, refresh=True, **options)
    assert [tile.status for tile in result.tiles] == ["done"]
    cube = xr.open_zarr(tmp_path / "cubes" / f"{TILE}.zarr")
    assert list(cube["time"].dt.strftime("%Y-%m-%d").values) == [SECOND]


def test_a_catalogue_that_is_not_there_ends_each_command_alike(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free, dask.config.set({"daskembed.retry-timeout": 0}):
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        catalogues.edit(Path(mine), url=url)
        flags = ["--tiles", TILE, "--dates", SENTINEL_2["dates"], "--encoder", "clay-v1.5", "--checkpoint"]
        flags += ["untrained:least", "--output", str(tmp_path / "out"), "--source"]
        told = f"daskembed: {url}: the catalogue does not answer (connection refused); check its address, the network,"
        for command in (["scenes"], ["plan", "--device", "cpu"], ["run"]):
            for source in (mine, f"stac+{url}"):
                assert main([*command, *flags, source]) == 2, command
                captured = capsys.readouterr()
                assert captured.out == ""
                assert told in captured.err
                assert "what is finished stays" not in captured.err
