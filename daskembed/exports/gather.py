"""The rows of one exported file, gathered from published files straight into their places."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import shapely

from daskembed.errors import TileError
from daskembed.exports.index import Places, open_published, read_kept, read_places
from daskembed.exports.profiles import encode_footer, get_profile
from daskembed.exports.rows import Column, Exported, columns_of
from daskembed.geo.footprints import box_around
from daskembed.output.parts import cast_vectors
from daskembed.quantization import quantize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import PlannedFile

READERS = 4
"""Published files that are read at a time for one exported file."""
_BOX = "bbox"
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
    # Of numbers that may be missing, readers take half as long again.
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False), export.dims)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
    columns = {name: lists if make is None else others[name] for name, make in _columns(export).items()}
    days = np.concatenate([share.places.days for share in shares]).astype("datetime64[D]")
    table = pa.table({**columns, _BOX: others[_BOX]}, metadata=_footer(export, days.min().item(), days.max().item()))
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
    about = read_kept(export, share.tile)
    for group, wanted, to in _groups(export, share):
        # Of the published rows those that are needed, and of what they give what is wanted.
        published, of = np.unique(wanted // export.patches, return_inverse=True)
        # Most often it is all, and each copy of vectors costs as much as to read them.
        rows = Exported(group if len(published) == len(group) else group.take(pa.array(published)), about, export.rows)
        wanted = of * export.patches + wanted % export.patches
        where, chosen = export.source.url_of(share.tile.name), rows.vectors
        if chosen.shape != (len(rows.number), export.dims):
            raise TileError(f"{where} has vectors of other lengths than {export.patches * export.dims}")
        try:
            chosen = chosen if len(chosen) == len(wanted) else chosen[wanted]
            vectors[to] = as_asked(export, chosen, rows.table["source_url"].take(pa.array(of)))
        except ValueError as error:
            raise TileError(f"{where}: {error}") from None
        found.append((_others(export, rows).take(pa.array(wanted)), to))
    return found


def as_asked(export: Export, vectors: NDArray[Any], urls: pa.ChunkedArray) -> NDArray[Any]:
    """Vectors of some rows as they are exported; raises `TileError` for values that `dtype` has no number for."""
    if export.calibration is not None:
        try:
            return quantize(vectors, export.calibration)
        except ValueError:
            if (whole := np.isfinite(vectors).all(axis=1)).all():
                raise
            raise TileError(
                f"the embedding of {urls[int(np.argmin(whole))]} has a value that is NaN or infinite, for which int8 "
                "has no number: have its tile made again, or give `dtype='float32'`"
            ) from None
    if export.dtype == vectors.dtype:
        return vectors
    return cast_vectors(vectors, export.dtype, urls.to_pylist())


def _groups(export: Export, share: _Share) -> Iterator[tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]]:
    """Row groups of a published file of which rows are wanted: which of those they give, and where these belong."""
    order = np.argsort(share.places.numbers)
    numbers, to = share.places.numbers[order], share.to[order]
    start, where = 0, export.source.url_of(share.tile.name)
    with open_published(export, share.tile) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows * export.patches
            first, stop = np.searchsorted(numbers, [start, end])
            if stop > first:
                table = file.read_row_group(group, columns=["source_url", "date", "embeddings", "geometry"])
                yield table, numbers[first:stop] - start, to[first:stop]
            start = end
        if len(numbers) and numbers[-1] >= start:
            raise TileError(f"{where} has fewer rows than when this export began")


def _columns(export: Export) -> dict[str, Column | None]:
    profile = None if export.profile is None else get_profile(export.profile).columns
    return columns_of(export.rows, export.columns, profile)


def _others(export: Export, rows: Exported) -> pa.Table:
    """What rows have beside their vectors."""
    boxes = rows.boxes.copy()
    across = boxes[:, 0] > boxes[:, 2]
    # Readers compare edges: a box around the Earth is found by all of them.
    boxes[across, 0], boxes[across, 2] = -180, 180
    columns = {name: make(rows) for name, make in _columns(export).items() if make is not None}
    return pa.table({**columns, _BOX: pa.StructArray.from_arrays([pa.array(edge) for edge in boxes.T], BBOX)})


def _footer(export: Export, first: date, last: date) -> dict[bytes, bytes]:
    """What the readers of a profile look for beside the rows."""
    if export.profile is None:
        return {}
    quantization = None if export.dtype == "float32" else export.dtype
    return encode_footer(get_profile(export.profile).footer(export.made, export.dims, quantization, (first, last)))


def bounds_of(rows: pa.Table) -> list[float]:
    """West, south, east and north of gathered rows, degrees; across 180 degrees west is more than east."""
    column = rows[_BOX].combine_chunks()
    boxes = np.stack([column.field(edge).to_numpy() for edge in BBOX], axis=1)
    # Those go around the Earth, and only their footprints say where they are; see `_others`.
    across = boxes[:, 2] - boxes[:, 0] > 180
    parts = shapely.get_parts(shapely.from_wkb(rows["geometry"].filter(pa.array(across)).to_pylist()))
    return [*box_around(np.concatenate([boxes[~across], shapely.bounds(parts).reshape(-1, 4)]))]
