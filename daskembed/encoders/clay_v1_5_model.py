"""Clay v1.5 with its weights on a device: windows to a class token and tokens, and kernels made of wavelengths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daskembed.encoders.description import Description
from daskembed.encoders.transformer import Transformer, sincos
from daskembed.geo.chips import CHIP

LOWEST_POWER = 1e-10
"""What linear power is raised to before its decibels are taken: -100 dB."""
WAVE_HEADS = 4
"""Attention heads of the transformer that makes a band's kernel of its wavelength."""


class ClayV15:
    """The encoder of one sensor's windows on a device.

    Parameters
    ----------
    state
        Parameters by name, without the prefix, in float32.
    description
        Of `describe`, for the sensor and the window.
    patch
        Pixels along each side of what a token is of.
    heads
        Attention heads.
    device
        Where it runs.
    dtype
        Type of the products: float32, bfloat16 (or float64, for reference values).
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        description: Description,
        *,
        patch: int,
        heads: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        dim = state["cls_token"].shape[-1]
        self.patch = patch
        # Everything but the products runs in float32, or wider where the products do.
        wide = torch.promote_types(dtype, torch.float32)
        self.dtype, self.wide, self.description = dtype, wide, description
        bands = description.sensor.bands
        statistics = torch.tensor([(band.mean, band.std) for band in bands], device=device, dtype=wide)
        self.mean, self.std = statistics[:, 0, None, None], statistics[:, 1, None, None]
        kernels, bias = make_kernels({name: tensor.to(wide) for name, tensor in state.items()}, description)
        self.projection = kernels.to(device, dtype), bias.to(device, dtype)
        self.cls_token = state["cls_token"].to(device, wide)
        # Of the gsd of 1 m; in float32, as the reference has it.
        pairs = (dim - 8) // 4
        exponent = 2 * (torch.arange(pairs) / (pairs - 1)) / (dim - 8)
        self.omega = (1 / 10000**exponent).to(device)
        self.steps = torch.arange(description.window // patch, dtype=torch.float32, device=device)
        blocks = {k.removeprefix("transformer."): v.to(wide) for k, v in state.items() if k.startswith("transformer.")}
        self.transformer = Transformer(blocks, heads=heads, out="to_out", down="net.3", device=device, dtype=dtype)

    def __call__(self, pixels: Tensor, *metadata: Tensor, level: str) -> Tensor:
        """Embed chips.

        Parameters
        ----------
        pixels
            Raw pixels of any real type, shape ``(chip, band, 512, 512)``.
        metadata
            As the function of that name gives it, of the chips.
        level
            One of the description's.

        Returns
        -------
        float32 tensor of shape ``(chip, *description.shape(level))``.
        """
        (when_where, resolution), shape = metadata, self.description.shape(level)
        x = self._tokens(pixels, when_where, resolution)
        # All windows at once, on a CPU too: base in bfloat16 took 0.33 s a window by fours and 0.34 s one by one.
        return self._reduce(self.transformer(x), level).reshape(len(pixels), *shape)

    def _reduce(self, tokens: Tensor, level: str) -> Tensor:
        if level == "cls":
            return tokens[:, 0]
        return tokens[:, 1:].mean(dim=1) if level == "mean" else tokens[:, 1:]

    def _tokens(self, pixels: Tensor, when_where: Tensor, resolution: Tensor) -> Tensor:
        """Class token and encoded patches of each window, ``(chip * window, token, dim)``."""
        chips, window = len(pixels), self.description.window
        patch, side, across = self.patch, window // self.patch, CHIP // window
        values = pixels.to(self.wide)
        if self.description.sensor.decibels:
            values = 10 * torch.log10(values.clamp(min=LOWEST_POWER))
        normal = ((values - self.mean) / self.std).to(self.dtype)
        # A convolution with a stride of its kernel's width is a product with the unfolded patches:
        # (chip, window row, window col, row, col, band, y, x).
        patches = normal.view(chips, -1, across, side, patch, across, side, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
        projected = F.linear(patches.reshape(chips * across**2, side**2, -1), *self.projection)
        x = torch.cat([self.cls_token.expand(len(projected), 1, -1), projected.to(self.wide)], dim=1)
        grid = x[:, 1:].view(chips, across**2, side, side, -1)
        position = self._position(resolution)
        half = position.shape[-1]
        grid[..., :half] += position[:, None, None, :]
        grid[..., half : 2 * half] += position[:, None, :, None]
        grid[..., 2 * half :] += when_where.to(self.wide)[:, :, None, None]
        return x

    def _position(self, resolution: Tensor) -> Tensor:
        """Encoding of a column's (or row's) number, ``(chip, number, half of dim - 8)``."""
        angle = self.steps[:, None] * (self.omega * resolution.to(torch.float32)[:, None])[:, None]
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.wide)


def make_kernels(state: Mapping[str, Tensor], description: Description) -> tuple[Tensor, Tensor]:
    """Kernels ``(dim, band * y * x)`` and bias ``(dim,)`` of the patch embedding, generated from the wavelengths."""
    generator, layer = "patch_embedding.weight_generator", "patch_embedding.weight_generator.encoder.layers.0"

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    tokens = state[f"{generator}.weight_tokens"]
    wavelengths = np.array([band.wavelength for band in description.sensor.bands], dtype=np.float64)
    waves = torch.from_numpy(sincos(wavelengths, tokens.shape[-1] // 2)).to(tokens)
    hidden = F.gelu(linear(waves, "patch_embedding.fclayer.l1"))
    waves = waves + F.gelu(linear(hidden, "patch_embedding.fclayer.l2"))

    x = torch.cat([tokens, waves, state[f"{generator}.bias_token"]])
    qkv = F.linear(x, state[f"{layer}.self_attn.in_proj_weight"], state[f"{layer}.self_attn.in_proj_bias"])
    q, k, v = qkv.view(len(x), 3, WAVE_HEADS, -1).permute(1, 2, 0, 3)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(x), -1)
    out = norm(x + linear(mixed, f"{layer}.self_attn.out_proj"), f"{layer}.norm1")
    out = norm(out + linear(F.gelu(linear(out, f"{layer}.linear1")), f"{layer}.linear2"), f"{layer}.norm2")

    weights = linear(out[len(tokens) : -1] + waves, f"{generator}.fc_weight")
    # (band, dim * y * x) as the reference has it; a patch's pixels come as (band, y, x).
    bias = linear(out[-1], f"{generator}.fc_bias")
    kernels = weights.view(len(waves), len(bias), -1).transpose(0, 1).flatten(1)
    return 0.02 * kernels, bias
