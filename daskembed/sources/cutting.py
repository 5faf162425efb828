"""One chip, cut out of a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from daskembed.errors import ChipError
from daskembed.geo.chips import CHIP
from daskembed.health import read_surely
from daskembed.sources.chip import ReadChip
from daskembed.sources.pieces import cut, generation_of, renew
from daskembed.sources.pixel_rules import check_pixels, unclear
from daskembed.sources.rules import Rules
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Scene
from daskembed.sources.sea import level
from daskembed.sources.values import to_values
from daskembed.timings import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SceneChip:
    """How to read one chip of a scene."""

    scene: Scene
    number: int
    """From 1, row-major in the grid of chips."""
    rules: Rules

    @property
    def url(self) -> str:
        """Store, date and number."""
        return f"{self.scene.url}/{self.number:04d}"

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.scene.bands

    @property
    def unit(self) -> tuple[object, ...]:
        """The scene, and row and column of the piece that it begins in."""
        (y, x), (height, width) = self.scene.grid.start(self.number), self.scene.piece
        return (self.scene.url, y // height, x // width)

    @property
    def inside(self) -> tuple[int, int]:
        """How many of its pixels (y, x) are in the scene."""
        y, x = self.scene.grid.start(self.number)
        height, width = self.scene.grid.shape
        return min(CHIP, height - y), min(CHIP, width - x)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """What is made of the bands' numbers."""
        return self.scene.scales

    @property
    def note(self) -> str:
        """What is done to the numbers of its scene, if anything."""
        return self.scene.note

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north, with what reaches beyond the scene."""
        return self.scene.bounds_of(self.scene.grid.start(self.number), (CHIP, CHIP))

    def read(self) -> NDArray[np.generic]:
        """Pixels ``(band, y, x)``; see `Chip`."""
        return self.read_with_findings().pixels

    def read_with_findings(self) -> ReadChip:
        """Pixels and what is unusual about them; see `Chip`."""
        generation = generation_of(self.scene)

        def read(fresh: bool) -> ReadChip:
            nonlocal generation
            if fresh:
                generation = renew(self.scene, generation)
            return self._read()

        return read_surely(self.url, read)

    def _read(self) -> ReadChip:
        y, x = self.scene.grid.start(self.number)
        height, width = self.inside
        with timed("decode"):
            (stored, masked, classes), seas, land = level(cut(self.scene, y, x, height, width), self.scene, y, x)
            pixels, findings = to_values(stored, self.bands, self.scene.scales, masked)
            findings += seas
            # What breaks a rule does so wherever it lies.
            rules = self.rules if land is None else replace(self.rules, nan=False)
            cloud = None if classes is None else unclear(classes)
            check_pixels(pixels, self.bands, rules, findings, cloud)
            if land is not None:
                raise ChipError(land)
            if (height, width) == (CHIP, CHIP):
                # A view would keep the whole piece as long as the chip waits for the device.
                pixels = np.ascontiguousarray(pixels)
            else:
                pixels = np.pad(pixels, ((0, 0), (0, CHIP - height), (0, CHIP - width)), "edge")
        return ReadChip(pixels, findings, cloud)
