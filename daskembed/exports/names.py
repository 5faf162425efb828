"""What can be asked of an export, by name: a command's help says it without loading what does it."""

from __future__ import annotations

from typing import Literal

Kind = Literal["chip", "patch"]
KINDS: tuple[Kind, ...] = ("chip", "patch")
"""What a row is."""
ADDED = ("datetime", "tile", "cloud", "epsg", "chip_id")
"""Columns that can be added."""
PROFILES = ("majortom", "earth-index")
"""Readers with columns of their own."""
