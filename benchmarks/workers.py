"""Two worker processes against one with as many threads, and the longest that a worker idled while tiles waited."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from benchmarks.common import CORES, Row
from benchmarks.scheduling import write_tiles
from daskembed.runs.tiles import run as run_tiles
from daskembed.runs.window import DASK_CONFIG
from daskembed.testing import write_chips

TILES = ("33TUL", "27WXN", "10SEG", "55HBU")


def run(*, smallest: bool = False) -> list[Row]:
    """Four tiles of 4 x 4 chips at `small`, then 200 miniature tiles."""
    with tempfile.TemporaryDirectory() as folder:
        chips = Path(folder) / "chips"
        for tile in TILES:
            write_chips(chips, tile=tile, rows=1 if smallest else 4, cols=4)
        rows = []
        for turn, processes in () if smallest else product((0, 1), (1, 2)):
            job = {"source": str(chips), "output": f"{folder}/{turn}-{processes}", "checkpoint": "untrained:small"}
            rows.append(_measure(Path(folder), list(TILES), processes, job))
        source, *names = write_tiles(Path(folder) / "many", 2 if smallest else 200, chips_a_tile=6)
        job = {"source": source, "output": f"{folder}/many-out", "checkpoint": "untrained:tiny"}
        with dask.config.set({"daskembed.chips-a-block": 2}):
            rows.append(_measure(Path(folder), names, 2, job))
    return rows


def _measure(folder: Path, tiles: list[str], processes: int, job: dict[str, Any]) -> Row:
    """One run on a scheduler and workers of their own processes, all cores shared out among the workers."""
    scheduler_file = folder / f"{time.time_ns()}.json"
    env = os.environ | {"DASK_DASKEMBED__TORCH_THREADS": str(max(1, CORES // processes))}

    def start(module: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard"]
        command += ["--scheduler-file", str(scheduler_file), *flags]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

    started = [start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")]
    started += [start("dask_worker", "--nthreads", "2", "--local-directory", str(folder)) for _ in range(processes)]
    try:
        with dask.config.set(DASK_CONFIG), Client(scheduler_file=str(scheduler_file)) as client:
            client.wait_for_workers(processes, timeout=300)
            client.get_task_stream()  # from now on it is recorded
            result = run_tiles(tiles, cluster=client, **job)
            assert result.exit_status == 0, result.tiles[:3]
            gap, block = _longest_gap(client.get_task_stream())
            return {
                "processes": processes,
                "tiles": len(tiles),
                "chips/s": result.chips_per_second,
                "longest gap s": gap,
                "median block s": block,
            }
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def _longest_gap(stream: Any) -> tuple[float, float]:
    """The longest time in which a worker ran no task while blocks of other tiles waited, and the median block's."""
    spans: dict[str, list[tuple[float, float]]] = {}
    blocks = []
    for task in stream:
        for part in task["startstops"]:
            if part["action"] == "compute":
                spans.setdefault(task["worker"], []).append((part["start"], part["stop"]))
                if str(task["key"]).startswith("embed-"):
                    blocks.append((part["start"], part["stop"]))
    first, last = min(start for start, _ in blocks), max(start for start, _ in blocks)
    longest = 0.0
    for found in spans.values():
        busy_until = first
        for start, stop in sorted(found):
            # After the last block has begun, none is left to wait for.
            longest = max(longest, min(start, last) - busy_until)
            busy_until = max(busy_until, stop)
        longest = max(longest, last - busy_until)
    durations = sorted(stop - start for start, stop in blocks)
    return longest, durations[len(durations) // 2]
