"""Elevation where there is none: sea is level, land is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pytest

from daskembed.errors import ChipError, ChipRejectedError
from daskembed.geo.chips import ChipGrid
from daskembed.sensors.bands import KINDS
from daskembed.sources.cutting import SceneChip
from daskembed.sources.rules import Rules
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Scene

RULES = Rules(zeros=True, nan=True, max_cloud=0.3)
SCALES = {"B02": Scale(numbers=KINDS["sentinel-2"]), "dem": Scale(numbers=KINDS["height"], sea=True)}


@dataclass(frozen=True)
class Still:
    """A layer of given pixels."""

    name: str
    pixels: Any = field(compare=False)
    scales: tuple[Scale, ...] = (Scale(),)
    coarser: int = 1

    def open(self, *, fresh: bool = False) -> Any:
        return lambda rows, cols: self.pixels[None, rows, cols]


def chip(classes: np.ndarray | None, gap: np.ndarray, *, blue: int = 500, rules: Rules = RULES) -> SceneChip:
    height = np.ma.masked_array(np.full((512, 512), 30, np.float32), gap)
    key = f"{np.random.default_rng().integers(1 << 60)}"
    scene = Scene(
        url=f"https://catalogue/{key}#2024-05-01",
        date=date(2024, 5, 1),
        fingerprint=key,
        bands=("B02", "dem"),
        layers=(
            Still(f"B02{key}", np.full((512, 512), blue, np.uint16), (SCALES["B02"],)),
            Still(f"dem{key}", height, (SCALES["dem"],)),
        ),
        classes=None if classes is None else Still(f"scl{key}", classes),
        epsg=32633,
        west=300_000,
        north=5_100_000,
        step=10,
        grid=ChipGrid((512, 512)),
        block=(512, 512),
        pixel_bytes=6,
    )
    return SceneChip(scene, 1, rules)


def areas() -> tuple[np.ndarray, np.ndarray]:
    """Classes of a coast, water in the first 100 rows, and a gap of elevation over these."""
    classes, gap = np.full((512, 512), 4, np.uint8), np.zeros((512, 512), bool)
    classes[:100], gap[:100] = 6, True
    return classes, gap


def test_the_sea_is_level_and_said_to_be() -> None:
    classes, gap = areas()
    classes[:5] = 9  # clouds say nothing of what is below
    classes[5:13] = 4  # 8 of 95 rows of ground: less than a tenth
    read = chip(classes, gap).read_with_findings()
    np.testing.assert_array_equal(read.pixels[1], np.where(gap, 0, 30))
    (finding,) = read.findings
    assert str(finding) == "dem is sea, of which there is no elevation: 0 is taken, in 19.5312% of its pixels"
    assert not finding.missing


def test_land_without_elevation_is_refused_by_its_place() -> None:
    classes, gap = areas()
    classes[:11] = 4
    said = r"no elevation \(dem\) in 19\.5312% of its pixels, at 46\.0243 N, 12\.4160 E, and .* shows land there"
    with pytest.raises(ChipError, match=said) as refused:
        chip(classes, gap).read()
    assert not isinstance(refused.value, ChipRejectedError), "it is quarantined"
    with pytest.raises(ChipError, match="no elevation"):
        chip(classes, gap, rules=Rules(zeros=False, nan=False, max_cloud=2.0)).read()


def test_what_nobody_can_see_is_refused_too() -> None:
    classes, gap = areas()
    classes[:100] = 9
    with pytest.raises(ChipError, match="its clouds hide whether that is sea"):
        chip(classes, gap).read()
    with pytest.raises(ChipError, match="no scene classification tells"):
        chip(None, gap).read()


def test_what_breaks_a_rule_is_rejected_all_the_same() -> None:
    classes, gap = areas()
    classes[:] = 9
    with pytest.raises(ChipRejectedError, match="clouds"):
        chip(classes, gap).read()
    classes[:] = 4
    with pytest.raises(ChipRejectedError, match="B02 is 0"):
        chip(classes, gap, blue=0).read()
