"""Objects read as files, a range at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskembed.errors import StorageError

if TYPE_CHECKING:
    from daskembed.storage.stores import Storage

READ_AHEAD = 1 << 20


class RemoteReader(io.RawIOBase):
    """A file to read an object through, by ranged requests of the storage's own."""

    def __init__(self, storage: Storage, path: str, failed: Callable[[StorageError], None] | None = None) -> None:
        self._storage, self._path, self._position, self._failed = storage, path, 0, failed
        self._size = storage._size(path)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, by one request."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        try:
            data = self._storage.get_range(self._path, self._position, end)
        except StorageError as error:
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


def open_remote(storage: Storage, path: str, failed: Callable[[StorageError], None]) -> io.BufferedReader:
    """A file of an object for a library that swallows errors: `failed` is told them."""
    return io.BufferedReader(RemoteReader(storage, path, failed), READ_AHEAD)
