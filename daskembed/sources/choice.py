"""Which scenes of a catalogue are wanted, and how they come onto a tile's grid: what can be asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from daskembed.errors import InputError, exact

PICK = ("clear", "spread")
RESAMPLING = ("nearest", "bilinear", "cubic")
MOST_RADAR_DAYS = 366


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
        for name, such in (("max_scene_cloud", 50), ("max_scene_nodata", 20)):
            # Written so that NaN is refused.
            if not 0 <= (percent := getattr(self, name)) <= 100:
                raise InputError(f"`{name}={percent:g}`: expected percent, from 0 to 100, such as {such}")
            # The share that `max_cloud` is was meant, and all would be left out.
            if 0 < percent < 1:
                raise InputError(
                    f"`{name}={percent:g}`: expected percent, 0 or from 1 to 100: did you mean {100 * percent:g}?"
                )
        if self.scenes < 1:
            raise InputError(f"`scenes={self.scenes}`: expected a number of dates from 1")
        if not 0 <= self.radar_days <= MOST_RADAR_DAYS:
            raise InputError(
                f"`radar_days={self.radar_days}`: expected a number of days from 0 to {MOST_RADAR_DAYS}, such as 3"
            )
        for name, known in (("pick", PICK), ("resampling", RESAMPLING)):
            if (chosen := getattr(self, name)) not in known:
                raise InputError(f"unknown `{name}` {chosen!r}: choose one of {', '.join(known)}")


FIRST_CHOICE = Choice()
"""What is chosen where nothing is asked."""
