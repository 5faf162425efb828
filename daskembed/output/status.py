"""What an output holds: each tile's state, read off receipts, records, parts and published files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

from daskembed.errors import InputError
from daskembed.geo.mgrs import check_tile, read_tiles
from daskembed.output.published import list_published
from daskembed.output.stac_documents import STAC, item_of
from daskembed.output.state import (
    CUBES,
    RECEIPTS,
    RECORDS,
    STATE,
    Receipt,
    TileRecord,
    parts_folder,
    read_receipt,
    read_record,
)
from daskembed.output.status_cubes import judge_cubes
from daskembed.output.tile_status import OutputStatus, StacStatus, TileStatus
from daskembed.paths import StrPath, as_text
from daskembed.storage.stores import Storage

_TILE = r"(?P<tile>\d\d[A-Z]{3})"
_VERSION = r"_v(?P<version>[0-9A-Za-z]+)"
_STATE_FILE = re.compile(_TILE + _VERSION + r"\.json")
_PART = re.compile(re.escape(f"{STATE}/parts/") + _TILE + _VERSION + r"/(?P<key>[^/]+)/\d+\.parquet")

_FILE = re.compile(_TILE + r"_\d+_\d+" + _VERSION + r"\.")

_Key = tuple[str, str]
_Kept = TypeVar("_Kept", Receipt, TileRecord)


def status(output: str, tiles: StrPath | Iterable[str] | None = None, version: str | None = None) -> OutputStatus:
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
    if isinstance(tiles, str | os.PathLike):
        tiles = read_tiles(as_text(tiles))
    named = tiles and map(check_tile, tiles)
    wanted = None if named is None else set(named)
    published: dict[_Key, dict[str, int | None]] = {}
    for file in list_published(storage, version):
        published.setdefault((file.tile, file.version), {})[file.name] = file.size
    state = storage.entries(STATE)
    if not published and not state:
        storage.check_exists()
        raise InputError(
            f"{storage.url} is no output of daskembed: it holds neither {STATE}/ nor files such as "
            "33TUL_20190401_20190416_v001.gpq; " + (_beside(storage) or "give the `output` of a run")
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
        found += judge_cubes(storage, paths, wanted)
        embedded = published or parts or any(path.startswith((f"{RECEIPTS}/", f"{RECORDS}/")) for path in paths)
        if not embedded and any(path.startswith(f"{CUBES}/") for path in paths):
            kind = "cube"
    told = tuple(found if wanted is None else _audit(found, wanted, kind))
    return OutputStatus(storage.url, told, _stac(storage, found, asked))


def _stac(storage: Storage, found: Iterable[TileStatus], asked: Callable[[_Key], bool]) -> StacStatus | None:
    """How the STAC fits those tiles that are asked for."""
    paths = [entry.path for entry in storage.entries(STAC)]
    if not paths:
        return None
    names = {name for path in paths if (name := item_of(path))}
    items = {name for name in names if (match := _FILE.match(name)) and asked((match["tile"], match["version"]))}
    files = {name for one in found if one.kind == "embeddings" and one.status == "done" for name in one.files}
    return StacStatus(len(items), tuple(sorted(files - items)), tuple(sorted(items - files)))


def _beside(storage: Storage) -> str | None:
    """Outputs right below a folder that is none, if there are any, or the one of which it is the STAC."""
    if storage.url.endswith(f"/{STAC}"):
        return f"it is the STAC of {storage.url.removesuffix(f'/{STAC}')}: give that"
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
