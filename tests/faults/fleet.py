"""A cluster that is paid for: it writes down when it starts and when it is closed, and fails as it is told to.

Its name is ``faults.fleet.Fleet``, with this folder's parent on the PYTHONPATH.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from distributed import LocalCluster, WorkerPlugin
from distributed.core import Status


class Plugin(WorkerPlugin):  # type: ignore[misc]
    """Leaves a mark."""

    def setup(self, worker: Any) -> None:
        worker.daskembed_was_here = True


class Fleet(LocalCluster):  # type: ignore[misc]
    """Threads of this process that count as machines of a cloud.

    `book` is the file of starts and closes; `fail` is where it raises: ``constructor``, ``connect`` or ``close``. While
    a file stands at `wait`, it takes its time to start; while one stands at `linger`, to close.
    """

    def __init__(
        self, *, book: str = "/dev/null", fail: str = "", wait: str = "", linger: str = "", **arguments: Any
    ) -> None:
        self.book, self.fail, self.linger = Path(book), fail, linger
        quiet = {"processes": False, "threads_per_worker": 2, "dashboard_address": None, "protocol": "tcp://"}
        super().__init__(**quiet | arguments)
        self._note("started")
        while wait and Path(wait).exists():
            time.sleep(0.05)
        if fail == "constructor":
            raise RuntimeError("half of it is there")

    @property
    def scheduler_address(self) -> str:
        """Nobody is there when it is told to fail."""
        return "tcp://127.0.0.1:1" if self.fail == "connect" else str(super().scheduler_address)

    def close(self, timeout: float | None = None) -> Any:
        """Close it, once."""
        if self.status == Status.closed:
            return None
        if self.linger:
            self._note("closing")
        while self.linger and Path(self.linger).exists():
            time.sleep(0.05)
        closed = super().close(timeout)
        self._note("closed")
        if self.fail == "close":
            raise RuntimeError("the bill could not be written")
        return closed

    def _note(self, what: str) -> None:
        with self.book.open("a") as book:
            book.write(f"{what}\n")
