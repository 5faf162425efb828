"""What is asked of an open raster, whatever kind of source it is of."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp, Interleaving, MaskFlags

from daskembed.errors import ChipError
from daskembed.sources.bands import short
from daskembed.sources.scales import Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray


TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What TIFFs begin with."""
SIGNATURES = (*TIFF_SIGNATURES, b"\0\0\0\x0cjP  ")
"""What TIFF and JPEG 2000 begin with. GDAL tells the format of a source by its content, and all of these keep the other
drivers away: those that fetch from elsewhere or run what they are told begin with text."""
SIDECARS = (".aux.xml", ".msk")
"""What the name of a file ends with that says more of the pixels of another: nodata and the like, and its mask."""

MOST_SIDECAR = 2**20
"""Bytes of one of tags."""

# Nothing beside a file moves one that says itself where it is. (Without PAM in the list GDAL reads no nodata of it.)
BESIDE = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_GEOREF_SOURCES": "INTERNAL,PAM"}
"""With these settings GDAL reads such files too, and takes CRS and transform from them only where a file has none."""


def scale_of(dataset: Any, number: int) -> Scale:
    """What the tags of a band (from 1) of an open rasterio dataset say of its numbers."""
    gap = dataset.nodatavals[number - 1]
    nodata = () if gap is None or math.isnan(gap) else (float(gap),)
    return Scale(nodata, float(dataset.scales[number - 1]), float(dataset.offsets[number - 1]))


def read_bands(dataset: Any, bands: Sequence[int], window: Any = None) -> NDArray[np.generic]:
    """Bands of an open rasterio dataset ``(band, y, x)``: a masked array where the dataset itself has masks.

    What nodata tags say is left to `Scale`.
    """
    pixels: NDArray[np.generic] = dataset.read(list(bands), window=window)
    flags = [dataset.mask_flag_enums[number - 1] for number in bands]
    with_masks = [
        place for place, kinds in enumerate(flags) if MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds
    ]
    # GDAL takes the fourth band of an 8-bit image for alpha, also where it is the near infrared that is wanted, or
    # said to be one; a fifth it leaves out.
    uses = zip(dataset.indexes, dataset.colorinterp, strict=True)
    alpha = [
        number
        for number, use in uses
        if use == ColorInterp.alpha
        and number not in bands
        and re.fullmatch(r"(?i)|.*alpha.*|mask|a", dataset.descriptions[number - 1] or "")
    ]
    if not with_masks and not alpha:
        return pixels
    masks = np.zeros(pixels.shape, np.bool_)
    if with_masks:
        masks[with_masks] = dataset.read_masks([bands[place] for place in with_masks], window=window) == 0
    for number in alpha:
        masks |= dataset.read(number, window=window) == 0
    return np.ma.masked_array(pixels, masks)


def check_sidecar(path: str, data: bytes) -> None:
    """Raise `ChipError` for a file beside another that would have GDAL open a third: it goes by content, not by name.

    Parameters
    ----------
    path
        Of the file.
    data
        All of it; of a mask its beginning will do.
    """
    if path.endswith(".msk") and not data.startswith(SIGNATURES):
        raise ChipError(f"has beside it {path}, which is no TIFF: it starts with {data[:8]!r}")
    if not path.endswith(".msk") and (len(data) > MOST_SIDECAR or re.search(rb"(?i)OVERVIEW_FILE|<!DOCTYPE", data)):
        raise ChipError(f"has beside it {path}, which is long or names other files: remove it")


def projected_epsg(dataset: Any, where: str = "") -> int:
    """Code of the CRS of an open rasterio dataset; raises `ChipError` if it has none, or is not projected."""
    crs = dataset.crs
    epsg: int | None = crs.to_epsg() if crs else None
    if epsg is None or not crs.is_projected:
        found = f"the CRS {short(crs.to_string())}" if crs else "no CRS"
        raise ChipError(f"has {found}{where}, expected a projected one with an EPSG code, such as EPSG:32633")
    return epsg


def missing_blocks(dataset: Any) -> tuple[int, int]:
    """How many blocks of pixels an open TIFF lacks, and how many it should have.

    GDAL reads blocks that are not in the file as zeros, and a writer that was killed leaves all of them out.
    """
    numbers = (1,) if dataset.interleaving is Interleaving.pixel else dataset.indexes
    items = _block_items(dataset.shape, dataset.block_shapes[0])
    found = [dataset.get_tag_item(item, "TIFF", number) for number in numbers for item in items]
    return found.count(None), len(found)


# Made once for chips that are alike: there are 512 to look up in one of strips of one row.
@functools.lru_cache(16)
def _block_items(shape: tuple[int, int], block: tuple[int, int]) -> tuple[str, ...]:
    down, across = (-(-length // side) for length, side in zip(shape, block, strict=True))
    return tuple(f"BLOCK_OFFSET_{x}_{y}" for y in range(down) for x in range(across))
