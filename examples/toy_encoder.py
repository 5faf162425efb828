"""An encoder of your own: the mean and the spread of each band, on a 16 x 16 grid. `--encoder toy_encoder`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from daskembed.encoders.description import Description, Place
from daskembed.sensors.bands import CLAY_V0

SIZES = {"only": 16}  # patches across


def parameter_shapes(size: str) -> dict[str, tuple[int, ...]]:
    return {"scale.weight": (len(CLAY_V0.bands),)}


def describe(size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
    side, dim = SIZES[size], 2 * len(CLAY_V0.bands)
    levels = {"mean": {"embedding": dim}, "patch": {"row": side, "col": side, "embedding": dim}}
    fills = tuple(band.mean for band in CLAY_V0.bands)
    return Description("a toy", CLAY_V0, 10.0, 512, levels, fills, flop=10 * 512 * 512 * len(fills))


def metadata(place: Place) -> tuple[np.ndarray, ...]:
    return (np.sin(np.radians(place.lat)).astype(np.float32),)  # (chip, window)


class Toy:
    def __init__(self, state: Mapping[str, torch.Tensor], *, device: torch.device) -> None:
        self.scale = state["scale.weight"].to(device)

    def __call__(self, pixels: torch.Tensor, lat: torch.Tensor, level: str) -> torch.Tensor:
        patches = pixels.float().unfold(2, 32, 32).unfold(3, 32, 32)  # (chip, band, row, col, y, x)
        stats = torch.cat([patches.mean((4, 5)) * self.scale[:, None, None], patches.std((4, 5))], dim=1)
        patch = stats.permute(0, 2, 3, 1) + lat[:, :, None, None]
        return patch if level == "patch" else patch.mean((1, 2))


def build(
    state: Mapping[str, torch.Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
) -> Toy:
    return Toy(state, device=device)
