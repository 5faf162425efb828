"""What a module must give to be an encoder, and the recipe of one that travels to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from daskembed.encoders.description import Description, Place

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


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
