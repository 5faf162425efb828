"""One run at a time on a version of an output: whoever races, whatever clocks and host names say, on any store."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from daskembed.errors import InputError, LockLostError
from daskembed.output import lock
from daskembed.output.lock import hold
from daskembed.storage.stores import Storage
from daskembed.testing import FaultyProxy

PATH = "_daskembed/running_v001.json"
ELSEWHERE = {"token": "t", "host": "elsewhere", "process": 1, "process_started": 1.0, "started": "2024-01-01"}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3"))


@pytest.fixture
def here(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of three seconds: a sign of life every half."""
    monkeypatch.setattr(lock, "LEASE", 3)


def leave(output: Storage, path: str = PATH, **told: object) -> None:
    """A lock as a run on some machine writes it."""
    output.put(path, json.dumps(ELSEWHERE | {"seen": time.time()} | told).encode())


def of_process(process: subprocess.Popen[bytes] | int, **told: Any) -> dict[str, Any]:
    """What a lock of a process of this machine says."""
    number = process if isinstance(process, int) else process.pid
    holder = lock._Holder.here("t", "embeddings")
    return asdict(replace(holder, process=number, process_started=lock._began(number) or 0.0)) | told


def refused(output: Storage, version: str | None = "001") -> str:
    with pytest.raises(InputError) as error, hold(output, version):
        pass
    return str(error.value)


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


# Who is alive


def test_a_lock_is_there_while_it_is_held_and_refuses_others(output: Storage) -> None:
    with hold(output, "001") as held:
        held()
        held.confirm()
        told = json.loads(output.get(PATH))
        assert (told["process"], told["host"], told["kind"]) == (os.getpid(), socket.gethostname(), "embeddings")
        said = refused(output)
        assert said.startswith(
            f"another run is at work on {output.url}: on {socket.gethostname()} since {told['started']}"
        )
        held.confirm()
    assert output.entries() == []


def test_kinds_and_versions_are_apart(output: Storage) -> None:
    with ExitStack() as stack:
        for version in (None, "cube", "cubes", "001", "0011", "a", "ab"):
            stack.enter_context(hold(output, version))
        refused(output, None)
        refused(output, "cubes")
    assert output.entries() == []


def test_a_lock_of_cubes_of_an_earlier_release_is_respected(here: Storage) -> None:
    leave(here, "_daskembed/running_vcubes.json")
    assert "on elsewhere since 2024-01-01" in refused(here, None)
    refused(here, "cubes")
    os.utime(Path(here.url, "_daskembed/running_vcubes.json"), (0, 0))
    with hold(here, None):
        assert [entry.path for entry in here.entries()] == ["_daskembed/running_cube.json"]


def test_the_process_decides_on_its_own_machine(here: Storage, living: subprocess.Popen[bytes]) -> None:
    leave(here, **of_process(living))
    assert f"(process {living.pid})" in refused(here)
    # Its number is another process's by now.
    leave(here, **of_process(living, process_started=1.0))
    with hold(here, "001"):
        pass
    told = of_process(living)
    living.kill()
    while lock._began(living.pid) != -1.0:
        time.sleep(0.01)
    # Not waited for: it is a zombie.
    leave(here, **told)
    with hold(here, "001"):
        pass
    living.wait()
    leave(here, **told)
    with hold(here, "001"):
        pass


@pytest.mark.parametrize("machine", ["of another boot pid:[4026531836]", "", "{boot} pid:[1]"])
def test_a_host_of_the_same_name_is_another_machine(here: Storage, machine: str) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    leave(here, **of_process(dead.pid, machine=machine.format(boot=boot), seen=time.time()))
    assert f"on {socket.gethostname()} since" in refused(here)


def test_the_stores_clock_decides_of_other_machines(here: Storage) -> None:
    # It stopped long ago, whatever its clock said.
    leave(here, seen=time.time() + 10_000)
    refused(here)
    os.utime(Path(here.url, PATH), (time.time() - lock.LEASE - 1,) * 2)
    with hold(here, "001"):
        pass


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("off", [-130, 130])
def test_a_living_run_whose_clock_is_wrong_is_not_taken_over(output: Storage, off: float) -> None:
    leave(output, seen=time.time() + off)
    with pytest.MonkeyPatch.context() as patch:
        # It writes while it is waited for.
        patch.setattr(lock.time, "sleep", lambda seconds: leave(output, seen=time.time() + off))
        assert "on elsewhere" in refused(output)
    if off < 0:
        # It is dead now, and its clock was wrong.
        with hold(output, "001"):
            pass


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"null", b"\xff", b'{"token": 1, "process": "x", "seen": null}', b"[" * 100_000]
)
def test_what_is_no_lock_is_one_for_as_long_as_the_lease(here: Storage, text: bytes) -> None:
    here.put(PATH, text)
    with hold(here, "001") as held:
        held.confirm()
    here.put(PATH, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock.time, "sleep", lambda seconds: here.put(PATH, text + b" "))
        assert "on a machine unknown since a time unknown" in refused(here)


# Races


def race(output: Storage, runners: int) -> list[str]:
    """Several try at once; the names of those that held the lock, and that all of the others were refused."""
    start, over = threading.Barrier(runners), threading.Barrier(runners)
    got: list[str] = []
    errors: list[BaseException] = []

    def take() -> None:
        start.wait()
        try:
            with hold(output, "001") as held:
                held.confirm()
                got.append(held.token)
                over.wait(60)
                held.confirm()
        except InputError as error:
            errors.append(error)
            over.wait(60)
        except BaseException as error:
            errors.append(error)
            over.abort()
            raise

    threads = [threading.Thread(target=take) for _ in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) + len(errors) == runners
    assert all(isinstance(error, InputError) and "another run" in str(error) for error in errors), errors
    return got


@pytest.mark.parametrize("left", [None, "dead"])
@pytest.mark.parametrize("where", ["local", "s3", "s3, slow"])
def test_one_of_many_gets_it(
    where: str, left: str | None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 30)
    output = Storage(str(tmp_path) if where == "local" else request.getfixturevalue("s3"))
    with ExitStack() as stack:
        if where == "s3, slow":
            proxy = FaultyProxy(request.getfixturevalue("s3_server"), {"stall": 0.3, "503": 0.1}, stall=1.0)
            monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(proxy).url)
        if left:
            with subprocess.Popen([sys.executable, "-c", ""]) as dead:
                pass
            leave(output, **of_process(dead.pid))
        assert len(race(output, 6)) == 1
    assert output.entries() == []


class Careless(FaultyProxy):
    """A store that overlooks conditions, or says that it does not know them."""

    def __init__(self, *args: Any, refuses: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refuses, self.conditional = refuses, 0

    def _carry_out(self, handler: Any) -> None:
        for name in ("If-None-Match", "If-Match"):
            if handler.command == "PUT" and name in handler.headers:
                self.conditional += 1
                if self._refuses:
                    handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                    handler.refuse(501, "NotImplemented")
                    return
                del handler.headers[name]
        super()._carry_out(handler)


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("left", [None, "dead"])
def test_a_store_without_conditions_is_waited_for(
    refuses: bool, left: str | None, s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 12)
    output = Storage(s3)
    with Careless(s3_server, {"stall": 0.2}, stall=0.1, refuses=refuses) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        if left:
            leave(output, **of_process(2**22 + 1, process_started=1.0))
        assert len(race(output, 3)) <= 1
        with hold(output, "001") as held:
            before = output.get(PATH)
            while output.get(PATH) == before:
                time.sleep(0.05)
            held.confirm()
            refused(output)
        assert proxy.conditional > 0
    assert output.entries() == []


def test_no_store_that_minds_conditions_is_waited_for(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))
    with hold(output, "001"):
        pass


# Signs of life, and their end


@pytest.mark.usefixtures("short")
def test_signs_of_life_go_on_after_errors(here: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failed = lock._read, threading.Event()

    def fail_once(*args: Any) -> bytes | None:
        if threading.current_thread().name == "daskembed-lock" and not failed.is_set():
            failed.set()
            raise FileNotFoundError("swept")
        return read(*args)

    monkeypatch.setattr(lock, "_read", fail_once)
    with hold(here, "001") as held:
        assert failed.wait(10)
        before = here.get(PATH)
        while here.get(PATH) == before:
            time.sleep(0.05)
        held.confirm()


def taken(output: Storage) -> None:
    leave(output, token="another")


HAPPENS: dict[str, Callable[[Storage], None]] = {
    "taken": taken,
    "deleted": lambda output: output.delete([PATH]),
    "damaged": lambda output: output.put(PATH, b"{}"),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("happens", HAPPENS)
def test_a_lost_lock_is_noticed_by_itself(output: Storage, happens: str) -> None:
    with hold(output, "001") as held:
        HAPPENS[happens](output)
        while held.token not in lock._lost:
            time.sleep(0.05)
        with pytest.raises(LockLostError, match=f"another run took over {output.url}"):
            held()
    # What is another's stays.
    assert [entry.path for entry in output.entries()] == ([] if happens == "deleted" else [PATH])


def test_a_lost_lock_is_noticed_at_once_by_who_asks(output: Storage) -> None:
    with hold(output, "001") as held:
        worker = pickle.loads(pickle.dumps(held))
        worker.confirm()
        taken(output)
        held()
        with pytest.raises(LockLostError) as error:
            worker.confirm()
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert json.loads(output.get(PATH))["token"] == "another"
