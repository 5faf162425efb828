"""Clusters by name, YAML file and address."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import distributed
import pytest
import yaml
from distributed import Client, LocalCluster
from distributed.core import Status

from daskembed import clusters, config
from daskembed.clusters import connect, presets
from daskembed.errors import InputError

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
    preset = clusters._read_preset(name)
    module, _, attribute = preset["class"].rpartition(".")
    assert module
    assert attribute.isidentifier()
    assert isinstance(preset["description"], str)
    assert len(preset["description"]) > 20
    assert isinstance(preset.get("arguments", {}), dict)
    assert set(preset) <= {"class", "description", "arguments", "install", "hint"}
    if module.partition(".")[0] not in ("daskembed", "distributed"):
        assert preset["install"].startswith(module.partition(".")[0].replace("_", "-"))


def test_unknown_name() -> None:
    message = refusal("locall")
    assert message.startswith("unknown cluster 'locall': choose one of ")
    for name in presets():
        assert name in message
    assert "tcp://" in message


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


def test_class_that_is_not_installed_and_nobody_says_how(tmp_path: Path) -> None:
    path = write_preset(tmp_path, **{"class": "no_such_module.sub.Cluster"})
    assert refusal(path).startswith(f"the cluster '{path}' needs the package of no_such_module.sub.Cluster, ")


@pytest.mark.parametrize("name", ["distributed.LocalClutser", "daskembed.clusters.nowhere"])
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


@pytest.mark.parametrize("arguments", [{"no_such_argument": 1}, ["n_workers"], "n_workers"])
def test_arguments_that_the_class_does_not_take(tmp_path: Path, arguments: Any) -> None:
    path = write_preset(tmp_path, **{"class": "daskembed.clusters.local", "arguments": arguments})
    assert refusal(path).startswith(f"the cluster '{path}' did not start: ")


# Addresses


def test_address_of_a_scheduler() -> None:
    with LocalCluster(**THREADS, protocol="tcp://") as cluster:
        with connect(cluster.scheduler_address) as client:
            assert client.submit(lambda: 41 + 1).result(timeout=30) == 42
        assert client.status == "closed"
        assert cluster.status == Status.running


def test_address_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(address: str, *, timeout: str, set_as_default: bool) -> Client:
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

        from daskembed.device import set_torch_threads

        set_torch_threads()
        return os.getpid(), torch.get_num_threads()

    # As in a run, settings have been read here before: what is set for the workers must outlast that.
    assert config.get("torch-threads") is None
    cores = len(os.sched_getaffinity(0))
    # Two workers: one alone would have all cores anyway.
    monkeypatch.setattr(clusters, "CORES_A_WORKER", max(1, cores // 2))
    workers = cores // clusters.CORES_A_WORKER
    with connect("local") as client:
        client.wait_for_workers(workers, timeout=60)
        found = list(client.run(torch_threads).values())
        threads = list(client.nthreads().values())
    assert threads == [2] * workers
    assert [number for _, number in found] == [cores // workers] * workers
    assert len({pid for pid, _ in found} - {os.getpid()}) == workers


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `local` asks of LocalCluster, which is not started."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(distributed, "LocalCluster", lambda **arguments: asked.append(arguments))
    return asked


@pytest.mark.parametrize(
    ("cores", "workers", "share"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (15, 1, 15), (16, 2, 8), (20, 2, 10), (64, 8, 8)]
)
def test_local_shares_the_cores(
    monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]], cores: int, workers: int, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    clusters.local()
    assert started[0]["n_workers"] == workers
    assert started[0]["threads_per_worker"] == 2
    assert started[0]["env"]["DASK_DASKEMBED__TORCH_THREADS"] == str(share)


def test_local_takes_arguments(monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    clusters.local(memory_limit="8GiB", threads_per_worker=3)
    assert started[0]["memory_limit"] == "8GiB"
    assert started[0]["threads_per_worker"] == 3
    assert started[0]["n_workers"] == 1


def test_local_shares_the_cores_among_the_workers_asked_for(
    monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    clusters.local(n_workers=4)
    assert started[0]["n_workers"] == 4
    assert started[0]["env"]["DASK_DASKEMBED__TORCH_THREADS"] == "2"
