"""What is sent of an export: each published file is indexed, and then each file of the plan is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from daskembed.errors import TileError
from daskembed.exports.files import write_file
from daskembed.exports.index import TileIndex, check_once, index_tile
from daskembed.exports.selection import ExportTile
from daskembed.exports.settings import Export
from daskembed.exports.state import ExportedFile, PlannedFile, write_failure
from daskembed.output.state import now
from daskembed.runs.results import TileResult
from daskembed.runs.tasks import Following, Observer, Task, Tile
from daskembed.storage.urls import redact


@dataclass(frozen=True)
class PublishedFiles:
    """Published files that are looked at; see `daskembed.runs.tasks.Work`."""

    export: Export
    tiles: Mapping[str, ExportTile]
    near: Mapping[str, Sequence[ExportTile]] = field(default_factory=dict)
    """Those that decide with each other which of their rows stay, by the file's name."""
    planned: bool = False
    """Whether there is a plan, by which all of them have rows in the export."""
    found: dict[str, TileIndex] = field(default_factory=dict)
    """What was found, by the file's name."""
    pieces: ClassVar[str] = "file"

    @property
    def damaged(self) -> dict[str, str]:
        """Those that are left out, and why."""
        return {name: one.damage for name, one in sorted(self.found.items()) if one.damage}

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return f"{redact(self.export.target.url)} index"

    def most_tiles(self, threads: int) -> None:
        """No bound."""

    def begin(self, name: str, order: int) -> Task[Any]:
        """Index a published file."""
        return _Index(_File(name, order, now(), self.export), self)


@dataclass(frozen=True)
class CheckedFiles(PublishedFiles):
    """Published files whose bytes are compared with their receipts, each once before all are looked at."""

    def begin(self, name: str, order: int) -> Task[Any]:
        """Check a published file."""
        return _Check(_File(name, order, now(), self.export), self)


@dataclass(frozen=True)
class ExportedFiles:
    """Files that are written; see `daskembed.runs.tasks.Work`."""

    export: Export
    tiles: Mapping[str, ExportTile]
    planned: Mapping[str, PlannedFile]
    """By name."""
    written: dict[str, ExportedFile] = field(default_factory=dict)
    """Those that are, by name."""
    pieces: ClassVar[str] = "file"

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return redact(self.export.target.url)

    def most_tiles(self, threads: int) -> int:
        """As many as there are threads, and some that wait: all hold their rows in memory."""
        return threads + 2

    def begin(self, name: str, order: int) -> Task[Any]:
        """Write a file."""
        return _Write(_File(name, order, now(), self.export), self)


@dataclass
class Item(Tile):
    """What is on its way."""

    def record_failure(self, reason: str) -> None:
        """Nothing is kept of it: the same command tries it again."""


@dataclass
class _File(Item):
    """A file on its way, published or exported."""

    export: Export

    def record_failure(self, reason: str) -> None:
        self.export.confirm()
        write_failure(self.export.target, self.name, reason)


@dataclass(frozen=True)
class _Index(Task[TileIndex]):
    tile: _File
    work: PublishedFiles
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., TileIndex], tuple[Any, ...]]:
        name = self.tile.name
        index = partial(index_tile, planned=self.work.planned)
        return index, (self.work.export, self.work.tiles[name], self.work.near.get(name, ()))

    def then(self, found: TileIndex, observer: Observer) -> Following:
        self.work.found[found.name] = found
        if found.damage:
            return TileResult(found.name, "left out", reason=found.damage, unit="row")
        return TileResult(found.name, "indexed", chips=found.rows, unit="row")


@dataclass(frozen=True)
class _Check(Task[None]):
    tile: _File
    work: CheckedFiles
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return check_tile, (self.work.export, self.work.tiles[self.tile.name])

    def then(self, found: None, observer: Observer) -> Following:
        return TileResult(self.tile.name, "checked", unit="row")


def check_tile(export: Export, tile: ExportTile) -> None:
    """On a worker: see whether a published file is as its receipt says; if not, that is told where it is indexed."""
    with contextlib.suppress(TileError):
        check_once(export, tile)


@dataclass(frozen=True)
class _Write(Task[ExportedFile]):
    tile: _File
    work: ExportedFiles
    stage: ClassVar[str] = "write"

    @property
    def number(self) -> int:
        return 0

    def call(self) -> tuple[Callable[..., ExportedFile], tuple[Any, ...]]:
        planned = self.work.planned[self.tile.name]
        return write_file, (self.work.export, planned, {name: self.work.tiles[name] for name in planned.tiles})

    def then(self, found: ExportedFile, observer: Observer) -> Following:
        self.work.written[found.name] = found
        observer.block_done("written", found.name, found.rows, self.key, 0)
        where = self.work.export.target.url_of(found.name)
        return TileResult(found.name, "done", where, found.rows, size=found.size, files=(where,), unit="row")
