"""Events of a run: what is told, in which order, by whom, and as lines of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import daskembed
from daskembed.cli.main import main as cli
from daskembed.errors import StorageUnusableError, TileError
from daskembed.runs import dashboard, reporting, stages
from daskembed.runs.blocks import Block
from daskembed.runs.results import Event
from daskembed.testing import write_chips

TINY = {"checkpoint": "untrained:least:0", "precision": "fp32"}
SHOWN = "https://store.example/bucket/chip.tif"
SECRET = "https://me:hunter2@store.example/bucket/chip.tif?X-Amz-Signature=abcdef"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A worker in this process, so that a test can put a stage of its own in the place of another."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as started:
        yield started


@pytest.fixture
def client(cluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as connected:
        yield connected


@pytest.fixture
def source(tmp_path) -> Path:
    """Two tiles of one chip each; one of them has a bad chip too."""
    folder = tmp_path / "chips"
    write_chips(folder, tile="33TUL", rows=1, cols=1)
    (good,) = write_chips(folder, tile="33TUM", rows=1, cols=1)
    Path(good).with_name("claytile_33TUM_20190416_v02_0099.tif").write_text("no TIFF")
    return folder


def run(
    client: Client, source: Path, tmp_path: Path, tiles: str = "33TUL", events: list[Event] | None = None
) -> list[Event]:
    events = [] if events is None else events
    output = str(tmp_path / "out")
    daskembed.run(tiles, source=str(source), output=output, cluster=client, events=events.append, **TINY)
    return events


def test_the_command_prints_one_line_of_json_an_event(capsys, cluster, client, source, tmp_path):
    command = ["run", "--tiles", "33TUL,33TUM,33TUN", "--source", str(source), "--output", str(tmp_path / "out")]
    command += ["--checkpoint", "untrained:least:0", "--precision", "fp32", "--cluster", "tcp://scheduler"]
    command += ["--log-format", "json"]
    with pytest.MonkeyPatch.context() as patch:
        # The address of a cluster within this process is no tcp:// one.
        patch.setattr("daskembed.runs.window.connect", lambda *_, **__: client)
        assert cli(command) == 4
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(line["event"], line.get("tile")) for line in lines]
    assert told[0] == ("run_started", None)
    assert told[-1] == ("run_ended", None)
    for tile, events in {
        "33TUL": ["tile_started", "indexed", "embedded", "published"],
        "33TUM": ["tile_started", "indexed", "quarantined", "embedded", "published"],
        "33TUN": ["tile_started", "failed"],
    }.items():
        assert [event for event, of in told if of == tile] == events
    (worker,) = cluster.scheduler.workers
    for line in lines:
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert (line.get("worker") == worker) == (line["event"] in ("indexed", "embedded", "published", "failed")), line
        assert None not in line.values()
    by_event = {line["event"]: line for line in lines}
    assert by_event["run_started"]["page"].endswith("/daskembed")
    assert by_event["embedded"].items() >= {"block": 0, "chips": 1}.items()
    assert by_event["quarantined"]["chip"].endswith("_0099.tif")
    assert "is not a TIFF" in by_event["quarantined"]["reason"]
    assert by_event["published"].items() >= {"chips": 1, "quarantined": 1}.items()
    assert Path(by_event["published"]["file"]).is_file()
    assert "33TUN" in by_event["failed"]["reason"]
    assert by_event["run_ended"].items() >= {"tiles": 3, "done": 2, "failed": 1, "encoded": 2, "quarantined": 1}.items()


def test_what_an_earlier_run_finished_is_told(client, source, tmp_path):
    run(client, source, tmp_path)
    assert [event.event for event in run(client, source, tmp_path)] == [
        "run_started",
        "tile_started",
        "skipped",
        "run_ended",
    ]


def test_what_is_tried_again_is_told_with_stage_and_block(client, source, tmp_path, monkeypatch):
    compute = Block.compute
    failures = [f"no answer from {SECRET}"]

    def fail_once(block: Block, without: Any = None) -> Any:
        if failures:
            raise OSError(failures.pop())
        return compute(block, without)

    monkeypatch.setattr(Block, "compute", fail_once)
    events = run(client, source, tmp_path)
    (retried,) = [event for event in events if event.event == "retried"]
    assert (retried.tile, retried.stage, retried.block) == ("33TUL", "embed", 0)
    assert retried.reason == f"OSError: no answer from {SHOWN}"
    assert retried.worker is not None
    assert [event.event for event in events][-3:] == ["embedded", "published", "run_ended"]


def test_no_secret_of_a_url_is_told(client, source, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise TileError(f"cannot list {SECRET}")

    monkeypatch.setattr(stages, "index", fail)
    (failed,) = [event for event in run(client, source, tmp_path) if event.event == "failed"]
    assert failed.reason == f"cannot list {SHOWN}"


def test_no_secret_of_a_quarantined_chip_is_told(client, source, tmp_path, monkeypatch):
    def find(*_: Any) -> tuple[stages.Indexed, list[Block]]:
        return stages.Indexed("listing", {SECRET: f"is gone: {SECRET}"}, ()), []

    monkeypatch.setattr(stages, "index", find)
    (bad,) = [event for event in run(client, source, tmp_path) if event.event == "quarantined"]
    assert (bad.chip, bad.reason) == (SHOWN, f"is gone: {SHOWN}")


def test_a_run_that_a_store_stops_ends_with_the_reason(client, source, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise StorageUnusableError(f"no room at {SECRET}")

    monkeypatch.setattr(stages, "index", fail)
    events: list[Event] = []
    with pytest.raises(StorageUnusableError):
        daskembed.run(
            "33TUL", source=str(source), output=str(tmp_path / "out"), cluster=client, events=events.append, **TINY
        )
    assert (events[-1].event, events[-1].reason) == ("run_ended", f"no room at {SHOWN}")


def test_workers_are_known_without_asking(cluster, client, source, tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked who has a block")

    monkeypatch.setattr(Client, "who_has", refuse)
    events = run(client, source, tmp_path)
    assert all(event.worker for event in events if event.event == "embedded")
    while client.id in cluster.scheduler._broker._topics[dashboard.TASKS].subscribers:
        time.sleep(0.1)  # the client does not wait for it


def test_how_far_the_run_is_is_told_every_half_minute(client, source, tmp_path, monkeypatch):
    assert reporting.PROGRESS_EVERY == 30
    monkeypatch.setattr(reporting, "PROGRESS_EVERY", 0)
    progress = next(event for event in run(client, source, tmp_path) if event.event == "progress")
    assert progress.counts.keys() >= {"tiles", "done", "chips", "encoded", "quarantined", "rejected"}


def test_the_page_has_the_chips_set_aside_with_reasons(cluster, client, source, tmp_path):
    events = run(client, source, tmp_path, "33TUL,33TUM,33TUN")
    while (told := cluster.scheduler.plugins["daskembed-page"].state()["runs"][0])["state"] != "over":
        time.sleep(0.1)  # the client does not wait for it
    (quarantined,) = [event for event in events if event.event == "quarantined"]
    (bad,) = told["bad"]
    assert bad == {"tile": "33TUM", "chip": quarantined.chip, "fate": "quarantined", "reason": quarantined.reason}
    assert told.items() >= {"done": 2, "failed": 1, "unfinished": 0, "in_files": 2, "quarantined": 1}.items()


def test_a_worker_that_took_too_much_memory_is_told_of_in_a_line(cluster, client, source, tmp_path, monkeypatch):
    """What the nanny and the scheduler say of such a worker, without one."""
    compute, events = Block.compute, list[Event]()
    gone = {"action": "remove-worker", "worker": "tcp://10.0.0.7:1", "expected": False}

    def lose(block: Block, without: Any = None) -> Any:
        cluster.scheduler.log_event("worker-restart-memory", {"worker": gone["worker"], "pid": 7, "rss": 7.9e9})
        cluster.scheduler.log_event("all", gone | {"processing-tasks": {"embed-33TUL-0-x", "embed-33TUL-1-x", "other"}})
        cluster.scheduler.log_event("all", gone | {"processing-tasks": set()})
        cluster.scheduler.log_event("all", gone | {"processing-tasks": set(), "expected": True})
        monkeypatch.setattr(Block, "compute", compute)
        end = time.monotonic() + 60
        while sum(event.event == "notice" for event in events) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        return compute(block, without)

    monkeypatch.setattr(Block, "compute", lose)
    run(client, source, tmp_path, events=events)
    notices = [event.reason for event in events if event.event == "notice"]
    assert notices == [
        "worker tcp://10.0.0.7:1 took 7.9 GB of memory, more than its limit allows, and was stopped: the 2 tasks that "
        "it had run again",
        "worker tcp://10.0.0.7:1 is gone",
    ]
