"""Patches as pixels: a Cloud Optimized GeoTIFF of each tile and date, a band each component of their vectors."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from daskembed.errors import InputError
from daskembed.exports.grids import check_patches, find_rows, reading
from daskembed.output.geoparquet import Hashing
from daskembed.output.zarr_store import fill_of
from daskembed.storage.local_files import room_for

if TYPE_CHECKING:
    from daskembed.exports.grids import ExportedRows
    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile, PlannedFile
    from daskembed.geo.cells import Grid

SUFFIX = ".tif"
FOLDER = ""
UNIT: Literal["range", "tile", "day"] = "day"
_BLOCK_BYTES = 4 * 2**20
"""Of a block with all bands, at most, as far as blocks of 16 pixels allow: it is what a reader of one pixel fetches."""
_COG = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BIGTIFF": "IF_SAFER"}
_SMALL = 512
"""Pixels of a side up to which there is no coarser picture: of many bands it takes longer to make than the picture."""
_FULL = 4 * _BLOCK_BYTES
"""Free bytes of a disk that is full: less than GDAL writes at a time."""


def parse_components(text: str) -> tuple[int, ...]:
    """Numbers of components, each once, of a list such as ``0,1,2`` or ``0-15``; raises `InputError` if it is none."""
    found: list[int] = []
    for part in text.split(",") if isinstance(text, str) else [""]:
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"`components` {text!r}: expected numbers from 0 and ranges, such as 0,1,2 or 0-15")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(dict.fromkeys(found))


def check(export: Export) -> None:
    """Raise `InputError` if there are no patches, or not the components that are wanted."""
    check_patches(export)
    if beyond := [one for one in export.components if one >= _count(export)]:
        raise InputError(f"`components` has {beyond[0]}, and vectors have components 0 to {_count(export) - 1}")


def finish(export: Export, written: Sequence[ExportedFile]) -> list[str]:
    """Each file is whole by itself."""
    return []


def write_tile(export: Export, planned: PlannedFile, tile: ExportTile) -> tuple[int, str]:
    """Make the file of a tile and date; see `daskembed.exports.protocol.TileFormat`.

    In memory are a row group of the published file and GDAL's cache; the file is made on the disk of the worker first.
    """
    rows = find_rows(export, tile, "a GeoTIFF")
    with tempfile.TemporaryDirectory(prefix="daskembed-") as folder, room_for(folder), _full_disk_told(folder):
        plain, made = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        _write_plain(export, planned, tile, rows, plain)
        options = {"BLOCKSIZE": _block(export), **_overviews(rows.placed.grid), **_COG}
        rasterio.shutil.copy(plain, made, driver="COG", **options)
        plain.unlink()
        with export.target.open_writer(planned.name) as out, made.open("rb") as file:
            hashing = Hashing(out)
            while data := file.read(8 * 2**20):
                hashing.write(data)
    return hashing.size, hashing.hash.hexdigest()


def _overviews(grid: Grid) -> dict[str, Any]:
    """Options for pictures that are coarser by 2, 4 and so on, until one is small."""
    count = math.ceil(math.log2(max(grid.height, grid.width, _SMALL) / _SMALL))
    # Each of their pixels is the vector of one patch: the mean of vectors is none.
    return {"OVERVIEW_COUNT": count, "OVERVIEW_RESAMPLING": "NEAREST"} if count else {"OVERVIEWS": "NONE"}


@contextlib.contextmanager
def _full_disk_told(folder: str) -> Iterator[None]:
    """GDAL has many words for a full disk, none of which says it."""
    try:
        yield
    except (CPLE_BaseError, RasterioError):
        if shutil.disk_usage(folder).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def _count(export: Export) -> int:
    """Components of the vector of a patch."""
    return math.prod(export.shape) // math.prod(export.grid)


def _chosen(export: Export) -> tuple[int, ...]:
    return export.components or tuple(range(_count(export)))


def _names(export: Export) -> list[str]:
    """Of the bands."""
    groups = export.made.get("labels", {}).get("group") or []
    whole = [f"{group}_{number}" for group in groups for number in range(export.shape[-1])]
    return [whole[number] if whole else f"embedding_{number}" for number in _chosen(export)]


def _dtype(export: Export) -> str:
    """Of the pixels: what GDAL before 3.11 does not know is widened, which changes no value."""
    return "float32" if export.dtype == "float16" else export.dtype


def _block(export: Export) -> int:
    """Pixels along each side of a block."""
    of_pixel = len(_chosen(export)) * np.dtype(_dtype(export)).itemsize
    return max((side for side in (512, 256, 128, 64, 32) if side**2 * of_pixel <= _BLOCK_BYTES), default=16)


def _write_plain(export: Export, planned: PlannedFile, tile: ExportTile, rows: ExportedRows, path: Path) -> None:
    """The same GeoTIFF in the order in which patches come."""
    grid, chosen = rows.placed.grid, list(_chosen(export))
    down, across = export.grid
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=_dtype(export),
        count=len(chosen),
        height=grid.height,
        width=grid.width,
        crs=f"EPSG:{grid.epsg}",
        transform=rasterio.Affine(grid.step_x, 0, grid.west, 0, -grid.step_y, grid.north),
        nodata=fill_of(export.dtype),
        tiled=True,
        # The smallest there are: few are written twice.
        blockxsize=16,
        blockysize=16,
        interleave="pixel",
        BIGTIFF="IF_SAFER",
        SPARSE_OK=True,
    ) as file:
        file.descriptions = _names(export)
        if (calibration := export.calibration) is not None:
            file.scales, file.offsets = (
                [numbers[band % len(numbers)] for band in chosen] for numbers in (calibration.scale, calibration.offset)
            )
        provenance = export.provenance | {"tile": tile.tile, "components": chosen}
        file.update_tags(date=planned.day, tile=tile.tile, daskembed=json.dumps(provenance, sort_keys=True))
        here = np.flatnonzero(rows.placed.days == np.datetime64(str(planned.day)))
        with reading(export, tile, rows) as read:
            for row in map(int, here):
                # Groups, if there are some, are before the components.
                patches = np.moveaxis(read(row).reshape(-1, down, across, export.shape[-1]), -1, 1)
                bands = patches.reshape(-1, down, across)[chosen].astype(_dtype(export), copy=False)
                x, y = int(rows.placed.x[row]), int(rows.placed.y[row])
                file.write(bands, window=rasterio.windows.Window(x, y, across, down))
