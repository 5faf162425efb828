"""What a kind of source can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from daskembed.sources.listing import Listing
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    import geopandas as gpd


class Source(Protocol):
    """What a kind of source can do; modules implement it with plain functions."""

    def list_chips(self, tile: str, storage: Storage, reading: Reading) -> Listing | None:
        """List a tile's chips; None if there are none of this kind."""

    def read_headers(self, listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
        """The chips of a listing, one row each, in the columns `INDEX_COLUMNS`."""

    def describe(self, tile: str, storage: Storage) -> str:
        """Where chips of this kind are looked for, in words."""
