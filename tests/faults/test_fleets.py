"""Clusters that cost money are closed, however their run ends; clusters with other software are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from conftest import HERE, Command, wait_for

from daskembed.clusters import starting as started
from daskembed.clusters.connection import connect
from daskembed.errors import InputError

# Closed however it ends


class Preset:
    """A preset of `faults.fleet.Fleet`."""

    def __init__(self, folder: Path) -> None:
        self.path, self.book, self.gate = folder / "fleet.yaml", folder / "book", folder / "gate"

    def write(self, **arguments: Any) -> str:
        preset = {"class": "faults.fleet.Fleet", "arguments": {"book": str(self.book), "n_workers": 1} | arguments}
        self.path.write_text(yaml.safe_dump(preset))
        return str(self.path)

    @property
    def story(self) -> list[str]:
        """What the cluster wrote down."""
        return self.book.read_text().split() if self.book.exists() else []


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Preset]:
    preset = Preset(tmp_path)
    yield preset
    # Whatever waits at the gate would keep the tests from ending.
    preset.gate.unlink(missing_ok=True)


def test_a_run_that_ends(command: Command, undisturbed: dict[str, str], fleet: Preset) -> None:
    asked = ["--cluster", fleet.write(fail="close"), "--workers", "1..2", "--cluster-arg", "fail="]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = command.start(*asked)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: command.encoded or process.poll() is not None)
    # As under nohup, it goes on when its terminal is closed.
    process.send_signal(signal.SIGHUP)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert command.files == undisturbed
    assert fleet.story == ["started", "closed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_interrupted(command: Command, fleet: Preset, number: signal.Signals) -> None:
    # The tests may themselves run under nohup, which the command would go by.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = command.start("--cluster", fleet.write())
    finally:
        signal.signal(number, before)
    wait_for(lambda: command.encoded or process.poll() is not None)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert fleet.story == ["started", "closed"]


@pytest.mark.parametrize(("at", "before"), [("wait", ["started"]), ("linger", ["started", "closing"])])
def test_an_interrupt_waits_for_a_cluster_that_starts_or_closes(
    command: Command, fleet: Preset, at: str, before: list[str]
) -> None:
    fleet.gate.touch()
    process = command.start("--cluster", fleet.write(**{at: str(fleet.gate)}))
    wait_for(lambda: fleet.story == before or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    said = next(line for line in lines if line.startswith("interrupted: "))
    assert said.startswith(f"interrupted: the cluster is being {'started' if at == 'wait' else 'closed'}")
    assert fleet.story == before
    fleet.gate.unlink()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert fleet.story == [*before, "closed"]
    assert ("tiles        3 done" in text) == (at == "linger"), "what the run did is told"


def test_a_second_interrupt_does_not_wait(command: Command, fleet: Preset) -> None:
    fleet.gate.touch()
    process = command.start("--cluster", fleet.write(wait=str(fleet.gate)))
    wait_for(lambda: fleet.story or process.poll() is not None)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert next(line for line in iter(process.stdout.readline, "") if line.startswith("interrupted: "))
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert fleet.story == ["started", "closed"], "what had started was known"


def test_a_constructor_that_fails_half_way(fleet: Preset) -> None:
    with pytest.raises(InputError, match="did not start: RuntimeError: half of it is there"):
        connect(fleet.write(fail="constructor")).__enter__()
    assert fleet.story == ["started", "closed"]


def test_a_scheduler_that_does_not_answer(fleet: Preset) -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300ms"}),
        pytest.raises(InputError, match=r"the scheduler of the cluster .*fleet.yaml' does not answer: "),
    ):
        connect(fleet.write(fail="connect")).__enter__()
    assert fleet.story == ["started", "closed"]


def test_a_failure_within(fleet: Preset) -> None:
    with pytest.raises(ZeroDivisionError), connect(fleet.write()):
        raise ZeroDivisionError
    assert fleet.story == ["started", "closed"]


def test_a_close_that_fails_does_not_hide_the_run(fleet: Preset, caplog: pytest.LogCaptureFixture) -> None:
    with connect(fleet.write(fail="close")) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    said = [record.getMessage() for record in caplog.records if record.name == "daskembed.clusters.starting"]
    assert len(said) == 1
    assert "was not closed properly: RuntimeError: the bill could not be written; look whether" in said[0]


def test_a_close_that_does_not_end_does_not_keep_the_run(
    fleet: Preset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(started, "CLOSE_PATIENCE", 0.1)
    monkeypatch.setattr(started, "CLOSE_TIMEOUT", 0.2)
    fleet.gate.touch()
    with connect(fleet.write(linger=str(fleet.gate))) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    waits, said = [record.getMessage() for record in caplog.records if record.name == "daskembed.clusters.starting"]
    assert waits.startswith("waiting for the cluster to close")
    assert "was not closed properly: TimeoutError: it takes longer than 0.2 s; look whether" in said
    wait_for(lambda: fleet.story == ["started", "closing"])
    fleet.gate.unlink()
    wait_for(lambda: fleet.story == ["started", "closing", "closed"])


# Elsewhere

OTHER_PYTHON = """
import sys, types
from distributed import versions

versions.sys = types.SimpleNamespace(byteorder=sys.byteorder, version_info=(3, 99, 0, "final", 0))
"""


class Elsewhere:
    """A scheduler and workers, each in a process that somebody else started."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.file, self.env, self.processes = folder / "scheduler.json", env, list[subprocess.Popen[bytes]]()

    def start(self, what: str, *arguments: str, python: tuple[str, ...] = (), **env: str) -> None:
        command = [sys.executable, *python, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self.file)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(
            subprocess.Popen([*command, "--no-dashboard", *arguments], env=self.env | env, **quiet)  # type: ignore[call-overload]
        )

    def scheduler(self, **how: Any) -> None:
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", **how)
        wait_for(lambda: self.file.exists() and self.file.stat().st_size)

    def worker(self, *arguments: str, **how: Any) -> None:
        self.start("worker", "--nthreads", "2", "--death-timeout", "60", *arguments, **how)

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def wait(self, workers: int) -> None:
        with connect(self.address) as client:
            client.wait_for_workers(workers, timeout=120)


@pytest.fixture
def elsewhere(command: Command, tmp_path: Path) -> Iterator[Elsewhere]:
    found = Elsewhere(
        tmp_path,
        os.environ
        | {"PYTHONPATH": str(HERE.parent), "COUNTING_LOG": str(command.log), "DASK_DASKEMBED__TORCH_THREADS": "1"},
    )
    yield found
    for each in found.processes:
        each.terminate()
        each.wait(60)


def write_metadata(folder: Path, **versions: str) -> str:
    """A folder that claims other versions of packages, where it comes first on the path."""
    for name, version in versions.items():
        (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return str(folder)


def refused(command: Command, cluster: str) -> str:
    """The line in which a run is refused, before anything is read or written."""
    status, text = command.run("--version", "other", "--cluster", cluster)
    assert status == 2, text
    assert command.encoded == 0
    lines = text.splitlines()
    assert lines[-1].startswith("daskembed: the cluster at tcp://127.0.0.1:")
    assert "Traceback" not in text
    return lines[-1]


def test_a_cluster_that_runs_and_one_worker_that_does_not_fit(
    command: Command, undisturbed: dict[str, str], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    elsewhere.scheduler()
    elsewhere.worker()
    command.env["COUNTING_SLEEP"] = "0"
    status, text = command.run("--cluster", str(elsewhere.file))
    assert status == 0, text
    assert command.files == undisturbed
    # Another build of the same torch fits.
    import torch

    same = torch.__version__.partition("+")[0]
    there = write_metadata(tmp_path / "site", daskembed="9.9.9", dask="2020.1.0", torch=f"{same}+other")
    (tmp_path / "python.py").write_text(OTHER_PYTHON)
    elsewhere.worker("--preload", str(tmp_path / "python.py"), PYTHONPATH=os.pathsep.join([there, str(HERE.parent)]))
    elsewhere.wait(2)
    message = refused(command, elsewhere.address)
    here = ".".join(map(str, sys.version_info[:2]))
    assert ": python is 3.99 on tcp://127.0.0.1:" in message
    assert f", {here} here; " in message
    assert "; dask is 2020.1.0 on tcp://127.0.0.1:" in message
    assert "; daskembed is 9.9.9 on tcp://127.0.0.1:" in message
    assert "torch" not in message
    # One of the two workers, and not the scheduler.
    assert message.count("tcp://") == 4
    assert "the scheduler" not in message


def test_a_cluster_without_this_package(command: Command, elsewhere: Elsewhere, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "daskembed" not in path.name:
            (site / path.name).symlink_to(path)
    # Without what the environment's own folder of packages has.
    bare: dict[str, Any] = {"python": ("-S",), "PYTHONPATH": str(site)}
    elsewhere.scheduler(**bare)
    elsewhere.worker(**bare)
    message = refused(command, elsewhere.address)
    assert "has other software: daskembed is missing on the scheduler, tcp://127.0.0.1:" in message
    assert message.endswith(" here; install the same versions everywhere")
