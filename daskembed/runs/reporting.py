"""What a run tells while it goes: its state to a callback and to the page, what happens to another callback."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from daskembed.output.state import now
from daskembed.runs import dashboard
from daskembed.runs.notebook import in_notebook
from daskembed.runs.results import Event, Kind, Pace, Progress, RunResult, TileProgress, TileResult
from daskembed.storage.urls import redact

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.storage.stores import Storage

PROGRESS_EVERY = 30
"""Seconds between two events that say how far a run is."""


class Report:
    """What a run tells, and the state of it that is told.

    Parameters
    ----------
    client
        Of the cluster; None if none is needed.
    kind
        What is made of the tiles.
    tiles
        Which are wanted.
    output, version
        Where they are published, and as what.
    progress, events
        See `daskembed.run`.
    workers
        What they are, in a line.
    units
        See `daskembed.runs.results.Progress`.
    """

    def __init__(
        self,
        client: Client | None,
        kind: Kind,
        tiles: Sequence[str],
        output: Storage,
        version: str,
        progress: Callable[[Progress], None] | None,
        events: Callable[[Event], None] | None,
        workers: str,
        units: tuple[str, str] = ("tiles", "chips"),
    ) -> None:
        link = client.dashboard_link if client else ""
        self.state = Progress(len(tiles), link, workers, output=output.url, units=units)
        self.goes_on = False
        """Whether another window follows when the present one is through."""
        self._client: Any = client
        self._kind, self._tiles, self._indexed = kind, tiles, set[str]()
        self._page = None if client is None else _RunOnPage(client, output, version)
        self._version, self._events = version, events
        self._progress = progress or (None if events else in_notebook())
        self._by, self._told, self._begun = dict[str, str](), 0.0, False
        self._lost: deque[dict[str, Any]] = deque()
        self._noticed, self._notices = "", dict[str, float]()

    def begin(self) -> None:
        """Say where to look; hear from now on which worker did what, and which are lost."""
        if self._begun:
            return
        self._begun = True
        if self._client is not None:
            self._listen()
        self.tell()
        self.emit(
            "run_started",
            counts={"tiles": self.state.tiles},
            dashboard=redact(self.state.dashboard) or None,
            page=redact(self.state.page) or None,
        )

    def _listen(self) -> None:
        self.state.page = dashboard.serve(self._client)
        self._client.subscribe_topic(dashboard.LOST, lambda heard: self._lost.append(heard[1]))
        if self._events is not None:
            # Which worker did a block is asked of nobody: the scheduler says it before it says that the block is done.
            self._client.subscribe_topic(dashboard.TASKS, self._hear)

    def listen(self, keys: Collection[str]) -> None:
        """Ask the scheduler how far the tasks of these names are, and tell it how far the run is."""
        if self._page is not None:
            self.state.in_work = {key: chips for key, chips in self._page.chips_in_work().items() if key in keys}
            self._page.show(self.state)

    def tick(self) -> None:
        """Once a second: tell everybody else."""
        self._tell_losses()
        self.tell()
        if self.state.seconds >= self._told + PROGRESS_EVERY:
            self._told = self.state.seconds
            self.emit("progress", counts=self.state.counts)

    def _tell_losses(self) -> None:
        while self._lost:
            self.say(_loss(self._lost.popleft()))

    def tell(self) -> None:
        """Hand the state over."""
        if self._progress is not None:
            self._progress(self.state)

    def say(self, line: str) -> None:
        """Tell something once, in a line."""
        self.state.say(line)
        self.tell()
        self.emit("notice", reason=redact(line))

    def notice(self, trouble: str) -> None:
        """Say what holds the run up, or that nothing does any more.

        In lines the kind of it alone, what is before a colon, is told, when it changes and each at most once in
        `PROGRESS_EVERY` seconds: workers may be paused and go on by turns. Called every second.
        """
        self.state.notice, kind = trouble, trouble.partition(": ")[0]
        now = self.state.seconds
        if kind != self._noticed and now >= self._notices.get(kind, -PROGRESS_EVERY) + PROGRESS_EVERY:
            self._noticed, self._notices[kind] = kind, now
            self.say(trouble or "workers are back")

    def end(self, how: str, reason: str | None = None) -> None:
        """Tell for the last time: ``over``, ``interrupted`` or ``stopped``, for a reason."""
        if self.goes_on and how == "over":
            return
        with contextlib.suppress(KeyboardInterrupt):
            self._tell_losses()
        self.state.how, self.state.in_work = how, {}
        self.emit("run_ended", reason=reason or how, counts=self.state.counts)
        if self._page is not None:
            self._stop_listening(self._page)
        with contextlib.suppress(KeyboardInterrupt):  # which stops nothing any more
            self.tell()

    def turn_to(self, units: tuple[str, str], names: Sequence[str], pieces: int, *, goes_on: bool = False) -> None:
        """Tell of something else from now on: of so many pieces in what has these names."""
        state, self._tiles, self._indexed, self.goes_on = self.state, names, {*names}, goes_on
        state.units, state.tiles, state.indexed, state.chips, state.encoded = units, len(names), len(names), pieces, 0
        state.finished, state.pace = [], Pace()
        self.tell()

    @property
    def failed(self) -> dict[str, str]:
        """What failed of what is told of at present, and why."""
        return {one.tile: one.reason or "" for one in self.state.finished if one.status == "failed"}

    def _stop_listening(self, page: _RunOnPage) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError, ValueError):  # of a scheduler that is gone
            page.show(self.state)
            for topic in (dashboard.LOST, *([dashboard.TASKS] if self._events is not None else [])):
                self._client.unsubscribe_topic(topic)

    def tile_started(self, tile: str, damage: str = "") -> None:
        """A tile is being indexed; `damage` says why, if it was finished."""
        self.state.at_work[tile] = TileProgress()
        self.emit("tile_started", tile, reason=damage or None)

    def indexed(self, tile: str, quarantined: Mapping[str, str], chips: int, blocks: int, key: str) -> None:
        """The chips of a tile are known; so many are to be done, in so many blocks."""
        self._indexed.add(tile)
        self.state.indexed += 1
        self.state.chips += chips
        self.state.quarantined += len(quarantined)
        self.state.at_work[tile] = TileProgress(chips, quarantined=len(quarantined))
        self.emit("indexed", tile, key, counts={"blocks": blocks, "chips": chips})
        self._set_aside(tile, "quarantined", quarantined)

    def block_done(self, event: Literal["embedded", "written"], tile: str, chips: int, key: str, block: int) -> None:
        """A block is finished."""
        self.state.encoded += chips
        self.state.at_work[tile].done += chips
        self.state.in_work.pop(key, None)
        self.emit(event, tile, key, block, counts={"chips": chips})

    def index_again(self, tile: str) -> None:
        """What was known of a tile holds no more."""
        self._indexed.discard(tile)
        self.state.indexed -= 1
        self.state.quarantined -= self.state.at_work[tile].quarantined

    def retried(
        self, tile: str, stage: str, reason: str, key: str, block: int | None = None, worker: str | None = None
    ) -> None:
        """A task is tried again; `worker` is the last of those that died of it."""
        last = {} if worker is None else {"worker": worker}
        self.emit("retried", tile, key, block, **({"stage": stage, "reason": reason} | last))

    def finished(
        self, result: TileResult, known: Mapping[str, str], key: str | None = None, block: int | None = None
    ) -> None:
        """A tile is finished; of its quarantined chips some were known."""
        if result.tile not in self._indexed:
            self.state.indexed += 1
        self.state.finished.append(result)
        self.state.at_work.pop(result.tile, None)
        self.state.quarantined += len(result.quarantined) - len(known)
        self.state.rejected += len(result.rejected)
        if result.status == "done":
            self._set_aside(result.tile, "quarantined", {u: r for u, r in result.quarantined.items() if u not in known})
            self._set_aside(result.tile, "rejected", result.rejected)
        if result.status == "failed":
            self.emit("failed", result.tile, key, block, reason=redact(result.reason or ""))
            return
        counts = {"chips": result.chips, "quarantined": len(result.quarantined), "rejected": len(result.rejected)}
        told: dict[str, Any] = {"file": result.file and redact(result.file)}
        told["files"] = [redact(file) for file in result.files] or None
        event = "published" if result.status == "done" else result.status
        self.emit(event, result.tile, key, counts=counts, **told)

    def conclude(self, results: Iterable[TileResult]) -> RunResult:
        """Tell of tiles for which no cluster is needed; each result is asked for when its tile's turn has come."""
        self.begin()
        for result in results:
            self.tile_started(result.tile)
            self.finished(result, {})
        self.end("over")
        return self.result(0.0, interrupted=False, stage_seconds={})

    def result(self, seconds: float, *, interrupted: bool, stage_seconds: dict[str, float]) -> RunResult:
        """What became of the run."""
        finished = {tile.tile for tile in self.state.finished}
        return RunResult(
            output=self.state.output,
            tiles=tuple(self.state.finished),
            unfinished=len(self._tiles) - len(finished),
            encoded=self.state.encoded,
            seconds=seconds,
            interrupted=interrupted,
            stage_seconds=stage_seconds,
            remaining=tuple(tile for tile in self._tiles if tile not in finished),
            version=self._version,
            kind=self._kind,
        )

    def emit(
        self, event: str, tile: str | None = None, key: str | None = None, block: int | None = None, **what: Any
    ) -> None:
        """Hand an event over; `key` is the name of the task of which it comes."""
        if self._events is None:
            return
        by = {} if key is None else {"worker": self._by.pop(key, None)}
        self._events(Event(now(), event, tile=tile, block=block, **(by | what)))

    def _set_aside(self, tile: str, fate: str, found: Mapping[str, str]) -> None:
        for url, reason in found.items():
            chip, why = redact(url), redact(reason)
            if self._page is not None:
                self._page.add_bad(tile, chip, fate, why)
            if fate == "quarantined":
                self.emit("quarantined", tile, chip=chip, reason=why)

    def _hear(self, heard: tuple[float, dict[str, str]]) -> None:
        """In the client's thread: a task of some run changed hands."""
        if (key := heard[1]["key"]) in self._client.futures:
            self._by[key] = heard[1]["worker"]


class _RunOnPage:
    """What the scheduler is asked and told for the runs' page."""

    def __init__(self, client: Client, output: Storage, version: str) -> None:
        self._client: Any = client
        self._about = {
            "run": f"{client.id} {now()}",
            "client": client.id,
            "output": redact(output.url),
            "version": version,
        }
        self._bad: dict[str, dict[str, str]] = {}
        self._asks, self._new_bad = True, True

    def chips_in_work(self) -> dict[str, int]:
        """Chips that are done of each task that a worker has in work."""
        if not self._asks:
            return {}
        try:
            found: dict[str, int] = self._client.run_on_scheduler(dashboard.chips_in_work)
        except (AttributeError, ImportError, ValueError):
            # A scheduler that executes nothing of a client's: finished blocks are all that is known.
            self._asks, found = False, {}
        return found

    def add_bad(self, tile: str, chip: str, fate: str, why: str) -> None:
        """List a chip that is set aside."""
        self._bad.pop(chip, None)
        self._new_bad = True
        self._bad[chip] = {"tile": tile, "chip": chip, "fate": fate, "reason": why}
        if len(self._bad) > dashboard.MOST_BAD:
            del self._bad[next(iter(self._bad))]

    def show(self, state: Progress) -> None:
        """Say how far the run is."""
        told = self._about | {
            "state": state.how,
            "notice": state.notice,
            "seconds": state.seconds,
            "left": state.left,
            "expected": state.expected,
            "unfinished": len(state.at_work),
            "in_files": sum(tile.chips for tile in state.finished),
            "at_work": sum(tile.done for tile in state.at_work.values()) + sum(state.in_work.values()),
            "filled": sum(tile.filled for tile in state.finished),
            "in_work": [
                {"tile": tile, "chips": found.chips, "done": state.done_of(tile), "quarantined": found.quarantined}
                for tile, found in list(state.at_work.items())[: dashboard.MOST_TILES]
            ],
            **state.counts,
        }
        if self._new_bad:
            # The scheduler keeps what it is told last, and the last thousand times that it is told something.
            told["bad"], self._new_bad = list(self._bad.values()), False
        self._client.log_event(dashboard.RUNS, told)


def _loss(found: Mapping[str, Any]) -> str:
    """A line for a worker that is gone."""
    tasks, memory = found["tasks"], found["memory"]
    why = f"took {memory / 1e9:.1f} GB of memory, more than its limit allows, and was stopped" if memory else "is gone"
    again = {0: "", 1: ": the task that it had runs again"}.get(tasks, f": the {tasks} tasks that it had run again")
    return f"worker {found['worker']} {why}{again}"
