"""What a run will take: chips, bytes, hours and price, from listings and the speed of a worker."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Unpack

import numpy as np

from daskembed.clusters.presets import parse_workers
from daskembed.cube import block_ends
from daskembed.encoders.loading import resolve_precision
from daskembed.errors import InputError, TileError, did_you_mean
from daskembed.output.protocol import get_format
from daskembed.output.published import published_files
from daskembed.output.state import Receipt, TileRecord, read_receipts
from daskembed.paths import StrPath
from daskembed.runs import preflight
from daskembed.runs.blocks import block_folder
from daskembed.runs.conflicts import check_conflicts
from daskembed.runs.expected import keep
from daskembed.runs.kept import chosen_by, keepers
from daskembed.runs.options import Options, RunOptions, documented
from daskembed.runs.results import Expected
from daskembed.runs.settings import Settings
from daskembed.runs.summary import MOST_LISTED, describe_plan
from daskembed.runs.throughput import DEVICES, Speed, measure, of_device
from daskembed.runs.tiles import ask_catalogue, resolve
from daskembed.sources.listing import Listing
from daskembed.sources.origin import open_source
from daskembed.sources.region import asked_tiles
from daskembed.sources.registry import list_tile
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage

COMPRESSED, FILE_BYTES, ROW_BYTES = 0.83, 8_000, 70
"""Of a published file: what is left of its vectors, its footer, and what else a chip takes. Measured on the demo."""


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run will take."""

    output: str
    level: str
    done: tuple[str, ...]
    """Tiles that are finished with these settings and of which no chip has changed."""
    to_do: tuple[str, ...]
    missing: dict[str, str]
    """Tile -> why it will fail: it has no chips."""
    chips: int
    """Chips of all tiles, as the source lists them."""
    chips_to_do: int
    """Of these the ones that no finished tile and no finished block holds."""
    bytes_to_read: int
    """Of the files of `chips_to_do`; of a catalogue about what is downloaded for them."""
    bytes_to_write: dict[str, int]
    """Level -> bytes of the files of the tiles to do; an estimate."""
    chips_a_block: int
    """Chips of one task: of fewer blocks than workers, some of these have nothing to do."""
    speed: Speed | None
    """Of one worker; None if there is nothing to do."""
    workers: int
    price_per_hour: float | None
    """Of one worker's machine."""
    notes: tuple[str, ...] = ()
    """What is unusual about the scenes to do, what of them is in no chip, which chips reach beyond them, and where less
    will be done than is planned."""
    catalogue: str | None = None
    """From which the chips are downloaded."""

    def __repr__(self) -> str:
        head, *lines = describe_plan(self).splitlines()
        more = len(self.missing) - MOST_LISTED
        if more > 0:
            lines[MOST_LISTED : len(self.missing)] = [f"  and {more} more"]
        return "\n".join(["<Plan>", head, *lines])

    @property
    def device_hours(self) -> float:
        """Hours of encoding, on all workers together."""
        return self.chips_to_do / self.speed.chips_per_second / 3600 if self.speed else 0.0

    @property
    def seconds(self) -> float:
        """From the first task to the last."""
        if self.speed is None:
            return 0.0
        blocks = math.ceil(self.chips_to_do / self.chips_a_block)
        # Of the worker that has the most to do.
        chips = min(self.chips_to_do, math.ceil(blocks / self.workers) * self.chips_a_block)
        return self.speed.first_seconds + chips / self.speed.chips_per_second

    @property
    def hours(self) -> float:
        """For which the workers are there: until they have started, and until the last task ends."""
        return (self.speed.start_seconds + self.seconds) / 3600 if self.speed else 0.0

    @property
    def price(self) -> float | None:
        """Of all workers' hours, in the currency of `price_per_hour`."""
        return None if self.price_per_hour is None else self.workers * self.hours * self.price_per_hour


@documented(RunOptions)
def plan(
    tiles: StrPath | Iterable[str] | None = None,
    *,
    device: str | None = None,
    price_per_hour: float | None = None,
    **options: Unpack[RunOptions],
) -> Plan:
    """What `daskembed.run` will take with the same arguments; starts no cluster and writes nothing to the output.

    The source and the output are listed and receipts are read. Without a `device` some chips are embedded on this
    machine for about ten seconds, in a process of their own. The plan is kept in the folder of downloaded checkpoints,
    where a run on this machine finds it to compare itself with. `workers` are machines as fast as that, of ``1..20``
    the most, of None one; those of the cluster ``local`` are one machine. ``auto`` precision is what `device`, or this
    machine, computes natively.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids; None if a `region` is given.
    device
        Key of `daskembed.runs.throughput.DEVICES`; None measures this machine.
    price_per_hour
        Of one such machine, in any currency.
    options
        See `daskembed.runs.options.Options`.

    Raises
    ------
    InputError
        If the run would be refused too, or this machine's speed cannot be measured.
    StorageError
        If a store does not answer.
    """
    if device is not None and device not in DEVICES:
        raise InputError(
            f"unknown device {device!r}: choose one of {', '.join(DEVICES)}, or leave it out to measure"
            f"{did_you_mean(device, DEVICES)}"
        )
    asked = Options.of(options, RunOptions)
    precision = asked.precision
    if device is not None and precision == "auto":
        precision = "bf16" if DEVICES[device].bf16 else "fp32"
    most = parse_workers(1 if asked.workers is None else asked.workers)[1]
    names = asked_tiles(tiles, asked.region)
    if isinstance(source := open_source(asked.source), Storage):
        preflight.check_source(source, names)
    ask = partial(ask_catalogue, asked=asked, source=source, names=names, here=True)
    settings = resolve(asked, ask)(resolve_precision(precision))
    receipts = read_receipts(settings.output, names, settings.version)
    decides = chosen_by(settings.source, settings.reading)
    kept = keepers(decides, settings.output, settings.version, names, receipts)
    published = published_files(settings.output, settings.version)
    if not asked.overwrite:
        check_conflicts(settings, names, receipts, published)
    with ThreadPoolExecutor(4 if decides else 16) as pool:
        listed = dict(zip(names, pool.map(lambda tile: _list(settings, tile, kept.get(tile)), names), strict=True))
    listings = {tile: found for tile, found in listed.items() if isinstance(found, Listing)}
    done = {
        tile
        for tile, listing in listings.items()
        if (receipt := receipts.get(tile))
        and receipt.finishes(settings.identity, published.get(tile, {}))
        and receipt.holds(listing.fingerprint, retry_quarantined=settings.retry_quarantined)
    }
    to_do = {tile: listing for tile, listing in listings.items() if tile not in done}
    with ThreadPoolExecutor(16) as pool:
        sizes = [size for found in pool.map(lambda one: _sizes_to_do(settings, one), to_do.values()) for size in found]
    speed, local = None, asked.cluster == "local"
    if sizes and device is None:
        speed = measure(settings, next(iter(to_do.values())))
    elif sizes and device is not None:
        # The other devices, and more machines than one, are planned for where they are not at hand.
        here = local and device == "cpu" and most == 1
        speed = of_device(device, settings.encoder, sum(sizes) / len(sizes), here=here)
    if device is None and local:
        most = 1
    made = Plan(
        output=settings.output.url,
        level=settings.level,
        done=tuple(tile for tile in names if tile in done),
        to_do=tuple(to_do),
        missing={tile: found for tile, found in listed.items() if isinstance(found, str)},
        chips=sum(len(listing.entries) for listing in listings.values()),
        chips_to_do=len(sizes),
        bytes_to_read=sum(sizes),
        bytes_to_write={
            name: sum(_tile_bytes(settings, name, len(one.entries)) for one in to_do.values())
            for name in settings.encoder.description.levels
        },
        chips_a_block=settings.chips_a_block,
        speed=speed,
        workers=most,
        price_per_hour=price_per_hour,
        notes=(
            *_region_notes(settings, to_do),
            *(note for listing in to_do.values() for note in (*listing.notes, *listing.coverage)),
        ),
        catalogue=source.name if isinstance(source, Catalogue) else None,
    )
    keep(settings, Expected(made.chips_to_do, made.seconds, made.bytes_to_write[made.level], made.workers))
    return made


def file_bytes(chips: int, shape: tuple[int, ...], dtype: str = "float32") -> int:
    """About how many bytes a published file has, of chips with embeddings of `shape`."""
    return round(FILE_BYTES + chips * (ROW_BYTES + COMPRESSED * np.dtype(dtype).itemsize * math.prod(shape)))


def _region_notes(settings: Settings, to_do: Mapping[str, Listing]) -> list[str]:
    """What is said where more is planned than will be done."""
    if settings.reading.region is None or all(listing.chips for listing in to_do.values()):
        return []
    return ["chips in files of their own tell in their headers where they are: of their tiles, all are planned for"]


def _tile_bytes(settings: Settings, level: str, chips: int) -> int:
    """Of all its files, with formats that cannot hold the level left out."""
    description = settings.encoder.description
    able = 0
    for kind in map(get_format, settings.formats):
        with contextlib.suppress(InputError):
            kind.check_level(description, level)
            able += 1
    return able * file_bytes(chips, description.shape(level), settings.dtype)


def _list(settings: Settings, tile: str, keeper: Receipt | TileRecord | None) -> Listing | str:
    """A tile's chips, or why it has none."""
    kept = [] if keeper is None or settings.refresh else keeper.scenes
    try:
        return list_tile(tile, settings.source, settings.reading, kept)
    except TileError as error:
        return str(error)


def _sizes_to_do(settings: Settings, listing: Listing) -> list[int]:
    """Bytes of a tile's chips that no finished block holds; all chips are taken to be usable."""
    present = settings.output.entries(block_folder(settings, listing.tile, listing.fingerprint))
    done = {int(Path(entry.path).stem) for entry in present}
    ends = block_ends(listing.units, settings.chips_a_block)
    return [
        entry.size
        for block, (start, end) in enumerate(pairwise((0, *ends)))
        if block not in done
        for entry in listing.entries[start:end]
    ]
