"""Clusters by name, YAML file and address."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import distributed
import pytest
import yaml
from distributed import Client, LocalCluster
from distributed.core import Status

import daskembed
from daskembed import config
from daskembed.cli.parser import cluster_arguments
from daskembed.clusters import connection as clusters
from daskembed.clusters import this_machine
from daskembed.clusters.connection import connect
from daskembed.clusters.presets import copy_preset, is_installed, parse_workers, presets, read_preset
from daskembed.errors import InputError
from daskembed.runs import window as flow

THREADS = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
"""Arguments of a cluster that is started in no time."""


def write_preset(folder: Path, **preset: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(preset))
    return str(path)


def refusal(cluster: str) -> str:
    """What `connect` says to a cluster that it refuses, which must be one line."""
    with pytest.raises(InputError) as error, connect(cluster):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


# Presets


def test_presets_are_the_files_of_the_folder() -> None:
    folder = Path(__file__).parent.parent / "clusters"
    assert set(presets()) == {path.stem for path in folder.glob("*.yaml")}
    assert {"local", "local-cuda", "coiled"} <= set(presets())


@pytest.mark.parametrize("name", presets())
def test_every_preset_says_what_it_is(name: str) -> None:
    preset = read_preset(name)
    module, _, attribute = preset["class"].rpartition(".")
    assert module
    assert attribute.isidentifier()
    assert len(preset["description"]) > 20
    # Whoever reads it knows whether a folder of this machine can be its source.
    assert clusters.shares_files(name) is preset["shares_files"]
    if module.partition(".")[0] not in ("daskembed", "distributed"):
        assert preset["install"].startswith(module.partition(".")[0].replace("_", "-"))


def test_presets_of_this_machine_share_its_files(tmp_path: Path) -> None:
    assert [clusters.shares_files(name) for name in ("local", "local-cuda", "coiled")] == [True, True, False]
    assert clusters.shares_files(write_preset(tmp_path, **{"class": "distributed.LocalCluster"})) is None
    assert clusters.shares_files("tcp://127.0.0.1:1") is clusters.shares_files("nowhere.json") is None


def test_unknown_name() -> None:
    message = refusal("locall")
    assert message.startswith("unknown cluster 'locall': choose one of ")
    for name in presets():
        assert name in message
    assert "tcp://" in message
    assert ".json" in message


@pytest.mark.parametrize("path", ["nowhere.yaml", "nowhere/mine.yml", "/nowhere/mine.yaml"])
def test_missing_file(path: str) -> None:
    assert refusal(path).startswith(f"unknown cluster '{path}': choose one of ")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    assert refusal(str(tmp_path / "mine.yaml")).startswith("unknown cluster ")


# Files


def test_file_starts_its_class_and_closes_it(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "distributed.LocalCluster", "arguments": THREADS})
    with connect(path) as client:
        assert isinstance(client, Client)
        cluster = client.cluster
        assert isinstance(cluster, LocalCluster)
        assert client.submit(lambda: 41 + 1).result(timeout=30) == 42
        assert list(client.nthreads().values()) == [1]
    assert client.status == "closed"
    assert cluster.status == Status.closed


def test_error_within_closes_the_cluster(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "distributed.LocalCluster", "arguments": THREADS})
    seen = []

    def fail() -> None:
        with connect(path) as client:
            seen.append(client.cluster)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[0].status == Status.closed


@pytest.mark.parametrize(
    "text",
    ["", "description: no class at all\n", "class: 7\n", "class: LocalCluster\n", "class:\n", "- class\n", "local\n"],
)
def test_file_without_a_class(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    expected = f"{path} names no cluster class: expected a line such as `class: distributed.LocalCluster`"
    assert refusal(str(path)) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("argumens: {n_workers: 2}", "has the key 'argumens', which is none of class, description, install, hint, "),
        ("1: 2", "has the key 1, which is none of class, "),
        ("arguments: [n_workers]", "says arguments: ['n_workers'], which is not keys and values"),
        ("plugins: faults.fleet.Plugin", "says plugins: 'faults.fleet.Plugin', which is not a list of classes"),
        ("shares_files: 1", "says shares_files: 1, which is not true or false"),
    ],
)
def test_file_that_says_what_no_file_says(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"class: distributed.LocalCluster\n{line}\n")
    assert refusal(str(path)).startswith(f"{path} {words}")


def test_key_whose_lines_are_commented_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("class: distributed.LocalCluster\narguments:\n#   n_workers: 2\n")
    assert read_preset(str(path)) == {"class": "distributed.LocalCluster"}


def test_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("class: distributed.LocalCluster\n  arguments: [1, 2\n")
    assert refusal(str(path)).startswith(f"{path} is not YAML: ")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"class: \xff\xfe\x00\n")
    assert refusal(str(path)).startswith(f"{path} is not YAML: ")


def test_class_that_is_not_installed(tmp_path: Path) -> None:
    install = "no-such-module (pip install no-such-module)"
    path = write_preset(tmp_path, **{"class": "no_such_module.Cluster", "install": install})
    message = refusal(path)
    assert message.startswith(f"the cluster '{path}' needs {install}, which cannot be imported: ")
    assert "No module named 'no_such_module'" in message


def test_what_a_class_requires_is_not_installed(tmp_path: Path) -> None:
    preset = {"class": "distributed.LocalCluster", "requires": ["yaml", "no_such_module"], "install": "more"}
    assert refusal(write_preset(tmp_path, **preset)).endswith(
        "needs more, which cannot be imported: No module named 'no_such_module'"
    )
    assert not is_installed(preset)
    assert is_installed(preset | {"requires": ["yaml"]})
    assert not is_installed({"class": "no_such_module.sub.Cluster"})


def test_class_that_is_not_installed_and_nobody_says_how(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "no_such_module.sub.Cluster"})
    assert refusal(path).startswith(f"the cluster '{path}' needs the package of no_such_module.sub.Cluster, ")


@pytest.mark.parametrize("name", ["distributed.LocalClutser", "daskembed.clusters.connection.nowhere"])
def test_class_that_its_module_does_not_have(tmp_path: Path, name: str) -> None:
    assert name.rpartition(".")[2] in refusal(write_preset(tmp_path, **{"class": name}))


@pytest.fixture
def failing_class(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a class that cannot be started."""
    module = ModuleType("failing_cloud")

    def cluster(**arguments: Any) -> None:
        raise RuntimeError(f"quota exceeded for {arguments}")

    module.Cluster = cluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_cloud", module)
    return "failing_cloud.Cluster"


def test_cluster_that_does_not_start(tmp_path: Path, failing_class: str) -> None:
    path = write_preset(tmp_path, **{"class": failing_class, "arguments": {"n_workers": 4}, "hint": "ask for more"})
    assert refusal(path) == (
        f"the cluster '{path}' did not start: RuntimeError: quota exceeded for {{'n_workers': 4}}; ask for more"
    )


def test_cluster_that_does_not_start_without_a_hint(tmp_path: Path, failing_class: str) -> None:
    path = write_preset(tmp_path, **{"class": failing_class})
    assert refusal(path) == f"the cluster '{path}' did not start: RuntimeError: quota exceeded for {{}}"


def test_arguments_that_the_class_does_not_take(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "daskembed.clusters.local", "arguments": {"no_such_argument": 1}})
    assert refusal(path).startswith(f"the cluster '{path}' did not start: ")


class Refusing(distributed.deploy.ProcessInterface):  # type: ignore[misc]
    """A machine that is not to be had."""

    def __init__(self, scheduler: str, name: object) -> None:
        super().__init__()

    async def start(self) -> None:
        raise OSError("no machine\nof this kind")


class NoMachines(distributed.SpecCluster):  # type: ignore[misc]
    """A cloud of them, which asks for its machines as it is made."""

    def __init__(self, **arguments: Any) -> None:
        scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}}
        super().__init__({"a": {"cls": Refusing}, "b": {"cls": Refusing}}, scheduler)


@pytest.mark.parametrize("is_class", [True, False])
def test_cluster_whose_workers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_class: bool
) -> None:
    module, made = ModuleType("full_cloud"), list[distributed.SpecCluster]()

    class Kept(NoMachines):
        def __init__(self) -> None:
            made.append(self)
            super().__init__()

    module.Cluster = Kept if is_class else lambda: Kept()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "full_cloud", module)
    message = refusal(write_preset(tmp_path, **{"class": "full_cloud.Cluster", "hint": "take others"}))
    assert " did not start" in message
    assert message.endswith(": OSError: no machine of this kind; take others")
    assert made[0].status == Status.closed
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("preset", ["local", "local-cuda"])
def test_workers_of_this_machine_leave_ctrl_c_to_the_command(tmp_path: Path, preset: str) -> None:
    chosen = read_preset(preset)
    if preset == "local-cuda":
        # Its class needs a GPU and is a kind of this one.
        chosen = {**chosen, "class": "distributed.LocalCluster"}
    arguments = {**chosen.get("arguments", {}), "n_workers": 1}
    with (
        # What is forked has it from its parent.
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn", "distributed.worker.preload": []}),
        connect(write_preset(tmp_path, **{**chosen, "arguments": arguments})) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        assert set(client.run(lambda: signal.getsignal(signal.SIGINT)).values()) == {signal.SIG_IGN}


def test_gpus_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    module = ModuleType("dask_cuda")
    module.LocalCUDACluster = NoMachines  # type: ignore[attr-defined]
    for installed in (None, module):
        monkeypatch.setitem(sys.modules, "dask_cuda", installed)
        assert refusal("local-cuda").startswith(
            "the cluster 'local-cuda' has a worker for each GPU, and this machine shows none"
        )
        assert refusal("local-cuda").endswith(
            ": use `cluster='local'`; on a machine with one it needs dask-cuda (pip install 'daskembed[cuda]')"
        )
    (tmp_path / "nvidia0").touch()
    assert "no machine of this kind; it needs an NVIDIA GPU" in refusal("local-cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "or CUDA_VISIBLE_DEVICES hides it): use `cluster='local'`; " in refusal("local-cuda")
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert refusal("local-cuda").startswith("the cluster 'local-cuda' needs dask-cuda (pip install 'daskembed[cuda]')")


# Copies and trials


def test_a_copy_is_a_preset_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "my-slurm.yaml"
    copy_preset("slurm", str(path))
    assert read_preset(str(path)) == read_preset("slurm")
    path.write_text("mine")
    with pytest.raises(InputError, match=r"my-slurm\.yaml is there already, and is not replaced"):
        copy_preset("slurm", str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("slrum", "a.yaml", "no preset 'slrum' to copy: choose one of coiled, "),
        ("slurm", "slurm", "a cluster file's name ends with .yaml, such as my-slurm.yaml"),
        ("slurm", "nowhere/a.yaml", "cannot be written: No such file or directory"),
    ],
)
def test_copies_that_cannot_be_made(tmp_path: Path, name: str, file: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        copy_preset(name, str(tmp_path / file))
    assert list(tmp_path.iterdir()) == []


def test_a_trial_says_what_one_worker_computes_with(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "distributed.LocalCluster", "arguments": THREADS | {"n_workers": 9}})
    started = []

    def note(cluster: str, **options: Any) -> Any:
        started.append(options["workers"])
        return connect(cluster, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "connect", note)
        said = clusters.check(path)
    assert started == [1]
    assert re.fullmatch(rf"the cluster '{path}' works: a worker of it computes with .*(CPU|GPU).*", said)


# Plugins


def test_plugins_are_registered_on_the_workers(tmp_path: Path) -> None:
    preset = {"class": "distributed.LocalCluster", "arguments": THREADS, "plugins": ["faults.fleet.Plugin"]}
    with connect(write_preset(tmp_path, **preset)) as client:
        assert list(client.run(lambda dask_worker: dask_worker.daskembed_was_here).values()) == [True]


@pytest.mark.parametrize("name", ["faults.fleet.Nothing", "faults.nowhere.Plugin", "Plugin"])
def test_plugins_that_are_not_there_start_no_cluster(tmp_path: Path, name: str, failing_class: str) -> None:
    message = refusal(write_preset(tmp_path, **{"class": failing_class, "plugins": [name]}))
    assert name in message
    assert "did not start" not in message


# Arguments and size


@pytest.mark.parametrize(
    ("pairs", "arguments"),
    [
        ([], {}),
        (["n_workers=2", "name=mine", "nanny=false"], {"n_workers": 2, "name": "mine", "nanny": False}),
        (["hosts=[a, b]", "note=a=b", "none="], {"hosts": ["a", "b"], "note": "a=b", "none": None}),
        (["options.nthreads=4", "options.env.A=b"], {"options": {"nthreads": 4, "env": {"A": "b"}}}),
        (["n_workers=2", "n_workers=3"], {"n_workers": 3}),
    ],
)
def test_arguments_of_the_command_line(pairs: list[str], arguments: dict[str, Any]) -> None:
    assert cluster_arguments(pairs) == arguments


@pytest.mark.parametrize("pair", ["n_workers", "=2", "", "a..b=2", "a b=2", "a=[1"])
def test_arguments_that_are_none(pair: str) -> None:
    with pytest.raises(InputError, match=rf"--cluster-arg {re.escape(repr(pair))}: ") as error:
        cluster_arguments(["n_workers=2", pair])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("workers", "bounds"), [(4, (4, 4)), ("4", (4, 4)), ("1..20", (1, 20)), ("3..3", (3, 3)), ("2 .. 4", (2, 4))]
)
def test_sizes(workers: int | str, bounds: tuple[int, int]) -> None:
    assert parse_workers(workers) == bounds


@pytest.mark.parametrize("workers", [0, -1, "many", "", "0..4", "4..1", "1..", "..4", "1...4", "1.5"])
def test_sizes_that_are_none(workers: int | str) -> None:
    with pytest.raises(InputError, match=re.escape(f"`workers={workers!r}`: expected a number from 1, ")):
        parse_workers(workers)


def test_arguments_asked_for_go_over_those_of_the_file(tmp_path: Path, failing_class: str) -> None:
    mine = {"region": "a", "options": {"nthreads": 1, "name": "x"}, "n_workers": 9}
    path = write_preset(tmp_path, **{"class": failing_class, "arguments": mine})
    with (
        pytest.raises(InputError, match="quota exceeded") as error,
        connect(path, cluster_arguments={"region": "b", "options": {"nthreads": 2}}),
    ):
        pass
    assert str({"n_workers": 9, "options": {"name": "x", "nthreads": 2}, "region": "b"}) in str(error.value)


@pytest.mark.parametrize("kind", ["distributed.LocalCluster", "faults.fleet.Fleet"])
def test_size_asked_for_is_the_first_size(tmp_path: Path, kind: str) -> None:
    # Not scaled afterwards: what the file says would be started, and paid, first.
    path = write_preset(tmp_path, **{"class": kind, "arguments": THREADS | {"n_workers": 9}})
    with connect(path, workers=2) as client:
        assert set(client.cluster.worker_spec) == {0, 1}
        assert client.cluster._i == 0


def test_size_of_a_class_that_takes_none(tmp_path: Path, failing_class: str) -> None:
    path = write_preset(tmp_path, **{"class": failing_class})
    with pytest.raises(InputError, match=r"`workers=2` is for a cluster that takes n_workers, which .*Cluster of"):
        connect(path, workers=2).__enter__()


def test_workers_come_while_tasks_wait_and_go_afterwards(tmp_path: Path) -> None:
    def work(until: str) -> None:
        while not Path(until).exists():
            time.sleep(0.02)

    def settle(client: Client, workers: int) -> None:
        deadline = time.monotonic() + 120
        while len(client.nthreads()) != workers:
            assert time.monotonic() < deadline, f"{len(client.nthreads())} workers, not {workers}"
            time.sleep(0.05)

    path = write_preset(tmp_path, **{"class": "distributed.LocalCluster", "arguments": THREADS | {"n_workers": 3}})
    with dask.config.set(flow.DASK_CONFIG), connect(path, workers="1..3") as client:
        client.wait_for_workers(1, timeout=60)
        assert len(client.nthreads()) == 1
        # As many as wait for a thread in a run.
        futures = client.map(work, [str(tmp_path / "first")] * 3, pure=False)
        while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) < 3:
            time.sleep(0.05)
        # So many at once, though tasks of which nothing is known are taken to be short.
        assert client.cluster.sync(client.cluster._adaptive.target) == 3
        settle(client, 3)
        last = client.submit(work, str(tmp_path / "last"))
        (tmp_path / "first").touch()
        settle(client, 1)
        assert not last.done()
        (tmp_path / "last").touch()
        assert client.gather([*futures, last]) == [None] * 4
    assert client.cluster.status == Status.closed


# Addresses


def test_address_of_a_scheduler() -> None:
    with LocalCluster(**THREADS, protocol="tcp://") as cluster:
        with connect(cluster.scheduler_address) as client:
            assert client.submit(lambda: 41 + 1).result(timeout=30) == 42
        assert client.status == "closed"
        assert cluster.status == Status.running


@pytest.mark.parametrize("cluster", ["tcp://127.0.0.1:1", "scheduler.json"])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("workers", {"workers": 2}),
        ("cluster_arguments", {"cluster_arguments": {"n_workers": 2}}),
        ("tls", {"tls": True}),
    ],
)
def test_nothing_can_be_asked_of_a_cluster_that_runs(cluster: str, name: str, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{name}` is for a cluster that is started .*{cluster}"):
        connect(cluster, **asked).__enter__()


@pytest.mark.parametrize(
    "asked", [{"workers": 2}, {"cluster_arguments": {"n_workers": 2}}, {"listen": "0.0.0.0"}, {"tls": True}]
)
def test_nothing_can_be_asked_of_a_clients_cluster(tmp_path: Path, asked: dict[str, Any]) -> None:
    client: Any = object()
    with pytest.raises(InputError, match=f"`{next(iter(asked))}` is for a cluster that is started .*the client's"):
        daskembed.run("33TUL", source=str(tmp_path), output=str(tmp_path / "out"), cluster=client, **asked)


def test_scheduler_file_that_is_missing() -> None:
    message = refusal("nowhere/scheduler.json")
    assert message.startswith("the scheduler file nowhere/scheduler.json cannot be read: No such file")
    assert message.endswith("`dask scheduler --scheduler-file nowhere/scheduler.json` writes it")


@pytest.mark.parametrize("text", ["", "tcp://127.0.0.1:1", "[]", "{}", '{"address": 7}', "7"])
def test_scheduler_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    assert refusal(str(path)).startswith(f"{path} is not a scheduler file: expected JSON with an address")


def test_address_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(address: str, *, set_as_default: bool, timeout: str) -> Client:
        return Client(address, timeout="300ms", set_as_default=set_as_default)

    monkeypatch.setattr(distributed, "Client", impatient)
    message = refusal("tcp://127.0.0.1:1")
    assert message.startswith("no Dask scheduler answers at tcp://127.0.0.1:1: ")
    assert message.endswith("; start one with `dask scheduler`")


def test_address_that_is_none() -> None:
    assert refusal("carrier-pigeon://10.0.0.1:8786").startswith("no Dask scheduler answers at carrier-pigeon://")
    assert dask.config.get("scheduler", None) is None, "what the caller computes next would look for a client"


# This machine


def test_local_starts_processes_that_have_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def torch_threads() -> tuple[int, int]:
        import torch

        from daskembed.hardware import set_torch_threads

        set_torch_threads()
        return os.getpid(), torch.get_num_threads()

    def handlers() -> list[str]:
        import logging

        return [type(handler).__name__ for handler in logging.getLogger("distributed").handlers]

    # As in a run, settings have been read here before: what is set for the workers must outlast that.
    monkeypatch.delenv("DASK_DASKEMBED__TORCH_THREADS")
    monkeypatch.delitem(dask.config.config["daskembed"], "torch_threads")
    assert config.get("torch-threads") is None
    cores = dask.system.cpu_count()
    # Two workers: one alone would have all cores anyway.
    monkeypatch.setattr(this_machine, "CORES_A_WORKER", max(1, cores // 2))
    workers = cores // this_machine.CORES_A_WORKER
    with connect("local") as client:
        client.wait_for_workers(workers, timeout=60)
        found = list(client.run(torch_threads).values())
        threads = list(client.nthreads().values())
        loggers = [*client.run(handlers).values(), handlers()]
    assert threads == [2] * workers
    assert loggers == [["_OneLine"]] * (workers + 1), "Dask's noise would be written to the terminal"
    assert handlers() != ["_OneLine"]
    assert [number for _, number in found] == [cores // workers] * workers
    assert len({pid for pid, _ in found} - {os.getpid()}) == workers


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `local` asks of LocalCluster, which is not started."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(distributed, "LocalCluster", lambda **arguments: asked.append(arguments))
    return asked


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, int], Path]:
    """Makes this machine one of so many cores and GiB of memory; returns the folder of its devices."""

    def make(cores: int, gigabytes: float) -> Path:
        monkeypatch.setattr(dask.system, "cpu_count", lambda: cores)
        monkeypatch.setattr(distributed.system, "memory_limit", lambda: int(gigabytes * 2**30))
        monkeypatch.setattr(this_machine, "DEVICES", tmp_path)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("cores", "gigabytes", "workers", "share"),
    [
        *[
            (1, 64, 1, 1),
            (4, 64, 1, 4),
            (8, 64, 1, 8),
            (15, 64, 1, 15),
            (16, 64, 2, 8),
            (20, 64, 2, 10),
            (64, 64, 8, 8),
        ],
        *[(64, 16, 8, 8), (64, 15, 7, 9), (64, 3, 1, 64), (16, 2, 1, 16)],
    ],
)
def test_local_shares_cores_and_memory(
    machine: Callable[[int, int], Path],
    started: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    cores: int,
    gigabytes: int,
    workers: int,
    share: int,
) -> None:
    machine(cores, gigabytes)
    this_machine.local()
    assert started[0]["n_workers"] == workers
    assert started[0]["threads_per_worker"] == 2
    assert started[0]["env"]["DASK_DASKEMBED__TORCH_THREADS"] == str(share)
    assert started[0]["memory_limit"] == gigabytes * 2**30 // workers
    assert caplog.messages == []


def test_local_takes_arguments(machine: Callable[[int, int], Path], started: list[dict[str, Any]]) -> None:
    machine(8, 64)
    this_machine.local(memory_limit="8GiB", threads_per_worker=3)
    assert started[0]["memory_limit"] == "8GiB"
    assert started[0]["threads_per_worker"] == 3
    assert started[0]["n_workers"] == 1


@pytest.mark.parametrize(
    ("asked", "workers"), [({"n_workers": 4}, 4), ({"n_workers": 1, "at_most": 4}, 1), ({"at_most": 4}, 1)]
)
def test_local_shares_among_the_workers_asked_for(
    machine: Callable[[int, int], Path], started: list[dict[str, Any]], asked: dict[str, int], workers: int
) -> None:
    machine(8, 64)
    this_machine.local(**asked)
    assert started[0]["n_workers"] == workers
    assert started[0]["env"]["DASK_DASKEMBED__TORCH_THREADS"] == "2"
    assert started[0]["memory_limit"] == 16 * 2**30
    assert "at_most" not in started[0]


def test_local_knows_that_workers_may_come(
    machine: Callable[[int, int], Path], started: list[dict[str, Any]], tmp_path: Path
) -> None:
    machine(8, 64)
    # It ends here, as nothing was started.
    with pytest.raises(InputError, match="did not start"):
        connect("local", workers="1..4").__enter__()
    assert started[0]["n_workers"] == 1
    assert started[0]["env"]["DASK_DASKEMBED__TORCH_THREADS"] == "2"


def test_local_says_when_memory_is_short(
    machine: Callable[[int, int], Path], started: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    machine(8, 1.5)
    this_machine.local()
    assert started[0]["n_workers"] == 1
    assert caplog.messages == [
        "warning: a worker has 1.5 GiB of this machine's memory and takes about 2 with the released weights: it may be "
        "killed"
    ]


@pytest.mark.parametrize(
    ("devices", "visible", "said"),
    [
        (["nvidiactl", "nvidia-uvm", "null"], None, []),
        (["nvidia0", "nvidiactl"], None, ["this machine has 1 GPU: `cluster='local-cuda'` has a worker for each"]),
        (["nvidia0", "nvidia1"], "0", ["this machine has 2 GPUs: `cluster='local-cuda'` has a worker for each"]),
        (["nvidia0"], "", []),
        (["nvidia0"], "-1", []),
    ],
)
def test_local_says_that_there_are_gpus(
    machine: Callable[[int, int], Path],
    started: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    devices: list[str],
    visible: str | None,
    said: list[str],
) -> None:
    folder = machine(8, 64)
    for name in devices:
        (folder / name).touch()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    this_machine.local()
    assert caplog.messages == said
