"""The report of `daskembed status`: for people, as JSON, as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from daskembed.cli.text import print_table, say, with_flags
from daskembed.output.export_status import ExportStatus
from daskembed.output.tile_status import OutputStatus, TileStatus, summary
from daskembed.text import all_visible, describe_bytes, one_line, visible

if TYPE_CHECKING:
    from rich.table import Table


def show(found: OutputStatus) -> None:
    """Print a table and a summary for people; where the output is no terminal, plain lines as long as they need be."""
    print_table(_table(found) if found.export is None else _files(found.export))
    say("\n".join(summary(found)))


def _table(found: OutputStatus) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("tile", "version", "status"):
        table.add_column(name, no_wrap=True)
    rejected = any(tile.rejected for tile in found.tiles)
    for name in ("chips", "blocks", "quarantined", *(["rejected"] if rejected else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("file, reason", overflow="fold")
    for tile in found.tiles:
        unfinished = tile.status in ("unfinished", "failed")
        blocks = f"{tile.parts_done} of {'?' if tile.parts is None else tile.parts}" if unfinished else ""
        chips = "" if tile.chips is None else str(tile.chips)
        what = one_line(tile.reason or " ".join(tile.files) or ("no file" if tile.status == "done" else ""))
        bad = (str(len(tile.quarantined)), *([str(len(tile.rejected))] if rejected else []))
        cells = (tile.tile, "cube" if tile.kind == "cube" else tile.version, tile.status, chips, blocks, *bad, what)
        # As `Text`, so that brackets in names and reasons are no markup.
        table.add_row(*(Text(visible(with_flags(cell))) for cell in cells))
    return table


def _files(found: ExportStatus) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("file", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for file in found.files:
        size = "" if file.size is None else describe_bytes(file.size)
        cells = (file.name, file.status, f"{file.rows:,}", size, one_line(file.reason or ""))
        table.add_row(*(Text(visible(with_flags(cell))) for cell in cells))
    return table


def as_json(found: OutputStatus) -> str:
    """Everything, as one document."""
    tiles = [replace(tile, reason=tile.reason and with_flags(tile.reason), **_bad(tile)) for tile in found.tiles]
    return json.dumps({**asdict(replace(found, tiles=tuple(tiles))), "counts": found.counts}, indent=1)


def _bad(tile: TileStatus) -> dict[str, Any]:
    found = {"quarantined": tile.quarantined, "rejected": tile.rejected}
    return {name: {url: with_flags(why) for url, why in reasons.items()} for name, reasons in found.items()}


def as_csv(found: OutputStatus) -> str:
    """The quarantined chips, a line each."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("tile", "version", "url", "reason"))
    lines.writerows(all_visible([(*chip, with_flags(why)) for *chip, why in found.quarantined]))
    return text.getvalue().removesuffix("\n")
