"""Clay v1.5: windows of any sensor's bands to a class token and tokens of 8 x 8 pixels.

The numbers are those of the public reference implementation, github.com/Clay-foundation/model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daskembed.encoders.clay_v0 import sincos
from daskembed.encoders.description import CHIP, Description, Place
from daskembed.encoders.sensors import get_sensor
from daskembed.encoders.transformer import Transformer
from daskembed.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
WAVE, WAVE_HEADS, WAVE_HIDDEN = 128, 4, 2048
"""Dimensions of the transformer that makes a band's kernel of its wavelength."""
LOWEST_POWER = 1e-10
"""What linear power is raised to before its decibels are taken: -100 dB."""

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
        As `daskembed.encoders.sensors.get_sensor` takes it; None for Sentinel-2 L2A.
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
            f"--window {window}: a chip of {CHIP} pixels is cut into windows, and these into patches of {PATCH}, "
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


class ClayV15:
    """The encoder of one sensor's windows on a device.

    Parameters
    ----------
    state
        Parameters by name, without the prefix, in float32.
    description
        Of `describe`, for the sensor and the window.
    device
        Where it runs.
    dtype
        Type of the products: float32, bfloat16 (or float64, for reference values).
    """

    def __init__(
        self, state: Mapping[str, Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        dim, _, heads, *_ = SIZES[size_of({name: tuple(tensor.shape) for name, tensor in state.items()})]
        # Everything but the products runs in float32, or wider where the products do.
        wide = torch.promote_types(dtype, torch.float32)
        self.dtype, self.wide, self.description = dtype, wide, description
        bands = description.sensor.bands
        statistics = torch.tensor([(band.mean, band.std) for band in bands], device=device, dtype=wide)
        self.mean, self.std = statistics[:, 0, None, None], statistics[:, 1, None, None]
        kernels, bias = make_kernels({name: tensor.to(wide) for name, tensor in state.items()}, description)
        self.projection = kernels.to(device, dtype), bias.to(device, dtype)
        self.cls_token = state["cls_token"].to(device, wide)
        # Of the gsd of 1 m; in float32, as the reference has it.
        pairs = (dim - 8) // 4
        exponent = 2 * (torch.arange(pairs) / (pairs - 1)) / (dim - 8)
        self.omega = (1 / 10000**exponent).to(device)
        self.steps = torch.arange(description.window // PATCH, dtype=torch.float32, device=device)
        blocks = {k.removeprefix("transformer."): v.to(wide) for k, v in state.items() if k.startswith("transformer.")}
        self.transformer = Transformer(blocks, heads=heads, out="to_out", down="net.3", device=device, dtype=dtype)

    def __call__(self, pixels: Tensor, when_where: Tensor, resolution: Tensor, level: str) -> Tensor:
        """Embed chips.

        Parameters
        ----------
        pixels
            Raw pixels of any real type, shape ``(chip, band, 512, 512)``.
        when_where, resolution
            `metadata` of the chips.
        level
            One of the description's.

        Returns
        -------
        float32 tensor of shape ``(chip, *description.shape(level))``.
        """
        shape = self.description.shape(level)
        x = self._tokens(pixels, when_where, resolution)
        # All windows at once, on a CPU too: base in bfloat16 took 0.33 s a window by fours and 0.34 s one by one.
        return self._reduce(self.transformer(x), level).reshape(len(pixels), *shape)

    def _reduce(self, tokens: Tensor, level: str) -> Tensor:
        if level == "cls":
            return tokens[:, 0]
        return tokens[:, 1:].mean(dim=1) if level == "mean" else tokens[:, 1:]

    def _tokens(self, pixels: Tensor, when_where: Tensor, resolution: Tensor) -> Tensor:
        """Class token and encoded patches of each window, ``(chip * window, token, dim)``."""
        chips, window = len(pixels), self.description.window
        side, across = window // PATCH, CHIP // window
        values = pixels.to(self.wide)
        if self.description.sensor.decibels:
            values = 10 * torch.log10(values.clamp(min=LOWEST_POWER))
        normal = ((values - self.mean) / self.std).to(self.dtype)
        # A convolution of stride 8 is a product with the unfolded patches:
        # (chip, window row, window col, row, col, band, y, x).
        patches = normal.view(chips, -1, across, side, PATCH, across, side, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
        projected = F.linear(patches.reshape(chips * across**2, side**2, -1), *self.projection)
        x = torch.cat([self.cls_token.expand(len(projected), 1, -1), projected.to(self.wide)], dim=1)
        grid = x[:, 1:].view(chips, across**2, side, side, -1)
        position = self._position(resolution)
        half = position.shape[-1]
        grid[..., :half] += position[:, None, None, :]
        grid[..., half : 2 * half] += position[:, None, :, None]
        grid[..., 2 * half :] += when_where.to(self.wide)[:, :, None, None]
        return x

    def _position(self, resolution: Tensor) -> Tensor:
        """Encoding of a column's (or row's) number, ``(chip, number, half of dim - 8)``."""
        angle = self.steps[:, None] * (self.omega * resolution.to(torch.float32)[:, None])[:, None]
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.wide)


def make_kernels(state: Mapping[str, Tensor], description: Description) -> tuple[Tensor, Tensor]:
    """Kernels ``(dim, band * 8 * 8)`` and bias ``(dim,)`` of the patch embedding, generated from the wavelengths."""
    generator, layer = "patch_embedding.weight_generator", "patch_embedding.weight_generator.encoder.layers.0"

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    tokens = state[f"{generator}.weight_tokens"]
    wavelengths = np.array([band.wavelength for band in description.sensor.bands], dtype=np.float64)
    waves = torch.from_numpy(sincos(wavelengths, WAVE // 2)).to(tokens)
    hidden = F.gelu(linear(waves, "patch_embedding.fclayer.l1"))
    waves = waves + F.gelu(linear(hidden, "patch_embedding.fclayer.l2"))

    x = torch.cat([tokens, waves, state[f"{generator}.bias_token"]])
    qkv = F.linear(x, state[f"{layer}.self_attn.in_proj_weight"], state[f"{layer}.self_attn.in_proj_bias"])
    q, k, v = qkv.view(len(x), 3, WAVE_HEADS, -1).permute(1, 2, 0, 3)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(x), -1)
    out = norm(x + linear(mixed, f"{layer}.self_attn.out_proj"), f"{layer}.norm1")
    out = norm(out + linear(F.gelu(linear(out, f"{layer}.linear1")), f"{layer}.linear2"), f"{layer}.norm2")

    weights = linear(out[len(tokens) : -1] + waves, f"{generator}.fc_weight")
    # (band, dim * y * x) as the reference has it; a patch's pixels come as (band, y, x).
    kernels = weights.view(len(waves), -1, PATCH**2).transpose(0, 1).flatten(1)
    return 0.02 * kernels, linear(out[-1], f"{generator}.fc_bias")


build = ClayV15
