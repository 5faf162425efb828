"""What the benchmarks share: the machine, the rate of matrix products, medians, tables, chips."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client, LocalCluster

from daskembed.clusters.connection import connect
from daskembed.encoders import clay_v0
from daskembed.encoders.description import Place
from daskembed.encoders.loading import get_encoder_module
from daskembed.encoders.protocol import Encoder, Model
from daskembed.encoders.untrained import untrained_state
from daskembed.geo.chips import CHIP
from daskembed.testing import landscape

GFLOP_A_CHIP = clay_v0.describe("small").flop / 1e9
"""Of one 512 x 512 chip through the `small` encoder."""
CORES = len(os.sched_getaffinity(0))

Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """Processor, cores, device and versions."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    found = {"cpu": model, "cores": CORES, "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {name: version(name) for name in ("torch", "dask", "rasterio")}


def median_seconds(function: Callable[[], object], repeats: int = 5, warmup: int = 1) -> float:
    """Median wall time of some calls after a warm-up."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_rate(dtype: torch.dtype, size: int = 4096, device: str = "cpu") -> float:
    """GFLOP/s of a square matrix product: the limit that the encoder is measured against."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        if device != "cpu":
            torch.cuda.synchronize()

    return 2 * size**3 / median_seconds(multiply) / 1e9


def describe(name: str, size: str, *, precision: str = "bf16", batch: int = 32, readers: int = 16) -> Encoder:
    """An encoder with seeded weights."""
    needs = get_encoder_module(name).describe(size)
    return Encoder(name, f"untrained:{size}:0", None, size, precision, batch, readers, needs)


def places(encoder: Encoder, count: int) -> Place:
    """Somewhere, for some chips."""
    centres = np.zeros((count, (CHIP // encoder.description.window) ** 2))
    return Place(centres, centres, np.full(count, "2020-01-01", "datetime64[s]"), np.full(count, 10.0))


def inputs(encoder: Encoder, count: int, device: str = "cpu") -> list[torch.Tensor]:
    """What a model is called with, of some chips."""
    pixels = torch.from_numpy(landscape(CHIP, CHIP, seed=0)[: len(encoder.description.bands)])
    told = get_encoder_module(encoder.name).metadata(places(encoder, count))
    return [pixels.expand(count, -1, -1, -1).to(device), *(torch.from_numpy(values).to(device) for values in told)]


def build(encoder: Encoder, device: str = "cpu") -> Model:
    """Its model on a device."""
    module = get_encoder_module(encoder.name)
    dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
    state = untrained_state(module, encoder.size, 0)
    return module.build(state, encoder.description, device=torch.device(device), dtype=dtype)


@contextmanager
def local_client(*, smallest: bool) -> Iterator[Client]:
    """Of a cluster as `daskembed run` starts it; where all is to be small, of one within this process."""
    if not smallest:
        with connect("local") as client:
            yield client
        return
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def print_table(rows: list[Row]) -> None:
    """Print rows of the same keys as a table."""
    if not rows:
        return
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
