"""The whole job, chips in files to a published file, on a local cluster, against matrix products in the same run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from distributed import Client

from benchmarks.common import CORES, GFLOP_A_CHIP, Row, local_client, product_rate, resident_bytes
from daskembed import RunResult
from daskembed.hardware import native_precision
from daskembed.runs.summary import describe_stages
from daskembed.runs.tiles import run as run_tiles
from daskembed.testing import write_chips

CHIPS = 64


def run(*, smallest: bool = False) -> list[Row]:
    """`small`, 64 chips of one tile, after a tile that warms the workers up."""
    dtype = torch.bfloat16 if native_precision() == "bf16" else torch.float32
    torch.set_num_threads(CORES)
    count, checkpoint, product = (2, "untrained:tiny", 256) if smallest else (CHIPS, "untrained:small", 4096)
    rows = []
    with tempfile.TemporaryDirectory() as folder, local_client(smallest=smallest) as client:
        chips = write_many(Path(folder) / "chips", {"33TUM": 2, "33TUL": count})
        run_tiles("33TUM", source=str(chips), output=f"{folder}/warm", checkpoint=checkpoint, cluster=client)
        for level in ("mean", "group"):
            rate = product_rate(dtype, product)
            with peak_memory(client) as peaks:
                result = run_tiles(
                    "33TUL",
                    source=str(chips),
                    output=f"{folder}/{level}",
                    checkpoint=checkpoint,
                    level=level,
                    cluster=client,
                )
            rate = (rate + product_rate(dtype, product)) / 2
            print(f"{level}: {describe_stages(result)}", flush=True)
            rows.append(row(level, result, rate, max(peaks.values())))
    return rows


def row(level: str, result: RunResult, rate: float, peak: int) -> Row:
    """One line of the table."""
    assert result.exit_status == 0, result
    spent = result.stage_seconds
    return {
        "level": level,
        "chips": result.encoded,
        "chips/s": result.chips_per_second,
        "product GFLOP/s": rate,
        "efficiency": result.chips_per_second * GFLOP_A_CHIP / rate,
        "device s": spent["device"],
        "wait s": spent["wait"],
        "decode s": spent["decode"],
        "write s": spent["write"],
        "write share": spent["write"] / result.seconds,
        "worker peak MB": peak / 1e6,
    }


def write_many(folder: Path, tiles: dict[str, int]) -> Path:
    """Chips of some tiles: sixteen are drawn, the rest are links to them under other numbers."""
    for tile, count in tiles.items():
        drawn = write_chips(folder, tile=tile, rows=min(4, count), cols=min(4, count))
        for number in range(count - len(drawn)):
            name = drawn[0].name.replace("_0001.tif", f"_{400 + number:04}.tif")
            os.link(drawn[number % len(drawn)], drawn[0].with_name(name))
        for spare in drawn[count:]:
            spare.unlink()
    return folder


@contextmanager
def peak_memory(client: Client) -> Iterator[dict[str, int]]:
    """Largest resident memory of each worker within the block."""
    client.run(_reset_peak)
    peaks: dict[str, int] = {}
    yield peaks
    peaks |= client.run(_peak)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(peak.split()[1]) * 1024 if peak else resident_bytes()
