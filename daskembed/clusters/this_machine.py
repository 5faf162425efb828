"""A cluster of this machine's CPU, sized by its cores and memory."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskembed.clusters.forks import additions

if TYPE_CHECKING:
    from distributed.deploy import Cluster

LOOPBACK = "127.0.0.1"
"""Where clusters of this machine listen unless asked otherwise: what Dask is sent, it executes."""
CORES_A_WORKER = 8
"""Cores of one local CPU worker: beyond, its torch threads would wait for each other."""
MEMORY_A_WORKER = 2 * 2**30
"""Bytes that one local CPU worker takes with weights of the released model's size."""
DEVICES = Path("/dev")
"""Where the driver of this machine's GPUs shows them."""

_log = logging.getLogger(__name__)


def local(*, n_workers: int | None = None, at_most: int | None = None, **arguments: Any) -> Cluster:
    """A `distributed.LocalCluster` on this machine's CPU.

    One process for every `CORES_A_WORKER` cores, but no more than have `MEMORY_A_WORKER` each. They share all cores as
    torch threads, and all memory; two Dask threads each, so that one block is read while another is encoded.

    Parameters
    ----------
    n_workers
        Processes, instead.
    at_most
        Processes that there may be later, which are to have as much as the first.
    arguments
        Of `distributed.LocalCluster`.
    """
    from dask.system import cpu_count
    from distributed import LocalCluster
    from distributed.system import memory_limit

    # Both know the limits of a container.
    cores, memory = cpu_count(), memory_limit()
    if n_workers is None:
        n_workers = max(1, min(cores // CORES_A_WORKER, memory // MEMORY_A_WORKER))
    sharing = max(1, at_most or n_workers)
    if memory // sharing < MEMORY_A_WORKER:
        _log.warning(
            f"warning: a worker has {memory / sharing / 2**30:.1f} GiB of this machine's memory and takes about "
            f"{MEMORY_A_WORKER / 2**30:.0f} with the released weights: it may be killed"
        )
    if count := gpus():
        _log.warning(f"this machine has {count} GPU{'s' * (count > 1)}: `cluster='local-cuda'` has a worker for each")
    env = {"DASK_DASKEMBED__TORCH_THREADS": str(max(1, cores // sharing))} | arguments.pop("env", {})
    env = (additions() or {}) | env
    chosen = {
        "n_workers": n_workers,
        "threads_per_worker": 2,
        "memory_limit": memory // sharing,
        "dashboard_address": f"{LOOPBACK}:8787",
        # Ctrl-C in a terminal reaches every process: the workers leave it to the command.
        "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        "env": env,
    }
    return LocalCluster(**{**chosen, **arguments})


def gpus() -> int:
    """GPUs of this machine, unless they are hidden; a build of torch for the CPU would not see them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    # Under WSL, where Windows has the driver, there is one device for all of them.
    return 0 if hidden else len([*DEVICES.glob("nvidia[0-9]*"), *DEVICES.glob("dxg")])
