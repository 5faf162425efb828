"""Parts and publishing of a tile of 1,323 chips with an encoder that computes nothing: time, size and memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import dask

from benchmarks.common import Row, local_client
from benchmarks.job import peak_memory, write_many
from daskembed.runs.tiles import run as run_tiles

CHIPS = 1323


def run(*, smallest: bool = False) -> list[Row]:
    """Every level of `small`'s shape."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"daskembed.encoder": "benchmarks.fake_encoder"}),
        local_client(smallest=smallest) as client,
    ):
        chips = write_many(Path(folder) / "chips", {"33TUL": 2 if smallest else CHIPS})
        for level in ("mean", "patch", "group"):
            with peak_memory(client) as peaks:
                result = run_tiles(
                    "33TUL",
                    source=str(chips),
                    output=f"{folder}/{level}",
                    checkpoint="untrained:instant",
                    precision="fp32",
                    level=level,
                    cluster=client,
                )
            assert result.exit_status == 0, result
            file = Path(str(result.tiles[0].file))
            rows.append(
                {
                    "level": level,
                    "chips": result.encoded,
                    "wall s": result.seconds,
                    "decode s": result.stage_seconds["decode"],
                    "write s": result.stage_seconds["write"],
                    "write ms a chip": result.stage_seconds["write"] / result.encoded * 1e3,
                    "file MB": file.stat().st_size / 1e6,
                    "worker peak MB": max(peaks.values()) / 1e6,
                }
            )
            file.unlink()
    return rows
