"""Clay v0 with its weights on a device: chips to tokens, tokens to a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from daskembed.encoders.transformer import Transformer, sincos
from daskembed.geo.chips import CHIP
from daskembed.sensors.bands import Band


class ClayV0:
    """The encoder on a device.

    Parameters
    ----------
    state
        Parameters by name, without the prefix, in float32.
    bands
        Of its sensor, in order.
    groups
        Band group -> the indices of its bands; the order is the group axis of level ``group``.
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
        bands: Sequence[Band],
        groups: Mapping[str, tuple[int, ...]],
        *,
        heads: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        dim, _, self.patch, _ = state[f"patch_embedding.{next(iter(groups))}.proj.weight"].shape
        self.side = CHIP // self.patch
        # Everything but the products runs in float32, or wider where the products do.
        wide = torch.promote_types(dtype, torch.float32)
        state = {name: tensor.to(device, wide) for name, tensor in state.items()}
        statistics = torch.tensor([(band.mean, band.std) for band in bands], device=device, dtype=wide)
        self.mean, self.std = statistics[:, 0, None, None], statistics[:, 1, None, None]
        self.dtype, self.wide = dtype, wide
        self.projections = [
            (
                list(indices),
                state[f"patch_embedding.{group}.proj.weight"].reshape(dim, -1).to(dtype),
                state[f"patch_embedding.{group}.proj.bias"].to(dtype),
                (state[f"patch_embedding.{group}.norm.weight"], state[f"patch_embedding.{group}.norm.bias"]),
            )
            for group, indices in groups.items()
        ]
        self.encodings = torch.from_numpy(encodings(dim, len(groups), self.side)).to(device, wide)
        self.latlon = (state["latlon_embedding.weight"], state["latlon_embedding.bias"])
        self.time = (state["time_embedding.weight"], state["time_embedding.bias"])
        blocks = {k.removeprefix("transformer."): v for k, v in state.items() if k.startswith("transformer.")}
        self.transformer = Transformer(blocks, heads=heads, out="to_out.0", down="net.4", device=device, dtype=dtype)

    def __call__(self, pixels: Tensor, *metadata: Tensor, level: str) -> Tensor:
        """Embed chips.

        Parameters
        ----------
        pixels
            Raw pixels of any real type, shape ``(chip, 13, 512, 512)``.
        metadata
            As the function of that name gives it, of the chips.
        level
            A key of `daskembed.encoders.clay_v0.LEVELS`.

        Returns
        -------
        float32 tensor of shape ``(chip, *Description.shape(level))``.
        """
        latlon, time = metadata
        chips = len(pixels)
        x = self._tokens(pixels)
        extra = torch.stack([F.linear(latlon.to(self.wide), *self.latlon), F.linear(time.to(self.wide), *self.time)], 1)
        x = self.transformer(torch.cat([x, extra], dim=1))
        tokens = x[:, :-2].reshape(chips, len(self.encodings), self.side, self.side, -1)
        embedding: Tensor = reduce_tokens(tokens, level)
        return embedding

    def _tokens(self, pixels: Tensor) -> Tensor:
        chips = len(pixels)
        normal = ((pixels.to(self.wide) - self.mean) / self.std).to(self.dtype)
        # A convolution with a stride of its kernel's width is a product with the unfolded patches:
        # (chip, row, col, band, y, x).
        patches = normal.view(chips, -1, self.side, self.patch, self.side, self.patch).permute(0, 2, 4, 1, 3, 5)
        groups = []
        for (bands, weight, bias, norm), encoding in zip(self.projections, self.encodings, strict=True):
            flat = patches[:, :, :, bands].reshape(chips, self.side**2, -1)
            projected = F.linear(flat, weight, bias).to(self.wide)
            groups.append(F.layer_norm(projected, projected.shape[-1:], *norm) + encoding)
        return torch.cat(groups, dim=1)


def encodings(dim: int, groups: int, side: int) -> NDArray[np.float32]:
    """Position and band encoding of every token, shape ``(group, row * col, dim)``.

    The first half of `dim` encodes the position (column, then row), the second half the ordinal of the band group.
    """
    row, col = np.divmod(np.arange(side**2, dtype=np.float64), side)
    position = np.concatenate([sincos(col, dim // 8), sincos(row, dim // 8)], axis=-1)
    band = sincos(np.arange(groups, dtype=np.float64), dim // 4)
    shape = (groups, side**2, dim // 2)
    both = [np.broadcast_to(position, shape), np.broadcast_to(band[:, None], shape)]
    return np.concatenate(both, axis=-1).astype(np.float32)


def reduce_tokens(tokens: Any, level: str) -> Any:
    """Reduce the patch tokens of some chips to a level.

    Parameters
    ----------
    tokens
        Array or tensor of shape ``(chip, group, row, col, embedding)``, in float32 or wider: a mean over 1,536
        tokens in bfloat16 would lose two digits.
    level
        ``mean`` over groups, rows and columns; ``patch``, mean over groups; ``group``, the tokens as they are.

    Returns
    -------
    Array or tensor of shape ``(chip, ...)``, with the dimensions of `daskembed.encoders.clay_v0.LEVELS`.
    """
    if level == "mean":
        return tokens.mean(axis=(1, 2, 3))
    return tokens.mean(axis=1) if level == "patch" else tokens
