"""What is said before anything is fetched or started: mistakes by their messages, and runs that need no cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from test_catalogue import MINIMAL, items_file
from test_state import RECEIPT

import daskembed
from daskembed.cli.main import main
from daskembed.clusters import connection as clusters
from daskembed.errors import InputError, StorageUnusableError
from daskembed.runs import preflight
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.tiles import resolve
from daskembed.sources.registry import list_tile
from daskembed.storage.stores import Storage

CHIP = "claytile_33TUL_20190416_v02_0001.tif"
TINY = ("--checkpoint", "untrained:tiny", "--precision", "fp32")


@pytest.fixture
def place(tmp_path: Path, chips: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with chips of 33TUL, a list of tiles, and a cube; nothing is fetched or started from it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chips").symlink_to(chips)
    (tmp_path / "data" / "cubes" / "33TUL.zarr").mkdir(parents=True)
    (tmp_path / "data" / "cubes" / "33TUL.zarr" / "zarr.json").touch()
    (tmp_path / "data" / "other.zarr").mkdir()
    (tmp_path / "data" / "other.zarr" / "zarr.json").touch()
    (tmp_path / "embedded" / "_daskembed").mkdir(parents=True)
    (tmp_path / "tiles.txt").write_text("33TUL\n22JG5\n")
    (tmp_path / "listed.json").touch()
    (tmp_path / "mine.yaml").write_text("description: no class\n")
    (tmp_path / "none.yaml").write_text("class: no_library_of_ours.Cluster\n")
    monkeypatch.chdir(tmp_path)

    def never(*given: Any, **options: Any) -> None:
        raise AssertionError("something was fetched or started")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(clusters, "start", never)
    monkeypatch.setattr(urllib.request, "urlopen", never)
    return tmp_path


RUN = ("run", "--output", "out", *TINY)
FETCHED = ("run", "--output", "out", "--tiles", "33TUL", "--encoder", "clay-v0")
"""Without a checkpoint: the released one would be fetched."""
HERE = ("run", "--output", "out", "--tiles", "33TUL", "--source", "data/chips", "--encoder", "clay-v0")
MISTAKES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "sub-command": (("rnu",), 2, "invalid choice: 'rnu'"),
    "meant sub-command": (("validat", "out"), 2, "; did you mean validate?"),
    "tiles without their flag": (("run", "33TUL", "--source", "data/chips"), 2, "; did you mean --tiles 33TUL?"),
    "source without its flag": (
        ("run", "--tiles", "33TUL", "data/chips"),
        2,
        "data/chips is no tile id; did you mean --source data/chips?",
    ),
    "URL without its flag": (("run", "--tiles", "33TUL", "s3://b/c"), 2, "; did you mean --source s3://b/c?"),
    "cluster without its flag": (("clusters", "local"), 2, "; did you mean --check local?"),
    "device": (("plan", *FETCHED[1:], "--device", "t5"), 2, "; did you mean t4?"),
    "output above": (("status", "."), 2, "; did you mean {here}/embedded?"),
    "flag": ((*RUN, "--tiles", "33TUL", "--sorce", "data/chips"), 2, "--sorce data/chips; did you mean --source?"),
    "underscore": ((*RUN, "--tiles", "33TUL", "--batch_size", "4"), 2, "; did you mean --batch-size?"),
    "abbreviation": ((*RUN, "--tile", "33TUL"), 2, "--tiles"),
    "abbreviated flag": ((*RUN, "--tiles", "33TUL", "--over"), 2, "--over; did you mean --overwrite?"),
    "one dash": ((*RUN, "--tiles", "33TUL", "-source", "data/chips"), 2, "; did you mean --source?"),
    "flag of another command": (("status", "out", "--jsn"), 2, "; did you mean --json?"),
    "choice": ((*RUN, "--tiles", "33TUL", "--on-nan", "fil"), 2, "; did you mean fill?"),
    "tile": ((*RUN, "--tiles", "33TUL 22JG", "--source", "data/chips"), 2, "'22JG' is not an MGRS tile id"),
    "tile in a file": ((*RUN, "--tiles", "tiles.txt", "--source", "data/chips"), 2, "tiles.txt, line 2: '22JG5'"),
    "file of tiles": (
        (*RUN, "--tiles", "tiels.txt", "--source", "data/chips"),
        2,
        "no file tiels.txt: give a text",
    ),
    "source": ((*FETCHED, "--source", "data/chisp"), 2, "data/chisp; did you mean {here}/data/chips?"),
    "no source at all": (
        (*FETCHED, "--source", "nowhere"),
        2,
        "nowhere: --source takes the folder above the tiles, or a catalogue: earth-search, planetary-computer, cdse, s",
    ),
    "file of items": ((*FETCHED, "--source", "listed.jsn"), 2, "listed.jsn; did you mean {here}/listed.json?"),
    "collection": (
        (*FETCHED, "--source", "sentinel-2-c1-l2a"),
        2,
        "did you mean earth-search, which list the collection sentinel-2-c1-l2a?",
    ),
    "slashes of a STAC API": (
        (*FETCHED, "--source", "stac+https:/stac.example/v1"),
        2,
        "stac+https:/stac.example/v1 is no STAC API: expected stac+https://HOST/PATH, with two slashes",
    ),
    "STAC API without its prefix": (
        (*FETCHED, "--source", "https://stac.example/v1"),
        2,
        "if it is a STAC API, type stac+https://stac.example/v1",
    ),
    "region with spaces": (
        ("tiles", "--region", "-12.6", "45.9", "-12.4", "46"),
        2,
        "; did you mean --region -12.6,45.9,-12.4,46?",
    ),
    "region with commas and spaces": (
        (*RUN, "--source", "data/chips", "--region", "12.4,", "45.9,", "12.6,", "46"),
        2,
        "; did you mean --region 12.4,45.9,12.6,46?",
    ),
    "too deep": (
        (*FETCHED, "--source", "data/chips/33TUL"),
        2,
        "--source takes the folder above the tiles: --source {here}/data/chips --tiles 33TUL",
    ),
    "too high": ((*FETCHED, "--source", "data"), 2, "it is above the folder of the tiles: --source {here}/data/c"),
    "a chip": (
        (*FETCHED, "--source", f"data/chips/33TUL/2019-04-16/{CHIP}"),
        2,
        f"{CHIP} is a file: --source takes the folder above the tiles: --source {{here}}/data/chips --tiles 33TUL",
    ),
    "a cube": ((*FETCHED, "--source", "data/cubes/33TUL.zarr"), 2, "--source {here}/data/cubes --tiles 33TUL"),
    "a store": (
        (*FETCHED, "--source", "data/other.zarr"),
        2,
        "it is a Zarr store: --source takes the folder of",
    ),
    "a list as source": (
        (*FETCHED, "--source", "tiles.txt"),
        2,
        "tiles.txt is a file: --source takes the folder",
    ),
    "source of a plan": (("plan", *FETCHED[1:], "--source", "data/chisp"), 2, "; did you mean {here}/data/chips?"),
    "source of a cube": (
        ("cube", "--tiles", "33TUL", "--output", "out", "--source", "data/chips/33TUL"),
        2,
        "--source {here}/data/chips --tiles 33TUL",
    ),
    "no chips for a cube": (
        ("cube", "--tiles", "22JGS", "--source", "data/chips", "--output", "out"),
        4,
        "no chips of tile 22JGS",
    ),
    "no chips at all": ((*FETCHED[:3], "--tiles", "22JGS", "--source", "data/chips"), 4, "no chips of tile 22JGS"),
    "scheme": ((*FETCHED, "--source", "s4://bucket/chips"), 2, "unknown scheme"),
    "cluster": ((*FETCHED, "--source", "data/chips", "--cluster", "slrum"), 2, "; did you mean slurm?"),
    "cluster file": ((*FETCHED, "--source", "data/chips", "--cluster", "mine.yaml"), 2, "names no cluster class"),
    "encoder": (
        ("run", "--tiles", "33TUL", "--source", "data/chips", "--output", "out", "--encoder", "clay-v1-5"),
        2,
        "; did you mean clay-v1.5?",
    ),
    "level": ((*RUN, "--tiles", "33TUL", "--source", "data/chips", "--level", "pach"), 2, "'pach'"),
    "level of what would be fetched": ((*HERE, "--level", "pach"), 2, "unknown level 'pach': Clay v0 has "),
    "sensor": ((*HERE, "--sensor", "landst"), 2, "Clay v0 reads the bands"),
    "sensor of another": ((*HERE[:-1], "clay-v1.5", "--sensor", "landst"), 2, "sensor 'landst'"),
    "window": ((*HERE[:-1], "clay-v1.5", "--window", "100"), 2, "--window 100"),
    "workers": ((*HERE, "--workers", "0"), 2, "--workers 0: expected a number from 1"),
    "workers of a scheduler": ((*HERE, "--workers", "2", "--cluster", "tcp://127.0.0.1:1"), 2, "runs as it was"),
    "output": ((*HERE, "--output", "tiles.txt/x"), 2, "the output {here}/tiles.txt/x cannot be written: "),
    "dates": ((*HERE, "--dates", "2019"), 2, "--dates '2019': expected START/END"),
    "share": ((*HERE, "--max-quarantined", "3"), 2, "expected a share from 0 to 1"),
    "library of a preset": ((*HERE, "--cluster", "none.yaml"), 2, "which cannot be imported"),
    "GPUs": ((*HERE, "--cluster", "local-cuda"), 2, "this machine shows none"),
    "workers of a plan": (("plan", *HERE[1:], "--workers", "0"), 2, "--workers 0: expected a number from 1"),
    "level of a plan": (("plan", *HERE[1:], "--level", "pach"), 2, "unknown level 'pach': Clay v0 has "),
    "workers of a cube": (
        ("cube", "--tiles", "33TUL", "--source", "data/chips", "--output", "out", "--workers", "0"),
        2,
        "--workers 0: expected a number from 1",
    ),
    "no chips of these dates": (
        (*RUN, "--tiles", "33TUL", "--source", "data/chips", "--dates", "2031-01-01/2031-12-31"),
        4,
        "no chips of tile 33TUL from 2031-01-01 to 2031-12-31: check --dates",
    ),
    "preset to copy": (("clusters", "--copy", "slrum", "my.yaml"), 2, "; did you mean slurm?"),
    "copy that is there": (("clusters", "--copy", "slurm", "mine.yaml"), 2, "mine.yaml is there already"),
    "hub": (
        (*RUN[:3], "--tiles", "33TUL", "--source", "data/chips", "--checkpoint", "hf://a/b"),
        2,
        "hf://OWNER/REPO@",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, status, message = MISTAKES[name]
    try:
        found = main(arguments)
    except SystemExit as left:  # argparse
        found = int(str(left.code))
    said = capsys.readouterr()
    assert found == status
    text = said.out + said.err
    assert message.format(here=place) in text
    assert "Traceback" not in text
    assert len(said.err.splitlines()) <= 2
    assert status != 2 or not (place / "out").exists()


@pytest.fixture(scope="module")
def finished(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with 33TUL, of `TINY`."""
    output = tmp_path_factory.mktemp("finished")
    with (
        LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        options = {"checkpoint": "untrained:tiny", "precision": "fp32", "cluster": client}
        assert daskembed.run("33TUL", source=str(chips), output=str(output), **options).exit_status == 0
    return output


@pytest.fixture
def again(place: Path, finished: Path) -> Callable[..., int]:
    """The same run once more, with other flags; nothing may be fetched or started for it."""

    def run(*flags: str) -> int:
        return main(
            ["run", "--source", str((place / "data" / "chips").resolve()), "--output", str(finished), *TINY, *flags]
        )

    return run


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_where_nothing_is_left_to_do_no_cluster_is_started(
    again: Callable[..., int], capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    assert again("--tiles", "33TUL", "--precision", precision) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing is left to do: no cluster is started"
    assert lines[1].startswith("33TUL  skipped: 4 chips, ")
    assert lines[2] == "tiles        1 skipped"


def test_tiles_without_chips_are_not_told_as_done(
    again: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert again("--tiles", "22JGS", "--overwrite") == 4
    said = capsys.readouterr().out
    assert said.startswith("no chips of any tile: no cluster is started\n22JGS  failed\n")
    assert said.count("no chips of tile 22JGS: expected ") == 1


def test_finished_tiles_and_tiles_without_chips_need_no_cluster(
    again: Callable[..., int], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again("--tiles", "22JGS,33TUL", "--log-format", "json") == 4
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(event["event"], event.get("tile")) for event in events if event["event"] != "tile_started"]
    assert told == [("run_started", None), ("failed", "22JGS"), ("skipped", "33TUL"), ("run_ended", None)]
    record = json.loads((finished / "_daskembed" / "tiles" / "22JGS_v001.json").read_text())
    assert record["status"] == "failed"
    assert record["reason"].startswith("no chips of tile 22JGS: expected ")


def test_quarantined_chips_that_are_to_be_tried_again_are_left_to_do(chips: Path, tmp_path: Path) -> None:
    options = {"source": str(chips), "output": str(tmp_path), "checkpoint": "untrained:tiny"}
    settings = resolve(Options.of(options, RunOptions))("fp32")
    listing = list_tile("33TUL", settings.source, settings.reading).fingerprint
    receipt = replace(RECEIPT, tile="33TUL", files=[], settings=settings.identity, listing=listing)
    for retry, quarantined, left in ((False, True, False), (True, False, False), (True, True, True)):
        asked = replace(settings, retry_quarantined=retry)
        known = {"33TUL": receipt if quarantined else replace(receipt, quarantined={})}
        done = preflight.settled(asked, ["33TUL"], known, {})
        assert (done is None) == left, (retry, quarantined)


def test_other_settings_are_refused_before_a_cluster_is_started(
    again: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp32", "auto"):
        assert again("--tiles", "33TUL", "--level", "patch", "--precision", precision) == 2
        assert "was made with level mean, not patch: give another --version" in capsys.readouterr().err


def test_what_is_left_to_do_starts_one(again: Callable[..., int]) -> None:
    for flags in (("--overwrite", "--level", "patch"), ("--version", "2")):
        with pytest.raises(AssertionError, match="something was fetched or started"):
            again("--tiles", "33TUL", *flags)


@pytest.mark.parametrize(
    ("tiles", "source"), [("33TULL", "."), ("33TUL", "nowhere"), ("22JGS", "{chips}"), ("33TUL", "{chips}")]
)
def test_torch_is_not_loaded(chips: Path, finished: Path, tiles: str, source: str) -> None:
    flags = ["run", "--tiles", tiles, "--source", source.format(chips=chips), "--output", str(finished), *TINY]
    code = "import sys; from daskembed.cli.main import main; "
    code += f"main({flags!r}); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stderr.splitlines()[-1]
    assert "'daskembed.geo.mgrs'" in modules
    assert "'torch'" not in modules


# Sources


def test_a_source_may_hold_a_tile_in_any_form(tmp_path: Path) -> None:
    source = Storage(str(tmp_path))
    assert not preflight.check_source(source, ["33TUL"])
    for name in (CHIP, "33TUL_20190416.tif", "T33TUL.jp2"):
        (tmp_path / name).touch()
        assert preflight.check_source(source, ["33TUL"])
        assert not preflight.check_source(source, ["33TUM"])
        (tmp_path / name).unlink()


def test_chips_in_the_folder_of_a_date_are_a_source_and_told_of(
    chips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert preflight.check_source(Storage(str(chips / "33TUL" / "2019-04-16")), ["33TUL"])
    (warning,) = caplog.messages
    assert warning.endswith(f"`source` takes the folder above the tiles: `source='{chips}'` `tiles='33TUL'`")
    caplog.clear()
    (tmp_path / "33TUL" / "chips" / "33TUL").mkdir(parents=True)
    (tmp_path / "33TUL" / "chips" / "33TUL" / CHIP).touch()
    assert preflight.check_source(Storage(str(chips)), ["33TUL"])
    assert preflight.check_source(Storage(str(tmp_path / "33TUL" / "chips")), ["33TUL"])
    assert caplog.messages == []


def test_a_catalogue_of_a_folder_is_meant_and_not_the_folder_of_its_files(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    (scenes / "sentinel2-l2" / "33TUL").mkdir(parents=True)

    def told() -> str:
        with pytest.raises(InputError) as caught:
            preflight.check_source(Storage(str(scenes)), ["33TUL"])
        return str(caught.value)

    # What only looks like one is none.
    (scenes / "a.json").write_text("{}")
    (scenes / "a.yaml").write_text("class: dask.distributed.LocalCluster")
    assert told().endswith(f"`source='{scenes}/sentinel2-l2'`")
    items_file(scenes / "items.json", "sentinel-2-l2a")
    assert told().endswith(f"a catalogue of scenes is there: `source='{scenes}/items.json'`")
    # A description says where the 1000 is; one of a file needs no server.
    (scenes / "catalogue.yaml").write_text(MINIMAL)
    assert told().endswith(f"`source='{scenes}/catalogue.yaml'`")
    (scenes / "local.yaml").write_text(MINIMAL.replace("https://stac.example/v1", "items.json"))
    assert told().endswith(f"`source='{scenes}/local.yaml'`")


def test_a_tile_beyond_the_first_ones_is_found(tmp_path: Path) -> None:
    tiles = [f"33TU{row}" for row in "ABCDEFGHJKLMNPQRSTUV"]
    (tmp_path / tiles[-1]).mkdir()
    assert preflight.check_source(Storage(str(tmp_path)), tiles)


def test_sources_in_a_bucket(s3: str) -> None:
    Storage(f"{s3}/data/chips").put(f"33TUL/2019-04-16/{CHIP}", b"")
    assert preflight.check_source(Storage(f"{s3}/data/chips"), ["33TUL"])
    for wrong, meant in (("data", "data/chips"), ("data/chips/33TUL", "data/chips")):
        with pytest.raises(InputError, match=rf"`source='{s3}/{meant}'`"):
            preflight.check_source(Storage(f"{s3}/{wrong}"), ["33TUL"])
    with pytest.raises(StorageUnusableError, match="there is no such bucket"):
        preflight.check_source(Storage("s3://no-such-bucket-of-ours/chips"), ["33TUL"])
