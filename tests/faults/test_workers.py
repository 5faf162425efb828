"""Workers that die, join and vanish: nothing is lost, and no innocent tile or chip pays for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio
from conftest import HERE, TILES, Command, receipt
from distributed import Client, LocalCluster

import daskembed
from daskembed.errors import ClusterLostError, SickMachineError
from daskembed.runs import deadly_chips as trial
from daskembed.runs import fleet, stages
from daskembed.runs import window as flow
from daskembed.runs.blocks import BlockSuspects
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.results import Event, Progress
from daskembed.runs.tiles import resolve
from daskembed.testing import write_chips

TINY: dict[str, Any] = {"checkpoint": "untrained:tiny", "precision": "fp32"}


@pytest.fixture(autouse=True)
def _counting(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DASKEMBED__ENCODER", "faults.counting")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process names the encoder as the workers do."""
    import dask

    monkeypatch.syspath_prepend(HERE.parent)
    with dask.config.set({"daskembed.encoder": "faults.counting"}):
        yield


@contextlib.contextmanager
def cluster(workers: int, **env: str) -> Iterator[tuple[LocalCluster, Client]]:
    """Worker processes with the counting encoder."""
    import dask

    env = {"PYTHONPATH": str(HERE.parent), "DASK_DASKEMBED__TORCH_THREADS": "1"} | env
    with dask.config.set(flow.DASK_CONFIG):
        started = LocalCluster(n_workers=workers, threads_per_worker=2, dashboard_address=None, env=env)
        try:
            with Client(started) as client:
                yield started, client
        finally:
            close(started)


def close(started: LocalCluster) -> None:
    """Close it. Dask's nanny of a worker that was killed as it came up waits for ever, unless its process is gone."""
    closing = threading.Thread(target=started.close, daemon=True)
    closing.start()
    closing.join(20)
    if closing.is_alive():
        for nanny in started.workers.values():
            if pid := nanny.pid:
                os.kill(pid, signal.SIGKILL)
    closing.join(60)
    assert not closing.is_alive()


def digests(output: Path) -> dict[str, str]:
    """Name -> SHA-256 of the published files."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.glob("*.gpq")}


def pids(client: Client) -> list[int]:
    """Of the workers."""
    return list(client.run(os.getpid).values())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tiles", [2, pytest.param(8, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_a_worker_killed_every_few_seconds(tmp_path: Path, tiles: int) -> None:
    names = ["33TUK", "33TUL", "33TUM", "33TVL", "33TVM", "33TWM", "33TWL", "22JGS"][:tiles]
    for number, name in enumerate(names):
        write_chips(tmp_path / "chips", tile=name, rows=1, cols=4, seed=number)
    options: dict[str, Any] = {"source": str(tmp_path / "chips"), **TINY}
    with cluster(2) as (_, client):
        assert daskembed.run(names, output=str(tmp_path / "calm"), cluster=client, **options).exit_status == 0
    chance, kills, ended = random.Random(8), 0, threading.Event()
    with cluster(2, COUNTING_SLEEP="0.7") as (running, client):

        def kill() -> None:
            nonlocal kills
            while not ended.wait(3):
                workers = list(running.scheduler.workers.values())
                # However slow the machine, one of the two is to come so far that it does some work, and what is looked
                # for after three deaths comes to an end.
                if len(workers) == 2 and kills < 2 * tiles:
                    ports = {int(w.address.rpartition(":")[2]) for w in workers}
                    listening = [
                        child
                        for child in psutil.Process().children(recursive=True)
                        if child.is_running() and ports & {c.laddr.port for c in child.net_connections() if c.laddr}
                    ]
                    if listening:
                        chance.choice(listening).kill()
                        kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            result = daskembed.run(names, output=str(tmp_path / "out"), cluster=client, **options)
        finally:
            ended.set()
            killer.join()
    assert kills
    assert (result.exit_status, result.quarantined, len(result.tiles)) == (0, {}, tiles), result.tiles
    assert digests(tmp_path / "out") == digests(tmp_path / "calm")


@pytest.mark.usefixtures("small")
def test_workers_that_dask_gives_up_are_started_anew(
    small_tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    monkeypatch.setattr(fleet, "WORKER_TIMEOUT", 30)
    given_up: list[Any] = []
    scaled: list[int] = []
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "500ms"}), cluster(1) as (running, client):

        def give_up(state: Progress) -> None:
            if not given_up:
                # What becomes of a nanny when its worker dies at its start.
                given_up.append(running.workers[0])
                # What it takes a number for differs: where a job has two workers, it would end half of them.
                monkeypatch.setattr(running, "scale", scaled.append)
                running.sync(running.workers[0].close)

        result = daskembed.run(
            "33TUL", source=str(small_tiles), output=str(tmp_path), cluster=client, progress=give_up, **TINY
        )
        assert running.workers[0] not in given_up
        assert not scaled
        monkeypatch.undo()  # closing scales to 0
    assert (result.exit_status, result.chips) == (0, 5)


@pytest.mark.usefixtures("small")
def test_chips_that_kill_are_found_and_the_rest_is_as_without_them(small_tiles: Path, tmp_path: Path) -> None:
    chips = sorted((small_tiles / "33TUL").rglob("*.tif"))
    for chip in chips:
        target = tmp_path / "chips/33TUL" / chip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(chip.read_bytes())
    deadly = {chips[1].name: (64661.0, "SIGSEGV"), chips[4].name: (64662.0, "SIGKILL")}
    for name, (mark, _) in deadly.items():
        with rasterio.open(tmp_path / "chips/33TUL" / name, "r+") as dataset:
            pixels = dataset.read()
            pixels[0, 0, 0] = mark
            dataset.write(pixels)
    with cluster(1) as (_, client):
        options: dict[str, Any] = {"source": str(tmp_path / "chips"), "cluster": client, **TINY}
        result = daskembed.run("33TUL", output=str(tmp_path / "out"), **options)
        for name in deadly:
            (tmp_path / "chips/33TUL" / name).unlink()
        daskembed.run("33TUL", output=str(tmp_path / "two"), **options)
    assert result.exit_status == 3, result.tiles
    assert {Path(url).name: reason for url, reason in result.quarantined.items()} == {
        name: f"ends the process that reads or embeds it ({signal_name}), each time"
        for name, (_, signal_name) in deadly.items()
    }
    assert receipt(tmp_path / "out", "33TUL")["chips"] == 3
    one, two = (daskembed.open_embeddings(str(tmp_path / out)).compute() for out in ("out", "two"))
    assert [Path(url).name for url in one["source_url"]] == [Path(url).name for url in two["source_url"]]
    np.testing.assert_array_equal(np.stack(one["embeddings"]), np.stack(two["embeddings"]))


def one_block(chips: Path, output: Path) -> BlockSuspects:
    """The chips of the first block of 33TUL, for the counting encoder."""
    options = {"source": str(chips), "output": str(output), **TINY}
    chosen = resolve(Options.of(options, RunOptions))("fp32")
    found = stages.index(chosen, "33TUL", None, [])
    assert found is not None
    return BlockSuspects(found[1][0], chosen.encoder, chosen.level)


@pytest.mark.usefixtures("small")
def test_where_a_process_dies_without_a_chip_none_is_condemned(
    small_tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a limit of memory that has room for one copy of the model."""
    suspects = one_block(small_tiles, tmp_path)
    monkeypatch.setenv("COUNTING_LIMIT_MB", "1")
    monkeypatch.setenv("COUNTING_SLEEP", "60")
    with pytest.raises(MemoryError, match="memory is short: the process that tries chips"):
        trial.deadly_chips(suspects)
    monkeypatch.delenv("COUNTING_LIMIT_MB")
    monkeypatch.setattr(trial, "START_LIMIT", 3)
    with pytest.raises(SickMachineError, match="the process that tries chips does not start: takes longer than 3 s"):
        trial.deadly_chips(suspects)


@pytest.mark.long
@pytest.mark.usefixtures("small")
def test_a_chip_that_hangs_is_found(small_tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    write_chips(tmp_path / "chips", tile="33TUL", rows=1, cols=2)
    hanging, _ = sorted((tmp_path / "chips").rglob("*.tif"))
    with rasterio.open(hanging, "r+") as dataset:
        pixels = dataset.read()
        pixels[0, 0, 0] = 64663
        dataset.write(pixels)
    suspects = one_block(tmp_path / "chips", tmp_path / "out")
    monkeypatch.setattr(trial, "CHIP_LIMIT", 8)
    with dask.config.set({"daskembed.retry-timeout": 0}):
        found = trial.deadly_chips(suspects)
    assert {Path(url).name: why for url, why in found.items()} == {
        hanging.name: "is not read and embedded within 8 s, each time"
    }


@pytest.mark.usefixtures("small")
def test_short_memory_takes_less_before_a_tile_fails(tmp_path: Path) -> None:
    write_chips(tmp_path / "chips", tile="33TUL", rows=3, cols=4)
    import dask

    # Of the arrays of ten chips held at once, 185 MB were counted; of five, 104 MB. Readers of a machine that is busy
    # elsewhere need the long first batch to get so far ahead, or the third worker may live.
    env = {"COUNTING_LIMIT_MB": "145", "COUNTING_FIRST_SLEEP": "3"}
    happened: list[Event] = []
    with dask.config.set({"daskembed.chips-a-block": 12}), cluster(1, **env) as (_, client):
        result = daskembed.run(
            "33TUL",
            source=str(tmp_path / "chips"),
            output=str(tmp_path / "out"),
            cluster=client,
            events=happened.append,
            **TINY,
        )
    assert (result.exit_status, result.chips, result.quarantined) == (0, 12, {}), result.tiles
    assert any(event.event == "retried" for event in happened), "the limit was never met: the test proves nothing"


@pytest.mark.usefixtures("small")
def test_a_worker_that_joins_helps(small_tiles: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with cluster(1, COUNTING_SLEEP="0.5") as (running, client):
        at_work: set[str] = set()

        def join(state: Progress) -> None:
            if state.encoded and len(running.workers) == 1:
                running.scale(2)
            at_work.update(w.address for w in running.scheduler.workers.values() if w.processing)

        result = daskembed.run(
            list(TILES), source=str(small_tiles), output=str(tmp_path / "out"), cluster=client, progress=join, **TINY
        )
    assert result.exit_status == 0
    assert len(at_work) == 2
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("comes_back", [True, False])
def test_the_loss_of_all_workers_waits_and_then_stops(
    comes_back: bool, small_tiles: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "WORKER_TIMEOUT", 60 if comes_back else 3)
    alone: list[bool] = []
    with cluster(1, COUNTING_SLEEP="0.3") as (running, client):

        def lose(state: Progress) -> None:
            if state.encoded and not alone:
                alone.append(False)
                running.scale(0)
            if state.notice and not alone[-1]:
                alone.append(True)
                if comes_back:
                    running.scale(1)

        def run() -> daskembed.RunResult:
            return daskembed.run(
                list(TILES),
                source=str(small_tiles),
                output=str(tmp_path / "out"),
                cluster=client,
                progress=lose,
                **TINY,
            )

        if comes_back:
            assert run().exit_status == 0
        else:
            with pytest.raises(ClusterLostError, match="none came within 3 s"):
                run()
            assert digests(tmp_path / "out").items() <= undisturbed.items()
            running.scale(1)
            assert run().exit_status == 0
    assert alone == [False, True]
    assert digests(tmp_path / "out") == undisturbed


def test_a_worker_killed_during_a_cube(small_tiles: Path, tmp_path: Path) -> None:
    def die_once(mark: str) -> None:
        """On a worker: have it die of the first shard that is written anywhere."""
        from daskembed.runs import cube_stages

        encode = cube_stages.encode_shard

        def die(block: np.ndarray) -> bytes:
            if not Path(mark).exists():
                Path(mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(block)

        cube_stages.encode_shard = die

    events: list[Event] = []
    with cluster(1) as (running, client):

        def write(output: Path) -> tuple[int, Any]:
            result = daskembed.write_cubes(
                "33TUL", source=str(small_tiles), output=str(output), cluster=client, events=events.append
            )
            return result.exit_status, json.loads((output / "_daskembed/cubes/33TUL.json").read_text())["sha256"]

        running.scheduler.allowed_failures = 0  # the scheduler gives a task back of which one worker died
        client.run(die_once, str(tmp_path / "died"))
        disturbed = write(tmp_path / "out")
        stages = {event.stage for event in events if event.event == "retried"}
        notices = [event.reason for event in events if event.event == "notice"]
        assert disturbed == write(tmp_path / "calm")
    assert disturbed[0] == 0
    assert "write" in stages
    assert any(" is gone: the " in str(line) for line in notices), notices


def test_an_error_of_our_own_is_told_once_without_tracebacks(command: Command) -> None:
    state = command.output / "_daskembed"
    state.mkdir(parents=True)
    (state / "parts").write_text("a file where the parts' folder should be")
    status, text = command.run()
    assert status == 4, text
    assert "Not a directory" in text
    assert "Traceback" not in text
    assert "Compute Failed" not in text
