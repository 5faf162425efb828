"""What users need to test their own work on this package: seeded checkpoints, synthetic chips, a strict scheduler."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

from daskembed.testing.faulty_store import FaultyProxy
from daskembed.testing.images import HeightImage, OpticalImage, RadarImage
from daskembed.testing.landscape import COVERS, land_cover, landscape, write_chips
from daskembed.testing.published import write_published
from daskembed.testing.scenes import write_scenes

__all__ = [
    "COVERS",
    "FaultyProxy",
    "HeightImage",
    "OpticalImage",
    "RadarImage",
    "land_cover",
    "landscape",
    "refuse_to_compute",
    "write_checkpoint",
    "write_chips",
    "write_published",
    "write_scenes",
]


def write_checkpoint(path: Path, *, encoder: str = "clay-v0", size: str = "tiny", seed: int = 0) -> Path:
    """Write the weights of ``untrained:{size}:{seed}`` as a Lightning checkpoint in the released file's layout.

    Parameters
    ----------
    path
        Of the file; ``.safetensors`` gives that format, with the same names.
    encoder
        Key of `daskembed.encoders.loading.ENCODERS`.
    size, seed
        As in ``untrained:{size}:{seed}``.
    """
    import safetensors.torch
    import torch

    from daskembed.encoders.loading import get_encoder_module
    from daskembed.encoders.untrained import untrained_state

    module = get_encoder_module(encoder)
    state = {module.PREFIX + name: tensor for name, tensor in untrained_state(module, size, seed).items()}
    # A released file carries its decoder too.
    state["model.decoder.mask_patch"] = torch.zeros(512)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
        return path
    lightning = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.1.4",
        "state_dict": OrderedDict(state),
        "loops": {},
        "hparams_name": "kwargs",
        "hyper_parameters": {"model_size": size},
    }
    torch.save(lightning, path)
    return path


def refuse_to_compute(graph: Any, keys: Any, **options: Any) -> NoReturn:
    """A Dask scheduler that raises: under ``dask.config.set(scheduler=refuse_to_compute)`` nothing may compute."""
    raise AssertionError(f"something lazy was computed: {keys}")
