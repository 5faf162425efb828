"""The rows of one exported file, gathered from published files straight into their places."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.errors import TileError
from daskembed.exports.index import Places, boxes_of, read_places
from daskembed.output.parts import cast_vectors
from daskembed.quantization import quantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import PlannedFile

READERS = 4
"""Published files that are read at a time for one exported file."""
BBOX = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Share:
    """What one published file has of an exported one."""

    tile: ExportTile
    places: Places
    to: NDArray[np.int64]
    """Row of the exported file, of each of its places."""


def gather(export: Export, planned: PlannedFile, tiles: Mapping[str, ExportTile]) -> tuple[pa.Table, list[str]]:
    """The rows of a planned file, in their order, and the published files that have some.

    Rows are in the order of their keys along the curve, then of date, published file, chip and patch: nothing of it
    depends on who is quicker. In memory are the vectors of the file, and of each reader a row group of a published one.

    Raises
    ------
    TileError
        If a published file is not what it was when it was indexed, or a value is too large for `dtype`.
    """
    shares = _shares(export, planned, tiles)
    rows = sum(len(share.to) for share in shares)
    vectors = np.empty((rows, export.dims), export.dtype)
    with ThreadPoolExecutor(READERS) as pool:
        found = [table for tables in pool.map(lambda share: _fill(export, share, vectors), shares) for table in tables]
    if not rows:
        raise TileError(f"{planned.name} has no row: what it was planned for is gone; run it again")
    # Of all columns but the vectors: as they were read, then in the order of the file.
    others = pa.concat_tables([table for table, _ in found])
    others = others.take(pa.array(np.argsort(np.concatenate([to for _, to in found])))).combine_chunks()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), export.dims)
    columns: dict[str, Any] = {name: others[name] for name in others.column_names}
    table = pa.table(
        {
            **{name: columns.pop(name) for name in ("source_url", "date")},
            "embeddings": lists,
            "geometry": columns.pop("geometry"),
            **columns,
        }
    )
    return table, [share.tile.name for share in shares]


def _shares(export: Export, planned: PlannedFile, tiles: Mapping[str, ExportTile]) -> list[_Share]:
    """What each published file has of a planned one."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: read_places(export, name).within(planned.first, planned.end), planned.tiles)
        places = {name: one for name, one in zip(planned.tiles, found, strict=True) if len(one.keys)}
    if not places:
        return []
    names = sorted(places)
    counts = [len(places[name].keys) for name in names]
    keys, days = (np.concatenate([getattr(places[name], what) for name in names]) for what in ("keys", "days"))
    # Those of one tile are in their order already, and the sort is stable: tiles follow in that of their names.
    order = np.lexsort((np.repeat(np.arange(len(names)), counts), days, keys))
    to = np.empty(len(order), np.int64)
    to[order] = np.arange(len(order))
    return [
        _Share(tiles[name], places[name], mine)
        for name, mine in zip(names, np.split(to, np.cumsum(counts)[:-1]), strict=True)
    ]


def _fill(export: Export, share: _Share, vectors: NDArray[Any]) -> list[tuple[pa.Table, NDArray[np.int64]]]:
    """Put a published file's vectors into their places; gives its rows' other columns, and where they belong."""
    found = []
    for table, wanted, to in _groups(export, share):
        values = table["embeddings"].combine_chunks()
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        flat = values.flatten().to_numpy(zero_copy_only=False)
        if flat.size != len(table) * export.patches * export.dims:
            where = export.source.url_of(share.tile.name)
            raise TileError(f"{where} has vectors of other lengths than {export.patches * export.dims}")
        chosen = flat.reshape(-1, export.dims)[wanted]
        urls = table["source_url"].take(pa.array(wanted // export.patches))
        try:
            vectors[to] = as_asked(export, chosen, urls)
        except ValueError as error:
            raise TileError(f"{export.source.url_of(share.tile.name)}: {error}") from None
        found.append((_others(export, table.drop_columns(["embeddings"]), wanted), to))
    return found


def as_asked(export: Export, vectors: NDArray[Any], urls: pa.ChunkedArray) -> NDArray[Any]:
    """Vectors of some rows as they are exported."""
    if export.calibration is not None:
        return quantize(vectors, export.calibration)
    if export.dtype == vectors.dtype:
        return vectors
    return cast_vectors(vectors, export.dtype, urls.to_pylist())


def _groups(export: Export, share: _Share) -> Iterator[tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]]:
    """Row groups of a published file of which rows are wanted: which of those they give, and where these belong."""
    order = np.argsort(share.places.numbers)
    numbers, to = share.places.numbers[order], share.to[order]
    start, where = 0, export.source.url_of(share.tile.name)
    with export.source.open_reader(share.tile.name) as plain, pq.ParquetFile(plain) as file:
        if (size := plain.size()) != share.tile.size:
            raise TileError(f"{where} has {size:,} bytes, and had {share.tile.size:,} when this export began")
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows * export.patches
            first, stop = np.searchsorted(numbers, [start, end])
            if stop > first:
                table = file.read_row_group(group, columns=["source_url", "date", "embeddings", "geometry"])
                yield table, numbers[first:stop] - start, to[first:stop]
            start = end
        if len(numbers) and numbers[-1] >= start:
            raise TileError(f"{where} has fewer rows than when this export began")


def _others(export: Export, table: pa.Table, wanted: NDArray[np.int64]) -> pa.Table:
    """What some rows have beside their vectors, in the order of `wanted`: numbers of rows that a table gives."""
    table = table.take(pa.array(wanted))
    boxes = boxes_of(shapely.from_wkb(table["geometry"].to_pylist()))
    across = boxes[:, 0] > boxes[:, 2]
    # Readers compare edges: a box around the Earth is found by all of them.
    boxes[across, 0], boxes[across, 2] = -180, 180
    return pa.table(
        {
            "source_url": table["source_url"],
            "date": table["date"],
            "geometry": table["geometry"],
            "bbox": pa.StructArray.from_arrays([pa.array(edge) for edge in boxes.T], BBOX),
        }
    )


def bounds_of(rows: pa.Table) -> list[float]:
    """West, south, east and north of gathered rows, degrees."""
    box = rows["bbox"].combine_chunks()
    west, south, east, north = (box.field(edge).to_numpy() for edge in BBOX)
    return [float(west.min()), float(south.min()), float(east.max()), float(north.max())]
