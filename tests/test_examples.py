"""The examples, run as they stand on small inputs."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

import daskembed

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a cluster within this process; not the default one, as none of the package's is."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def done_on(client: Client) -> int:
    """Tasks that the cluster of a client has computed."""
    done: int = client.run_on_scheduler(
        lambda dask_scheduler: sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values())
    )
    return done


def test_embeddings_are_made_on_the_cluster(
    client: Client, chips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daskembed.clusters.connection.connect", lambda cluster: contextlib.nullcontext(client))
    before = done_on(client)
    run_example("make_embeddings.py", str(chips), "--chips", "2", monkeypatch=monkeypatch)
    assert "computed    float32 of shape (2, 16, 16, 256)" in capsys.readouterr().out
    assert done_on(client) > before


@pytest.mark.parametrize(
    ("level", "says"), [("mean", "each 256\n"), ("patch", "nearest patches of patch (8, 8) of that chip")]
)
def test_published_files_are_used(
    level: str,
    says: str,
    client: Client,
    chips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = daskembed.run(
        "33TUL", source=str(chips), output=str(tmp_path), checkpoint="untrained:tiny", level=level, cluster=client
    )
    assert done.exit_status == 0
    run_example("use_embeddings.py", str(tmp_path), monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert printed.startswith(f"4 chips in {tmp_path}, each ")
    assert says in printed
    assert len([line for line in printed.splitlines() if line.lstrip().startswith("claytile_33TUL")]) >= 3
