"""The columns of the one frame that a tile's chips are listed in."""

from __future__ import annotations

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
