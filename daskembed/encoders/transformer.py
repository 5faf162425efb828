"""Pre-norm transformer blocks for inference: products in the compute type, residual and norms in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The weights of one block; linear weights in the compute type, LayerNorm weights in float32."""

    attention_norm: tuple[Tensor, Tensor]
    qkv: Tensor
    out: tuple[Tensor, Tensor | None]
    mlp_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class Transformer:
    """A stack of blocks and a final LayerNorm.

    Parameters
    ----------
    state
        Weights by name, below ``transformer.`` (``layers.0.0.norm.weight`` and so on), in float32.
    heads
        Attention heads.
    out, down
        Names of the output projection and of the second linear layer of the MLP, which differ between models.
    device, dtype
        Where the blocks run and the type of their products.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        heads: int,
        out: str,
        down: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        def linear(name: str) -> Tensor:
            return state[name].to(device, dtype)

        def norm(name: str) -> tuple[Tensor, Tensor]:
            return state[f"{name}.weight"].to(device), state[f"{name}.bias"].to(device)

        self.heads, self.dtype = heads, dtype
        self.norm = norm("norm")
        depth = sum(name.endswith("to_qkv.weight") for name in state)
        self.blocks = [
            Block(
                attention_norm=norm(f"{a}.norm"),
                qkv=linear(f"{a}.to_qkv.weight"),
                out=(linear(f"{a}.{out}.weight"), linear(f"{a}.{out}.bias") if f"{a}.{out}.bias" in state else None),
                mlp_norm=norm(f"{m}.net.0"),
                up=(linear(f"{m}.net.1.weight"), linear(f"{m}.net.1.bias")),
                down=(linear(f"{m}.{down}.weight"), linear(f"{m}.{down}.bias")),
            )
            for a, m in ((f"layers.{i}.0", f"layers.{i}.1") for i in range(depth))
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks over `x`, (chip, token, dim) in float32, which is overwritten; the result is normalised."""
        for block in self.blocks:
            x += self._attention(self._normed(x, block.attention_norm), block)
            hidden = F.gelu(F.linear(self._normed(x, block.mlp_norm), *block.up))
            x += F.linear(hidden, *block.down)
        return F.layer_norm(x, x.shape[-1:], *self.norm)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm).to(self.dtype)

    def _attention(self, x: Tensor, block: Block) -> Tensor:
        chips, tokens, _ = x.shape
        q, k, v = F.linear(x, block.qkv).view(chips, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        return F.linear(heads.transpose(1, 2).reshape(chips, tokens, -1), *block.out)
