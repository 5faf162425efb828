"""A whole tile of 10,980 x 10,980 pixels from Zarr and from one GeoTIFF: time and memory."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import rasterio
import xarray as xr
from distributed import Client, LocalCluster
from rasterio.transform import Affine
from rasterio.windows import Window

from benchmarks.common import Row
from daskembed.runs.tiles import run as run_tiles
from daskembed.sensors.bands import CLAY_V0
from daskembed.testing import landscape

SIDE = 10_980
FORMS = ("Zarr, chunks of 512", "Zarr, chunks of 2048", "GeoTIFF, blocks of 512", "GeoTIFF, strips")


def run(*, smallest: bool = False) -> list[Row]:
    """Each form is made of the same pixels, in uint16, and embedded by one worker of two threads."""
    with tempfile.TemporaryDirectory() as folder:
        pattern = np.round(np.clip(landscape(1024, 1024), 1, 65535)).astype(np.uint16)
        side = 512 if smallest else SIDE
        return [
            _measure(Path(folder) / str(number), form, pattern, side, processes=not smallest)
            for number, form in enumerate(FORMS)
        ]


def write(folder: Path, form: str, pattern: np.ndarray, side: int) -> int:
    """Write a tile of `side` pixels in a form, a few rows in memory at a time; gives its bytes."""
    folder.mkdir(parents=True)
    west, north = 300_000.0, 5_100_000.0
    if form.startswith("Zarr"):
        chunk = int(form.rpartition(" ")[2])
        repeats = -(-side // 1024)
        pixels = da.tile(da.from_array(pattern, chunks=(13, 1024, 1024)), (1, repeats, repeats))[:, :side, :side]
        cube = xr.DataArray(
            pixels.rechunk((13, chunk, chunk))[None],
            dims=("time", "band", "y", "x"),
            coords={
                "time": np.array(["2019-04-16"], "datetime64[ns]"),
                "band": list(CLAY_V0.names),
                "y": north - 5 - 10 * np.arange(side),
                "x": west + 5 + 10 * np.arange(side),
            },
            attrs={"crs": "EPSG:32633"},
        )
        cube.to_dataset(name="pixels").assign_attrs(crs="EPSG:32633").to_zarr(folder / "33TUL.zarr")
    else:
        profile: dict[str, Any] = {"driver": "GTiff", "crs": "EPSG:32633", "interleave": "pixel", "compress": "deflate"}
        profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512} if "512" in form else {"blockysize": 1}
        profile |= {"transform": Affine(10, 0, west, 0, -10, north), "bigtiff": "yes", "zlevel": 1}
        with rasterio.open(
            folder / "33TUL.tif", "w", width=side, height=side, count=13, dtype="uint16", **profile
        ) as file:
            file.descriptions = CLAY_V0.names
            file.update_tags(date="2019-04-16")
            for top in range(0, side, 512):
                height = min(512, side - top)
                rows = np.tile(pattern[:, top % 1024 :][:, :height], (1, 1, -(-side // 1024)))[:, :, :side]
                file.write(rows, window=Window(0, top, side, height))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _measure(folder: Path, form: str, pattern: np.ndarray, side: int, *, processes: bool) -> Row:
    size = write(folder / "tile", form, pattern, side)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=processes, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        (worker,) = client.run(lambda: psutil.Process().pid).values()
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                peak[0] = max(peak[0], psutil.Process(worker).memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        start = time.perf_counter()
        result = run_tiles(
            "33TUL",
            source=str(folder / "tile"),
            output=str(folder / "out"),
            checkpoint="untrained:tiny",
            cluster=client,
        )
        seconds = time.perf_counter() - start
        done.set()
        watching.join()
    assert (result.exit_status, result.chips) == (0, (side // 512) ** 2), result.tiles
    return {
        "form": form,
        "GB": size / 1e9,
        "chips": result.chips,
        "s": seconds,
        "chips/s": result.chips_per_second,
        "device busy": result.stage_seconds["device"] / (result.stage_seconds["device"] + result.stage_seconds["wait"]),
        "decode s": result.stage_seconds["decode"],
        "worker's peak MB": peak[0] / 1e6,
    }
