"""An encoder that computes nothing, for what does not depend on the encoding: ``daskembed.encoder`` of the workers."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from daskembed.encoders import clay_v0
from daskembed.encoders.description import Description

TITLE, CHECKPOINT = "a fake", "untrained:instant"
SIZES: dict[str, float] = {"instant": 0.0, "ms25": 0.025}
"""Size -> seconds a chip that the device pretends to compute."""


def parameter_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """One number: how long a chip takes."""
    return {"seconds": (list(SIZES).index(size) + 1,)}


def describe(size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
    """As `small`."""
    return replace(clay_v0.describe("small"), title=TITLE, fill_values=(0.0,) * 13)


class _Model:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.noise = torch.randn(1179648)

    def __call__(self, pixels: torch.Tensor, *metadata: torch.Tensor, level: str) -> torch.Tensor:
        clock.sleep(self.seconds * len(pixels))
        shape = describe("instant").shape(level)
        return self.noise[: int(np.prod(shape))].reshape(shape).expand(len(pixels), *shape)


def build(
    state: Mapping[str, torch.Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """A model that sleeps."""
    return _Model(list(SIZES.values())[len(state["seconds"]) - 1])
