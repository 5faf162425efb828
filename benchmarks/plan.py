"""What `daskembed.plan` expects of runs on this machine, and what they take; then costs on paper from its table."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Row
from benchmarks.job import write_many
from daskembed import Plan, plan
from daskembed import run as run_tiles
from daskembed.encoders.clay_v0 import LEVELS
from daskembed.encoders.loading import load_encoder
from daskembed.runs.plan import file_bytes
from daskembed.runs.settings import chips_a_block
from daskembed.runs.throughput import of_device

ROUNDS = 2
CHIP_BYTES = 7_000_000
"""A real chip's file."""
A_TILE = 441
PRICES = {"a10g": 1.0, "h100": 7.0}
"""Dollars an hour of a machine, an assumption: AWS on demand in 2025 (g5.xlarge, p5.4xlarge), rounded."""


def run(*, smallest: bool = False) -> list[Row]:
    """Plan and run, in turn, the demo's chips and a whole tile with `tiny`."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiles = {"33TUL": 1} if smallest else {"33TUL": 16, "33TUM": A_TILE}
        chips = write_many(Path(folder) / "chips", tiles)
        for number in range(1 if smallest else ROUNDS):
            for tile in tiles:
                rows.append(compare(tile, source=str(chips), output=f"{folder}/{number}"))
                print(rows[-1], flush=True)
    print(*costs(), sep="\n")
    return rows


def compare(tile: str, *, source: str, output: str) -> Row:
    """One line of the table."""
    expected = plan(tile, source=source, output=output, checkpoint="untrained:tiny")
    start = time.perf_counter()
    result = run_tiles(tile, source=source, output=output, checkpoint="untrained:tiny", cluster="local")
    wall = time.perf_counter() - start
    assert result.exit_status == 0, result
    assert expected.speed is not None
    return {
        "chips": result.encoded,
        "planned s": expected.seconds,
        "taken s": result.seconds,
        "taken/planned": result.seconds / expected.seconds,
        "planned start s": expected.speed.start_seconds,
        "start and end s": wall - result.seconds,
        "limit": expected.speed.limit,
    }


def costs() -> list[str]:
    """A table of `small` at level `mean` for the README."""
    encoder = load_encoder("untrained:small", precision="bf16")
    sizes = {level: file_bytes(A_TILE, encoder.shape(level)) for level in LEVELS}
    one = Plan(
        output="",
        level="mean",
        done=(),
        to_do=(),
        missing={},
        chips=0,
        chips_to_do=0,
        bytes_to_read=0,
        bytes_to_write=sizes,
        chips_a_block=chips_a_block(encoder, "mean"),
        speed=None,
        workers=1,
        price_per_hour=None,
    )
    lines = [
        "| tiles | machines | chips/s of one, its limit | device hours | hours | dollars |",
        "|---|---|---|---|---|---|",
    ]
    for tiles in (1, 100, 10_000):
        for device, workers in (("a10g", 1), ("h100", 1), ("a10g", 20)):
            speed = of_device(device, encoder, CHIP_BYTES)
            made = replace(one, chips_to_do=tiles * A_TILE, speed=speed, workers=workers, price_per_hour=PRICES[device])
            lines.append(
                f"| {tiles:,} | {workers} x {device.upper()} | {speed.chips_per_second:.0f}, {speed.limit} | "
                f"{made.device_hours:,.3g} | {made.hours:,.3g} | {made.price:,.2f} |"
            )
    return lines
