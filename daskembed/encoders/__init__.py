"""Encoders by name, and the recipe of one that travels to the workers in place of its weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from daskembed import config
from daskembed.encoders.description import Description as Description
from daskembed.encoders.description import Place as Place
from daskembed.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

ENCODERS = {
    "clay-v0": "daskembed.encoders.clay_v0",
    "clay-v1.5": "daskembed.encoders.clay_v1_5",
}
"""Encoder -> the module that implements `EncoderModule`; the first is the default."""
PRECISIONS = ("auto", "bf16", "fp32")


class Model(Protocol):
    """An encoder with its weights on a device."""

    def __call__(self, pixels: torch.Tensor, *metadata: torch.Tensor, level: str) -> torch.Tensor:
        """Embeddings of some chips.

        Parameters
        ----------
        pixels
            As they are in the file, of any real type, ``(chip, band, y, x)``.
        metadata
            What `EncoderModule.metadata` says of the chips.
        level
            One of `Description.levels`.

        Returns
        -------
        float32 tensor of shape ``(chip, *Description.shape(level))``.
        """


class EncoderModule(Protocol):
    """What a module of this package gives to be an encoder."""

    TITLE: str
    """For people, such as ``Clay v0``."""
    CHECKPOINT: str
    """Where its released weights are; see `load_encoder`."""
    PREFIX: str
    """What the names of its parameters begin with in a checkpoint."""
    IGNORED: tuple[str, ...]
    """Prefixes of a checkpoint's keys that are not read."""
    OTHER_MODELS: Mapping[str, str]
    """Keys that only another model's encoder has, and which model that is."""
    SIZES: Mapping[str, Any]
    """Size -> whatever the module makes it of."""

    def parameter_shapes(self, size: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a size's parameters."""

    def size_of(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """The size that has these parameters."""

    def describe(self, size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
        """What it needs and gives; raises `InputError` for a sensor or window that it cannot take."""

    def metadata(self, place: Place) -> tuple[NDArray[np.float32], ...]:
        """What the model is told of place and time: arrays whose first axis is the chip."""

    def build(
        self, state: Mapping[str, torch.Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
    ) -> Model:
        """Put the parameters, in float32 and by name without the prefix, on a device."""


def get_encoder_module(name: str) -> EncoderModule:
    """The module of an encoder.

    Parameters
    ----------
    name
        Key of `ENCODERS`, or the dotted name of a module of yours that the workers can import.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    try:
        return cast(EncoderModule, importlib.import_module(ENCODERS.get(name, name)))
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # of what the module imports
        raise InputError(
            f"unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}, or a module that can be imported from here"
            f"{did_you_mean(name, ENCODERS)}"
        ) from None


@dataclass(frozen=True)
class Encoder:
    """Which encoder, with which weights and settings: small, hashable, and the same on every worker."""

    name: str
    """Key of `ENCODERS`."""
    checkpoint: str = field(repr=False)
    """Path or URL of the weights, or ``untrained:{size}:{seed}``; not shown, as the URL may be signed."""
    sha256: str | None
    """Of the checkpoint's bytes; None for untrained weights, which their name determines."""
    size: str
    """Name of the model's size."""
    precision: str
    """Type of the products, ``bf16`` or ``fp32``."""
    batch_size: int
    """Largest number of chips given to the device at once."""
    readers: int | None
    """Threads of a worker that read and decode chips; None for 16 beside a GPU and 8 beside a CPU."""
    description: Description = field(repr=False)
    """What it needs and gives."""

    @property
    def untrained(self) -> bool:
        """Whether the weights are seeded noise."""
        return self.sha256 is None

    def shape(self, level: str) -> tuple[int, ...]:
        """Shape of one chip's embedding at `level`, such as ``(16, 16, 768)``."""
        return self.description.shape(level)


def load_encoder(
    checkpoint: str | None = None,
    *,
    encoder: str | None = None,
    sensor: str | None = None,
    window: int | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
) -> Encoder:
    """Check a checkpoint and describe the encoder in it; workers load its weights when they first need them.

    Parameters
    ----------
    checkpoint
        Local path, ``https://``, ``s3://``, ``gs://``, ``az://`` or ``hf://REPO@REVISION/PATH`` of a Lightning
        ``.ckpt`` or a ``.safetensors`` file, or ``untrained:{size}[:seed]``; by default the encoder's released one.
    encoder
        Key of `ENCODERS`, or the dotted name of a module of yours; by default the one whose checkpoint is given.
    sensor
        Whose images are embedded, for an encoder of many: a name of its table, or the path of a ``.yaml`` file.
    window
        Pixels along each side of the square that is embedded at once, for an encoder that leaves the choice.
    precision
        ``bf16``, ``fp32`` or ``auto``: bf16 where this machine's device computes it natively.
    batch_size
        Largest number of chips given to the device at once.
    readers
        Threads of a worker that read and decode chips; 16 beside a GPU and 8 beside a CPU where the configuration
        says nothing either.

    None takes the configuration's value.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, unsafe to load or of another model.
    InputError
        If the encoder is unknown, or cannot take the sensor or the window.
    """
    from daskembed.encoders.checkpoint import inspect_checkpoint, recognise

    given = checkpoint or config.get("checkpoint")
    chips = _positive("batch size", batch_size if batch_size is not None else config.get("batch-size"))
    threads = readers if readers is not None else config.get("readers")
    threads = None if threads is None else _positive("readers", threads)
    # What is refused anyhow is refused before hundreds of megabytes are fetched.
    foresee(checkpoint, encoder=encoder, sensor=sensor, window=window)
    name = _named(checkpoint, encoder)
    name = str(name or recognise(str(given), {known: get_encoder_module(known) for known in ENCODERS}))
    module = get_encoder_module(name)
    location = str(given or module.CHECKPOINT)
    location, sha256, size = inspect_checkpoint(location, module)
    return Encoder(
        name=name,
        checkpoint=location,
        sha256=sha256,
        size=size,
        precision=resolve_precision(precision or config.get("precision")),
        batch_size=chips,
        readers=threads,
        description=module.describe(size, sensor=sensor, window=window),
    )


def foresee(
    checkpoint: str | None = None, *, encoder: str | None = None, sensor: str | None = None, window: int | None = None
) -> Description | None:
    """What `load_encoder` would describe, as far as that is known before the checkpoint is fetched: of any size.

    Returns
    -------
    Description or None
        None if only the file tells which encoder it is of.

    Raises
    ------
    InputError
        If the encoder is unknown, or cannot take the sensor or the window.
    """
    name = _named(checkpoint, encoder)
    if name is None:
        return None
    module = get_encoder_module(name)
    return module.describe(next(iter(module.SIZES)), sensor=sensor, window=window)


def _named(checkpoint: str | None, encoder: str | None) -> str | None:
    """The encoder that is meant; None if the checkpoint that is given has to tell."""
    name, given = encoder or config.get("encoder"), checkpoint or config.get("checkpoint")
    if name is None and given is not None and not str(given).startswith("untrained:"):
        return None
    return str(name or next(iter(ENCODERS)))


def resolve_precision(precision: str) -> str:
    """``auto`` as this machine's device answers it; ``bf16`` and ``fp32`` as they are."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    from daskembed.compute.device import native_precision

    return native_precision()


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}: expected a whole number of at least 1")
    return value
