"""How much memory this process may take: what is held for chips is bounded by a share of it."""

from __future__ import annotations

import sys

import psutil

SHARE = 0.2
"""Part of a process's memory that pieces of scenes may take, and as much again chips that wait for the device."""


def allowance() -> int:
    """Bytes of `SHARE` of what this process may take: the limit of its Dask worker, or the machine's memory."""
    limits = [psutil.virtual_memory().total]
    # Threads of pools are none of a worker's tasks, and cannot ask Dask whose they are.
    if (module := sys.modules.get("distributed.worker")) is not None:
        workers = list(module.Worker._instances)
        limits += [limit for worker in workers if (limit := worker.memory_manager.memory_limit)]
    return int(SHARE * min(limits))
