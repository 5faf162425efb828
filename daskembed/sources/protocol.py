"""Where chips come from: one module a kind of source, found by what a tile's folder holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from daskembed.sources.reading import Reading
from daskembed.storage.stores import Entry, Storage

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy as np
    from numpy.typing import NDArray


class Chip(Protocol):
    """How to read one chip: what travels to a worker in place of pixels; small, frozen and comparable."""

    @property
    def url(self) -> str:
        """Its ``source_url``."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that `read` gives."""

    @property
    def unit(self) -> tuple[object, ...]:
        """The piece of storage that holds it.

        Blocks keep chips together whose units differ in the last place only, and read those of one unit one after the
        other.
        """

    @property
    def inside(self) -> tuple[int, int]:
        """How many of its pixels (y, x) were there; what `read` gives beyond was added."""

    def read(self) -> NDArray[np.generic]:
        """Pixels ``(band, y, x)`` in the source's own type, in the encoder's order of bands.

        Raises
        ------
        ChipError
            If the chip cannot be used; without its name.
        StorageError
            If the store does not answer.
        """


@dataclass(frozen=True)
class Listing:
    """A tile's chips as the store lists them, before any is read."""

    kind: str
    """Key of `SOURCES`."""
    storage: Storage
    tile: str
    entries: tuple[Entry, ...]
    """One a chip."""
    units: tuple[tuple[object, ...], ...] = ()
    """Their `Chip.unit`; empty if each has one of its own."""
    scenes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """URL of a whole tile at one date -> what its kind knows of it."""
    sidecars: tuple[Entry, ...] = ()
    """Files beside the chips that say more of their pixels."""
    refused: Mapping[str, int] = field(default_factory=dict, compare=False)
    """URL of a whole tile that cannot be used, of which there is one entry -> how many chips one beside it has."""

    @property
    def fingerprint(self) -> str:
        """Changes when a chip appears, disappears or is written anew."""
        made_of = (self.storage.url, self.entries, *([self.sidecars] if self.sidecars else []))
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    def by_chip(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """URL -> reason, with as many URLs for a whole tile that is refused as it would have chips."""
        more = {f"{url}/{n}": why for url, why in reasons.items() for n in range(1, self.refused.get(url, 1))}
        return {**reasons, **more}

    @property
    def coverage(self) -> tuple[str, ...]:
        """What of its whole tiles no chip has, and which chips reach beyond them: a line for those that are alike."""
        found: dict[str, list[str]] = {}
        for url, scene in self.scenes.items():
            for said in getattr(scene, "coverage", ()):
                found.setdefault(said, []).append(url)
        more = {said: f" and {len(urls) - 1} more" if len(urls) > 1 else "" for said, urls in found.items()}
        return tuple(f"{urls[0]}{more[said]}: {said}" for said, urls in found.items())


class Source(Protocol):
    """What a kind of source can do; modules implement it with plain functions."""

    def list_chips(self, tile: str, storage: Storage, reading: Reading) -> Listing | None:
        """List a tile's chips; None if there are none of this kind."""

    def read_headers(self, listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
        """The chips of a listing, one row each, in the columns `INDEX_COLUMNS`."""

    def describe(self, tile: str, storage: Storage) -> str:
        """Where chips of this kind are looked for, in words."""
