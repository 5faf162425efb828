"""Encoders by name, and one that is described from its checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from daskembed import config
from daskembed.encoders.description import Description as Description
from daskembed.encoders.description import Place as Place
from daskembed.encoders.protocol import CompleteModule, Encoder
from daskembed.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from daskembed.encoders import clay_v0, clay_v1_5

    _CHECKED: tuple[CompleteModule, ...] = (clay_v0, clay_v1_5)
    """Every encoder's module, for the type checker to compare with what is asked of it."""

ENCODERS = {
    "clay-v0": "daskembed.encoders.clay_v0",
    "clay-v1.5": "daskembed.encoders.clay_v1_5",
}
"""Encoder -> the module that implements `EncoderModule`; the first is the default."""

PRECISIONS = ("auto", "bf16", "fp32")


def takes_time(name: str, windows: int) -> bool:
    """Whether an encoder is told the time of day: whether it makes another thing of another hour.

    Parameters
    ----------
    name
        As for `get_encoder_module`.
    windows
        Of a chip.
    """
    import numpy as np

    degrees = np.zeros((1, windows))

    def told(hour: int) -> list[bytes]:
        when = np.array([f"2020-01-01T{hour:02d}"], "datetime64[s]")
        return [part.tobytes() for part in metadata(Place(degrees, degrees, when, np.ones(1)))]

    metadata = get_encoder_module(name).metadata
    return told(6) != told(12)


def get_encoder_module(name: str) -> CompleteModule:
    """The module of an encoder, with defaults for what it does not say.

    Parameters
    ----------
    name
        Key of `ENCODERS`, or the dotted name of a module of yours that the workers can import.

    Raises
    ------
    InputError
        If there is none of that name, or it is no encoder's.
    """
    try:
        module = importlib.import_module(ENCODERS.get(name, name))
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # of what the module imports
        raise InputError(
            f"unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}, or a module that can be imported from here"
            f"{did_you_mean(name, ENCODERS)}"
        ) from None
    if missing := [needed for needed in _NEEDED if not hasattr(module, needed)]:
        raise InputError(
            f"the module {name} is no encoder: it has no {', '.join(missing)}; "
            "examples/add_your_own_encoder.md says what an encoder's module has"
        )
    given = {needed: getattr(module, needed) for needed in _NEEDED}
    given |= {name: getattr(module, name, default) for name, default in _defaults(module).items()}
    return cast(CompleteModule, SimpleNamespace(**given))


_NEEDED = ("SIZES", "parameter_shapes", "describe", "build")


def _defaults(module: ModuleType) -> dict[str, Any]:
    """What `CompleteModule` has beside that, for an encoder that says nothing of it."""

    def size_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
        sizes: Mapping[str, Any] = module.SIZES
        return max(sizes, key=lambda size: len(shapes.items() & module.parameter_shapes(size).items()))

    return {
        "TITLE": module.__name__,
        "CHECKPOINT": None,
        "PREFIX": "",
        "IGNORED": (),
        "OTHER_MODELS": {},
        "size_of": size_of,
        "metadata": lambda place: (),
    }


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

    None takes the configuration's value.

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

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, unsafe to load or of another model.
    InputError
        If the encoder is unknown, or cannot take the sensor or the window.
    """
    chosen = check_precision(precision or config.get("precision"))
    encoder_of = find_encoder(
        checkpoint, encoder=encoder, sensor=sensor, window=window, batch_size=batch_size, readers=readers
    )
    return encoder_of(resolve_precision(chosen))


def find_encoder(
    checkpoint: str | None = None,
    *,
    encoder: str | None = None,
    sensor: str | None = None,
    window: int | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
) -> Callable[[str], Encoder]:
    """`load_encoder` but for the precision, of which ``auto`` is decided later: call what this gives with it."""
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
    location = given or module.CHECKPOINT
    if location is None:
        size = next(iter(module.SIZES))
        raise InputError(f"{module.TITLE} has no released checkpoint: give one, or untrained:{size} to try things out")
    location, sha256, size = inspect_checkpoint(str(location), module)
    description = module.describe(size, sensor=sensor, window=window)
    return lambda precision: Encoder(name, location, sha256, size, precision, chips, threads, description)


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


def check_precision(precision: str) -> str:
    """Return ``auto``, ``bf16`` or ``fp32``; raises `InputError` for anything else."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return precision


def resolve_precision(precision: str) -> str:
    """``auto`` as this machine's device answers it; ``bf16`` and ``fp32`` as they are."""
    if check_precision(precision) != "auto":
        return precision
    from daskembed.hardware import native_precision

    return native_precision()


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}: expected a whole number of at least 1")
    return value
