"""What a target keeps of its export in JSON: the plan, and what is known of each finished file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from daskembed.documents import MOST_JSON, parse_as
from daskembed.errors import InputError
from daskembed.output import zarr
from daskembed.output.stac_documents import CATALOG, OURS, STAC
from daskembed.output.state import EXPORTED, STATE, now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daskembed.storage.stores import Entry, Storage

FOLDER = f"{STATE}/export"
PLAN = f"{FOLDER}/plan.json"
FILES = EXPORTED
INDEX = f"{FOLDER}/index"
"""Folder of the places of the rows of published files; gone when the export is finished."""
FAILED = f"{FOLDER}/failed"
"""Folder of why files could not be read or written; each is gone when that is done."""


@dataclass(frozen=True)
class PlannedFile:
    """A file that is to be written: a range of all rows, or a date of a tile."""

    name: str
    first: int
    """Its rows' keys begin here,"""
    end: int
    """and end before this."""
    rows: int
    """About; what it has is known when it is written."""
    tiles: list[str]
    """Published files that may have rows of it."""
    day: str | None = None
    """ISO 8601; where it holds the rows of one date only."""


@dataclass(frozen=True)
class Plan:
    """How rows come into files: made once, so that an export that was stopped goes on with it."""

    identity: dict[str, Any]
    """See `daskembed.exports.settings.Export.identity`."""
    tiles: dict[str, str]
    """Published file -> its content; see `daskembed.exports.selection.ExportTile.content`."""
    left_out: dict[str, str]
    """Published file -> why: it is damaged."""
    files: list[PlannedFile]
    rows: int
    """Of all files."""
    notes: list[str] = field(default_factory=list)
    finished: str | None = None
    """UTC, ISO 8601; None as long as files may be missing."""


@dataclass(frozen=True)
class ExportedFile:
    """What is known of one finished file; kept as JSON."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    rows: int
    bbox: list[float]
    """West, south, east and north of its rows, degrees; across 180 west is more than east; none where it has no row."""
    tiles: list[str]
    """Published files of which it has rows."""
    software: dict[str, str] = field(default_factory=dict)
    days: list[str] = field(default_factory=list)
    """First and last date of its rows, ISO 8601; none where its name says them, and of earlier versions."""


@dataclass(frozen=True)
class Failure:
    """Why a published file could not be read, or one of the export not be written; kept as JSON."""

    name: str
    reason: str
    time: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Checked:
    """Whether a published file is as its receipt says; kept as JSON as long as the export is not finished."""

    of: str
    """Digest of what is known of it."""
    damage: str
    """Empty if it is."""


def is_export(target: Storage) -> bool:
    """Whether a folder is that of an export, however far it has come."""
    return bool(target.entries(FOLDER))


def read_plan(target: Storage) -> Plan | None:
    """The plan of a target; None if there is none; raises `InputError` if it is something else."""
    try:
        text = target.get(PLAN, most=MOST_JSON)
    except FileNotFoundError:
        return None
    try:
        return parse_as(Plan, text)
    except ValueError as error:
        raise InputError(f"{target.url_of(PLAN)} is not a plan of an export of daskembed: {error}; delete it") from None


def write_plan(target: Storage, plan: Plan) -> None:
    """Write the plan; from then on files are made by it."""
    target.put(PLAN, json.dumps(asdict(plan), sort_keys=True).encode())


def read_written(target: Storage, names: Iterable[str]) -> dict[str, ExportedFile]:
    """What is known of those of some files that are finished and there, as it says."""
    names = [*names]
    sizes = sizes_of(target, names)
    known = {entry.path for entry in target.entries(FILES)}

    def read(name: str) -> ExportedFile | None:
        try:
            found = parse_as(ExportedFile, target.get(receipt_of(name), most=MOST_JSON))
        except (FileNotFoundError, ValueError):
            return None
        return found if found.name == name and sizes.get(name) == found.size else None

    wanted = [name for name in names if receipt_of(name) in known]
    with ThreadPoolExecutor(16) as pool:
        return {name: found for name, found in zip(wanted, pool.map(read, wanted), strict=True) if found is not None}


def write_written(target: Storage, written: ExportedFile) -> None:
    """Write what is known of a file; from then on it is finished."""
    target.put(receipt_of(written.name), json.dumps(asdict(written), sort_keys=True).encode())
    forget_failure(target, written.name)


def write_failure(target: Storage, name: str, reason: str) -> None:
    """Write down why a file could not be read or written, in the place of what was written before."""
    target.put(_failure_of(name), json.dumps(asdict(Failure(name, reason, now())), sort_keys=True).encode())


def forget_failure(target: Storage, name: str) -> None:
    """Remove what `write_failure` wrote of a file that is done by now, if there is anything."""
    target.delete([_failure_of(name)])


def read_failures(target: Storage) -> dict[str, str]:
    """File -> why it could not be read or written, of those of which that is kept."""

    def read(path: str) -> dict[str, str]:
        try:
            found = parse_as(Failure, target.get(path, most=MOST_JSON))
        except (FileNotFoundError, ValueError):
            return {}
        return {found.name: found.reason}

    paths = [entry.path for entry in target.entries(FAILED)]
    with ThreadPoolExecutor(16) as pool:
        return {name: reason for one in pool.map(read, paths) for name, reason in one.items()}


def _failure_of(name: str) -> str:
    return f"{FAILED}/{name}.json"


def receipt_of(name: str) -> str:
    """Path of what is known of a file, below the target."""
    return f"{FILES}/{name}.json"


def clear(target: Storage) -> None:
    """Remove an earlier export: its files, their STAC, what is known of them, and at the end its plan.

    So that this can go on.
    """
    plan = read_plan(target)
    known = [entry.path for entry in target.entries(FILES)]
    named = {path.removeprefix(f"{FILES}/").removesuffix(".json") for path in known}
    # Of a file whose writer was killed only the plan knows.
    named |= {file.name for file in plan.files} if plan else set()
    for store in sorted(filter(_is_store, named)):
        zarr.remove(target, store)
    target.delete([entry.path for entry in beside(target, named) if entry.path in named])
    # A table is more than the files that it is made of.
    for folder in sorted({name.partition("/")[0] for name in named if "/" in name}):
        target.delete([entry.path for entry in target.entries(folder)])
    stac = [entry.path for entry in target.entries(STAC) if entry.path == CATALOG or OURS.fullmatch(entry.path)]
    target.delete([*stac, *known, *(entry.path for entry in target.entries(FAILED)), PLAN])


def sizes_of(target: Storage, names: Iterable[str]) -> dict[str, int]:
    """Bytes of those of some files that are there, and of the stores that are complete: a listing of each of these."""
    names = [*names]
    stores = [*filter(_is_store, names)]
    sizes = {entry.path: entry.size for entry in beside(target, {*names} - {*stores})}
    with ThreadPoolExecutor(16) as pool:
        found = zip(stores, pool.map(lambda name: zarr.size(target, name), stores), strict=True)
        return sizes | {name: size for name, size in found if size is not None}


def _is_store(name: str) -> bool:
    return name.endswith(zarr.SUFFIX)


def beside(target: Storage, names: Iterable[str]) -> list[Entry]:
    """All that is in the folders of some files."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    return [entry for folder in folders for entry in target.entries(folder, recursive=False)]


def index_path(name: str) -> str:
    """Path below the target of where the rows of a published file go."""
    return f"{INDEX}/{name}.parquet"


def checked_path(name: str) -> str:
    """Path below the target of what was found of the bytes of a published file."""
    return f"{INDEX}/checked/{name}.json"


def clear_index(target: Storage) -> None:
    """Remove what only an unfinished export needs."""
    target.delete([entry.path for folder in (INDEX, FAILED) for entry in target.entries(folder)])
