"""Sixteen workers of a pretended fleet in one process: real Dask workers whose blocks sleep instead of encoding."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from distributed import Worker, get_worker

from daskembed.output.state import Receipt
from daskembed.runs import blocks, stages
from daskembed.runs.settings import Settings

WORKERS = 16
"""Of one process."""
RATE = float(os.environ.get("FLEET_RATE", "0"))
"""Chips a second of one worker's device; 0 does not sleep."""
_devices: dict[str, threading.Lock] = {}


@functools.cache
def _whole() -> tuple[stages.Indexed, list[blocks.Block]]:
    """What the real index says of a whole tile."""
    found: tuple[stages.Indexed, list[blocks.Block]] = pickle.loads(Path(os.environ["FLEET_BLOCKS"]).read_bytes())
    return found


def index(settings: Settings, tile: str, *earlier: object) -> tuple[stages.Indexed, list[blocks.Block]]:
    """What the real one said of a whole tile, under another tile's paths."""
    indexed, whole = _whole()
    return indexed, [replace(block, path=f"{tile}/{block.number}") for block in whole]


def embed_block(block: blocks.Block, *, settings: Settings) -> None:
    """Hold the worker's device as long as the block's chips take."""
    with _devices.setdefault(get_worker().address, threading.Lock()):
        time.sleep(block.chips / RATE if RATE else 0)


def publish(settings: Settings, tile: str, indexed: stages.Indexed, started: str, *earlier: object) -> Receipt:
    """A receipt, and nothing else."""
    return Receipt(
        tile=tile,
        version=settings.version,
        files=[],
        chips=sum(block.chips for block in _whole()[1]),
        quarantined={},
        rejected={},
        filled={},
        notes=[],
        settings=settings.identity,
        listing=indexed.listing,
        started=started,
        finished=started,
    )


async def serve(scheduler_file: str) -> None:
    """Join the scheduler and work until it goes."""
    workers = [
        Worker(scheduler_file=scheduler_file, nthreads=2, dashboard=False, host="127.0.0.1", death_timeout=60)
        for _ in range(WORKERS)
    ]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    for room, function in ((stages, index), (blocks, embed_block), (stages, publish)):
        setattr(room, function.__name__, function)
    asyncio.run(serve(sys.argv[1]))
