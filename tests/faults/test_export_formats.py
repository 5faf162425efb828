"""Exports in other formats disturbed: a worker's disk that is full, and stores of Zarr whose writer is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import small_disk
from distributed import Client

from daskembed.errors import StorageUnusableError
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

ROWS = 36


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, ["33TUL"], side=6, shape=(16, 16, 64))
    return folder


@pytest.mark.parametrize("size", ["64k", "1500k"])
@pytest.mark.parametrize("format", ["cog", "lance"])
def test_a_full_disk_of_a_worker_ends_it_and_it_goes_on(
    output: Path, tmp_path: Path, format: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        asked = Asked(cluster=client, format=format)
        with small_disk(tmp_path / "disk", size) as disk, monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(disk))
            with pytest.raises(
                StorageUnusableError,
                match=r"disk/daskembed-.* cannot be written: (No space left on device|it is full); make room",
            ):
                run_export(str(output), str(tmp_path / "to"), asked)
            assert not [*disk.iterdir()]
        assert not [path for path in (tmp_path / "to").rglob("*") if path.suffix in (".tif", ".lance")]
        result = run_export(str(output), str(tmp_path / "to"), asked)
    assert (result.exit_status, result.written, result.rows) == (0, 1, ROWS)


KILLED = """
import os, signal, sys
from distributed import Client
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.storage.stores import Storage
put, left = Storage.put, int(sys.argv[1])

def deadly(self, path, data):
    global left
    if ".zarr/" in path and not path.startswith("_"):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    put(self, path, data)

if __name__ == "__main__":
    Storage.put = deadly
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        run_export(*sys.argv[2:], Asked(cluster=client, format="zarr"))
"""


def objects(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*.zarr/**/*") if path.is_file()}


def test_stores_whose_writer_is_killed_are_absent_and_it_goes_on(tmp_path: Path) -> None:
    out, to, script = tmp_path / "out", tmp_path / "to", tmp_path / "script.py"
    write_published(out, ["33TUL", "33TUM"], side=2, shape=(2, 2, 3))
    script.write_text(KILLED)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        whole = run_export(str(out), str(tmp_path / "whole"), Asked(cluster=client, format="zarr"))
        expected = objects(tmp_path / "whole")
        a_store = len(expected) // len(whole.files)
        # In the middle of the first store, before its root, and in the middle of the second.
        for puts, finished in ((1, 0), (a_store - 1, 0), (a_store + 1, 1)):
            done = subprocess.run([sys.executable, str(script), str(puts), str(out), str(to)], check=False, timeout=120)
            assert done.returncode == -signal.SIGKILL
            assert len([*to.glob("*.zarr/zarr.json")]) == finished
            assert objects(to).keys() < expected.keys()
        result = run_export(str(out), str(to), Asked(cluster=client, format="zarr"))
    assert (result.exit_status, result.written, len(result.files)) == (0, 1, 2)
    assert objects(to) == expected


def test_a_full_target_ends_it_and_it_goes_on(output: Path, tmp_path: Path) -> None:
    with (
        Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client,
        small_disk(tmp_path / "disk", "6m") as disk,
    ):
        asked = Asked(cluster=client, format="zarr")
        (filler := disk / "filler").write_bytes(bytes(4 * 2**20))
        with pytest.raises(StorageUnusableError, match="No space left on device; make room"):
            run_export(str(output), str(disk / "to"), asked)
        assert objects(disk / "to").keys()
        assert not [*disk.glob("to/*.zarr/zarr.json")]
        filler.unlink()
        result = run_export(str(output), str(disk / "to"), asked)
        assert (result.exit_status, result.written, result.rows) == (0, 1, ROWS)
        assert result.bytes == sum(map(len, objects(disk / "to").values()))
