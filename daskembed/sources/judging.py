"""What files must hold: the bands of a sensor, and pixels that keep the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from daskembed.encoders.description import CLAY_V0, Sensor
from daskembed.errors import ChipError, ChipRejectedError
from daskembed.sources.values import Finding, unclear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources import Rules

NEVER = 2.0
"""A share that nothing reaches."""
_LAYOUT = tuple(band.name for band in CLAY_V0.bands)


def short(text: str) -> str:
    """`text`, or the beginning of it."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def order_bands(descriptions: Sequence[str | None], sensor: Sensor, *, more: bool = False) -> tuple[int, ...]:
    """Find a sensor's bands in a file.

    Parameters
    ----------
    descriptions
        Of the file's bands; one that is None or empty has none.
    sensor
        Whose bands are wanted. Without descriptions a file has just these, in the sensor's order, or Clay's 13.
    more
        Whether the file may hold other bands beside.

    Returns
    -------
    1-based numbers of the bands, in the sensor's order.

    Raises
    ------
    ChipError
        If a band is missing, or there are bands of which nothing is said.
    """
    known = {name.lower(): band.name for band in CLAY_V0.bands for name in (band.name, *band.aliases)}
    counts = {len(sensor.bands)}
    if {known.get(name.lower()) for band in sensor.bands for name in (band.name, *band.aliases)} & {*_LAYOUT}:
        counts.add(len(_LAYOUT))
    found = [(text or "").strip().lower() for text in descriptions]
    if len(found) not in counts and not (more and any(found)):
        expected = f"{len(sensor.bands)}: {' '.join(sensor.names)}"
        raise ChipError(f"has {len(found)} band{'s' * (len(found) != 1)}, expected {expected}")
    if not any(found):
        found = [name.lower() for name in (sensor.names if len(found) == len(sensor.bands) else _LAYOUT)]
    numbers = [_number(found, (band.name, *band.aliases)) for band in sensor.bands]
    if missing := [band.name for band, number in zip(sensor.bands, numbers, strict=True) if number is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise ChipError(
            f"has the bands {' '.join(short(text or '(none)') for text in descriptions)}: {', '.join(missing)} {verb} "
            f"missing; expected {' '.join(sensor.names)} in any order, or no descriptions at all"
        )
    return tuple(number for number in numbers if number is not None)


def _number(found: list[str], names: Sequence[str]) -> int | None:
    return next((found.index(name.lower()) + 1 for name in names if name.lower() in found), None)


def check_pixels(
    pixels: NDArray[np.generic],
    bands: Sequence[str],
    rules: Rules,
    findings: Sequence[Finding],
    classes: NDArray[np.generic] | None = None,
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
    classes
        Scene classification of the same pixels, ``(y, x)``, if there is one.
    """
    named = {band.lower(): image for band, image in zip(bands, pixels, strict=True)}
    first = next((named[name] for name in ("b02", "blue") if name in named), None)
    if rules.zeros and first is not None and (empty := float(np.mean(first == 0))):
        raise ChipRejectedError(f"B02 is 0 in {empty:.4%} of its pixels (--no-reject-zeros keeps it)")
    missing = [one for one in findings if one.missing]
    if rules.nan and missing:
        worst = max(missing, key=lambda one: one.share)
        others = len({one.band for one in missing} - {worst.band})
        more = f", {others} more band{'s' * (others > 1)} likewise" if others else ""
        raise ChipRejectedError(f"{worst}{more} (--no-reject-nan keeps it)")
    if classes is not None and rules.max_cloud is not None:
        share = unclear(classes)
        if share and share >= rules.max_cloud:
            raise ChipRejectedError(
                f"clouds, shadows or nodata in {share:.4%} of its pixels (--max-cloud {rules.max_cloud:g})"
            )
