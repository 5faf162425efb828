"""GeoTIFFs of exports checked: that they are Cloud Optimized, what they say of themselves, and their pixels."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.windows

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError
from daskembed.exports.validate.known import Known, check_bytes, check_made
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.provenance import typed
from daskembed.storage.local_files import room_for
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

_MOST_BLOCK = 256 * 2**20
"""Bytes of a block with all bands, which is what is in memory."""
_COPIED = 8 * 2**20
"""Bytes that are fetched at a time."""
_HALF = ("float16", "float32")
"""What half floats are written as, where GDAL does not know them."""


def check_cog(storage: Storage, name: str, known: Known) -> Iterator[Finding]:
    """Check a file: it is read twice, a block at a time; one in a store is fetched to the disk first."""
    with storage.open_reader(name) as reader, tempfile.TemporaryDirectory(prefix="daskembed-") as folder:
        yield from check_bytes(reader, known.receipt)
        path = Path(storage.url_of(name)) if is_local(storage.url) else Path(folder) / "fetched.tif"
        if not is_local(storage.url):
            reader.seek(0)
            with room_for(folder), path.open("wb") as file:
                while data := reader.read(_COPIED):
                    file.write(data)
        try:
            with rasterio.open(path) as file:
                yield from _check_content(file, known)
        except DaskembedError:
            raise
        except Exception as error:  # whatever rasterio and GDAL raise of what somebody wrote
            reason = str(error).partition("\n")[0] or type(error).__name__
            yield Finding("cog", f"cannot be read as GeoTIFF, it is cut off or damaged: {reason}")


def _check_content(file: Any, known: Known) -> Iterator[Finding]:
    if file.driver != "GTiff":
        yield Finding("cog", f"is of the format {file.driver}, expected GeoTIFF")
        return
    if (layout := file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")) != "COG":
        was = "its layout is none" if layout is None else f"its layout is {layout}"
        yield Finding("cog", f"{was}: it is no Cloud Optimized GeoTIFF, or was changed since it was made")
    if not file.is_tiled:
        yield Finding("cog", "its pixels are not in tiles")
    if file.crs is None:
        yield Finding("geometry", "it has no CRS")
    made: dict[str, Any] = {}
    try:
        made = yield from typed(parse_object(file.tags().get("daskembed", "")), "file")
    except ValueError:
        yield Finding("provenance", "no `daskembed` in its tags: nothing says what made the embeddings")
    if made:
        yield from check_made(made, known.settings)
        yield from _check_bands(file, made)
    down, across = file.block_shapes[0]
    if (size := down * across * file.count * np.dtype(file.dtypes[0]).itemsize) > _MOST_BLOCK:
        yield Finding("cog", f"a block has {size:,} bytes, expected at most {_MOST_BLOCK:,}")
        return
    yield from _check_pixels(file)


def _check_bands(file: Any, made: Mapping[str, Any]) -> Iterator[Finding]:
    components = made.get("components")
    if isinstance(components, list) and len(components) != file.count:
        yield Finding("schema", f"{file.count} bands, its tags name {len(components)} components")
    if not all(file.descriptions):
        yield Finding("schema", "bands without a description: nothing says which component they are")
    dtypes = {*file.dtypes}
    if dtypes != {made.get("dtype")} and (made.get("dtype"), *dtypes) != _HALF:
        yield Finding("schema", f"its bands are of {', '.join(sorted(dtypes))}, expected {made.get('dtype')}")
    nodata = file.nodata
    if nodata is None or (nodata != -128 if made.get("dtype") == "int8" else not math.isnan(nodata)):
        yield Finding(
            "schema", f"its nodata value is {nodata}, expected {-128 if made.get('dtype') == 'int8' else 'NaN'}"
        )


def _check_pixels(file: Any) -> Iterator[Finding]:
    """A pixel has all its components, or none."""
    cells = 0
    whole = file.dtypes[0].startswith("int")
    for (row, col), window in file.block_windows(1):
        try:
            values = file.read(window=window)
        except rasterio.errors.RasterioIOError as error:
            yield Finding("cog", f"block {row}, {col} cannot be read: {' '.join(str(error).split())[:200]}")
            continue
        if np.isinf(values).any():
            yield Finding("vectors", f"infinity in block {row}, {col}")
        empty = values == file.nodata if whole else np.isnan(values)
        if torn := int((empty.any(axis=0) & ~empty.all(axis=0)).sum()):
            yield Finding("vectors", f"some components are missing of {torn} pixels of block {row}, {col}")
        cells += int((~empty.any(axis=0)).sum())
    if not cells:
        yield Finding("vectors", "no pixel has a value")
