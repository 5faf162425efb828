"""The encoder alone: chips a second and efficiency, against matrix products in the same run."""

from __future__ import annotations

import statistics

import numpy as np
import torch

from benchmarks.common import CORES, GFLOP_A_CHIP, Row, median_seconds, product_rate
from daskembed.device import CPU_BATCH, keep_freed_memory
from daskembed.encoders import clay_v0
from daskembed.encoders.checkpoint import untrained_state
from daskembed.testing import landscape


def run() -> list[Row]:
    """`small` on the CPU in both precisions; products and encoder alternate, five rounds."""
    torch.set_num_threads(CORES)
    keep_freed_memory()
    state = untrained_state(clay_v0, "small", 0)
    pixels = torch.from_numpy(np.stack([landscape(512, 512, seed=seed) for seed in range(CPU_BATCH)]))
    latlon = torch.zeros(CPU_BATCH, 2)
    rows = []
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = clay_v0.build(state, device=torch.device("cpu"), dtype=dtype)
        rates, chips = [], []

        @torch.inference_mode()
        def encode(model: clay_v0.ClayV0 = model) -> None:
            model(pixels, latlon, torch.zeros(CPU_BATCH, 3), "mean")

        for _ in range(5):
            rates.append(product_rate(dtype))
            chips.append(CPU_BATCH / median_seconds(encode, repeats=3))
        efficiency = [c * GFLOP_A_CHIP / r for c, r in zip(chips, rates, strict=True)]
        rows.append(
            {
                "precision": name,
                "threads": CORES,
                "product GFLOP/s": statistics.median(rates),
                "chips/s": statistics.median(chips),
                "s/chip": 1 / statistics.median(chips),
                "efficiency": statistics.median(efficiency),
                "lowest": min(efficiency),
                "highest": max(efficiency),
            }
        )
    return rows
