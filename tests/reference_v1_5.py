"""Clay v1.5 written a second time, plainly and in float64, for the package's encoder to be compared with.

Only torch and the standard library: nothing of `daskembed` is used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS = {"tiny": 4, "small": 6, "base": 12, "large": 16}
# Mean, standard deviation and wavelength of each band; the values that Clay v1.5 was trained with.
SENTINEL_2 = [
    (1105, 1809, 0.493),
    (1355, 1757, 0.56),
    (1552, 1888, 0.665),
    (1887, 1870, 0.704),
    (2422, 1732, 0.74),
    (2630, 1697, 0.783),
    (2743, 1742, 0.842),
    (2785, 1648, 0.865),
    (2388, 1470, 1.61),
    (1835, 1379, 2.19),
]
SENTINEL_1 = [(-12.113, 8.314, 3.5), (-18.673, 8.017, 4.0)]


def decibels(power: Tensor) -> Tensor:
    return 10 * torch.log10(torch.maximum(power.double(), torch.tensor(1e-10, dtype=torch.float64)))


def position(number: int, pairs: int, dim: int, gsd: float) -> list[float]:
    """Of one column or row; its angles are those of float32 arithmetic, as the reference has them."""
    exponents = 2 * (torch.arange(pairs, dtype=torch.float32) / (pairs - 1)) / (dim - 8)
    angles = (number * (gsd * (1 / 10000**exponents))).tolist()
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def when_where(when: datetime, lat: float, lon: float) -> list[float]:
    week, hour = when.isocalendar().week * 2 * math.pi / 52, when.hour * 2 * math.pi / 24
    turned = [week, hour, math.radians(lat), math.radians(lon)]
    return [value for angle in turned for value in (math.sin(angle), math.cos(angle))]


def embed(
    state: Mapping[str, Tensor],
    pixels: Tensor,
    bands: list[tuple[float, float, float]],
    *,
    lat: float,
    lon: float,
    when: datetime,
    gsd: float,
    heads: int,
) -> Tensor:
    """Tokens (1 + patches, dim) of one window (band, y, x), in float64; the class token is the first."""
    w = {name: tensor.double() for name, tensor in state.items()}
    statistics = torch.tensor(bands, dtype=torch.float64)
    normal = (pixels.double() - statistics[:, 0, None, None]) / statistics[:, 1, None, None]

    waves = torch.tensor(
        [
            [f(band[2] * 10000 ** (-k / 63)) for f in (math.sin, math.cos) for k in range(64)]
            for band in bands
        ],
        dtype=torch.float64,
    )  # fmt: skip
    y = F.gelu(waves @ w["patch_embedding.fclayer.l1.weight"].T + w["patch_embedding.fclayer.l1.bias"])
    waves = waves + F.gelu(y @ w["patch_embedding.fclayer.l2.weight"].T + w["patch_embedding.fclayer.l2.bias"])

    prefix = "patch_embedding.weight_generator."
    layer = torch.nn.TransformerEncoderLayer(128, 4, 2048, dropout=0, activation="gelu", batch_first=True).double()
    inner = prefix + "encoder.layers.0."
    layer.load_state_dict({k.removeprefix(inner): v for k, v in w.items() if k.startswith(inner)})
    sequence = torch.cat([w[prefix + "weight_tokens"], waves, w[prefix + "bias_token"]])
    with torch.no_grad():
        out = layer(sequence[None])[0]
    dim = w["cls_token"].shape[-1]
    kernels = []
    for i in range(len(bands)):
        made = w[prefix + "fc_weight.weight"] @ (out[128 + i] + sequence[128 + i]) + w[prefix + "fc_weight.bias"]
        kernels.append(0.02 * made.reshape(dim, 8, 8))
    bias = w[prefix + "fc_bias.weight"] @ out[-1] + w[prefix + "fc_bias.bias"]
    grid = F.conv2d(normal[None], torch.stack(kernels, dim=1), bias, stride=8)[0]  # (dim, row, col)

    rows, cols = grid.shape[1:]
    pairs, rest = (dim - 8) // 4, when_where(when, lat, lon)
    numbers = [position(i, pairs, dim, gsd) for i in range(max(rows, cols))]
    encodings = [numbers[col] + numbers[row] + rest for row in range(rows) for col in range(cols)]
    x = torch.cat([w["cls_token"][0], grid.flatten(1).T + torch.tensor(encodings, dtype=torch.float64)])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"])

    depth = len([name for name in w if name.endswith("to_qkv.weight")])
    for block in (f"transformer.layers.{i}" for i in range(depth)):
        q, k, v = (norm(x, f"{block}.0.norm") @ w[f"{block}.0.to_qkv.weight"].T).chunk(3, dim=1)
        mixed = []
        for qh, kh, vh in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            mixed.append(torch.softmax(qh @ kh.T / math.sqrt(qh.shape[1]), dim=-1) @ vh)
        x = x + torch.cat(mixed, dim=1) @ w[f"{block}.0.to_out.weight"].T
        up = norm(x, f"{block}.1.net.0") @ w[f"{block}.1.net.1.weight"].T + w[f"{block}.1.net.1.bias"]
        x = x + F.gelu(up) @ w[f"{block}.1.net.3.weight"].T + w[f"{block}.1.net.3.bias"]
    return norm(x, "transformer.norm")
