"""Checkpoints: checked before use, the encoder's part of a large one kept, and loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from daskembed import config
from daskembed.encoders.fetch import fetch, write_once
from daskembed.encoders.formats import open_checkpoint, some
from daskembed.encoders.untrained import parse_untrained, untrained_state
from daskembed.errors import CheckpointError
from daskembed.storage.urls import is_local, local_path, redact

if TYPE_CHECKING:
    from torch import Tensor

    from daskembed.encoders.protocol import CompleteModule, Encoder

log = logging.getLogger(__name__)


def inspect_checkpoint(location: str, module: CompleteModule) -> tuple[str, str | None, str]:
    """Fetch a checkpoint, check its parameters and return its canonical location, SHA-256 and size.

    Raises
    ------
    CheckpointError
        If it cannot be used; the message says why.
    """
    if location.startswith("untrained:"):
        size, seed = parse_untrained(location, module)
        return f"untrained:{size}:{seed}", None, size
    if is_local(location):
        location = str(local_path(location))
    path, digest = fetch(location)
    shown = _shown(location)
    # The tensors are mapped from the file: of their values nothing is read here.
    return location, digest, _check(_shapes(_read(path, shown, module)), shown, module)


def recognise(location: str, modules: Mapping[str, CompleteModule]) -> str | None:
    """The encoder that a checkpoint is of, by the names of its parameters; the file's values are not read.

    Parameters
    ----------
    location
        Of the checkpoint.
    modules
        The encoders to choose from, by name.

    Returns
    -------
    A key of `modules`, the one that has most of the file's names: whether its parameters are complete is for
    `inspect_checkpoint` to say. None for untrained weights, which can be those of any.

    Raises
    ------
    CheckpointError
        If the file cannot be used, or is of none of them.
    """
    if location.startswith("untrained:"):
        return None
    shown = _shown(location)
    found = set(open_checkpoint(fetch(location)[0], shown))

    def common(module: CompleteModule) -> int:
        names = {name for size in module.SIZES for name in module.parameter_shapes(size)}
        return len(found & {module.PREFIX + name for name in names})

    best = max(modules, key=lambda name: common(modules[name]))
    if not common(modules[best]):
        titles = " or ".join(module.TITLE for module in modules.values())
        raise CheckpointError(f"{shown} has no parameter of {titles}: found {some(list(found))}")
    return best


def load_state(encoder: Encoder, module: CompleteModule) -> dict[str, Tensor]:
    """The parameters of an encoder by name, without the prefix, in float32.

    Raises
    ------
    CheckpointError
        If the file here is not the one that the encoder was described from.
    """
    import torch

    if encoder.untrained:
        size, seed = parse_untrained(encoder.checkpoint, module)
        return untrained_state(module, size, seed)
    kept = _encoder_path(str(encoder.sha256))
    if kept.is_file():
        # Its name says which file it was read from, so that one need not be here any more, nor be hashed again.
        try:
            state = _read(kept, str(kept), module)
            _check(_shapes(state), str(kept), module)
            return {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
        except CheckpointError:
            kept.unlink(missing_ok=True)
    path, digest = _find(encoder)
    shown = _shown(encoder.checkpoint)
    if digest != encoder.sha256:
        raise CheckpointError(
            f"{shown} differs between machines: SHA-256 {digest[:12]} here, {str(encoder.sha256)[:12]} "
            "where the run was started; put the same file everywhere"
        )
    state = _read(path, shown, module)
    _check(_shapes(state), shown, module)
    # Copied out of the mapped file, which may be changed or deleted while the worker lives.
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    # A released file can hold a decoder, a teacher and the optimizer's state, four times as much as the encoder: what
    # is needed of it is kept, for the next load to take seconds. Where it is most of the file, that would gain nothing.
    if path.stat().st_size > 2 * sum(tensor.nbytes for tensor in state.values()):
        _keep_encoder({module.PREFIX + name: tensor for name, tensor in state.items()}, kept)
    return {name: tensor.float() for name, tensor in state.items()}


def is_here(encoder: Encoder) -> bool:
    """Whether this machine has the file of an encoder's weights, or can fetch it."""
    if encoder.untrained or not is_local(encoder.checkpoint):
        return True
    if _encoder_path(str(encoder.sha256)).is_file():
        return True
    try:
        return _find(encoder)[1] == encoder.sha256
    except CheckpointError:
        return False


def to_send(encoder: Encoder, module: CompleteModule, most: int) -> Path:
    """The file of weights for workers that do not see it: the checkpoint, or of one that is too large the encoder.

    Parameters
    ----------
    most
        Bytes that can be sent.
    """
    path = local_path(encoder.checkpoint)
    kept = _encoder_path(str(encoder.sha256))
    if path.stat().st_size > most and not kept.is_file():
        load_state(encoder, module)
    return kept if path.stat().st_size > most and kept.is_file() else path


def keep(weights: bytes, sha256: str, *, whole: bool) -> None:
    """Keep weights that were sent here, the whole checkpoint or its encoder, where `load_state` finds them."""
    path = _sent_path(sha256) if whole else _encoder_path(sha256)
    write_once(path, lambda file: file.write(weights))


def _keep_encoder(state: dict[str, Tensor], path: Path) -> None:
    import safetensors.torch

    try:
        write_once(path, lambda file: safetensors.torch.save_file(state, file.name))
    except OSError as error:
        # The weights are loaded; a full disk makes only the next load slow.
        log.warning("the encoder's weights are not kept: %s", error)


def _encoder_path(sha256: str) -> Path:
    return config.cache_folder() / f"{sha256}.encoder.safetensors"


def _shown(location: str) -> str:
    return location if is_local(location) else redact(location)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _find(encoder: Encoder) -> tuple[Path, str]:
    sent = _sent_path(str(encoder.sha256))
    return fetch(str(sent) if is_local(encoder.checkpoint) and sent.is_file() else encoder.checkpoint)


def _sent_path(sha256: str) -> Path:
    return config.cache_folder() / f"{sha256}.sent"


def _read(path: Path, location: str, module: CompleteModule) -> dict[str, Tensor]:
    """The encoder's tensors by name without the prefix, mapped from the file."""
    import torch

    state = open_checkpoint(path, location)
    for key, model in module.OTHER_MODELS.items():
        name, _, shape = key.partition(" ")
        for full in (module.PREFIX + name, name):
            if full in state and (not shape or str(tuple(getattr(state[full], "shape", ()))) == shape):
                raise CheckpointError(
                    f"{location} is a {model} checkpoint (it has {full}{f' {shape}' if shape else ''}); expected "
                    f"{module.TITLE}: give a checkpoint of it, or choose the encoder that this one is of"
                )
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(module.IGNORED)}
    foreign = [name for name in kept if not name.startswith(module.PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{location} has keys that are not {module.PREFIX}*: {some(foreign)}; expected a {module.TITLE} checkpoint"
        )
    if odd := [name for name, tensor in kept.items() if not isinstance(tensor, torch.Tensor)]:
        raise CheckpointError(f"{location} holds no tensor under {some(odd)}")
    if odd := [name for name, tensor in kept.items() if not _is_plain_weight(tensor)]:
        raise CheckpointError(f"{location} holds something else than dense floating-point numbers under {some(odd)}")
    return {name.removeprefix(module.PREFIX): tensor for name, tensor in kept.items()}


def _is_plain_weight(tensor: Tensor) -> bool:
    import torch

    # Tensors without values ("meta"), sparse ones and the like have the right shape and fail only in the workers.
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
    )


def _check(shapes: dict[str, tuple[int, ...]], location: str, module: CompleteModule) -> str:
    try:
        size = module.size_of(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{location} {error}") from None
    expected = module.parameter_shapes(size)
    problems = []
    if missing := [module.PREFIX + name for name in expected if name not in shapes]:
        problems.append(f"{len(missing)} keys are missing: {some(missing)}")
    if extra := [module.PREFIX + name for name in shapes if name not in expected]:
        problems.append(f"{len(extra)} keys are unknown: {some(extra)}")
    if wrong := [
        f"{module.PREFIX}{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]:
        problems.append(f"{len(wrong)} have the wrong shape: {some(wrong)}")
    if problems:
        raise CheckpointError(f"{location} does not fit {module.TITLE} {size}: {'; '.join(problems)}")
    return size
