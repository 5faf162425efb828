"""Published patches on the grid of their tile: where each row lies, and its patches as they are exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from daskembed.errors import InputError, TileError
from daskembed.exports.gather import as_asked
from daskembed.exports.index import open_published, read_places
from daskembed.exports.rows import Exported, TileRows
from daskembed.geo.cells import Placed, place
from daskembed.geo.chips import CHIP
from daskembed.output.index_rows import read_rows
from daskembed.output.zarr_store import fill_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export


@dataclass(frozen=True)
class ExportedRows:
    """The rows of a published file of which something is exported, in its order."""

    placed: Placed
    """On the grid that they share."""
    numbers: NDArray[np.int64]
    """In the file, ascending."""
    stay: NDArray[np.bool_]
    """Whether each of their patches is exported, ``(row, down, across)``."""


def check_patches(export: Export) -> None:
    """Raise `InputError` if there are no patches."""
    if "row" not in export.made.get("dims", ()):
        raise InputError(
            f"`format='{export.format}'` has a pixel a patch, and level {export.made.get('level', 'unknown')!r} has no "
            "patches: choose published files of another `level`, or give `format='geoparquet'`"
        )


def find_rows(export: Export, tile: ExportTile, what: str) -> ExportedRows:
    """Where the rows of a published file are that are exported, as `index_tile` has written it down.

    Raises
    ------
    TileError
        If they share no grid, or two are of one place and date; `what` they are for is told then.
    """
    places = read_places(export, tile.name)
    published, patch = np.divmod(places.numbers, export.patches)
    numbers, of = np.unique(published, return_inverse=True)
    with open_published(export, tile) as file:
        table = file.read(columns=["source_url", "date", "geometry"]).take(pa.array(numbers))
    known = None if tile.sha256 is None else read_rows(export.source, tile.tile, tile.version, tile.sha256)
    about = TileRows(tile.tile, export.grid, export.made.get("window") or CHIP, known)
    epsg, bounds = Exported(table, about, "chip").squares
    days = table["date"].to_numpy().astype("datetime64[D]")
    urls = table["source_url"].to_pylist()
    placed = place(urls, epsg, bounds, days, export.grid, pixels=about.window, what=what)
    down, across = export.grid
    stay = np.full((len(numbers), down * across), export.patches == 1)
    stay[of, patch] = True
    return ExportedRows(placed, numbers, stay.reshape(-1, down, across))


@contextlib.contextmanager
def reading(export: Export, tile: ExportTile, rows: ExportedRows) -> Iterator[Callable[[int], NDArray[Any]]]:
    """What gives one of some rows by its number there: its patches as asked, ``([group,] row, col, embedding)``.

    Of patches that are not exported it has `fill_of`. The latest row group of the file is in memory.
    """
    with open_published(export, tile) as file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        held: dict[int, tuple[NDArray[Any], pa.ChunkedArray]] = {}

        def read(row: int) -> NDArray[Any]:
            number = rows.numbers[row]
            group = int(np.searchsorted(ends, number, side="right"))
            if group not in held:
                held.clear()
                table = file.read_row_group(group, columns=["source_url", "embeddings"])
                whole = Exported(table, TileRows(tile.tile), "chip").vectors
                held[group] = whole, table["source_url"]
            vectors, urls = held[group]
            within = int(number - ends[group] + len(vectors))
            url = urls.slice(within, 1)
            try:
                values = as_asked(export, vectors[within : within + 1], url).reshape(export.shape)
            except ValueError as error:
                raise TileError(f"{url[0]}: {error}") from None
            stay = rows.stay[row]
            fill = np.array(fill_of(export.dtype), values.dtype)
            return values if stay.all() else np.where(stay[..., None], values, fill)

        yield read
