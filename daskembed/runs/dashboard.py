"""What the scheduler serves of the runs: a page beside Dask's dashboard, and metrics beside Dask's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import distributed
from distributed import SchedulerPlugin, WorkerPlugin, performance_report
from distributed.scheduler import TaskPrefix, TaskState, WorkerState
from tornado.web import RequestHandler

from daskembed import timings
from daskembed.errors import InputError
from daskembed.text import all_visible

if TYPE_CHECKING:
    from distributed import Client, Scheduler, Worker

_log = logging.getLogger(__name__)

STAGES = ("index", "embed", "write", "examine", "publish")
"""What the names of tasks begin with; the tile follows."""
RUNS, TASKS, LOST = "daskembed-runs", "daskembed-tasks", "daskembed-lost"
"""Topics of events on the scheduler: where runs say how far they are, and where they hear which worker did a task and
which workers are gone."""
MOST_RUNS, MOST_TILES, MOST_BAD = 5, 20, 20
"""Runs, the last ones, tiles in work, the first ones, and chips set aside, the last ones, that the page lists."""
PAGE_SECONDS = 1
"""How old what the page shows may be."""
LIVE = "daskembed"
"""What a worker's heartbeat calls `daskembed.timings.Recent.read`."""
# The page shows what it is sent as text; nothing else may be loaded or run in it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


LEANS_ON = {
    "Scheduler": [
        "tasks",
        "workers",
        "clients",
        "task_prefixes",
        "cumulative_worker_metrics",
        "log_event",
        "http_application",
    ],
    "Worker": ["metrics"],
    "WorkerState": ["address", "nthreads", "metrics", "processing", "executing"],
    "TaskState": ["state", "processing_on"],
    "TaskPrefix": ["state_counts"],
}
"""What of Dask's inside, which may change with any version, is looked at here, by the class that has it."""


class DaskChangedError(Exception):
    """A version of Dask that has not all that is looked at here."""


def changed(dask_scheduler: Scheduler) -> str:
    """On the scheduler: what it has not of `LEANS_ON`, in words; nothing, if all is there."""
    return _changed(dask_scheduler, WorkerState, TaskState, TaskPrefix)


def _changed(*things: object) -> str:
    gone = []
    for thing in things:
        name = (thing if isinstance(thing, type) else type(thing)).__name__
        gone += [f"{name}.{member}" for member in LEANS_ON[name] if not hasattr(thing, member)]
    return f"distributed {distributed.__version__} has no {', '.join(gone)}" if gone else ""


def serve(client: Client) -> str:
    """Have the workers tell how they fare, and the scheduler show it, if it can import this.

    Returns
    -------
    str
        The page's address, or nothing if there is none.
    """
    try:
        if found := client.run_on_scheduler(changed):
            raise DaskChangedError(found)
        with contextlib.suppress(OSError):  # of a worker that dies at this moment; the others have it
            client.register_plugin(_Live())
        client.register_plugin(_Page())
    except (AttributeError, ImportError, ValueError):
        # A cluster without this module, or a scheduler that takes no plugins: the run does not depend on it.
        return ""
    except DaskChangedError as error:
        _log.warning(f"warning: the run goes on without its page, which leans on more of Dask: {error}")
        return ""
    link = urlsplit(client.dashboard_link)
    return str(urlunsplit(link._replace(path=link.path.removesuffix("/status") + "/daskembed")))


def chips_in_work(dask_scheduler: Scheduler) -> dict[str, int]:
    """On the scheduler: chips done of each task that a worker has in work, as its last heartbeat said."""
    found: dict[str, int] = {}
    for worker in dask_scheduler.workers.values():
        for key, chips in worker.metrics.get(LIVE, {}).get("in_work", {}).items():
            found[key] = max(chips, found.get(key, 0))
    return found


def check_report(path: str) -> None:
    """Raise `InputError` if Dask's report cannot be written to `path`."""
    file = Path(path)
    there = file.exists()
    try:
        if "://" in path:
            raise OSError("it is no path on this machine")
        with file.open("a"):
            pass
    except OSError as error:
        raise InputError(
            f"the performance report {path} cannot be written: {error.strerror or error}; give another path"
        ) from None
    if not there:
        file.unlink()


@contextlib.contextmanager
def report(client: Client, path: str | None) -> Iterator[None]:
    """Write Dask's own report of what happens in here to `path`, if one is given, however it ends."""
    if path is None:
        yield
        return
    written = performance_report(path)
    # It asks for the current client, which ours is not: the caller may have another.
    with client.as_current():
        written.__enter__()
    try:
        yield
    finally:
        try:
            with client.as_current():
                written.__exit__(None, None, None)
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            _log.warning(f"warning: the performance report {path} was not written: {error}")


class _Live(WorkerPlugin):  # type: ignore[misc]
    """Adds a worker's chips and how busy its device is to its heartbeats."""

    name = "daskembed-live"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        if found := _changed(worker):
            raise DaskChangedError(found)
        recent = timings.Recent()
        worker.metrics[LIVE] = lambda worker: recent.read()


class _Page(SchedulerPlugin):  # type: ignore[misc]
    """Collects what the scheduler knows of runs, and serves it."""

    name = "daskembed-page"
    idempotent = True
    latest: ClassVar[_Page | None] = None
    """Whose metrics this process gives: Prometheus knows one registry a process."""

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler, self._runs = scheduler, dict[str, dict[str, Any]]()
        self._memory, self._waiting = dict[str, int](), set[asyncio.Event]()
        # Under any prefix that the dashboard may have.
        routes = [(r".*/daskembed", _PageHandler), (r".*/daskembed\.json", _StateHandler, {"page": self})]
        scheduler.http_application.add_handlers(".*", routes)
        self._register(self)

    async def close(self) -> None:
        if _Page.latest is self:
            self._register(None)

    @staticmethod
    def _register(page: _Page | None) -> None:
        with contextlib.suppress(ImportError):
            from prometheus_client import REGISTRY

            if _Page.latest is not None:
                REGISTRY.unregister(_Page.latest)
            _Page.latest = page
            if page is not None:
                REGISTRY.register(page)

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == RUNS:
            self._runs[msg["run"]] = self._runs.get(msg["run"], {}) | msg
            for old in list(self._runs)[:-MOST_RUNS]:
                del self._runs[old]
            if msg["state"] != "running":
                # The scheduler may be gone before the page asks again.
                for waiting in self._waiting:
                    waiting.set()
        elif topic == "worker-restart-memory":
            self._memory[msg["worker"]] = msg["rss"]
        elif topic == "all" and msg.get("action") == "remove-worker" and not msg["expected"]:
            tasks = sum(_parts(key) is not None for key in msg["processing-tasks"])
            found = {"worker": msg["worker"], "tasks": tasks, "memory": self._memory.pop(msg["worker"], None)}
            self._scheduler.log_event(LOST, found)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if start == "processing" and "worker" in kwargs and _parts(key):
            self._scheduler.log_event(TASKS, {"key": key, "worker": kwargs["worker"]})

    async def change(self) -> None:
        """Wait until a run ends, but no longer than the page is to be old."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), PAGE_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)

    def state(self) -> dict[str, Any]:
        """What the page shows, as JSON."""
        stages: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        tiles: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for key, task in self._scheduler.tasks.items():
            if (parts := _parts(key)) and (place := _place(task)):
                stages[parts[0]][place] += 1
                tiles[parts[1]][f"{parts[0]} {place}"] += 1
        for stage, prefix in self._scheduler.task_prefixes.items():
            if stage in stages:
                stages[stage]["done"] = prefix.state_counts["memory"]
        workers = [
            {
                "worker": worker.address,
                "threads": worker.nthreads,
                "working": len(working := worker.processing & worker.executing.keys()),
                "waiting": len(worker.processing) - len(working),
                **_live(worker),
            }
            for worker in self._scheduler.workers.values()
        ]
        return {
            "runs": [self._run(told) for told in reversed(self._runs.values())],
            "stages": [{"stage": stage, **_counts(found)} for stage, found in stages.items()],
            "tiles": [{"tile": tile, "tasks": found} for tile, found in list(tiles.items())[:MOST_TILES]],
            "tiles_in_work": len(tiles),
            "workers": workers,
            "chips_per_second": sum(worker["chips_per_second"] for worker in workers),
            "device": sum(worker["device"] for worker in workers) / max(1, len(workers)),
        }

    def _run(self, told: dict[str, Any]) -> dict[str, Any]:
        lost = told["state"] == "running" and told["client"] not in self._scheduler.clients
        return {**told, "state": "its client is gone"} if lost else told

    def collect(self) -> Iterator[Any]:
        """What Prometheus reads."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        # Dask's sums outlive the workers: counters must not fall when one leaves.
        done: defaultdict[str, float] = defaultdict(float)
        for name, value in self._scheduler.cumulative_worker_metrics.items():
            if isinstance(name, tuple) and name[0] == "execute" and name[1] in STAGES:
                done[name[2]] += value
        yield CounterMetricFamily(
            "daskembed_chips", "Chips embedded, put into cubes or quarantined", value=done["chips"]
        )
        seconds = CounterMetricFamily(
            "daskembed_stage_seconds", "Seconds of the workers' threads by stage", labels=["stage"]
        )
        for stage in timings.STAGES:
            seconds.add_metric([stage], done[stage])
        yield seconds
        state = self.state()
        tasks = GaugeMetricFamily("daskembed_tasks", "Tasks by stage and where they are", labels=["stage", "state"])
        for found in state["stages"]:
            for place in ("working", "waiting"):
                tasks.add_metric([found["stage"], place], found[place])
        yield tasks
        yield from self._collect_runs()
        busy = GaugeMetricFamily(
            "daskembed_device_busy_ratio",
            f"Share of the last {timings.WINDOW} seconds in which a worker's device was busy",
            labels=["worker"],
        )
        for worker in state["workers"]:
            busy.add_metric([worker["worker"]], worker["device"])
        yield busy

    def _collect_runs(self) -> Iterator[Any]:
        """What the last runs told, each by its output and version."""
        from prometheus_client.core import GaugeMetricFamily

        tiles = GaugeMetricFamily(
            "daskembed_run_tiles", "Tiles of a run by state", labels=["output", "version", "state"]
        )
        chips = GaugeMetricFamily(
            "daskembed_run_chips",
            "Chips of a run's tiles by fate; filled are encoded too; what is found bad while its tile is at work "
            "counts as encoded until that is published",
            labels=["output", "version", "fate"],
        )
        # An output may have had several runs: the last one counts.
        last = {(told["output"], told["version"]): told for told in self._runs.values() if "in_files" in told}
        for (output, version), told in last.items():
            known = {state: told[state] for state in ("done", "skipped", "failed", "unfinished")}
            known["waiting"] = told["tiles"] - sum(known.values())
            for state, count in known.items():
                tiles.add_metric([output, version, state], count)
            fates = {fate: told[fate] for fate in ("quarantined", "rejected", "filled")}
            fates["encoded"] = told["in_files"] + told["at_work"]
            for fate, count in fates.items():
                chips.add_metric([output, version, fate], count)
        yield tiles
        yield chips


def _parts(key: Any) -> list[str] | None:
    """Stage and tile, if this is the name of a task of ours."""
    parts = key.split("-", 2) if isinstance(key, str) else []
    return parts if len(parts) == 3 and parts[0] in STAGES else None


def _place(task: Any) -> str:
    """Nothing, if it is over."""
    if task.state == "processing" and task in task.processing_on.executing:
        return "working"
    return "waiting" if task.state in ("processing", "queued", "no-worker", "waiting") else ""


def _live(worker: Any) -> dict[str, float]:
    """Of a worker that is new, nothing is known yet."""
    found: dict[str, float] = worker.metrics.get(LIVE, {})
    return {name: found.get(name, 0) for name in ("chips", "chips_per_second", "device", "wait")}


def _counts(found: Counter[str]) -> dict[str, int]:
    return {place: found[place] for place in ("working", "waiting", "done")}


class _Handler(RequestHandler):
    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")


class _PageHandler(_Handler):
    def get(self) -> None:
        self.write(files("daskembed.runs").joinpath("dashboard.html").read_text(encoding="utf-8"))


class _StateHandler(_Handler):
    def initialize(self, page: _Page) -> None:
        self._page = page

    async def get(self) -> None:
        if self.get_query_argument("wait", None) is not None:
            await self._page.change()
        self.write(all_visible(self._page.state()))
