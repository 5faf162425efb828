"""Files of catalogues' images: what their headers say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import MaskFlags

from daskembed.errors import ChipError, InputError, exact
from daskembed.health import read_surely
from daskembed.sources.bands import short
from daskembed.sources.stac.blocks import MOST_BLOCK, open_anew
from daskembed.storage.access import Access

GONE = "is not there: the catalogue lists it, but the store has no such file"


@dataclass(frozen=True)
class Image:
    """A file of an image, by its header; or why it cannot be read."""

    url: str
    """Where it lies, without a signature."""
    asset: str
    """Its key in the item."""
    access: tuple[tuple[str, str], ...] = ()
    """`Catalogue.access`, as pairs."""
    size: int = 0
    """Bytes."""
    etag: str = ""
    epsg: int = 0
    """Of its CRS; 4326 in degrees."""
    west: float = 0.0
    """Of its north-western corner, in the CRS's unit; likewise `north`."""
    north: float = 0.0
    step_x: float = 0.0
    """Width of a pixel; `step_y` its height, positive where rows go from north to south."""
    step_y: float = 0.0
    height: int = 0
    width: int = 0
    block: tuple[int, int] = (512, 512)
    """Pixels (y, x) that are stored together."""
    dtype: str = ""
    nodata: float | None = None
    """By its tag."""
    scale: float = 1.0
    offset: float = 0.0
    failure: str | None = None
    """Why its header cannot be read: chips that need it are quarantined."""


def look(url: str, asset: str, access: Mapping[str, str] | Access) -> Image:
    """What a file's header says, by one request for most.

    Parameters
    ----------
    url
        Without a signature.
    asset
        Its key in the item.
    access
        `Catalogue.access`.

    Returns
    -------
    Image
        With a `failure` if the file is not there, or cannot be used.

    Raises
    ------
    StorageError
        If the store does not answer, or refuses.
    SickMachineError
        If this machine can read no file.
    """
    pairs = tuple(sorted(dict(access).items()))

    def read(fresh: bool) -> Image:
        try:
            file = open_anew(url, pairs)
            facts = file.look(_facts)
        except FileNotFoundError:
            raise ChipError(GONE) from None
        except InputError as error:
            raise ChipError(str(error)) from None
        return Image(url, asset, pairs, file.size, file.etag, block=file.block, **facts)

    try:
        return read_surely(url, read)
    except ChipError as error:
        return Image(url, asset, pairs, failure=str(error))


def _facts(dataset: Any) -> dict[str, Any]:
    if dataset.count != 1:
        raise ChipError(f"has {dataset.count} bands, expected 1")
    kind = dataset.dtypes[0]
    if not kind.startswith(("int", "uint", "float")):
        raise ChipError(f"has {kind} pixels, expected integers or floats")
    if MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        raise ChipError("has a mask of its own, which is not looked at here: expected a nodata value")
    crs = dataset.crs
    epsg = crs.to_epsg() if crs else None
    if epsg is None:
        found = f"the CRS {short(crs.to_string())}" if crs else "no CRS"
        raise ChipError(f"has {found}, expected one with an EPSG code, such as EPSG:32633")
    step_x, shear_x, west, shear_y, step_y, north = dataset.transform[:6]
    # Written so that NaN is refused.
    if not (shear_x == shear_y == 0 and step_x > 0 and step_y < 0):
        numbers = ", ".join(map(exact, dataset.transform[:6]))
        raise ChipError(f"has the geotransform {numbers}: expected rows from north to south, not rotated")
    block = dataset.block_shapes[0]
    if (size := math.prod(block) * np.dtype(kind).itemsize) > MOST_BLOCK:
        raise ChipError(
            f"is stored in blocks of {block[0]} x {block[1]} pixels, of which each has {size / 1e6:.0f} MB: expected "
            "one in smaller blocks, such as 512 x 512"
        )
    nodata = dataset.nodatavals[0]
    return {
        "epsg": epsg,
        "west": west,
        "north": north,
        "step_x": step_x,
        "step_y": -step_y,
        "height": dataset.height,
        "width": dataset.width,
        "dtype": kind,
        # NaN is no value whatever a tag says, and JSON has none.
        "nodata": None if nodata is None or not math.isfinite(nodata) else float(nodata),
        "scale": float(dataset.scales[0]),
        "offset": float(dataset.offsets[0]),
    }
