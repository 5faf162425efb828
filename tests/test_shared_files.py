"""Workers that do not see this machine's files: processes in a mount namespace of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from embedded import MADE, write_rows

import daskembed
from daskembed.errors import InputError
from daskembed.runs.results import Progress
from daskembed.runs.shared_files import MOST_SENT
from daskembed.storage.stores import Storage
from daskembed.testing import write_checkpoint

pytestmark = pytest.mark.usefixtures("small_blocks")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
PATCH = "import daskembed.hardware as d; d.native_precision = lambda: 'fp32'; d.{0} = lambda: d.Hardware(*{1})"


@dataclass
class Elsewhere:
    """A scheduler here, and workers that find an empty folder where this machine has `hidden`; one of them is there."""

    cluster: LocalCluster
    client: Client
    hidden: Path
    mine: Path
    """A folder in it, of one test."""
    theirs: Path

    @contextlib.contextmanager
    def worker(self, *flags: str) -> Iterator[None]:
        """One more."""
        address = self.cluster.scheduler_address
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2", *flags]
        command += ["--no-dashboard", "--no-nanny", "--local-directory", str(self.theirs)]
        env = os.environ | {"DASK_DASKEMBED__TORCH_THREADS": "1", "XDG_CACHE_HOME": str(self.theirs / "cache")}
        command = [*NAMESPACE, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(self.hidden), *command]
        before = len(self.running)
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._wait_for(before + 1)
            yield
        finally:
            process.kill()
            process.wait()
            self._wait_for(before)

    @contextlib.contextmanager
    def worker_here(self) -> Iterator[None]:
        """One more, which sees what this machine has."""
        before = len(self.running)
        self.cluster.scale(1)
        try:
            self._wait_for(before + 1)
            yield
        finally:
            self.cluster.scale(0)
            self._wait_for(before)

    def _wait_for(self, workers: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.running) != workers:
            assert time.monotonic() < deadline, f"{len(self.running)} workers, expected {workers}"
            time.sleep(0.05)

    @property
    def running(self) -> set[str]:
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        return {address for address, worker in workers.items() if worker["status"] == "running"}

    @property
    def sent(self) -> list[str]:
        return [path.name for path in self.theirs.rglob("*.sent")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[Elsewhere]:
    if sys.platform != "linux" or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare, and the right to a mount namespace of one's own")
    hidden, theirs = tmp_path_factory.mktemp("hidden"), tmp_path_factory.mktemp("theirs")
    # In this process, but reached as from elsewhere.
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        fleet = Elsewhere(cluster, client, hidden, hidden, theirs)
        with fleet.worker():
            yield fleet


@pytest.fixture
def elsewhere(fleet: Elsewhere, request: pytest.FixtureRequest) -> Elsewhere:
    mine = fleet.hidden / request.node.name
    mine.mkdir()
    return replace(fleet, mine=mine)


@pytest.fixture
def remote(s3: str, chips: Path) -> str:
    """The chips on an object store."""
    store = Storage(f"{s3}/tiles")
    for path in (chips / "33TUL" / "2019-04-16").iterdir():
        store.put(f"33TUL/2019-04-16/{path.name}", path.read_bytes())
    return f"{s3}/tiles"


def published(output: Path) -> bytes:
    (file,) = output.glob("*.gpq")
    return file.read_bytes()


def test_weights_go_there_once_and_parts_come_back(elsewhere: Elsewhere, remote: str, tmp_path: Path) -> None:
    weights, output = write_checkpoint(elsewhere.mine / "tiny.ckpt"), elsewhere.mine / "out"
    job: dict[str, Any] = {"source": remote, "checkpoint": str(weights), "precision": "fp32"}
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as here:
        daskembed.run("33TUL", output=str(tmp_path / "here"), cluster=here, **job)
    result = daskembed.run("33TUL", output=str(output), cluster=elsewhere.client, **job)
    assert (result.exit_status, result.encoded) == (0, 4)
    assert elsewhere.sent == [f"{daskembed.load_encoder(str(weights)).sha256}.sent"]
    assert published(output) == published(tmp_path / "here")
    assert sorted(path.name for path in (output / "_daskembed").iterdir()) == ["receipts", "rows"]
    again = daskembed.run("33TUL", output=str(output), cluster=elsewhere.client, **job)
    assert again.tiles[0].status == "skipped"
    # The next worker was not there when they were sent.
    for sent in elsewhere.theirs.rglob("*.sent"):
        sent.unlink()
    with elsewhere.worker():
        assert len(elsewhere.sent) == 1


def test_an_interrupted_run_keeps_the_parts_that_came_back(elsewhere: Elsewhere, remote: str) -> None:
    def interrupt(state: Progress) -> None:
        if state.encoded:
            raise KeyboardInterrupt

    job: dict[str, Any] = {"source": remote, "checkpoint": "untrained:tiny", "output": str(elsewhere.mine / "out")}
    stopped = daskembed.run("33TUL", cluster=elsewhere.client, progress=interrupt, **job)
    assert (stopped.exit_status, stopped.encoded) == (130, 2)
    assert len(list((elsewhere.mine / "out" / "_daskembed" / "parts").rglob("*.parquet"))) == 1
    rest = daskembed.run("33TUL", cluster=elsewhere.client, **job)
    assert (rest.exit_status, rest.encoded, rest.chips) == (0, 2, 4)
    assert not (elsewhere.mine / "out" / "_daskembed" / "parts").exists()


def test_one_worker_that_does_not_see_the_output_is_enough(elsewhere: Elsewhere, remote: str) -> None:
    with elsewhere.worker_here():
        job = {"source": remote, "checkpoint": "untrained:tiny", "output": str(elsewhere.mine / "out")}
        result = daskembed.run("33TUL", cluster=elsewhere.client, **job)
        assert (result.exit_status, result.chips) == (0, 4)


def test_large_embeddings_are_announced(elsewhere: Elsewhere, remote: str, caplog: pytest.LogCaptureFixture) -> None:
    job = {"source": remote, "checkpoint": "untrained:tiny", "output": str(elsewhere.mine / "out")}
    with caplog.at_level(logging.WARNING):
        daskembed.run("33TUL", cluster=elsewhere.client, level="group", **job)
    # 6 x 16 x 16 vectors of 256 float32 each.
    assert [record.getMessage() for record in caplog.records if record.name.startswith("daskembed")] == [
        f"warning: the workers do not see {elsewhere.mine / 'out'}, so 1.6 MB a chip come back through this machine, "
        "1 GB for 1 full tiles: an `output` on an object store spares that"
    ]


def test_chips_of_this_machine_are_refused(elsewhere: Elsewhere, chips: Path) -> None:
    source = elsewhere.mine / "chips"
    source.symlink_to(chips)
    job = {"source": str(source), "checkpoint": "untrained:tiny", "output": str(elsewhere.mine / "out")}
    with pytest.raises(InputError) as caught:
        daskembed.run("33TUL", cluster=elsewhere.client, **job)
    worker = next(iter(elsewhere.client.scheduler_info()["workers"]), "tcp://")
    assert str(caught.value).startswith(
        f"the source {source} is a folder of this machine, which the workers do not see ({worker}"
    )
    assert not list((elsewhere.mine / "out").glob("*.gpq"))


def test_checkpoints_too_large_to_be_sent_are_refused(
    elsewhere: Elsewhere, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_SENT < 2**31
    monkeypatch.setattr("daskembed.runs.shared_files.MOST_SENT", 1000)
    weights = write_checkpoint(elsewhere.mine / "tiny.ckpt", seed=1)  # which no worker has
    job = {"source": remote, "checkpoint": str(weights), "output": str(elsewhere.mine / "out")}
    with pytest.raises(InputError, match=r"more than 2 GB cannot be sent to them; give its URL"):
        daskembed.run("33TUL", cluster=elsewhere.client, **job)


def test_a_mixed_fleet_works_and_says_so(elsewhere: Elsewhere, remote: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(PATCH.format("hardware", ("NVIDIA A10G", 23 * 2**30, "fp32", 4)))
    told: list[str] = []
    with elsewhere.worker("--preload", str(other)):
        result = daskembed.run(
            "33TUL",
            source=remote,
            checkpoint="untrained:tiny",
            output=str(tmp_path / "out"),
            cluster=elsewhere.client,
            progress=lambda state: told.append(state.workers),
        )
    assert result.exit_status == 0
    (line,) = set(told)
    assert line.startswith("1 x CPU (")
    assert line.endswith(", 1 x NVIDIA A10G (23 GiB, fp32) (a mixed fleet: each block goes to whoever is free)")
    # What all of them compute natively.
    receipt = next((tmp_path / "out" / "_daskembed" / "receipts").iterdir()).read_text()
    assert '"precision": "fp32"' in receipt


def test_chips_of_this_machine_are_refused_before_a_cluster_starts(chips: Path, tmp_path: Path) -> None:
    preset = tmp_path / "far.yaml"
    preset.write_text("class: distributed.LocalCluster\nshares_files: false\n")
    with pytest.raises(InputError, match=r"which the workers do not see \(of the cluster '.*far.yaml'\)"):
        daskembed.run(
            "33TUL", source=str(chips), checkpoint="untrained:tiny", output=str(tmp_path / "out"), cluster=str(preset)
        )


def test_a_search_asks_whether_the_workers_see_the_files(elsewhere: Elsewhere, tmp_path: Path) -> None:
    write_rows(elsewhere.mine / "a.parquet", np.eye(20, 4, dtype=np.float32), made=MADE)
    asked: dict[str, Any] = {"output": str(elsewhere.mine), "like": (12.01, 44.99), "k": 3}
    with pytest.raises(
        InputError, match=rf"{elsewhere.mine} is a folder of this machine, which the workers do not see"
    ):
        daskembed.search(**asked, cluster=elsewhere.client)
    assert [one.name for one in elsewhere.mine.iterdir()] == ["a.parquet"]


def test_a_search_looks_before_a_cluster_starts(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows" / "a.parquet", np.eye(20, 4, dtype=np.float32), made=MADE)
    preset = tmp_path / "far.yaml"
    preset.write_text("class: distributed.LocalCluster\nshares_files: false\n")
    for like, message in (((60, 45), "is outside of all rows"), ((12.01, 44.99), "of the cluster '.*far.yaml'")):
        with pytest.raises(InputError, match=message):
            daskembed.search(str(tmp_path / "rows"), like=like, cluster=str(preset))
