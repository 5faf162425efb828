"""What an output holds: each tile's state, read off receipts, records, parts and published files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from daskembed.errors import InputError
from daskembed.geo.mgrs import check_tile, read_tiles
from daskembed.output.receipts import (
    RECEIPTS,
    RECORDS,
    STATE,
    Receipt,
    TileRecord,
    list_published,
    parts_folder,
    read_receipt,
    read_record,
)
from daskembed.storage.stores import Storage
from daskembed.text import visible

if TYPE_CHECKING:
    pass


STATES = ("done", "unfinished", "failed", "missing", "changed", "damaged")
KINDS = {"embeddings": "tiles", "cube": "cubes"}
MOST_LISTED = 20
"""Quarantined chips named for people; the CSV has all."""
_TILE = r"(?P<tile>\d\d[A-Z]{3})"
_VERSION = r"_v(?P<version>[0-9A-Za-z]+)"
_STATE_FILE = re.compile(_TILE + _VERSION + r"\.json")
_PART = re.compile(re.escape(f"{STATE}/parts/") + _TILE + _VERSION + r"/(?P<key>[^/]+)/\d+\.parquet")

_Key = tuple[str, str]
_Kept = TypeVar("_Kept", Receipt, TileRecord)


@dataclass(frozen=True, repr=False)
class TileStatus:
    """What an output holds of one version of a tile."""

    tile: str
    version: str
    status: Literal["done", "unfinished", "failed", "missing", "changed", "damaged"]
    """``missing`` and ``changed`` are finished tiles of which a file is gone or of another size than the receipt says;
    ``missing`` is a tile that was asked for and never begun, too; ``damaged`` is one whose receipt or record cannot be
    read."""
    files: list[str] = field(default_factory=list)
    """Names of the published files, one a format; they may be an earlier run's."""
    chips: int | None = None
    """Chips in the files, as the receipt says; None without a receipt."""
    parts_done: int = 0
    """Blocks of which the part is written; 0 once the tile is finished."""
    parts: int | None = None
    """Blocks in all; None if nothing says how many."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """URL -> reason; of an unfinished tile only the chips whose headers are bad."""
    rejected: dict[str, str] = field(default_factory=dict)
    """URL -> the rule that it breaks; of finished tiles."""
    reason: str | None = None
    """Why it failed, or what is not as it should be."""
    kind: Literal["embeddings", "cube"] = "embeddings"
    """What it holds; a cube's blocks are shards, and it has no version."""

    def __repr__(self) -> str:
        bad = f", {len(self.quarantined)} quarantined" if self.quarantined else ""
        bad += f", {len(self.rejected)} rejected" if self.rejected else ""
        why = f": {_line(self.reason)}" if self.reason else "" if self.chips is None else f": {self.chips} chips{bad}"
        version = " cube" if self.kind == "cube" else f" v{self.version}" if self.version else ""
        return f"<TileStatus {self.tile}{version} {self.status}{why}>"


@dataclass(frozen=True, repr=False)
class OutputStatus:
    """What an output holds."""

    output: str
    """Its URL or absolute path."""
    tiles: tuple[TileStatus, ...]
    """In the order of tile and version, then the cubes by tile."""

    def __repr__(self) -> str:
        more = [f"  and {len(self.tiles) - MOST_LISTED} more"] if len(self.tiles) > MOST_LISTED else []
        tiles = [f"  {tile.tile} {tile.version} {tile.status}" for tile in self.tiles[:MOST_LISTED]]
        return "\n".join([f"<OutputStatus> {visible(self.output)}", *tiles, *more, *summary(self)])

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of tiles, of those statuses that occur."""
        seen: Counter[str] = Counter(tile.status for tile in self.tiles)
        return {state: seen[state] for state in STATES if seen[state]}

    @property
    def sound(self) -> bool:
        """Whether all tiles are done, and their files as their receipts say."""
        return all(tile.status == "done" for tile in self.tiles)

    @property
    def quarantined(self) -> tuple[tuple[str, str, str, str], ...]:
        """Tile, version, URL and reason of each quarantined chip."""
        return tuple(
            (tile.tile, tile.version, url, why) for tile in self.tiles for url, why in sorted(tile.quarantined.items())
        )


def status(output: str, tiles: str | Iterable[str] | None = None, version: str | None = None) -> OutputStatus:
    """What an output holds: tiles done, unfinished, failed, missing and changed, and quarantined chips.

    Everything is read off the output's listing, its receipts and its records: three listings, one of each Zarr store,
    and one small file a tile. Published files are not opened; `daskembed.validate` does that.

    Parameters
    ----------
    output
        Folder or URL of the published files.
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids: only these, and those of them that were
        never begun are told as ``missing``.
    version
        Of the files, if others are not to be looked at.

    Raises
    ------
    InputError
        If `output` is no output of daskembed, or `tiles` is no list of tiles.
    StorageError
        If the store does not answer as it should.
    """
    storage = Storage(output)
    named = read_tiles(tiles) if isinstance(tiles, str) else tiles and map(check_tile, tiles)
    wanted = None if named is None else set(named)
    published: dict[_Key, dict[str, int | None]] = {}
    for file in list_published(storage, version):
        published.setdefault((file.tile, file.version), {})[file.name] = file.size
    state = storage.entries(STATE)
    if not published and not state:
        raise InputError(
            f"{storage.url} is no output of daskembed: it holds neither {STATE}/ nor files such as "
            "33TUL_20190401_20190416_v001.gpq; " + (_below(storage) or "give the `output` of a run")
        )
    parts: dict[_Key, Counter[str]] = {}
    for entry in state:
        if match := _PART.fullmatch(entry.path):
            key = (match["tile"], match["version"])
            parts.setdefault(key, Counter())[f"{parts_folder(*key)}/{match['key']}"] += 1
    paths = [entry.path for entry in state]

    def asked(key: _Key) -> bool:
        return (wanted is None or key[0] in wanted) and version in (None, key[1])

    receipts = _read_all(storage, paths, RECEIPTS, read_receipt, asked)
    records = _read_all(storage, paths, RECORDS, read_record, asked)
    found = [
        _judge(key, receipts.get(key), records.get(key), published.get(key, {}), parts.get(key, Counter()))
        for key in sorted({*receipts, *records, *published, *parts})
        if asked(key)
    ]
    kind: Literal["embeddings", "cube"] = "embeddings"
    if version is None:
        from daskembed.output.cube_state import CUBES
        from daskembed.output.status_cubes import judge_cubes

        found += judge_cubes(storage, paths, wanted)
        embedded = published or parts or any(path.startswith((f"{RECEIPTS}/", f"{RECORDS}/")) for path in paths)
        if not embedded and any(path.startswith(f"{CUBES}/") for path in paths):
            kind = "cube"
    return OutputStatus(storage.url, tuple(found if wanted is None else _audit(found, wanted, kind)))


def _below(storage: Storage) -> str | None:
    """Outputs right below a folder that is none, if there are any."""
    with ThreadPoolExecutor(16) as pool:
        folders = storage.folders()[:16]
        inside = pool.map(lambda folder: {path.rpartition("/")[2] for path in storage.folders(folder)}, folders)
        found = [storage.url_of(folder) for folder, names in zip(folders, inside, strict=True) if STATE in names]
    return f"did you mean {' or '.join(found[:3])}?" if found else None


def _audit(found: Iterable[TileStatus], wanted: Iterable[str], kind: Literal["embeddings", "cube"]) -> list[TileStatus]:
    """Of the tiles those that are wanted, and what is to be said of the ones that are not there, of this kind."""
    listed: dict[str, list[TileStatus]] = {tile: [] for tile in sorted(wanted)}
    for one in found:
        if one.tile in listed:
            listed[one.tile].append(one)
    never = "never begun: nothing of it is here"
    return [
        one
        for tile, those in listed.items()
        for one in those or [TileStatus(tile, "", "missing", reason=never, kind=kind)]
    ]


def _read_all(
    storage: Storage,
    paths: Iterable[str],
    folder: str,
    read: Callable[[Storage, str], _Kept],
    asked: Callable[[_Key], bool],
) -> dict[_Key, _Kept | InputError]:
    found: dict[str, _Key] = {}
    for path in paths:
        above, _, name = path.rpartition("/")
        if above == folder and (match := _STATE_FILE.fullmatch(name)):
            key = (match["tile"], match["version"])
            if asked(key):
                found[path] = key

    def attempt(path: str) -> _Kept | InputError | None:
        try:
            return read(storage, path)
        except FileNotFoundError:
            return None  # a run at work finished or began the tile since it was listed
        except InputError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        kept = zip(found.values(), pool.map(attempt, found), strict=True)
        return {key: one for key, one in kept if one is not None}


def _judge(
    key: _Key,
    receipt: Receipt | InputError | None,
    record: TileRecord | InputError | None,
    published: dict[str, int | None],
    parts: Counter[str],
) -> TileStatus:
    tile, version = key
    sizes = {name: size for name, size in published.items() if size is not None}
    for damaged in (receipt, record):
        if isinstance(damaged, InputError):
            return TileStatus(tile, version, "damaged", _newest(sizes), reason=str(damaged))
    assert not isinstance(receipt, InputError)
    assert not isinstance(record, InputError)
    # A run that dies between receipt and tidying up leaves a record that is older than the receipt.
    if record is not None and (receipt is None or record.time > receipt.finished):
        earlier = receipt.names if receipt is not None and {*receipt.names} <= {*sizes} else []
        return TileStatus(
            tile,
            version,
            record.status,
            files=earlier or _newest(sizes),
            chips=receipt.chips if receipt is not None and earlier else None,
            parts_done=parts[record.parts_folder] if record.parts_folder else 0,
            parts=record.parts,
            quarantined=record.quarantined,
            reason=record.reason,
        )
    if receipt is None:
        return TileStatus(
            tile,
            version,
            "unfinished",
            newest := _newest(sizes),
            parts_done=max(parts.values(), default=0),
            reason=f"{' and '.join(newest)} has no receipt: its run died, or it was not made by daskembed run"
            if newest
            else None,
        )
    done = TileStatus(
        tile,
        version,
        "done",
        receipt.names,
        receipt.chips,
        quarantined=receipt.quarantined,
        rejected=receipt.rejected,
    )
    if wrong := receipt.differences(sizes):
        gone = {*receipt.names} - {*sizes}
        reason = f"{'; '.join(wrong)}; the next run makes it again"
        return replace(done, status="missing" if gone else "changed", reason=reason)
    if others := sorted({*published} - {*receipt.names}):
        return replace(done, reason=f"beside it lies {', '.join(others)}, replaced by it; the next run removes that")
    return done


def _newest(sizes: dict[str, int]) -> list[str]:
    """Of the files of each format the one whose name is the last."""
    names = {name.rpartition(".")[2]: name for name in sorted(sizes)}
    return [names[suffix] for suffix in sorted(names)]


def summary(found: OutputStatus) -> list[str]:
    """The closing lines: how many tiles of each status, and the quarantined chips."""
    bad = found.quarantined
    counted = {kind: replace(found, tiles=tuple(t for t in found.tiles if t.kind == kind)).counts for kind in KINDS}
    lines = [
        *(
            f"{name:<12} {', '.join(f'{count} {state}' for state, count in counted[kind].items()) or 'none'}"
            for kind, name in KINDS.items()
            if counted[kind] or not (found.tiles or kind == "cube")
        ),
        f"quarantined  {len(bad)}",
        *(f"  {visible(url)}  {_line(why)}" for _, _, url, why in bad[:MOST_LISTED]),
    ]
    if len(bad) > MOST_LISTED:
        lines.append(f"  and {len(bad) - MOST_LISTED} more: `quarantined` lists all")
    rejected = sum(len(tile.rejected) for tile in found.tiles)
    lines += [f"rejected     {rejected}"] if rejected else []
    return lines


def _line(text: str) -> str:
    """`text` without its line breaks: messages of libraries have some."""
    return visible(" ".join(text.split()))
