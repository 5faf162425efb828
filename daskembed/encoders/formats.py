"""Files of weights: known by their content, and opened without executing any of it."""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from daskembed.errors import CheckpointError


def check_kind(path: Path, location: str) -> str:
    """``zip`` or ``safetensors``; raises `CheckpointError` for anything else."""
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


def open_checkpoint(path: Path, location: str) -> dict[str, Any]:
    """What a checkpoint holds by name, other things than tensors too; tensors are mapped from the file, not read."""
    if check_kind(path, location) == "safetensors":
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
        found_keys = some(list(map(str, loaded))) if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"{location} has no state_dict: found {found_keys}; expected a Lightning checkpoint")
    if odd := [name for name in dict.keys(state) if not isinstance(name, str)]:
        raise CheckpointError(f"{location} has keys that are no names: {some([repr(name) for name in odd])}")
    return dict(dict.items(state))


def _plain(text: str) -> str:
    """The first line of what a file says, short and without codes that a terminal would obey."""
    return text.partition("\n")[0][:200].encode("unicode_escape").decode()


def some(names: list[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(map(_plain, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
