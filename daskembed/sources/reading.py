"""How chips are to be found, cut and judged."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from daskembed.errors import InputError
from daskembed.sensors.bands import CLAY_V0, Sensor
from daskembed.sources.choice import FIRST_CHOICE, Choice
from daskembed.sources.rules import NO_RULES, Rules

EDGE = ("drop", "pad")


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
