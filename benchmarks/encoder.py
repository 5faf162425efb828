"""The encoders alone: chips a second and efficiency, against matrix products in the same run."""

from __future__ import annotations

import statistics

import torch

from benchmarks.common import CORES, Row, build, describe, inputs, median_seconds, product_rate
from daskembed.compute.device import CPU_BATCH
from daskembed.hardware import keep_freed_memory

CASES = (("clay-v0", "small", "bf16"), ("clay-v0", "small", "fp32"), ("clay-v1.5", "large", "bf16"))


def run(*, smallest: bool = False) -> list[Row]:
    """The released sizes on the CPU; products and encoder alternate, five rounds."""
    torch.set_num_threads(CORES)
    keep_freed_memory()
    cases = [(name, "tiny", precision) for name, _, precision in CASES] if smallest else CASES
    return [_measure(*case, rounds=1 if smallest else 5) for case in cases]


def _measure(name: str, size: str, precision: str, *, rounds: int) -> Row:
    encoder = describe(name, size, precision=precision)
    model, given = build(encoder), inputs(encoder, CPU_BATCH)
    level = next(iter(encoder.description.levels))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rates, chips = [], []

    @torch.inference_mode()
    def encode() -> None:
        model(*given, level=level)

    for _ in range(rounds):
        rates.append(product_rate(dtype, 256 if size == "tiny" else 4096))
        chips.append(CPU_BATCH / median_seconds(encode, repeats=min(3, rounds)))
    efficiency = [c * encoder.description.flop / 1e9 / r for c, r in zip(chips, rates, strict=True)]
    return {
        "encoder": f"{name} {size}",
        "precision": precision,
        "threads": CORES,
        "product GFLOP/s": statistics.median(rates),
        "chips/s": statistics.median(chips),
        "s/chip": 1 / statistics.median(chips),
        "efficiency": statistics.median(efficiency),
        "lowest": min(efficiency),
        "highest": max(efficiency),
    }
