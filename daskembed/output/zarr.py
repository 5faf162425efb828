"""Zarr v3 stores: one a tile, its patches on one grid ``(time, [group,] embedding, y, x)``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import MOST_JSON, parse_json
from daskembed.errors import InputError
from daskembed.geo.cells import EDGES, common_grid, place
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import to_lonlat
from daskembed.output import zarr_store
from daskembed.output.geozarr import ROOT
from daskembed.output.parts import cast_vectors
from daskembed.output.protocol import Place, Published
from daskembed.timings import timed

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

    from daskembed.encoders.description import Description
    from daskembed.geo.cells import Placed
    from daskembed.storage.stores import Storage

SUFFIX = ".zarr"
_WHAT = "a Zarr store"
_ONE_GRID = f"{_WHAT} has one grid; give `format='geoparquet'`"
_PIECES = 8
"""Along each side of a footprint, of which each has straight edges in degrees."""
_PLACES = ("source_url", "date", "epsg", *EDGES)


def check_level(description: Description, level: str) -> None:
    """Raise `InputError` if a level has no grid of patches."""
    if not _has_grid(description.levels[level]):
        able = [name for name, sides in description.levels.items() if _has_grid(sides)]
        raise InputError(
            f"`format='zarr'` needs a grid of patches, and level {level} of {description.title} has none: "
            + (
                f"choose `level` {' or '.join(able)}, or `format='geoparquet'`"
                if able
                else "choose `format='geoparquet'`"
            )
        )


def check_chips(index: gpd.GeoDataFrame, description: Description, level: str) -> None:
    """Raise `TileError` if a tile's usable chips do not share a grid."""
    sides = description.levels[level]
    across = math.isqrt(sides.get("window", 1))
    good = index[index["quarantined"].isna()]
    if len(good):
        bounds = good[list(EDGES)].to_numpy(np.float64)
        cells = (across * sides["row"], across * sides["col"])
        common_grid(
            list(good["source_url"]),
            good["epsg"].to_numpy(),
            bounds,
            cells,
            pixels=CHIP,
            why=f"{_WHAT} has one grid; give `format='geoparquet'`",
        )


def publish(output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
    """Make one Zarr v3 store of a tile's parts, a shard in memory at a time.

    One task writes all of it: no chunk ever has two writers.

    Parameters
    ----------
    output, name
        Where; the store can be opened once it is complete. An earlier one is removed first.
    parts
        The tile's part files in the order of their rows.
    provenance
        What made the embeddings: written to the root's attributes under ``daskembed``. Its `dims` are the dimensions
        of a row, `dtype` is the type of the values, and `window` the pixels along each side of a row.

    Raises
    ------
    TileError
        If the rows do not share a grid, two of them are of the same place and date, or a value is too large.
    """
    with timed("write"):
        sides = dict(zip(provenance["dims"], _row_shape(output, parts[0]), strict=True))
        placed, reader = _find_rows(output, parts, sides, provenance)
        chips = len(placed.days) // provenance.get("windows", 1)
        made = {**provenance, "shape": list(sides.values()), "chips": chips}
        with reader:
            return zarr_store.write(output, name, placed, made, reader.read)


def size(output: Storage, name: str) -> int | None:
    """Bytes of a store's objects, from their listing; None if it has no root, as while it is written."""
    entries = output.entries(name)
    return sum(entry.size for entry in entries) if any(entry.path == f"{name}/{ROOT}" for entry in entries) else None


def read_provenance(output: Storage, name: str) -> dict[str, Any] | None:
    """What a store's attributes say under ``daskembed``; None if it was not made by this package."""
    try:
        found = parse_json(output.get(f"{name}/{ROOT}", most=MOST_JSON))["attributes"]["daskembed"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def read_place(output: Storage, name: str) -> Place:
    """The grid of a store, as its root tells it."""
    try:
        told = parse_json(output.get(f"{name}/{ROOT}", most=MOST_JSON))["attributes"]
        code, (height, width) = str(told["proj:code"]), map(int, told["spatial:shape"])
        west, south, east, north = map(float, told["spatial:bbox"])
        transform = [float(one) for one in told["spatial:transform"]]
        epsg = int(code.removeprefix("EPSG:"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its root does not say where it is: {type(error).__name__} {error}") from None
    # A side of 100 km that is straight in the projection is none in degrees.
    x, y = np.linspace(west, east, _PIECES + 1), np.linspace(south, north, _PIECES + 1)
    bounds = [(x[i], y[j], x[i + 1], y[j + 1]) for i, j in np.ndindex(_PIECES, _PIECES)]
    *_, pieces = to_lonlat(epsg, np.array(bounds))
    projection = {
        "proj:code": code,
        "proj:shape": [height, width],
        "proj:transform": transform,
        "proj:bbox": [west, south, east, north],
    }
    return Place(shapely.union_all(pieces[~shapely.is_missing(pieces)], grid_size=1e-7), projection)


def remove(output: Storage, name: str) -> None:
    """Remove a store, its root first."""
    zarr_store.remove(output, name)


def _has_grid(sides: Mapping[str, int]) -> bool:
    return "row" in sides and "col" in sides


def _row_shape(output: Storage, part: str) -> tuple[int, ...]:
    with pq.ParquetFile(output.open_reader(part)) as file:
        return tuple(file.schema_arrow.field("embeddings").type.shape)


def _find_rows(
    output: Storage, parts: Sequence[str], sides: Mapping[str, int], provenance: Mapping[str, Any]
) -> tuple[Placed, _Reader]:
    """Where the rows of all parts are: on the grid, and in their files."""
    tables, part, group, within = [], [], [], []
    for number, path in enumerate(parts):
        with pq.ParquetFile(output.open_reader(path)) as file:
            tables.append(file.read(columns=list(_PLACES)).replace_schema_metadata())
            counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        part.append(np.full(sum(counts), number))
        group.append(np.repeat(np.arange(len(counts)), counts))
        within.append(np.concatenate([np.arange(count) for count in counts]) if counts else np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    urls = table["source_url"].to_pylist()
    bounds = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    days = table["date"].to_numpy().astype("datetime64[D]")
    cells, pixels = (sides["row"], sides["col"]), provenance.get("window", CHIP)
    placed = place(urls, table["epsg"].to_numpy(), bounds, days, cells, pixels=pixels, what=_WHAT)
    where = np.stack([np.concatenate(part), np.concatenate(group), np.concatenate(within)], axis=1)
    dtype = provenance.get("dtype", "float32")
    return placed, _Reader(output, parts, where, urls, tuple(sides.values()), dtype)


class _Reader:
    """The vectors of the parts' rows, the latest row group in memory."""

    def __init__(
        self,
        output: Storage,
        parts: Sequence[str],
        where: NDArray[np.int64],
        urls: list[str],
        shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        """`where` has part, row group and number in this of each row."""
        self._output, self._parts, self._where = output, parts, where
        self._urls, self._shape, self._dtype = urls, shape, dtype
        self._file: pq.ParquetFile | None = None
        self._at: tuple[int, int] = (-1, -1)
        self._held: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, row: int) -> NDArray[Any]:
        """A row's vectors, of the type that is published."""
        part, group, within = map(int, self._where[row])
        if self._at != (part, group):
            if self._file is None or self._at[0] != part:
                self._close()
                self._file = pq.ParquetFile(self._output.open_reader(self._parts[part]))
            column = self._file.read_row_group(group, columns=["embeddings"])["embeddings"].combine_chunks()
            storage = column.chunk(0).storage if isinstance(column, pa.ChunkedArray) else column.storage
            self._held = storage.flatten().to_numpy().reshape(len(storage), -1)
            self._at = (part, group)
        vectors = self._held[within].reshape(1, *self._shape)
        found: NDArray[Any] = cast_vectors(vectors, self._dtype, self._urls[row : row + 1])[0]
        return found
