"""What an output knows of its cubes: receipts, notes of shards, failures."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from daskembed.documents import MOST_JSON, parse_as
from daskembed.errors import (
    InputError,
    StorageError,
)
from daskembed.output.cube import PIXELS
from daskembed.output.receipts import STATE, TileRecord, now
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    pass


CUBES = f"{STATE}/cubes"
"""Folder below the output that holds the cubes' receipts, and notes of the shards of unfinished ones."""

_MOST_NOTE = 2**20
"""Bytes of a note, which names the chips of one shard."""


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


def receipt_path(tile: str) -> str:
    """Path of a cube's receipt below the output."""
    return f"{CUBES}/{tile}.json"


def read_receipt(output: Storage, path: str) -> CubeReceipt | None:
    """The receipt at `path`; None if there is none; raises `InputError` if it is something else."""
    try:
        text = output.get(path, most=MOST_JSON)
    except FileNotFoundError:
        return None
    try:
        return parse_as(CubeReceipt, text)
    except ValueError as error:
        raise InputError(f"{output.url_of(path)} is not a receipt of daskembed: {error}; delete it") from None


def failure_path(tile: str) -> str:
    """Path of the record of why a cube failed, below the output."""
    return f"{CUBES}/{tile}.failed.json"


def keep_failure(output: Storage, tile: str, reason: str) -> None:
    """Write down why a cube failed, until its tile is planned again."""
    record = TileRecord(tile, "", "failed", 0, None, {}, reason, now())
    # Of a store that fails just now, the other tiles need not hear.
    with contextlib.suppress(StorageError):
        output.put(failure_path(tile), json.dumps(asdict(record), indent=1, sort_keys=True).encode())


def write_receipt(output: Storage, receipt: CubeReceipt) -> None:
    """Write a cube's receipt."""
    output.put(receipt_path(receipt.tile), json.dumps(asdict(receipt), indent=1, sort_keys=True).encode())


def note_path(tile: str, key: str) -> str:
    """Path of the note of a shard below the output."""
    return f"{CUBES}/{tile}/{key.replace('/', '.')}.json"


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


def intact(notes: Mapping[str, Note], present: Mapping[str, int]) -> dict[str, Note]:
    """Those of some shards whose objects are there."""
    return {key: note for key, note in notes.items() if present.get(f"{PIXELS}/{key}", 0) == note.size}


def digest(objects: Mapping[str, str]) -> str:
    """What stands for the SHA-256 of a cube, given those of its objects by path."""
    return digest_of(sorted(objects.items()))


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
