"""What this machine has: its device, its cores, its memory.

Torch is loaded by what asks it: a client learns what its workers have without a second and more for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import psutil

from daskembed import config

if TYPE_CHECKING:
    import torch

# M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (no more than 32 MiB is taken) and M_ARENA_MAX of glibc's malloc.h.
_MALLOPT = {-1: 2**30, -3: 2**25, -8: 1}


def torch_device() -> torch.device:
    """The process's device: its first GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def native_precision() -> str:
    """``bf16`` where the device multiplies bfloat16 natively, else ``fp32``."""
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability()[0] >= 8
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


class Hardware(NamedTuple):
    """What a worker computes with."""

    device: str
    """Name of the GPU, or ``CPU``."""
    memory: int
    """Bytes of the GPU's memory; of the worker's machine on a CPU."""
    precision: str
    """What `native_precision` says."""
    cores: int
    """Cores that the process may use."""

    def __str__(self) -> str:
        size = f"{self.memory / 2**30:.0f} GiB"
        cores = f"{self.cores} cores, " if self.device == "CPU" else ""
        return f"{self.device} ({cores}{size}, {self.precision})"


def usable_cores() -> int:
    """Cores that this process may use; all of the machine's on systems that do not tell, such as macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def hardware() -> Hardware:
    """What this process computes with."""
    import torch

    cores = usable_cores()
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Hardware(found.name, found.total_memory, native_precision(), cores)
    return Hardware("CPU", psutil.virtual_memory().total, native_precision(), cores)


def set_torch_threads() -> None:
    """Give torch its threads: Dask's nanny sets OMP_NUM_THREADS=1, which would leave all cores but one idle."""
    import torch

    # By its own name first: Dask's nanny replaces what a worker has read of its environment by the client's settings.
    asked = os.environ.get("DASK_DASKEMBED__TORCH_THREADS") or config.get("torch-threads")
    torch.set_num_threads(int(asked or usable_cores()))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next batch.

    By default, and more so under Dask's nanny (MALLOC_TRIM_THRESHOLD_=65536), every large buffer is given back to the
    system when it is freed: 735,000 page faults a chip were counted, about as much time again as the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOPT.items():
            mallopt(option, value)


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
