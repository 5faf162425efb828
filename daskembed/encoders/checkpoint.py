"""Checkpoints: fetched once, checked before use, and never able to execute code."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import pickle
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from daskembed import __version__, config
from daskembed.errors import CheckpointError, DaskembedError
from daskembed.storage import SCHEMES, is_local, local_path, redact, split_url

if TYPE_CHECKING:
    from torch import Tensor

    from daskembed.encoders import Encoder, EncoderModule

_HF = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<path>.+)")
_UNTRAINED = re.compile(r"untrained:(?P<size>[^:]+)(?::(?P<seed>\d+))?")


def inspect_checkpoint(location: str, module: EncoderModule) -> tuple[str, str | None, str]:
    """Fetch a checkpoint, check its parameters and return its canonical location, SHA-256 and size.

    Raises
    ------
    CheckpointError
        If it cannot be used; the message says why.
    """
    if location.startswith("untrained:"):
        size, seed = _parse_untrained(location, module)
        return f"untrained:{size}:{seed}", None, size
    if is_local(location):
        location = str(local_path(location))
    path, digest = fetch(location)
    shown = location if is_local(location) else redact(location)
    shapes = {name: tuple(tensor.shape) for name, tensor in _read(path, shown, module).items()}
    return location, digest, _check(shapes, shown, module)


def load_state(encoder: Encoder, module: EncoderModule) -> dict[str, Tensor]:
    """The parameters of an encoder by name, without the prefix, in float32.

    Raises
    ------
    CheckpointError
        If the file here is not the one that the encoder was described from.
    """
    if encoder.untrained:
        size, seed = _parse_untrained(encoder.checkpoint, module)
        return untrained_state(module, size, seed)
    path, digest = _find(encoder)
    shown = encoder.checkpoint if is_local(encoder.checkpoint) else redact(encoder.checkpoint)
    if digest != encoder.sha256:
        raise CheckpointError(
            f"{shown} differs between machines: SHA-256 {digest[:12]} here, {str(encoder.sha256)[:12]} "
            "where the run was started; put the same file everywhere"
        )
    state = _read(path, shown, module)
    _check({name: tuple(tensor.shape) for name, tensor in state.items()}, shown, module)
    return {name: tensor.float() for name, tensor in state.items()}


def is_here(encoder: Encoder) -> bool:
    """Whether this machine has the file of an encoder's weights, or can fetch it."""
    if encoder.untrained or not is_local(encoder.checkpoint):
        return True
    try:
        return _find(encoder)[1] == encoder.sha256
    except CheckpointError:
        return False


def keep(weights: bytes, sha256: str) -> None:
    """Keep a checkpoint's bytes that were sent here, where `load_state` finds them."""
    _write_once(_sent_path(sha256), lambda file: file.write(weights))


def _find(encoder: Encoder) -> tuple[Path, str]:
    sent = _sent_path(str(encoder.sha256))
    return fetch(str(sent) if is_local(encoder.checkpoint) and sent.is_file() else encoder.checkpoint)


def _sent_path(sha256: str) -> Path:
    return config.cache_folder() / f"{sha256}.sent"


def _write_once(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file that is complete or absent, also when several processes make it at the same time."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def untrained_state(module: EncoderModule, size: str, seed: int) -> dict[str, Tensor]:
    """Seeded noise in the shapes of a size: a pure function of seed, name and shape.

    Biases are 0.05 times standard normal noise, LayerNorm weights 1 plus 0.1 times it, and other weights the noise
    over the square root of their fan-in, each drawn from ``default_rng([seed, crc32(full name)])`` in float32.
    """
    state = {}
    for name, shape in module.parameter_shapes(size).items():
        rng = np.random.default_rng([seed, zlib.crc32((module.PREFIX + name).encode())])
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("bias"):
            noise *= np.float32(0.05)
        elif len(shape) == 1:
            noise = np.float32(1) + np.float32(0.1) * noise
        else:
            noise /= np.float32(np.sqrt(np.prod(shape[1:])))
        state[name] = torch.from_numpy(noise)
    return state


def fetch(location: str) -> tuple[Path, str]:
    """A local path of the checkpoint and its SHA-256; a remote one is downloaded once and kept.

    Raises
    ------
    CheckpointError
        If it cannot be had.
    """
    if is_local(location):
        path = local_path(location)
        if not path.is_file():
            raise CheckpointError(
                f"no checkpoint {location}: give a .ckpt or .safetensors file or URL, or untrained:tiny to try "
                "things out"
            )
        stat = path.stat()
        return path, _sha256(path, stat.st_mtime_ns, stat.st_size)
    name = re.sub(r"[^\w.-]", "_", location.partition("?")[0].rpartition("/")[2])[-100:]
    path = config.cache_folder() / f"{hashlib.sha256(location.encode()).hexdigest()[:16]}-{name}"

    def download(file: BinaryIO) -> None:
        _download(location, file)
        file.flush()
        # What is not a checkpoint (an error page, say) must not be kept and believed the next time.
        _check_kind(Path(file.name), redact(location))

    _write_once(path, download)
    stat = path.stat()
    return path, _sha256(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _sha256(path: Path, mtime: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(location: str, file: BinaryIO) -> None:
    scheme, shown = location.partition("://")[0], redact(location)
    if scheme in SCHEMES:
        storage, name = split_url(location)
        try:
            file.write(storage.get(name))
        except (FileNotFoundError, DaskembedError) as error:
            raise CheckpointError(f"cannot fetch the checkpoint: {error}") from None
        return
    token = None
    if scheme == "hf":
        match = _HF.fullmatch(location)
        if match is None:
            raise CheckpointError(f"{location} is not of the form hf://OWNER/REPO@REVISION/PATH")
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        url = f"{endpoint}/{match['repo']}/resolve/{match['revision']}/{urllib.parse.quote(match['path'])}"
        token = os.environ.get("HF_TOKEN")
    elif scheme in ("http", "https"):
        if "@" in urllib.parse.urlsplit(location).netloc:
            raise CheckpointError(f"{shown} was given with a user and password, which is not supported: sign the URL")
        url = location
    else:
        raise CheckpointError(
            f"{shown}: unknown scheme {scheme}://; expected a path, https://, hf:// or one of {', '.join(SCHEMES)}"
        )
    request = urllib.request.Request(url, headers={"User-Agent": f"daskembed/{__version__}"})
    if token:
        # The hub redirects to other hosts, which must not see it.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            shutil.copyfileobj(response, file, 1 << 20)
            expected = response.headers.get("Content-Length")
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise CheckpointError(f"cannot fetch {shown}: {error}; download it by hand and give its path") from None
    if expected is not None and file.tell() != int(expected):
        raise CheckpointError(f"{shown} broke off after {file.tell()} of {expected} bytes: run the command again")


def _check_kind(path: Path, location: str) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    # By its beginning: where a zip begins later, torch would read what is before it.
    if start.startswith(b"PK"):
        _check_zip(path, location)
        return "zip"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if start.lstrip()[:1] == b"<":
        what = "an HTML or XML page, not a checkpoint: the server answered with an error or a login page"
    elif start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    elif start.startswith(b"\x80"):
        what = "a bare pickle, which could execute code: expected a zip as torch.save writes it since 1.6"
    else:
        what = f"no checkpoint: it starts with {start[:16]!r}; expected a Lightning .ckpt or a .safetensors file"
    raise CheckpointError(f"{location} is {what}")


def _check_zip(path: Path, location: str) -> None:
    """A few kilobytes can hold a compressed file, or one under many names, that is larger than any memory."""
    try:
        with zipfile.ZipFile(path) as file:
            promised = sum(info.file_size for info in file.infolist())
    except Exception:
        # As with the pickle inside, a damaged directory can make its reader fail in any way.
        raise CheckpointError(f"{location} is a truncated zip: download it again") from None
    if promised > (size := path.stat().st_size):
        raise CheckpointError(
            f"{location} promises {promised} bytes in a file of {size}: expected a zip without compression, as "
            "torch.save writes it"
        )


def _read(path: Path, location: str, module: EncoderModule) -> dict[str, Tensor]:
    if _check_kind(path, location) == "safetensors":
        import safetensors
        import safetensors.torch

        try:
            state: Mapping[str, Tensor] = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{location} is a damaged safetensors file: {error}") from None
    else:
        try:
            # By the open file: of a path, torch would believe the suffix.
            with path.open("rb") as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL\s+`?([\w.]+)", str(error))
            raise CheckpointError(
                f"{location} would execute code when loaded{f' ({found[1]})' if found else ''}: refused. A checkpoint "
                "holds tensors and plain values only; save its state_dict alone, or as .safetensors"
            ) from None
        except Exception as error:
            # A damaged pickle can make the unpickler fail in any way.
            raise CheckpointError(f"{location} is a damaged checkpoint: {_plain(str(error))}") from None
        # By the type: a pickle can give a dict of its own kind attributes that hide its methods.
        found_state = dict.get(loaded, "state_dict") if isinstance(loaded, dict) else None
        if not isinstance(found_state, dict):
            found_keys = _some(list(map(str, loaded))) if isinstance(loaded, dict) else type(loaded).__name__
            raise CheckpointError(f"{location} has no state_dict: found {found_keys}; expected a Lightning checkpoint")
        state = dict(dict.items(found_state))
    if odd := [name for name in state if not isinstance(name, str)]:
        raise CheckpointError(f"{location} has keys that are no names: {_some([repr(name) for name in odd])}")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(module.IGNORED)}
    foreign = [name for name in kept if not name.startswith(module.PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{location} has keys that are not {module.PREFIX}*: {_some(foreign)}; expected a Clay checkpoint"
        )
    if odd := [name for name, tensor in kept.items() if not isinstance(tensor, torch.Tensor)]:
        raise CheckpointError(f"{location} holds no tensor under {_some(odd)}")
    if odd := [name for name, tensor in kept.items() if not _is_plain_weight(tensor)]:
        raise CheckpointError(f"{location} holds something else than dense floating-point numbers under {_some(odd)}")
    return {name.removeprefix(module.PREFIX): tensor for name, tensor in kept.items()}


def _is_plain_weight(tensor: Tensor) -> bool:
    # Tensors without values ("meta"), sparse ones and the like have the right shape and fail only in the workers.
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
    )


def _check(shapes: dict[str, tuple[int, ...]], location: str, module: EncoderModule) -> str:
    for key, model in module.OTHER_MODELS.items():
        if key in shapes:
            raise CheckpointError(f"{location} is a {model} checkpoint (it has {module.PREFIX}{key}); expected Clay v0")
    try:
        size = module.size_of(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{location} {error}") from None
    expected = module.parameter_shapes(size)
    problems = []
    if missing := [module.PREFIX + name for name in expected if name not in shapes]:
        problems.append(f"{len(missing)} keys are missing: {_some(missing)}")
    if extra := [module.PREFIX + name for name in shapes if name not in expected]:
        problems.append(f"{len(extra)} keys are unknown: {_some(extra)}")
    if wrong := [
        f"{module.PREFIX}{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]:
        problems.append(f"{len(wrong)} have the wrong shape: {_some(wrong)}")
    if problems:
        raise CheckpointError(f"{location} does not fit Clay v0 {size}: {'; '.join(problems)}")
    return size


def _parse_untrained(location: str, module: EncoderModule) -> tuple[str, int]:
    match = _UNTRAINED.fullmatch(location)
    if match is None or match["size"] not in module.SIZES:
        raise CheckpointError(
            f"{location} names no untrained weights: expected untrained:SIZE or untrained:SIZE:SEED with SIZE one of "
            f"{', '.join(module.SIZES)}"
        )
    return match["size"], int(match["seed"] or 0)


def _plain(text: str) -> str:
    """The first line of what a file says, short and without codes that a terminal would obey."""
    return text.partition("\n")[0][:200].encode("unicode_escape").decode()


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(map(_plain, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
