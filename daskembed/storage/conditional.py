"""Objects written only if nobody else did meanwhile: which of several writers gets one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from daskembed.errors import UnconditionalError
from daskembed.storage import local_files
from daskembed.storage.failures import NO_CONDITIONS, NO_LOCKS
from daskembed.storage.opening import open_store
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local


def create(storage: Storage, path: str, data: bytes) -> bool:
    """Write a whole object unless there is one already; whether it was written.

    Of several writers of different data one wins, if the store `keeps_conditions`.

    Raises
    ------
    UnconditionalError
        If the store says that it cannot.
    """
    if _write_if(storage, path, data, "create"):
        return True
    # Written by a request of ours whose answer was lost, perhaps.
    return _holds(storage, path, data)


def replace(storage: Storage, path: str, old: bytes, new: bytes) -> bool:
    """Write a whole object in the place of `old`, unless another is there by now; whether it was written.

    Of several writers of different data one wins, if the store `keeps_conditions`.

    Raises
    ------
    UnconditionalError
        If the store says that it cannot.
    """
    if is_local(storage.url):
        return _unless_impossible(storage, path, lambda: local_files.replace(Path(storage.url) / path, old, new))

    def look() -> tuple[bytes, dict[str, str]]:
        found = obstore.get(open_store(storage.url, fresh=storage.fresh), path)
        tag = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
        return found.bytes().to_bytes(), {key: value for key, value in tag.items() if value is not None}

    try:
        data, tag = storage.carry_out(path, look)
    except FileNotFoundError:
        return False
    return data == old and (_write_if(storage, path, new, tag) or _holds(storage, path, new))


def keeps_conditions(storage: Storage, path: str, data: bytes) -> bool:
    """Whether the store minds what `create` and `replace` ask for; tried on the object `path`, which is `data`."""
    try:
        if not is_local(storage.url) and _write_if(storage, path, data, {"e_tag": '"0"', "version": "0"}):
            return False
        return not _write_if(storage, path, data, "create") and replace(storage, path, data, data)
    except UnconditionalError:
        return False


def _write_if(storage: Storage, path: str, data: bytes, condition: Any) -> bool:
    """Write an object if obstore's `condition` is met; whether it was."""

    def write() -> bool:
        try:
            # Without obstore's retries, which would ask a store that knows no conditions for minutes.
            obstore.put(open_store(storage.url, 0), path, data, mode=condition, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    if is_local(storage.url):
        return storage.carry_out(path, lambda: local_files.create(Path(storage.url) / path, data))
    return _unless_impossible(storage, path, write)


def _unless_impossible(storage: Storage, path: str, act: Callable[[], bool]) -> bool:
    def attempt() -> bool | None:
        try:
            return act()
        except (BaseError, OSError) as error:
            if getattr(error, "errno", None) in NO_LOCKS or NO_CONDITIONS.search(str(error)):
                return None
            raise

    done = storage.carry_out(path, attempt)
    if done is None:
        raise UnconditionalError(f"{storage.url_of(path)}: the store cannot write on a condition")
    return done


def _holds(storage: Storage, path: str, data: bytes) -> bool:
    try:
        return storage.get(path) == data
    except FileNotFoundError:
        return False
