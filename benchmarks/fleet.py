"""A pretended fleet of 64 workers at 100 chips/s each on one scheduler: how much of their sum a run gets."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from benchmarks.common import Row
from benchmarks.fleet_worker import WORKERS as WORKERS_A_PROCESS
from benchmarks.scheduling import cpu_seconds, write_tiles
from daskembed import load_encoder
from daskembed.runs.settings import Settings
from daskembed.runs.stages import index
from daskembed.runs.tiles import run as run_tiles
from daskembed.runs.window import DASK_CONFIG
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage

WORKERS, RATE = 64, 100
CHIPS_A_TILE = 441
CASES = [(64, RATE, 500), (32, RATE, 500), (16, RATE, 500), (8, RATE, 200), (64, 0, 500), (16, 0, 200)]
"""Chips a block, chips/s of a worker (0: at once) and tiles."""


def run(*, smallest: bool = False) -> list[Row]:
    """Workers sleep instead of encoding and write nothing: scheduler, client and messages are left."""
    with tempfile.TemporaryDirectory() as folder:
        cases = [(64, RATE, 4)] if smallest else CASES
        chips = write_tiles(Path(folder) / "chips", max(tiles for *_, tiles in cases), chips_a_tile=1)
        whole = write_tiles(Path(folder) / "whole", 1, chips_a_tile=CHIPS_A_TILE)
        return [_measure(Path(folder), chips, whole, *case) for case in cases]


def _measure(folder: Path, chips: list[str], whole: list[str], chips_a_block: int, rate: int, tiles: int) -> Row:
    blocks = folder / "blocks.pickle"
    blocks.write_bytes(pickle.dumps(_blocks(folder, whole, chips_a_block)))
    scheduler_file = folder / f"{chips_a_block}-{rate}.json"
    env = os.environ | {"OMP_NUM_THREADS": "1", "FLEET_RATE": str(rate), "FLEET_BLOCKS": str(blocks)}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    flags = ["--no-dashboard", "--port", "0", "--host", "127.0.0.1", "--scheduler-file", str(scheduler_file)]
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *flags], **quiet)
    while not scheduler_file.exists():
        assert scheduler.poll() is None, "the scheduler does not start"
        time.sleep(0.1)
    hosts = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.fleet_worker", str(scheduler_file)], **quiet)
        for _ in range(WORKERS // WORKERS_A_PROCESS)
    ]
    try:
        with (
            dask.config.set(DASK_CONFIG | {"daskembed.chips-a-block": chips_a_block}),
            Client(scheduler_file=str(scheduler_file)) as client,
        ):
            client.wait_for_workers(WORKERS, timeout=300)
            before = cpu_seconds(scheduler.pid), time.process_time()
            result = run_tiles(
                chips[1 : tiles + 1],
                source=chips[0],
                output=str(folder / f"out{chips_a_block}-{rate}"),
                checkpoint="untrained:tiny",
                precision="fp32",
                cluster=client,
            )
            after = cpu_seconds(scheduler.pid), time.process_time()
            assert result.exit_status == 0, result.tiles[:3]
            count = tiles * -(-CHIPS_A_TILE // chips_a_block)
            return {
                "chips a block": chips_a_block,
                "chips/s a worker": rate or "at once",
                "tiles": tiles,
                "chips/s": result.chips_per_second,
                "blocks/s": count / result.seconds,
                "of the sum": result.chips_per_second / (WORKERS * rate) if rate else "",
                "scheduler's core": (after[0] - before[0]) / result.seconds,
                "client's core": (after[1] - before[1]) / result.seconds,
            }
    finally:
        for process in (*hosts, scheduler):
            process.kill()
            process.wait()


def _blocks(folder: Path, whole: list[str], chips_a_block: int) -> object:
    chosen = Settings(
        source=Storage(whole[0]),
        output=Storage(str(folder / "index")),
        encoder=load_encoder("untrained:tiny", precision="fp32"),
        level="mean",
        on_nan="quarantine",
        reading=Reading(),
        version="001",
        chips_a_block=chips_a_block,
    )
    return index(chosen, whole[1], None, [])
