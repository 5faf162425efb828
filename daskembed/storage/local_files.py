"""Local files: which of several writers gets one, and what killed writers left."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from daskembed.errors import StorageUnusableError
from daskembed.storage.failures import explained, unwritable

_TEMPORARY = re.compile(r"(?P<folder>(?:.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]+\.tmp")
_TRIES = 5
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def temporary(path: Path) -> Path:
    """Where what becomes `path` is written first: beside it, under a name of its own."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def target(path: str) -> str | None:
    """What a temporary file was to become; None if it is none."""
    match = _TEMPORARY.fullmatch(path)
    return match and match["folder"] + match["name"]


def meant_beside(path: Path, fits: Callable[[Path], bool]) -> str:
    """What lies beside a path that is not there and may have been meant, as the end of a message; or nothing."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if fits(one))
    except OSError:
        return ""
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""


def create(path: Path, data: bytes) -> bool:
    """Write a file unless there is one; whether it was written. A reader sees all of it, where the disk knows links."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up: the folder, or the temporary file
            path.parent.mkdir(parents=True, exist_ok=True)
            with _written(path, data) as made:
                return _create(path, made, data)
    raise FileNotFoundError(errno.ENOENT, "its folder vanishes again and again", str(path))


def _create(path: Path, made: Path, data: bytes) -> bool:
    try:
        os.link(made, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    with file:
        file.write(data)
    return True


def replace(path: Path, old: bytes, new: bytes) -> bool:
    """Write a file in the place of `old`, unless another is there by now; whether it was written.

    All who replace it lock it first, by ``flock``: the system frees that when a process dies.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return False
    with file, _written(path, new) as made:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another may have replaced it before it was locked: what is open here is not what is there, then.
            same = os.path.samestat(path.stat(), os.fstat(file.fileno())) and file.read() == old
        except (BlockingIOError, FileNotFoundError):
            return False
        if same:
            made.replace(path)
        return same


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    made = temporary(path)
    try:
        with made.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield made
    finally:
        made.unlink(missing_ok=True)


def sweep(root: Path, owned: re.Pattern[str]) -> None:
    """Remove temporary files of those targets, as paths below `root`, in which `owned` is found."""
    for pattern in (".*.tmp", "_*/**/.*.tmp"):
        for left in root.glob(pattern):
            meant = target(left.relative_to(root).as_posix())
            if meant is not None and owned.search(meant):
                left.unlink(missing_ok=True)


def remove_if_empty(folder: Path, root: Path) -> None:
    """Remove a folder without files, and those above it below `root` that this leaves empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


@contextlib.contextmanager
def room_for(where: str) -> Iterator[None]:
    """Tell a full disk; what else fails in the block is not about the file that is written."""
    try:
        yield
    except OSError as error:
        if (advice := unwritable(error)) is None:
            raise
        raise StorageUnusableError(f"{where} cannot be written: {error.strerror or 'it is full'}; {advice}") from None


@contextlib.contextmanager
def local_writer(root: Path, name: str) -> Iterator[BinaryIO]:
    """A file that takes its place as a whole, once it is on the disk."""
    path = root / PurePosixPath(name)
    made = temporary(path)
    with explained(str(path), str(root)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = made.open("xb")
        except FileNotFoundError:
            # Another process deleted the last file of the folder, and the folder with it.
            path.parent.mkdir(parents=True, exist_ok=True)
            file = made.open("xb")
    try:
        with room_for(str(path)), file:
            yield file
            with explained(str(path), str(root)):
                file.flush()
                os.fsync(file.fileno())
        with explained(str(path), str(root)):
            made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    # The rename itself is only durable once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
