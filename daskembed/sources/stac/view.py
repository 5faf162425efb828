"""A file as GDAL reads it, out of bytes that were fetched before."""

from __future__ import annotations

from typing import Any

from daskembed.storage.readers import Fetch, RangedReader


class View(RangedReader):
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

    def __init__(self, name: str, size: int, bytes_of: Fetch) -> None:
        super().__init__(self._known, size, self._fail)
        self._name, self._bytes_of = name, bytes_of
        self.held: tuple[int, bytes] = 0, b""
        """Position and bytes of the block that is to be read."""
        self.failed: Exception | None = None
        """What came in the place of bytes: GDAL swallows it."""

    def open(self, path: str, mode: str = "rb") -> Any:
        """Itself, from its beginning: what rasterio calls an opener."""
        # GDAL asks for whatever may lie beside a file.
        if not path.endswith(self._name):
            raise FileNotFoundError(path)
        self.seek(0)
        return self

    def _known(self, start: int, end: int) -> bytes:
        first, data = self.held
        if first <= start and end <= first + len(data):
            return data[start - first : end - first]
        return self._bytes_of(start, end)

    def _fail(self, error: Exception) -> None:
        self.failed = error

    def close(self) -> None:
        """Nothing: GDAL opens it again and again."""
