"""Bands and sensors: which numbers an encoder takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


LARGEST = 1e9
"""Far above any reflectance, power or height: fill values of 32-bit types are beyond it, and what damage makes."""
MARK = "daskembed:offset_applied"
"""Attribute of a cube's root: the days of whose images Sentinel-2's offset is out, which no flag takes out again."""


@dataclass(frozen=True)
class Numbers:
    """What the numbers of a band are that an encoder takes."""

    stored: bool | None = None
    """Whether they are digital numbers, as files store them, or else what a file's scale and offset make of these;
    None where that is for the mean and the standard deviation to say."""
    low: float = -LARGEST
    high: float = LARGEST
    """A pixel with a number beyond these is not there."""
    zero: Literal["value", "empty"] | None = None
    """Whether 0 is a value like others, or stands for nothing, whatever a file's tags say; None, they say it."""
    added: int = 0
    """What newer files have added to each number."""

    @property
    def below(self) -> str:
        """What is said of a pixel that is below `low`."""
        return "is 0 or less" if 0 < self.low < 1e-9 else f"is below {self.low:g}"


UNSAID = Numbers()

KINDS = {
    "stored": Numbers(True),
    "values": Numbers(False),
    "sentinel-2": Numbers(None, 0, 65_000, "empty", 1000),
    # A bright corner reflector has a few thousand.
    "power": Numbers(False, 1e-30, 1e5),
    "height": Numbers(False, -500, 9000, "value"),
}
"""Kinds of numbers, by what a sensor's description calls them."""


@dataclass(frozen=True)
class Band:
    """One band that an encoder reads."""

    name: str
    """As it is called in messages and on the cube's ``band`` coordinate."""
    mean: float
    """Of its values as the encoder normalises them."""
    std: float
    """Standard deviation, likewise."""
    aliases: tuple[str, ...] = ()
    """Other descriptions in files that mean this band; letter case is ignored in these and in `name`."""
    wavelength: float | None = None
    """Centre, micrometres."""
    # Not part of what tells sensors apart: files made before this was said are of the same sensor.
    numbers: Numbers = field(default=UNSAID, repr=False, compare=False)
    """What they can be."""


@dataclass(frozen=True)
class Sensor:
    """An instrument whose images an encoder reads."""

    name: str
    gsd: float
    """Ground sampling distance, metres."""
    bands: tuple[Band, ...]
    """In the encoder's order."""
    decibels: bool = False
    """Whether the encoder takes ten times the decimal logarithm of the values, which are linear power."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its bands."""
        return tuple(band.name for band in self.bands)

    def numbers_of(self, band: Band) -> Numbers:
        """What the numbers of one of its bands can be."""
        if not self.decibels or band.numbers != UNSAID:
            return band.numbers
        # Of intensities that nobody calibrated the decibels tell how large they are.
        brightest = 10.0 ** min((band.mean + 4 * band.std) / 10, 30)
        return replace(KINDS["power"], high=max(KINDS["power"].high, brightest))


def _of_kind(kind: str, *bands: Band) -> tuple[Band, ...]:
    return tuple(replace(band, numbers=KINDS[kind]) for band in bands)


CLAY_V0 = Sensor(
    "clay-v0",
    10.0,
    (
        *_of_kind(
            "sentinel-2",
            Band("B02", 1369.03, 2026.96, ("blue",)),
            Band("B03", 1597.68, 2011.88, ("green",)),
            Band("B04", 1741.10, 2146.35, ("red",)),
            Band("B05", 2053.58, 2138.96, ("rededge1",)),
            Band("B06", 2569.82, 2003.27, ("rededge2",)),
            Band("B07", 2763.01, 1962.45, ("rededge3",)),
            Band("B08", 2858.43, 2016.38, ("nir",)),
            Band("B8A", 2893.86, 1917.12, ("nir08",)),
            Band("B11", 2303.00, 1679.88, ("swir16",)),
            Band("B12", 1807.79, 1568.06, ("swir22",)),
        ),
        *_of_kind("power", Band("vh", 0.026, 0.118), Band("vv", 0.118, 0.873)),
        *_of_kind("height", Band("dem", 499.46, 880.35)),
    ),
)
"""The 13 bands of a Clay v0 chip: Sentinel-2 L2A digital numbers, Sentinel-1 RTC linear power, metres. Earth Search has
other names for those of Sentinel-2."""
