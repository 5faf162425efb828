"""What an output keeps in JSON of tiles and of cubes: receipts of finished ones, records of others, notes of shards.

Cubes have no version: where one is asked for, None stands for them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from daskembed.documents import MOST_JSON, parse_as
from daskembed.energy import Energy
from daskembed.errors import InputError
from daskembed.output.protocol import Published
from daskembed.storage.stores import Storage

STATE = "_daskembed"
"""Folder below the output that holds receipts, records and parts."""
RECEIPTS = f"{STATE}/receipts"
RECORDS = f"{STATE}/tiles"
CUBES = f"{STATE}/cubes"
"""Folder of the cubes' receipts and records, and of the notes of the shards of unfinished ones."""
EXPORTED = f"{STATE}/export/files"
"""Folder of an export, with what is known of each of its finished files: name, size and SHA-256 among it."""
_MOST_NOTE = 2**20
"""Bytes of a note, which names the chips of one shard."""


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
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """Of a catalogue: what was used of it, in the form of `daskembed.sources.stac.kept.KeptScene`."""
    energy: Energy | None = None
    """What the devices used for its chips, where that was measured."""

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
    chosen_by: dict[str, Any] = field(default_factory=dict)
    """What decided on `scenes`: they hold for runs of which all of that is the same."""
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """As of `Receipt`: what the tile goes on with."""


@dataclass(frozen=True)
class Note:
    """What is known of one finished shard; kept as JSON."""

    inputs: str
    """See `Shard`."""
    size: int
    """Bytes of the object; 0 if there is none, as all its chips are quarantined."""
    sha256: str
    chips: int
    quarantined: dict[str, str]
    """URL -> reason."""


@dataclass(frozen=True)
class KeptNote(Note):
    """A note in a file of its own."""

    shard: str
    """Path below the array."""


@dataclass(frozen=True)
class CubeReceipt:
    """What is known of a tile's cube; kept as JSON."""

    tile: str
    status: Literal["unfinished", "done"]
    file: str | None
    """Name of the cube; None if all chips are quarantined."""
    chips: int
    """Chips in it."""
    size: int
    """Bytes of all its objects."""
    sha256: str
    """Of names and digests of its objects."""
    quarantined: dict[str, str]
    """URL -> reason; their pixels are NaN."""
    settings: dict[str, Any]
    listing: str
    """Fingerprint of the tile's chips as the source listed them."""
    started: str
    """UTC, ISO 8601."""
    finished: str | None
    """UTC, ISO 8601."""
    shards: dict[str, Note]
    """By path below the array."""
    software: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    """Shards that it has when it is finished; 0 where that was not kept."""
    notes: list[str] = field(default_factory=list)
    """What was done to the numbers of its images, and what nobody knows of them."""
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """As of `Receipt`."""

    @property
    def version(self) -> None:
        """Cubes have none."""


def with_plain_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a receipt or a file says of its settings, its source as `Storage` has it: earlier ones kept ``..``."""
    source = settings.get("source")
    if not isinstance(source, str) or "/.." not in source:
        return {**settings}
    return {**settings, "source": Storage(source).url}


def receipt_path(tile: str, version: str | None) -> str:
    """Path of a receipt below the output."""
    return f"{CUBES}/{tile}.json" if version is None else f"{RECEIPTS}/{tile}_v{version}.json"


def record_path(tile: str, version: str | None) -> str:
    """Path of the record of an unfinished or failed tile below the output."""
    return f"{CUBES}/{tile}.failed.json" if version is None else f"{RECORDS}/{tile}_v{version}.json"


def note_path(tile: str, key: str) -> str:
    """Path of the note of a cube's shard below the output."""
    return f"{CUBES}/{tile}/{key.replace('/', '.')}.json"


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


_Kept = TypeVar("_Kept", Receipt, TileRecord, CubeReceipt)


def _read(output: Storage, path: str, kind: type[_Kept], name: str) -> _Kept:
    text = output.get(path, most=MOST_JSON)
    try:
        return parse_as(kind, text)
    except ValueError as error:
        raise InputError(f"{output.url_of(path)} is not a {name} of daskembed: {error}; delete it") from None


def read_receipt(output: Storage, path: str) -> Receipt:
    """The receipt `path` of embeddings; raises `InputError` if that is none."""
    return _read(output, path, Receipt, "receipt")


def read_receipts(output: Storage, tiles: Iterable[str], version: str) -> dict[str, Receipt]:
    """Receipts of the embeddings of those of `tiles` that have one."""
    return _read_those(output, {tile: receipt_path(tile, version) for tile in tiles}, RECEIPTS, read_receipt)


def read_records(output: Storage, tiles: Iterable[str], version: str) -> dict[str, TileRecord]:
    """Records of those of `tiles` that were begun and not finished, or failed."""
    return _read_those(output, {tile: record_path(tile, version) for tile in tiles}, RECORDS, read_record)


def _read_those(
    output: Storage, paths: Mapping[str, str], folder: str, read: Callable[[Storage, str], _Kept]
) -> dict[str, _Kept]:
    present = {entry.path for entry in output.entries(folder)}
    wanted = {tile: path for tile, path in paths.items() if path in present}
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(wanted, pool.map(lambda path: read(output, path), wanted.values()), strict=True))


def read_cube_receipt(output: Storage, tile: str) -> CubeReceipt | None:
    """The receipt of a tile's cube; None if there is none; raises `InputError` if it is something else."""
    try:
        return _read(output, receipt_path(tile, None), CubeReceipt, "receipt")
    except FileNotFoundError:
        return None


def read_record(output: Storage, path: str) -> TileRecord:
    """The record `path` of an unfinished or failed tile; raises `InputError` if that is none."""
    return _read(output, path, TileRecord, "record")


def write_receipt(output: Storage, receipt: Receipt | CubeReceipt) -> None:
    """Write a receipt; from then on the tile is finished, if the receipt says so."""
    _write(output, receipt_path(receipt.tile, receipt.version), receipt)


def write_record(output: Storage, record: TileRecord) -> None:
    """Write the record of a tile that was begun or failed, in the place of an earlier one."""
    _write(output, record_path(record.tile, record.version or None), record)


def write_failure(output: Storage, tile: str, version: str | None, reason: str) -> None:
    """Write the record of a tile of which nothing but its failure is known."""
    write_record(output, TileRecord(tile, version or "", "failed", 0, None, {}, reason, now()))


def delete_record(output: Storage, tile: str, version: str | None) -> None:
    """Delete the record of a tile that is finished, or begun anew, if there is one."""
    output.delete([record_path(tile, version)])


def _write(output: Storage, path: str, kept: Receipt | TileRecord | CubeReceipt) -> None:
    # Of what not all have, others say nothing: earlier releases read their receipts too.
    rare = ("scenes", "chosen_by", "energy")
    told = {name: value for name, value in asdict(kept).items() if value or name not in rare}
    output.put(path, json.dumps(told, indent=1, sort_keys=True).encode())


def write_note(output: Storage, tile: str, key: str, note: Note) -> None:
    """Write the note of a cube's shard; from then on it need not be written again."""
    output.put(note_path(tile, key), json.dumps(asdict(KeptNote(**vars(note), shard=key))).encode())


def read_notes(output: Storage, paths: set[str]) -> dict[str, Note]:
    """By shard; without those that are none of ours, whose shards are written again."""

    def read(path: str) -> dict[str, Note]:
        try:
            about = dict(vars(parse_as(KeptNote, output.get(path, most=_MOST_NOTE))))
        except ValueError:
            return {}
        return {about.pop("shard"): Note(**about)}

    with ThreadPoolExecutor(16) as pool:
        found = pool.map(read, sorted(path for path in paths if path.endswith(".json")))
        return {key: note for notes in found for key, note in notes.items()}


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
