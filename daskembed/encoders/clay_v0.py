"""Clay v0: 13-band chips of 512 x 512 pixels to 6 x 16 x 16 tokens.

The numbers (bands, statistics, groups, sizes, encodings) are those of the public reference implementation,
github.com/Clay-foundation/model at revision 472c92f.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from daskembed.encoders.description import Description, Place
from daskembed.errors import CheckpointError, InputError
from daskembed.geo.chips import CHIP
from daskembed.sensors.bands import CLAY_V0

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from daskembed.encoders.clay_v0_model import ClayV0

GROUPS = {"rgb": (2, 1, 0), "rededge": (3, 4, 5, 7), "nir": (6,), "swir": (8, 9), "sar": (10, 11), "dem": (12,)}
"""Band group -> the indices of its bands; the order is the group axis of level ``group``."""
SIZES = {
    "tiny": (256, 4, 4, 2),
    "small": (768, 12, 12, 4),
    "medium": (1024, 24, 16, 4),
    "large": (1280, 32, 16, 4),
}
"""Size -> (dim, depth, heads, MLP ratio)."""
HEAD_DIM, PATCH, SIDE = 64, 32, 16
LEVELS: dict[str, tuple[str, ...]] = {
    "mean": ("embedding",),
    "patch": ("row", "col", "embedding"),
    "group": ("group", "row", "col", "embedding"),
}
"""The dimensions of one chip's embedding at each level, the chip's own left out."""

IGNORED = ("model.decoder.",)
"""Prefixes of a checkpoint's keys that belong to the training and are not read."""
TITLE = "Clay v0"
CHECKPOINT = "hf://made-with-clay/Clay@2033cf5/v0/Clay_v0.1_epoch-24_val-loss-0.46.ckpt"
PREFIX = "model.encoder."
OTHER_MODELS = {"cls_token": "Clay v1 or v1.5", "patch_embedding.weight_generator.weight_tokens": "Clay v1 or v1.5"}
"""Keys that only another model's encoder has, and which model that is."""


def parameter_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names (without the prefix) and shapes of a size's parameters, in the checkpoint's order."""
    dim, depth, heads, ratio = SIZES[size]
    inner, hidden = heads * HEAD_DIM, dim * ratio
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    add("latlon_embedding", dim, 2)
    add("time_embedding", dim, 3)
    for group, bands in GROUPS.items():
        add(f"patch_embedding.{group}.proj", dim, len(bands), PATCH, PATCH)
        add(f"patch_embedding.{group}.norm", dim)
    add("transformer.norm", dim)
    for layer in (f"transformer.layers.{i}" for i in range(depth)):
        add(f"{layer}.0.norm", dim)
        add(f"{layer}.0.to_qkv", 3 * inner, dim, bias=False)
        add(f"{layer}.0.to_out.0", dim, inner)
        add(f"{layer}.1.net.0", dim)
        add(f"{layer}.1.net.1", hidden, dim)
        add(f"{layer}.1.net.4", dim, hidden)
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
    raise CheckpointError(f"has dim {dim} and {depth} layers, which is no size of Clay v0; expected one of {known}")


def describe(size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
    """What the encoder needs and gives.

    Raises
    ------
    InputError
        For any sensor but Clay's own 13 bands, and any window but the chip.
    """
    if sensor is not None:
        raise InputError(
            f"sensor {sensor!r}: {TITLE} reads the bands {' '.join(CLAY_V0.names)} and no other sensor's; "
            "`encoder='clay-v1.5'` takes images of one sensor"
        )
    if window not in (None, CHIP):
        raise InputError(f"window {window}: {TITLE} sees a whole chip of {CHIP} pixels at once")
    dim = SIZES[size][0]
    sides = {"group": len(GROUPS), "row": SIDE, "col": SIDE, "embedding": dim}
    return Description(
        title=TITLE,
        sensor=CLAY_V0,
        resolution=CLAY_V0.gsd,
        window=CHIP,
        levels={level: {name: sides[name] for name in names} for level, names in LEVELS.items()},
        fill_values=tuple(band.mean for band in CLAY_V0.bands),
        flop=_flop(size),
        labels={"group": tuple(GROUPS)},
    )


def _flop(size: str) -> int:
    """Two for each weight that a token meets, and those of attention."""
    dim, depth, heads, ratio = SIZES[size]
    inner, tokens = heads * HEAD_DIM, len(GROUPS) * SIDE**2 + 2
    layer = tokens * (4 * dim * inner + 2 * dim * dim * ratio + 2 * tokens * inner)
    return 2 * (depth * layer + SIDE**2 * PATCH**2 * len(CLAY_V0.bands) * dim)


def metadata(place: Place) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the model is told of place and time, computed in float64.

    Returns
    -------
    latlon : array of shape ``(chip, 2)``
        ``sin(lat)`` and the wrapped angle of the longitude.
    time : array of shape ``(chip, 3)``
        Wrapped angles of year (period 18 from 2012), month and day.
    """

    def wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        wrapped: NDArray[np.float64] = np.arctan2(np.cos(angle), np.sin(angle))
        return wrapped

    lat, lon = place.lat[:, 0], place.lon[:, 0]
    days = place.date.astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    year = months.astype("datetime64[Y]").astype(np.int64) + 1970 - 2012
    month = months.astype(np.int64) % 12
    day = (days - months).astype(np.int64)
    latlon = np.stack([np.sin(np.radians(lat)), wrap(np.radians(lon))], axis=-1)
    turns = np.stack([year / 18, month / 11, day / 30], axis=-1)
    return latlon.astype(np.float32), wrap(2 * np.pi * turns).astype(np.float32)


def build(state: Mapping[str, Tensor], description: Description, *, device: torch.device, dtype: torch.dtype) -> ClayV0:
    """The encoder on a device; see `daskembed.encoders.clay_v0_model`."""
    from daskembed.encoders.clay_v0_model import ClayV0

    _, _, heads, _ = SIZES[size_of({name: tuple(tensor.shape) for name, tensor in state.items()})]
    return ClayV0(state, description.sensor.bands, GROUPS, heads=heads, device=device, dtype=dtype)
