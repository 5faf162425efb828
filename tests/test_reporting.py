"""What a run says while it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskembed.cli import live
from daskembed.runs.reporting import PROGRESS_EVERY, Report
from daskembed.runs.results import MOST_SAID, Event, Progress
from daskembed.storage.stores import Storage

PAUSED = "Dask has paused workers that are short of memory: "


def test_a_trouble_that_comes_and_goes_is_told_now_and_then(tmp_path: Path) -> None:
    events: list[Event] = []
    report = Report(None, "embeddings", ["33TUL"], Storage(str(tmp_path)), "001", None, events.append, "")
    start, said = report.state.started, report.state.said

    def look(second: int, trouble: str) -> None:
        report.state.started = start - second
        report.notice(trouble)
        assert report.state.notice == trouble

    half = PROGRESS_EVERY // 2
    for second in range(half):
        # Others each time, and none between.
        look(second, f"{PAUSED}tcp://10.0.0.{second}:{second}" if second % 2 else "")
    assert said == [f"{PAUSED}tcp://10.0.0.1:1", "workers are back"]
    look(half, "no worker is left: waiting up to 300 s for one")
    assert said[2:] == ["no worker is left: waiting up to 300 s for one"]
    # What was told too lately is told as soon as it may be, if it still holds.
    for second in range(half + 1, PROGRESS_EVERY + 10):
        look(second, "")
    assert said[3:] == ["workers are back"]
    assert [event.reason for event in events] == said


def test_what_was_said_does_not_grow_without_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    state, most = Progress(1, "", "2 x CPU"), MOST_SAID + 20
    with live.show_progress() as tell:
        for number in range(most):
            state.say(f"line {number}")
            tell(state)
    assert state.said == [f"line {number}" for number in range(20, most)]
    assert capsys.readouterr().out.splitlines() == ["2 x CPU", *(f"line {number}" for number in range(most))]


def test_a_worker_that_is_lost_at_the_very_end_is_told_of(tmp_path: Path) -> None:
    events: list[Event] = []
    report = Report(None, "embeddings", ["33TUL"], Storage(str(tmp_path)), "001", None, events.append, "")
    report.begin()
    report._lost.append({"worker": "tcp://10.0.0.7:1", "tasks": 0, "memory": 0})
    report.end("over")
    assert [(event.event, event.reason) for event in events[-2:]] == [
        ("notice", "worker tcp://10.0.0.7:1 is gone"),
        ("run_ended", "over"),
    ]
