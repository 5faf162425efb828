"""The columns of the one frame that a tile's chips are listed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


INDEX_COLUMNS = (
    "source_url",
    "source",
    "date",
    "epsg",
    "lat",
    "lon",
    "west",
    "south",
    "east",
    "north",
    "coverage",
    "chip",
    "size",
    "etag",
    "quarantined",
    "geometry",
)
"""Columns of a tile's index; `index_tile` says what each holds."""

EDGES = ("west", "south", "east", "north")
"""Columns of a chip's bounds."""
