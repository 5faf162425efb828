"""Which bands of a file are a sensor's."""

from __future__ import annotations

from collections.abc import Sequence

from daskembed.errors import ChipError
from daskembed.sensors.bands import CLAY_V0, Sensor
from daskembed.sources.pixel_rules import CLASSES

_LAYOUT = CLAY_V0.names

_SENTINEL_2 = 10
"""Of its bands, the first are Sentinel-2's."""


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
        If a band is missing or there twice, or there are bands of which nothing is said.
    """
    counts = {len(sensor.bands)}
    if {name.lower() for band in sensor.bands for name in (band.name, *band.aliases)} & {*map(str.lower, _LAYOUT)}:
        counts.add(len(_LAYOUT))
    found = [(text or "").strip().lower() for text in descriptions]
    if len(found) not in counts and not (more and any(found)):
        expected = f"{len(sensor.bands)}: {' '.join(sensor.names)}"
        # The first bands of the layout are those of Sentinel-2.
        hint = "" if any(found) else alternative(sensor.names[len(found) :], sensor)
        raise ChipError(f"has {len(found)} band{'s' * (len(found) != 1)}, expected {expected}{hint}")
    if not any(found):
        found = [name.lower() for name in (sensor.names if len(found) == len(sensor.bands) else _LAYOUT)]
    numbers = {band.name: _numbers(found, (band.name, *band.aliases)) for band in sensor.bands}
    if missing := [name for name, places in numbers.items() if not places]:
        verb = "is" if len(missing) == 1 else "are"
        raise ChipError(
            f"has the bands {' '.join(short(text or '(none)') for text in descriptions)}: {', '.join(missing)} {verb} "
            f"missing; expected {' '.join(sensor.names)} in any order, or no descriptions at all"
            f"{alternative(missing, sensor)}"
        )
    for name, places in {**numbers, CLASSES: _numbers(found, (CLASSES,))}.items():
        if len(places) > 1:
            where = " and ".join(f"{place} ({short(found[place - 1])})" for place in places)
            raise ChipError(f"has the band {name} {len(places)} times, as bands {where}: expected it once")
    return tuple(place for places in numbers.values() for place in places)


def _numbers(found: list[str], names: Sequence[str]) -> list[int]:
    wanted = {name.lower() for name in names}
    return [number for number, text in enumerate(found, 1) if text in wanted]


def alternative(missing: Sequence[str], sensor: Sensor) -> str:
    """What to try where these bands of a sensor are missing, if there is an encoder that needs fewer."""
    if sensor != CLAY_V0:
        return ""
    present = {*sensor.names} - {*missing}
    if present >= {*_LAYOUT[:_SENTINEL_2]}:
        return "; `encoder='clay-v1.5'` needs those of Sentinel-2 alone"
    if present >= {"vv", "vh"}:
        return "; `encoder='clay-v1.5'` `sensor='sentinel-1-rtc'` needs vv and vh alone"
    return ""
