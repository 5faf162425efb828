"""Workers as forks of a process that has loaded what they need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dask
import distributed.nanny  # noqa: F401 (whose defaults are asked for)
import psutil
import pytest

from daskembed.clusters import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no worker is a fork")


def python(code: str, environment: dict[str, str] | None = None, *, session: bool = False) -> subprocess.Popen[str]:
    """A process of its own, as `begin` is done once a process."""
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | (environment or {})
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=session,
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text.splitlines()


def test_workers_are_forks_that_have_what_they_need() -> None:
    lines = said(
        python(
            """
import os
from daskembed.clusters.connection import connect
from daskembed.clusters.forks import begin

def look():
    import signal, sys
    parent = f"/proc/{os.getppid()}"
    return (
        "multiprocessing.forkserver" in open(f"{parent}/cmdline").read(), len(os.listdir(f"{parent}/task")),
        {name for name in ("torch", "rasterio", "geopandas", "daskembed.runs.stages") if name in sys.modules},
        sys.modules["torch"].cuda.is_initialized(), signal.getsignal(signal.SIGINT).name,
        os.environ["ADDED"], os.environ["OMP_NUM_THREADS"], os.environ["DASK_DASKEMBED__TORCH_THREADS"],
    )

before = dict(os.environ)
begin("daskembed.runs.forked")
assert dict(os.environ) == before
os.environ["ADDED"] = "later"
with connect("local", workers=1, cluster_arguments={"env": {"DASK_DASKEMBED__TORCH_THREADS": "7"}}) as client:
    (found,) = client.run(look).values()
    print(*found[:2], *sorted(found[2]), *found[3:], sep="\\n")
"""
        )
    )
    modules = ["daskembed.runs.stages", "geopandas", "rasterio", "torch"]
    assert lines == ["True", "1", *modules, "False", "SIG_IGN", "later", "1", "7"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"NEW": "a"}, {"NEW": "a"}),
        ({"OLD": "b"}, None),
        ({"OLD": None}, None),
        ({"OMP_NUM_THREADS": "4"}, None),
    ],
)
def test_an_environment_of_another_moment_is_not_used(
    changed: dict[str, str | None], expected: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLD", "a")
    for name in forks.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(forks, "_begun_in", forks.ENVIRONMENT | os.environ)
    for name, value in changed.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert forks.additions() == expected


def test_workers_that_are_to_be_otherwise_are_no_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_begun_in", forks.ENVIRONMENT | os.environ)
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 0}):
        assert forks.additions() is None
    for asked in ({"OMP_WAIT_POLICY": "active"}, {"DASK_LOGGING__DISTRIBUTED": "info", "GDAL_CACHEMAX": "64"}):
        assert forks.additions(asked) is None
        with dask.config.set({"distributed.nanny.environ": asked}):
            assert forks.additions() is None
    assert forks.additions({"DASK_LOGGING__DISTRIBUTED": "info"}) == {}
    monkeypatch.setattr(forks, "_begun_in", None)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    forks.begin("json")
    assert forks.additions() is None


def test_a_process_that_loads_ends_with_the_command(tmp_path: Path) -> None:
    # The module sleeps for longer than the test waits: its process has to notice.
    (tmp_path / "endless.py").write_text(
        "from daskembed.clusters.forks import loading\nimport time\nwith loading():\n    time.sleep(600)\n"
    )
    code = """
from multiprocessing import forkserver
from daskembed.clusters.forks import begin
begin("endless")
print(forkserver._forkserver._forkserver_pid)
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    (pid,) = said(python(code, {"PYTHONPATH": path}))
    end = time.monotonic() + 60
    while psutil.pid_exists(int(pid)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_another_process_that_imports_it_stays_as_it_was() -> None:
    code = """
import gc, importlib, signal

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    return [*handlers, gc.isenabled(), gc.get_freeze_count() > 0]

before = state()
importlib.import_module("daskembed.runs.forked")
print(state() == before)
"""
    assert said(python(code)) == ["True"]


def test_ctrl_c_is_left_to_the_command(tmp_path: Path) -> None:
    # At every moment of the other process's life, its first ones above all.
    (tmp_path / "slow.py").write_text(
        "import time\nfrom daskembed.clusters.forks import loading\n"
        "time.sleep(0.5)\nwith loading():\n    time.sleep(0.5)\n"
    )
    code = """
import os, signal, time
from daskembed.clusters.forks import begin
begin("slow")
signal.signal(signal.SIGINT, signal.SIG_IGN)
for _ in range(15):
    os.killpg(0, signal.SIGINT)
    time.sleep(0.1)
from multiprocessing import forkserver
print(os.waitpid(forkserver._forkserver._forkserver_pid, os.WNOHANG))
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with python(code, {"PYTHONPATH": path}, session=True) as process:
        assert said(process) == ["(0, 0)"]
