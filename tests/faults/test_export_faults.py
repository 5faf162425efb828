"""Exports disturbed at any instant: files are complete or absent, the same call goes on, and ends as if undisturbed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import small_disk, wait_for, wait_until_dead
from distributed import Client, LocalCluster

from daskembed.errors import StorageUnusableError
from daskembed.exports import geoparquet, index
from daskembed.exports.settings import Sizes
from daskembed.runs.export_options import Asked
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.runs.results import Event, Progress
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "33TUM", "33TVM", "33TWL", "33TWM")
DIMS = 32
SIZES = Sizes(file=16 * 4 * DIMS, group=8 * 4 * DIMS, page=4 * DIMS)
"""Files of about 16 rows."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=4, shape=(DIMS,))
    return folder


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def export(output: Path, to: Path, client: Client, **asked: object) -> ExportResult:
    return run_export(str(output), str(to), Asked(cluster=client, **asked), SIZES)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> SHA-256 of the files of an export that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert export(output, folder, client).exit_status == 0
    found = files(folder)
    assert len(found) > 4
    return found


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


def litter(folder: Path) -> list[Path]:
    return [*folder.rglob(".*.tmp"), *folder.rglob("*.probe"), *folder.rglob("running*.json")]


def slow(seconds: float = 0.3) -> Callable[[], None]:
    """For a worker: take so long for each file, from now on. It need not import this module for it, nor can."""

    def begin() -> None:
        for module, name in ((geoparquet, "write"), (index, "check_bytes")):

            def slowly(*arguments: object, function: object = getattr(module, name)) -> object:
                time.sleep(seconds)
                return function(*arguments)  # type: ignore[operator]

            setattr(module, name, slowly)

    return begin


@pytest.mark.parametrize("event", ["indexed", "published"])
def test_a_worker_that_is_killed(output: Path, undisturbed: dict[str, str], tmp_path: Path, event: str) -> None:
    told: list[Event] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        client.run(slow())

        def hear(one: Event) -> None:
            told.append(one)
            if one.event == event and pids:
                # The other one is in the middle of something.
                pids.pop(one.worker, None)
                os.kill(pids.popitem()[1], signal.SIGKILL)
                pids.clear()

        result = export(output, tmp_path / "to", client, events=hear)
        # What the killed one was writing may lie beside the files: the next export sweeps it.
        assert export(output, tmp_path / "to", client).written == 0
    assert (result.exit_status, result.failed) == (0, {})
    assert files(tmp_path / "to") == undisturbed
    assert Counter(one.tile for one in told if one.event == "published") == dict.fromkeys(undisturbed, 1)
    assert not litter(tmp_path / "to")


@pytest.mark.parametrize("at", [("tiles", 2), ("files", 1), ("files", 3)])
def test_ctrl_c(output: Path, undisturbed: dict[str, str], client: Client, tmp_path: Path, at: tuple[str, int]) -> None:
    raised: list[bool] = []

    def interrupt(state: Progress) -> None:
        if not raised and (state.units[0], len(state.finished)) == at:
            raised.append(True)
            raise KeyboardInterrupt

    first = export(output, tmp_path, client, progress=interrupt)
    assert (first.exit_status, first.interrupted) == (130, True)
    assert repr(first).endswith("interrupted: the same command goes on from here")
    assert files(tmp_path).items() <= undisturbed.items()
    assert first.written == (at[1] if at[0] == "files" else 0)
    second = export(output, tmp_path, client)
    assert second.exit_status == 0
    # A thread that was writing a file may have finished it after it was given up.
    assert second.written <= len(undisturbed) - first.written
    assert files(tmp_path) == undisturbed
    wait_for(lambda: not litter(tmp_path))


def test_a_full_disk(output: Path, undisturbed: dict[str, str], client: Client, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        filled: list[Path] = []

        def fill(state: Progress) -> None:
            if state.units[0] == "files" and len(state.finished) == 1 and not filled:
                filled.append(disk / "filler")
                with contextlib.suppress(OSError), filled[0].open("wb", buffering=0) as filler:
                    while True:
                        filler.write(bytes(4096))

        with pytest.raises(StorageUnusableError, match="cannot be written: No space left on device; make room"):
            export(output, disk / "to", client, progress=fill)
        before = files(disk / "to")
        assert before.items() < undisturbed.items()
        filled[0].unlink()
        result = export(output, disk / "to", client)
        assert result.exit_status == 0
        assert result.written <= len(undisturbed) - 1
        assert files(disk / "to") == undisturbed
        assert not litter(disk / "to")


SCRIPT = """
import sys
from distributed import Client
from daskembed.exports.settings import Sizes
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from faults.test_export_faults import SIZES, slow

if __name__ == "__main__":
    slow(0.5)()
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        sys.exit(run_export(*sys.argv[1:], Asked(cluster=client), SIZES).exit_status)
"""


def test_everything_killed_at_once(output: Path, undisturbed: dict[str, str], client: Client, tmp_path: Path) -> None:
    """A reader that looks all the time finds whole files, and the export ends as if it had never been disturbed."""
    to, torn, ended = tmp_path / "to", list[str](), threading.Event()

    def look() -> None:
        while not ended.is_set():
            torn.extend(name for name, digest in files(to).items() if undisturbed.get(name) != digest)
            time.sleep(0.01)

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    above = Path(__file__).parent.parent
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(above / "faults"), str(above), os.environ.get("PYTHONPATH", "")])
    }
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for count in (1, 3):
            process = subprocess.Popen(
                [sys.executable, str(script), str(output), str(to)], env=env, start_new_session=True
            )
            wait_for(lambda count=count, process=process: len(files(to)) >= count or process.poll() is not None)
            assert process.poll() is None
            everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
            wait_until_dead(everyone)
        left = len(undisturbed) - len(files(to))
        result = export(output, to, client)
    finally:
        ended.set()
        reader.join()
    assert not torn
    assert (result.exit_status, files(to)) == (0, undisturbed)
    assert 0 < left <= result.written <= left + 2
    assert not litter(to)


def test_a_store_that_forgets_what_it_was_told_is_asked_again(
    output: Path, undisturbed: dict[str, str], client: Client, tmp_path: Path
) -> None:
    """Of an index that is lost between the two windows, as of a file, nothing is taken for granted."""
    gone: list[str] = []

    def lose(state: Progress) -> None:
        if state.units[0] == "files" and not gone:
            gone.extend(path.name for path in (tmp_path / "to/_daskembed/export/index").glob("*"))
            for name in gone:
                (tmp_path / "to/_daskembed/export/index" / name).unlink()

    first = export(output, tmp_path / "to", client, progress=lose)
    assert gone
    assert (first.exit_status, len(first.failed)) == (4, len(undisturbed))
    assert "does not exist" in next(iter(first.failed.values()))
    second = export(output, tmp_path / "to", client)
    assert (second.exit_status, files(tmp_path / "to")) == (0, undisturbed)
    assert Storage(str(tmp_path / "to")).entries("_daskembed/export/index") == []
