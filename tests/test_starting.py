"""Clusters of this machine start within a time limit, and again where a process died as it came up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from daskembed.clusters import starting as started


def test_a_start_that_does_not_end_is_given_up_and_what_comes_of_it_is_closed() -> None:
    gate, closed = threading.Event(), threading.Event()

    class Slow:
        def close(self) -> None:
            closed.set()

    def make() -> Slow:
        gate.wait(60)
        return Slow()

    with pytest.raises(TimeoutError, match=r"it takes longer than 0\.01 s; look at this machine's limits"):
        started._within(0.01, make)
    gate.set()
    assert closed.wait(60)


@pytest.mark.parametrize(("deaths", "starts"), [(0, 1), (2, 3), (3, None)])
def test_a_process_that_dies_as_it_comes_up_has_the_cluster_started_again(deaths: int, starts: int | None) -> None:
    begun: list[int] = []

    def make(**arguments: Any) -> str:
        begun.append(1)
        if len(begun) <= deaths:
            raise RuntimeError("Nanny failed to start.")
        return "cluster"

    if starts is None:
        with pytest.raises(RuntimeError, match="Nanny failed to start"):
            started._make_here(make, {})
        assert len(begun) == started.START_TRIES
    else:
        assert started._make_here(make, {})[0] == "cluster"
        assert len(begun) == starts


def test_another_failure_is_told_at_once() -> None:
    begun: list[int] = []

    def make(**arguments: Any) -> None:
        begun.append(1)
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        started._make_here(make, {})
    assert len(begun) == 1


def test_a_machine_without_semaphores_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a /dev/shm that cannot be written, where Dask would wait for ever."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", refuse)
    with pytest.raises(OSError, match=r"\(Read-only file system\): /dev/shm must be writable"):
        started._make_here(lambda: None, {})


@pytest.mark.parametrize(("told", "times"), [(False, 1), (True, 0)])
def test_that_a_cluster_closes_is_said_once(
    told: bool, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    class Slow:
        def close(self) -> None:
            gate.wait(60)

    monkeypatch.setattr(started, "CLOSE_PATIENCE", 0.01)
    monkeypatch.setattr(started, "CLOSE_TIMEOUT", 0.01)
    with pytest.raises(TimeoutError):
        started._close(Slow(), told=told)
    gate.set()
    assert caplog.messages == [started.CLOSING] * times
