"""Memory of client, scheduler and workers over many blocks: flat once they are warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import HERE
from distributed import Client, LocalCluster

from daskembed.runs.results import Progress
from daskembed.runs.tiles import run
from daskembed.runs.window import DASK_CONFIG


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("blocks", [250, pytest.param(10_000, marks=pytest.mark.long)])
def test_memory_is_flat(blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE.parent.parent)
    from benchmarks import scheduling

    tiles = round(blocks / scheduling.BLOCKS_A_TILE)
    source, *names = scheduling.write_tiles(tmp_path / "chips", tiles)
    env = {"PYTHONPATH": str(HERE.parent.parent), "DASK_DASKEMBED__ENCODER": "benchmarks.fake_encoder"}
    seen: dict[str, list[int]] = {"client and scheduler": [], "worker": []}
    with (
        dask.config.set({"daskembed.encoder": "benchmarks.fake_encoder", "daskembed.chips-a-block": 1} | DASK_CONFIG),
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, env=env) as cluster,
        Client(cluster) as client,
    ):
        (worker,) = client.run(lambda: psutil.Process().pid).values()

        def look(state: Progress) -> None:
            if state.encoded % 10 == 0:
                seen["client and scheduler"].append(resident(psutil.Process().pid))
                seen["worker"].append(resident(worker))

        options: dict[str, Any] = {"checkpoint": "untrained:instant", "precision": "fp32", "progress": look}
        result = run(names, source=source, output=str(tmp_path / "out"), cluster=client, **options)
    assert (result.exit_status, result.encoded) == (0, tiles * scheduling.BLOCKS_A_TILE)
    for who, sizes in seen.items():
        fifth = len(sizes) // 5
        warm, end = max(sizes[fifth : 2 * fifth]), max(sizes[-fifth:])
        assert end <= 1.1 * warm, f"{who}: {warm / 1e6:.0f} MB after warming up, {end / 1e6:.0f} MB at the end"
        print(f"{who}: {warm / 1e6:.0f} MB after warming up, {end / 1e6:.0f} MB at the end")  # noqa: T201
