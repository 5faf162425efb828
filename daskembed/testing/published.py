"""Published files of made-up vectors, written without an encoder: many tiles within seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np

from daskembed.geo.chips import CHIP, CHIPS_ACROSS
from daskembed.geo.footprints import to_lonlat
from daskembed.geo.mgrs import tile_corner
from daskembed.output import geoparquet
from daskembed.output.index_rows import write_rows
from daskembed.output.parts import write_part
from daskembed.output.state import Receipt, now, write_receipt
from daskembed.storage.stores import Storage
from daskembed.vectors import VectorArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDE = 10 * CHIP
_PART = "_daskembed/parts/made-up.parquet"


def write_published(
    output: str | Path,
    tiles: Iterable[str],
    *,
    side: int = CHIPS_ACROSS,
    shape: tuple[int, ...] = (768,),
    days: tuple[str, ...] = ("2024-06-01",),
    dtype: str = "float32",
    version: str = "001",
    level: str | None = None,
    vectors: Callable[[str, int], NDArray[np.float32]] | None = None,
) -> list[str]:
    """Write an output as a run would leave it: a GeoParquet file and a receipt each tile.

    Parameters
    ----------
    output
        Folder or URL.
    tiles
        MGRS tile ids.
    side
        Chips along each side of a tile, of 512 pixels of 10 m from its north-western corner.
    shape
        Of a row's embedding: one number, or rows and columns of patches first, or groups before these.
    days
        Each chip is there once a day.
    dtype, version, level
        As of a run; the level is ``patch`` where there are rows and columns, ``group`` with groups, else ``mean``.
    vectors
        ``(rows, *shape)`` of a tile and so many rows; seeded noise by the tile's name, by default.

    Returns
    -------
    list of str
        Names of the files.
    """
    storage, names = Storage(str(output)), []
    dims = ["group", "row", "col", "embedding"][-len(shape) :]
    level = level or {1: "mean", 3: "patch", 4: "group"}[len(shape)]
    made = {"encoder": "clay-v0", "size": "made-up", "level": level, "dims": dims, "windows": 1, "dtype": dtype}
    for tile in tiles:
        frame = _frame(tile, side, shape, days, vectors or _noise(shape))
        with storage.open_writer(_PART) as file:
            write_part(frame, file, shape)
        first, last = (day.replace("-", "") for day in (min(days), max(days)))
        name = f"{tile}_{first}_{last}_v{version}{geoparquet.SUFFIX}"
        found = geoparquet.publish(storage, name, [_PART], made | {"tile": tile})
        receipt = Receipt(
            tile=tile,
            version=version,
            files=[found],
            chips=len(frame),
            quarantined={},
            rejected={},
            filled={},
            notes=[],
            settings={"source": "s3://made-up/chips", "encoder": "clay-v0 made-up", "level": level, "dtype": dtype},
            listing="made up",
            started=now(),
            finished=now(),
        )
        write_rows(storage, tile, version, [_PART], [found])
        write_receipt(storage, receipt)
        names.append(name)
    storage.delete([_PART])
    return names


def _noise(shape: tuple[int, ...]) -> Callable[[str, int], NDArray[np.float32]]:
    def make(tile: str, rows: int) -> NDArray[np.float32]:
        seed = int.from_bytes(tile.encode(), "big")
        return np.random.default_rng(seed).standard_normal((rows, *shape), np.float32)

    return make


def _frame(
    tile: str,
    side: int,
    shape: tuple[int, ...],
    days: tuple[str, ...],
    vectors: Callable[[str, int], NDArray[np.float32]],
) -> gpd.GeoDataFrame:
    """Rows as `daskembed.to_geodataframe` gives them, a chip's days one after another."""
    epsg, west, north = tile_corner(tile)
    row, col, day = (places.ravel() for places in np.indices((side, side, len(days))))
    bounds = np.stack(
        [west + col * _SIDE, north - (row + 1) * _SIDE, west + (col + 1) * _SIDE, north - row * _SIDE], axis=1
    ).astype(np.float64)
    _, _, footprints = to_lonlat(epsg, bounds)
    made = vectors(tile, len(row)).reshape(len(row), -1)
    urls = [
        f"s3://made-up/chips/{tile}/claytile_{tile}_{n * side + m + 1:04d}_{days[d]}.tif"
        for n, m, d in zip(row, col, day, strict=True)
    ]
    return gpd.GeoDataFrame(
        {
            "source_url": urls,
            "chip_url": urls,
            "date": [date.fromisoformat(days[d]) for d in day],
            "embeddings": VectorArray(made),
            "epsg": np.full(len(row), epsg, np.int32),
            **dict(zip(("west", "south", "east", "north"), bounds.T, strict=True)),
            "quarantined": None,
            "rejected": None,
            "filled": 0,
            "noted": None,
        },
        geometry=footprints,
        crs="OGC:CRS84",
    )
