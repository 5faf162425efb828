"""What an encoder needs and gives, said once: bands, windows, levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from daskembed.errors import InputError
from daskembed.sensors.bands import Sensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Description:
    """What an encoder of one size needs and gives; hashable, and free of weights."""

    title: str
    """For people, such as ``Clay v0``."""
    sensor: Sensor
    resolution: float | None
    """Metres that a pixel must have; None if the encoder is told how many they are."""
    window: int
    """Pixels along each side of the square that it sees at once; divides `CHIP`."""
    levels: Mapping[str, Mapping[str, int]]
    """Level -> dimensions and their lengths of one chip's embedding; the first level is the default. The dimension
    ``window`` counts the windows of a chip, row-major: each is a row of the published file. ``row`` and ``col`` are
    patches, from north to south and from west to east."""
    fill_values: tuple[float, ...]
    """What stands for a missing pixel, by band, in the file's units."""
    flop: int
    """Floating-point operations of one chip."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Dimension of a level -> what its places are called, of those that have names."""

    def __hash__(self) -> int:
        return hash((self.title, self.sensor, self.resolution, self.window, self.fill_values, self.flop))

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the encoder's order."""
        return self.sensor.names

    def check_level(self, level: str | None) -> str:
        """Return `level` if it is one of the encoder's, its first for None; raises `InputError` if it is none."""
        if level is None:
            return next(iter(self.levels))
        if level not in self.levels:
            raise InputError(f"unknown level {level!r}: {self.title} has {', '.join(self.levels)}")
        return level

    def row_shape(self, level: str) -> tuple[int, ...]:
        """Shape of one row of the published file: of one window."""
        return tuple(length for name, length in self.levels[self.check_level(level)].items() if name != "window")

    def shape(self, level: str) -> tuple[int, ...]:
        """Shape of one chip's embedding, such as ``(16, 16, 768)``."""
        return tuple(self.levels[self.check_level(level)].values())


class Place(NamedTuple):
    """Where and when some chips were taken."""

    lat: NDArray[np.float64]
    """Centres of their windows, degrees, ``(chip, window)``."""
    lon: NDArray[np.float64]
    """Likewise."""
    date: NDArray[np.datetime64]
    """Acquisition time, to the second; noon where only a day is known; ``(chip,)``."""
    resolution: NDArray[np.float64]
    """Metres of a pixel, ``(chip,)``."""
