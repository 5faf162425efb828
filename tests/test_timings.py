"""Chips, and seconds by stage."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from distributed.utils import set_thread_state

from daskembed import timings


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still until a test sets it; the seconds counted so far are set aside."""
    now = [100.0]
    monkeypatch.setattr(timings, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(timings, "_seconds", dict.fromkeys(timings.STAGES, 0.0))
    return now


def test_seconds_add_up_by_stage(clock):
    for spent, stage in ((2, "source"), (3, "device"), (5, "source")):
        with timings.timed(stage):
            clock[0] += spent
    clock[0] += 50
    assert timings.seconds() == {"source": 7, "decode": 0, "wait": 0, "device": 3, "write": 0}


def test_a_block_that_fails_counts_and_its_error_goes_on(clock):
    def fail() -> None:
        clock[0] += 4
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), timings.timed("write"):
        fail()
    assert timings.seconds()["write"] == 4


def test_unknown_stage_is_an_error(clock):
    with pytest.raises(KeyError, match="reading"), timings.timed("reading"):
        pass


def test_threads_add_to_the_same_sum(clock):
    started = threading.Barrier(9)

    def work() -> None:
        with timings.timed("decode"):
            started.wait(30)
            ended.wait(30)

    ended = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait(30)
    clock[0] += 1.5
    ended.set()
    for thread in threads:
        thread.join()
    assert timings.seconds()["decode"] == 12


def test_the_answer_is_a_copy(clock):
    timings.seconds()["wait"] = 99
    assert timings.seconds()["wait"] == 0


def test_chips_of_a_task_are_told_while_it_goes_on():
    def work(key: str, chips: int) -> None:
        with set_thread_state(key=key), timings.metered():
            timings.count_chips(chips)
            counted.wait(30)
            ended.wait(30)

    counted, ended = threading.Barrier(3), threading.Event()
    threads = [threading.Thread(target=work, args=task) for task in (("embed-a", 3), ("embed-b", 0))]
    for thread in threads:
        thread.start()
    counted.wait(30)
    told = timings.Recent().read()["in_work"]
    ended.set()
    for thread in threads:
        thread.join()
    assert told == {"embed-a": 3}
    assert timings.Recent().read()["in_work"] == {}


def test_chips_that_another_thread_counts_are_those_of_its_task():
    with set_thread_state(key="embed-a"), timings.metered():
        count = timings.for_this_task(timings.count_chips)
        other = threading.Thread(target=count, args=(2,))
        other.start()
        other.join()
        assert timings.chips_in_work() == {"embed-a": 2}


def test_a_task_that_fails_is_in_work_no_more():
    def fail() -> None:
        timings.count_chips(1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), set_thread_state(key="embed-a"), timings.metered():
        fail()
    assert timings.chips_in_work() == {}


def test_a_stage_inside_of_another_is_not_counted_twice(clock):
    with timings.timed("decode"):
        clock[0] += 1
        with timings.timed("source"):
            clock[0] += 5
        clock[0] += 2
    assert timings.seconds() == {"source": 5, "decode": 3, "wait": 0, "device": 0, "write": 0}
