"""The report of `daskembed scenes`: for people, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from daskembed.cli.text import print_table, with_flags
from daskembed.text import counted, one_line, visible

if TYPE_CHECKING:
    from rich.table import Table

    from daskembed.runs.scenes import SceneItem, TileScenes

_TOLD_BY = {"receipt": "finished: as its receipt says", "record": "begun: as its record says", "catalogue": ""}


def show(found: Sequence[TileScenes]) -> None:
    """Print a table a tile."""
    for tile in found:
        if tile.reason and not tile.items:
            print(f"{tile.tile}  {visible(with_flags(tile.reason))}")
            continue
        by = f" ({told})" if (told := _TOLD_BY[tile.told_by]) else ""
        left_out = len(tile.items) - sum(item.used is not None for item in tile.items)
        print(f"{tile.tile}  {counted(tile.used, 'scene')}, {counted(left_out, 'item')} left out{by}")
        if tile.items:
            print_table(_table(tile))
        for line in (*([tile.reason] if tile.reason else []), *tile.notes):
            print(f"  {visible(with_flags(line))}")


def _table(tile: TileScenes) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("scene", "role", "collection", "item", "time"):
        table.add_column(name, no_wrap=True)
    for name in ("share", "cloud"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("baseline, orbit, offset, or why it is left out", overflow="fold")
    for item in tile.items:
        table.add_row(*(Text(visible(with_flags(cell))) for cell in _cells(item)))
    return table


def _cells(item: SceneItem) -> tuple[str, ...]:
    orbit = " ".join(str(part) for part in (item.orbit_state, item.relative_orbit) if part is not None)
    told = [f"baseline {item.baseline}" if item.baseline else "", f"orbit {orbit}" if orbit else "", item.offset or ""]
    return (
        item.used or "-",
        item.role or "",
        item.collection,
        item.id,
        item.time[:16].replace("T", " "),
        "" if item.share is None else f"{item.share:.0%}",
        "" if item.cloud is None else f"{item.cloud:.1f} %",
        one_line(item.reason or ", ".join(filter(None, told))),
    )


def as_json(found: Sequence[TileScenes]) -> str:
    """Everything, as one document."""
    return json.dumps([asdict(_with_flags(tile)) for tile in found], indent=1)


def _with_flags(tile: TileScenes) -> TileScenes:
    items = tuple(replace(item, reason=item.reason and with_flags(item.reason)) for item in tile.items)
    notes = tuple(map(with_flags, tile.notes))
    return replace(tile, items=items, notes=notes, reason=tile.reason and with_flags(tile.reason))
