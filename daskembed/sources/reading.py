"""How chips are to be found, cut and judged."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from daskembed.errors import InputError, exact
from daskembed.sensors.bands import CLAY_V0, Sensor

EDGE = ("drop", "pad")
PICK = ("clear", "spread")
RESAMPLING = ("nearest", "bilinear", "cubic")


@dataclass(frozen=True)
class Rules:
    """What a chip must be to be embedded; one that is not is rejected."""

    zeros: bool | None = None
    """Refuse a 0 in the first band of Sentinel-2 (B02), where Sentinel-2 saw nothing."""
    nan: bool | None = None
    """Refuse pixels that are not there, in any band: nodata, masked, not finite, or nothing that the band can be."""
    max_cloud: float | None = None
    """Refuse this share and more of cloud, shadow, saturation and nodata in the scene classification, if there is
    one."""
    keep_all: bool = False
    """Refuse nothing."""

    # What is None is for the kind of source to say: whole tiles are judged, ready-made chips were when they were cut.
    def or_else(self, *, zeros: bool, nan: bool, max_cloud: float) -> Rules:
        """These rules, with defaults for the ones that are not set."""
        if self.keep_all:
            return Rules(False, False, 2.0)
        return Rules(
            zeros if self.zeros is None else self.zeros,
            nan if self.nan is None else self.nan,
            max_cloud if self.max_cloud is None else self.max_cloud,
        )


NO_RULES = Rules()
"""All of them left to the kind of source."""


@dataclass(frozen=True)
class Choice:
    """Which scenes of a catalogue are used, and how they come onto the tile's grid."""

    scenes: int = 1
    """How many dates a tile has."""
    pick: str = "clear"
    """``clear``, the least cloudy ones; or ``spread``, the least cloudy one of each part of the period."""
    max_scene_cloud: float = 50.0
    """Percent."""
    max_scene_nodata: float = 20.0
    """Percent of the tile."""
    radar_days: int = 3
    """Most whole days between an optical scene and its radar, either way."""
    resampling: str = "nearest"
    """Of what has another grid than the tile."""

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value if isinstance(value, str) else exact(value)}" for name, value in asdict(self).items()
        )

    def check(self) -> None:
        """Raise `InputError` if it makes no sense."""
        for name in ("max_scene_cloud", "max_scene_nodata"):
            # Written so that NaN is refused.
            if not 0 <= (percent := getattr(self, name)) <= 100:
                raise InputError(f"`{name}={percent:g}`: expected percent, from 0 to 100, such as 50")
        if self.scenes < 1:
            raise InputError(f"`scenes={self.scenes}`: expected a number of dates from 1")
        if self.radar_days < 0:
            raise InputError(f"`radar_days={self.radar_days}`: expected a number of days from 0, such as 3")
        for name, known in (("pick", PICK), ("resampling", RESAMPLING)):
            if (chosen := getattr(self, name)) not in known:
                raise InputError(f"unknown `{name}` {chosen!r}: choose one of {', '.join(known)}")


FIRST_CHOICE = Choice()
"""What is chosen where nothing is asked."""


@dataclass(frozen=True)
class Reading:
    """How chips are found, cut and judged."""

    sensor: Sensor = CLAY_V0
    """Whose bands are read."""
    resolution: float | None = CLAY_V0.gsd
    """Metres that a pixel of a whole tile must have; None for any."""
    dates: tuple[date, date] | None = None
    """First and last acquisition date, both inclusive."""
    offset: tuple[int, int] = (0, 0)
    """Pixels (y, x) from a whole tile's north-west corner to that of its first chip."""
    edge: str = "drop"
    """Of chips that reach beyond a whole tile: ``drop`` them, or ``pad`` them with the pixels at its edge."""
    rules: Rules = NO_RULES
    numbers: str | None = None
    """Of bands with scale and offset: ``stored`` numbers or ``values``, where it is not clear which are meant."""
    offset_applied: str | None = None
    """Whether the +1000 of Sentinel-2's newer files is taken out of them already: ``yes`` or ``no``."""
    choice: Choice = FIRST_CHOICE
    """Of catalogues: which scenes."""
    region: str | None = None
    """WKT in OGC:CRS84 of a region that chips must meet; None for any."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What is chosen in words, None where it is the default; without the dates and the sensor."""
        told = ", ".join(
            f"{name} {value}" for name, value in asdict(self.rules).items() if value is not None and value is not False
        )
        off = ", ".join(name for name in ("zeros", "nan") if getattr(self.rules, name) is False)
        return {
            "offset": f"{self.offset[0]},{self.offset[1]}" if any(self.offset) else None,
            "edge": self.edge if self.edge != EDGE[0] else None,
            "rules": "; ".join(filter(None, [told, off and f"not {off}"])) or None,
            **self.meaning,
            **self.place,
        }

    @property
    def period(self) -> str | None:
        """The dates as they are given, ``START/END``; None for all."""
        return None if self.dates is None else "/".join(map(str, self.dates))

    @property
    def scenes(self) -> dict[str, str]:
        """What `identity` says more of a catalogue's scenes."""
        return {"scenes": str(self.choice)}

    @property
    def place(self) -> dict[str, str]:
        """What is said of the region; nothing where there is none, as before there was anything to say."""
        if self.region is None:
            return {}
        import shapely

        edges = ",".join(f"{float(edge):.4g}" for edge in shapely.from_wkt(self.region).bounds)
        return {"region": f"{edges} {hashlib.sha256(self.region.encode()).hexdigest()[:12]}"}

    @property
    def meaning(self) -> dict[str, str]:
        """What is said of the files' numbers; nothing where nothing is, as before there was anything to say."""
        said = {"numbers": self.numbers, "offset_applied": self.offset_applied}
        return {name: value for name, value in said.items() if value is not None}

    def check(self) -> None:
        """Raise `InputError` if it makes no sense."""
        if min(self.offset) < 0:
            raise InputError(f"`offset={self.offset}`: expected pixels of at least 0, such as 0,256")
        if self.edge not in EDGE:
            raise InputError(f"unknown `edge` {self.edge!r}: choose one of {', '.join(EDGE)}")
        if self.numbers not in (None, "stored", "values"):
            raise InputError(f"unknown `numbers` {self.numbers!r}: choose one of stored, values")
        if self.offset_applied not in (None, "yes", "no"):
            raise InputError(f"unknown `offset_applied` {self.offset_applied!r}: choose one of yes, no")
        if self.rules.max_cloud is not None and not 0 <= self.rules.max_cloud <= 1.01:
            raise InputError(f"`Rules(max_cloud={self.rules.max_cloud:g})`: expected a share from 0 to 1, such as 0.3")
        self.choice.check()


def yes_or_no(said: Any) -> Any:
    """``yes`` or ``no``, of which YAML makes truth values."""
    return ("yes" if said else "no") if isinstance(said, bool) else said


def parse_dates(text: str) -> tuple[date, date]:
    """First and last date of ``START/END``, both inclusive; raises `InputError` if it is not that."""
    try:
        start, end = (date.fromisoformat(part) for part in text.split("/"))
    except (ValueError, AttributeError):
        raise InputError(f"`dates` {text!r}: expected START/END, such as 2022-01-01/2022-12-31") from None
    if start > end:
        raise InputError(f"`dates` {text!r}: the start is after the end")
    return start, end
