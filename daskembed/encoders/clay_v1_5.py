"""Clay v1.5: windows of any sensor's bands to a class token and tokens of 8 x 8 pixels.

The numbers are those of the public reference implementation, github.com/Clay-foundation/model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from daskembed.encoders.description import Description, Place
from daskembed.errors import CheckpointError, InputError
from daskembed.geo.chips import CHIP
from daskembed.sensors.table import get_sensor

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from daskembed.encoders.clay_v1_5_model import ClayV15

TITLE = "Clay v1.5"
CHECKPOINT = "hf://made-with-clay/Clay@main/v1.5/clay-v1.5.ckpt"
SIZES = {
    "tiny": (192, 6, 4, 48, 2),
    "small": (384, 6, 6, 64, 2),
    "base": (768, 12, 12, 64, 4),
    "large": (1024, 24, 16, 64, 4),
}
"""Size -> (dim, depth, heads, head dim, MLP ratio)."""
PATCH, WINDOW, SENSOR = 8, 256, "sentinel-2-l2a"
WAVE, WAVE_HIDDEN = 128, 2048
"""Dimensions of the transformer that makes a band's kernel of its wavelength."""

PREFIX = "model.encoder."
IGNORED = ("model.decoder.", "model.teacher.", "model.proj.", "model.mrl.", "model.mrl_loss.")
"""Prefixes of a checkpoint's keys that belong to the training and are not read."""
OTHER_MODELS = {
    "latlon_embedding.weight": "Clay v0",
    "patch_embedding.rgb.proj.weight": "Clay v0",
    # The encoder of v1.0 has the names and shapes of v1.5's size base; its teacher was smaller, and no v1.5 of that
    # size was released.
    "model.teacher.cls_token (1, 1, 768)": "Clay v1.0",
}
"""Keys, with a shape where only that tells, that only another model's file has, and which model that is."""


def parameter_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names (without the prefix) and shapes of a size's parameters, in the checkpoint's order."""
    dim, depth, heads, head_dim, ratio = SIZES[size]
    inner, hidden = heads * head_dim, dim * ratio
    generator = "patch_embedding.weight_generator"
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        f"{generator}.weight_tokens": (WAVE, WAVE),
        f"{generator}.bias_token": (1, WAVE),
        f"{generator}.encoder.layers.0.self_attn.in_proj_weight": (3 * WAVE, WAVE),
        f"{generator}.encoder.layers.0.self_attn.in_proj_bias": (3 * WAVE,),
    }

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    add(f"{generator}.encoder.layers.0.self_attn.out_proj", WAVE, WAVE)
    add(f"{generator}.encoder.layers.0.linear1", WAVE_HIDDEN, WAVE)
    add(f"{generator}.encoder.layers.0.linear2", WAVE, WAVE_HIDDEN)
    add(f"{generator}.encoder.layers.0.norm1", WAVE)
    add(f"{generator}.encoder.layers.0.norm2", WAVE)
    add(f"{generator}.fc_weight", PATCH**2 * dim, WAVE)
    add(f"{generator}.fc_bias", dim, WAVE)
    add("patch_embedding.fclayer.l1", WAVE, WAVE)
    add("patch_embedding.fclayer.l2", WAVE, WAVE)
    add("transformer.norm", dim)
    for layer in (f"transformer.layers.{i}" for i in range(depth)):
        add(f"{layer}.0.norm", dim)
        add(f"{layer}.0.to_qkv", 3 * inner, dim, bias=False)
        add(f"{layer}.0.to_out", dim, inner, bias=False)
        add(f"{layer}.1.net.0", dim)
        add(f"{layer}.1.net.1", hidden, dim)
        add(f"{layer}.1.net.3", dim, hidden)
    return shapes


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The size whose dim and depth the parameters have.

    Raises
    ------
    CheckpointError
        If no size has them.
    """
    dim = (*shapes.get("transformer.norm.weight", ()), 0)[0]
    depth = sum(name.endswith(".to_qkv.weight") for name in shapes)
    for size, (known_dim, known_depth, *_) in SIZES.items():
        if (dim, depth) == (known_dim, known_depth):
            return size
    known = ", ".join(f"{size} ({d}, {n})" for size, (d, n, *_) in SIZES.items())
    raise CheckpointError(f"has dim {dim} and {depth} layers, which is no size of {TITLE}; expected one of {known}")


def describe(size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
    """What the encoder of a size needs and gives.

    Parameters
    ----------
    size
        Key of `SIZES`.
    sensor
        As `daskembed.sensors.table.get_sensor` takes it; None for Sentinel-2 L2A.
    window
        Pixels along each side of the square that is embedded at once; None for those of the training, 256.

    Raises
    ------
    InputError
        If there is no such sensor, or a chip cannot be cut into such windows.
    """
    seen = get_sensor(sensor or SENSOR)
    window = _check_window(WINDOW if window is None else window)
    dim, side, windows = SIZES[size][0], window // PATCH, (CHIP // window) ** 2
    fills = [10 ** (band.mean / 10) if seen.decibels else band.mean for band in seen.bands]
    return Description(
        title=TITLE,
        sensor=seen,
        resolution=None,
        window=window,
        levels={
            "cls": {"window": windows, "embedding": dim},
            "mean": {"window": windows, "embedding": dim},
            "patch": {"window": windows, "row": side, "col": side, "embedding": dim},
        },
        fill_values=tuple(fills),
        flop=windows * _window_flop(size, side**2, len(seen.bands)),
    )


def _check_window(window: int) -> int:
    choices = [side for side in range(PATCH, CHIP + 1, PATCH) if CHIP % side == 0]
    if window not in choices:
        listed = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
        raise InputError(
            f"`window={window}`: a chip of {CHIP} pixels is cut into windows, and these into patches of {PATCH}, "
            f"without remainder: expected {listed}"
        )
    return window


def _window_flop(size: str, patches: int, bands: int) -> int:
    """Floating-point operations of one window: two for each weight that a token meets, and those of attention."""
    dim, depth, heads, head_dim, ratio = SIZES[size]
    inner, tokens = heads * head_dim, patches + 1
    layer = tokens * (4 * dim * inner + 2 * dim * dim * ratio + 2 * tokens * inner)
    return 2 * (depth * layer + patches * PATCH**2 * bands * dim)


def metadata(place: Place) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the model is told of place and time, computed in float64.

    Returns
    -------
    when_where : array of shape ``(chip, window, 8)``
        Sine and cosine of the ISO week of 52, of the hour of 24, of the latitude and of the longitude.
    resolution : array of shape ``(chip,)``
        Metres of a pixel.
    """
    days = place.date.astype("datetime64[D]")
    # The model was trained with whole hours.
    hour = (place.date.astype("datetime64[h]") - days).astype(np.int64)
    when = 2 * np.pi * np.stack([_iso_week(days) / 52, hour / 24], axis=-1)
    where = np.radians(np.stack([place.lat, place.lon], axis=-1))
    angles = np.concatenate([np.broadcast_to(when[:, None], where.shape), where], axis=-1)
    pairs = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(*angles.shape[:2], 8)
    return pairs.astype(np.float32), place.resolution.astype(np.float32)


def _iso_week(days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Number of a day's week in the year that the week's Thursday is in."""
    number = days.astype("datetime64[D]").astype(np.int64)
    # 1970-01-01, day 0, was a Thursday.
    thursday = (number - (number + 3) % 7 + 3).astype("datetime64[D]")
    week: NDArray[np.int64] = (thursday - thursday.astype("datetime64[Y]")).astype(np.int64) // 7 + 1
    return week


def build(
    state: Mapping[str, Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
) -> ClayV15:
    """The encoder on a device; see `daskembed.encoders.clay_v1_5_model`."""
    from daskembed.encoders.clay_v1_5_model import ClayV15

    _, _, heads, *_ = SIZES[size_of({name: tuple(tensor.shape) for name, tensor in state.items()})]
    return ClayV15(state, description, patch=PATCH, heads=heads, device=device, dtype=dtype)
