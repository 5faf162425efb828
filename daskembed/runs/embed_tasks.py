"""What is sent of a tile to embed: it is indexed, its blocks are embedded, and then it is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from daskembed.errors import TileError
from daskembed.output.state import Receipt, TileRecord, now
from daskembed.runs import blocks, stages
from daskembed.runs.blocks import Block, BlockSuspects
from daskembed.runs.deadly_chips import Suspects
from daskembed.runs.kept import Kept
from daskembed.runs.results import TileResult
from daskembed.runs.settings import Settings
from daskembed.runs.tasks import Following, Observer, Piece, Task, Tile
from daskembed.storage.urls import redact

MOST_BEGUN_AGAIN = 2
"""How often a tile is indexed again because its parts are gone."""


@dataclass(frozen=True)
class EmbedTiles:
    """Tiles to embed; see `daskembed.runs.tasks.Work`."""

    settings: Settings
    receipts: Mapping[str, Receipt]
    """Of earlier runs, by tile."""
    published: Mapping[str, Mapping[str, int]]
    """Names and bytes of published files, by tile."""
    kept: Mapping[str, Receipt | TileRecord] = field(default_factory=dict)
    """What keeps the scenes of a catalogue that an earlier run chose, by tile."""
    pieces: ClassVar[str] = "block"

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return f"{redact(self.settings.output.url)} v{self.settings.version}"

    def most_tiles(self, threads: int) -> None:
        """No bound: a tile's published files stay until new ones are there."""

    def begin(self, name: str, order: int) -> Task[Any]:
        """Index a tile."""
        files, receipt = self.published.get(name, {}), self.receipts.get(name)
        return _Index(
            EmbedTile(
                name,
                order,
                now(),
                self.settings,
                receipt if receipt and receipt.finishes(self.settings.identity, files) else None,
                sorted(files),
                # Chips that an earlier run quarantined, whatever its settings were.
                {} if receipt is None else receipt.quarantined,
                self.kept[name].scenes if name in self.kept else (),
                damage="; ".join(receipt.differences(files)) if receipt else "",
            )
        )


@dataclass
class EmbedTile(Tile):
    """One tile on its way."""

    settings: Settings
    receipt: Receipt | None
    """Of an earlier run with the same settings."""
    files: list[str]
    """Names of its published files."""
    known: Mapping[str, str]
    """URL -> reason, of chips that an earlier run quarantined."""
    kept: Kept = ()
    """Scenes that an earlier run chose."""
    indexed: stages.Indexed | None = None
    waiting: set[str] = field(default_factory=set)
    """Parts that are not written yet."""
    begun_again: int = 0
    """How often its parts were gone."""

    def record_failure(self, reason: str) -> None:
        """Write down in the output why it failed."""
        stages.record(self.settings, self.name, self.indexed, reason, self.kept)

    @property
    def scenes(self) -> Kept:
        """Those that it goes on with; none if they are to be chosen."""
        if self.indexed is not None:
            return self.indexed.scenes
        return () if self.settings.refresh else self.kept

    def result(self, status: str, receipt: Receipt) -> TileResult:
        """What became of it."""
        result = stages.result_of(self.settings.output, receipt, status)
        return replace(result, notes=(*result.notes, f"{self.damage}: made again")) if self.damage else result


@dataclass(frozen=True)
class _Index(Task["tuple[stages.Indexed, list[Block]] | None"]):
    tile: EmbedTile
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        tile = self.tile
        pause = float(2**tile.begun_again - 1)
        return stages.index, (tile.settings, tile.name, tile.receipt, tile.files, tile.known, tile.scenes, pause)

    def then(self, found: tuple[stages.Indexed, list[Block]] | None, observer: Observer) -> Following:
        tile, settings = self.tile, self.tile.settings
        if found is None:
            assert tile.receipt is not None
            if settings.carried:
                stages.tidy(settings.output, tile.receipt, tile.files)
            return tile.result("skipped", tile.receipt)
        tile.indexed, to_do = found
        tile.quarantined = tile.indexed.quarantined
        if settings.carried:
            to_do = stages.begin(settings, tile.name, tile.indexed, to_do)
        observer.indexed(tile.name, tile.quarantined, sum(block.chips for block in to_do), len(to_do), self.key)
        tile.waiting = {block.path for block in to_do}
        return [_Embed(tile, block, tries=self.tries) for block in to_do] or [_Publish(tile)]


@dataclass(frozen=True)
class _Embed(Piece["bytes | None"]):
    tile: EmbedTile
    block: Block
    stage: ClassVar[str] = "embed"

    @property
    def number(self) -> int:
        return self.block.number

    @property
    def suspects(self) -> Suspects:
        return BlockSuspects(self.block, self.tile.settings.encoder, self.tile.settings.level)

    @property
    def gives(self) -> bool:
        return self.tile.settings.carried

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        settings = self.tile.settings
        if self.returns:
            return blocks.embed_gently, (settings, self.block, self.set_aside, self.returns)
        return partial(blocks.embed_block, settings=settings), (self.block,)

    def then(self, found: bytes | None, observer: Observer) -> Following:
        tile = self.tile
        if found is not None:
            tile.settings.output.put(self.block.path, found)
        observer.block_done("embedded", tile.name, self.block.chips, self.key, self.number)
        tile.waiting.discard(self.block.path)
        return [] if tile.waiting else [_Publish(tile)]


@dataclass(frozen=True)
class _Publish(Task[Receipt]):
    tile: EmbedTile
    stage: ClassVar[str] = "publish"
    publishes: ClassVar[bool] = True

    @property
    def on_client(self) -> bool:
        return self.tile.settings.carried

    def call(self) -> tuple[Callable[..., Receipt], tuple[Any, ...]]:
        tile = self.tile
        return stages.publish, (tile.settings, tile.name, tile.indexed, tile.started, tile.files, tile.known)

    def then(self, found: Receipt, observer: Observer) -> Following:
        return self.tile.result("done", found)

    def again(self, error: BaseException, observer: Observer) -> Task[Any]:
        tile = self.tile
        if not isinstance(error, FileNotFoundError):
            return super().again(error, observer)
        # The last task of a run that was stopped may have published and removed the parts.
        if tile.begun_again == MOST_BEGUN_AGAIN:
            # A store that lists them and does not give them would have it go on for ever.
            raise TileError(f"{error}, though it was written or listed: look at the output's store")
        tile.begun_again += 1
        observer.index_again(tile.name)
        return _Index(tile, tries=self.tries + 1)
