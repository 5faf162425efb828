"""A calibration disturbed: what is counted stays, the same call goes on, and gives the same to the last bit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small_disk
from distributed import Client, LocalCluster

import daskembed
from daskembed.errors import StorageUnusableError
from daskembed.exports import statistics
from daskembed.quantization import Calibration
from daskembed.runs.calibration import COUNTS
from daskembed.storage.stores import is_stray
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "33TUM", "33TVM", "33TWL", "33TWM")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, TILES, side=4, shape=(32,))
    return folder


@pytest.fixture(scope="module")
def undisturbed(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """What comes of it where nothing happens."""
    shutil.copytree(published, folder := tmp_path_factory.mktemp("undisturbed") / "output")
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        made = daskembed.calibrate(str(folder), cluster=client).calibration
    assert made is not None
    return made


def slow(seconds: float = 0.3) -> Callable[[], None]:
    """For a worker: take so long for each file, from now on. It need not import this module for it, nor can."""

    def begin() -> None:
        quick = statistics.check_bytes

        def slowly(*arguments: object) -> None:
            time.sleep(seconds)
            quick(*arguments)  # type: ignore[arg-type]

        statistics.check_bytes = slowly

    return begin


def test_a_worker_that_is_killed(published: Path, undisturbed: Calibration, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "output")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        client.run(slow())

        def hear(one: daskembed.Event) -> None:
            if one.event == "counted" and pids:
                # The other one is in the middle of something.
                pids.pop(one.worker, None)
                os.kill(pids.popitem()[1], signal.SIGKILL)
                pids.clear()

        result = daskembed.calibrate(str(tmp_path / "output"), cluster=client, events=hear)
    assert not pids
    assert (result.exit_status, result.counted, result.calibration) == (0, len(TILES), undisturbed)
    # What the killed one was writing may lie beside them: the next call sweeps it.
    counts = [path for path in (tmp_path / "output" / COUNTS).iterdir() if not is_stray(path.name)]
    assert len(counts) == len(TILES)


def test_a_full_disk(published: Path, undisturbed: Calibration) -> None:
    with (
        small_disk(published.parent / "disk", "2m") as disk,
        Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client,
    ):
        shutil.copytree(published, disk / "output")

        def fill(state: daskembed.Progress) -> None:
            if len(state.finished) == 1 and not (disk / "filler").exists():
                with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                    while True:
                        filler.write(bytes(4096))

        with pytest.raises(StorageUnusableError, match="cannot be written: No space left on device; make room"):
            daskembed.calibrate(str(disk / "output"), cluster=client, progress=fill)
        kept = len([*(disk / "output" / COUNTS).glob("*.npz")])
        assert 1 <= kept < len(TILES)
        (disk / "filler").unlink()
        result = daskembed.calibrate(str(disk / "output"), cluster=client)
        assert (result.exit_status, result.calibration) == (0, undisturbed)
        assert result.counted <= len(TILES) - kept  # a thread that was at work may have found the room again
        assert len([*(disk / "output" / COUNTS).iterdir()]) == len(TILES)
