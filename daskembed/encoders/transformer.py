"""Pre-norm transformer blocks for inference: products in the compute type, residual and norms in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)


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
        # On a CPU, attention is a power of 2 of scores in bfloat16; see _attend_by_powers.
        self._by_powers = device.type == "cpu" and dtype == torch.bfloat16
        self._compiled: Callable[[Tensor, Block], Tensor] | None = None
        # A GPU is fed by many short kernels; a CPU is not limited by them, and may have no compiler.
        self._step = self._run_compiled if device.type == "cuda" else self._run
        self.norm = norm("norm")
        depth = sum(name.endswith("to_qkv.weight") for name in state)
        self.blocks = [
            Block(
                attention_norm=norm(f"{a}.norm"),
                qkv=self._fold(state[f"{a}.to_qkv.weight"]).to(device, dtype),
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
            x = self._step(x, block)
        return F.layer_norm(x, x.shape[-1:], *self.norm)

    def _run(self, x: Tensor, block: Block) -> Tensor:
        x += self._attention(self._normed(x, block.attention_norm), block)
        hidden = F.gelu(F.linear(self._normed(x, block.mlp_norm), *block.up))
        x += F.linear(hidden, *block.down)
        return x

    def _run_compiled(self, x: Tensor, block: Block) -> Tensor:
        """A block with its norms, GELU and residual fused; all blocks and batch sizes share one compilation."""
        if self._compiled is None:
            self._compiled = torch.compile(self._run)
        # Else the size that comes first has kernels of its own, which round otherwise than those of all others.
        torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            return self._compiled(x, block)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            # Compiling comes before running, so x is as it was.
            log.warning("blocks run uncompiled: torch.compile failed: %s", str(error).partition("\n")[0])
            self._step = self._run
            return self._run(x, block)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm).to(self.dtype)

    def _fold(self, qkv: Tensor) -> Tensor:
        """Where attention goes by powers of 2, queries bring the scale and the change of base with them."""
        if not self._by_powers:
            return qkv
        inner = len(qkv) // 3
        scale = math.log2(math.e) / math.sqrt(inner // self.heads)
        return torch.cat([qkv[:inner] * scale, qkv[inner:]])

    def _attention(self, x: Tensor, block: Block) -> Tensor:
        chips, tokens, _ = x.shape
        q, k, v = F.linear(x, block.qkv).view(chips, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self._by_powers:
            heads = x.new_empty(chips, tokens, self.heads, q.shape[-1])
            for chip in range(chips):
                for head in range(self.heads):
                    _attend_by_powers(q[chip, head], k[chip, head], v[chip, head], heads[chip, :, head])
        else:
            heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return F.linear(heads.reshape(chips, tokens, -1), *block.out)


def _attend_by_powers(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Attention of one head on a CPU, each of the arguments (token, head dim) in bfloat16.

    Scores are rounded to bfloat16, as mixed precision does wherever attention is written out, and become weights by
    `exp2` in place and without a maximum subtracted: on AVX-512 that is several times faster than a softmax. The
    sums of the weights tell whether that was safe.
    """
    weights = q @ k.T
    torch.exp2(weights, out=weights)
    # Summed in bfloat16 (whose sums run in float32 and are rounded once) by halves, where they are even: to ask for a
    # float32 sum would copy all weights to float32 first.
    halves = weights.view(len(q), 2 - len(k) % 2, -1).sum(dim=-1)
    total = halves.sum(dim=-1, keepdim=True, dtype=torch.float32)
    low, high = total.aminmax()
    if low > 2.0**-64 and high < 2.0**64:
        torch.div(weights @ v, total, out=out)
    else:
        # Scores beyond +-64 leave the range in which a power of 2 keeps its precision.
        out[...] = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=math.log(2))[0]


def sincos(index: NDArray[np.float64], pairs: int) -> NDArray[np.float64]:
    """``[sin(index * omega), cos(index * omega)]`` with omega_k = 10000^-(k/(n-1)), n = `pairs`.

    The divisor is n - 1, not n as in Vaswani et al. 2017: the reference's weights were trained with it.
    """
    omega = 10000.0 ** -(np.arange(pairs) / (pairs - 1))
    angle = np.multiply.outer(index, omega)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
