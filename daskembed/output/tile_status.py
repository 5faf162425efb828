"""What is told of an output: the state of each tile and cube."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from daskembed.output.export_status import ExportStatus, lines_of
from daskembed.text import counted, one_line, visible

STATES = ("done", "unfinished", "failed", "missing", "changed", "damaged")
KINDS = {"embeddings": "tiles", "cube": "cubes"}
MOST_LISTED = 20
"""Quarantined chips named for people; the CSV has all."""


@dataclass(frozen=True, repr=False)
class TileStatus:
    """What an output holds of one version of a tile."""

    tile: str
    version: str
    status: Literal["done", "unfinished", "failed", "missing", "changed", "damaged"]
    """``missing`` and ``changed`` are finished tiles of which a file is gone or of another size than the receipt says;
    ``missing`` is a tile that was asked for and never begun, too; ``damaged`` is one whose receipt or record cannot be
    read."""
    files: list[str] = field(default_factory=list)
    """Names of the published files, one a format; they may be an earlier run's."""
    chips: int | None = None
    """Chips in the files, as the receipt says; None without a receipt."""
    parts_done: int = 0
    """Blocks of which the part is written; 0 once the tile is finished."""
    parts: int | None = None
    """Blocks in all; None if nothing says how many."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """URL -> reason; of an unfinished tile only the chips whose headers are bad."""
    rejected: dict[str, str] = field(default_factory=dict)
    """URL -> the rule that it breaks; of finished tiles."""
    reason: str | None = None
    """Why it failed, or what is not as it should be."""
    kind: Literal["embeddings", "cube"] = "embeddings"
    """What it holds; a cube's blocks are shards, and it has no version."""

    def __repr__(self) -> str:
        bad = f", {len(self.quarantined)} quarantined" if self.quarantined else ""
        bad += f", {len(self.rejected)} rejected" if self.rejected else ""
        why = (
            f": {one_line(self.reason)}" if self.reason else "" if self.chips is None else f": {self.chips} chips{bad}"
        )
        version = " cube" if self.kind == "cube" else f" v{self.version}" if self.version else ""
        return f"<TileStatus {self.tile}{version} {self.status}{why}>"


@dataclass(frozen=True)
class StacStatus:
    """How the STAC of an output fits its published files, by their names."""

    items: int
    """Of published files."""
    missing: tuple[str, ...] = ()
    """Files of finished tiles without an item."""
    stale: tuple[str, ...] = ()
    """Files that have an item and are no files of finished tiles."""


@dataclass(frozen=True, repr=False)
class OutputStatus:
    """What an output holds."""

    output: str
    """Its URL or absolute path."""
    tiles: tuple[TileStatus, ...]
    """In the order of tile and version, then the cubes by tile."""
    stac: StacStatus | None = None
    """What its STAC lacks; None if it has none."""
    export: ExportStatus | None = None
    """What it holds if it is an export, and no output of runs: then it has no tiles of its own."""

    def __repr__(self) -> str:
        more = [f"  and {len(self.tiles) - MOST_LISTED} more"] if len(self.tiles) > MOST_LISTED else []
        tiles = [f"  {tile.tile} {tile.version} {tile.status}" for tile in self.tiles[:MOST_LISTED]]
        return "\n".join([f"<OutputStatus> {visible(self.output)}", *tiles, *more, *summary(self)])

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of tiles, of those statuses that occur; of an export's files."""
        if self.export is not None:
            return self.export.counts
        seen: Counter[str] = Counter(tile.status for tile in self.tiles)
        return {state: seen[state] for state in STATES if seen[state]}

    @property
    def sound(self) -> bool:
        """Whether all tiles, or the export, are done, and their files as their receipts say."""
        if self.export is not None:
            return self.export.sound
        return all(tile.status == "done" for tile in self.tiles)

    @property
    def quarantined(self) -> tuple[tuple[str, str, str, str], ...]:
        """Tile, version, URL and reason of each quarantined chip."""
        return tuple(
            (tile.tile, tile.version, url, why) for tile in self.tiles for url, why in sorted(tile.quarantined.items())
        )


def summary(found: OutputStatus) -> list[str]:
    """The closing lines: how many tiles of each status, and the quarantined chips."""
    return [*(_of_tiles(found) if found.export is None else lines_of(found.export)), *_of_stac(found.stac)]


def _of_tiles(found: OutputStatus) -> list[str]:
    bad = found.quarantined
    by_kind = {kind: replace(found, tiles=tuple(t for t in found.tiles if t.kind == kind)).counts for kind in KINDS}
    lines = [
        *(
            f"{name:<12} {', '.join(f'{count} {state}' for state, count in by_kind[kind].items()) or 'none'}"
            for kind, name in KINDS.items()
            if by_kind[kind] or not (found.tiles or kind == "cube")
        ),
        f"quarantined  {len(bad)}",
        *(f"  {visible(url)}  {one_line(why)}" for _, _, url, why in bad[:MOST_LISTED]),
    ]
    if len(bad) > MOST_LISTED:
        lines.append(f"  and {len(bad) - MOST_LISTED} more: `quarantined` lists all")
    rejected = sum(len(tile.rejected) for tile in found.tiles)
    lines += [f"rejected     {rejected}"] if rejected else []
    return lines


def _of_stac(stac: StacStatus | None) -> list[str]:
    if stac is None:
        return []
    lacks = ((stac.missing, "without an item"), (stac.stale, "with one that should have none"))
    wrong = [f"{counted(len(names), 'file')} {what}, such as {visible(names[0])}" for names, what in lacks if names]
    again = f"; {'; '.join(wrong)}: `daskembed stac` writes them" if wrong else ""
    return [f"STAC         {counted(stac.items, 'item')}{again}"]
