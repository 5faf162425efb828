"""Objects read as files, a range at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskembed.storage.stores import Storage

READ_AHEAD = 1 << 20
_FIRST, _NEXT = 16 * 1024, 64 * 1024
Fetch = Callable[[int, int], bytes]
"""Gives the bytes of an object from a position to another, exclusive, in one request."""


class RangedReader(io.RawIOBase):
    """An object as a file.

    Parameters
    ----------
    fetch
        Makes a request.
    size
        Bytes of the object.
    failed
        Told what `fetch` raises, where a library that reads the file would swallow it.
    """

    def __init__(self, fetch: Fetch, size: int, failed: Callable[[Exception], None] | None = None) -> None:
        self._fetch, self._size, self._failed, self._position = fetch, size, failed, 0

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, by one request."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        try:
            data = self._fetch(self._position, end)
        except Exception as error:
            if self._failed is not None:
                self._failed(error)
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; none is asked for yet."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position


def open_ranged(storage: Storage, path: str, failed: Callable[[Exception], None] | None = None) -> io.BufferedReader:
    """A file of an object, read ahead; see `RangedReader`."""
    return io.BufferedReader(RangedReader(partial(storage.get_range, path), storage.size(path), failed), READ_AHEAD)


def keeping(fetch: Fetch, size: int, known: tuple[int, bytes] | None = None) -> Fetch:
    """`fetch` for the header of an object of `size` bytes: by a small request, and more where it is elsewhere.

    `known` are a position and the bytes there that were fetched before.
    """
    ranges = [] if known is None else [known]

    def get(start: int, end: int) -> bytes:
        for first, data in ranges:
            if first <= start and end <= first + len(data):
                return data[start - first : end - first]
        length = max(_NEXT if ranges else _FIRST, end - start)
        data = fetch(start, min(size, start + length))
        ranges.append((start, data))
        return data[: end - start]

    return get
