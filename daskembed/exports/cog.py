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
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from daskembed.errors import InputError, TileError
from daskembed.exports.gather import as_asked
from daskembed.exports.index import open_published, read_places
from daskembed.exports.rows import Exported, TileRows
from daskembed.geo.cells import Grid, common_grid, find_overlap
from daskembed.geo.chips import CHIP
from daskembed.output.geoparquet import Hashing
from daskembed.output.index_rows import read_rows
from daskembed.storage.local_files import room_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile, PlannedFile

SUFFIX = ".tif"
FOLDER = ""
UNIT: Literal["range", "tile"] = "tile"
_BLOCK_BYTES = 4 * 2**20
"""Of a block with all bands, at most, as far as blocks of 16 pixels allow: it is what a reader of one pixel fetches."""
_COG = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BIGTIFF": "IF_SAFER"}
_SMALL = 512
"""Pixels of a side up to which there is no coarser picture: of many bands it takes longer to make than the picture."""
_FULL = 4 * _BLOCK_BYTES
"""Free bytes of a disk that is full: less than GDAL writes at a time."""
_ONE_GRID = "the pixels of a GeoTIFF are on one grid; give `format='geoparquet'`"
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class _Layout:
    """The published rows of one date, and where they are on the grid of all dates of their tile."""

    grid: Grid
    numbers: NDArray[np.int64]
    """Of the published rows, ascending."""
    y: NDArray[np.int64]
    """First pixel of each, from north; likewise `x` from west."""
    x: NDArray[np.int64]
    stay: NDArray[np.bool_]
    """Whether each of their patches is exported, ``(row, down, across)``."""


def parse_components(text: str) -> tuple[int, ...]:
    """Numbers of components, each once, of a list such as ``0,1,2`` or ``0-15``; raises `InputError` if it is none."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"`components` {text!r}: expected numbers from 0 and ranges, such as 0,1,2 or 0-15")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(dict.fromkeys(found))


def check(export: Export) -> None:
    """Raise `InputError` if there are no patches, or not the components that are wanted."""
    if "row" not in export.made.get("dims", ()):
        raise InputError(
            f"`format='cog'` has a pixel a patch, and level {export.made.get('level', 'unknown')!r} has no patches: "
            "choose published files of another `level`, or give `format='geoparquet'`"
        )
    if beyond := [one for one in export.components if one >= _count(export)]:
        raise InputError(f"`components` has {beyond[0]}, and vectors have components 0 to {_count(export) - 1}")


def finish(export: Export, written: Sequence[ExportedFile]) -> list[str]:
    """Each file is whole by itself."""
    return []


def write_tile(export: Export, planned: PlannedFile, tile: ExportTile) -> tuple[int, str]:
    """Make the file of a tile and date; see `daskembed.exports.protocol.TileFormat`.

    In memory are a row group of the published file and GDAL's cache; the file is made on the disk of the worker first.
    """
    assert planned.day is not None
    layout = _lay_out(export, tile, date.fromisoformat(planned.day))
    with tempfile.TemporaryDirectory(prefix="daskembed-") as folder, room_for(folder), _full_disk_told(folder):
        plain, made = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        _write_plain(export, planned, tile, layout, plain)
        rasterio.shutil.copy(plain, made, driver="COG", BLOCKSIZE=_block(export), **_overviews(layout.grid), **_COG)
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


def _nodata(export: Export) -> float:
    """No whole number that stands for a value is -128."""
    return -128 if export.dtype == "int8" else math.nan


def _block(export: Export) -> int:
    """Pixels along each side of a block."""
    of_pixel = len(_chosen(export)) * np.dtype(_dtype(export)).itemsize
    return max((side for side in (512, 256, 128, 64, 32) if side**2 * of_pixel <= _BLOCK_BYTES), default=16)


def _lay_out(export: Export, tile: ExportTile, day: date) -> _Layout:
    """Where the patches of a date are on the grid that all exported ones of the published file share."""
    places = read_places(export, tile.name)
    published, patch = np.divmod(places.numbers, export.patches)
    numbers, of = np.unique(published, return_inverse=True)
    with open_published(export, tile) as file:
        table = file.read(columns=["source_url", "date", "geometry"]).take(pa.array(numbers))
    urls, (down, across) = table["source_url"].to_pylist(), export.grid
    known = None if tile.sha256 is None else read_rows(export.source, tile.tile, tile.version, tile.sha256)
    about = TileRows(tile.tile, export.grid, export.made.get("window") or CHIP, known)
    epsg, bounds = Exported(table, about, "chip").squares
    grid, y, x = common_grid(urls, epsg, bounds, export.grid, pixels=about.window, why=_ONE_GRID)
    days = table["date"].to_numpy().astype("datetime64[D]")
    if overlap := find_overlap(y, x, export.grid, days):
        one, other = overlap
        raise TileError(
            f"{urls[one]} and {urls[other]} overlap on {days[one]}: a GeoTIFF has one vector a place and date; give "
            "`format='geoparquet'`"
        )
    stay = np.full((len(numbers), down * across), export.patches == 1)
    stay[of, patch] = True
    here = days == np.datetime64(day)
    return _Layout(grid, numbers[here], y[here], x[here], stay.reshape(-1, down, across)[here])


def _write_plain(export: Export, planned: PlannedFile, tile: ExportTile, layout: _Layout, path: Path) -> None:
    """The same GeoTIFF in the order in which patches come."""
    grid, bands = layout.grid, len(_chosen(export))
    down, across = export.grid
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=_dtype(export),
        count=bands,
        height=grid.height,
        width=grid.width,
        crs=f"EPSG:{grid.epsg}",
        transform=rasterio.Affine(grid.step_x, 0, grid.west, 0, -grid.step_y, grid.north),
        nodata=_nodata(export),
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
                [numbers[band % len(numbers)] for band in _chosen(export)]
                for numbers in (calibration.scale, calibration.offset)
            )
        provenance = export.provenance | {"tile": tile.tile, "components": list(_chosen(export))}
        file.update_tags(date=planned.day, tile=tile.tile, daskembed=json.dumps(provenance, sort_keys=True))
        for place, patches in _patches(export, tile, layout):
            y, x = int(layout.y[place]), int(layout.x[place])
            stay = layout.stay[place]
            if not stay.all():
                patches = np.where(stay, patches, np.array(_nodata(export), patches.dtype))
            file.write(patches, window=rasterio.windows.Window(x, y, across, down))


def _patches(export: Export, tile: ExportTile, layout: _Layout) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each row of the layout: its number in there, and its pixels ``(band, down, across)``."""
    chosen, shape = np.array(_chosen(export)), (-1, *export.grid, export.shape[-1])
    start = 0
    with open_published(export, tile) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            first, stop = np.searchsorted(layout.numbers, [start, end])
            if stop > first:
                table = file.read_row_group(group, columns=["source_url", "embeddings"])
                table = table.take(pa.array(layout.numbers[first:stop] - start))
                vectors = table["embeddings"].combine_chunks()
                vectors = vectors.chunk(0) if isinstance(vectors, pa.ChunkedArray) else vectors
                storage = vectors.storage if isinstance(vectors, pa.ExtensionArray) else vectors
                flat = storage.flatten().to_numpy(zero_copy_only=False).reshape(stop - first, -1)
                values = as_asked(export, flat, table["source_url"])
                for place, one in zip(range(first, stop), values, strict=True):
                    # Groups, if there are some, are before the components.
                    bands = np.moveaxis(one.reshape(shape), -1, 1).reshape(-1, *export.grid)
                    yield place, bands[chosen].astype(_dtype(export), copy=False)
            start = end
