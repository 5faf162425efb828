"""Small published folders of made-up vectors and pixels: ``python tests/published.py`` makes tests/data/published anew.

What earlier versions published stays valid, so that folder is not to be made anew but for a form that is meant to
change; `test_published.py` holds the present code against it.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, TypeVar

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
import xarray as xr

from daskembed.encoders.loading import load_encoder
from daskembed.output import state
from daskembed.output.parts import write_part
from daskembed.output.state import write_failure
from daskembed.runs import cube_layout, cube_stages, stages
from daskembed.runs.settings import Settings
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage
from daskembed.table import to_geodataframe
from daskembed.testing.landscape import BANDS

T = TypeVar("T")
FOLDER = Path(__file__).parent / "data" / "published"
TILE, EPSG, CHIP = "33TUL", 32633, 512
WEST, NORTH, SIDE = 299_995.0, 5_100_005.0, 5120.0
DAYS = ("2019-04-01", "2019-04-16")
WHY = {"quarantined": "cannot be decoded, it is cut off", "rejected": "B02 is 0 in 1 of its pixels"}


@dataclass(frozen=True)
class Case:
    """What one folder holds: chips at rows and columns, one after another of the `DAYS`."""

    encoder: str
    level: str
    formats: tuple[str, ...]
    dtype: str
    places: tuple[tuple[int, int], ...]
    bad: tuple[str, ...] = ()
    """What becomes of the last chips."""


CASES = {
    "mean": Case("clay-v0", "mean", ("geoparquet",), "float32", ((0, 0), (0, 1), (2, 0), (2, 1)), tuple(WHY)),
    "patch": Case("clay-v0", "patch", ("geoparquet", "zarr"), "float32", ((0, 0), (1, 1))),
    "windows": Case("clay-v1.5", "patch", ("geoparquet", "zarr"), "float16", ((0, 1),)),
}


def software() -> dict[str, str]:
    """Versions of all that has a part in the bytes of a file."""
    packages = ("daskembed", "numcodecs", "numpy", "pyarrow", "pyproj", "shapely", "zarr")
    versions = {name: version_of(name) for name in packages}
    return versions | {"PROJ": pyproj.proj_version_str, "machine": platform.machine()}


def settings(case: Case, output: str) -> Settings:
    return Settings(
        source=Storage("s3://made-up/chips"),
        output=Storage(output),
        encoder=load_encoder("untrained:tiny", encoder=case.encoder, precision="fp32"),
        level=case.level,
        on_nan="quarantine",
        reading=Reading(),
        version="001",
        chips_a_block=64,
        formats=case.formats,
        dtype=case.dtype,
    )


def vectors(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that float16 holds, that compress well, and of which any two neighbours differ."""
    return (np.arange(np.prod(shape)) * 17 % 251 / 64 - 2).astype(np.float32).reshape(shape)


def _footprint(row: float, col: float, side: float) -> shapely.Polygon:
    # About where they are: degrees that no version of PROJ changes.
    west, north, lon, lat = 12.41796875, 46.025390625, 0.06640625, 0.0458984375
    return shapely.box(west + col * lon, north - (row + side) * lat, west + (col + side) * lon, north - row * lat)


def embeddings(case: Case) -> xr.DataArray:
    """What `daskembed.embed` would give."""
    encoder = load_encoder("untrained:tiny", encoder=case.encoder, precision="fp32")
    count, inner = len(case.places), tuple(encoder.description.levels[case.level])
    row, col = np.array(case.places).T
    west, north = WEST + col * SIDE, NORTH - row * SIDE
    numbers, whys = row * 21 + col + 1, {name: np.full(count, None, object) for name in WHY}
    for place, name in zip(range(count - len(case.bad), count), case.bad, strict=True):
        whys[name][place] = WHY[name]
    noted = np.full(count, None, object)
    noted[0] = "vh is 0 in 3 of its pixels"
    windows: dict[str, Any] = {}
    if "window" in inner:
        halves = [[_footprint(y + i / 2, x + j / 2, 0.5) for i, j in np.ndindex(2, 2)] for y, x in case.places]
        windows = {"footprint": (("chip", "window"), np.array(halves, object))}
    urls = [f"s3://made-up/chips/{TILE}/claytile_{TILE}_{number:04d}.tif" for number in numbers]
    return xr.DataArray(
        vectors((count, *encoder.shape(case.level))),
        dims=("chip", *inner),
        coords={
            "source_url": ("chip", np.array(urls, object)),
            "date": ("chip", np.array([DAYS[n % 2] for n in range(count)], "datetime64[s]")),
            "epsg": ("chip", np.full(count, EPSG, np.int32)),
            "west": ("chip", west),
            "south": ("chip", north - SIDE),
            "east": ("chip", west + SIDE),
            "north": ("chip", north),
            "geometry": ("chip", np.array([_footprint(y, x, 1) for y, x in case.places], object)),
            **windows,
            **{name: ("chip", why) for name, why in whys.items()},
            "filled": ("chip", np.arange(count) % 2),
            "noted": ("chip", noted),
        },
    )


def part(case: Case) -> gpd.GeoDataFrame:
    """Its one block."""
    frame: gpd.GeoDataFrame = to_geodataframe(embeddings(case)).compute(scheduler="sync")
    return frame


def write(case: Case, output: Storage, path: str) -> None:
    level = load_encoder("untrained:tiny", encoder=case.encoder).description.row_shape(case.level)
    with output.open_writer(path) as file:
        write_part(part(case), file, level)


def pixels() -> dict[int, np.ndarray]:
    """Number of a chip -> ``(band, y, x)``, for a cube."""
    found = {}
    for number in (1, 23):
        steps = np.indices((CHIP, CHIP)).sum(0) // 64 + number
        bands = np.arange(1, len(BANDS) + 1)[:, None, None] * 50 + steps
        bands[-3:-1] = 1  # radar
        found[number] = (bands / np.where(np.isin(BANDS, ("vh", "vv")), 10, 1)[:, None, None]).astype(np.float32)
    return found


def write_chips(source: Path) -> None:
    """The chips of `pixels`, and a file that is none."""
    folder = source / TILE / DAYS[1]
    folder.mkdir(parents=True)
    name = f"claytile_{TILE}_{DAYS[1].replace('-', '')}_v02_{{:04d}}.tif"
    for number, bands in pixels().items():
        row, col = divmod(number - 1, 21)
        transform = rasterio.Affine(10, 0, WEST + col * SIDE, 0, -10, NORTH - row * SIDE)
        profile = {"driver": "GTiff", "dtype": "float32", "count": len(BANDS), "crs": f"EPSG:{EPSG}"}
        with rasterio.open(
            folder / name.format(number), "w", height=CHIP, width=CHIP, transform=transform, **profile
        ) as image:
            image.write(bands)
            image.descriptions = BANDS
            image.update_tags(date=DAYS[1])
    (folder / name.format(2)).write_bytes(b"no chip")


def write_cube(job: cube_layout.Job) -> None:
    """A cube as the workers make it."""
    plan = cube_stages.plan_tile(job, TILE)
    assert isinstance(plan, cube_stages.Plan)
    assert plan.layout is not None
    bands = len(plan.layout.bands)
    notes = {shard.key: cube_stages.write_shard(job, TILE, bands, shard) for shard in plan.to_do}
    cube_stages.finish_tile(job, plan, notes)


def anew(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives in a thread of its own, where PROJ has done nothing yet.

    In one where it has looked up what a CRS in PROJJSON is called, it tells WGS 84 as one datum, else as an ensemble.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, case in CASES.items():
        made = settings(case, str(folder / name))
        path = "_daskembed/parts/33TUL_v001/0123456789abcdef/00000.parquet"
        write(case, made.output, path)
        indexed = stages.Indexed(listing="as listed", quarantined={}, parts=(path,))
        anew(stages.publish, made, TILE, indexed, "2026-11-25T12:00:00.000+00:00", [])
    unfinished = Storage(str(folder / "mean"))
    write(CASES["mean"], unfinished, "_daskembed/parts/33TVL_v001/0123456789abcdef/00001.parquet")
    write_failure(unfinished, "33TUM", "001", "no chips of tile 33TUM")
    (folder / "cube").mkdir()
    with tempfile.TemporaryDirectory() as chips:
        write_chips(Path(chips))
        anew(write_cube, cube_layout.Job(Storage(chips), Storage(str(folder / "cube"))))
    receipt = folder / "cube" / state.receipt_path(TILE, None)
    receipt.write_text(receipt.read_text().replace(chips, "/made-up/chips"))
    (folder / "made_with.json").write_text(json.dumps(software(), indent=1) + "\n")


if __name__ == "__main__":
    main(FOLDER)
