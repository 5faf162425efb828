"""Scheduler and client, each in its own process: CPU time a block and memory, from 20 to 1,000 tiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import rasterio
from distributed import Client
from rasterio.transform import from_origin

from benchmarks.common import Row, resident_bytes
from daskembed.errors import InputError
from daskembed.geo.mgrs import SIDE, square_of
from daskembed.runs.results import Progress
from daskembed.runs.tiles import run as run_tiles
from daskembed.testing import write_chips

BLOCKS_A_TILE = 7


def run(*, smallest: bool = False) -> list[Row]:
    """One-chip blocks of nearly empty chips and an encoder that computes nothing: only overhead is left."""
    with dask.config.set({"daskembed.chips-a-block": 1}), tempfile.TemporaryDirectory() as folder:
        counts = (2,) if smallest else (20, 200, 1000)
        chips = write_tiles(Path(folder) / "chips", counts[-1])
        return [_measure(chips, Path(folder) / f"out{count}", count) for count in counts]


def write_tiles(folder: Path, count: int, *, chips_a_tile: int = BLOCKS_A_TILE) -> list[str]:
    """Tiles of links to a chip of ones that decodes quickly: the folder and their names."""
    (chip,) = write_chips(folder, tile="33TUL", rows=1, cols=1)
    with rasterio.open(chip, "r+") as dataset:
        profile, names = dataset.profile, dataset.descriptions
    with rasterio.open(chip, "w", **profile) as dataset:
        dataset.write(np.ones((13, 512, 512), np.float32))
        dataset.update_tags(date="2019-04-16")
        dataset.descriptions = names
    letters = "ABCDEFGHJKLMNPQRSTUV"
    names = [f"{zone:02}T{column}{row}" for zone in range(3, 60, 3) for column in "STUVWXYZ" for row in letters]
    names = [tile for tile in names if _exists(tile)][:count]
    for tile in names:
        square = square_of(tile)
        (folder / tile).mkdir(exist_ok=True)
        first, *others = (folder / tile / f"claytile_{tile}_20190416_v02_{n + 1:04}.tif" for n in range(chips_a_tile))
        shutil.copyfile(chip, first)
        with rasterio.open(first, "r+") as dataset:
            dataset.crs = f"EPSG:{square.epsg}"
            dataset.transform = from_origin(square.west, square.south + SIDE, 10, 10)
        for link in others:
            os.link(first, link)
    chip.unlink()
    return [str(folder), *names]


def _exists(tile: str) -> bool:
    try:
        square_of(tile)
    except InputError:
        return False
    return True


def _measure(chips: list[str], output: Path, count: int) -> Row:
    scheduler_file = output.with_suffix(".json")
    env = os.environ | {"DASK_DASKEMBED__ENCODER": "benchmarks.fake_encoder", "OMP_NUM_THREADS": "1"}

    def start(module: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard"]
        command += ["--scheduler-file", str(scheduler_file), *flags]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

    scheduler = start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
    workers = [
        start("dask_worker", "--nthreads", "2", "--no-nanny", "--local-directory", str(output.parent)) for _ in range(2)
    ]
    try:
        with (
            dask.config.set({"daskembed.encoder": "benchmarks.fake_encoder"}),
            Client(scheduler_file=str(scheduler_file)) as client,
        ):
            client.wait_for_workers(2, timeout=300)
            peak = {"scheduler": 0, "client": 0}

            def watch(state: Progress) -> None:
                if state.encoded % 100:
                    return  # looking costs the client time too
                peak["scheduler"] = max(peak["scheduler"], resident_bytes(scheduler.pid))
                peak["client"] = max(peak["client"], resident_bytes())

            before = cpu_seconds(scheduler.pid), time.process_time()
            result = run_tiles(
                chips[1 : count + 1],
                source=chips[0],
                output=str(output),
                checkpoint="untrained:instant",
                precision="fp32",
                cluster=client,
                progress=watch,
            )
            assert result.exit_status == 0, result.tiles[:3]
            blocks = count * BLOCKS_A_TILE
            return {
                "tiles": count,
                "blocks": blocks,
                "blocks/s": blocks / result.seconds,
                "scheduler CPU ms a block": (cpu_seconds(scheduler.pid) - before[0]) / blocks * 1e3,
                "client CPU ms a block": (time.process_time() - before[1]) / blocks * 1e3,
                "scheduler peak MB": peak["scheduler"] / 1e6,
                "client peak MB": peak["client"] / 1e6,
            }
    finally:
        for process in (*workers, scheduler):
            process.terminate()
            process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
