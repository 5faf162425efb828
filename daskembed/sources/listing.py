"""A tile's chips as the store lists them, before any is read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from daskembed.sources.cutting import SceneChip
from daskembed.sources.scene import Scene
from daskembed.storage.stores import Entry, Storage


@dataclass(frozen=True)
class RefusedScene:
    """A whole tile that cannot be used: one entry in the place of its chips."""

    url: str
    reason: str
    chips: int
    """How many a whole tile beside it has."""


@dataclass(frozen=True)
class Listing:
    """A tile's chips as the store lists them, before any is read."""

    kind: str
    """Key of `daskembed.sources.registry.SOURCES`."""
    storage: Storage | None
    """What paths of entries are below; None if they are whole URLs, as those of catalogues are."""
    tile: str
    entries: tuple[Entry, ...]
    """One a chip."""
    chips: tuple[SceneChip | RefusedScene, ...] = field(default=(), compare=False)
    """What each entry is, of whole tiles; none of chips in files of their own, of which the headers tell."""
    scenes: tuple[Scene, ...] = field(default=(), compare=False)
    """The whole tiles, each at one date, that can be used."""
    sidecars: tuple[Entry, ...] = ()
    """Files beside the chips that say more of their pixels."""
    kept: tuple[dict[str, Any], ...] = field(default=(), compare=False, repr=False)
    """Of a catalogue: what the scenes are made of, `daskembed.sources.stac.kept.KeptScene` as JSON."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What else is to be told of them."""

    def url_of(self, entry: Entry) -> str:
        """The full URL (or absolute local path) of an entry."""
        return entry.path if self.storage is None else self.storage.url_of(entry.path)

    @property
    def fingerprint(self) -> str:
        """Changes when a chip appears, disappears or is written anew."""
        made_of = (self.storage and self.storage.url, self.entries, *([self.sidecars] if self.sidecars else []))
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    @property
    def units(self) -> list[tuple[object, ...]]:
        """`Chip.unit` of each entry."""
        if not self.chips:
            return [(entry.path,) for entry in self.entries]
        return [chip.unit if isinstance(chip, SceneChip) else (chip.url,) for chip in self.chips]

    def first(self, count: int) -> Listing:
        """The listing of its first chips alone."""
        return replace(self, entries=self.entries[:count], chips=self.chips[:count])

    def by_chip(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """URL -> reason, with as many URLs for a whole tile that is refused as it would have chips."""
        counts = {chip.url: chip.chips for chip in self.chips if isinstance(chip, RefusedScene)}
        more = {f"{url}/{n}": why for url, why in reasons.items() for n in range(1, counts.get(url, 1))}
        return {**reasons, **more}

    @property
    def coverage(self) -> tuple[str, ...]:
        """What of its whole tiles no chip has, and which chips reach beyond them: a line for those that are alike."""
        found: dict[str, list[str]] = {}
        chips = Counter(id(chip.scene) for chip in self.chips if isinstance(chip, SceneChip))
        for scene in self.scenes:
            for said in scene.coverage(chips[id(scene)]):
                found.setdefault(said, []).append(scene.url)
        more = {said: f" and {len(urls) - 1} more" if len(urls) > 1 else "" for said, urls in found.items()}
        return tuple(f"{urls[0]}{more[said]}: {said}" for said, urls in found.items())
