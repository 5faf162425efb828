"""The tiles' way through the cluster: a window of tasks, driven by what finishes, that outlives workers."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker, SpecCluster, Status, span

from daskembed import timings
from daskembed.clusters.connection import WORKER_TIMEOUT
from daskembed.clusters.proof import SICK, restart_sick
from daskembed.clusters.quiet import TellOnce
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
from daskembed.output.state import Receipt, now
from daskembed.runs import stages
from daskembed.runs.reporting import Report
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.runs.settings import Settings
from daskembed.storage.urls import redact

if TYPE_CHECKING:
    from distributed import Client, Future, Scheduler

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
MOST_SICK = 3
"""How many workers that cannot do the work a cluster is asked to replace."""
MOST_RETURNS = 4
"""How often a task that the scheduler gave back is sent again before its tile fails."""


@dataclass
class _Job:
    """One tile on its way."""

    tile: str
    order: int
    started: str
    receipt: Receipt | None
    """Of an earlier run with the same settings."""
    files: list[str]
    """Names of its published files."""
    indexed: stages.Indexed | None = None
    waiting: set[str] = field(default_factory=set)
    """Parts that are not written yet."""
    begun_again: int = 0
    """How often its parts were gone."""
    damage: str = ""
    """Why it is made again, though it was finished."""


@dataclass(frozen=True)
class _Task:
    """One task of a tile on the cluster."""

    job: _Job
    stage: str
    """``index``, ``embed``, ``examine`` or ``publish``."""
    block: stages.Block | None = None
    tries: int = 0
    """How often it was tried again after an error."""
    returns: int = 0
    """How often the scheduler gave it back because its workers died."""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    """URL -> reason, of chips that its worker must not touch."""

    @property
    def number(self) -> int | None:
        """Of its block."""
        return None if self.block is None else self.block.number

    @property
    def key(self) -> str:
        """Its name on the cluster."""
        number = "" if self.number is None else f"-{self.number}"
        again = f"-again{self.tries + self.returns}" if self.tries + self.returns else ""
        return f"{self.stage}-{self.job.tile}{number}-{self.job.started}{again}"


class Flow:
    """The tiles' way through the cluster.

    Parameters
    ----------
    client
        Of the cluster; its scheduler has workers.
    names
        Tiles in the order in which they are wanted.
    settings
        What to do with each.
    receipts, published
        What earlier runs left: receipts by tile, names and bytes of published files by tile.
    check
        Called every second; raises to stop the run.
    progress
        Called with the run's state after every change.
    events
        Called with what happens.
    workers
        What they are, in a line.
    """

    def __init__(
        self,
        client: Client,
        names: tuple[str, ...],
        settings: Settings,
        receipts: dict[str, Receipt],
        published: dict[str, dict[str, int]],
        check: Callable[[], None],
        progress: Callable[[Progress], None] | None,
        events: Callable[[Event], None] | None,
        workers: str,
    ) -> None:
        self._client, self._settings, self._receipts, self._published = client, settings, receipts, published
        self._names, self._todo = names, iter(enumerate(names))
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._tasks: dict[Future, _Task] = {}
        self._report = Report(client, len(names), settings.output, settings.version, progress, events, workers)
        self._state, self._check = self._report.state, check
        self._room, self._looked, self._alone_since = 1, 0.0, time.monotonic()
        self._sick, self._sick_told = dict[str, str](), 0

    def run(self) -> RunResult:
        """Embed all tiles, or as many as can be until Ctrl-C."""
        with contextlib.suppress(OSError):  # of a worker that dies at this moment; the others have it
            self._client.register_plugin(TellOnce())
        self._client.subscribe_topic(SICK, self._hear_of_sick)
        start, before = time.perf_counter(), self._client.run(timings.seconds, on_error="ignore")
        self._report.begin()
        interrupted = False
        try:
            with span("daskembed", f"{redact(self._settings.output.url)} v{self._settings.version}"):
                try:
                    self._fill()
                    self._drain(self._fill)
                except KeyboardInterrupt:
                    interrupted = True
                    self._report.say(_farewell(self._tasks.values()))
                    # Blocks are given up, files whose blocks are all done are still published.
                    self._cancel([future for future, task in self._tasks.items() if task.stage != "publish"])
                    self._drain(lambda: None)
        except KeyboardInterrupt:
            pass  # the second one: stop at once
        except DaskembedError as error:
            self._report.end("stopped", redact(str(error)))
            raise
        finally:
            self._cancel(list(self._tasks))
        self._report.end("interrupted" if interrupted else "over")
        seconds = time.perf_counter() - start
        finished = {tile.tile for tile in self._state.finished}
        return RunResult(
            output=self._settings.output.url,
            tiles=tuple(self._state.finished),
            unfinished=self._state.tiles - len(finished),
            encoded=self._state.encoded,
            seconds=seconds,
            interrupted=interrupted,
            stage_seconds={} if interrupted else self._stage_seconds(before),
            remaining=tuple(name for name in self._names if name not in finished),
            version=self._settings.version,
        )

    def _hear_of_sick(self, heard: tuple[float, dict[str, str]]) -> None:
        """In the client's thread: a worker that joined cannot do the work."""
        self._sick[heard[1]["worker"]] = heard[1]["reason"]

    def _fill(self) -> None:
        """Start tiles until every thread has blocks waiting: fewer starve it, more only fill the scheduler."""
        self._look()
        while len(self._tasks) < self._room and (following := next(self._todo, None)) is not None:
            order, tile = following
            files, receipt = self._published.get(tile, {}), self._receipts.get(tile)
            damage = "; ".join(receipt.differences(files)) if receipt else ""
            if receipt and not receipt.finishes(self._settings.identity, files):
                receipt = None
            job = _Job(tile, order, now(), receipt, sorted(files), damage=damage)
            self._report.tile_started(tile, damage)
            self._send(_Task(job, "index"))

    def _look(self) -> None:
        """See who works and whether this run may go on, once a second: for each block it would cost as much."""
        now = time.monotonic()
        if now < self._looked + 1:
            return
        self._looked = now
        self._check()
        self._replace_lost()
        fleet = self._fleet()
        working = {address: threads for address, (threads, paused) in fleet.items() if not paused}
        self._room = 3 * max(1, sum(threads for threads, _ in fleet.values()))
        if working:
            self._alone_since = now
        for worker, reason in list(self._sick.items())[self._sick_told :]:
            self._sick_told += 1
            self._report.say(f"worker {worker} cannot do the work and is stopped: {reason}")
        self._report.notice(_trouble(sorted(fleet.keys() - working.keys()), alone=not working))
        if now - self._alone_since > WORKER_TIMEOUT:
            address = self._client.scheduler.address
            raise ClusterLostError(
                f"all workers at {address} have been paused for want of memory for {WORKER_TIMEOUT} s: give them more "
                "(memory_limit), or fewer --readers"
                if fleet
                else f"no worker is left at {address}, and none came within {WORKER_TIMEOUT} s: start workers again"
            )

    def _replace_lost(self) -> None:
        """Have a cluster start anew what it gave up: a nanny whose worker dies while it starts goes with it."""
        cluster = self._client.cluster
        if len(self._sick) >= MOST_SICK:
            return  # another one would be as sick
        if isinstance(cluster, SpecCluster) and len(cluster.workers) < len(cluster.worker_spec):
            # Not by `scale`, whose unit is the class's own: workers of which a job may have several, or memory.
            cluster.loop.add_callback(cluster._correct_state)

    def _fleet(self) -> dict[str, tuple[int, bool]]:
        """Address -> threads and whether Dask has paused it, of all workers."""
        try:
            self._report.listen({task.key for task in self._tasks.values()})
            found: dict[str, tuple[int, bool]] = self._client.run_on_scheduler(_workers)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterLostError(f"the Dask scheduler does not answer any more: {error}") from None
        self._report.tick()
        return found

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
                self._alone_since = time.monotonic()
                # A block has no result unless it is carried, and asking for it would cost as much as the block's task.
                self._go_on(task, None if task.stage == "embed" and not self._settings.carried else _result(future))
            elif future.status == "error":
                self._after_error(task, future.exception())
            else:
                raise ClusterLostError("the Dask scheduler is gone, and what it knew with it")
            self._report.tell()
            refill()

    def _send(self, task: _Task) -> None:
        """Submit one task; the blocks of a tile are sent together by `_after_index`."""
        job, settings = task.job, self._settings
        if settings.carried and task.stage == "publish":
            self._publish_here(task)
            return
        function: Callable[..., Any]
        args: tuple[Any, ...]
        if task.stage == "index":
            pause = float(2**job.begun_again - 1)
            function, args = stages.index, (settings, job.tile, job.receipt, job.files, self._known(job), pause)
        elif task.stage == "embed" and not task.returns:
            function, args = partial(stages.embed_block, settings=settings), (task.block,)
        elif task.stage == "embed":
            function, args = stages.embed_gently, (settings, task.block, task.set_aside, task.returns)
        elif task.stage == "examine":
            function, args = stages.examine, (settings, task.block)
        else:
            function = stages.publish
            args = (settings, job.tile, job.indexed, job.started, job.files, self._known(job))
        # Indexing and publishing go ahead of all blocks: a thread that is free does them first, both are short.
        priority = -job.order if task.block else 10
        self._watch(
            task,
            self._client.submit(function, *args, key=task.key, pure=False, priority=priority),
        )

    def _known(self, job: _Job) -> dict[str, str]:
        """URL -> reason, of chips that an earlier run quarantined."""
        receipt = self._receipts.get(job.tile)
        return {} if receipt is None else receipt.quarantined

    def _publish_here(self, task: _Task) -> None:
        job = task.job
        assert job.indexed is not None
        try:
            receipt = stages.publish(self._settings, job.tile, job.indexed, job.started, job.files, self._known(job))
        except (StorageError, TileError, OSError) as error:
            self._after_error(task, error)
        else:
            self._after_publish(task, receipt)

    def _watch(self, task: _Task, future: Future) -> None:
        self._tasks[future] = task
        future.add_done_callback(self._done.put)

    def _go_on(self, task: _Task, found: Any) -> None:
        try:
            getattr(self, f"_after_{task.stage}")(task, found)
        except StorageError as error:  # of the output, where parts are carried
            self._after_error(task, error)

    def _after_index(self, task: _Task, found: tuple[stages.Indexed, list[stages.Block]] | None) -> None:
        job, carried = task.job, self._settings.carried
        if found is None:
            assert job.receipt is not None
            if carried:
                stages.tidy(self._settings.output, job.receipt, job.files)
            self._state.indexed += 1
            self._finish(task, "skipped", job.receipt)
            return
        job.indexed, blocks = found
        if carried:
            blocks = stages.begin(self._settings, job.tile, job.indexed, blocks)
        chips = sum(block.chips for block in blocks)
        self._report.indexed(job.tile, job.indexed.quarantined, chips, len(blocks), task.key)
        if not blocks:
            self._send(_Task(job, "publish"))
            return
        job.waiting = {block.path for block in blocks}
        tasks = [_Task(job, "embed", block, tries=task.tries) for block in blocks]
        futures = self._client.map(
            stages.embed_block,
            blocks,
            key=[task.key for task in tasks],
            pure=False,
            # Earlier tiles first, so that they finish in order and early results can be used early.
            priority=-job.order,
            settings=self._settings,
        )
        for following, waiting in zip(tasks, futures, strict=True):
            self._watch(following, waiting)

    def _after_embed(self, task: _Task, found: bytes | None) -> None:
        assert task.block is not None
        if found is not None:
            self._settings.output.put(task.block.path, found)
        self._report.embedded(task.job.tile, task.block.chips, task.key, task.block.number)
        task.job.waiting.discard(task.block.path)
        if not task.job.waiting:
            self._send(_Task(task.job, "publish"))

    def _after_examine(self, task: _Task, found: dict[str, str]) -> None:
        self._send(replace(task, stage="embed", set_aside=found))

    def _after_publish(self, task: _Task, receipt: Receipt) -> None:
        self._finish(task, "done", receipt)

    def _finish(self, task: _Task, status: str, receipt: Receipt) -> None:
        job, result = task.job, stages.result_of(self._settings.output, receipt, status)
        if job.damage:
            result = replace(result, notes=(*result.notes, f"{job.damage}: made again"))
        self._report.finished(result, job.indexed.quarantined if job.indexed else {}, task.key)

    def _after_error(self, task: _Task, error: BaseException) -> None:
        if isinstance(error, (StorageUnusableError, InputError, LockLostError)):
            # Nothing else would fare better: what is finished stays, and the same command goes on.
            raise error
        died = isinstance(error, KilledWorker)
        if not died and not isinstance(error, MemoryError):
            # Counted here and not by Dask, which would also repeat what stops the run.
            if isinstance(error, TileError) or task.tries == RETRIES:
                self._fail(task, error)
                return
            gone = task.stage == "publish" and isinstance(error, FileNotFoundError)
            if gone and task.job.begun_again == RETRIES:
                # A store that lists them and does not give them would have it go on for ever.
                self._fail(task, TileError(f"{error}, though it was written or listed: look at the output's store"))
                return
            self._emit_retried(task, error)
            if isinstance(error, SickMachineError):
                self._sick |= restart_sick(self._client)
            if gone:
                self._begin_again(task)
            else:
                self._send(replace(task, tries=task.tries + 1))
            return
        if task.returns == MOST_RETURNS:
            what = "its workers died" if died else "its workers ran out of memory"
            self._fail(task, TileError(f"{what} again and again during `{task.stage}`: look at their logs"))
            return
        self._emit_retried(task, error)
        # One of a block's chips may be what its workers die of; if none is, memory may be short.
        stage = "examine" if died and task.stage == "embed" and not task.returns else task.stage
        if stage == "examine" and not died:
            stage = (
                "embed"  # there is no room for another process, so that less is taken at once is what is left to try
            )
        self._send(replace(task, stage=stage, returns=task.returns + 1))

    def _emit_retried(self, task: _Task, error: BaseException) -> None:
        last = {"worker": error.last_worker.address} if isinstance(error, KilledWorker) else {}
        what = {"stage": task.stage, "reason": redact(_reason(error))}
        self._report.emit("retried", task.job.tile, task.key, task.number, **(what | last))

    def _begin_again(self, task: _Task) -> None:
        """Make parts that are gone: the last task of a run that was stopped may have published and removed them."""
        assert task.job.indexed is not None
        task.job.begun_again += 1
        self._report.index_again(task.job.tile)
        self._send(_Task(task.job, "index", tries=task.tries + 1))

    def _fail(self, task: _Task, error: BaseException) -> None:
        job = task.job
        if task.stage == "index":
            self._state.indexed += 1
        self._cancel([future for future, other in self._tasks.items() if other.job is job])
        reason = _reason(error)
        known = job.indexed.quarantined if job.indexed else {}
        result = TileResult(job.tile, "failed", quarantined=known, reason=reason)
        self._report.finished(result, known, task.key, task.number)
        # Told anyway; a store that does not take this either fails the next tiles too.
        with contextlib.suppress(StorageError):
            stages.record(self._settings, job.tile, job.indexed, reason)

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


def _farewell(tasks: Collection[_Task]) -> str:
    """What a Ctrl-C waits for, and what it gives up."""
    publishing = sum(task.stage == "publish" for task in tasks)
    blocks = sum(task.block is not None for task in tasks)
    if publishing:
        tiles = f"{_count(publishing, 'tile')} {'is' if publishing == 1 else 'are'}"
        waits = f"waiting until {tiles} published, which a second Ctrl-C drops"
    else:
        waits = "no tile waits to be published; a cluster of this run is closed, and two more Ctrl-C do not wait for it"
    return f"interrupted: {_count(blocks, 'unfinished block')} given up, finished ones are kept; {waits}"


def _trouble(paused: list[str], *, alone: bool) -> str:
    """What holds a run up: workers that are paused, or that there is none."""
    if paused:
        more = f" and {len(paused) - 3} more" if len(paused) > 3 else ""
        return f"Dask has paused workers that are short of memory: {', '.join(paused[:3])}{more}"
    return f"no worker is left: waiting up to {WORKER_TIMEOUT} s for one" if alone else ""


def _workers(dask_scheduler: Scheduler) -> dict[str, tuple[int, bool]]:
    """On the scheduler: address -> threads and whether it is paused, of all workers."""
    return {
        worker.address: (worker.nthreads, worker.status == Status.paused) for worker in dask_scheduler.workers.values()
    }


def _result(future: Future) -> Any:
    try:
        return future.result(timeout=WORKER_TIMEOUT)
    except TimeoutError:
        # Its worker died after it was done, and nobody came to do it again.
        raise ClusterLostError(f"no worker gave the result of {future.key} within {WORKER_TIMEOUT} s") from None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DaskembedError) else f"{type(error).__name__}: {error}"
