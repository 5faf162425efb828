"""Where exported rows go: one module a format."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Protocol

from daskembed.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from daskembed.exports import cog, geoparquet, lance, zarr
    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile, PlannedFile

FORMATS = {
    "geoparquet": "daskembed.exports.geoparquet",
    "cog": "daskembed.exports.cog",
    "zarr": "daskembed.exports.zarr",
    "lance": "daskembed.exports.lance",
}
"""Format -> the module that implements `RangeFormat` or `TileFormat`."""


class ExportFormat(Protocol):
    """What every format says of itself; modules implement it with plain functions."""

    SUFFIX: str
    """What its files' names end with."""
    FOLDER: str
    """Below the target, of its files, with a slash at the end; empty for the target itself."""
    UNIT: Literal["range", "tile", "day"]
    """Whether a file holds a range of the rows of all tiles in their order, a published file, or a date of one."""

    def check(self, export: Export) -> None:
        """Raise `InputError` if it cannot hold what is asked: on the client, before anything is read."""

    def finish(self, export: Export, written: Sequence[ExportedFile]) -> list[str]:
        """On the client, when all files are there: what has to be done once; gives what is to be told of it."""


class RangeFormat(ExportFormat, Protocol):
    """A format of files that each hold a range of all rows."""

    def write(self, export: Export, name: str, rows: pa.Table) -> tuple[int, str]:
        """On a worker: make the file `name` of some rows, complete or not at all; gives its bytes and SHA-256.

        Parameters
        ----------
        export, name
            What is made, and the name of the file below its target.
        rows
            In their order: `source_url`, `date`, `embeddings` (a fixed-size list), `geometry` (WKB) and what else was
            asked; `bbox` (a struct of `xmin`, `ymin`, `xmax`, `ymax`).
        """


class TileFormat(ExportFormat, Protocol):
    """A format of files that each hold the rows of one published file, or of a date of it."""

    def write_tile(self, export: Export, planned: PlannedFile, tile: ExportTile) -> tuple[int, str]:
        """On a worker: make a file of a published one, complete or not at all; gives bytes and SHA-256."""


if TYPE_CHECKING:
    _CHECKED: tuple[RangeFormat, TileFormat, TileFormat, RangeFormat] = geoparquet, cog, zarr, lance


def get_format(name: str) -> Any:
    """The module of a format; raises `InputError` if there is none of this name."""
    if name not in FORMATS:
        raise InputError(f"unknown `format` {name!r}: choose one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return importlib.import_module(FORMATS[name])
