"""Seeded noise in place of weights."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from daskembed.encoders import clay_v0
from daskembed.encoders.checkpoint import inspect_checkpoint, load_state
from daskembed.encoders.loading import load_encoder
from daskembed.encoders.untrained import untrained_state
from daskembed.errors import CheckpointError


@pytest.mark.parametrize(
    ("location", "canonical", "size"),
    [
        ("untrained:tiny", "untrained:tiny:0", "tiny"),
        ("untrained:tiny:7", "untrained:tiny:7", "tiny"),
        ("untrained:large:007", "untrained:large:7", "large"),
    ],
)
def test_untrained(location, canonical, size):
    assert inspect_checkpoint(location, clay_v0) == (canonical, None, size)
    assert load_encoder(location, precision="fp32").untrained


def test_untrained_weights_are_the_seed_s():
    states = [load_state(load_encoder(f"untrained:tiny:{seed}", precision="fp32"), clay_v0) for seed in (0, 0, 1)]
    name = "transformer.layers.2.0.to_qkv.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    # Each parameter has a stream of its own: the same shape does not mean the same values.
    assert not torch.equal(states[0][name], states[0][name.replace("2", "3")])


def test_untrained_weights_follow_their_recipe():
    state = untrained_state(clay_v0, "tiny", 3)

    def noise(name: str) -> np.ndarray:
        rng = np.random.default_rng([3, zlib.crc32(f"model.encoder.{name}".encode())])
        return rng.standard_normal(4, dtype=np.float32)

    for name, scale in {
        "transformer.layers.0.0.to_qkv.weight": 1 / 16,  # 256 inputs
        "patch_embedding.rededge.proj.weight": 1 / 64,  # 4 bands of 32 x 32 pixels
        "transformer.norm.bias": 0.05,
        "latlon_embedding.bias": 0.05,
    }.items():
        np.testing.assert_allclose(state[name].flatten()[:4], noise(name) * scale, rtol=1e-6)
    name = "transformer.norm.weight"
    np.testing.assert_allclose(state[name][:4], 1 + noise(name) / 10, rtol=1e-6)


@pytest.mark.usefixtures("released_sizes")
@pytest.mark.parametrize(
    "location",
    [
        "untrained:",
        "untrained:huge",
        "untrained:tiny:",
        "untrained:tiny:-1",
        "untrained:tiny:x",
        "untrained:tiny:0:0",
        "untrained:Tiny",
    ],
)
def test_bad_untrained(location):
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(location, clay_v0)
    assert str(error.value) == (
        f"{location} names no untrained weights: expected untrained:SIZE or untrained:SIZE:SEED with SIZE one of "
        f"{', '.join(clay_v0.SIZES)}"
    )
