"""Checkpoints: fetched once, checked before use, and never able to execute code."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import logging
import os
import pickle
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from daskembed import __version__, config
from daskembed.errors import CheckpointError, DaskembedError
from daskembed.storage.stores import split_url
from daskembed.storage.urls import SCHEMES, is_local, local_path, redact

if TYPE_CHECKING:
    from torch import Tensor

    from daskembed.encoders.protocol import Encoder, EncoderModule

log = logging.getLogger(__name__)

_HF = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<path>.+)")
_UNTRAINED = re.compile(r"untrained:(?P<size>[^:]+)(?::(?P<seed>\d+))?")

# Bytes from which on a file's hash is written down: below, reading it again takes less than two seconds.
_LARGE = 2**30


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
    shown = _shown(location)
    # The tensors are mapped from the file: of their values nothing is read here.
    return location, digest, _check(_shapes(_read(path, shown, module)), shown, module)


def recognise(location: str, modules: Mapping[str, EncoderModule]) -> str | None:
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
    found = set(_open(fetch(location)[0], shown))

    def common(module: EncoderModule) -> int:
        names = {name for size in module.SIZES for name in module.parameter_shapes(size)}
        return len(found & {module.PREFIX + name for name in names})

    best = max(modules, key=lambda name: common(modules[name]))
    if not common(modules[best]):
        titles = " or ".join(module.TITLE for module in modules.values())
        raise CheckpointError(f"{shown} has no parameter of {titles}: found {_some(list(found))}")
    return best


def load_state(encoder: Encoder, module: EncoderModule) -> dict[str, Tensor]:
    """The parameters of an encoder by name, without the prefix, in float32.

    Raises
    ------
    CheckpointError
        If the file here is not the one that the encoder was described from.
    """
    import torch

    if encoder.untrained:
        size, seed = _parse_untrained(encoder.checkpoint, module)
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


def to_send(encoder: Encoder, module: EncoderModule, most: int) -> Path:
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
    _write_once(path, lambda file: file.write(weights))


def _keep_encoder(state: dict[str, Tensor], path: Path) -> None:
    import safetensors.torch

    try:
        _write_once(path, lambda file: safetensors.torch.save_file(state, file.name))
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
    import torch

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
    key = hashlib.sha256(f"{path.absolute()}:{mtime}:{size}".encode()).hexdigest()
    known = config.cache_folder() / f"{key[:16]}.sha256"
    if size >= _LARGE and known.is_file():
        return known.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= _LARGE:
        # Without it the file is hashed each time.
        with contextlib.suppress(OSError):
            _write_once(known, lambda file: file.write(digest.encode()))
    return digest


def _download(location: str, file: BinaryIO) -> None:
    scheme, shown = location.partition("://")[0], redact(location)
    if scheme in SCHEMES:
        storage, name = split_url(location)
        try:
            with storage.open_reader(name) as reader:
                # In pieces: as a whole it would be in memory twice.
                while data := reader.read(2**26):
                    file.write(data)
        except (FileNotFoundError, DaskembedError) as error:
            raise CheckpointError(f"cannot fetch the checkpoint: {error}") from None
        return
    token = None
    if scheme == "hf":
        match = _HF.fullmatch(location)
        if match is None:
            raise CheckpointError(
                f"{location} is not of the form hf://OWNER/REPO@REVISION/PATH: a file's page on huggingface.co has all "
                "four; untrained:tiny needs no file"
            )
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
        hint = "download it by hand and give its path"
        if scheme == "hf":
            repo, _, path = location.removeprefix("hf://").partition("@")
            page = f"https://huggingface.co/{repo}/tree/{path.rpartition('/')[0]}"
            denied = getattr(error, "code", None) in (401, 403)
            hint = (
                f"{page} is the page to find it on: {hint}"
                + (", or set HF_TOKEN to a token that may read it" if denied else "")
                + "; untrained:tiny (noise, for trials) needs no file"
            )
        raise CheckpointError(f"cannot fetch {shown}: {error}; {hint}") from None
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


def _open(path: Path, location: str) -> dict[str, Any]:
    """What a checkpoint holds by name, other things than tensors too; tensors are mapped from the file, not read."""
    if _check_kind(path, location) == "safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{location} is a damaged safetensors file: {error}") from None
    import torch

    try:
        # By a name without a suffix, which torch would believe, and a path, of which alone it maps.
        with tempfile.TemporaryDirectory(prefix="daskembed-") as folder:
            link = Path(folder) / "checkpoint"
            link.symlink_to(path.absolute())
            loaded = torch.load(link, map_location="cpu", weights_only=True, mmap=True)
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
    state = dict.get(loaded, "state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        found_keys = _some(list(map(str, loaded))) if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"{location} has no state_dict: found {found_keys}; expected a Lightning checkpoint")
    if odd := [name for name in dict.keys(state) if not isinstance(name, str)]:
        raise CheckpointError(f"{location} has keys that are no names: {_some([repr(name) for name in odd])}")
    return dict(dict.items(state))


def _read(path: Path, location: str, module: EncoderModule) -> dict[str, Tensor]:
    """The encoder's tensors by name without the prefix, mapped from the file."""
    import torch

    state = _open(path, location)
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
            f"{location} has keys that are not {module.PREFIX}*: {_some(foreign)}; expected a {module.TITLE} checkpoint"
        )
    if odd := [name for name, tensor in kept.items() if not isinstance(tensor, torch.Tensor)]:
        raise CheckpointError(f"{location} holds no tensor under {_some(odd)}")
    if odd := [name for name, tensor in kept.items() if not _is_plain_weight(tensor)]:
        raise CheckpointError(f"{location} holds something else than dense floating-point numbers under {_some(odd)}")
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


def _check(shapes: dict[str, tuple[int, ...]], location: str, module: EncoderModule) -> str:
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
        raise CheckpointError(f"{location} does not fit {module.TITLE} {size}: {'; '.join(problems)}")
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
