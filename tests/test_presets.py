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
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import jsonschema
import psutil
import pytest
import yaml
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

import daskembed
from daskembed.clusters.connection import connect
from daskembed.clusters.presets import is_installed, presets, read_preset
from daskembed.errors import InputError

REPOSITORY = Path(__file__).parent.parent
TORCH_THREADS = {"DASK_DASKEMBED__TORCH_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with dask.config.set({"daskembed.chips-a-block": 2}):
        yield


def embed(chips: Path, output: Path, cluster: str | Client, arguments: dict[str, Any] | None = None) -> str:
    """SHA-256 of the published file of 2 x 2 chips, embedded on a cluster."""
    job: dict[str, Any] = {"checkpoint": "untrained:tiny", "precision": "fp32", "source": str(chips)}
    result = daskembed.run("33TUL", output=str(output), cluster=cluster, cluster_arguments=arguments, **job)
    assert (result.exit_status, result.encoded) == (0, 4)
    (file,) = output.glob("*.gpq")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def local_sha256(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the file that `local` publishes with one torch thread a worker."""
    arguments = {"n_workers": 1, "env": TORCH_THREADS, "dashboard_address": "127.0.0.1:0"}
    return embed(chips, tmp_path_factory.mktemp("local"), "local", arguments)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def await_state(there: Callable[[], object], what: str) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come")


# ssh


def listens_on(process: psutil.Process) -> list[int]:
    return [one.laddr.port for one in process.net_connections() if one.status == psutil.CONN_LISTEN]


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
    sshd = psutil.Process(process.pid)
    await_state(lambda: listens_on(sshd), "sshd")
    yield sshd
    process.terminate()
    process.wait()
    log.close()


@pytest.fixture
def by_ssh(sshd: psutil.Process, tmp_path: Path) -> dict[str, Any]:
    """Arguments that make of the preset a scheduler and two workers on this machine."""
    return {
        "hosts": ["127.0.0.1"] * 3,
        # The fixture's own key, and a host that nobody has met: not for a network.
        "connect_options": {
            "port": listens_on(sshd)[0],
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
    with connect("ssh", cluster_arguments=by_ssh) as client:
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
    with pytest.raises(InputError) as caught, connect("ssh", cluster_arguments=by_ssh):
        pass
    message = str(caught.value)
    assert message.startswith("the cluster 'ssh' did not start: ")
    assert "Permission denied" in message
    assert "name the machines in `hosts` of a copy of the preset" in message


def test_ssh_of_which_a_worker_is_refused(sshd: psutil.Process, by_ssh: dict[str, Any]) -> None:
    wrong = by_ssh["connect_options"] | {"port": free_port()}
    by_ssh |= {"hosts": ["127.0.0.1"] * 2, "connect_options": [by_ssh["connect_options"], wrong]}
    with pytest.raises(InputError, match=r"^the cluster 'ssh' did not start: .*Connect call failed"):
        connect("ssh", cluster_arguments=by_ssh).__enter__()
    await_state(lambda: not sshd.children(recursive=True), "the end of the scheduler")


# slurm


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Slurm whose `sbatch` takes the jobs for which there is a file `free` in this folder, and refuses others."""
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue, which is not installed")
    refused = "sbatch: error: Batch job submission failed: Requested node configuration is not available"
    for name, lines in {
        "sbatch": f'rm "{tmp_path}/free" 2>/dev/null || {{ echo "{refused}" >&2; exit 1; }}\n'
        'echo "Submitted batch job 7"',
        "scancel": f'echo "$@" >> "{tmp_path}/cancelled"',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


LOCAL_SCHEDULER = {"scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}


@pytest.mark.parametrize("workers", [None, 2, "1..3"])
def test_slurm_that_takes_no_job_says_why(
    sbatch: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, workers: int | str | None
) -> None:
    with pytest.raises(InputError) as caught:
        connect("slurm", cluster_arguments=LOCAL_SCHEDULER, workers=workers).__enter__()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("the cluster 'slurm' did not start, its workers were refused: ")
    assert "sbatch: error: Batch job submission failed: Requested node configuration is not available; see" in message
    assert "`daskembed clusters --copy slurm my-slurm.yaml`" in message
    # Neither Dask's tracebacks, nor a cluster that could not be closed.
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    assert "Traceback" not in capfd.readouterr().err


def test_slurm_that_takes_one_job_of_two_goes_on_with_it(sbatch: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sbatch / "free").touch()
    with connect("slurm", cluster_arguments=LOCAL_SCHEDULER, workers=2) as client:
        (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert said.startswith("warning: the cluster 'slurm' has 1 of 2 workers, the others were refused: RuntimeError")
        assert client.cluster.job_script()
    assert (sbatch / "cancelled").read_text() == "7\n"


def test_slurm_that_refuses_a_later_job_says_so(sbatch: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sbatch / "free").touch()
    with connect("slurm", cluster_arguments=LOCAL_SCHEDULER, workers=1) as client:
        client.cluster.scale(3)
        await_state(lambda: [record for record in caplog.records if record.levelname == "WARNING"], "a warning")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("warning: the cluster could not start a worker: RuntimeError: Command exited")
    assert (sbatch / "cancelled").read_text() == "7\n"


def test_slurm_job_script() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue, which is not installed")
    arguments = read_preset("slurm")["arguments"]
    arguments.pop("n_workers")
    arguments.pop("scheduler_options")
    job = jobqueue.SLURMCluster.job_cls("tcp://10.0.0.1:8786", name="worker", python="python", **arguments)
    assert [line for line in job.job_script().splitlines() if line] == [
        "#!/usr/bin/env bash",
        "#SBATCH -J daskembed",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=32G",
        "#SBATCH -t 04:00:00",
        "#SBATCH --gres=gpu:1",
        "python -m distributed.cli.dask_worker tcp://10.0.0.1:8786 --name worker --nthreads 2 --memory-limit 32.00GiB "
        "--nanny --death-timeout 60",
    ]


def squeue(state: str) -> set[str]:
    """Ids of Slurm's jobs in a state."""
    command = ["squeue", "--noheader", "--format=%i", f"--states={state}"]
    return set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of this test's own on the loopback address, with one node that says it has 16 cores and two GPUs."""
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue, which is not installed")
    path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    daemons = {name: shutil.which(name, path=path) for name in ("munged", "slurmctld", "slurmd")}
    if missing := [name for name, program in daemons.items() if program is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: slurmctld slurmd munge), not installed")
    if os.geteuid() != 0:
        pytest.skip("needs root, as which slurmd starts jobs")
    for folder in ("state", "spool"):
        (tmp_path / folder).mkdir()
    key, socket_path, host = tmp_path / "munge.key", tmp_path / "munge.socket", socket.gethostname().partition(".")[0]
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = free_port(), free_port()
    (tmp_path / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    config = tmp_path / "slurm.conf"
    config.write_text(
        "ClusterName=test\n"
        f"SlurmctldHost={host}(127.0.0.1)\n"
        f"SlurmctldPort={ports[0]}\n"
        f"SlurmdPort={ports[1]}\n"
        f"SlurmUser={getpass.getuser()}\n"
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n"
        f"AuthInfo=socket={socket_path}\n"
        f"StateSaveLocation={tmp_path}/state\n"
        f"SlurmdSpoolDir={tmp_path}/spool\n"
        f"SlurmctldPidFile={tmp_path}/slurmctld.pid\n"
        f"SlurmdPidFile={tmp_path}/slurmd.pid\n"
        # Containers seldom have control groups of their own.
        "ProctrackType=proctrack/pgid\n"
        "TaskPlugin=task/none\n"
        "JobAcctGatherType=jobacct_gather/none\n"
        "AccountingStorageType=accounting_storage/none\n"
        "MpiDefault=none\n"
        "SelectType=select/cons_tres\n"
        "SelectTypeParameters=CR_CPU\n"
        "ReturnToService=2\n"
        "GresTypes=gpu\n"
        # What the preset's jobs ask for, whatever this machine has.
        "SlurmdParameters=config_overrides\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=100000 Gres=gpu:2\n"
        f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(config))
    # By force: pytest's folders are closed to others, whom munged would serve too.
    munge = [f"--{name}-file={tmp_path}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "slurm.log").open("wb")
    try:
        started.append(
            subprocess.Popen(
                [daemons["munged"], "--foreground", "--force", f"--socket={socket_path}", *munge], stderr=log
            )
        )
        await_state(socket_path.exists, "munged")
        started += [subprocess.Popen([daemons[name], "-D"], stderr=log) for name in ("slurmctld", "slurmd")]
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%N"]
        await_state(lambda: subprocess.run(idle, capture_output=True, check=False).stdout.strip(), "a node of Slurm")
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()
        log.close()


def test_slurm_jobs_have_a_gpu_each_publish_what_local_does_and_end(
    slurm: None, chips: Path, tmp_path: Path, local_sha256: str
) -> None:
    arguments = {
        "n_workers": 2,
        "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
        "job_script_prologue": [f"export {name}={value}" for name, value in TORCH_THREADS.items()],
        "log_directory": str(tmp_path / "logs"),
    }
    with connect("slurm", cluster_arguments=arguments) as client:
        client.wait_for_workers(2, timeout=120)
        assert set(client.run(os.getenv, "SLURM_JOB_ID").values()) == squeue("RUNNING")
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["0", "1"]
        assert set(client.nthreads().values()) == {2}
        assert embed(chips, tmp_path / "slurm", client) == local_sha256
    await_state(lambda: not squeue("PENDING,RUNNING,COMPLETING"), "the end of Slurm's jobs")


# coiled


def test_coiled_takes_the_arguments() -> None:
    coiled = pytest.importorskip("coiled", reason="needs coiled, which is not installed")
    from coiled.utils import any_gpu_instance_type

    arguments = read_preset("coiled")["arguments"]
    inspect.signature(coiled.Cluster.__init__).bind(None, **arguments)
    # By these it decides whether the machines get packages for GPUs.
    assert any_gpu_instance_type(arguments["worker_vm_types"])
    assert arguments["worker_options"]["nthreads"] == 2


def test_coiled_is_never_left_running() -> None:
    arguments = read_preset("coiled")["arguments"]
    assert {"idle_timeout", "no_client_timeout"} <= set(arguments)
    # With the name of a cluster that exists, Coiled joins that one and leaves it running.
    assert not {"name", "shutdown_on_close"} & set(arguments)
    assert (arguments["scheduler_gpu"], arguments["spot_policy"]) == (False, "spot_with_fallback")


# kubernetes


def strict(schema: Any) -> Any:
    """A schema that refuses the fields that it does not name, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def test_kubernetes_manifest_fits_the_operators_schema() -> None:
    operator = pytest.importorskip("dask_kubernetes.operator", reason="needs dask-kubernetes, which is not installed")
    (path,) = Path(operator.__file__).parent.glob("deployment/helm/*/crds/daskcluster.yaml")
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    arguments = read_preset("kubernetes")["arguments"]
    inspect.signature(operator.KubeCluster.__init__).bind(None, **arguments)
    own = inspect.signature(operator.make_cluster_spec).parameters
    manifest = operator.make_cluster_spec("test", **{key: arguments[key] for key in set(arguments) & set(own)})
    schema = version["schema"]["openAPIV3Schema"]
    # What every object of Kubernetes has, and no schema says.
    schema["properties"] |= {"apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {"const": "DaskCluster"}}
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(manifest, strict(schema))
    assert (manifest["spec"]["idleTimeout"], manifest["spec"]["worker"]["replicas"]) == (600, 4)
    (worker,) = manifest["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["args"][:4] == ["dask", "worker", "--nthreads", "2"]


def test_kubernetes_workers_find_their_scheduler() -> None:
    command = [*read_preset("kubernetes")["arguments"]["worker_command"], "--host", "127.0.0.1", "--no-dashboard"]
    # The image's PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which(command[0], path=path)
    assert program is not None
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(cluster) as client:
        # What the operator gives to a pod.
        env = os.environ | {"DASK_SCHEDULER_ADDRESS": cluster.scheduler_address}
        process = subprocess.Popen([program, *command[1:]], env=env, stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(1, timeout=60)
            (worker,) = client.scheduler_info()["workers"].values()
        finally:
            process.terminate()
            process.wait()
    assert (worker["nthreads"], worker["memory_limit"]) == (2, int(0.9 * MEMORY_LIMIT))


# all


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_sound(name: str) -> None:
    preset = read_preset(name)
    assert preset["description"]
    assert isinstance(preset["shares_files"], bool)
    assert name == "local" or preset["install"]
    if is_installed(preset):
        module, _, attribute = preset["class"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
