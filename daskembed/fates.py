"""What becomes of a chip: embedded, quarantined or rejected, and what is said of its pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Fate(NamedTuple):
    """What became of one chip: it is embedded, unless there is a reason why not."""

    quarantined: str | None = None
    """Why it cannot be embedded."""
    rejected: str | None = None
    """Which rule it breaks."""
    filled: int = 0
    """Its values that were not finite and were filled with their band's mean."""
    noted: str | None = None
    """What is unusual about its pixels."""
    cloud: float | None = None
    """Share of it that shows no ground, by its scene classification; None where there is none."""

    @property
    def embedded(self) -> bool:
        """Whether it has an embedding."""
        return self.quarantined is None is self.rejected


FATE_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype({"filled": np.int64, "cloud": np.float64}.get(name, object)) for name in Fate._fields
}
"""Part of a fate -> type of an array of those of some chips; a cloud that is not known is NaN."""
SAID = ("quarantined", "rejected", "filled", "noted")
"""Parts of a fate that are told of those chips of which there is something to say."""


@dataclass
class Fates:
    """What became of some chips: those of which there is something to say, by their URLs."""

    chips: int = 0
    """Chips that have an embedding."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """URL -> reason."""
    rejected: dict[str, str] = field(default_factory=dict)
    """URL -> rule."""
    filled: dict[str, int] = field(default_factory=dict)
    """URL -> number of values that were filled with their band's mean."""
    noted: dict[str, str] = field(default_factory=dict)
    """URL -> what is unusual about its pixels."""

    def add(self, url: str, fate: Fate) -> None:
        """Take in what became of a chip; of one without an embedding why."""
        self.chips += fate.embedded
        for name in ("filled", "noted") if fate.embedded else ("quarantined", "rejected"):
            if said := getattr(fate, name):
                getattr(self, name)[url] = said

    def update(self, other: Fates) -> None:
        """Take in what became of other chips."""
        self.chips += other.chips
        for name in SAID:
            getattr(self, name).update(getattr(other, name))
