"""A catalogue's scenes of 13 bands over a slow network: how much of it is used, and against ``odc.stac.load``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np

from benchmarks.common import Row, resident_bytes
from daskembed.geo.chips import CHIP, ChipGrid
from daskembed.geo.mgrs import tile_corner
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources.cutting import SceneChip
from daskembed.sources.reading import Reading
from daskembed.sources.rules import Rules
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Scene
from daskembed.sources.stac import blocks
from daskembed.sources.stac.images import look
from daskembed.sources.stac.mosaic import CLASSES, Mosaic, Part, scale_of_band
from daskembed.testing import HeightImage, OpticalImage, RadarImage
from daskembed.testing.scenes import Scenes, write_scenes

TILE = "33TUL"
LATENCY = 0.05
RATE = 25e6
"""Bytes a second."""
_ASSETS = {
    "sentinel-2-l2a": [*CLAY_V0.names[:10], "SCL"],
    "sentinel-1-rtc": ["vh", "vv"],
    "cop-dem-glo-30": ["data"],
}
KEEP = Rules(keep_all=True).or_else(zeros=False, nan=False, max_cloud=2.0)


def run(*, smallest: bool = False) -> list[Row]:
    """Read chips with several numbers of threads, ours and ``odc.stac.load`` in turn, on the same files."""
    across = 1 if smallest else 8
    images = (OpticalImage("2024-06-02T10:20:31Z"), RadarImage("2024-06-01T05:10:02Z"), HeightImage())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(folder, tile=TILE, images=images, shape=(across * CHIP + 4, across * CHIP + 4))
        needed = _needed(Path(folder), across)
        with _slow_files(Path(folder), 0.001 if smallest else LATENCY, 1e9 if smallest else RATE) as url:
            for readers in (2,) if smallest else (4, 8, 16):
                for name, read in {"ours": _ours, "odc.stac.load": _odc}.items():
                    task = partial(read, scenes, url, across, readers)
                    rows.append(_measured(name, readers, url, across, needed, task))
    return rows


def _measured(name: str, readers: int, url: str, across: int, needed: int, read: Callable[[], Any]) -> Row:
    _counts(url)
    before = resident_bytes()
    with _peak() as peak:
        start = time.perf_counter()
        sums = read()
        wall = time.perf_counter() - start
    counts, chips = _counts(url), across**2
    return {
        "reader": name,
        "threads": readers,
        "chips/s": chips / wall,
        "share of bandwidth": counts["bytes"] / wall / RATE,
        "of what is needed": needed / wall / RATE,
        "requests a chip": counts["requests"] / chips,
        "bytes over needed": counts["bytes"] / needed,
        "MB more in memory": (peak[0] - before) / 1e6,
        "checksum": float(sums),
    }


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most resident memory of the process meanwhile."""
    found, stop = [resident_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            found[0] = max(found[0], resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


@contextmanager
def _slow_files(folder: Path, latency: float, rate: float) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.slow_files", str(folder), str(latency), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def _counts(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/counts", timeout=60) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def _parts(scenes: Scenes) -> dict[str, list[Path]]:
    """Band -> files."""
    found: dict[str, list[Path]] = {}
    for rasters in scenes.rasters.values():
        for band, raster in rasters.items():
            found.setdefault(band, []).append(Path(raster.path))
    return found


def _scene(scenes: Scenes, root: str, across: int) -> Scene:
    epsg, west, north = tile_corner(TILE)
    side = across * CHIP
    bands = {band.name: band for band in CLAY_V0.bands}

    files = [(band, f"{root}/{path}") for band, paths in _parts(scenes).items() for path in paths]
    with ThreadPoolExecutor(16) as pool:
        looked = list(pool.map(lambda file: look(file[1], file[0], {}), files))

    def mosaic(name: str) -> Mosaic:
        images = [image for image in looked if image.asset == name]
        reading = Reading()
        scale = scale_of_band(bands[name], CLAY_V0, images, reading) if name in bands else Scale(numbers=CLASSES)
        parts = tuple(Part(image) for image in images)
        return Mosaic(name, parts, epsg, west, north, 10, (side, side), scale)

    return Scene(
        url=f"{root}#2024-06-02",
        date=date(2024, 6, 2),
        fingerprint="",
        bands=CLAY_V0.names,
        layers=tuple(mosaic(name) for name in CLAY_V0.names),
        classes=mosaic("scl"),
        epsg=epsg,
        west=west,
        north=north,
        step=10,
        grid=ChipGrid((side, side)),
        block=(CHIP, CHIP),
        pixel_bytes=32,
    )


def _ours(scenes: Scenes, url: str, across: int, readers: int) -> float:
    # As in a process that has read nothing before.
    blocks.forget()
    scene = _scene(scenes, url, across)
    chips = [SceneChip(scene, number, KEEP) for number in range(1, across**2 + 1)]
    tasks = [dask.delayed(_sum)(chip) for chip in chips]
    return float(sum(dask.compute(*tasks, scheduler="threads", num_workers=readers)))


def _sum(chip: SceneChip) -> float:
    return float(np.nansum(chip.read()[:, ::64, ::64], dtype=np.float64))


def _odc(scenes: Scenes, url: str, across: int, readers: int) -> float:
    import odc.stac
    import pystac
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox
    from rasterio.transform import Affine

    odc.stac.configure_rio(cloud_defaults=True)
    epsg, west, north = tile_corner(TILE)
    side = across * CHIP
    grid = GeoBox((side, side), Affine(10, 0, west, 0, -10, north), CRS(f"EPSG:{epsg}"))
    text = scenes.file.read_text().replace(scenes.root, url)
    items = list(pystac.ItemCollection.from_dict(json.loads(text)))
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(str(item.collection_id), []).append(item)
    sums = []
    for collection, found in groups.items():
        bands = _ASSETS[collection]
        loaded = odc.stac.load(
            found,
            bands=bands,
            geobox=grid,
            chunks={"x": CHIP, "y": CHIP},
            resampling="nearest",
            groupby=lambda *_: "one",
        )
        # Every block is read for that; what of it is summed is no work. Of the classes it is nothing.
        sums += [loaded[band].data[0, ::64, ::64].astype("float64").sum() * (band != "SCL") for band in bands]
    return float(sum(dask.compute(*sums, scheduler="threads", num_workers=readers)))


def _needed(folder: Path, across: int) -> int:
    """Bytes of the blocks that hold pixels of the chips."""
    import rasterio
    from rasterio.warp import transform_bounds

    epsg, west, north = tile_corner(TILE)
    side = across * CHIP * 10
    total = 0
    for path in folder.rglob("*.tif*"):
        with rasterio.open(path) as file:
            box = transform_bounds(f"EPSG:{epsg}", file.crs, west, north - side, west + side, north, densify_pts=101)
            for (row, col), window in file.block_windows(1):
                left, bottom, right, top = rasterio.windows.bounds(window, file.transform)
                if left < box[2] and right > box[0] and bottom < box[3] and top > box[1]:
                    total += int(file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", 1) or 0)
    return total
