"""The presets of clusters that are not of this machine, as far as one machine can run them."""

from __future__ import annotations

import getpass
import hashlib
import importlib
import inspect
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from distributed.system import MEMORY_LIMIT

import daskembed
from daskembed import settings
from daskembed.clusters import connect, is_installed, presets, read_preset
from daskembed.errors import InputError

REPOSITORY = Path(__file__).parent.parent
TORCH_THREADS = {"DASK_DASKEMBED__TORCH_THREADS": "1"}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "CHIPS_A_BLOCK", 2)


def embed(chips: Path, output: Path, cluster: str, arguments: dict[str, Any]) -> str:
    """SHA-256 of the published file of 2 x 2 chips, embedded on a cluster."""
    job: dict[str, Any] = {"checkpoint": "untrained:tiny", "precision": "fp32", "source": str(chips)}
    result = daskembed.run("33TUL", output=str(output), cluster=cluster, cluster_arguments=arguments, **job)
    assert (result.exit_status, result.encoded) == (0, 4)
    (file,) = output.glob("*.gpq")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def local_sha256(chips: Path, tmp_path: Path, small_blocks: None) -> str:
    """SHA-256 of the file that `local` publishes with one torch thread a worker."""
    return embed(chips, tmp_path / "local", "local", {"n_workers": 1, "env": TORCH_THREADS, "dashboard_address": None})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, f"{process.args!r} ended with status {process.returncode}"
        time.sleep(0.1)
    raise AssertionError(f"{process.args!r} does not listen on port {port}")


# ssh


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[psutil.Process]:
    """An sshd of this test's own on the loopback address, which lets in who has the key `key` of `tmp_path`."""
    # Debian has it where only root's PATH looks.
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen (Debian: openssh-server), which are not installed")
    pytest.importorskip("asyncssh", reason="needs asyncssh, which is not installed")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    if os.geteuid() == 0:
        # sshd of root wants this empty folder, which Debian's service makes at each start.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path}/host_key\n"
        f"AuthorizedKeysFile {tmp_path}/key.pub\n"
        f"AllowUsers {getpass.getuser()}\n"
        "PidFile none\n"
        "PasswordAuthentication no\n"
        "StrictModes no\n"
        # Of the machine it plays: it has this package.
        f"SetEnv PYTHONPATH={REPOSITORY}\n"
    )
    port = free_port()
    log = (tmp_path / "sshd.log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", config, "-o", f"ListenAddress=127.0.0.1:{port}"], stderr=log)
    await_port(port, process)
    yield psutil.Process(process.pid)
    process.terminate()
    process.wait()
    log.close()


@pytest.fixture
def by_ssh(sshd: psutil.Process, tmp_path: Path) -> dict[str, Any]:
    """Arguments that make of the preset a scheduler and two workers on this machine."""
    (listener,) = (one for one in sshd.net_connections() if one.status == psutil.CONN_LISTEN)
    return {
        "hosts": ["127.0.0.1"] * 3,
        # The fixture's own key, and a host that nobody has met: not for a network.
        "connect_options": {
            "port": listener.laddr.port,
            "username": getpass.getuser(),
            "client_keys": [str(tmp_path / "key")],
            "known_hosts": None,
            "config": [],
        },
        "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
        "worker_options": {"host": "127.0.0.1", "env": TORCH_THREADS},
    }


def test_ssh_publishes_what_local_does(by_ssh: dict[str, Any], chips: Path, tmp_path: Path, local_sha256: str) -> None:
    assert embed(chips, tmp_path / "ssh", "ssh", by_ssh) == local_sha256


def test_ssh_workers_are_processes_of_sshd_and_end_with_the_cluster(
    sshd: psutil.Process, by_ssh: dict[str, Any]
) -> None:
    with connect("ssh", arguments=by_ssh) as client:
        client.wait_for_workers(2, timeout=60)
        workers = client.run(os.getpid)
        assert set(workers.values()) <= {process.pid for process in sshd.children(recursive=True)}
        assert set(client.nthreads().values()) == {2}
        assert set(client.run(os.getenv, "DASK_DASKEMBED__TORCH_THREADS").values()) == {"1"}
        limits = {one["memory_limit"] for one in client.scheduler_info()["workers"].values()}
        # Not the share that two threads are of the cores.
        assert limits == {int(0.9 * MEMORY_LIMIT)}
        started = sshd.children(recursive=True)
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []


def test_ssh_that_lets_nobody_in(by_ssh: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("")
    with pytest.raises(InputError) as caught, connect("ssh", arguments=by_ssh):
        pass
    message = str(caught.value)
    assert message.startswith("the cluster 'ssh' did not start: ")
    assert "Permission denied" in message
    assert "name the machines in `hosts` of a copy of this file" in message


# What the others ask for


def class_of(name: str) -> Any:
    preset = read_preset(name)
    if not is_installed(preset):
        pytest.skip(f"needs {preset['install']}, which is not installed")
    module, _, attribute = preset["class"].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_sound(name: str) -> None:
    preset = read_preset(name)
    assert preset["description"]
    assert isinstance(preset["shares_files"], bool)
    assert name == "local" or preset["install"]
    signature = inspect.signature(class_of(name))
    signature.bind(**preset.get("arguments", {}))


def test_slurm_asks_for_a_gpu_a_job() -> None:
    slurm = class_of("slurm")
    with slurm(**read_preset("slurm")["arguments"] | {"n_workers": 0, "scheduler_options": {"host": "127.0.0.1"}}) as cluster:
        script = cluster.job_script().splitlines()
    assert {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")} == {
        "-J dask-worker",
        "-n 1",
        "--cpus-per-task=8",
        "--mem=15G",
        "-t 04:00:00",
        "--gres=gpu:1",
    }
    (command,) = [line for line in script if "dask_worker" in line]
    assert " tcp://127.0.0.1:" in command
    assert " --nthreads 2 " in command
    assert " --nworkers " not in command
    assert command.endswith(" --lifetime 230m --lifetime-stagger 5m")


def test_kubernetes_asks_for_a_gpu_a_worker_as_the_operator_wants_it() -> None:
    manifest = read_preset("kubernetes")["arguments"]["custom_cluster_spec"]
    (worker,) = manifest["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["args"][2:4] == ["--nthreads", "2"]
    (scheduler,) = manifest["spec"]["scheduler"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in scheduler["resources"]["limits"]
    assert manifest["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == manifest["metadata"]["name"]
    package = Path(inspect.getfile(class_of("kubernetes"))).parents[1]
    (definition,) = package.parent.glob("**/helm/**/crds/daskcluster.yaml")
    (version,) = yaml.safe_load(definition.read_text())["spec"]["versions"]
    assert manifest["apiVersion"] == f"kubernetes.dask.org/{version['name']}"
    schema = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(manifest, schema)
    worker["resources"]["limits"] = "1 GPU"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


def test_coiled_pays_for_nothing_that_nobody_uses() -> None:
    arguments = read_preset("coiled")["arguments"]
    assert arguments["idle_timeout"]
    assert arguments["scheduler_gpu"] is False
    assert arguments["spot_policy"] == "spot_with_fallback"
    assert arguments["worker_options"] == {"nthreads": 2}
    names = inspect.signature(class_of("coiled").__init__).parameters
    assert arguments.keys() <= names.keys()
