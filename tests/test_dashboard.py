"""The runs' page leans on Dask's inside: what a version of Dask has no more costs the page, and not the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import distributed
import pytest
from distributed import Client, LocalCluster

import daskembed
from daskembed.runs import dashboard


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_this_version_of_dask_has_it_all(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    page = dashboard.serve(client)
    assert page.endswith("/daskembed")
    with urlopen(f"{page}.json", timeout=60) as answer:
        assert answer.status == 200
    assert caplog.text == ""


def test_run_goes_on_without_its_page(
    client: Client, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a Dask that calls something otherwise."""
    for name, member in {"Scheduler": "was_there_once", "TaskState": "as_well"}.items():
        monkeypatch.setitem(dashboard.LEANS_ON, name, [*dashboard.LEANS_ON[name], member])
    pages = []
    result = daskembed.run(
        "33TUL",
        source=str(chips),
        output=str(tmp_path),
        checkpoint="untrained:least",
        cluster=client,
        progress=lambda state: pages.append(state.page),
    )
    assert (result.exit_status, result.chips) == (0, 4)
    assert set(pages) == {""}
    (told,) = (record.getMessage() for record in caplog.records if "page" in record.getMessage())
    version = distributed.__version__
    assert told == (
        "warning: the run goes on without its page, which leans on more of Dask: "
        f"distributed {version} has no Scheduler.was_there_once, TaskState.as_well"
    )


def test_workers_of_another_dask(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(dashboard.LEANS_ON, "Worker", ["was_there_once"])
    assert dashboard.serve(client) == ""
    assert "has no Worker.was_there_once" in caplog.text
