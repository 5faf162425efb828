"""What an output folder holds: receipts of finished tiles, records and parts of others, published files."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from daskembed.documents import MOST_JSON, parse_as
from daskembed.errors import InputError
from daskembed.output.protocol import SINKS, Published, get_sink, sink_of
from daskembed.storage.stores import Storage

STATE = "_daskembed"
"""Folder below the output that holds receipts, records and parts."""
RECEIPTS = f"{STATE}/receipts"
RECORDS = f"{STATE}/tiles"
_VERSION = re.compile(r"[0-9A-Za-z]{1,16}")


@dataclass(frozen=True)
class Receipt:
    """What is known of one finished tile; kept as JSON."""

    tile: str
    version: str
    files: list[Published]
    """What was published, one a format; none if all chips are quarantined or rejected."""
    chips: int
    """Chips embedded."""
    quarantined: dict[str, str]
    """URL -> reason."""
    rejected: dict[str, str]
    """URL -> the rule that it breaks, and by how much."""
    filled: dict[str, int]
    """URL -> number of values that were filled with their band's mean."""
    notes: list[str]
    """What was done to the pixels' values on the way in, and what is unusual about them."""
    settings: dict[str, Any]
    """What determines the file beside its chips: encoder, checkpoint, level, precision and so on."""
    listing: str
    """Fingerprint of the tile's chips as the source listed them."""
    started: str
    """UTC, ISO 8601."""
    finished: str
    """UTC, ISO 8601."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions of what made the file."""

    @property
    def names(self) -> list[str]:
        """Of its files."""
        return [file.name for file in self.files]

    @property
    def file(self) -> str | None:
        """Name of the first file; None if there is none."""
        return next(iter(self.names), None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def finishes(self, settings: dict[str, Any], files: Mapping[str, int]) -> bool:
        """Whether the tile is finished for these settings, of its published `files`; its chips may have changed.

        Parameters
        ----------
        settings
            Their `daskembed.runs.settings.Settings.identity`.
        files
            Name -> bytes.
        """
        return with_plain_source(self.settings) == settings and not self.differences(files)

    def holds(self, listing: str, *, retry_quarantined: bool) -> bool:
        """Whether a tile that it `finishes` is left as it is: its chips are the same, and none is to be tried again.

        Parameters
        ----------
        listing
            Fingerprint of the tile's chips now.
        retry_quarantined
            Whether quarantined chips are to be tried again.
        """
        return self.listing == listing and not (retry_quarantined and self.quarantined)

    def differences(self, files: Mapping[str, int]) -> list[str]:
        """What is not as this says of its files, given the names and bytes of those that are there."""
        return [
            f"{file.name} has {files[file.name]} bytes, its receipt says {file.size}"
            if file.name in files
            else f"{file.name} is gone"
            for file in self.files
            if files.get(file.name) != file.size
        ]


@dataclass(frozen=True)
class TileRecord:
    """What is known of one tile that a run began and did not finish; kept as JSON."""

    tile: str
    version: str
    status: Literal["unfinished", "failed"]
    parts: int
    """Parts that it has when all its blocks are done; 0 if it was not indexed."""
    parts_folder: str | None
    """Folder of them below the output; None if there are none to be written."""
    quarantined: dict[str, str]
    """URL -> reason, of chips whose headers are bad."""
    reason: str | None
    """Why it failed."""
    time: str
    """When this was written; UTC, ISO 8601."""


_Kept = TypeVar("_Kept", Receipt, TileRecord)


def with_plain_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a receipt or a file says of its settings, its source as `Storage` has it: earlier ones kept ``..``."""
    source = settings.get("source")
    if not isinstance(source, str) or "/.." not in source:
        return {**settings}
    return {**settings, "source": Storage(source).url}


def check_version(version: str) -> str:
    """Return `version` if it can be part of a file name; a number is padded to three digits."""
    if not _VERSION.fullmatch(version):
        raise InputError(f"version {version!r}: expected up to 16 letters and digits, such as 001")
    return version.zfill(3) if version.isdigit() else version


def receipt_path(tile: str, version: str) -> str:
    """Path of a tile's receipt below the output."""
    return f"{RECEIPTS}/{tile}_v{version}.json"


def record_path(tile: str, version: str) -> str:
    """Path of the record of an unfinished or failed tile below the output."""
    return f"{RECORDS}/{tile}_v{version}.json"


def parts_folder(tile: str, version: str) -> str:
    """Folder of a tile's parts below the output; each set of chips and settings has a folder of its own in it."""
    return f"{STATE}/parts/{tile}_v{version}"


def mark(version: str | None) -> str:
    """What the names of a version's state end with; without a version, those of cubes."""
    return "_cube" if version is None else f"_v{version}"


def probe_path(version: str | None) -> str:
    """A path below the output, another each time, for a file that is there to be seen for a moment."""
    return f"{STATE}/{uuid.uuid4().hex}{mark(version)}.probe"


def sweep(output: Storage, version: str | None) -> None:
    """Remove what killed runs of a version, or of cubes, left half written, once no such run is at work any more."""
    cubes = "" if version else rf"|^{STATE}/cubes|^\d\d[A-Z]{{3}}\.zarr"
    # Those of earlier releases tell no version.
    probes = rf"^{STATE}/(?:write-test|[0-9a-f]+(?:{mark(version)})?\.probe)"
    left = [entry.path for entry in output.entries(STATE, recursive=False) if re.fullmatch(probes, entry.path)]
    output.delete(left)
    output.sweep(f"{mark(version)}{cubes}|{probes}")


def read_receipts(output: Storage, tiles: Iterable[str], version: str) -> dict[str, Receipt]:
    """Receipts of those of `tiles` that have one."""
    present = {entry.path for entry in output.entries(RECEIPTS)}
    wanted = {tile: path for tile in tiles if (path := receipt_path(tile, version)) in present}
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(wanted, pool.map(lambda path: read_receipt(output, path), wanted.values()), strict=True))


def read_receipt(output: Storage, path: str) -> Receipt:
    """The receipt `path`; raises `InputError` if that is none."""
    return _read(output, path, Receipt, "receipt")


def read_record(output: Storage, path: str) -> TileRecord:
    """The record `path` of an unfinished or failed tile; raises `InputError` if that is none."""
    return _read(output, path, TileRecord, "record")


def failed_record(tile: str, version: str, reason: str) -> TileRecord:
    """The record of a tile of which nothing but its failure is known."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return TileRecord(tile, version, "failed", parts=0, parts_folder=None, quarantined={}, reason=reason, time=time)


def write_receipt(output: Storage, receipt: Receipt) -> None:
    """Write a tile's receipt; from then on the tile is finished."""
    _write(output, receipt_path(receipt.tile, receipt.version), receipt)


def write_record(output: Storage, record: TileRecord) -> None:
    """Write the record of a tile that was begun or failed, in the place of an earlier one."""
    _write(output, record_path(record.tile, record.version), record)


def delete_record(output: Storage, tile: str, version: str) -> None:
    """Delete the record of a tile that is finished, if there is one."""
    output.delete([record_path(tile, version)])


def _read(output: Storage, path: str, kind: type[_Kept], name: str) -> _Kept:
    text = output.get(path, most=MOST_JSON)
    try:
        return parse_as(kind, text)
    except ValueError as error:
        raise InputError(f"{output.url_of(path)} is not a {name} of daskembed: {error}; delete it") from None


def _write(output: Storage, path: str, kept: Receipt | TileRecord) -> None:
    output.put(path, json.dumps(asdict(kept), indent=1, sort_keys=True).encode())


@dataclass(frozen=True)
class Found:
    """A published file in a listing of an output."""

    name: str
    tile: str
    version: str
    size: int | None
    """Bytes; None of a store that is not complete."""


def list_published(output: Storage, version: str | None = None) -> list[Found]:
    """The published files of an output, of one version or all, by name: two listings, and one of each store."""
    wanted = _VERSION.pattern if version is None else re.escape(version)
    suffixes = "|".join(re.escape(get_sink(name).SUFFIX) for name in SINKS)
    pattern = re.compile(rf"(?P<tile>\d\d[A-Z]{{3}})_\d{{8}}_\d{{8}}_v(?P<version>{wanted})(?:{suffixes})")
    files = {entry.path: entry.size for entry in output.entries(recursive=False) if pattern.fullmatch(entry.path)}
    stores = [name for name in output.folders() if pattern.fullmatch(name)]
    with ThreadPoolExecutor(16) as pool:
        sizes = files | dict(zip(stores, pool.map(lambda name: sink_of(name).size(output, name), stores), strict=True))
    matches = {name: match for name in sorted(sizes) if (match := pattern.fullmatch(name))}
    return [Found(name, match["tile"], match["version"], sizes[name]) for name, match in matches.items()]


def published_files(output: Storage, version: str, *, sweep: bool = False) -> dict[str, dict[str, int]]:
    """Tile -> name -> bytes of its published files of a version, of all formats; incomplete stores do not count.

    Parameters
    ----------
    output, version
        Where, and of which version.
    sweep
        Remove incomplete stores, which killed writers left.
    """
    found: dict[str, dict[str, int]] = {}
    for one in list_published(output, version):
        if one.size is not None:
            found.setdefault(one.tile, {})[one.name] = one.size
        elif sweep:
            sink_of(one.name).remove(output, one.name)
    return found


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
