"""The stages of one tile: what the workers do, and the tasks of its blocks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dask

from daskembed import __version__
from daskembed.cube import open_tile
from daskembed.embedding import embed
from daskembed.errors import TileError
from daskembed.receipts import Receipt, parts_folder, write_receipt
from daskembed.sinks import get_sink
from daskembed.sources import get_source
from daskembed.table import to_geodataframe

if TYPE_CHECKING:
    import geopandas as gpd
    from dask.delayed import Delayed

    from daskembed.settings import Settings


@dataclass(frozen=True)
class Indexed:
    """What the index task of a tile brings back."""

    index: gpd.GeoDataFrame
    listing: str
    present: frozenset[str]
    """Parts that an earlier run left."""


def index(settings: Settings, tile: str, finished: Receipt | None, files: list[str]) -> Indexed | TileError | None:
    """On a worker: index a tile, unless it is finished and its chips are still the same (then None).

    Parameters
    ----------
    settings, tile
        What to do with which tile.
    finished
        Its receipt, if these settings finished it before.
    files
        Names of its published files.
    """
    source = get_source("geotiff")
    try:
        listing = source.list_chips(tile, settings.source.url, dates=settings.dates)
        if finished is not None and listing.fingerprint == finished.listing:
            _tidy(settings, finished, files)
            return None
        found = source.read_headers(listing, dates=settings.dates, readers=settings.encoder.readers)
    except TileError as error:
        # Given back, not raised: Dask would try again and log a traceback for what is no fault of the cluster.
        return error
    present = settings.output.entries(parts_folder(tile, settings.version))
    return Indexed(found, listing.fingerprint, frozenset(entry.path for entry in present))


@dataclass(frozen=True)
class Block:
    """One part of a tile: where it goes, and the task that makes it."""

    path: str
    """Of the part, below the output."""
    chips: int
    task: Delayed | None
    """None if an earlier run left the part."""


def blocks(settings: Settings, tile: str, indexed: Indexed) -> list[Block]:
    """The blocks of a tile in the order of their rows, none if all its chips are quarantined; computes nothing."""
    if not indexed.index["quarantined"].isna().any():
        return []
    cube = open_tile(indexed.index, chips_a_block=settings.chips_a_block)
    frame = to_geodataframe(embed(cube, settings.encoder, settings.level, on_nan=settings.on_nan))
    key = _digest(settings.identity, settings.version, indexed.listing, settings.chips_a_block, __version__)
    write = dask.delayed(_write_part)
    found = []
    for number, (partition, chips) in enumerate(zip(frame.to_delayed(), cube.chunksizes["chip"], strict=True)):
        path = f"{parts_folder(tile, settings.version)}/{key}/{number:05d}.parquet"
        present = path in indexed.present
        task = None if present else write(partition, settings, path, dask_key_name=f"write-{tile}-{number}-{key}")
        found.append(Block(path, chips, task))
    return found


def _write_part(frame: gpd.GeoDataFrame, settings: Settings, path: str) -> tuple[str, int]:
    """On a worker: write a block's part; returns its path and how many of its chips are quarantined."""
    get_sink("geoparquet").write_part(frame, settings.output, path, settings.encoder.shape(settings.level))
    return path, int(frame["quarantined"].notna().sum())


def publish(
    settings: Settings,
    tile: str,
    indexed: Indexed,
    parts: list[str],
    started: str,
    files: list[str],
) -> Receipt:
    """On a worker: file, receipt, then the removal of what they replace, in the order that a death leaves sound."""
    sink, output, index = get_sink("geoparquet"), settings.output, indexed.index
    bad = index[index["quarantined"].notna()]
    days = index["date"].dropna()
    published = None
    if parts:
        name = f"{tile}_{min(days):%Y%m%d}_{max(days):%Y%m%d}_v{settings.version}{sink.SUFFIX}"
        published = sink.publish(
            output, name, parts, {**settings.provenance, "tile": tile, "identity": settings.identity}
        )
    receipt = Receipt(
        tile=tile,
        version=settings.version,
        file=published.name if published else None,
        size=published.size if published else 0,
        sha256=published.sha256 if published else None,
        chips=published.chips if published else 0,
        quarantined={
            **dict(zip(bad["source_url"], bad["quarantined"], strict=True)),
            **(published.quarantined if published else {}),
        },
        filled=published.filled if published else {},
        settings=settings.identity,
        listing=indexed.listing,
        started=started,
        finished=now(),
        software=settings.provenance["software"],
    )
    write_receipt(output, receipt)
    _tidy(settings, receipt, files)
    return receipt


def _tidy(settings: Settings, receipt: Receipt, files: list[str]) -> None:
    """Remove a finished tile's parts and the files that its file replaced."""
    parts = settings.output.entries(parts_folder(receipt.tile, receipt.version))
    settings.output.delete([name for name in files if name != receipt.file] + [entry.path for entry in parts])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
