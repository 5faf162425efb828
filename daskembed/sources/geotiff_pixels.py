"""A chip's file in Clay's layout: its pixels."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from daskembed.errors import ChipError, InputError
from daskembed.geo.chips import CHIP
from daskembed.health import fault_of, read_surely
from daskembed.sensors.bands import LARGEST
from daskembed.sources.gdal import BESIDE, MOST_SIDECAR, TIFF_SIGNATURES, check_sidecar, missing_blocks, read_bands
from daskembed.sources.values import part_masks
from daskembed.storage.stores import Entry, Storage, split_url
from daskembed.timings import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray


SIZE = CHIP

# What a damaged or hostile file may claim is bounded before anything is allocated for it. Without compression a chip of
# the widest type takes 27 MB; GDAL decodes whole blocks, which may be larger than the image.
MOST_BYTES = 128 * 1024**2

_LARGEST_BLOCK = 1024

GONE = "is gone: it was listed, but the store no longer has it"


def read_chip(
    url: str, bands: tuple[int, ...], listed: tuple[int, str] | None = None, *, sidecars: Sequence[str] = ()
) -> NDArray[np.generic]:
    """Fetch a chip in one request and decode its pixels; fetch it again before it is condemned.

    Parameters
    ----------
    url
        URL or path of the file.
    bands
        1-based numbers of the bands, in the order wanted.
    listed
        Its bytes and ETag in a listing, which the store's answers are compared with.
    sidecars
        Those of `SIDECARS` that lie beside it, each another request.

    Returns
    -------
    Stored numbers ``(band, y, x)`` in the file's own type; a masked array where the file has masks.

    Raises
    ------
    ChipError
        If the file is gone, damaged, unfinished or not of the size that its header said.
    StorageError
        If the store does not answer, or not with what it lists.
    SickMachineError
        If this process cannot decode any chip.
    """
    storage, name = split_url(url)

    def read(fresh: bool) -> NDArray[np.generic]:
        try:
            with timed("source"):
                data = storage.get_listed(Entry(name, *listed), fresh=fresh) if listed else storage.get(name)
                beside = get_sidecars(replace(storage, fresh=fresh), name, sidecars)
        except FileNotFoundError:
            raise ChipError(GONE) from None
        with timed("decode"):
            return decode_chip(data, bands, beside)

    return read_surely(url, read)


def decode_chip(
    data: bytes, bands: tuple[int, ...], sidecars: Mapping[str, bytes] | None = None
) -> NDArray[np.generic]:
    """Decode a chip's bytes, and those of what lies beside it; see `read_chip`."""
    if data[:4] not in TIFF_SIGNATURES:
        raise ChipError(f"cannot be decoded, it is no longer a TIFF: it starts with {data[:4]!r}")
    try:
        with _in_memory(data, sidecars or {}) as dataset:
            check_grid(dataset)
            _check_blocks(dataset)
            if dataset.count < max(bands):
                raise ChipError(f"has {dataset.count} bands, its header had at least {max(bands)}: it was replaced")
            pixels = read_bands(dataset, bands)
            nodata = [dataset.nodatavals[number - 1] for number in bands]
    except (RasterioError, ValueError, IndexError) as error:
        # rasterio's own errors do not survive pickling.
        raise fault_of(error, f"cannot be decoded, it is damaged or truncated: {oneline(error)}") from None
    _check_values(pixels, bands, nodata)
    return pixels


@contextlib.contextmanager
def _in_memory(data: bytes, sidecars: Mapping[str, bytes]) -> Iterator[Any]:
    """A dataset of a chip's bytes."""
    folder = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**(GDAL_BESIDE if sidecars else GDAL)))
        memory = stack.enter_context(MemoryFile(data, dirname=folder, filename=f"{folder}.tif"))
        for end, beside in sidecars.items():
            stack.enter_context(MemoryFile(beside, dirname=folder, filename=f"{folder}.tif{end}"))
        yield stack.enter_context(memory.open(driver="GTiff"))


def oneline(error: BaseException) -> str:
    """What GDAL says, or what was raised beneath it."""
    cause = error.__cause__ or error
    # GDAL calls a file in memory by a random name.
    text = re.sub(r"['`]?[\w/-]*[0-9a-f]{8}-?[0-9a-f-]{23,}[\w/-]*\.tif['`]?", "the file", " ".join(str(cause).split()))
    return text or type(cause).__name__


def get_sidecars(storage: Storage, path: str, ends: Sequence[str]) -> dict[str, bytes]:
    """What lies beside a chip, by the ends of the names; raises `ChipError` if it is too long or names other files."""
    found = {}
    for end in ends:
        beside, most = f"{path}{end}", MOST_BYTES if end == ".msk" else MOST_SIDECAR
        try:
            found[end] = storage.get(beside, most=most)
        except InputError:
            raise ChipError(f"has beside it {beside}, which has more than {most:,} bytes: remove it") from None
        check_sidecar(beside, found[end])
    return found


def check_grid(dataset: Any) -> None:
    """Raise `ChipError` for a dataset that has not the size, the type or the blocks of a chip."""
    if dataset.shape != (SIZE, SIZE):
        raise ChipError(f"has {dataset.height} x {dataset.width} pixels, expected {SIZE} x {SIZE}")
    # Not by way of NumPy, which lacks some of GDAL's types.
    if kinds := sorted({kind for kind in dataset.dtypes if not kind.startswith(("int", "uint", "float"))}):
        raise ChipError(f"has {', '.join(kinds)} pixels, expected integers or floats")
    if (largest := max(dataset.block_shapes, key=max)) and max(largest) > _LARGEST_BLOCK:
        raise ChipError(
            f"is cut into blocks of {largest[0]} x {largest[1]} pixels, expected at most "
            f"{_LARGEST_BLOCK} x {_LARGEST_BLOCK}"
        )


def _check_blocks(dataset: Any) -> None:
    missing, count = missing_blocks(dataset)
    if missing:
        raise ChipError(
            f"lacks {missing} of its {count} blocks of pixels: it was not written to its end, is damaged, or was "
            "written as a sparse file; write it again"
        )


def _check_values(pixels: NDArray[np.generic], bands: tuple[int, ...], nodata: Sequence[float | None]) -> None:
    """Damaged strips that inflate without an error mostly hold floats with random exponents."""
    numbers, mask = part_masks(pixels)
    # Values that are not finite are for `on_nan` to judge, the others still for this. Looking for the bands is slower.
    extremes = np.array([numbers.min(), numbers.max()], np.float64)
    if np.isfinite(extremes).all() and np.abs(extremes).max() <= LARGEST:
        return
    for place, (number, band) in enumerate(zip(bands, numbers, strict=True)):
        there = np.isfinite(band) & (True if nodata[place] is None else band != nodata[place])
        there &= True if mask is None else ~mask[place]
        beyond = np.abs(band[there].astype(np.float64)).max(initial=0)
        if beyond > LARGEST:
            raise ChipError(
                f"has values of up to {beyond:.3g} in band {number}, expected none beyond {LARGEST:g}: "
                "it is damaged, or has a fill value"
            )


# Drivers other than GTiff never see the bytes, and blocks are read once.
GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 16, "GDAL_NUM_THREADS": 1}

# Of a chip that has such files GDAL sees them, and nothing else.
GDAL_BESIDE = GDAL | BESIDE
