"""Blocks: the tasks of a tile that embed, each from its chips to its part."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.optimization import cull

from daskembed import __version__
from daskembed.cube import ChipBlock, open_tile
from daskembed.embedding import embed
from daskembed.encoders.description import Place
from daskembed.energy import Energy, collected, total
from daskembed.geo.chips import CHIP
from daskembed.output.parts import write_part
from daskembed.output.state import parts_folder
from daskembed.sources.chip import ReadChip
from daskembed.table import to_geodataframe
from daskembed.timings import metered

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.encoders.protocol import Encoder
    from daskembed.runs.settings import Settings


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
    return _make(settings, block)


@metered()
def embed_gently(settings: Settings, block: Block, without: Mapping[str, str], returns: int) -> bytes | None:
    """`embed_block` where workers died of the block: with ever less memory, and without the chips of `without`."""
    from daskembed.compute.device import get_device

    get_device(settings.encoder).take_less(returns)
    return _make(settings, block, without)


@dataclass(frozen=True)
class BlockSuspects:
    """The chips of a block, one of which may be what workers die of."""

    block: Block
    encoder: Encoder
    level: str

    @property
    def urls(self) -> tuple[str, ...]:
        """Of the chips."""
        return self.block.urls

    def warm_up(self) -> None:
        """Embed zeros: that takes the weights."""
        from daskembed.compute.device import get_device

        needs = self.encoder.description
        degrees = np.zeros((1, (CHIP // needs.window) ** 2))
        place = Place(degrees, degrees, np.array(["2020-01-01T12"], "datetime64[s]"), np.array([needs.sensor.gsd]))

        def zeros() -> ReadChip:
            return ReadChip(np.zeros((len(needs.bands), CHIP, CHIP), np.float32), [])

        get_device(self.encoder).encode([zeros], place, level=self.level, on_nan="fill")

    def touch(self, url: str) -> None:
        """Embed a chip."""
        self.block.compute({other: "" for other in self.urls if other != url})


def _make(settings: Settings, block: Block, without: Mapping[str, str] | None = None) -> bytes | None:
    with collected() as measured:
        frame = block.compute(without)
    return _write(settings, block, frame, total(measured))


def _write(settings: Settings, block: Block, frame: gpd.GeoDataFrame, energy: Energy | None) -> bytes | None:
    shape = settings.encoder.description.row_shape(settings.level)
    if settings.carried:
        part = io.BytesIO()
        write_part(frame, part, shape, energy)
        return part.getvalue()
    with settings.output.open_writer(block.path) as file:
        write_part(frame, file, shape, energy)
    return None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
