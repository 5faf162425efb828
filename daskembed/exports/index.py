"""Where the rows of one published file go: checked, chosen and put in order, without reading a vector."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import json_digest, parse_as
from daskembed.errors import InputError, TileError
from daskembed.exports.rows import Exported, Squares, TileRows
from daskembed.exports.state import Checked, checked_path, forget_failure, index_path
from daskembed.exports.unique import TilePlaces, places_of, stays
from daskembed.geo.chips import CHIP
from daskembed.geo.hilbert import hilbert_keys
from daskembed.geo.regions import meets
from daskembed.output.index_rows import read_rows

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
    kept: bool = True
    """Whether it is known what its run has kept of its rows, if that is asked."""
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


def index_tile(
    export: Export, tile: ExportTile, near: Sequence[ExportTile] = (), *, planned: bool = False
) -> TileIndex:
    """Check a published file, and write down in the target where its rows go.

    An index that is there and was made for the same is left as it is.

    Parameters
    ----------
    export, tile
        What is made, of which published file.
    near
        If one row a place and date is to remain, `daskembed.exports.unique.neighbours`; the file itself as well.
    planned
        Whether there is a plan, by which all of these have rows in the export: none of them can be skipped by now.

    Raises
    ------
    TileError
        If the file is not as its receipt says, or cannot be read, and is not to be skipped; so one of `near`.
    """
    made_for = json_digest([export.identity, asdict(tile), [asdict(one) for one in near if one != tile]])
    if (known := _known(export, tile.name)) is not None and known.made_for == made_for:
        return known
    try:
        places, of, kept = _places(export, tile, near, skip=export.skip_damaged and not planned)
    except TileError as error:
        if planned:
            raise TileError(
                f"{error}; this export was planned with it: put it back as it was, or make the export anew with "
                "`overwrite=True`, and `skip_damaged=True` to leave it out"
            ) from None
        if not export.skip_damaged:
            raise TileError(f"{error}; have its tile made again, or leave it out with `skip_damaged=True`") from None
        return TileIndex(tile.name, made_for, 0, 0, [], damage=str(error))
    days, counts = np.unique(places.days.astype("datetime64[D]"), return_counts=True)
    by_day = dict(zip(map(str, days), counts.tolist(), strict=True))
    found = TileIndex(tile.name, made_for, len(places.keys), of, _pieces(export, places.keys), by_day, kept)
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
    forget_failure(export.target, tile.name)
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


def read_kept(export: Export, tile: ExportTile) -> TileRows:
    """What is known of a published file's rows beside what it says itself, as far as the export needs it."""
    known = None
    if export.needs_kept and tile.sha256 is not None:
        known = read_rows(export.source, tile.tile, tile.version, tile.sha256)
    return TileRows(tile.tile, export.grid, export.made.get("window") or CHIP, known)


def check_once(export: Export, tile: ExportTile) -> None:
    """As `check_bytes`; what was found is kept in the target, so that no file is read for each of its neighbours."""
    path, of = checked_path(tile.name), json_digest(asdict(tile))
    try:
        found = parse_as(Checked, export.target.get(path))
    except (FileNotFoundError, ValueError):
        found = None
    if found is None or found.of != of:
        damage = ""
        try:
            check_bytes(export.source, tile)
        except TileError as error:
            damage = str(error)
        found = Checked(of, damage)
        export.target.put(path, json.dumps(asdict(found)).encode())
    if found.damage:
        raise TileError(found.damage)


def _places(export: Export, tile: ExportTile, near: Sequence[ExportTile], *, skip: bool) -> tuple[Places, int, bool]:
    """The places of a file's rows, how many it would give if all were exported, and whether its run kept more."""
    if export.checks_neighbours:
        check_once(export, tile)
    else:
        check_bytes(export.source, tile)
    with _readable(export, tile):
        rows = _read(export, tile)
        keys = keys_of(rows.boxes)
        stays = _wanted(export, rows)
        if near:
            stays &= _unique(export, tile, near, skip=skip)
    days = rows.table["date"].cast(pa.int32()).to_numpy()[rows.number]
    # Rows of the same place and day are in the order of their chips.
    _, urls = np.unique(np.array(rows.table["source_url"].to_pylist(), object), return_inverse=True)
    of, numbers = urls[rows.number], np.flatnonzero(stays)
    order = numbers[np.lexsort((numbers, of[numbers], days[numbers], keys[numbers]))]
    places = Places(keys[order], order.astype(np.int64), days[order].astype(np.int32))
    return places, len(keys), rows.about.known is not None or not export.needs_kept


@contextlib.contextmanager
def _readable(export: Export, tile: ExportTile) -> Iterator[None]:
    """Raise `TileError` for whatever is wrong with a file that is read."""
    where = export.source.url_of(tile.name)
    try:
        yield
    except FileNotFoundError:
        raise TileError(f"{where} is gone") from None
    except (pa.ArrowException, shapely.errors.ShapelyError, InputError, ValueError, KeyError) as error:
        raise TileError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _read(export: Export, tile: ExportTile) -> Exported:
    """A file's rows without their vectors."""
    with pq.ParquetFile(export.source.open_reader(tile.name)) as file:
        table = file.read(columns=["source_url", "date", "geometry"])
    return Exported(table, read_kept(export, tile), export.rows)


def _wanted(export: Export, rows: Exported) -> NDArray[np.bool_]:
    """Which of some rows are of the dates and the region that are asked for."""
    wanted = np.ones(len(rows.table), bool)
    if export.dates is not None:
        first, last = (np.datetime64(day) for day in export.dates)
        days = rows.table["date"].to_numpy().astype("datetime64[D]")
        wanted &= (days >= first) & (days <= last)
    if export.region is None:
        return wanted[rows.number]
    wanted &= meets(export.region, rows.shapes)
    found = wanted[rows.number]
    if rows.patches:
        some = Exported(rows.table.filter(pa.array(wanted)), rows.about, export.rows)
        found[found] = meets(export.region, shapely.from_wkb(some.geometry.to_pylist()))
    return found


def _unique(export: Export, tile: ExportTile, near: Sequence[ExportTile], *, skip: bool) -> NDArray[np.bool_]:
    """Which rows of a file stay where tiles overlap; `skip` has damaged ones beside it left out."""
    named = {one.tile: one for one in near}

    def read(name: str) -> TilePlaces:
        other = named[name]
        try:
            if other != tile and export.checks_neighbours:
                # For what is left out no other row may leave.
                check_once(export, other)
            with _readable(export, other):
                rows = _read(export, other)
                return replace(places_of(rows), wanted=_wanted(export, rows))
        except TileError:
            if other == tile or not skip:
                raise
            return TilePlaces(name, np.empty(0, "datetime64[D]"), Squares(np.empty(0, np.int32), np.empty((0, 4))))

    return stays(tile.tile, {name: one.bbox for name, one in named.items()}, read)


@contextlib.contextmanager
def open_published(export: Export, tile: ExportTile) -> Iterator[pq.ParquetFile]:
    """A published file whose rows are where its index has them; raises `TileError` if it is another by now.

    At the end too, as of a store each range is read by itself.
    """
    _check_unchanged(export.source, tile)
    with export.source.open_reader(tile.name) as plain, pq.ParquetFile(plain) as file:
        yield file
    _check_unchanged(export.source, tile)


def _check_unchanged(source: Storage, tile: ExportTile) -> None:
    where = source.url_of(tile.name)
    try:
        now = source.entry(tile.name)
    except FileNotFoundError:
        raise TileError(f"{where} is gone") from None
    if not now.holds(tile.size, tile.etag):
        raise TileError(
            f"{where} was published anew since this export began: it has {now.size:,} bytes, and had {tile.size:,}; "
            f"its tag is {now.etag}, and was {tile.etag}"
        )


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


def keys_of(boxes: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Places along the curve of the centres of boxes as `daskembed.exports.rows.boxes_of` gives them."""
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
