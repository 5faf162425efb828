"""An encoder for tests of faults: Clay v0 that counts what it encodes, and dies of marked chips.

Workers import it by the name that ``DASK_DASKEMBED__ENCODER`` gives, with this folder on their PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
import threading
import time as clock
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from daskembed.encoders import clay_v0
from daskembed.encoders.clay_v0 import (
    CHECKPOINT,
    IGNORED,
    OTHER_MODELS,
    PREFIX,
    SIZES,
    describe,
    metadata,
    parameter_shapes,
)
from daskembed.encoders.description import Description

__all__ = [
    "CHECKPOINT",
    "IGNORED",
    "OTHER_MODELS",
    "PREFIX",
    "SIZES",
    "build",
    "describe",
    "metadata",
    "parameter_shapes",
]

DEADLY = {64661.0: signal.SIGSEGV, 64662.0: signal.SIGKILL}
"""Value of a chip's first pixel -> signal that its encoding ends the process with."""

HANGING = 64663.0
"""Value of the first pixel of a chip whose encoding does not end."""


class _Counting:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.first_sleep = float(os.environ.get("COUNTING_FIRST_SLEEP", "0"))

    def __call__(self, pixels: torch.Tensor, *metadata: torch.Tensor, level: str) -> torch.Tensor:
        clock.sleep(float(os.environ.get("COUNTING_SLEEP", "0")) + self.first_sleep)
        self.first_sleep = 0
        if float(pixels[0, 0, 0, 0]) == HANGING:
            clock.sleep(3600)
        if deadly := DEADLY.get(float(pixels[0, 0, 0, 0])):
            os.kill(os.getpid(), deadly)
        vectors: torch.Tensor = self.model(pixels, *metadata, level=level)
        if log := os.environ.get("COUNTING_LOG"):
            # One short write in append mode: lines of several processes do not mix.
            with Path(log).open("ab", buffering=0) as file:
                file.write(b"x" * len(pixels))
        return vectors


def build(
    state: Mapping[str, torch.Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model, and a watch that ends the process when its arrays hold more memory than COUNTING_LIMIT_MB."""
    model = _Counting(clay_v0.build(state, description, device=device, dtype=dtype))
    if limit := os.environ.get("COUNTING_LIMIT_MB"):
        tracemalloc.start()
        threading.Thread(target=_watch, args=(int(limit) * 2**20,), daemon=True).start()
    return model


def _watch(limit: int) -> None:
    while tracemalloc.get_traced_memory()[0] < limit:
        clock.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)
