"""Where a process's time goes: chips and seconds by stage, summed over its threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

STAGES = ("source", "decode", "wait", "device", "write")
"""Fetching bytes, decoding them, the device's thread waiting for chips, encoding, writing files."""
CHIPS = "chips"
"""What the device is done with: chips embedded or found to be bad."""
WINDOW = 20
"""Seconds over which `Recent` takes its means."""

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_thread = threading.local()
"""Of each thread: seconds of the stages inside of the one that it is in."""
_seconds = dict.fromkeys(STAGES, 0.0)
_chips = 0
_task: ContextVar[dict[str, float] | None] = ContextVar("daskembed-task", default=None)
_running: dict[str, dict[str, float]] = {}
"""What the tasks that this process has in work have spent, by their names on the cluster."""


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the block's wall time to `stage` (one of `STAGES`), without that of the stages inside of it."""
    outer, inside = getattr(_thread, "inside", None), [0.0]
    _thread.inside = inside
    start = time.perf_counter()
    try:
        yield
    finally:
        passed, task = time.perf_counter() - start, _task.get()
        spent = passed - inside[0]
        _thread.inside = outer
        if outer is not None:
            outer[0] += passed
        with _lock:
            _seconds[stage] += spent
            if task is not None:
                task[stage] += spent


def count_chips(number: int) -> None:
    """Add chips that the device is done with."""
    global _chips
    task = _task.get()
    with _lock:
        _chips += number
        if task is not None:
            task[CHIPS] += number


def seconds() -> dict[str, float]:
    """Seconds by stage since the process started."""
    with _lock:
        return dict(_seconds)


@contextlib.contextmanager
def metered() -> Iterator[None]:
    """Give Dask's fine performance metrics what this task spends, also in threads that `for_this_task` reaches.

    They are told once, at the task's end and in its own thread: Dask's meter does not reach other threads.
    """
    from distributed.metrics import context_meter
    from distributed.utils import thread_state

    spent = dict.fromkeys((*STAGES, CHIPS), 0.0)
    token, key = _task.set(spent), getattr(thread_state, "key", "")
    with _lock:
        _running[key] = spent
    try:
        yield
    finally:
        _task.reset(token)
        with _lock:
            _running.pop(key, None)
        for name, value in spent.items():
            if value:
                # Dask takes seconds off the task's own: those of many threads would leave it none.
                unit = {CHIPS: "count", "source": "thread-seconds", "decode": "thread-seconds"}.get(name, "seconds")
                context_meter.digest_metric(name, value, unit)


def chips_in_work() -> dict[str, int]:
    """Chips that the device is done with, of each task that this process has in work, by the task's name."""
    with _lock:
        return {key: int(spent[CHIPS]) for key, spent in _running.items() if spent[CHIPS]}


def for_this_task(function: Callable[P, T]) -> Callable[P, T]:
    """`function` for another thread, whose time there counts for the task of this one."""
    task = _task.get()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _task.set(task)
        try:
            return function(*args, **kwargs)
        finally:
            _task.reset(token)

    return call


class Recent:
    """Chips of this process and how busy its device is: what a worker adds to its heartbeats."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int, dict[str, float]]] = deque()

    def read(self) -> dict[str, Any]:
        """Chips so far; chips a second and the shares of time of the device and of its waiting since `WINDOW`.

        Also `chips_in_work`.
        """
        self._readings.append((time.perf_counter(), _chips, seconds()))
        now, chips, spent = self._readings[-1]
        while len(self._readings) > 2 and self._readings[1][0] <= now - WINDOW:
            self._readings.popleft()
        then, chips_then, spent_then = self._readings[0]
        passed = now - then or 1.0
        # What is counted at its end may have begun before.
        share = {stage: min(1.0, (spent[stage] - spent_then[stage]) / passed) for stage in ("device", "wait")}
        rate = (chips - chips_then) / passed
        return {"chips": chips, "chips_per_second": rate, **share, "in_work": chips_in_work()}
