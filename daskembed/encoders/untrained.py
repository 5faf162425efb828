"""Seeded noise in place of trained weights, for trying things out."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np

from daskembed.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from daskembed.encoders.protocol import CompleteModule

_UNTRAINED = re.compile(r"untrained:(?P<size>[^:]+)(?::(?P<seed>\d+))?")


def parse_untrained(location: str, module: CompleteModule) -> tuple[str, int]:
    """Size and seed of ``untrained:SIZE[:SEED]``; raises `CheckpointError` for what is of another form."""
    match = _UNTRAINED.fullmatch(location)
    if match is None or match["size"] not in module.SIZES:
        raise CheckpointError(
            f"{location} names no untrained weights: expected untrained:SIZE or untrained:SIZE:SEED with SIZE one of "
            f"{', '.join(module.SIZES)}"
        )
    return match["size"], int(match["seed"] or 0)


def untrained_state(module: CompleteModule, size: str, seed: int) -> dict[str, Tensor]:
    """Seeded noise in the shapes of a size: a pure function of seed, name and shape.

    Biases are 0.05 times standard normal noise, LayerNorm weights 1 plus 0.1 times it, and other weights the noise
    over the square root of their fan-in, each drawn from ``default_rng([seed, crc32(full name)])`` in float32.
    """
    import torch

    state = {}
    for name, shape in module.parameter_shapes(size).items():
        rng = np.random.default_rng([seed, zlib.crc32((module.PREFIX + name).encode())])
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("bias"):
            noise *= np.float32(0.05)
        elif len(shape) == 1:
            noise = np.float32(1) + np.float32(0.1) * noise
        else:
            noise /= np.float32(np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(noise)
    return state
