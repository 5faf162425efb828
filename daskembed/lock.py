"""One run at a time on one version of an output: a lock that its holder keeps fresh."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psutil

from daskembed.errors import DaskembedError, InputError, StorageError
from daskembed.receipts import STATE
from daskembed.storage import Storage

LEASE = 120
"""Seconds without a sign of life after which a run counts as dead."""
_held: set[str] = set()
"""Tokens of the locks that this process holds."""


@contextlib.contextmanager
def hold(output: Storage, version: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of a version of an output; gives a function that raises if it was lost.

    Raises
    ------
    InputError
        If another run holds it.
    """
    path = f"{STATE}/running_v{version}.json"
    process = psutil.Process()
    mine = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "process": process.pid,
        "process_started": process.create_time(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _take(output, path, mine)
    _held.add(str(mine["token"]))
    ended, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not ended.wait(LEASE / 6):
            with contextlib.suppress(StorageError):  # a store that does not answer: the lease is long enough to wait
                if (_read(output, path) or mine)["token"] != mine["token"]:
                    lost.set()
                    return
                _write(output, path, mine)

    def check() -> None:
        if lost.is_set():
            raise DaskembedError(f"another run took over {output.url}, as this one gave no sign of life for {LEASE} s")

    beating = threading.Thread(target=beat, name="daskembed-lock", daemon=True)
    beating.start()
    try:
        yield check
    finally:
        ended.set()
        beating.join()
        _held.discard(str(mine["token"]))
        if not lost.is_set():
            # What stopped the run may keep the lock from going, too; nobody takes it for a living run's.
            with contextlib.suppress(StorageError):
                output.delete([path])


def _take(output: Storage, path: str, mine: dict[str, Any]) -> None:
    text = json.dumps(mine | {"seen": time.time()}).encode()
    if output.create(path, text):
        return
    other = _read(output, path)
    if other is not None and _is_alive(other):
        raise InputError(
            f"another run is at work on {output.url}: on {other['host']} since {other['started']} (process "
            f"{other['process']}); wait for it, or give another --version or --output. If it is dead, the output is "
            f"free {LEASE} s after its last sign of life"
        )
    _write(output, path, mine)
    # Two runs may have found the dead one at the same time: the last to write has it.
    time.sleep(1)
    if (_read(output, path) or mine)["token"] != mine["token"]:
        raise InputError(f"another run began on {output.url} at this moment: wait for it")


def _is_alive(other: dict[str, Any]) -> bool:
    if other["host"] == socket.gethostname():
        if other["process"] == os.getpid():
            return other["token"] in _held
        try:
            return bool(psutil.Process(other["process"]).create_time() == other["process_started"])
        except psutil.NoSuchProcess:
            return False
    return time.time() - float(other["seen"]) < LEASE


def _read(output: Storage, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(output.get(path))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _write(output: Storage, path: str, mine: dict[str, Any]) -> None:
    output.put(path, json.dumps(mine | {"seen": time.time()}).encode())
