"""Where the rows of one published file go: checked, chosen and put in order, without reading a vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import json_digest, parse_as
from daskembed.errors import TileError
from daskembed.exports.state import index_path
from daskembed.geo import wkb
from daskembed.geo.footprints import bounding_box
from daskembed.geo.hilbert import hilbert_keys
from daskembed.geo.regions import meets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.storage.stores import Storage

PIECES_A_FILE = 64
"""Pieces of which the rows of one exported file come, at least: files are as much larger or smaller than wanted."""
PIECES_A_TILE = 16
"""Least pieces of a tile: where the curve leaves it and comes back, nothing of what is between is in any."""
_HASHED = 8 * 2**20
"""Bytes of a file that are read at a time to hash it."""
_ABOUT = b"daskembed-index"


@dataclass(frozen=True)
class Piece:
    """Some rows of a tile that follow on each other along the curve."""

    first: int
    """Key of the first row,"""
    last: int
    """and of the last."""
    rows: int


@dataclass(frozen=True)
class TileIndex:
    """What the client is told of a published file."""

    name: str
    """Of the file."""
    made_for: str
    """Digest of what it was made for."""
    rows: int
    """That are exported."""
    of: int
    """Rows that the file would give if all were exported."""
    pieces: list[Piece]
    days: dict[str, int] = field(default_factory=dict)
    """Date, ISO 8601 -> rows that are exported."""
    damage: str = ""
    """Why it is left out."""


@dataclass(frozen=True)
class Places:
    """The rows of one published file that are exported, in their order."""

    keys: NDArray[np.uint64]
    """Along the curve, ascending."""
    numbers: NDArray[np.int64]
    """Of the row that it would be if all rows of the file were exported, in the file's order."""
    days: NDArray[np.int32]
    """Since 1970."""

    def within(self, first: int, end: int) -> Places:
        """Those of the keys from `first` to before `end`."""
        start, stop = np.searchsorted(self.keys, np.array([first, end], np.uint64))
        return Places(self.keys[start:stop], self.numbers[start:stop], self.days[start:stop])


def index_tile(export: Export, tile: ExportTile) -> TileIndex:
    """Check a published file, and write down in the target where its rows go.

    An index that is there and was made for the same is left as it is.

    Raises
    ------
    TileError
        If the file is not as its receipt says, or cannot be read, and is not to be skipped.
    """
    made_for = json_digest([export.identity, asdict(tile)])
    if (known := _known(export, tile.name)) is not None and known.made_for == made_for:
        return known
    try:
        places, of = _places(export, tile)
    except TileError as error:
        if not export.skip_damaged:
            raise TileError(f"{error}; have its tile made again, or leave it out with `skip_damaged=True`") from None
        return TileIndex(tile.name, made_for, 0, 0, [], damage=str(error))
    days, counts = np.unique(places.days.astype("datetime64[D]"), return_counts=True)
    by_day = dict(zip(map(str, days), counts.tolist(), strict=True))
    found = TileIndex(tile.name, made_for, len(places.keys), of, _pieces(export, places.keys), by_day)
    table = pa.table(
        {name: pa.array(getattr(places, name)) for name in ("keys", "numbers", "days")},
        metadata={_ABOUT: json.dumps(asdict(found))},
    )
    export.confirm()
    with export.target.open_writer(index_path(tile.name)) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            column_encoding=dict.fromkeys(table.column_names, _DELTA),
            use_dictionary=False,
        )
    return found


_DELTA = "DELTA_BINARY_PACKED"
"""Keys and numbers that ascend take few bytes as their differences."""


def read_places(export: Export, name: str) -> Places:
    """The index of a published file."""
    with pq.ParquetFile(export.target.open_reader(index_path(name))) as file:
        table = file.read()
    return Places(*(table[column].to_numpy() for column in ("keys", "numbers", "days")))


def _known(export: Export, name: str) -> TileIndex | None:
    """What an earlier run wrote; None if there is nothing of it."""
    try:
        with pq.ParquetFile(export.target.open_reader(index_path(name))) as file:
            return parse_as(TileIndex, (file.metadata.metadata or {})[_ABOUT])
    except (FileNotFoundError, KeyError, ValueError, pa.ArrowException):
        return None


def _places(export: Export, tile: ExportTile) -> tuple[Places, int]:
    """The places of a file's rows, and how many it would give if all were exported."""
    where = export.source.url_of(tile.name)
    try:
        check_bytes(export.source, tile)
        with pq.ParquetFile(export.source.open_reader(tile.name)) as file:
            table = file.read(columns=["source_url", "date", "geometry"])
        wkb.check(values := table["geometry"].to_pylist())
        shapes = shapely.from_wkb(values)
        keys = keys_of(boxes_of(shapes))
    except FileNotFoundError:
        raise TileError(f"{where} is gone") from None
    except (pa.ArrowException, shapely.errors.ShapelyError, ValueError, KeyError) as error:
        raise TileError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}") from None
    days = table["date"].cast(pa.int32()).to_numpy()
    stays = np.ones(len(table), bool)
    if export.dates is not None:
        first, last = (np.datetime64(day).astype("datetime64[D]").astype(np.int64) for day in export.dates)
        stays &= (days >= first) & (days <= last)
    if export.region is not None:
        stays &= meets(export.region, shapes)
    rows = np.flatnonzero(stays)
    # Rows of the same place and day are in the order of their chips.
    _, urls = np.unique(np.array(table["source_url"].to_pylist(), object), return_inverse=True)
    order = rows[np.lexsort((rows, urls[rows], days[rows], keys[rows]))]
    return Places(keys[order], order.astype(np.int64), days[order].astype(np.int32)), len(table)


def check_bytes(source: Storage, tile: ExportTile) -> None:
    """Raise `TileError` if a file is not what its receipt says."""
    if tile.sha256 is None:
        return
    digest, size = hashlib.sha256(), 0
    for data in _chunks(source, tile.name):
        digest.update(data)
        size += data.size
    if digest.hexdigest() != tile.sha256:
        where = source.url_of(tile.name)
        raise TileError(
            f"{where} is damaged: its {size:,} bytes have the SHA-256 {digest.hexdigest()[:16]}..., and its receipt "
            f"says {tile.sha256[:16]}..."
        )


def _chunks(source: Storage, name: str) -> Iterator[pa.Buffer]:
    with source.open_reader(name) as file:
        # As a buffer, what is mapped into memory is not copied.
        while (data := file.read_buffer(_HASHED)).size:
            yield data


def boxes_of(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """West, south, east and north of each footprint, ``(row, 4)``; west is more than east across 180 degrees."""
    boxes: NDArray[np.float64] = shapely.bounds(shapes)
    for row in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > 180):
        boxes[row] = bounding_box(shapes[row : row + 1])
    return boxes


def keys_of(boxes: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Places along the curve of the centres of boxes as `boxes_of` gives them."""
    west, south, east, north = boxes.T
    lon = (west + np.where(west > east, east + 360, east)) / 2
    return hilbert_keys(np.where(lon > 180, lon - 360, lon), (south + north) / 2)


def _pieces(export: Export, keys: NDArray[np.uint64]) -> list[Piece]:
    """Cut a tile's rows where the curve makes its largest leaps, and where pieces would be too large."""
    if not len(keys):
        return []
    most = max(1, export.sizes.file // export.row_bytes // PIECES_A_FILE)
    leaps = np.diff(keys)
    cuts = np.argsort(leaps, kind="stable")[::-1][: PIECES_A_TILE - 1] + 1
    starts = np.unique(np.concatenate([[0], cuts[leaps[cuts - 1] > 0], np.arange(0, len(keys), most)]))
    ends = np.append(starts[1:], len(keys))
    return [Piece(int(keys[a]), int(keys[b - 1]), int(b - a)) for a, b in zip(starts, ends, strict=True)]
