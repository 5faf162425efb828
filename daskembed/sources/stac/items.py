"""Items of catalogues: what they say, typed, whatever version of STAC and of its extensions they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Asset:
    """A file of an item."""

    href: str
    """Where it lies, without a signature."""
    size: int | None = None
    """Bytes, where the item says it."""


@dataclass(frozen=True)
class Item:
    """What is used of one item."""

    collection: str
    id: str
    url: str
    """Its own, in its catalogue, without a query: what chips are named after."""
    time: datetime
    """When it was sensed, UTC."""
    bbox: tuple[float, float, float, float]
    """West, south, east and north, degrees."""
    footprint: str
    """WKT in OGC:CRS84, of its ``geometry``, or its bounding box where it has none."""
    assets: Mapping[str, Asset] = field(repr=False)
    tile: str | None = None
    """MGRS tile, of Sentinel-2."""
    baseline: str | None = None
    """Processing baseline as it is written, such as ``05.09``."""
    cloud: float | None = None
    """Percent."""
    nodata: float | None = None
    """Percent of the tile, of Sentinel-2."""
    platform: str | None = None
    orbit_state: str | None = None
    relative_orbit: int | None = None
    acquisition: str | None = None
    """The same of all products of one acquisition: of Sentinel-2 its datatake without the baseline."""
    processed: str | None = None
    """When it was made, ISO 8601."""
