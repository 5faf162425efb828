"""One exported file made: gathered, written, and known from then on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

from daskembed.exports.gather import bounds_of, gather
from daskembed.exports.protocol import get_format
from daskembed.exports.settings import SOFTWARE
from daskembed.exports.state import ExportedFile, write_written
from daskembed.hardware import keep_freed_memory
from daskembed.timings import metered, timed

if TYPE_CHECKING:
    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import PlannedFile


@metered()
def write_file(export: Export, planned: PlannedFile, tiles: Mapping[str, ExportTile]) -> ExportedFile:
    """Make a planned file, complete or not at all.

    Parameters
    ----------
    export, planned
        What is made.
    tiles
        The published files that the plan names for it.
    """
    keep_freed_memory()
    form = get_format(export.format)
    rows, box, used, days = planned.rows, [], planned.tiles, []
    if form.UNIT != "range":
        export.confirm()
        with timed("write"):
            size, sha256 = form.write_tile(export, planned, tiles[planned.tiles[0]])
    else:
        table, used, ends = gather(export, planned, tiles)
        rows, box, days = len(table), bounds_of(table), [day.isoformat() for day in ends]
        export.confirm()
        with timed("write"):
            size, sha256 = form.write(export, planned.name, table)
    software = {name: version_of(name) for name in SOFTWARE}
    written = ExportedFile(planned.name, size, sha256, rows, box, used, software, days)
    write_written(export.target, written)
    return written
