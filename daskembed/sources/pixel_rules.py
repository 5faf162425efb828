"""Rules that a chip's pixels keep, or it is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from daskembed.errors import ChipRejectedError
from daskembed.sources.findings import Finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources.rules import Rules

NEVER = 2.0
"""A share that nothing reaches."""
CLASSES = "scl"
"""What the scene classification is called in files, in any case."""


def check_pixels(
    pixels: NDArray[np.generic],
    bands: Sequence[str],
    rules: Rules,
    findings: Sequence[Finding],
    cloud: float | None = None,
) -> None:
    """Raise `ChipRejectedError` for a chip that breaks a rule.

    Parameters
    ----------
    pixels
        ``(band, y, x)``, of which a 0 is a 0 that was stored.
    bands
        Their names.
    rules
        With nothing left open.
    findings
        What was found when `pixels` were made of the stored numbers.
    cloud
        What is `unclear` of the same pixels, if they are classified.
    """
    named = {band.lower(): image for band, image in zip(bands, pixels, strict=True)}
    first = next((named[name] for name in ("b02", "blue") if name in named), None)
    if rules.zeros and first is not None and (empty := float(np.mean(first == 0))):
        raise ChipRejectedError(f"B02 is 0 in {empty:.4%} of its pixels (`Rules(zeros=False)` keeps it)")
    missing = [one for one in findings if one.missing]
    if rules.nan and missing:
        worst = max(missing, key=lambda one: one.share)
        others = len({one.band for one in missing} - {worst.band})
        more = f", {others} more band{'s' * (others > 1)} likewise" if others else ""
        raise ChipRejectedError(f"{worst}{more} (`Rules(nan=False)` `on_nan='fill'` keeps it)")
    if cloud and rules.max_cloud is not None and cloud >= rules.max_cloud:
        raise ChipRejectedError(
            f"clouds, shadows or nodata in {cloud:.4%} of its pixels (`Rules(max_cloud={rules.max_cloud:g})`)"
        )


CLEAR = (2, 4, 5, 6, 7, 11)
"""Classes of Sentinel-2's scene classification that show the ground: dark, plants, soil, water, unclassified, snow."""


def unclear(classes: NDArray[np.generic]) -> float:
    """Share of a scene classification that shows no ground: nodata, saturated, shadow, cloud, cirrus, no class."""
    return (classes.size - int(np.count_nonzero(np.isin(classes, CLEAR)))) / classes.size
