"""The command: quick help, flags, refusals in one line, and what it shows of a run."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import dask
import pytest

import daskembed
from daskembed import config
from daskembed.cli import live
from daskembed.cli.main import COMMANDS, main
from daskembed.cli.parser import flag_of, keywords, make_parser
from daskembed.cli.text import print_event, show_warnings, with_flags
from daskembed.clusters import presets
from daskembed.errors import ConflictError, InputError, StorageDeniedError, StorageError
from daskembed.output.tile_status import OutputStatus, TileStatus
from daskembed.runs import notebook, results, summary
from daskembed.runs import tiles as pipeline
from daskembed.runs.options import CubeOptions, RunOptions, words_of
from daskembed.runs.plan import Plan
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.sources.rules import Rules

HEAVY = {
    "torch",
    "dask",
    "distributed",
    "geopandas",
    "rasterio",
    "pyarrow",
    "obstore",
    "pandas",
    "xarray",
    "numpy",
    "rich",
}


def command(*arguments: str, options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "daskembed", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


# Help


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("demo", "--help"), ("--version",)], ids=" ".join
)
def test_help_is_quick(arguments: tuple[str, ...]) -> None:
    """It imports none of the libraries that take seconds."""
    done = command(*arguments, options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    assert {"daskembed.cli.main", "daskembed.config"} <= imported
    assert not {name.partition(".")[0] for name in imported} & HEAVY
    assert done.stdout.startswith("daskembed 0." if arguments == ("--version",) else "usage: daskembed")


def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(capsys, monkeypatch, "run", "--help").partition("exit status:")[0]
    lines = {line.split()[0]: line.rstrip() for line in re.split(r"\n {2}(?=--)", text)[1:]}
    defaults = config.defaults()
    for flag, value in defaults.items():
        if f"--{flag}" in lines and value is not None:
            assert lines[f"--{flag}"].endswith(f"(default: {value})")
    assert {"--source", "--output", "--checkpoint", "--level", "--cluster", "--version", "--on-nan"} <= set(lines)
    assert lines["--dates"].endswith("(default: all)")


def test_help_shows_the_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(capsys, monkeypatch, "run", "--help").partition("exit status:")[2]
    for status in ("0", "1", "2", "3", "4", "130"):
        assert f" {status}  " in text


def test_defaults_are_dasks_configuration() -> None:
    for name, value in config.defaults().items():
        assert config.get(name) == value
    with dask.config.set({"daskembed.level": "patch"}):
        assert config.get("level") == "patch"


# Flags


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("run",),
        ("run", "--tiles"),
        ("run", "--tiles", "27WXN", "--colour", "red"),
        ("run", "--tiles", "27WXN", "--edge", "wrap"),
        ("run", "--tiles", "27WXN", "--precision", "fp64"),
        ("run", "--tiles", "27WXN", "--on-nan", "drop"),
        ("run", "--tiles", "27WXN", "--batch-size", "many"),
        ("run", "--tiles", "27WXN", "--readers", "1.5"),
        ("run", "27WXN"),
        ("demo", "one", "two"),
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert re.match("`daskembed( [a-z]+)? --help` lists what it takes\ndaskembed", capsys.readouterr().err)


def test_a_number_of_hits_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "output", "--like", "12,45", "-k", "abc"])
    assert capsys.readouterr().err.endswith("argument -k: abc: expected a whole number from 1\n")
    assert main(["search", "output", "--like", "12,45", "-k", "0"]) == 2
    assert capsys.readouterr().err == "daskembed: -k 0: expected a whole number from 1\n"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `run` is called with; it does nothing, and gives back or raises what is put first into the list."""
    seen: list[Any] = []

    def fake(tiles: str, **options: Any) -> RunResult:
        answer = seen.pop(0)
        seen.append((tiles, options))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(pipeline, "run", fake)
    return seen


def result_of(*tiles: TileResult, **changes: Any) -> RunResult:
    known: dict[str, Any] = {"unfinished": 0, "encoded": 0, "seconds": 0.0, "interrupted": False, "stage_seconds": {}}
    return RunResult(output="/out", tiles=tiles, **{**known, **changes})


DONE = TileResult("27WXN", "done", "/out/27WXN_20190416_20190416_v001.gpq", 3)
BAD = TileResult("27WXM", "done", "/out/27WXM_20190416_20190416_v001.gpq", 2, {"/chips/a.tif": "has no CRS"})
FAILED = TileResult("27WXP", "failed", reason="no chips of tile 27WXP")


def test_flags_are_handed_over(calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "27WXN").mkdir()
    calls.append(result_of(DONE))
    flags = {
        "source": str(tmp_path),
        "output": "/out",
        "encoder": "clay-v1.5",
        "checkpoint": "untrained:tiny",
        "sensor": "landsat-c2l2-sr",
        "window": 128,
        "level": "patch",
        "cluster": "tcp://10.0.0.1:8786",
        "precision": "fp32",
        "batch_size": 7,
        "readers": 5,
        "dates": "2019-01-01/2019-12-31",
        "version": "002",
        "on_nan": "fill",
        "format": "geoparquet,zarr",
        "dtype": "float16",
        "listen": "0.0.0.0",
        "workers": "1..20",
        "numbers": "stored",
        "offset_applied": "no",
        "max_scene_cloud": 10.5,
        "max_scene_nodata": 5.0,
        "scenes": 3,
        "pick": "spread",
        "radar_days": 0,
        "resampling": "cubic",
        "performance_report": "/report.html",
    }
    true = {"overwrite": True, "tls": True, "refresh": True, "stac": True, "preview": True}
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    given += ["--offset", "0,256", "--edge", "pad", "--no-reject-zeros", "--reject-nan", "--max-cloud", "0.5"]
    assert main(["run", "--tiles", "27WXN", *given, "--cluster-arg", "a.b=2", *map("--{}".format, true)]) == 0
    ((tiles, options),) = calls
    assert callable(options.pop("progress"))
    assert options.pop("cluster_arguments") == {"a": {"b": 2}}
    assert options.pop("events") is None
    assert options.pop("retry_quarantined") is False
    assert options.pop("max_quarantined") is None
    whole = {"offset": (0, 256), "edge": "pad", "rules": Rules(False, True, 0.5)}
    assert options.pop("region") is None
    assert (tiles, options) == ("27WXN", flags | whole | true)


def test_flags_left_out_are_left_to_the_configuration(calls: list[Any]) -> None:
    calls.append(result_of(DONE))
    assert main(["run", "--tiles", "27WXN"]) == 0
    ((_, options),) = calls
    del options["progress"]
    assert options.pop("overwrite") is False
    assert options.pop("tls") is False
    assert options.pop("refresh") is False
    assert (options.pop("stac"), options.pop("preview")) == (False, False)
    assert options.pop("retry_quarantined") is False
    assert options.pop("cluster_arguments") == {}
    assert set(options.values()) == {None}


def test_clusters_are_listed_without_their_libraries() -> None:
    done = command("clusters", options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    assert not imported & {"distributed", "torch", "coiled", "dask_cuda"}


def test_clusters_are_a_line_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "find_spec", lambda name: None if name == "dask_cuda" else name)
    assert main(["clusters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.presets())
    told = dict(zip(presets.presets(), lines, strict=True))
    assert told["local"].endswith("  worker processes on this machine's CPU; needs nothing else: installed")
    assert told["local-cuda"].endswith("; needs dask-cuda (pip install 'daskembed[cuda]'): not installed")


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (result_of(DONE), 0),
        (result_of(), 0),
        (result_of(DONE, BAD), 3),
        (result_of(DONE, BAD, FAILED), 4),
        (result_of(DONE, unfinished=2, interrupted=True), 130),
        (result_of(FAILED, interrupted=True), 130),
    ],
)
def test_exit_status(capsys: pytest.CaptureFixture[str], calls: list[Any], result: RunResult, status: int) -> None:
    calls.append(result)
    assert main(["run", "--tiles", "27WXN"]) == status
    assert capsys.readouterr().out == f"{summary.summary(result)}\n"


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (InputError("no folder /chips"), 2, "daskembed: no folder /chips\n"),
        (ConflictError("made with other settings"), 2, "daskembed: made with other settings\n"),
        (
            StorageDeniedError("s3://me: access denied"),
            1,
            "daskembed: stopped: s3://me: access denied\nwhat is finished stays; run the same command to go on\n",
        ),
        (
            StorageError("s3://me: timeout"),
            1,
            "daskembed: stopped: s3://me: timeout\nwhat is finished stays; run the same command to go on\n",
        ),
        (KeyboardInterrupt(), 130, "daskembed: interrupted; the same command goes on from here\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors(
    capsys: pytest.CaptureFixture[str], calls: list[Any], error: BaseException, status: int, expected: str
) -> None:
    calls.append(error)
    assert main(["run", "--tiles", "27WXN"]) == status
    captured = capsys.readouterr()
    assert captured.err == expected
    assert captured.out == ""


# Refusals: everything here stops before a chip is read or a cluster is started


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, **flags: str) -> str:
    """Run with flags that are all right but for `flags`, which must be refused; returns the line on stderr."""
    source = tmp_path / "chips"
    chip = source / "33TUL" / "claytile_33TUL_20190416_v02_0001.tif"
    chip.parent.mkdir(parents=True, exist_ok=True)
    chip.touch()
    given = {
        "tiles": "33TUL",
        "source": str(source),
        "output": str(tmp_path / "out"),
        "checkpoint": "untrained:tiny",
        "precision": "fp32",
        "cluster": "tcp://127.0.0.1:1",  # where nobody is
        **{name.replace("_", "-"): value for name, value in flags.items()},
    }
    status = main(["run", *(part for name, value in given.items() for part in (f"--{name}", value))])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("daskembed: ")
    assert captured.err.endswith("\n")
    line = captured.err[:-1]
    assert "\n" not in line
    assert "Traceback" not in line
    return line.removeprefix("daskembed: ")


def test_bad_tile_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tiles = tmp_path / "tiles.txt"
    tiles.write_text("# two tiles\n33TUL\n\n33TU\n")
    assert refused(capsys, tmp_path, tiles=str(tiles)).startswith(f"{tiles}, line 4: '33TU' is not an MGRS tile id: ")


@pytest.mark.parametrize("content", [b"", b"\n# nothing\n", b"\xff\xfe\x00\x01"], ids=["empty", "comments", "binary"])
def test_file_of_no_tiles(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    tiles = tmp_path / "tiles.txt"
    tiles.write_bytes(content)
    assert refused(capsys, tmp_path, tiles=str(tiles)).startswith(str(tiles))


def test_many_ids_are_no_file_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ids = ",".join(f"33T{column}{row}" for column in "STUVWXYZ" for row in "ABCDEFGH")
    assert len(ids) > 255
    assert refused(capsys, tmp_path, tiles=f"{ids},33T").startswith("'33T' is not an MGRS tile id")


@pytest.mark.parametrize("tiles", ["nowhere.txt", "./nowhere", "."])
def test_missing_file_of_tiles(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiles: str) -> None:
    assert refused(capsys, tmp_path, tiles=tiles).startswith(f"no file {tiles}: give a text file with one MGRS tile id")


REFUSALS: dict[str, tuple[dict[str, str], str]] = {
    "bad tile": ({"tiles": "33TUL,XYZ"}, "'XYZ' is not an MGRS tile id"),
    "missing source": ({"source": "/no/such/folder"}, "no folder /no/such/folder"),
    "unknown scheme of the source": ({"source": "ftp://chips/02"}, "ftp://chips/02: unknown scheme"),
    "unknown scheme of the output": ({"output": "ftp://me/out"}, "ftp://me/out: unknown scheme"),
    "unknown cluster": ({"cluster": "lokal"}, "unknown cluster 'lokal': choose one of coiled, kubernetes, local"),
    "missing checkpoint": ({"checkpoint": "/no/such.ckpt"}, "no checkpoint /no/such.ckpt: give a .ckpt"),
    "unknown size": ({"checkpoint": "untrained:huge"}, "untrained:huge names no untrained weights: expected"),
    "unknown scheme of the checkpoint": ({"checkpoint": "ftp://x/y.ckpt"}, "ftp://x/y.ckpt: unknown scheme ftp://"),
    "no dates": ({"dates": "2019"}, "--dates '2019': expected START/END, such as 2022-01-01/2022-12-31"),
    "no such date": ({"dates": "2019-02-30/2019-03-01"}, "--dates '2019-02-30/2019-03-01': expected START/END"),
    "three dates": ({"dates": "2019-01-01/2019-01-02/2019-01-03"}, "--dates '2019-01-01/"),
    "dates backwards": ({"dates": "2019-03-01/2019-02-01"}, "the start is after the end"),
    "bad version": ({"version": "../1"}, "version '../1': expected up to 16 letters and digits, such as 001"),
    "batches of none": ({"batch_size": "0"}, "batch size is 0: expected a whole number of at least 1"),
    "no offset": ({"offset": "256"}, "--offset '256': expected Y,X in pixels, such as 0,256"),
    "all cloud": ({"max_cloud": "30"}, "--max-cloud 30: expected a share from 0 to 1, such as 0.3"),
    "negative readers": ({"readers": "-3"}, "readers is -3: expected a whole number of at least 1"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    flags, expected = REFUSALS[what]
    assert expected in refused(capsys, tmp_path, **flags)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("precision", "half", "unknown precision 'half': choose one of auto, bf16, fp32"),
        ("level", "pixel", "unknown level 'pixel': Clay v0 has mean, patch, group"),
        ("on-nan", "drop", "unknown --on-nan 'drop': choose one of quarantine, fill"),
        ("readers", "many", "readers is 'many': expected a whole number of at least 1"),
        ("batch-size", 1.5, "batch size is 1.5: expected a whole number of at least 1"),
    ],
)
def test_configuration_is_refused_like_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, value: Any, expected: str
) -> None:
    (tmp_path / "33TUL").mkdir()
    with dask.config.set({f"daskembed.{name}": value}):
        arguments = ["--tiles", "33TUL", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
        status = main(["run", *arguments, "--checkpoint", "untrained:tiny", "--cluster", "tcp://127.0.0.1:1"])
    assert status == 2
    assert capsys.readouterr().err == f"daskembed: {expected}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        b"PK\x03\x04 cut off",
        b"\x80\x02}q\x00.",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["empty", "HTML", "cut off", "pickle", "Git LFS"],
)
def test_bad_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clay.ckpt"
    path.write_bytes(content)
    assert refused(capsys, tmp_path, checkpoint=str(path)).startswith(f"{path} is ")


@pytest.mark.parametrize("below", ["", "/deeper", "/deeper/still"])
def test_file_in_the_way_of_the_output(capsys: pytest.CaptureFixture[str], tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    output = f"{tmp_path}/file{below}"
    message = refused(capsys, tmp_path, output=output)
    assert message.startswith(f"the output {output} cannot be written: ")
    assert message.endswith("; give another --output")
    assert (tmp_path / "file").read_text() == "in the way"


def test_file_in_the_way_of_the_output_s_state(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_daskembed").write_text("in the way")
    assert refused(capsys, tmp_path).startswith(f"the output {tmp_path}/out cannot be written: ")


def test_output_that_may_not_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("needs a user who is not root: root may write anywhere")
    (tmp_path / "out").mkdir(mode=0o500)
    assert refused(capsys, tmp_path).startswith(f"the output {tmp_path}/out cannot be written: ")


@pytest.mark.parametrize(
    "text", ["class: no_such_module.Cluster\n", "class: [1\n  2\n", "class: distributed.Nothing\n", "nothing\n"]
)
def test_bad_cluster_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert str(path) in refused(capsys, tmp_path, cluster=str(path))


def test_bad_receipt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    receipt = tmp_path / "out" / "_daskembed" / "receipts" / "33TUL_v001.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text("{}")
    message = refused(capsys, tmp_path)
    assert message.startswith(f"{receipt} is not a receipt of daskembed: ")
    assert message.endswith("; delete it")


def test_refusal_leaves_nothing_in_the_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(capsys, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_refusal_of_the_command_itself(tmp_path: Path) -> None:
    """In a process of its own: one line on stderr, nothing else."""
    done = command("run", "--tiles", "33TUL", "--source", str(tmp_path / "nowhere"), "--checkpoint", "untrained:tiny")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"daskembed: no folder {tmp_path}/nowhere: --source takes the folder above the tiles")
    assert len(done.stderr.splitlines()) == 1


# What a run shows


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert summary.describe_seconds(seconds) == text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (DONE, "27WXN  done: 3 chips, /out/27WXN_20190416_20190416_v001.gpq"),
        (BAD, "27WXM  done: 2 chips, 1 quarantined, /out/27WXM_20190416_20190416_v001.gpq"),
        (FAILED, "27WXP  failed: no chips of tile 27WXP"),
        (TileResult("27WXN", "skipped", "/out/a.gpq", 1), "27WXN  skipped: 1 chip, /out/a.gpq"),
        (
            TileResult("27WXN", "done", None, 0, {"a": "is gone", "b": "is gone"}),
            "27WXN  done: 0 chips, 2 quarantined, no file",
        ),
    ],
)
def test_line_of_a_tile(result: TileResult, text: str) -> None:
    assert summary.describe_tile(result) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that runs and displays see; a test sets them."""
    now = [1000.0]
    still = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(results, "time", still)
    monkeypatch.setattr(live, "time", still)
    monkeypatch.setattr(notebook, "time", still)
    return now


def parts_of(state: Progress) -> list[str]:
    return summary.describe_progress(state).split(" · ")


def test_line_of_a_run_on_its_way(clock: list[float]) -> None:
    state = Progress(3, "", "")
    assert parts_of(state) == ["tiles 0/3", "chips 0/0+", "listing the first tiles", "0 s elapsed"]
    state.asks = "earth-search"
    assert parts_of(state)[2] == "asking earth-search for scenes"
    state.indexed, state.chips = 1, 100
    clock[0] += 20
    assert parts_of(state) == ["tiles 0/3", "chips 0/100+", "first chips on their way", "20 s elapsed"]
    # Of the first batch nobody knows how long it took without what comes once, such as loading the weights.
    state.in_work = {"embed-27WXN-0-x": 10}
    assert parts_of(state)[2] == "0.50 chips/s"
    # From then on 5 a second; one tile of 100 chips is known, and so are the others taken to be: 260 are left.
    clock[0] += 6
    state.in_work = {"embed-27WXN-0-x": 40}
    state.quarantined = 2
    assert parts_of(state) == [
        "tiles 0/3",
        "chips 40/100+",
        "5.00 chips/s",
        "26 s elapsed",
        "52 s left",
        "2 quarantined",
    ]
    state.how = "interrupted"
    state.rejected = 3
    assert parts_of(state)[4:] == ["interrupted", "2 quarantined", "3 rejected"]


def test_the_time_left_runs_down_between_chips(clock: list[float]) -> None:
    state = Progress(1, "", "", indexed=1, chips=10)
    for done in (1, 2):
        clock[0] += 10
        state.encoded = done
        assert state.rate == pytest.approx(0.1)
    left = []
    for _ in range(3):
        left.append(state.left)
        clock[0] += 1
    assert left == pytest.approx([80, 79, 78])
    clock[0] += 500
    assert state.left == 0
    state.encoded = 10
    assert state.left is None, "nothing is left to encode"


def test_a_lost_workers_chips_are_done_no_more(clock: list[float]) -> None:
    state = Progress(1, "", "", indexed=1, chips=10, encoded=4)
    state.in_work = {"embed-27WXN-1-x": 3, "embed-27WXN-2-x": 2}
    clock[0] += 10
    assert (state.done, state.rate) == (9, 0.9)
    del state.in_work["embed-27WXN-1-x"]
    clock[0] += 2
    assert (state.done, state.rate) == (6, 0.5)


def lines_of(result: RunResult, left: tuple[TileStatus, ...] = ()) -> dict[str, str]:
    """The lines of a summary by their first word; indented ones belong to the one above."""
    lines: dict[str, str] = {}
    for line in summary.summary(result, left).splitlines():
        if line.startswith("  "):
            lines[list(lines)[-1]] += f"\n{line.strip()}"
        else:
            head, _, rest = line.partition(" ")
            lines[head] = rest.strip()
    return lines


def test_summary_of_a_run() -> None:
    spent = {"source": 10.0, "decode": 20.0, "wait": 1.0, "device": 99.0, "write": 2.5}
    result = result_of(
        DONE,
        BAD,
        FAILED,
        TileResult("27WXQ", "skipped", "/out/q.gpq", 4),
        encoded=50,
        seconds=100.0,
        stage_seconds=spent,
    )
    assert lines_of(result) == {
        "tiles": "2 done, 1 skipped, 1 failed",
        "chips": "9 in the files, 50 encoded now in 1 min 40 s (0.50 chips/s)",
        "quarantined": "1\n/chips/a.tif  has no CRS",
        "failed": "1\n27WXP  no chips of tile 27WXP",
        "time": "source 10.0 s, decode 20.0 s, device 99.0 s, write 2.5 s, side by side; "
        "device busy 99% of its time, the limit was the device",
        "files": "/out",
        "the": "same command tries the failed tiles again",
    }


def test_summary_of_a_run_that_had_nothing_to_do() -> None:
    result = result_of(TileResult("27WXN", "skipped", "/out/a.gpq", 3), seconds=0.2, stage_seconds={"device": 0.0})
    assert lines_of(result) == {
        "tiles": "1 skipped",
        "chips": "3 in the files, 0 encoded now",
        "quarantined": "0",
        "files": "/out",
    }


def test_summary_of_an_interrupted_run() -> None:
    result = result_of(DONE, unfinished=2, encoded=3, seconds=6.0, interrupted=True)
    lines = lines_of(result)
    assert lines["tiles"] == "1 done, 2 not finished"
    assert lines["chips"] == "3 in the files, 3 encoded now in 6 s (0.50 chips/s)"
    assert (
        "same command goes on from here" in lines["interrupted:"] or "the same command goes on" in lines["interrupted:"]
    )
    assert lines_of(result_of(unfinished=2, interrupted=True))["tiles"] == "2 not finished"


def test_summary_of_an_interrupted_run_counts_what_is_kept() -> None:
    """Of the tiles that were not finished one was begun, one an earlier run had finished, of one there is nothing."""
    left = (
        TileStatus("27WXQ", "001", "unfinished", parts_done=2, parts=7, quarantined={"/chips/b.tif": "is gone"}),
        TileStatus("27WXR", "001", "done", ["r.gpq"], chips=5, rejected={"/chips/r.tif": "cloud"}),
    )
    lines = lines_of(
        result_of(DONE, BAD, unfinished=3, remaining=("27WXQ", "27WXR", "27WXS"), encoded=69, interrupted=True), left
    )
    assert lines["tiles"] == "2 done, 1 skipped, 1 unfinished, 1 not begun"
    assert lines["chips"].startswith("10 in the files, 69 encoded now")
    assert lines["blocks"] == "2 of 7 of the unfinished tiles are kept"
    assert lines["quarantined"] == "2\n/chips/a.tif  has no CRS\n/chips/b.tif  is gone"
    assert lines["rejected"].startswith("1 ")


def test_summary_names_only_some() -> None:
    bad = {f"/chips/{n}.tif": "has no CRS" for n in range(8)}
    failed = [TileResult(f"27WX{letter}", "failed", reason="no chips") for letter in "NPQRST"]
    lines = lines_of(result_of(TileResult("27WXM", "done", "/out/a.gpq", 1, bad), *failed))
    assert lines["quarantined"].splitlines() == [
        "8",
        *(f"/chips/{n}.tif  has no CRS" for n in range(5)),
        "and 3 more: see the receipts",
    ]
    assert lines["failed"].splitlines()[0] == "6"
    assert lines["failed"].splitlines()[-1].startswith("and 1 more")


@pytest.mark.parametrize(
    ("spent", "limit", "busy"),
    [
        ({"source": 1, "decode": 2, "wait": 0, "device": 9, "write": 0}, "device", "100%"),
        ({"source": 9, "decode": 2, "wait": 9, "device": 1, "write": 0}, "source (the network, or the store)", "10%"),
        ({"source": 1, "decode": 20, "wait": 9, "device": 1, "write": 0}, "decode", "10%"),
        ({"source": 1, "decode": 0, "wait": 0, "device": 0, "write": 0}, "source (the network, or the store)", "0%"),
    ],
)
def test_limit_of_a_run(spent: dict[str, float], limit: str, busy: str) -> None:
    text = summary.describe_stages(result_of(encoded=1, stage_seconds=spent))
    assert text.endswith(f"device busy {busy} of its time, the limit was the {limit}")


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_terminal")
def test_piped_progress_is_a_line_a_tile(capsys: pytest.CaptureFixture[str]) -> None:
    long = TileResult("27WXP", "failed", reason=f"[red]{'no chips of it ' * 20}[/red]")
    state = Progress(3, "http://127.0.0.1:8787/status", "2 x CPU")
    with live.show_progress() as tell:
        tell(state)
        state.indexed = 1
        tell(state)
        state.finished.append(DONE)
        tell(state)
        tell(state)
        state.finished += [BAD, long]
        state.said.append("a worker is gone")
        tell(state)
    assert capsys.readouterr().out.splitlines() == [
        "dashboard: http://127.0.0.1:8787/status",
        "workers: 2 x CPU",
        *(summary.describe_tile(result) for result in (DONE, BAD, long)),
        "a worker is gone",
    ]


@pytest.mark.usefixtures("no_terminal")
def test_piped_progress_is_a_line_every_half_minute_too(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    state = Progress(1, "http://127.0.0.1:8787/status", "", indexed=1, chips=100)
    with live.show_progress() as tell:
        for _ in range(100):
            tell(state)
            clock[0] += 1
            state.in_work = {"embed-27WXN-0-x": int(clock[0]) - 1000}
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" · ")[1:4] for line in lines] == [
        [f"chips {seconds}/100", "1.00 chips/s", summary.describe_seconds(seconds) + " elapsed"]
        for seconds in (30, 60, 90)
    ]


def test_live_progress_is_a_bar_of_tiles_and_one_of_chips(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    half = {"embed-27WXN-0-x": 3}
    with live.show_progress() as tell:
        tell(Progress(4, "http://127.0.0.1:8787/status", "2 x CPU"))
        state = Progress(4, "", "", [DONE], indexed=3, chips=9, encoded=3, in_work=half, quarantined=2)
        clock[0] += 10
        tell(state)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).replace("\r", "")
    assert {"dashboard: http://127.0.0.1:8787/status", summary.describe_tile(DONE)} < set(out.splitlines())
    (tiles, done_tiles), (chips, done_chips) = (
        re.findall(rf"{name} (━*)╸? +(\d\S*)", out)[-1] for name in ("tiles", "chips")
    )
    # Of a tile that is not indexed as many chips are expected as of the others.
    assert (len(tiles), len(chips)) == (live.WIDTH // 4, live.WIDTH // 2)
    assert (done_tiles, done_chips) == ("1/4", "6/9+")
    assert out.rstrip().endswith("0.60 chips/s · 10 s elapsed · 10 s left · 2 quarantined")


@pytest.mark.usefixtures("no_terminal")
def test_bars_are_gone_at_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with live.show_progress() as tell:
        tell(Progress(1, "", "2 x CPU"))
    assert capsys.readouterr().out.endswith("\x1b[1A\x1b[2K")


class FakeCell:
    """What `IPython.display.display` gives for a cell's output that can be changed."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> FakeCell:
    """In a notebook, as far as one can tell from here."""
    made = FakeCell()
    ipython, its_display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(kernel=object())
    vars(its_display).update(HTML=str, display=lambda shown, display_id: made)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", its_display)
    return made


def test_a_notebook_gets_links_and_a_bar_of_chips(cell: FakeCell, clock: list[float]) -> None:
    tell = notebook.in_notebook()
    assert tell is not None
    state = Progress(2, "http://a/status?<", "2 x CPU", page="http://a/daskembed", indexed=2, chips=8, encoded=2)
    tell(state)
    state.encoded = 4
    tell(state)
    clock[0] += 1
    tell(state)
    state.how = "over"
    tell(state)
    assert len(cell.shown) == 3, "no more than one a second, and the end"
    assert '<progress value="2" max="8"' in cell.shown[0]
    assert '<progress value="4" max="8"' in cell.shown[1]
    assert '<progress value="1" max="1"' in cell.shown[2]
    for shown in cell.shown:
        assert '<a href="http://a/status?&lt;" target="_blank">' in shown
        assert '<a href="http://a/daskembed" target="_blank">' in shown


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["python", "ipython in a terminal"])
def test_elsewhere_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = ModuleType("IPython")
    vars(ipython)["get_ipython"] = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert notebook.in_notebook() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook.in_notebook() is None


# What functions give back, in a shell or notebook


def test_results_are_readable_however_many_tiles_there_are() -> None:
    bad = {f"/chips/{number}.tif": "has no CRS" for number in range(1000)}
    tiles = [TileResult(f"27W{a}{b}", "done", "/out/a.gpq", 3, bad) for a in "ABCDEFGH" for b in "ABCDEFGH"]
    failed = [replace(tile, status="failed", reason="no chips") for tile in tiles]
    shown = repr(result_of(*tiles, *failed, encoded=9, seconds=3.0))
    assert shown.startswith("<RunResult>\ntiles        64 done, 64 failed\n")
    assert len(shown.splitlines()) < 20
    assert repr(tiles[0]) == "<TileResult 27WAA  done: 3 chips, 1000 quarantined, /out/a.gpq>"
    statuses = tuple(TileStatus(tile.tile, "001", "done", chips=3, quarantined=bad) for tile in tiles)
    assert repr(statuses[0]) == "<TileStatus 27WAA v001 done: 3 chips, 1000 quarantined>"
    shown = repr(OutputStatus("/out", statuses))
    assert "27WAA" in shown
    assert "64 done" in shown
    assert len(shown.splitlines()) < 50
    plan = Plan("/out", "mean", (), (), {tile.tile: "no chips" for tile in tiles}, 0, 0, 0, {}, 64, None, 1, None)
    assert repr(plan).splitlines() == [
        "<Plan>",
        "tiles        64 without chips",
        *(f"  {tile.tile}  no chips" for tile in tiles[:5]),
        "  and 59 more",
        "chips        0 listed, 0 done, 0 to do",
        "a run would fail 64 tiles, as said above",
    ]
    assert "27WAA" not in repr(Progress(64, "", "", tiles))


# Words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unknown `on_nan` 'x'", "unknown --on-nan 'x'"),
        ("`max_quarantined=3`: expected a share", "--max-quarantined 3: expected a share"),
        ("give `dtype='float32'`", "give --dtype float32"),
        ("`overwrite=True` replaces it", "--overwrite replaces it"),
        ("`offset=(-1, 0)`: expected", "--offset -1,0: expected"),
        ("`cluster_arguments` is for", "--cluster-arg is for"),
        ("(`Rules(zeros=False)` keeps it)", "(--no-reject-zeros keeps it)"),
        ("`Rules(nan=False)` `on_nan='fill'`", "--no-reject-nan --on-nan fill"),
        ("(`Rules(max_cloud=0.3)`)", "(--max-cloud 0.3)"),
        ("`source='/my chips'` `tiles='33TUL'`", "--source /my chips --tiles 33TUL"),
        ("name a `device`", "name a --device"),
        # What is no argument, or not marked as one, stays.
        ("`dask scheduler` starts one; the level and the `geo` of its footer", None),
        ("`auto` of `output/` in `on-nan` and on_nan", None),
        ("`rules=Rules(zeros=False)", None),
        # Parts of messages are of whoever wrote a file.
        (f"`level={'(' * 100_000}`", None),
        (f"`level={'9' * 100_000}`", f"--level {'9' * 100_000}"),
        ("`source='it is ' + `x`'", None),
    ],
)
def test_arguments_are_shown_as_flags(text: str, shown: str | None) -> None:
    assert with_flags(text) == (shown or text)


def test_only_the_command_says_flags() -> None:
    """In texts of the library, docstrings but for other programs' flags."""
    said = {
        f"{path.name}: {node.value.strip()}"
        for path in Path(daskembed.__file__).parent.rglob("*.py")
        if path.parent.name != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"(?<!-)--[a-z]", node.value)
    }
    others = ("--scheduler-file", "--help", "--create-collections")
    assert {one for one in said if not any(flag in one for flag in others)} == set()


def test_every_option_has_a_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(capsys, monkeypatch, "run", "--help")
    lines = {flag: line for line in text.splitlines() for flag in re.findall(r"^  (--[a-z-]+)", line)}
    for name, words in words_of(RunOptions).items():
        if name == "rules":
            assert {"--reject-zeros", "--reject-nan", "--max-cloud", "--keep-all"} <= lines.keys()
        elif words.callback:
            assert flag_of(name) not in lines
        else:
            assert flag_of(name) in lines
            assert words.help in text


def test_flags_of_a_plan_and_of_cubes_are_those_of_their_functions() -> None:
    parser = make_parser()
    for command, known in (("run", RunOptions), ("plan", RunOptions), ("cube", CubeOptions)):
        given = parser.parse_args([command, "--tiles", "33TUL", "--output", "out"])
        callbacks = {name for name, words in words_of(known).items() if words.callback}
        assert set(keywords(given, known)) == set(known.__annotations__) - callbacks


@pytest.mark.parametrize(
    ("name", "value", "python", "command"),
    [
        ("max_quarantined", 3, "`max_quarantined=3`: expected a share", "--max-quarantined 3"),
        ("dates", "2019", "`dates` '2019': expected START/END", "--dates '2019'"),
        ("dtype", "int8", "unknown `dtype` 'int8'", "argument --dtype: invalid choice"),
        ("format", "netcdf", "unknown `format` 'netcdf'", "unknown --format 'netcdf'"),
        ("workers", "many", "`workers='many'`: expected a number", "--workers many: expected a number"),
    ],
)
def test_python_reads_of_arguments_and_the_shell_of_flags(
    capsys: pytest.CaptureFixture[str], chips: Path, tmp_path: Path, name: str, value: Any, python: str, command: str
) -> None:
    given: dict[str, Any] = {"source": str(chips), "output": str(tmp_path), "checkpoint": "untrained:tiny", name: value}
    with pytest.raises(InputError) as caught:
        daskembed.run("33TUL", **given)
    assert python in str(caught.value)
    flags = [part for keyword, one in given.items() for part in (flag_of(keyword), str(one))]
    with contextlib.suppress(SystemExit):  # of the parser
        assert main(["run", "--tiles", "33TUL", *flags]) == 2
    assert command in capsys.readouterr().err


def test_warnings_and_lines_of_progress_name_flags(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings()
    assert logging.lastResort is not None
    record = logging.LogRecord("daskembed", logging.WARNING, "", 0, "use `tls=True`", None, None)
    assert logging.lastResort.format(record) == "use --tls"
    print_event(Event("now", "failed", reason="check `dates`", counts={"tiles": 1}))
    assert json.loads(capsys.readouterr().out)["reason"] == "check --dates"
    # Flags are put into the reason, not into JSON.
    print_event(Event("now", "failed", reason='say `source="x"`, not `source=', file="`.tif", chip="`tiles`.tif"))
    told = json.loads(capsys.readouterr().out)
    assert (told["reason"], told["file"], told["chip"]) == ("say --source x, not `source=", "`.tif", "`tiles`.tif")
    with live.show_progress() as tell:
        tell(Progress(1, "", "none", finished=[replace(FAILED, reason="check `dates`")]))
        tell(Progress(1, "http://x", "none", finished=[FAILED, replace(FAILED, reason="check `dates`")]))
    assert "failed: check --dates" in capsys.readouterr().out


def test_whoever_reads_may_have_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        # As the shell says of what SIGPIPE ends.
        assert main(["clusters"]) == 141
        # Python flushes what is left as it ends.
        stdout.flush()


def test_another_pipe_that_breaks_is_no_reader_who_has_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(options: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "of a store")

    monkeypatch.setitem(COMMANDS, "clusters", broken)
    with (tmp_path / "said").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError, match="of a store"):
            main(["clusters"])
