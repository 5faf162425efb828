"""The one way of tiles through the cluster: a window of tasks, driven by what finishes, that outlives workers."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from distributed import KilledWorker, span

from daskembed import timings
from daskembed.clusters.connection import WORKER_TIMEOUT, connect
from daskembed.errors import (
    ClusterLostError,
    DaskembedError,
    InputError,
    LockLostError,
    SickMachineError,
    StorageError,
    StorageUnusableError,
    TileError,
)
from daskembed.runs.fleet import Fleet
from daskembed.runs.results import RunResult, TileResult
from daskembed.runs.tasks import Following, Observer, Task, Work
from daskembed.storage.urls import redact
from daskembed.text import counted

if TYPE_CHECKING:
    from distributed import Client, Future

    from daskembed.runs.calibration import CalibrationResult
    from daskembed.runs.components import Passed
    from daskembed.runs.export_results import ExportResult

RETRIES = 2
"""How often a task is tried again after an error, on top of the stores' own retries."""
DASK_CONFIG = {
    # Workers that may die of a task before the scheduler gives it back.
    "distributed.scheduler.allowed-failures": 2,
    # A worker's threads wait for ours, so a profile of them says nothing; an hour of it is kept, up to gigabytes.
    "distributed.worker.profile.enabled": False,
    # An adaptive cluster is to have a thread for each task that waits, however short: the scheduler knows only those of
    # the window, and by their time alone it would find too little work there while tiles wait.
    "distributed.adaptive.target-duration": "10ms",
}
"""What a cluster that is started for a run is told."""
_Result = TypeVar("_Result", RunResult, "ExportResult", "CalibrationResult", "Passed")
MOST_RETURNS = 4
"""How often a task that the scheduler gave back is sent again before its tile fails."""


@dataclass(frozen=True)
class Passage:
    """How the tiles came through."""

    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool
    stage_seconds: dict[str, float]
    """See `daskembed.runs.results.RunResult`."""


class Window:
    """The way of tiles through the cluster.

    Parameters
    ----------
    client
        Of the cluster; its scheduler has workers.
    work
        What is done to each tile.
    names
        Tiles in the order in which they are wanted.
    observer
        Is told what happens.
    check
        Called every second; raises to stop the run.
    """

    def __init__(
        self, client: Client, work: Work, names: Sequence[str], observer: Observer, check: Callable[[], None]
    ) -> None:
        self._client, self._work, self._observer, self._check = client, work, observer, check
        self._todo = iter(enumerate(names))
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._tasks: dict[Future, Task[Any]] = {}
        self._at_work = set[str]()
        self._fleet, self._looked = Fleet(client, observer), 0.0

    def run(self) -> Passage:
        """See all tiles through, or as many as can be until Ctrl-C."""
        self._fleet.begin()
        start, before = time.perf_counter(), self._client.run(timings.seconds, on_error="ignore")
        self._observer.begin()
        interrupted = False
        try:
            with span("daskembed", self._work.title):
                try:
                    self._fill()
                    self._drain(self._fill)
                except KeyboardInterrupt:
                    interrupted = True
                    self._observer.say(_farewell(self._tasks.values(), self._work.pieces))
                    # Blocks are given up, files whose blocks are all done are still published.
                    self._cancel([future for future, task in self._tasks.items() if not task.publishes])
                    self._drain(lambda: None)
        except KeyboardInterrupt:
            pass  # the second one: stop at once
        except DaskembedError as error:
            self._observer.end("stopped", redact(str(error)))
            raise
        finally:
            self._cancel(list(self._tasks))
        self._observer.end("interrupted" if interrupted else "over")
        seconds = time.perf_counter() - start
        return Passage(seconds, interrupted, {} if interrupted else self._stage_seconds(before))

    def _fill(self) -> None:
        """Start tiles until every thread has blocks waiting: fewer starve it, more only fill the scheduler."""
        self._look()
        threads = max(1, self._fleet.threads)
        room = 3 * threads
        most = self._work.most_tiles(threads) or room
        while len(self._tasks) < room and len(self._at_work) < most:
            if (following := next(self._todo, None)) is None:
                return
            order, name = following
            first = self._work.begin(name, order)
            self._at_work.add(name)
            self._observer.tile_started(name, first.tile.damage)
            self._send([first])

    def _look(self) -> None:
        """See who works and whether this run may go on, once a second: for each block it would cost as much."""
        now = time.monotonic()
        if now < self._looked + 1:
            return
        self._looked = now
        self._check()
        self._fleet.look({task.key for task in self._tasks.values()})

    def _drain(self, refill: Callable[[], None]) -> None:
        while self._tasks:
            try:
                future = self._done.get(timeout=1)
            except queue.Empty:
                self._look()
                continue
            task = self._tasks.pop(future, None)
            if task is None:
                continue  # cancelled meanwhile
            if future.status == "finished":
                self._fleet.worked()
                self._go_on(task, _result(future) if task.gives else None)
            elif future.status == "error":
                self._after_error(task, future.exception())
            else:
                raise ClusterLostError("the Dask scheduler is gone, and what it knew with it")
            self._observer.tell()
            refill()

    def _go_on(self, task: Task[Any], found: Any) -> None:
        try:
            following = task.then(found, self._observer)
        except StorageError as error:  # of the output, where the client writes
            self._after_error(task, error)
        else:
            self._follow(task, following)

    def _follow(self, task: Task[Any], following: Following) -> None:
        if isinstance(following, TileResult):
            self._at_work.discard(task.tile.name)
            self._observer.finished(following, task.tile.quarantined, task.key)
        elif following:
            self._send(following)

    def _send(self, tasks: Sequence[Task[Any]]) -> None:
        """Submit tasks of one stage together: one by one, a tile's blocks would cost more."""
        if tasks[0].on_client:
            for task in tasks:
                if task.tile.name in self._at_work:  # not failed by one before
                    self._do(task)
            return
        calls = [task.call() for task in tasks]
        futures = self._client.map(
            calls[0][0],
            *zip(*(arguments for _, arguments in calls), strict=True),
            key=[task.key for task in tasks],
            pure=False,
            # Earlier tiles first, so that they finish in order and early results can be used early. What is of no block
            # goes ahead of all blocks: a thread that is free does it first, and it is short.
            priority=10 if tasks[0].number is None else -tasks[0].tile.order,
        )
        for sent, future in zip(tasks, futures, strict=True):
            self._tasks[future] = sent
            future.add_done_callback(self._done.put)

    def _do(self, task: Task[Any]) -> None:
        """Do a task here."""
        function, arguments = task.call()
        try:
            found = function(*arguments)
        except (StorageError, TileError, OSError) as error:
            self._after_error(task, error)
        else:
            self._go_on(task, found)

    def _after_error(self, task: Task[Any], error: BaseException) -> None:
        if isinstance(error, (StorageUnusableError, InputError, LockLostError)):
            # Nothing else would fare better: what is finished stays, and the same command goes on.
            raise error
        try:
            following = self._again(task, error)
        except TileError as hopeless:
            self._fail(task, hopeless)
            return
        worker = error.last_worker.address if isinstance(error, KilledWorker) else None
        self._observer.retried(task.tile.name, task.stage, redact(_reason(error)), task.key, task.number, worker)
        if isinstance(error, SickMachineError):
            self._fleet.restart_sick()
        self._send([following])

    def _again(self, task: Task[Any], error: BaseException) -> Task[Any]:
        """What is done after an error; raises `TileError` if it has been done too often."""
        died = isinstance(error, KilledWorker)
        if died or isinstance(error, MemoryError):
            if task.returns < MOST_RETURNS:
                return task.given_back(died=died)
            what = "its workers died" if died else "its workers ran out of memory"
            raise TileError(f"{what} again and again during `{task.stage}`: look at their logs")
        # Counted here and not by Dask, which would also repeat what stops the run.
        if isinstance(error, TileError) or task.tries == RETRIES:
            raise TileError(_reason(error)) from error
        return task.again(error, self._observer)

    def _fail(self, task: Task[Any], error: TileError) -> None:
        tile, reason = task.tile, str(error)
        self._at_work.discard(tile.name)
        self._cancel([future for future, other in self._tasks.items() if other.tile is tile])
        result = TileResult(tile.name, "failed", quarantined=tile.quarantined, reason=reason)
        self._observer.finished(result, tile.quarantined, task.key, task.number)
        # Told anyway; a store that does not take this either fails the next tiles too.
        with contextlib.suppress(StorageError):
            tile.record_failure(reason)

    def _cancel(self, futures: list[Future]) -> None:
        for future in futures:
            del self._tasks[future]
        if futures:
            self._client.cancel(futures)

    def _stage_seconds(self, before: dict[str, dict[str, float]]) -> dict[str, float]:
        total = dict.fromkeys(timings.STAGES, 0.0)
        for worker, spent in self._client.run(timings.seconds, on_error="ignore").items():
            for stage in total:
                total[stage] += spent[stage] - before.get(worker, {}).get(stage, 0.0)
        return total


def on_cluster(cluster: str, work: Callable[[Client], _Result], start: Mapping[str, Any]) -> _Result:
    """Start a cluster, or connect to one, for some work, and close it; `start` are keywords of `connect`."""
    result: _Result | None = None
    try:
        with dask.config.set(DASK_CONFIG), connect(cluster, **start) as client:
            result = work(client)
    except KeyboardInterrupt:
        if result is None:
            raise
        # While the cluster closed: what the run did is told all the same.
        return replace(result, interrupted=True)
    return result


def _farewell(tasks: Collection[Task[Any]], pieces: str) -> str:
    """What a Ctrl-C waits for, and what it gives up."""
    publishing = sum(task.publishes for task in tasks)
    blocks = sum(task.number is not None for task in tasks)
    if publishing:
        tiles = f"{counted(publishing, 'tile')} {'is' if publishing == 1 else 'are'}"
        waits = f"waiting until {tiles} published, which a second Ctrl-C drops"
    else:
        waits = "no tile waits to be published; a cluster of this run is closed, and two more Ctrl-C do not wait for it"
    return f"interrupted: {counted(blocks, f'unfinished {pieces}')} given up, finished ones are kept; {waits}"


def _result(future: Future) -> Any:
    try:
        return future.result(timeout=WORKER_TIMEOUT)
    except TimeoutError:
        # Its worker died after it was done, and nobody came to do it again.
        raise ClusterLostError(f"no worker gave the result of {future.key} within {WORKER_TIMEOUT} s") from None


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DaskembedError) else f"{type(error).__name__}: {error}"
