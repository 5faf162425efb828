"""Which band of a file is which."""

from __future__ import annotations

from typing import Any

import pytest

from daskembed.errors import ChipError
from daskembed.sensors.bands import CLAY_V0, Band, Sensor
from daskembed.sensors.table import get_sensor
from daskembed.sources.bands import order_bands

BANDS = CLAY_V0.names
SENTINEL_2 = get_sensor("sentinel-2-l2a")
PLAIN = Sensor("plain", 10.0, (Band("a", 0, 1), Band("b", 0, 1, ("B02",))))


@pytest.mark.parametrize(
    ("descriptions", "sensor", "said"),
    [
        ((*BANDS, "B02"), CLAY_V0, r"has the band B02 2 times, as bands 1 \(b02\) and 14 \(b02\): expected it once"),
        ((*BANDS, "blue"), CLAY_V0, r"has the band B02 2 times, as bands 1 \(b02\) and 14 \(blue\)"),
        ((*BANDS, " b8a "), CLAY_V0, r"has the band B8A 2 times, as bands 8 \(b8a\) and 14 \(b8a\)"),
        (("B02", *BANDS[:10]), SENTINEL_2, r"has the band blue 2 times, as bands 1 \(b02\) and 2 \(b02\)"),
        ((*BANDS, "SCL", "scl"), CLAY_V0, r"has the band scl 2 times, as bands 14 \(scl\) and 15 \(scl\)"),
        (("a", "b", "B02"), PLAIN, r"has the band b 2 times, as bands 2 \(b\) and 3 \(b02\)"),
    ],
)
def test_a_name_that_stands_twice_is_refused(descriptions: Any, sensor: Sensor, said: str) -> None:
    with pytest.raises(ChipError, match=said):
        order_bands(descriptions, sensor, more=True)


def test_other_names_may_stand_twice() -> None:
    assert order_bands(("qa", *BANDS, "qa", None, ""), CLAY_V0, more=True) == tuple(range(2, 15))


def test_a_sensor_that_calls_a_band_blue_has_not_the_13_bands() -> None:
    """Only names of Clay's own layout say that a file without descriptions may be of it."""
    with pytest.raises(ChipError, match="has 13 bands, expected 4: red green blue nir"):
        order_bands((None,) * 13, get_sensor("naip"))
    assert order_bands((None,) * 13, SENTINEL_2) == tuple(range(1, 11))


@pytest.mark.parametrize(
    ("descriptions", "said"),
    [
        (BANDS[:10], "vh, vv, dem are missing; .*; `encoder='clay-v1.5'` needs those of Sentinel-2 alone$"),
        (BANDS[:12], "dem is missing; .*; `encoder='clay-v1.5'` needs those of Sentinel-2 alone$"),
        ((None,) * 10, "has 10 bands, expected 13: .* dem; `encoder='clay-v1.5'` needs those of Sentinel-2 alone$"),
        (
            ("vv", "vh"),
            "B02, .* are missing; .*; `encoder='clay-v1.5'` `sensor='sentinel-1-rtc'` needs vv and vh alone$",
        ),
        (BANDS[1:10], "B02, vh, vv, dem are missing; .* or no descriptions at all$"),
        ((None,) * 9, "has 9 bands, expected 13: .* dem$"),
    ],
)
def test_the_encoder_that_needs_fewer_is_named(descriptions: Any, said: str) -> None:
    with pytest.raises(ChipError, match=said):
        order_bands(descriptions, CLAY_V0, more=True)
