"""How GDAL opens a raster of a source."""

from __future__ import annotations

import io
import threading
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import rasterio
from rasterio.enums import MaskFlags

from daskembed.errors import ChipError, DaskembedError, InputError
from daskembed.sources.gdal import BESIDE, MOST_SIDECAR, SIGNATURES, check_sidecar, missing_blocks
from daskembed.sources.vrt import MOST_BYTES, TOP, Virtual, read_vrt
from daskembed.storage.failures import explained
from daskembed.storage.readers import open_ranged
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT", ".jp2": "JP2OpenJPEG"}

# Each thread decodes for itself; a row of blocks of all bands fits into the cache. Of virtual rasters `read_vrt` lets
# nothing else through; GDAL itself would refuse the worst, too.
_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": 256,
    "GDAL_NUM_THREADS": 1,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
}


def get_vrt(storage: Storage, path: str) -> bytes:
    """The bytes of a virtual raster; raises `ChipError` if there are too many, or it is no file."""
    if is_local(url := storage.url_of(path)):
        check_file(url)
    try:
        return storage.get(path, most=MOST_BYTES)
    except InputError as error:
        raise ChipError(f"needs more than a virtual raster: {error}") from None


def suffix_of(path: str) -> str:
    """What a file's name ends with, in small letters."""
    return PurePosixPath(path).suffix.lower()


class Opening:
    """How GDAL opens a file: by its path, or through the storage's own requests; a virtual one as it was checked."""

    def __init__(self, storage: Storage, path: str, sidecars: tuple[str, ...] = ()) -> None:
        suffix = suffix_of(path)
        self.options: dict[str, Any] = {"driver": DRIVERS[suffix]}
        # What lies beside a file is looked for where there is something.
        self.environment = _GDAL | (BESIDE if sidecars else {})
        self._storage, self._failed = storage, threading.local()
        self._virtual: Virtual | None = None
        for end in sidecars:
            beside = f"{path}{end}"
            check_sidecar(beside, storage.get_range(beside, 0, 8 if end == ".msk" else MOST_SIDECAR + 1))
        if suffix == ".vrt":
            self._virtual = read_vrt(path, partial(get_vrt, storage))
            self.name, self.options["opener"] = TOP, self._open_virtual
        elif is_local(storage.url):
            self.name = storage.url_of(path)
            check_file(self.name)
        else:
            self.name, self.options["opener"] = path, self._open
            self._wanted = tuple(f"{path}{end}" for end in ("", *sidecars))

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the files that hold the pixels of a virtual one."""
        return tuple(self._virtual.sources.values()) if self._virtual else ()

    def failure(self) -> DaskembedError | None:
        """What came last in this thread instead of data: GDAL swallows it."""
        failed: DaskembedError | None = getattr(self._failed, "error", None)
        self._failed.error = None
        return failed

    def check(self) -> None:
        """Raise `ChipError` if a file that a virtual raster refers to cannot be used; GDAL opens them much later."""
        for path in self.sources:
            try:
                self._open_source(path).close()
            except FileNotFoundError:  # also of a link that leads nowhere
                raise ChipError(f"needs {path}, which is not there") from None

    def check_sources(self, path: str) -> tuple[int, ...]:
        """Bands of a virtual raster that hold 0 where nothing was stored.

        Raises `ChipError` if a source has gaps that GDAL does not show through the virtual raster: unwritten blocks, or
        a mask, where the virtual raster has none.
        """
        if self._virtual is None:
            return ()
        for name, source in self._virtual.sources.items():
            with rasterio.open(name, opener=self._open_virtual) as image:
                masks = any(
                    MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds for kinds in image.mask_flag_enums
                )
                # GDAL reads blocks that are not there as nodata, where there is one.
                seen = self._virtual.tagged and image.nodata is not None
                sparse = not seen and image.driver == "GTiff" and missing_blocks(image)[0] > 0
            if masks and not self._virtual.masked:
                raise ChipError(
                    f"refers to {source}, which has a mask, and has none itself: write it with a MaskBand, as "
                    "gdal_translate and gdalbuildvrt do"
                )
            if sparse:
                raise ChipError(
                    f"refers to {source}, which has blocks that were never written, and tells no nodata: expected all "
                    "blocks, or a nodata value in both"
                )
        if inner := sorted({*self._virtual.uncovered} - {path}):
            raise ChipError(f"refers to {inner[0]}, which its sources do not fill, and has no nodata: write it anew")
        return self._virtual.uncovered.get(path, ())

    def _open(self, path: str, mode: str = "rb") -> Any:
        # GDAL asks for whatever may lie beside a file.
        if not path.endswith(self._wanted):
            raise FileNotFoundError(path)
        return self._open_remote(path)

    def _open_remote(self, path: str) -> Any:
        return open_ranged(self._storage, path, lambda error: setattr(self._failed, "error", error))

    def _open_virtual(self, name: str, mode: str = "rb") -> Any:
        assert self._virtual is not None
        # Without what stands before it, which tells GDAL's openers apart.
        name = name.rpartition("/")[2]
        if name in self._virtual.documents:
            return io.BytesIO(self._virtual.documents[name])
        if name not in self._virtual.sources:
            raise FileNotFoundError(name)
        try:
            return self._open_source(self._virtual.sources[name])
        except DaskembedError as error:
            self._failed.error = error
            raise
        except FileNotFoundError:
            self._failed.error = ChipError(f"needs {self._virtual.sources[name]}, which is not there")
            raise

    def _open_source(self, path: str) -> Any:
        if is_local(url := self._storage.url_of(path)):
            check_file(url)
            with explained(url, self._storage.url):
                file: Any = Path(url).open("rb")  # noqa: SIM115 (GDAL closes it)
        else:
            file = self._open_remote(path)
        start = file.read(max(map(len, SIGNATURES)))
        if not start.startswith(SIGNATURES):
            file.close()
            raise ChipError(f"refers to {path}, which is neither TIFF nor JPEG 2000: it starts with {start!r}")
        file.seek(0)
        return file


def check_file(path: str) -> None:
    """Raise `ChipError` if there is something else than a file: opening a pipe would wait for ever."""
    if Path(path).exists() and not Path(path).is_file():
        raise ChipError(f"is no file: {path.rpartition('/')[2]} is a folder, a pipe or a device")
