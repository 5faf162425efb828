"""What images a synthetic catalogue has, in few words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class OpticalImage:
    """A granule of Sentinel-2, or the part of one that a swath has."""

    time: str
    """When it was sensed, ISO 8601 in UTC."""
    baseline: str = "05.10"
    """Of its processing."""
    cloud: float = 2.0
    """Percent, as its item says."""
    part: str = ""
    """``west`` or ``east``, which only together cover the tile; all of it if empty."""
    processed: str = ""
    """When, ISO 8601; five hours later if empty."""
    classes: int | None = None
    """One class of the scene classification everywhere, such as 6 at sea; None for those of the landscape."""
    listed_only: bool = False
    """Whether there is its item, and no file: it is not to be chosen."""

    @property
    def sensed(self) -> datetime:
        """Its time."""
        return datetime.fromisoformat(self.time)

    @property
    def made(self) -> datetime:
        """When it was processed."""
        return datetime.fromisoformat(self.processed) if self.processed else self.sensed + timedelta(hours=5)


@dataclass(frozen=True)
class RadarImage:
    """A scene of Sentinel-1, or a part of one, in linear power."""

    time: str
    """When it was sensed, ISO 8601 in UTC."""
    bands: tuple[str, ...] = ("vv", "vh")
    part: str = ""
    """As of `OpticalImage`."""
    orbit_state: str = "descending"
    zone: int = 1
    """Its UTM zone, counted from the tile's."""
    zeros: bool = False
    """Whether it is filled with 0."""

    @property
    def sensed(self) -> datetime:
        """Its time."""
        return datetime.fromisoformat(self.time)


@dataclass(frozen=True)
class HeightImage:
    """The elevation of all degrees that the tile meets."""

    without: tuple[str, ...] = ()
    """Names of degrees that are not there, such as ``N44_00_E012_00``."""


Image = OpticalImage | RadarImage | HeightImage
