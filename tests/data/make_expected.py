"""Write expected.npz: embeddings of synthetic chips by tests/reference.py, in float64 and rounded to float32.

Two chips for tiny, the first of them for small.

python tests/data/make_expected.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import reference  # noqa: E402

from daskembed.encoders.loading import get_encoder_module  # noqa: E402
from daskembed.encoders.untrained import untrained_state  # noqa: E402
from daskembed.testing import landscape  # noqa: E402

# What is kept of each level, to keep the file small: rows and columns of the 16 x 16 patches.
TINY_PATCHES = np.array([0, 5, 10, 15])
TINY_GROUPS = np.array([[0, 1], [11, 6]])
SMALL_PATCHES = np.array([[0, 0], [3, 14], [15, 7]])


def main() -> None:
    tokens: dict[str, list[np.ndarray]] = {"tiny": [], "small": []}
    for size, found in tokens.items():
        state = untrained_state(get_encoder_module("clay-v0"), size, 0)
        for seed, lat, lon, day in reference.SCENES[: 1 if size == "small" else None]:
            pixels = torch.from_numpy(landscape(512, 512, seed=seed))
            latlon, time = reference.metadata(lat, lon, day)
            found.append(reference.embed(state, pixels, latlon, time, heads=reference.HEADS[size]).numpy())
    tiny, small = np.stack(tokens["tiny"]), np.stack(tokens["small"])
    arrays = {
        "tiny_mean": tiny.mean((1, 2, 3)),
        "tiny_patch": tiny.mean(1)[:, TINY_PATCHES][:, :, TINY_PATCHES],
        "tiny_group": tiny[:, :, TINY_GROUPS[:, 0], TINY_GROUPS[:, 1]],
        "small_mean": small.mean((1, 2, 3)),
        "small_patch": small.mean(1)[:, SMALL_PATCHES[:, 0], SMALL_PATCHES[:, 1]],
    }
    places = {"tiny_patches": TINY_PATCHES, "tiny_groups": TINY_GROUPS, "small_patches": SMALL_PATCHES}
    kept: dict[str, Any] = {name: values.astype(np.float32) for name, values in arrays.items()} | places
    np.savez_compressed(HERE / "expected.npz", **kept)


if __name__ == "__main__":
    main()
