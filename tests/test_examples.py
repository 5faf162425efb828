"""The examples, run as they stand on small inputs."""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

import daskembed
from daskembed.cli.parser import make_parser

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


def fake_command(folder: Path, body: str) -> dict[str, str]:
    """An environment in which ``daskembed`` is a few lines of shell."""
    folder.mkdir()
    (folder / "daskembed").write_text(f"#!/bin/sh\necho \"$*\" >> '{folder}/asked'\n{body}\n")
    (folder / "daskembed").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("keys", [{}, {"AWS_ACCESS_KEY_ID": "mine"}], ids=["without keys", "with keys"])
def test_all_catalogues_are_tried_and_told(keys: dict[str, str], tmp_path: Path) -> None:
    """Never the public ones: what the script types is written down, and answered as servers might."""
    shell = fake_command(tmp_path / "bin", "case $1 in run) echo 'daskembed: stopped: no route' >&2; exit 1;; esac")
    script = [str(EXAMPLES / "try_catalogues.sh"), str(tmp_path / "out"), "12.70,45.60,12.71,45.61"]
    done = subprocess.run(["sh", *script], env=shell | keys, capture_output=True, text=True, timeout=60)
    asked = [shlex.split(line) for line in (tmp_path / "bin/asked").read_text().splitlines()]
    for words in asked:
        make_parser().parse_args(words)
    tried = [(words[0], words[words.index("--source") + 1], words[words.index("--encoder") + 1]) for words in asked]
    names = ["earth-search", "planetary-computer", "planetary-computer", "cdse"]
    encoders = ["clay-v1.5", "clay-v1.5", "clay-v0", "clay-v1.5"]
    pairs = list(zip(names, encoders, strict=True))
    runs = pairs if keys else pairs[:-1]
    assert sorted(tried) == sorted([("scenes", *pair) for pair in pairs] + [("run", *pair) for pair in runs])
    assert done.returncode == 1
    assert done.stdout.count("status 1") == len(runs)
    assert done.stdout.count("stopped: no route") == len(runs)
    assert ("not tried: its files need AWS_ACCESS_KEY_ID" in done.stdout) is not bool(keys)
    assert (tmp_path / "out/report.txt").read_text() == done.stdout


def test_a_catalogue_that_answers_is_told_so(tmp_path: Path) -> None:
    shell = fake_command(tmp_path / "bin", "exit 0") | {"AWS_ACCESS_KEY_ID": "mine"}
    script = [str(EXAMPLES / "try_catalogues.sh"), str(tmp_path / "out")]
    done = subprocess.run(["sh", *script], env=shell, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.count("  ok ") == 12
    assert "validate" in (tmp_path / "bin/asked").read_text()
