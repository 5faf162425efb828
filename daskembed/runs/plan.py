"""What a run will take: chips, bytes, hours and price, from listings and the speed of a worker."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from daskembed import config
from daskembed.clusters.presets import parse_workers
from daskembed.cube import block_ends
from daskembed.documents import parse_as
from daskembed.encoders.loading import resolve_precision
from daskembed.errors import InputError, TileError, did_you_mean
from daskembed.geo.mgrs import tiles_of
from daskembed.output.protocol import get_sink
from daskembed.output.receipts import published_files, read_receipts
from daskembed.runs import preflight as ahead
from daskembed.runs.rates import DEVICES, Speed, measure, of_device
from daskembed.runs.results import Expected
from daskembed.runs.settings import Settings
from daskembed.runs.stages import block_folder
from daskembed.runs.tiles import check_conflicts, resolve
from daskembed.sources.kinds import list_tile
from daskembed.sources.listing import Listing
from daskembed.sources.reading import Rules
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
    """Of the files of `chips_to_do`."""
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
    """What of the whole tiles to do is in no chip, and which chips reach beyond them."""

    def __repr__(self) -> str:
        from daskembed.runs.display import MOST_LISTED, describe_plan

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


def plan(
    tiles: str | Iterable[str],
    *,
    source: str | None = None,
    output: str | None = None,
    encoder: str | None = None,
    checkpoint: str | None = None,
    sensor: str | None = None,
    window: int | None = None,
    level: str | None = None,
    cluster: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
    dates: str | None = None,
    version: str | None = None,
    on_nan: str | None = None,
    max_quarantined: float | None = None,
    retry_quarantined: bool = False,
    format: str | None = None,
    dtype: str | None = None,
    offset: tuple[int, int] | None = None,
    edge: str | None = None,
    rules: Rules | None = None,
    numbers: str | None = None,
    offset_applied: str | None = None,
    overwrite: bool = False,
    device: str | None = None,
    workers: int | str = 1,
    price_per_hour: float | None = None,
) -> Plan:
    """What `daskembed.run` will take with the same arguments; starts no cluster and writes nothing to the output.

    The source and the output are listed and receipts are read. Without a `device` some chips are embedded on this
    machine for about ten seconds, in a process of their own. The plan is kept in the folder of downloaded checkpoints,
    where a run on this machine finds it to compare itself with.

    Parameters
    ----------
    tiles, source, output, encoder, checkpoint, sensor, window, level, cluster, precision, batch_size, readers, dates,
    version, on_nan, max_quarantined, retry_quarantined, format, dtype, offset, edge, rules, numbers,
    offset_applied, overwrite
        See `daskembed.run`. Here ``auto`` precision is what `device`, or this machine, computes natively.
    device
        Key of `daskembed.runs.rates.DEVICES`; None measures this machine.
    workers
        How many machines as fast as that; of ``1..20`` the most. Those of the cluster ``local`` are one machine.
    price_per_hour
        Of one such machine, in any currency.

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
    asked = precision or config.get("precision")
    if device is not None and asked == "auto":
        asked = "bf16" if DEVICES[device].bf16 else "fp32"
    most = parse_workers(workers)[1]
    names = tiles_of(tiles)
    ahead.check_source(Storage(source or config.get("source")), names)
    names, settings = resolve(
        names,
        source=source,
        output=output,
        encoder=encoder,
        checkpoint=checkpoint,
        sensor=sensor,
        window=window,
        level=level,
        precision=resolve_precision(asked),
        batch_size=batch_size,
        readers=readers,
        dates=dates,
        version=version,
        on_nan=on_nan,
        max_quarantined=max_quarantined,
        retry_quarantined=retry_quarantined,
        format=format,
        dtype=dtype,
        offset=offset,
        edge=edge,
        rules=rules,
        numbers=numbers,
        offset_applied=offset_applied,
    )
    receipts = read_receipts(settings.output, names, settings.version)
    published = published_files(settings.output, settings.version)
    if not overwrite:
        check_conflicts(settings, names, receipts, published)
    with ThreadPoolExecutor(16) as pool:
        listed = dict(zip(names, pool.map(lambda tile: _list(settings, tile), names), strict=True))
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
    speed, local = None, (cluster or config.get("cluster")) == "local"
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
        notes=tuple(note for listing in to_do.values() for note in listing.coverage),
    )
    _keep(settings, made)
    return made


def file_bytes(chips: int, shape: tuple[int, ...], dtype: str = "float32") -> int:
    """About how many bytes a published file has, of chips with embeddings of `shape`."""
    return round(FILE_BYTES + chips * (ROW_BYTES + COMPRESSED * np.dtype(dtype).itemsize * math.prod(shape)))


def _tile_bytes(settings: Settings, level: str, chips: int) -> int:
    """Of all its files, with formats that cannot hold the level left out."""
    description = settings.encoder.description
    able = 0
    for sink in map(get_sink, settings.formats):
        with contextlib.suppress(InputError):
            sink.check_level(description, level)
            able += 1
    return able * file_bytes(chips, description.shape(level), settings.dtype)


def _list(settings: Settings, tile: str) -> Listing | str:
    """A tile's chips, or why it has none."""
    try:
        return list_tile(tile, settings.source, settings.reading)
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


def _path(settings: Settings) -> Path:
    """Not in the output: that a run is planned must neither make it nor need the right to write there."""
    key = json.dumps([settings.output.url, settings.version, settings.identity], sort_keys=True)
    return config.cache_folder() / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _keep(settings: Settings, made: Plan) -> None:
    path = _path(settings)
    expected = Expected(made.chips_to_do, made.seconds, made.bytes_to_write[made.level], made.workers)
    with contextlib.suppress(OSError):  # the plan is as good without a run that looks back at it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(expected)))


def recall(settings: Settings) -> Expected | None:
    """What the latest plan on this machine expected of a run with these settings; None if there is none."""
    try:
        return parse_as(Expected, _path(settings).read_text())
    except (OSError, ValueError):
        return None
