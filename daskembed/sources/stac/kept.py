"""What an output keeps of the scenes of a tile, as JSON: enough to make them again without asking the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field

from daskembed.sources.stac.images import Image


@dataclass(frozen=True)
class KeptItem:
    """An item as a receipt lists it."""

    catalogue: str
    collection: str
    id: str
    url: str
    role: str
    time: str
    """UTC, ISO 8601."""
    share: float
    """Of the tile."""
    footprint: str
    """WKT in OGC:CRS84."""
    images: dict[str, Image]
    """Band, by the sensor's name, or ``scl`` -> its file."""
    cloud: float | None = None
    """Percent."""
    baseline: str | None = None
    orbit_state: str | None = None
    relative_orbit: int | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    """Band -> what is taken from each number of its file; of bands to which ESA adds 1000."""
    offset_why: str = ""
    """What decided that."""


@dataclass(frozen=True)
class KeptScene:
    """A scene as a receipt lists it."""

    day: str
    """ISO 8601."""
    items: list[KeptItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else is to be told of the tile's scenes, with the first of them."""
