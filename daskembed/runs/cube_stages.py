"""The stages of a tile that becomes a cube: what the workers do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from daskembed import __version__
from daskembed.errors import ChipError, InputError, StorageUnusableError, TileError
from daskembed.geo.chips import CHIP
from daskembed.output.cube import PIXELS, Layout, cube_metadata, encode_shard, intact
from daskembed.output.geozarr import ROOT, cube_digest
from daskembed.output.state import (
    CUBES,
    CubeReceipt,
    Note,
    delete_record,
    now,
    read_cube_receipt,
    read_notes,
    write_note,
    write_receipt,
)
from daskembed.output.status_cubes import damage_of
from daskembed.runs.cube_layout import Job, Shard, lay_out
from daskembed.runs.kept import chosen_by, kept_of
from daskembed.runs.quarantine import check_quarantined
from daskembed.runs.stages import NOTHING, numbers_notes
from daskembed.sources.chip import Chip
from daskembed.sources.listing import Listing
from daskembed.sources.registry import list_tile, read_headers
from daskembed.storage.local_files import target
from daskembed.storage.stores import Storage
from daskembed.timings import count_chips, for_this_task, metered, timed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """What is left to do of a tile."""

    layout: Layout | None
    """None if all chips are quarantined."""
    to_do: tuple[Shard, ...]
    begun: CubeReceipt
    """With the shards that need not be written again."""
    damage: str
    """What of a finished cube was lost."""


class Before(NamedTuple):
    """What there is of a tile before anything is done to it."""

    listing: Listing
    receipt: CubeReceipt | None
    objects: dict[str, int]
    """Path below the cube -> bytes."""
    litter: list[str]
    """Paths below the output of what killed writers left half written."""

    @property
    def known(self) -> dict[str, Note]:
        """Notes of the receipt's shards that are there."""
        return intact({} if self.receipt is None else self.receipt.shards, self.objects)

    @property
    def damage(self) -> str:
        """What is not as the receipt of a finished cube says."""
        return damage_of(self.receipt, self.objects) if self.receipt and self.receipt.status == "done" else ""

    def finished(self, job: Job) -> CubeReceipt | None:
        """The receipt, if the cube is finished, its chips are the same and nothing of it is lost."""
        receipt = self.receipt
        if receipt is None or receipt.status != "done" or self.damage or len(self.known) != len(receipt.shards):
            return None
        same = (receipt.listing, receipt.settings) == (self.listing.fingerprint, job.settings)
        return receipt if same else None


def look(job: Job, tile: str, *, asks: bool = True) -> Before | None:
    """What there is of a tile: listings and a receipt; raises `TileError` if it has no chips or another's receipt.

    None if a catalogue would have to be asked for it, and is not to be.
    """
    try:
        receipt = read_cube_receipt(job.output, tile)
    except InputError as error:
        raise TileError(str(error)) from None
    kept = () if job.refresh else kept_of(chosen_by(job.source, job.reading), receipt)
    if not (asks or kept or isinstance(job.source, Storage)):
        return None
    # Nothing is asked of the files of a finished cube.
    again = receipt is None or receipt.status != "done"
    listing, cube = list_tile(tile, job.source, job.reading, kept, again=again), f"{tile}.zarr"
    objects = {entry.path: entry.size for entry in job.output.entries(cube)}
    litter = [path for path in objects if target(path) is not None]
    sizes = {path.removeprefix(f"{cube}/"): size for path, size in objects.items() if path not in litter}
    return Before(listing, receipt, sizes, sorted(litter))


def tidy(job: Job, tile: str, before: Before) -> None:
    """Remove what is left beside a finished cube."""
    delete_record(job.output, tile, None)
    job.output.delete(before.litter)


def plan_tile(job: Job, tile: str) -> Plan | CubeReceipt:
    """List a tile's chips and read their headers; a receipt, if its cube is finished and the chips are the same.

    Shards that are there already and would come out the same are not written again; whatever else is there is removed.

    Raises
    ------
    TileError
        If the tile has no chips, they are not of one grid, or too many of their headers would newly be bad.
    """
    try:
        job.source.check_exists()
    except InputError as error:
        # It was there when the run began.
        raise StorageUnusableError(f"{error} any more, or it cannot be seen from this worker") from None
    found = look(job, tile)
    assert found is not None
    tidy(job, tile, found)
    if (finished := found.finished(job)) is not None:
        return finished
    cube, listing, before, present = f"{tile}.zarr", found.listing, found.receipt, found.objects
    index = read_headers(listing, job.reading, readers=16)
    bad = index[index["quarantined"].notna()]
    quarantined = dict(zip(bad["source_url"], bad["quarantined"], strict=True))
    there = before is not None and before.file is not None
    check_quarantined(
        job.max_quarantined,
        quarantined,
        {} if before is None else before.quarantined,
        len(index),
        vanishing=there and len(bad) == len(index),
    )
    layout, shards = lay_out(job, index)
    notes = {entry.path for entry in job.output.entries(f"{CUBES}/{tile}")}
    known = found.known | intact(read_notes(job.output, notes), present)
    kept = {
        shard.key: note
        for shard in shards
        if (note := known.get(shard.key)) is not None and note.inputs == shard.inputs
    }
    job.confirm()
    # First the cube goes, then what is known of shards that will be replaced, then those themselves: a run may die
    # between any two of these, and chips may come back that were replaced.
    job.output.delete([f"{cube}/{ROOT}"])
    begun = CubeReceipt(
        tile=tile,
        status="unfinished",
        file=None,
        chips=0,
        size=0,
        sha256="",
        quarantined=quarantined,
        settings=job.settings,
        listing=listing.fingerprint,
        started=now(),
        finished=None,
        shards=kept,
        planned=len(shards),
        notes=numbers_notes(listing, index),
        scenes=[*listing.kept],
    )
    write_receipt(job.output, begun)
    stale = [path for path in present if path.removeprefix(f"{PIXELS}/") not in kept and path != ROOT]
    job.output.delete(sorted(notes))
    job.output.delete([f"{cube}/{path}" for path in sorted(stale)])
    return Plan(layout, tuple(shard for shard in shards if shard.key not in kept), begun, found.damage)


@metered()
def write_shard(
    job: Job, tile: str, bands: int, shard: Shard, without: Mapping[str, str] = NOTHING, returns: int = 0
) -> Note:
    """Read a shard's chips and write its object, then the note of it.

    Parameters
    ----------
    job, tile, bands, shard
        What to do, of a tile with so many bands.
    without
        URL -> reason, of chips that are quarantined untouched.
    returns
        How often workers died of it: it is read by ever fewer threads, which takes less memory.
    """
    block, quarantined = _read(job, bands, shard, without, max(1, job.readers >> returns))
    with timed("write"):
        data = encode_shard(block)
        job.confirm()
        if data:
            with job.output.open_writer(f"{tile}.zarr/{PIXELS}/{shard.key}") as file:
                file.write(data)
    note = Note(
        inputs=shard.inputs,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chips=len(shard.chips) - len(quarantined),
        quarantined=quarantined,
    )
    write_note(job.output, tile, shard.key, note)
    return note


def _read(
    job: Job, bands: int, shard: Shard, without: Mapping[str, str], readers: int
) -> tuple[NDArray[np.float32], dict[str, str]]:
    """A shard's pixels, as far as it has chips, and its chips that are quarantined."""
    height, width = (CHIP * (1 + max(places)) for places in zip(*(chip[:2] for chip in shard.chips), strict=True))
    block = np.full((1, bands, height, width), np.nan, np.float32)

    def read(place: tuple[int, int, Chip]) -> tuple[str, str] | None:
        row, col, chip = place
        try:
            if chip.url in without:
                raise ChipError(without[chip.url])
            pixels = chip.read()
        except ChipError as error:
            return chip.url, str(error)
        finally:
            count_chips(1)
        (height, width), top, left = chip.inside, row * CHIP, col * CHIP
        block[0, :, top : top + height, left : left + width] = pixels[:, :height, :width]
        return None

    with ThreadPoolExecutor(readers) as pool:
        bad = dict(found for found in pool.map(for_this_task(read), shard.chips) if found is not None)
    return block, bad


@metered()
def finish_tile(job: Job, plan: Plan, notes: Mapping[str, Note]) -> CubeReceipt:
    """Write what makes a cube of a tile's shards, its root last, then the receipt.

    Parameters
    ----------
    job, plan
        What was to be done.
    notes
        Of the shards that were written for it.
    """
    job.confirm()
    begun, output = plan.begun, job.output
    shards = dict(sorted({**begun.shards, **notes}.items()))
    quarantined = begun.quarantined | {url: why for note in shards.values() for url, why in note.quarantined.items()}
    chips = sum(note.chips for note in shards.values())
    objects = {f"{PIXELS}/{key}": (note.size, note.sha256) for key, note in shards.items() if note.size}
    if plan.layout is not None and chips:
        for path, data in cube_metadata(begun.tile, plan.layout).items():
            output.put(f"{begun.tile}.zarr/{path}", data)
            objects[path] = (len(data), hashlib.sha256(data).hexdigest())
    receipt = replace(
        begun,
        status="done",
        file=f"{begun.tile}.zarr" if chips else None,
        chips=chips,
        size=sum(size for size, _ in objects.values()),
        sha256=cube_digest({path: sha256 for path, (_, sha256) in objects.items()}),
        quarantined=quarantined,
        finished=now(),
        shards=shards,
        software=_software(),
    )
    write_receipt(output, receipt)
    output.delete([entry.path for entry in output.entries(f"{CUBES}/{begun.tile}")])
    # Of workers that died while they wrote a shard, which another has written.
    output.delete([entry.path for entry in output.entries(f"{begun.tile}.zarr") if target(entry.path) is not None])
    return receipt


def _software() -> dict[str, str]:
    from importlib.metadata import version

    return {"daskembed": __version__} | {name: version(name) for name in ("zarr", "numcodecs", "numpy", "rasterio")}
