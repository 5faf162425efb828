"""The stages of a tile that is embedded: index and publish."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from daskembed.encoders.loading import takes_time
from daskembed.errors import InputError, StorageUnusableError, TileError, exact
from daskembed.geo.cells import EDGES
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import at_tile, metres_of_unit, place_of
from daskembed.output.index_rows import write_rows
from daskembed.output.parts import read_notes
from daskembed.output.protocol import Published, format_of, get_format
from daskembed.output.stac import write_items
from daskembed.output.state import Receipt, TileRecord, delete_record, now, parts_folder, write_receipt, write_record
from daskembed.runs.blocks import Block, all_blocks
from daskembed.runs.kept import Kept, chosen_by
from daskembed.runs.quarantine import check_quarantined
from daskembed.runs.results import TileResult
from daskembed.sources.listing import Listing
from daskembed.sources.registry import list_tile, read_headers
from daskembed.table import window_shares, window_urls
from daskembed.text import counted
from daskembed.timings import metered, timed

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.runs.settings import Settings
    from daskembed.storage.stores import Storage

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Indexed:
    """What is known of a tile before it is embedded."""

    listing: str
    quarantined: dict[str, str]
    """URL -> reason, of chips whose headers are bad."""
    parts: tuple[str, ...]
    """Paths of its parts below the output, in the order of their rows; none if all its chips are quarantined."""
    notes: tuple[str, ...] = ()
    """What the receipt says of its pixels."""
    scenes: Kept = ()
    """Of a catalogue: what the chips are cut out of."""
    padded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """URL of a chip that reaches beyond the image -> ``source_url`` of each of its rows that do -> share of the row's
    pixels that are in the image."""


def index(
    settings: Settings,
    tile: str,
    finished: Receipt | None,
    files: list[str],
    known: Mapping[str, str] = NOTHING,
    kept: Kept = (),
    pause: float = 0.0,
) -> tuple[Indexed, list[Block]] | None:
    """On a worker: index a tile and say what is left to do, unless it is finished and its chips are the same (None).

    Parameters
    ----------
    settings, tile
        What to do with which tile.
    finished
        Its receipt, if these settings finished it before.
    files
        Names of its published files.
    known
        URL -> reason, of chips that an earlier run quarantined.
    kept
        Its scenes, if they are not to be chosen anew.
    pause
        Seconds to wait first.

    If the parts are carried, all blocks are left to do: what the output holds is for the client to say.

    Raises
    ------
    TileError
        If it has no chips, or too many of them would newly be quarantined.
    """
    time.sleep(pause)
    found = _look(settings, tile, finished, files, known, kept)
    if found is None:
        if finished is not None and not settings.carried:
            settings.confirm()
            tidy(settings.output, finished, files)
        return None
    return found if settings.carried else (found[0], begin(settings, tile, *found))


def _look(
    settings: Settings, tile: str, finished: Receipt | None, files: list[str], known: Mapping[str, str], kept: Kept
) -> tuple[Indexed, list[Block]] | None:
    try:
        settings.source.check_exists()
    except InputError as error:
        # It was there when the run began.
        raise StorageUnusableError(f"{error} any more, or it cannot be seen from this worker") from None
    again = finished is None or (settings.retry_quarantined and bool(finished.quarantined))
    listing = list_tile(tile, settings.source, settings.reading, kept, again=again)
    if finished is not None and finished.holds(listing.fingerprint, retry_quarantined=settings.retry_quarantined):
        return None
    found = read_headers(listing, settings.reading, readers=settings.encoder.readers or 16)
    for kind in map(get_format, settings.formats):
        kind.check_chips(found, settings.encoder.description, settings.level)
    bad = found[found["quarantined"].notna()]
    quarantined = dict(zip(bad["source_url"], bad["quarantined"], strict=True))
    # Of a file that is published already, a whole tile that is refused would take as many chips away as it had.
    count = listing.by_chip if files else dict
    chips = len(count(dict.fromkeys(found["source_url"], "")))
    vanishing = bool(files) and len(bad) == len(found)
    check_quarantined(settings.max_quarantined, count(quarantined), count(known), chips, vanishing=vanishing)
    # In a context of its own: dask-dataframe would warn that it ignores the annotation of this task's span.
    blocks = Context().run(all_blocks, settings, tile, found, listing.fingerprint)
    indexed = Indexed(
        listing=listing.fingerprint,
        quarantined=quarantined,
        parts=tuple(block.path for block in blocks),
        notes=_notes(settings, listing, found),
        scenes=[*listing.kept],
        padded=_padded(settings, found),
    )
    return indexed, blocks


def _padded(settings: Settings, index: gpd.GeoDataFrame) -> dict[str, dict[str, float]]:
    windows = settings.encoder.description.levels[settings.level].get("window")
    found: dict[str, dict[str, float]] = {}
    beyond = index[(index["coverage"] < 1) & index["quarantined"].isna()]
    for url, chip in zip(beyond["source_url"], beyond["chip"], strict=True):
        rows = [url] if windows is None else window_urls([url], windows)
        shares = window_shares(np.array([chip.inside]), windows or 1).round(4).tolist()
        found[url] = {row: share for row, share in zip(rows, shares, strict=True) if share < 1}
    return found


def numbers_notes(listing: Listing, index: gpd.GeoDataFrame) -> list[str]:
    """What is done to the files' numbers, and what else is to be told of the scenes."""
    notes = [*listing.notes, *(f"{scene.url}: {scene.note}" for scene in listing.scenes if scene.note)]
    # Of ready-made chips most have the same to say.
    said = Counter[str](() if listing.scenes else (chip.note for chip in index["chip"].dropna()))
    return notes + [f"{count} chips: {note}" for note, count in said.items() if note]


def _notes(settings: Settings, listing: Listing, index: gpd.GeoDataFrame) -> tuple[str, ...]:
    """What is done to the files' numbers, pixels of another size than the sensor's, and what no chip covers."""
    notes = numbers_notes(listing, index)
    notes += beyond_tile(listing.tile, index)
    notes += _time_notes(settings, index)
    needs = settings.encoder.description
    if needs.resolution is None:
        units = index["epsg"].map(metres_of_unit, na_action="ignore").astype(float)
        steps = ((index["east"] - index["west"]) / CHIP * units).dropna().round(6)
        notes += [
            f"{int((steps == step).sum())} chips have pixels of {exact(step)} m, {needs.sensor.name} has "
            f"{exact(needs.sensor.gsd)} m: the encoder is told the chips'"
            for step in sorted(set(steps))
            if not math.isclose(step, needs.sensor.gsd, rel_tol=1e-3)
        ]
    return (*notes, *listing.coverage)


def _time_notes(settings: Settings, index: gpd.GeoDataFrame) -> list[str]:
    """Which time of day an encoder is told that makes something of it."""
    if not takes_time(settings.encoder.name, (CHIP // settings.encoder.description.window) ** 2):
        return []
    known = index["datetime"][index["quarantined"].isna()].notna()
    told = {"the time of day of their scene": int(known.sum()), "noon, as only their day is known": int((~known).sum())}
    return [f"{counted(count, 'chip')}: the encoder is told {time}" for time, count in told.items() if count]


def beyond_tile(tile: str, index: gpd.GeoDataFrame) -> list[str]:
    """What is said of chips that are not at their tile, cut out of an image that reaches it."""
    good = index[index["quarantined"].isna()]
    near = [at_tile(tile, rows[list(EDGES)].to_numpy(), int(epsg)) for epsg, rows in good.groupby("epsg")]
    far = sum(int((~one).sum()) for one in near)
    return [f"{far} of {len(good)} chips are not at tile {tile}: expected {place_of(tile)}"] if far else []


def begin(settings: Settings, tile: str, indexed: Indexed, blocks: list[Block]) -> list[Block]:
    """Where the output is seen: make it ready for a tile, and say which of its blocks have no part there yet."""
    settings.confirm()
    present = {entry.path for entry in settings.output.entries(parts_folder(tile, settings.version))}
    # Parts of other chips or settings: no run will ever join them.
    settings.output.delete(sorted(present - set(indexed.parts)))
    record(settings, tile, indexed)
    return [block for block in blocks if block.path not in present]


def record(settings: Settings, tile: str, indexed: Indexed | None, failure: str | None = None, kept: Kept = ()) -> None:
    """Write down that a tile was begun, or why it failed; `kept` are its scenes if it was not indexed."""
    parts = indexed.parts if indexed else ()
    scenes = indexed.scenes if indexed else kept
    found = TileRecord(
        tile=tile,
        version=settings.version,
        status="failed" if failure else "unfinished",
        parts=len(parts),
        parts_folder=parts[0].rpartition("/")[0] if parts else None,
        quarantined=indexed.quarantined if indexed else {},
        reason=failure,
        time=now(),
        chosen_by=chosen_by(settings.source, settings.reading) if scenes else {},
        scenes=[*scenes],
    )
    write_record(settings.output, found)


@metered()
def publish(
    settings: Settings,
    tile: str,
    indexed: Indexed,
    started: str,
    files: list[str],
    known: Mapping[str, str] = NOTHING,
) -> Receipt:
    """Where the output is seen, and by whom has its lock: files, receipt, then the removal of what they replace.

    Raises
    ------
    TileError
        If too many chips would newly be quarantined, beside the `known` ones of an earlier run (URL -> reason).
    """
    output, published = settings.output, list[Published]()
    with timed("write"):
        notes = read_notes(output, indexed.parts)
    quarantined = indexed.quarantined | notes.quarantined
    chips = notes.chips + len(quarantined) + len(notes.rejected)
    try:
        vanishing = bool(files) and not notes.rows
        check_quarantined(settings.max_quarantined, quarantined, known, chips, vanishing=vanishing)
    except TileError:
        # The next run is to read these chips again.
        output.delete([part for part in indexed.parts if read_notes(output, [part]).quarantined])
        raise
    if notes.days:
        # Not of all chips: those of other dates may have been set aside.
        name = f"{tile}_{notes.days[0]:%Y%m%d}_{notes.days[1]:%Y%m%d}_v{settings.version}"
        made = {**settings.provenance, "tile": tile, "identity": settings.identity}
        left_out = {*notes.quarantined, *notes.rejected}
        chips_beyond = [shares for url, shares in indexed.padded.items() if url not in left_out]
        if chips_beyond:
            made["padded"] = {row: share for shares in chips_beyond for row, share in shares.items()}
        for kind in map(get_format, settings.formats):
            settings.confirm()
            published.append(kind.publish(output, name + kind.SUFFIX, indexed.parts, made))
    receipt = Receipt(
        tile=tile,
        version=settings.version,
        files=published,
        chips=notes.chips,
        quarantined=quarantined,
        rejected=notes.rejected,
        filled=notes.filled,
        notes=[*indexed.notes, *(f"{url}: {note}" for url, note in sorted(notes.noted.items()))],
        settings=settings.identity,
        listing=indexed.listing,
        started=started,
        finished=now(),
        software=settings.provenance["software"],
        scenes=[*indexed.scenes],
        energy=notes.energy,
    )
    settings.confirm()
    write_rows(output, tile, settings.version, indexed.parts, published)
    if settings.stac:
        write_items(output, receipt, settings.stac_root)
    write_receipt(output, receipt)
    tidy(settings.output, receipt, files)
    return receipt


def tidy(output: Storage, receipt: Receipt, files: list[str]) -> None:
    """Remove a finished tile's parts and the files that its own replaced."""
    for name in files:
        if name not in receipt.names:
            format_of(name).remove(output, name)
    parts = output.entries(parts_folder(receipt.tile, receipt.version))
    output.delete([entry.path for entry in parts])
    delete_record(output, receipt.tile, receipt.version)


def result_of(output: Storage, receipt: Receipt, status: str) -> TileResult:
    """What became of a tile, as its receipt says."""
    return TileResult(
        receipt.tile,
        status,
        None if receipt.file is None else output.url_of(receipt.file),
        receipt.chips,
        receipt.quarantined,
        size=receipt.size,
        files=tuple(map(output.url_of, receipt.names)),
        rejected=receipt.rejected,
        notes=tuple(receipt.notes),
        filled=len(receipt.filled),
        energy=receipt.energy,
    )
