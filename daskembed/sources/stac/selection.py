"""Which items become a tile's scenes: rules that know no files and no network."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from daskembed.sources.stac.items import Item


@dataclass(frozen=True)
class Used:
    """An item that is used in a scene."""

    item: Item
    role: str
    """``optical``, ``radar`` or ``height``."""
    share: float
    """Of the tile's area, that its footprint covers."""


@dataclass(frozen=True)
class Chosen:
    """The items of one scene, those of each role in the order in which they count: the first that has a value."""

    day: date
    items: tuple[Used, ...]


@dataclass(frozen=True)
class LeftOut:
    """An item that is not used, and why."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Selection:
    """What is used of a tile, and what is not."""

    scenes: tuple[Chosen, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    """What else is to be told, such as places without any radar or elevation."""
