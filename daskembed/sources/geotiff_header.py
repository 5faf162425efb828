"""A chip's file in Clay's layout: what its header says."""

from __future__ import annotations

import io
import re
import uuid
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from daskembed.errors import ChipError, exact
from daskembed.geo.footprints import metres_of_unit
from daskembed.health import fault_of
from daskembed.sources.bands import order_bands, short
from daskembed.sources.baseline import Evidence
from daskembed.sources.gdal import TIFF_SIGNATURES, projected_epsg, scale_of
from daskembed.sources.geotiff_pixels import (
    GDAL,
    GDAL_BESIDE,
    MOST_BYTES,
    check_grid,
    get_sidecars,
    oneline,
)
from daskembed.sources.reading import Reading
from daskembed.sources.scales import Scale, settle
from daskembed.storage.readers import RangedReader, keeping
from daskembed.storage.stores import Entry, Storage

_SMALLEST_PIXEL = 0.01

_LARGEST_PIXEL = 1000.0

_READING = Reading()

_PIXEL_ERROR = 1e-3
"""Of a pixel's side, relative: half a pixel in a chip."""

NAME = re.compile(r"claytile_(?P<tile>[0-9]{2}[A-Z]{3})_(?P<date>[0-9]{8})_v02_(?P<number>[0-9]{4})\.tif")


@dataclass(frozen=True)
class Header:
    """What is used of a header."""

    date: date
    epsg: int
    bounds: tuple[float, float, float, float]
    bands: tuple[int, ...]
    scales: tuple[Scale, ...]
    sidecars: tuple[str, ...] = ()


def named_date(path: str) -> date | None:
    """The date in the name of a chip's file."""
    match = NAME.fullmatch(path.rpartition("/")[2])
    return None if match is None else _parse_date(match["date"])


def _parse_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def read_header(
    storage: Storage,
    entry: Entry,
    tile: str,
    reading: Reading = _READING,
    sidecars: tuple[str, ...] = (),
    *,
    fresh: bool = False,
) -> Header:
    """Read the header of a chip's file, in one request or two.

    Raises
    ------
    ChipError
        If the file cannot be used.
    FileNotFoundError, StorageError, SickMachineError
    """
    if entry.reason is not None:
        raise ChipError(entry.reason)
    if entry.size > MOST_BYTES:
        raise ChipError(
            f"has {entry.size:,} bytes, expected at most {MOST_BYTES:,}: a chip without compression has 27 MB"
        )
    failures: list[Exception] = []
    kept = keeping(lambda start, end: storage.get_listed(entry, start, end, fresh=fresh), entry.size)

    def fetch(start: int, end: int) -> bytes:
        try:
            return kept(start, end)
        except Exception as error:
            # GDAL swallows what is raised beneath it: that is raised again once GDAL has given up.
            failures.append(error)
            return b""

    file = RangedReader(fetch, entry.size)
    start = file.read(4)
    if failures:
        raise failures[-1]
    if start not in TIFF_SIGNATURES:
        found = "is empty" if not start else f"is not a TIFF: it starts with {start!r}"
        raise ChipError(f"{found}; expected a GeoTIFF of {len(reading.sensor.bands)} bands")
    name = f"{uuid.uuid4().hex}.tif"
    more = get_sidecars(replace(storage, fresh=fresh), entry.path, sidecars)
    beside = {f"{name}{end}": data for end, data in more.items()}

    def opener(path: str, mode: str = "rb") -> io.RawIOBase | io.BytesIO:
        for known, data in beside.items():
            if path.endswith(known):
                return io.BytesIO(data)
        if not path.endswith(name):
            raise FileNotFoundError(path)
        file.seek(0)
        return file

    try:
        with (
            rasterio.Env(**(GDAL_BESIDE if sidecars else GDAL)),
            rasterio.open(name, opener=opener, driver="GTiff") as dataset,
        ):
            header = _check_header(dataset, entry.path, tile, reading)
            scales = settle(
                [scale_of(dataset, number) for number in header.bands],
                reading.sensor.bands,
                reading.sensor,
                np.dtype(dataset.dtypes[0]),
                reading,
                Evidence(storage.url_of(entry.path), header.date, dataset.tags()),
            )
            return replace(header, scales=scales, sidecars=sidecars)
    except (RasterioError, ValueError) as error:
        raise fault_of(error, f"has a damaged header: {oneline(error)}") from None
    finally:
        # GDAL goes on without what could not be fetched: that is not the chip's fault.
        if failures:
            raise failures[-1]


def _check_header(dataset: Any, path: str, tile: str, reading: Reading) -> Header:
    check_grid(dataset)
    numbers = order_bands(dataset.descriptions, reading.sensor)
    epsg = projected_epsg(dataset)
    if dataset.transform.is_identity:
        raise ChipError("has no georeferencing: expected a geotransform of 10 m pixels")
    step_x, shear_x, _, shear_y, step_y, _ = dataset.transform[:6]
    sides = [step * metres_of_unit(epsg) for step in (step_x, -step_y)]
    # Written so that NaN is refused.
    if not (shear_x == shear_y == 0 and all(_SMALLEST_PIXEL <= side <= _LARGEST_PIXEL for side in sides)):
        raise ChipError(
            f"has the geotransform {', '.join(map(exact, dataset.transform[:6]))}: expected 10 m pixels, "
            "rows from north to south, not rotated"
        )
    if (wanted := reading.resolution) is not None and not np.allclose(sides, wanted, rtol=_PIXEL_ERROR, atol=0):
        raise ChipError(
            f"has pixels of {exact(sides[0])} x {exact(sides[1])} m, expected {exact(wanted)} m: resample it"
        )
    tag = dataset.tags().get("date")
    if tag is None:
        raise ChipError("has no `date` tag, expected date=YYYY-MM-DD")
    day = _parse_date(tag) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", tag) else None
    if day is None or not 2014 <= day.year <= 2100:
        raise ChipError(f"has the `date` tag {short(tag)!r}, expected YYYY-MM-DD within the years of Sentinel-1 and -2")
    named = NAME.fullmatch(path.rpartition("/")[2])
    if named is not None:
        if named["tile"] != tile:
            raise ChipError(f"is named after tile {named['tile']}, expected {tile}")
        if (dated := _parse_date(named["date"])) is not None and dated != day:
            raise ChipError(f"is named after {dated}, but its `date` tag says {day}")
    return Header(day, epsg, tuple(dataset.bounds), numbers, ())
