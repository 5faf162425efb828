"""The workers of a run: what they are, who works, who is paused, sick or lost, and who comes in their place."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeVar

from distributed import SpecCluster, Status

from daskembed.clusters.connection import WORKER_TIMEOUT, await_worker, check_versions
from daskembed.clusters.quiet import TellOnce
from daskembed.clusters.worker_checks import SICK, TRIES, prove_workers, restart_sick
from daskembed.errors import ClusterLostError, InputError

if TYPE_CHECKING:
    from distributed import Client, Scheduler, Worker

    from daskembed.hardware import Hardware
    from daskembed.runs.tasks import Observer

MOST_SICK = 3
"""How many workers that cannot do the work a cluster is asked to replace."""

Answer = TypeVar("Answer")


def meet(client: Client, ask: Callable[..., Answer]) -> list[Answer]:
    """Wait for workers, have them prove that they can do the work, and give what each answers.

    Raises
    ------
    InputError
        If none comes or answers, or one does not fit or cannot do the work.
    """
    for _ in range(TRIES):
        await_worker(client, WORKER_TIMEOUT)
        check_versions(client)
        # A worker that dies at this moment does not answer, and may have been the only one.
        if prove_workers(client) and (found := list(client.run(ask, on_error="ignore").values())):
            return found
        time.sleep(1)
    raise InputError(f"no worker of {client.scheduler.address} answers: look at their logs")


def threads(dask_worker: Worker) -> int:
    """On a worker: how many tasks it does at a time."""
    return int(dask_worker.state.nthreads)


def describe(workers: Sequence[Hardware]) -> str:
    """What the workers are, in a line; says so where they do not all compute with the same kind of device."""
    kinds = Counter(map(str, workers))
    line = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    devices = {worker.device for worker in workers}
    return line + (" (a mixed fleet: each block goes to whoever is free)" if len(devices) > 1 else "")


class Fleet:
    """The workers while work goes through them.

    Parameters
    ----------
    client
        Of their cluster.
    observer
        Is told who is paused, sick or lost.
    """

    def __init__(self, client: Client, observer: Observer) -> None:
        self._client, self._observer = client, observer
        self.threads = 0
        """Of all workers when they were last looked at."""
        self._worked = time.monotonic()
        self._sick, self._sick_told = dict[str, str](), 0

    def begin(self) -> None:
        """Have the workers keep to themselves what the run tells, and hear of those that cannot do the work."""
        with contextlib.suppress(OSError):  # of a worker that dies at this moment; the others have it
            self._client.register_plugin(TellOnce())
        self._client.subscribe_topic(SICK, self._hear_of_sick)

    def _hear_of_sick(self, heard: tuple[float, dict[str, str]]) -> None:
        """In the client's thread: a worker that joined cannot do the work."""
        self._sick[heard[1]["worker"]] = heard[1]["reason"]

    def worked(self) -> None:
        """One of them has just finished something."""
        self._worked = time.monotonic()

    def look(self, keys: Collection[str]) -> None:
        """Once a second: see who works, and replace who is lost; tasks of these names are on their way.

        Raises
        ------
        ClusterLostError
            If the scheduler does not answer, or nobody has worked for as long as a worker is waited for.
        """
        self._replace_lost()
        try:
            self._observer.listen(keys)
            found: dict[str, tuple[int, bool]] = self._client.run_on_scheduler(_workers)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterLostError(f"the Dask scheduler does not answer any more: {error}") from None
        self._observer.tick()
        working = {address: threads for address, (threads, paused) in found.items() if not paused}
        self.threads = sum(threads for threads, _ in found.values())
        if working:
            self.worked()
        for worker, reason in list(self._sick.items())[self._sick_told :]:
            self._sick_told += 1
            self._observer.say(f"worker {worker} cannot do the work and is stopped: {reason}")
        self._observer.notice(_trouble(sorted(found.keys() - working.keys()), alone=not working))
        if time.monotonic() - self._worked > WORKER_TIMEOUT:
            address = self._client.scheduler.address
            raise ClusterLostError(
                f"all workers at {address} have been paused for want of memory for {WORKER_TIMEOUT} s: give them more "
                "(memory_limit), or fewer `readers`"
                if found
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

    def restart_sick(self) -> None:
        """Have those start anew that cannot do the work any more."""
        self._sick |= restart_sick(self._client)


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
