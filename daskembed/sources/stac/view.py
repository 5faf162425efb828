"""A file as GDAL reads it, out of bytes that were fetched before."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class View(io.RawIOBase):
    """A file as GDAL reads it: out of the block that was fetched for it, or of what else is known of it.

    Parameters
    ----------
    name
        What GDAL is told that it is called.
    size
        Bytes.
    bytes_of
        Gives those from a position to another that are not in `held`.
    """

    def __init__(self, name: str, size: int, bytes_of: Callable[[int, int], bytes]) -> None:
        self._name, self._size, self._bytes_of, self._position = name, size, bytes_of, 0
        self.held: tuple[int, bytes] = 0, b""
        """Position and bytes of the block that is to be read."""
        self.failed: Exception | None = None
        """What came in the place of bytes: GDAL swallows it."""

    def open(self, path: str, mode: str = "rb") -> Any:
        """Itself, from its beginning: what rasterio calls an opener."""
        # GDAL asks for whatever may lie beside a file.
        if not path.endswith(self._name):
            raise FileNotFoundError(path)
        self._position = 0
        return self

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        start, end = self._position, min(self._position + len(buffer), self._size)
        if end <= start:
            return 0
        first, data = self.held
        if not (first <= start and end <= first + len(data)):
            try:
                first, data = start, self._bytes_of(start, end)
            except Exception as error:
                self.failed = error
                raise
        buffer[: end - start] = memoryview(data)[start - first : end - first]
        self._position = end
        return end - start

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def close(self) -> None:
        """Nothing: GDAL opens it again and again."""
