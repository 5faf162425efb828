"""The stages of one tile: what the workers do, and the tasks of its blocks."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.optimization import cull

from daskembed import __version__
from daskembed.cube import ChipBlock, open_tile
from daskembed.embedding import embed
from daskembed.errors import InputError, StorageUnusableError, TileError, exact
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import at_tile, metres_of_unit, place_of
from daskembed.health import kind_of
from daskembed.output.parts import read_notes, write_part
from daskembed.output.protocol import Published, get_sink, sink_of
from daskembed.output.receipts import Receipt, TileRecord, delete_record, now, parts_folder, write_receipt, write_record
from daskembed.runs import deadly_chips as trial
from daskembed.runs.results import TileResult
from daskembed.sources.frame import EDGES
from daskembed.sources.kinds import list_tile, read_headers
from daskembed.sources.listing import Listing
from daskembed.table import to_geodataframe, window_shares, window_urls
from daskembed.timings import metered, timed

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.runs.settings import Settings
    from daskembed.storage.stores import Storage

FEW = 4
"""Chips of a tile that may newly be quarantined whatever share of it they are."""
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
    padded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """URL of a chip that reaches beyond the image -> ``source_url`` of each of its rows that do -> share of the row's
    pixels that are in the image."""


@dataclass(frozen=True)
class Block:
    """One task of a tile, from its chips to its part: a partition of the tile's lazy frame, cut out of its graph.

    The ten small tasks of which Dask makes a partition would cost the scheduler ten times as much, and blocks share
    nothing. The graph is pickled once, by the worker that made it: client and scheduler only pass it on.
    """

    number: int
    path: str
    """Of the part, below the output."""
    urls: tuple[str, ...]
    """Of its chips."""
    graph: bytes
    key: Any
    """Of the partition in the graph."""
    source: Any
    """Of its chips there, a `ChipBlock`."""

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return len(self.urls)

    def compute(self, without: Mapping[str, str] | None = None) -> gpd.GeoDataFrame:
        """The partition, computed in this thread; the chips of `without` (URL -> reason) are quarantined untouched."""
        graph = pickle.loads(self.graph)
        if without:
            graph[self.source] = ChipBlock(dask.get(graph, self.source).chips, without)
        frame: gpd.GeoDataFrame = dask.get(graph, self.key)
        return frame


def index(
    settings: Settings,
    tile: str,
    finished: Receipt | None,
    files: list[str],
    known: Mapping[str, str] = NOTHING,
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
    pause
        Seconds to wait first.

    If the parts are carried, all blocks are left to do: what the output holds is for the client to say.

    Raises
    ------
    TileError
        If it has no chips, or too many of them would newly be quarantined.
    """
    time.sleep(pause)
    found = _look(settings, tile, finished, files, known)
    if found is None:
        if finished is not None and not settings.carried:
            settings.confirm()
            tidy(settings.output, finished, files)
        return None
    return found if settings.carried else (found[0], begin(settings, tile, *found))


def _look(
    settings: Settings, tile: str, finished: Receipt | None, files: list[str], known: Mapping[str, str]
) -> tuple[Indexed, list[Block]] | None:
    try:
        settings.source.check_exists()
    except InputError as error:
        # It was there when the run began.
        raise StorageUnusableError(f"{error} any more, or it cannot be seen from this worker") from None
    listing = list_tile(tile, settings.source, settings.reading)
    if finished is not None and finished.holds(listing.fingerprint, retry_quarantined=settings.retry_quarantined):
        return None
    found = read_headers(listing, settings.reading, readers=settings.encoder.readers or 16)
    for sink in map(get_sink, settings.formats):
        sink.check_chips(found, settings.encoder.description, settings.level)
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


def check_quarantined(
    allowed: float, quarantined: Mapping[str, str], known: Mapping[str, str], chips: int, *, vanishing: bool
) -> None:
    """Raise `TileError` if so many chips would newly be quarantined that the machine or the store may be at fault.

    Parameters
    ----------
    allowed
        Share of a tile's chips that may be; `FEW` may in any case, and with 1 all.
    quarantined, known
        URL -> reason, of the chips that would be, and of those that an earlier run quarantined.
    chips
        How many the tile has.
    vanishing
        Whether there is a published file now and would be none.
    """
    new = {url: why for url, why in quarantined.items() if url not in known or kind_of(known[url]) != kind_of(why)}
    if not new or allowed == 1 or not (vanishing or len(new) > max(FEW, allowed * chips)):
        return
    kinds = {url: kind_of(why) for url, why in new.items()}
    (commonest, count), *others = Counter(kinds.values()).most_common()
    url = next(url for url, kind in kinds.items() if kind == commonest)
    raise TileError(
        f"{len(new)} of its {chips} chips would newly be quarantined"
        + (
            ", and its published file would vanish"
            if vanishing
            else f", more than --max-quarantined {allowed:g} allows"
        )
        + f": {url} {new[url]} ({count} such{f', {len(new) - count} of other kinds' if others else ''}); look at the "
        "store and at the machines, and run the same command again; if the chips are as bad as that, "
        "--max-quarantined 1 accepts it"
    )


def numbers_notes(listing: Listing, index: gpd.GeoDataFrame) -> list[str]:
    """What is done to the files' numbers."""
    notes = [f"{scene.url}: {scene.note}" for scene in listing.scenes if scene.note]
    # Of ready-made chips most have the same to say.
    said = Counter[str](() if listing.scenes else (chip.note for chip in index["chip"].dropna()))
    return notes + [f"{count} chips: {note}" for note, count in said.items() if note]


def _notes(settings: Settings, listing: Listing, index: gpd.GeoDataFrame) -> tuple[str, ...]:
    """What is done to the files' numbers, pixels of another size than the sensor's, and what no chip covers."""
    notes = numbers_notes(listing, index)
    notes += beyond_tile(listing.tile, index)
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


def record(settings: Settings, tile: str, indexed: Indexed | None, failure: str | None = None) -> None:
    """Write down that a tile was begun, or why it failed."""
    parts = indexed.parts if indexed else ()
    found = TileRecord(
        tile=tile,
        version=settings.version,
        status="failed" if failure else "unfinished",
        parts=len(parts),
        parts_folder=parts[0].rpartition("/")[0] if parts else None,
        quarantined=indexed.quarantined if indexed else {},
        reason=failure,
        time=now(),
    )
    write_record(settings.output, found)


def all_blocks(settings: Settings, tile: str, index: gpd.GeoDataFrame, listing: str) -> list[Block]:
    """The blocks of a tile in the order of their rows; computes nothing."""
    if not index["quarantined"].isna().any():
        return []
    cube = open_tile(index, chips_a_block=settings.chips_a_block)
    frame = to_geodataframe(embed(cube, settings.encoder, settings.level, on_nan=settings.on_nan))
    # Which chips are in a block depends on those whose headers are bad.
    bad = index.loc[index["quarantined"].notna(), "source_url"]
    folder = block_folder(settings, tile, listing, sorted(bad))
    urls, ends = cube.coords["source_url"].to_numpy(), accumulate(cube.chunksizes["chip"])
    blocks: list[Block] = []
    for number, (partition, end) in enumerate(zip(frame.to_delayed(), ends, strict=True)):
        graph, _ = cull(partition.dask, [partition.key])
        block_urls = tuple(urls[sum(block.chips for block in blocks) : end])
        path, source = f"{folder}/{number:05d}.parquet", (cube.data.name, number, 0, 0, 0)
        blocks.append(Block(number, path, block_urls, pickle.dumps(graph), partition.key, source))
    return blocks


def block_folder(settings: Settings, tile: str, listing: str, without: Sequence[str] = ()) -> str:
    """Folder of a tile's parts below the output: only parts of these settings, chips and size of blocks are in it.

    `without` are the URLs of those chips of the listing that are in no block.
    """
    left_out = [list(without)] if without else []
    key = _digest(settings.identity, settings.version, listing, settings.chips_a_block, __version__, *left_out)
    return f"{parts_folder(tile, settings.version)}/{key}"


@metered()
def embed_block(block: Block, *, settings: Settings) -> bytes | None:
    """On a worker: make a block's part; gives its bytes if parts are carried, else None."""
    return _write(settings, block, block.compute())


@metered()
def embed_gently(settings: Settings, block: Block, without: Mapping[str, str], returns: int) -> bytes | None:
    """`embed_block` where workers died of the block: with ever less memory, and without the chips of `without`."""
    from daskembed.compute.device import get_device

    get_device(settings.encoder).take_less(returns)
    return _write(settings, block, block.compute(without))


def examine(settings: Settings, block: Block) -> dict[str, str]:
    """On a worker: find the chips of a block of which a process dies, by trying each in a process of its own.

    Returns
    -------
    dict
        URL -> reason.
    """
    return trial.deadly_chips(block, settings.encoder, settings.level)


def _write(settings: Settings, block: Block, frame: gpd.GeoDataFrame) -> bytes | None:
    shape = settings.encoder.description.row_shape(settings.level)
    if settings.carried:
        part = io.BytesIO()
        write_part(frame, part, shape)
        return part.getvalue()
    with settings.output.open_writer(block.path) as file:
        write_part(frame, file, shape)
    return None


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
        for sink in map(get_sink, settings.formats):
            settings.confirm()
            published.append(sink.publish(output, name + sink.SUFFIX, indexed.parts, made))
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
    )
    settings.confirm()
    write_receipt(output, receipt)
    tidy(settings.output, receipt, files)
    return receipt


def tidy(output: Storage, receipt: Receipt, files: list[str]) -> None:
    """Remove a finished tile's parts and the files that its own replaced."""
    for name in files:
        if name not in receipt.names:
            sink_of(name).remove(output, name)
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
    )


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
