"""Clay v0 with its weights on a device: chips to tokens, tokens to a level."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from daskembed.encoders.clay_v0 import GROUPS, PATCH, SIDE, SIZES, STATISTICS, encodings, size_of
from daskembed.encoders.levels import reduce_tokens
from daskembed.encoders.transformer import Transformer


class ClayV0:
    """The encoder on a device.

    Parameters
    ----------
    state
        Parameters by name, without the prefix, in float32.
    device
        Where it runs.
    dtype
        Type of the products: float32, bfloat16 (or float64, for reference values).
    """

    def __init__(self, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        dim, _, heads, _ = SIZES[size_of({name: tuple(tensor.shape) for name, tensor in state.items()})]
        # Everything but the products runs in float32, or wider where the products do.
        wide = torch.promote_types(dtype, torch.float32)
        state = {name: tensor.to(device, wide) for name, tensor in state.items()}
        statistics = torch.tensor(list(STATISTICS.values()), device=device, dtype=wide)
        self.mean, self.std = statistics[:, 0, None, None], statistics[:, 1, None, None]
        self.dtype, self.wide = dtype, wide
        self.projections = [
            (
                list(bands),
                state[f"patch_embedding.{group}.proj.weight"].reshape(dim, -1).to(dtype),
                state[f"patch_embedding.{group}.proj.bias"].to(dtype),
                (state[f"patch_embedding.{group}.norm.weight"], state[f"patch_embedding.{group}.norm.bias"]),
            )
            for group, bands in GROUPS.items()
        ]
        self.encodings = torch.from_numpy(encodings(dim)).to(device, wide)
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
            A key of `daskembed.encoders.levels.LEVELS`.

        Returns
        -------
        float32 tensor of shape ``(chip, *Description.shape(level))``.
        """
        latlon, time = metadata
        chips = len(pixels)
        x = self._tokens(pixels)
        extra = torch.stack([F.linear(latlon.to(self.wide), *self.latlon), F.linear(time.to(self.wide), *self.time)], 1)
        x = self.transformer(torch.cat([x, extra], dim=1))
        tokens = x[:, :-2].reshape(chips, len(GROUPS), SIDE, SIDE, -1)
        embedding: Tensor = reduce_tokens(tokens, level)
        return embedding

    def _tokens(self, pixels: Tensor) -> Tensor:
        chips = len(pixels)
        normal = ((pixels.to(self.wide) - self.mean) / self.std).to(self.dtype)
        # A convolution of stride 32 is a product with the unfolded patches: (chip, row, col, band, y, x).
        patches = normal.view(chips, -1, SIDE, PATCH, SIDE, PATCH).permute(0, 2, 4, 1, 3, 5)
        groups = []
        for (bands, weight, bias, norm), encoding in zip(self.projections, self.encodings, strict=True):
            flat = patches[:, :, :, bands].reshape(chips, SIDE * SIDE, -1)
            projected = F.linear(flat, weight, bias).to(self.wide)
            groups.append(F.layer_norm(projected, projected.shape[-1:], *norm) + encoding)
        return torch.cat(groups, dim=1)
