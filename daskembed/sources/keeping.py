"""What several threads want of a store: made once, and kept while memory allows."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from daskembed.errors import ChipError
from daskembed.hardware import allowance

KEPT_BYTES = 768 * 2**20
"""Most bytes of pieces, or of blocks, that a process keeps for the chips that still need them, if it has memory."""

_LASTING = 1.0
"""Seconds for which an allowance counts."""
_Kept = TypeVar("_Kept")


class Keeping(Generic[_Kept]):
    """Things by their keys: each is made once, also when several threads want it.

    What is kept and being made takes no more than `most` and the process's allowance, or is one thing.

    Parameters
    ----------
    size_of
        Bytes of a thing.
    most
        Bytes.
    """

    def __init__(self, size_of: Callable[[_Kept], int], most: int = KEPT_BYTES) -> None:
        self._size_of, self._most = size_of, most
        self._allowed, self._until = 0, 0.0
        self._changed = threading.Condition()
        self._found: OrderedDict[Hashable, Future[_Kept | ChipError]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def get(self, key: Hashable, size: int, make: Callable[[], _Kept]) -> _Kept:
        """What `make` makes, of about `size` bytes, now or before; what it raises is raised, and not kept."""
        with self._changed:
            if mine := key not in self._found:
                # Of other things; those being made come to an end without this one.
                self._changed.wait_for(lambda: key in self._found or self._fits(size))
                if mine := key not in self._found:
                    self._found[key], self._sizes[key] = Future(), size
            future = self._found[key]
            self._found.move_to_end(key)
        if mine:
            self._make(key, future, make)
        try:
            # A reason and no exception: its frames, and through them this future, would hold pixels.
            if isinstance(found := future.result(), ChipError):
                raise ChipError(str(found))
            return found
        finally:
            del future

    def _make(self, key: Hashable, future: Future[_Kept | ChipError], make: Callable[[], _Kept]) -> None:
        try:
            found = make()
        except ChipError as error:
            # Not kept: what a store did not give may come the next time.
            self._forget(key)
            future.set_result(ChipError(str(error)))
            return
        except BaseException as error:
            self._forget(key)
            future.set_exception(error.with_traceback(None))
            return
        with self._changed:
            self._sizes[key] = self._size_of(found)
            future.set_result(found)
            self._changed.notify_all()

    def has(self, key: Hashable) -> bool:
        """Whether something is kept or being made."""
        with self._changed:
            return key in self._found

    def drop(self, which: Callable[[Hashable], bool]) -> None:
        """Give up what was made and has a key for which `which` is true."""
        with self._changed:
            for key, future in [*self._found.items()]:
                if which(key) and future.done():
                    del self._found[key], self._sizes[key]
            self._changed.notify_all()

    def _forget(self, key: Hashable) -> None:
        with self._changed:
            del self._found[key], self._sizes[key]
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        """Whether a thing of `size` bytes may be made now; gives up the oldest for it."""
        # What a process may take does not change from one thing to the next.
        if (now := time.monotonic()) >= self._until:
            self._allowed, self._until = allowance(), now + _LASTING
        most = min(self._most, self._allowed)
        held = sum(self._sizes.values())
        if held + size <= most:
            return True
        done = [key for key, future in self._found.items() if future.done()]
        being_made = held - sum(self._sizes[key] for key in done)
        if len(done) < len(self._found) and being_made + size > most:
            return False
        for key in done:
            if held + size <= most:
                break
            held -= self._sizes.pop(key)
            del self._found[key]
        return True
