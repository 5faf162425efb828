"""Workers that cannot do the work: refused by name where they are there, stopped where they join later."""

from __future__ import annotations

import time

import pytest
from distributed import Client, LocalCluster

from daskembed.clusters.worker_checks import SICK, prove_workers
from daskembed.errors import InputError

SICKNESS = {"GDAL_SKIP": "GTiff"}
"""What leaves a process without its TIFF driver."""


def test_sick_workers_are_refused_by_name() -> None:
    with LocalCluster(n_workers=1, dashboard_address=None, env=SICKNESS) as cluster, Client(cluster) as client:
        (address,) = client.nthreads()
        with pytest.raises(InputError) as refused:
            prove_workers(client)
    assert f"cannot do the work: {address}: " in str(refused.value)
    assert "fails the trial of PROJ and GDAL" in str(refused.value)
    assert "GDAL_SKIP=GTiff" in str(refused.value)


def test_a_sick_worker_that_joins_later_says_so_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(n_workers=1, dashboard_address=None) as cluster, Client(cluster) as client:
        (well,) = client.nthreads()
        assert prove_workers(client)
        heard: list[dict[str, str]] = []
        client.subscribe_topic(SICK, lambda event: heard.append(event[1]))
        monkeypatch.setenv("GDAL_SKIP", "GTiff")
        cluster.scale(2)
        end = time.monotonic() + 60
        while not heard or list(client.nthreads()) != [well]:
            assert time.monotonic() < end, (heard, client.nthreads())
            time.sleep(0.1)
    assert "GDAL_SKIP=GTiff" in heard[0]["reason"]
    assert heard[0]["worker"] != well
