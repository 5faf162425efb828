"""Client, workers and scheduler killed at any instant: files are complete or absent, and nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import TILES, Command, wait_for, wait_until_dead

from daskembed.errors import DaskembedError, InputError
from daskembed.output import lock
from daskembed.storage.stores import Storage


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.long)])
def test_killed_at_random_points(command: Command, undisturbed: dict[str, str], tmp_path: Path, kills: int) -> None:
    chance, killed, runs = random.Random(kills), 0, 0
    torn: list[str] = []
    ended = threading.Event()

    def look() -> None:
        # A reader that looks all the time: what is at a published name is whole.
        while not ended.is_set():
            for path in tmp_path.glob("out*/*.gpq"):
                digest = Command(path, path.parent, path).files.get(path.name)
                if digest not in (None, undisturbed[path.name]):
                    torn.append(path.name)
            time.sleep(0.01)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        while killed < kills:
            process = command.start()
            try:
                # Starting takes about seven seconds, the work five.
                text, _ = process.communicate(timeout=chance.uniform(3, 14))
            except subprocess.TimeoutExpired:
                everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
                os.killpg(process.pid, signal.SIGKILL)
                wait_until_dead(everyone)
                process.communicate()
                killed += 1
                expected = command.left
            else:
                assert process.returncode == 0, text
                expected = 0
            assert command.files.items() <= undisturbed.items()
            if expected == 0 or killed == kills:
                status, text = command.run()
                assert status == 0, text
                assert command.encoded == expected
                assert command.files == undisturbed
                assert not list(command.output.rglob("*.tmp"))
                assert not list((command.output / "_daskembed").glob("parts/*/*/*"))
                runs += 1
                command.output = tmp_path / f"out{runs}"
    finally:
        ended.set()
        reader.join()
    assert torn == []


def test_finished_blocks_are_not_computed_again(command: Command, undisturbed: dict[str, str]) -> None:
    process = command.start()
    wait_for(lambda: 0 < command.left <= sum(TILES.values()) - 4 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = command.left
    assert 0 < left < sum(TILES.values())
    status, text = command.run()
    assert status == 0, text
    assert command.encoded == left
    assert command.files == undisturbed


def test_a_killed_scheduler_stops_the_run_which_goes_on_with_another(
    command: Command, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "COUNTING_LOG": str(command.log),
        "COUNTING_SLEEP": "0.4",
        "DASK_DASKEMBED__TORCH_THREADS": "1",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s",
    }
    command.env |= {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", "127.0.0.1"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard", "--nthreads", "2"]

    def cluster(number: int) -> tuple[list[subprocess.Popen[bytes]], str]:
        file = tmp_path / f"scheduler{number}.json"
        quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = subprocess.Popen([*dask, "--port", "0", "--scheduler-file", str(file)], **quiet)
        wait_for(lambda: file.exists() and file.stat().st_size)
        address = json.loads(file.read_text())["address"]
        return [scheduler, subprocess.Popen([*worker, address, "--death-timeout", "5"], **quiet)], address

    processes, address = cluster(0)
    try:
        process = command.start("--cluster", address)
        wait_for(lambda: command.encoded >= 2 or process.poll() is not None)
        processes[0].kill()
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 1, text
        assert "run the same command to go on" in text
        assert "Traceback" not in text
        # A worker finishes what it has begun, and only then sees that its scheduler is gone.
        processes[1].kill()
        processes[1].wait()
        left = command.left
        others, address = cluster(1)
        processes += others
        status, text = command.run("--cluster", address)
        assert status == 0, text
        assert command.encoded == left
        assert command.files == undisturbed
    finally:
        for each in processes:
            each.kill()
            each.wait()


def test_a_second_run_on_the_same_output_is_refused(command: Command) -> None:
    command.env["COUNTING_SLEEP"] = "1"
    process = command.start()
    wait_for(lambda: (command.output / "_daskembed/running_v001.json").exists())
    held = json.loads((command.output / "_daskembed/running_v001.json").read_text())
    status, text = Command(command.source, command.output, command.log.with_name("other")).run()
    assert status == 2, text
    for said in ("another run is at work", held["host"], held["started"], str(process.pid)):
        assert said in text
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert not (command.output / "_daskembed/running_v001.json").exists()


def test_another_version_may_run_at_the_same_time(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    with lock.hold(output, "001"), lock.hold(output, "002"):
        assert len(list(tmp_path.rglob("running_*"))) == 2
    assert not list(tmp_path.rglob("running_*"))


@pytest.mark.parametrize("where", ["local", "s3"])
def test_locks_of_the_dead_are_taken_over(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 6)
    output = Storage(str(tmp_path) if where == "local" else request.getfixturevalue("s3"))
    path = "_daskembed/running_v001.json"

    def left_by(**other: object) -> None:
        there = {"token": "t", "host": "elsewhere", "process": 1, "process_started": 1.0, "started": "2024-01-01"}
        output.put(path, json.dumps(there | {"seen": time.time()} | other).encode())

    left_by()
    with pytest.raises(InputError, match="on elsewhere since 2024-01-01"), lock.hold(output, "001"):
        pass
    left_by(seen=time.time() - 2 * lock.LEASE)
    with lock.hold(output, "001"):
        assert json.loads(output.get(path))["process"] == os.getpid()
        with pytest.raises(InputError, match="another run is at work"), lock.hold(output, "001"):
            pass
    with pytest.raises(FileNotFoundError):
        output.get(path)


def test_a_run_that_was_taken_for_dead_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.6)
    output = Storage(str(tmp_path))
    with lock.hold(output, "001") as check:
        check()
        output.put("_daskembed/running_v001.json", b'{"token": "another"}')
        wait_for(lambda: check.token in lock._lost)
        with pytest.raises(DaskembedError, match="another run took over"):
            check()
    assert output.get("_daskembed/running_v001.json")


def test_what_dead_writers_left_is_swept_but_for_other_versions(tmp_path: Path) -> None:
    names = [".33TUL_20200101_20200101_v001.gpq.ab.tmp", "_daskembed/parts/33TUL_v001/k/.00000.parquet.ab.tmp"]
    others = [".33TUL_20200101_20200101_v002.gpq.ab.tmp", "mine_v001.tmp", "data/.x_v001.tmp"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Storage(str(tmp_path)).sweep("_v001")
    assert not any((tmp_path / name).exists() for name in names)
    assert all((tmp_path / name).exists() for name in others)
