"""Rules that a chip keeps, or it is rejected: what can be asked; `pixel_rules` looks at pixels."""

from __future__ import annotations

from dataclasses import dataclass


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
