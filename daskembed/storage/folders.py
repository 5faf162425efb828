"""Local folders listed: what each file is, also those that cannot be read, by whatever name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# obstore lists folders, too, but gives up a whole folder for one name that it does not take, or for a loop of links.
_UNFIT = re.compile(r"[\0-\x1f\x7f\ud800-\udfff]")
"""Control characters, and what stands for bytes that are no UTF-8."""
_TEMPORARY = re.compile(r"#\d+$")
"""What obstore's own files end with while they are written."""

_Key = tuple[int, int]
"""What a folder is told apart by: device and inode."""


@dataclass(frozen=True)
class Found:
    """A file of a folder."""

    path: str
    """Below the root, as the system has it."""
    size: int
    etag: str
    """As obstore makes it, of inode, time and size."""
    reason: str | None
    """Why it cannot be read; None if it can."""


def files(root: Path, prefix: str, *, recursive: bool) -> Iterator[Found]:
    """The files below a folder, in the order of their names.

    Links are followed, but not to a folder above them; nor is one, within a folder that a link led to, if its folder
    is listed already: of folders that link to each other there would be more paths than can be listed.
    """
    about = (root / prefix).stat()
    yield from _files(root / prefix, f"{prefix}/" if prefix else "", recursive, {_key(about)}, frozenset(), False)


def _files(
    folder: Path, above: str, recursive: bool, listed: set[_Key], parents: frozenset[_Key], linked: bool
) -> Iterator[Found]:
    """As `files`; `listed` are the folders so far, `linked` is whether a link led here."""
    parents |= {_key(folder.stat())}
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{above}{entry.name}"
        is_link = entry.is_symlink()
        try:
            about = entry.stat()
        except OSError as error:
            if is_link:
                yield Found(path, 0, "", f"is a link that leads nowhere: {error.strerror}")
            continue
        if stat.S_ISDIR(about.st_mode):
            key = _key(about)
            if recursive and key not in parents and not (linked and is_link and key in listed):
                listed.add(key)
                yield from _files(folder / entry.name, f"{path}/", recursive, listed, parents, linked or is_link)
        elif not _TEMPORARY.search(entry.name):
            etag = f'"{about.st_ino:x}-{about.st_mtime_ns // 1000:x}-{about.st_size:x}"'
            yield Found(path, about.st_size, etag, _unfit(path, about.st_mode))


def _key(about: os.stat_result) -> _Key:
    return about.st_dev, about.st_ino


def _unfit(path: str, mode: int) -> str | None:
    if not stat.S_ISREG(mode):
        return "is no file: a pipe, a socket or a device"
    return "has a name that is no plain text: rename it" if unnameable(path) else None


def unnameable(path: str) -> bool:
    """Whether stores do not take a path: it holds control characters, or is no UTF-8."""
    return _UNFIT.search(path) is not None


def folders(root: Path, prefix: str) -> list[str]:
    """Paths of the folders right below a folder."""
    with os.scandir(root / prefix) as entries:
        return [f"{prefix}/{entry.name}" if prefix else entry.name for entry in entries if entry.is_dir()]
