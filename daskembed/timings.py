"""Where a process's time goes: seconds by stage, summed over its threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

STAGES = ("source", "decode", "wait", "device", "write")
"""Fetching bytes, decoding them, the device's thread waiting for chips, encoding, writing files."""

_lock = threading.Lock()
_seconds = dict.fromkeys(STAGES, 0.0)


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the block's wall time to `stage` (one of `STAGES`)."""
    start = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - start
        with _lock:
            _seconds[stage] += spent


def seconds() -> dict[str, float]:
    """Seconds by stage since the process started."""
    with _lock:
        return dict(_seconds)
