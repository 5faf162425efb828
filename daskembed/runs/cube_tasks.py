"""What is sent of a tile that becomes a cube: it is indexed, its shards are written, and then it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from daskembed.output.state import CubeReceipt, Note, now, write_failure
from daskembed.runs import cube_stages as stages
from daskembed.runs.cube_layout import Job, Shard
from daskembed.runs.deadly_chips import Suspects
from daskembed.runs.results import TileResult
from daskembed.runs.tasks import Following, Observer, Piece, Task, Tile
from daskembed.storage.stores import Storage
from daskembed.storage.urls import redact


@dataclass(frozen=True)
class CubeTiles:
    """Tiles that become cubes; see `daskembed.runs.tasks.Work`."""

    job: Job
    pieces: ClassVar[str] = "shard"

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return f"{redact(self.job.output.url)} cubes"

    def most_tiles(self, threads: int) -> int:
        """Few: a tile at work has no cube that can be opened, and has none either if the run stops."""
        return 2 + threads // 8

    def begin(self, name: str, order: int) -> Task[Any]:
        """Index a tile."""
        return _Index(CubeTile(name, order, now(), self.job))


@dataclass
class CubeTile(Tile):
    """One tile on its way."""

    job: Job
    plan: stages.Plan | None = None
    waiting: set[str] = field(default_factory=set)
    """Shards that are not written yet."""
    notes: dict[str, Note] = field(default_factory=dict)
    """Of those that are, by their keys."""

    def record_failure(self, reason: str) -> None:
        """Write down in the output why it failed."""
        write_failure(self.job.output, self.name, None, reason)


def result_of(output: Storage, receipt: CubeReceipt, status: str, damage: str = "") -> TileResult:
    """What became of a tile, as its receipt says; `damage` is why it was made again."""
    cube = output.url_of(receipt.file) if receipt.file else None
    again = [f"{damage}: made again"] if damage else []
    return TileResult(
        receipt.tile,
        status,
        cube,
        receipt.chips,
        receipt.quarantined,
        size=receipt.size if cube else 0,
        notes=(*receipt.notes, *again),
    )


@dataclass(frozen=True)
class _Index(Task["stages.Plan | CubeReceipt"]):
    tile: CubeTile
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return stages.plan_tile, (self.tile.job, self.tile.name)

    def then(self, found: stages.Plan | CubeReceipt, observer: Observer) -> Following:
        tile = self.tile
        if isinstance(found, CubeReceipt):
            return result_of(tile.job.output, found, "skipped")
        tile.plan, tile.quarantined, tile.damage = found, found.begun.quarantined, found.damage
        chips, shards = sum(len(shard.chips) for shard in found.to_do), list(enumerate(found.to_do))
        observer.indexed(tile.name, tile.quarantined, chips, len(shards), self.key)
        tile.waiting = {shard.key for shard in found.to_do}
        return [_Write(tile, shard, number) for number, shard in shards] or [_Publish(tile)]


@dataclass(frozen=True)
class _Write(Piece[Note]):
    tile: CubeTile
    shard: Shard
    place: int
    """Of the shard among those of its tile that are to be written."""
    stage: ClassVar[str] = "write"

    @property
    def number(self) -> int:
        return self.place

    @property
    def suspects(self) -> Suspects:
        return self.shard

    def call(self) -> tuple[Callable[..., Note], tuple[Any, ...]]:
        tile = self.tile
        assert tile.plan is not None
        assert tile.plan.layout is not None
        bands = len(tile.plan.layout.bands)
        return stages.write_shard, (tile.job, tile.name, bands, self.shard, self.set_aside, self.returns)

    def then(self, found: Note, observer: Observer) -> Following:
        tile = self.tile
        tile.notes[self.shard.key] = found
        observer.block_done("written", tile.name, found.chips, self.key, self.number)
        tile.waiting.discard(self.shard.key)
        return [] if tile.waiting else [_Publish(tile)]


@dataclass(frozen=True)
class _Publish(Task[CubeReceipt]):
    tile: CubeTile
    stage: ClassVar[str] = "publish"
    publishes: ClassVar[bool] = True

    def call(self) -> tuple[Callable[..., CubeReceipt], tuple[Any, ...]]:
        tile = self.tile
        return stages.finish_tile, (tile.job, tile.plan, tile.notes)

    def then(self, found: CubeReceipt, observer: Observer) -> Following:
        return result_of(self.tile.job.output, found, "done", self.tile.damage)
