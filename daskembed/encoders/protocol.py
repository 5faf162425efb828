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
    """What a module must have to be an encoder; what else it can say of itself is in `CompleteModule`."""

    @property
    def SIZES(self) -> Mapping[str, Any]:  # noqa: N802
        """Size -> whatever the module makes it of."""

    def parameter_shapes(self, size: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a size's parameters."""

    def describe(self, size: str, *, sensor: str | None = None, window: int | None = None) -> Description:
        """What it needs and gives; raises `InputError` for a sensor or window that it cannot take."""

    def build(
        self, state: Mapping[str, torch.Tensor], description: Description, *, device: torch.device, dtype: torch.dtype
    ) -> Model:
        """Put the parameters, in float32 and by name without the prefix, on a device."""


class CompleteModule(EncoderModule, Protocol):
    """An encoder's module with what it left to the defaults; `get_encoder_module` gives it."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """For people, such as ``Clay v0``; by default the module's name."""

    @property
    def CHECKPOINT(self) -> str | None:  # noqa: N802
        """Where its released weights are, see `load_encoder`; by default nowhere, so that one must be given."""

    @property
    def PREFIX(self) -> str:  # noqa: N802
        """What the names of its parameters begin with in a checkpoint; by default nothing."""

    @property
    def IGNORED(self) -> tuple[str, ...]:  # noqa: N802
        """Prefixes of a checkpoint's keys that are not read; by default none."""

    @property
    def OTHER_MODELS(self) -> Mapping[str, str]:  # noqa: N802
        """Keys that only another model's encoder has, and which model that is; by default none."""

    def size_of(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """The size that has these parameters; by default the one that has most of them."""

    def metadata(self, place: Place) -> tuple[NDArray[np.float32], ...]:
        """What the model is told of place and time: arrays whose first axis is the chip; by default nothing."""


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
