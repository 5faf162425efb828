"""Reading while the device computes: a source and a device that sleep, three blocks on two threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common import Row, describe, places
from daskembed import timings
from daskembed.compute.device import Device
from daskembed.sources.chip import ReadChip

PIXELS = np.zeros((13, 8, 8), np.float32)


def run(*, smallest: bool = False) -> list[Row]:
    """Reading twice as fast as the device (it should never wait), and twice as slow (reading at full width)."""
    size = {"chips": 4, "blocks": 2} if smallest else {}
    return [measure(read_ms=200.0, **size), measure(read_ms=800.0, **size)]


def measure(*, read_ms: float, readers: int = 16, chips: int = 64, blocks: int = 4) -> Row:
    """One run: a chip takes 25 ms of the device and `read_ms` of one reader."""
    encoder = describe("benchmarks.fake_encoder", "ms25", precision="fp32", readers=readers)
    device = Device(encoder)

    def read() -> ReadChip:
        time.sleep(read_ms / 1e3)
        return ReadChip(PIXELS, [])

    before, start = timings.seconds()["device"], time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        tasks = [
            threads.submit(device.encode, [read] * chips, places(encoder, chips), level="mean", on_nan="quarantine")
            for _ in range(blocks)
        ]
        for task in tasks:
            task.result()
    wall, busy = time.perf_counter() - start, timings.seconds()["device"] - before
    total = chips * blocks
    return {
        "a chip: device ms": 25.0,
        "read ms / readers": f"{read_ms:.0f} / {readers}",
        "device use after the first chips": busy / (wall - read_ms / 1e3),
        "chips/s": total / wall,
        "reading could give": readers / (read_ms / 1e3),
        "share of it": total * read_ms / 1e3 / readers / wall,
    }
