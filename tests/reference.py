"""Clay v0 written a second time, as plainly as possible and in float64, for the package's encoder to be compared with.

Only torch and the standard library: nothing of `daskembed.encoders.clay_v0` is used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (1369.03, 1597.68, 1741.10, 2053.58, 2569.82, 2763.01, 2858.43, 2893.86, 2303.00, 1807.79, 0.026, 0.118, 499.46)
STD = (2026.96, 2011.88, 2146.35, 2138.96, 2003.27, 1962.45, 2016.38, 1917.12, 1679.88, 1568.06, 0.118, 0.873, 880.35)
BAND_GROUPS = [
    ("rgb", [2, 1, 0]),
    ("rededge", [3, 4, 5, 7]),
    ("nir", [6]),
    ("swir", [8, 9]),
    ("sar", [10, 11]),
    ("dem", [12]),
]
HEADS = {"tiny": 4, "small": 12, "medium": 16, "large": 16}

# The chips of data/expected.npz: seed of the landscape, latitude, longitude, date.
SCENES = [(0, 45.25, 17.5, "2019-04-16"), (1, -59.561105, 177.044855, "2022-12-31")]


def metadata(lat: float, lon: float, day: str) -> tuple[Tensor, Tensor]:
    """The two numbers of a place and the three of a date, in float64."""

    def wrapped(angle: float) -> float:
        return math.atan2(math.cos(angle), math.sin(angle))

    when = date.fromisoformat(day)
    year, month, dom = (when.year - 2012) / 18, (when.month - 1) / 11, (when.day - 1) / 30
    place = [math.sin(math.radians(lat)), wrapped(math.radians(lon))]
    time = [wrapped(2 * math.pi * turn) for turn in (year, month, dom)]
    return torch.tensor(place, dtype=torch.float64), torch.tensor(time, dtype=torch.float64)


def wave(index: float, pairs: int) -> list[float]:
    angles = [index * 10000 ** (-k / (pairs - 1)) for k in range(pairs)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def position_encoding(dim: int) -> Tensor:
    """(256, dim / 2): the column's waves, then the row's."""
    rows = [wave(i % 16, dim // 8) + wave(i // 16, dim // 8) for i in range(256)]
    return torch.tensor(rows, dtype=torch.float64)


def band_encoding(dim: int) -> Tensor:
    """(6, dim / 2)."""
    return torch.tensor([wave(g, dim // 4) for g in range(6)], dtype=torch.float64)


def embed(state: Mapping[str, Tensor], pixels: Tensor, latlon: Tensor, time: Tensor, *, heads: int) -> Tensor:
    """The patch tokens (6, 16, 16, dim) of one chip (13, 512, 512), in float64."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    normal = pixels.double() - torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    normal = normal / torch.tensor(STD, dtype=torch.float64)[:, None, None]
    dim = w["transformer.norm.weight"].shape[0]
    position, band = position_encoding(dim), band_encoding(dim)
    tokens = []
    for g, (group, channels) in enumerate(BAND_GROUPS):
        kernel, bias = w[f"patch_embedding.{group}.proj.weight"], w[f"patch_embedding.{group}.proj.bias"]
        grid = F.conv2d(normal[None, channels], kernel, bias, stride=32)[0]  # (dim, row, col)
        x = norm(grid.flatten(1).T, f"patch_embedding.{group}.norm")
        tokens.append(x + torch.cat([position, band[g].expand(256, -1)], dim=1))
    tokens.append(w["latlon_embedding.weight"] @ latlon.double()[:, None] + w["latlon_embedding.bias"][:, None])
    tokens.append(w["time_embedding.weight"] @ time.double()[:, None] + w["time_embedding.bias"][:, None])
    x = torch.cat([*tokens[:6], tokens[6].T, tokens[7].T])

    depth = len([name for name in w if name.endswith("to_qkv.weight")])
    for layer in (f"transformer.layers.{i}" for i in range(depth)):
        q, k, v = (norm(x, f"{layer}.0.norm") @ w[f"{layer}.0.to_qkv.weight"].T).chunk(3, dim=1)
        mixed = []
        for head in range(heads):
            part = slice(head * 64, (head + 1) * 64)
            mixed.append(torch.softmax(q[:, part] @ k[:, part].T / 8, dim=-1) @ v[:, part])
        x = x + torch.cat(mixed, dim=1) @ w[f"{layer}.0.to_out.0.weight"].T + w[f"{layer}.0.to_out.0.bias"]
        up = norm(x, f"{layer}.1.net.0") @ w[f"{layer}.1.net.1.weight"].T + w[f"{layer}.1.net.1.bias"]
        hidden = up * (1 + torch.erf(up / math.sqrt(2))) / 2
        x = x + hidden @ w[f"{layer}.1.net.4.weight"].T + w[f"{layer}.1.net.4.bias"]
    return norm(x, "transformer.norm")[:1536].reshape(6, 16, 16, dim)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected|| of vectors along the last axis, the largest of them."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())
