"""Runs over catalogues and stores of their files that go down, refuse, or change under a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import catalogues
import dask
import pytest
import rasterio
from conftest import wait_for
from distributed import Client, LocalCluster

import daskembed
from daskembed.errors import StorageDeniedError
from daskembed.output.state import read_receipt
from daskembed.storage.stores import Storage
from daskembed.storage.urls import local_path
from daskembed.testing import FaultyProxy, OpticalImage, write_scenes
from daskembed.testing.loopback import FileServer, serve_catalogue
from daskembed.testing.scenes import Scenes

NORTH, SOUTH = "33TUL", "22JGS"
FIRST, SECOND = "2024-06-02", "2024-07-02"
OPTIONS: dict[str, Any] = {
    "encoder": "clay-v1.5",
    "checkpoint": "untrained:least",
    "precision": "fp32",
    "dates": "2024-05-01/2024-09-30",
    # One chip in a tile's last corner.
    "offset": (10240, 10240),
}
CORNER: dict[str, Any] = {"start": (10236, 10236), "shape": (744, 744)}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    patient = {"DASK_DASKEMBED__RETRY_TIMEOUT": "1", "DASK_DASKEMBED__TORCH_THREADS": "1"}
    with (
        dask.config.set({"daskembed.retry-timeout": 1}),
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, env=patient) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """Files by HTTP: what servers list of their readers' own machines is not read."""
    with FileServer(tmp_path_factory.mktemp("files")) as server:
        yield server


@pytest.fixture(scope="module")
def world(files: FileServer) -> Scenes:
    images = (OpticalImage(f"{FIRST}T10:20:31Z"), OpticalImage(f"{SECOND}T10:20:31Z", cloud=30))
    root = f"{files.url}/north"
    return write_scenes(files.folder / "north", tile=NORTH, images=images, root=root, **CORNER)


@pytest.fixture(scope="module")
def south(files: FileServer) -> Scenes:
    images = (OpticalImage(f"{FIRST}T13:30:31Z"),)
    root = f"{files.url}/south"
    return write_scenes(files.folder / "south", tile=SOUTH, images=images, root=root, **CORNER)


class Api(FaultyProxy):
    """A STAC API that answers some searches with an error: those for places of which `fails` is true."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.fails: Callable[[float], bool] = lambda west: False
        self.status = 503
        self._real = target

    def _forward(self, handler: Any, body: bytes) -> Any:
        url = urlsplit(handler.path)
        if url.path == "/search":
            bounds = json.loads(body)["bbox"] if body else parse_qs(url.query)["bbox"][0].split(",")
            if self.fails(float(bounds[0])):
                return self.status, [("Content-Length", "4")], b"down"
        status, headers, answer = super()._forward(handler, body)
        answer = answer.replace(self._real.encode(), self.url.encode())
        headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        return status, [*headers, ("Content-Length", str(len(answer)))], answer


@contextmanager
def serving(folder: Path, *worlds: Scenes) -> Iterator[tuple[Api, str]]:
    """A server of the scenes, and a catalogue that is it."""
    described = catalogues.describe(folder, worlds[0])
    everything = [item for world in worlds for item in world.items]
    items = folder / "all.json"
    items.write_text(json.dumps({"type": "FeatureCollection", "features": everything}))
    with serve_catalogue(items) as url, Api(url) as api:
        places = [{"at": f"{world.root}/", "offset": "in"} for world in worlds]
        catalogues.edit(described, url=api.url, files=places)
        yield api, str(described)


def test_a_catalogue_that_goes_down_between_tiles(world: Scenes, south: Scenes, tmp_path: Path, client: Client) -> None:
    with serving(tmp_path, world, south) as (api, mine):
        api.fails = lambda west: west < 0
        options = OPTIONS | {"source": mine, "output": str(tmp_path / "out"), "cluster": client}
        result = daskembed.run([NORTH, SOUTH], **options)
        ended = {tile.tile: tile for tile in result.tiles}
        assert {name: tile.status for name, tile in ended.items()} == {NORTH: "done", SOUTH: "failed"}, ended[
            NORTH
        ].reason
        assert "the catalogue does not answer" in str(ended[SOUTH].reason)
        assert result.exit_status == 4
        # The same command goes on.
        api.fails = lambda west: west > 0
        result = daskembed.run([NORTH, SOUTH], **options)
        assert {tile.tile: tile.status for tile in result.tiles} == {NORTH: "skipped", SOUTH: "done"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_catalogue_that_refuses_stops_the_run(
    world: Scenes, south: Scenes, tmp_path: Path, client: Client, status: int
) -> None:
    with serving(tmp_path, world, south) as (api, mine):
        api.fails, api.status = (lambda west: True), status
        with pytest.raises(StorageDeniedError, match=f"{status}.* the catalogue refuses"):
            daskembed.run([NORTH, SOUTH], **OPTIONS, source=mine, output=str(tmp_path / "out"), cluster=client)
    assert not list((tmp_path / "out").glob("*.gpq"))


@pytest.mark.parametrize("after", [0, 1], ids=["its header", "its pixels"])
def test_files_that_are_refused_stop_the_run(tmp_path: Path, client: Client, after: int) -> None:
    (tmp_path / "files").mkdir()
    with FileServer(tmp_path / "files") as files, FaultyProxy(files.url) as proxy:
        images = (OpticalImage(f"{FIRST}T10:20:31Z"),)
        theirs = write_scenes(tmp_path / "files", tile=NORTH, images=images, root=proxy.url, **CORNER)
        mine = catalogues.describe(tmp_path, theirs)
        proxy.refuse(403, "AccessDenied", after=after, matching=r"B05\.tif")
        options = OPTIONS | {"source": str(mine), "output": str(tmp_path / "out"), "cluster": client}
        with pytest.raises(StorageDeniedError, match=r"B05\.tif: access denied"):
            daskembed.run([NORTH], **options)
        # Nothing is held against the chips.
        proxy.recover()
        (tile,) = daskembed.run([NORTH], **options).tiles
        assert (tile.status, tile.quarantined) == ("done", {})


def test_a_damaged_file_quarantines_the_chips_that_need_it(world: Scenes, tmp_path: Path, client: Client) -> None:
    images = (OpticalImage(f"{FIRST}T10:20:31Z"),)
    theirs = write_scenes(tmp_path / "files", tile=NORTH, images=images, **CORNER)
    mine = catalogues.describe(tmp_path, theirs)
    (item,) = theirs.items
    path = local_path(item["assets"]["B05"]["href"])
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    result = daskembed.run([NORTH], **OPTIONS, source=str(mine), output=str(tmp_path / "out"), cluster=client)
    (tile,) = result.tiles
    assert result.exit_status == 3
    ((url, reason),) = tile.quarantined.items()
    assert url == f"{item['links'][0]['href']}#{FIRST}/0001"
    assert f"rededge1: the asset 'B05' of {item['id']} cannot be decoded" in reason


def test_a_killed_run_keeps_its_scenes(world: Scenes, tmp_path: Path, client: Client) -> None:
    mine, output = catalogues.describe(tmp_path, world), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "daskembed",
        "run",
        "--tiles",
        NORTH,
        "--source",
        str(mine),
        "--output",
        str(output),
    ]
    command += ["--encoder", "clay-v1.5", "--checkpoint", "untrained:tiny", "--precision", "fp32"]
    command += ["--dates", OPTIONS["dates"], "--offset", "10240,10240"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ
    )
    record = output / "_daskembed/tiles" / f"{NORTH}_v001.json"
    wait_for(lambda: record.exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [scene["day"] for scene in json.loads(record.read_text())["scenes"]] == [FIRST]
    assert not list(output.glob("*.gpq"))
    # The catalogue has another answer by now.
    catalogues.lists(tmp_path, world, catalogues.of_day(SECOND))
    options = OPTIONS | {"checkpoint": "untrained:tiny", "source": str(mine), "output": str(output)}
    (tile,) = daskembed.run([NORTH], cluster=client, **options).tiles
    assert tile.status == "done"
    receipt = read_receipt(Storage(str(output)), f"_daskembed/receipts/{NORTH}_v001.json")
    assert [scene["day"] for scene in receipt.scenes] == [FIRST]
