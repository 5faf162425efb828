"""Where chips come from: one module a kind of source, found by what a tile's folder holds."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Protocol, cast

from daskembed.storage import Entry, Storage
from daskembed.tiles import check_tile

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy as np
    from numpy.typing import NDArray

SOURCES = {"geotiff": "daskembed.sources.geotiff"}
"""Kind of source -> the module that implements `Source`."""

INDEX_COLUMNS = (
    "source_url",
    "source",
    "date",
    "epsg",
    "lat",
    "lon",
    "bands",
    "size",
    "etag",
    "quarantined",
    "geometry",
)
"""Columns of a tile's index; `index_tile` says what each holds."""


@dataclass(frozen=True)
class Listing:
    """A tile's chips as the store lists them, before any is opened."""

    storage: Storage
    tile: str
    entries: tuple[Entry, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when a chip appears, disappears or is written anew."""
        return hashlib.sha256(repr((self.storage.url, self.entries)).encode()).hexdigest()


class Source(Protocol):
    """What a kind of source can do; modules implement it with plain functions."""

    def list_chips(self, tile: str, source: str, *, dates: tuple[date, date] | None) -> Listing:
        """List a tile's chips; raises `TileError` if there are none."""

    def read_headers(self, listing: Listing, *, dates: tuple[date, date] | None, readers: int) -> gpd.GeoDataFrame:
        """The chips of a listing, one row each, in the columns `INDEX_COLUMNS`."""

    def read_chip(self, url: str, bands: tuple[int, ...]) -> NDArray[np.generic]:
        """One chip's pixels, ``(band, y, x)``, in their own type, the bands picked by 1-based number."""


def get_source(kind: str) -> Source:
    """The module of a kind of source."""
    return cast(Source, importlib.import_module(SOURCES[kind]))


def index_tile(
    tile: str, source: str, *, dates: tuple[date, date] | None = None, readers: int = 16
) -> gpd.GeoDataFrame:
    """List a tile's chips and read their headers, no pixels.

    Parameters
    ----------
    tile
        MGRS tile id, such as ``27WXN``.
    source
        Folder or URL above the tiles. The chips are all ``claytile_*.tif`` under ``{source}/{tile}/`` at any depth,
        or, where that folder is empty, ``{source}/claytile_{tile}_*.tif``.
    dates
        First and last acquisition date wanted, both inclusive.
    readers
        How many headers are read at a time.

    Returns
    -------
    geopandas.GeoDataFrame
        One row a chip in the order of ``source_url``, in OGC:CRS84: ``source_url`` (full URL, or absolute path of
        a local file), ``source`` (kind), ``date``, ``epsg``, ``lat`` and ``lon`` of the centre (degrees), ``bands``
        (1-based numbers in the file of the encoder's bands), ``size`` (bytes), ``etag``, ``quarantined`` (why the
        chip cannot be used; None if it can) and ``geometry`` (footprint). A row with a reason may lack the rest.

    Raises
    ------
    InputError
        If the tile id is bad or the source does not exist.
    TileError
        If the tile has no chips.
    StorageError
        If the source does not answer.
    """
    kind = get_source("geotiff")
    return kind.read_headers(kind.list_chips(check_tile(tile), source, dates=dates), dates=dates, readers=readers)
