"""What a run shows beside its files: Dask's metrics, the scheduler's page and metrics, the report."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, LocalCluster
from tornado.websocket import websocket_connect

import daskembed
from daskembed import timings
from daskembed.errors import InputError
from daskembed.runs import dashboard
from daskembed.runs.results import Event, Progress
from daskembed.testing import write_chips

TILES = ("33TUL", "33TUM")
TINY = {"checkpoint": "untrained:least:0", "precision": "fp32"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A run on two workers and what could be seen of it while it went, with its cluster still there."""
    folder = tmp_path_factory.mktemp("eyes")
    for tile in TILES:
        write_chips(folder / "chips", tile=tile, rows=2, cols=2)
    states: list[dict[str, Any]] = []
    events: list[Event] = []
    pages: list[str] = []

    def look(state: Progress) -> None:
        pages.append(state.page)
        states.append(get_json(state.page))

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = daskembed.run(
            TILES,
            source=str(folder / "chips"),
            output=str(folder / "out"),
            cluster=client,
            performance_report=str(folder / "report.html"),
            progress=look,
            events=events.append,
            **TINY,
        )
        assert result.exit_status == 0
        scheduler = cluster.scheduler
        wait_until(lambda: get_metrics(scheduler.http_server.port)["daskembed_chips_total"] == 8)
        yield SimpleNamespace(
            client=client, scheduler=scheduler, folder=folder, page=pages[0], states=states, events=events
        )


def wait_until(reached) -> None:
    """Heartbeats take their time; what never comes fails by the suite's timeout."""
    while not reached():
        time.sleep(0.1)


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def get_json(page: str) -> dict[str, Any]:
    return json.loads(get(f"{page}.json"))


def get_metrics(port: int) -> dict[str, float]:
    lines = get(f"http://127.0.0.1:{port}/metrics").splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_dask_names_the_tasks_by_stage_and_tile(seen):
    assert {"index", "embed", "publish"} <= set(seen.scheduler.task_prefixes)
    assert seen.scheduler.task_prefixes["embed"].state_counts["memory"] == 2


def of_run(what: str, output: Path, **label: str) -> str:
    """The name of a metric of a run."""
    labels = sorted({"output": str(output), "version": "001", **label}.items())
    told = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"daskembed_run_{what}{{{told}}}"


def test_dasks_metrics_carry_chips_and_seconds_of_each_stage(seen):
    metrics = seen.scheduler.cumulative_worker_metrics
    assert metrics["execute", "embed", "chips", "count"] == 8
    for stage in timings.STAGES:
        # Of many threads at once: Dask would take them off the task's own.
        unit = "thread-seconds" if stage in ("source", "decode") else "seconds"
        assert metrics["execute", "embed", stage, unit] > 0, stage
    assert metrics["execute", "publish", "write", "seconds"] > 0


def test_a_span_names_the_run(seen):
    (span,) = seen.scheduler.extensions["spans"].find_by_tags("daskembed")
    (run,) = span.children
    assert run.name == ("daskembed", f"{seen.folder / 'out'} v001")
    assert run.cumulative_worker_metrics["execute", "embed", "chips", "count"] == 8


def test_the_page_told_how_far_the_run_was(seen):
    told = get_json(seen.page)["runs"][0]
    assert told.items() >= {"state": "over", "tiles": 2, "done": 2, "chips": 8, "encoded": 8, "failed": 0}.items()
    assert seen.states[0]["stages"][0]["stage"] == "index"
    done = [state["stages"][1]["done"] for state in seen.states]
    assert done == sorted(done)
    assert done[-1] == 2


def test_the_page_knows_each_worker(seen):
    wait_until(lambda: sum(worker["chips"] for worker in get_json(seen.page)["workers"]) == 8)
    state = get_json(seen.page)
    assert {worker["worker"] for worker in state["workers"]} == set(seen.scheduler.workers)
    assert state["chips_per_second"] > 0
    assert 0 < state["device"] <= 1


def test_prometheus_finds_ours_beside_dasks(seen):
    found = get_metrics(seen.scheduler.http_server.port)
    assert found["daskembed_chips_total"] == 8
    for stage in timings.STAGES:
        assert found[f'daskembed_stage_seconds_total{{stage="{stage}"}}'] > 0, stage
    assert found['daskembed_tasks{stage="embed",state="waiting"}'] == 0
    assert {f'daskembed_device_busy_ratio{{worker="{worker}"}}' for worker in seen.scheduler.workers} <= set(found)
    assert found['dask_scheduler_workers{state="idle"}'] == 2
    tiles = {"done": 2, "skipped": 0, "failed": 0, "unfinished": 0, "waiting": 0}
    assert {state: found[of_run("tiles", seen.folder / "out", state=state)] for state in tiles} == tiles
    chips = {"encoded": 8, "quarantined": 0, "rejected": 0, "filled": 0}
    assert {fate: found[of_run("chips", seen.folder / "out", fate=fate)] for fate in chips} == chips


def test_the_end_of_a_run_is_answered_at_once(seen, monkeypatch):
    """The scheduler may be gone before the page asks again."""
    monkeypatch.setattr(dashboard, "PAGE_SECONDS", 3600)
    page = seen.scheduler.plugins["daskembed-page"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(get, f"{seen.page}.json?wait")
        wait_until(lambda: page._waiting)
        seen.client.log_event(dashboard.RUNS, {"run": "short", "client": seen.client.id, "state": "running"})
        seen.client.log_event(dashboard.RUNS, {"run": "short", "client": seen.client.id, "state": "over"})
        runs = json.loads(answer.result())["runs"]
    assert (runs[0]["run"], runs[0]["state"]) == ("short", "over")
    del page._runs["short"]


def test_chips_count_as_their_batches_finish_and_a_lost_workers_only_once(tmp_path):
    """One block of four chips, whose worker stops after the third and is killed there."""
    write_chips(tmp_path / "chips", tile="33TUL", rows=2, cols=2)
    looked: list[dict[str, Any]] = []
    states: list[tuple[int, int]] = []
    said: list[str] = []

    def look(state: Progress) -> None:
        states.append((state.done, state.encoded))
        said[:] = state.said
        if state.done == 3 and not looked:
            wait_until(lambda: get_json(state.page)["runs"][0]["encoded"] == 3)
            looked.append(get_json(state.page)["runs"][0])
            looked.append(get_metrics(cluster.scheduler.http_server.port))
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        (worker,) = client.run(_stop_after, 3, tmp_path / "never")
        result = daskembed.run(
            "33TUL", source=str(tmp_path / "chips"), output=str(tmp_path / "out"), cluster=client, progress=look, **TINY
        )
    assert (3, 0) in states
    assert looked[0]["in_work"] == [{"tile": "33TUL", "chips": 4, "done": 3, "quarantined": 0}]
    assert looked[1][of_run("chips", tmp_path / "out", fate="encoded")] == 3
    assert looked[1][of_run("tiles", tmp_path / "out", state="unfinished")] == 1
    assert (result.chips, result.encoded) == (4, 4)
    assert states[-1] == (4, 4)
    assert max(done for done, _ in states) == 4
    assert said.count(f"worker {worker} is gone: the task that it had runs again") == 1


def test_the_page_takes_no_input_and_loads_nothing_from_elsewhere(seen):
    with urllib.request.urlopen(seen.page) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "<form" not in page
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(seen.page, data=b"x=1")


def test_a_second_run_uses_the_page_that_is_there(seen):
    pages: list[str] = []
    result = daskembed.run(
        TILES[:1],
        source=str(seen.folder / "chips"),
        output=str(seen.folder / "second"),
        cluster=seen.client,
        progress=lambda state: pages.append(state.page),
        **TINY,
    )
    assert result.exit_status == 0
    assert set(pages) == {seen.page}
    runs = get_json(seen.page)["runs"]
    assert [Path(run["output"]).name for run in runs] == ["second", "out"]


def test_the_report_of_dask_is_saved(seen):
    report = (seen.folder / "report.html").read_text()
    assert "Dask Performance Report" in report
    assert "embed-33TUL" in report


def test_a_report_that_cannot_be_written_is_refused(tmp_path, chips):
    for path, why in (
        (tmp_path / "gone" / "r.html", "No such file"),
        (tmp_path, "directory"),
        ("s3://b/r.html", "path"),
    ):
        with pytest.raises(InputError, match=rf"performance report .* cannot be written: .*{why}"):
            daskembed.run(
                "33TUL",
                source=str(chips),
                output=str(tmp_path / "out"),
                cluster="tcp://127.0.0.1:1",
                performance_report=str(path),
                **TINY,
            )


def test_looking_whether_a_report_can_be_written_leaves_nothing(tmp_path):
    (tmp_path / "old.html").write_text("old")
    for name in ("new.html", "old.html"):
        dashboard.check_report(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    assert (tmp_path / "old.html").read_text() == "old"


def test_an_interrupted_run_is_reported_too(seen, tmp_path):
    def interrupt(state: Progress) -> None:
        if state.indexed:
            raise KeyboardInterrupt

    events: list[Event] = []
    result = daskembed.run(
        TILES,
        source=str(seen.folder / "chips"),
        output=str(tmp_path / "out"),
        cluster=seen.client,
        performance_report=str(tmp_path / "report.html"),
        progress=interrupt,
        events=events.append,
        **TINY,
    )
    assert result.interrupted
    assert "Dask Performance Report" in (tmp_path / "report.html").read_text()
    assert (events[-1].event, events[-1].reason) == ("run_ended", "interrupted")
    assert get_json(seen.page)["runs"][0]["state"] == "interrupted"


def test_a_client_that_is_gone_leaves_no_running_run(seen):
    told = {"run": "lost", "client": "Client-gone", "state": "running", "output": "<b>x</b>"}
    seen.client.log_event(dashboard.RUNS, told)
    assert get_json(seen.page)["runs"][0]["state"] == "its client is gone"


def test_only_the_last_runs_are_kept(seen):
    for number in range(dashboard.MOST_RUNS + 3):
        seen.client.log_event(dashboard.RUNS, {"run": f"run {number}", "client": "x", "state": "over"})
    runs = [run["run"] for run in get_json(seen.page)["runs"]]
    assert runs == [f"run {number}" for number in range(dashboard.MOST_RUNS + 2, 2, -1)]


@pytest.fixture
def browser(tmp_path) -> Iterator[int]:
    """The port at which a headless browser takes orders."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs a browser, and none of {', '.join(names)} is installed")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0")
    command = [path, *flags, f"--user-data-dir={tmp_path / 'profile'}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("DevTools listening on ws://"))
        yield int(line.split(":")[2].partition("/")[0])
        process.terminate()
        process.communicate()


async def look_at(browser: int, url: str | None, found: str, picture: Path) -> str:
    """Open a page or stay there, wait until the JavaScript expression `found` gives some text, and keep a picture."""
    target = next(one for one in json.loads(get(f"http://127.0.0.1:{browser}/json/list")) if one["type"] == "page")
    socket = await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=2**26)

    async def ask(method: str, **params: Any) -> dict[str, Any]:
        await socket.write_message(json.dumps({"id": 1, "method": method, "params": params}))
        while True:
            answer = json.loads(await socket.read_message())
            if answer.get("id") == 1:
                return answer["result"]

    await ask("Emulation.setDeviceMetricsOverride", width=1000, height=840, deviceScaleFactor=1, mobile=False)
    if url is not None:
        await ask("Page.navigate", url=url)
    while not (text := (await ask("Runtime.evaluate", expression=found))["result"].get("value")):
        await asyncio.sleep(0.1)
    picture.write_bytes(base64.b64decode((await ask("Page.captureScreenshot"))["data"]))
    socket.close()
    return str(text)


OURS = "document.querySelectorAll('#tiles td').length > 3 && document.body.innerText"
TOLD = "document.getElementById('told').textContent"
# Dask draws on canvases: what they show is read from their data.
DASKS = """(() => {
  const models = Bokeh.documents.flatMap(document => [...document._all_models.values()]);
  const names = models.flatMap(model => [...(model.data?.name ?? model.data?.get?.("name") ?? [])]);
  return names.includes("index") && names.includes("embed") && names.join(" ");
})()"""


def test_a_browser_shows_stages_tiles_and_workers(browser, tmp_path):
    """Of a run whose blocks wait until somebody has looked."""
    for tile in TILES:
        write_chips(tmp_path / "chips", tile=tile, rows=1, cols=1)
    shown: dict[str, str] = {}

    def look(state: Progress) -> None:
        if state.indexed == 2 and not shown:
            shown["at"] = state.page
            shown["page"] = asyncio.run(look_at(browser, state.page, OURS, tmp_path / "page.png"))
            shown["status"] = asyncio.run(look_at(browser, state.dashboard, DASKS, tmp_path / "status.png"))
            (tmp_path / "looked").touch()

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run(_hold, tmp_path / "looked")
        daskembed.run(
            TILES, source=str(tmp_path / "chips"), output=str(tmp_path / "out"), cluster=client, progress=look, **TINY
        )
        # The page is left open; its scheduler goes.
        shown["over"] = asyncio.run(look_at(browser, shown["at"], TOLD, tmp_path / "over.png"))
    closed = f"{TOLD}.includes('closed') && {TOLD}"
    shown["gone"] = asyncio.run(look_at(browser, None, closed, tmp_path / "gone.png"))
    assert shown["over"] == f"Over: the files are in {tmp_path / 'out'}."
    assert shown["gone"] == f"Over: the files are in {tmp_path / 'out'}. The scheduler has closed."
    for text in (*TILES, *dashboard.STAGES, "chips/s", "device busy", "tiles 0 of 2", "1 embed waiting", "elapsed"):
        assert text in shown["page"], text
    for name in ("page.png", "status.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def _stop_after(chips: int, until: Path) -> None:
    """On a worker: stop when some chips are counted, before a file is there."""
    from daskembed.compute import device

    count, counted = device.count_chips, []

    def slowly(number: int) -> None:
        count(number)
        counted.append(number)
        if len(counted) == chips:
            wait_until(until.exists)

    device.count_chips = slowly


def _hold(until: Path) -> None:
    """On a worker: embed nothing before a file is there."""
    from daskembed.runs.blocks import Block

    compute = Block.compute

    def slowly(self, without=None):
        wait_until(until.exists)
        return compute(self, without)

    Block.compute = slowly  # type: ignore[method-assign]
