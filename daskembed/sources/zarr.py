"""Whole tiles as Zarr stores: ``{MGRS}*.zarr`` with the dimensions [time,] band, y, x."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import xarray as xr

from daskembed.errors import ChipError
from daskembed.health import read_surely
from daskembed.sources import Listing, Reading
from daskembed.sources.judging import order_bands
from daskembed.sources.scenes import (
    Found,
    Reader,
    Scale,
    Scene,
    check_resolution,
    damage_is_the_chips,
    day_in,
    fingerprint_of,
    frame_of,
    grid_of,
    listing_of,
)
from daskembed.storage import Storage, explained, zarr_store

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

_SUFFIX = ".zarr"
_CLASSES = "scl"


@dataclass(frozen=True)
class ZarrLayer:
    """Some bands of an array, at one time."""

    url: str
    variable: str
    time: int | None
    """Number along ``time``; None if there is no such dimension."""
    bands: tuple[int, ...] | None
    """Numbers along ``band``, from 0; None if there is no such dimension."""
    scales: tuple[Scale, ...]
    coarser: int = 1
    kind: str = "daskembed.sources.zarr"


def list_chips(tile: str, storage: Storage, reading: Reading) -> Listing | None:
    """The chips of the stores of a tile, or of those in its folder; see `daskembed.index_tile`."""
    found: list[Found] = []
    for path in _stores(tile, storage):
        entries = storage.entries(path)
        size = sum(entry.size for entry in entries)
        etag = fingerprint_of(entries)
        try:
            old = not any(entry.path.endswith("zarr.json") for entry in entries)
            url = storage.url_of(path)
            scenes = read_surely(url, lambda fresh: _scenes(url, etag, reading, old=old))  # noqa: B023 (called at once)
        except ChipError as error:
            found.append(Found(path, size, etag, None, str(error)))
            continue
        found += [Found(path, size // len(scenes), etag, scene) for scene in scenes]
    return listing_of("zarr", tile, storage, reading, found)


def _stores(tile: str, storage: Storage) -> list[str]:
    flat = [path for path in storage.folders() if path.startswith(tile)]
    nested = [path for path in storage.folders(tile) if path.rpartition("/")[2].startswith(tile)]
    return sorted(path for path in (*flat, *nested) if path.endswith(_SUFFIX))


def describe(tile: str, storage: Storage) -> str:
    """Where stores are looked for."""
    return f"{tile}*{_SUFFIX} in either"


def read_headers(listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
    """The index of a listing; the stores' metadata was read for the listing."""
    return frame_of(listing, reading)


def _open_dataset(url: str) -> xr.Dataset:
    root = Storage(url)
    with explained(url, url):
        try:
            return _open_either_way(zarr_store(root))
        except (FileNotFoundError, KeyError):
            raise ChipError("is no Zarr group: expected zarr.json, .zgroup or .zmetadata in it") from None
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ChipError(f"cannot be opened as Zarr: {' '.join(str(error).split())[:200]}") from None


def _open_either_way(store: Any) -> xr.Dataset:
    # What is a number and what is none is for `Scale` to say, which keeps integers as they are.
    options: dict[str, Any] = {"engine": "zarr", "chunks": None, "cache": False, "decode_coords": "all"}
    try:
        return xr.open_dataset(store, consolidated=True, mask_and_scale=False, **options)
    except (KeyError, ValueError):
        return xr.open_dataset(store, consolidated=False, mask_and_scale=False, **options)


def _scenes(url: str, etag: str, reading: Reading, *, old: bool) -> list[Scene]:
    dataset = _open_dataset(url)
    variable = _variable(dataset)
    array = dataset[variable]
    if array.dtype.kind not in "iuf":
        raise ChipError(f"holds {array.dtype} in {variable}, expected integers or floats")
    epsg = _epsg(dataset)
    west, north, resolution = _georeferencing(array, reading)
    shape = (array.sizes["y"], array.sizes["x"])
    names: list[str | None] = [None] * array.sizes["band"]
    if "band" in array.coords and array["band"].dtype.kind not in "iuf":
        names = [str(name) for name in array["band"].values]
    numbers = tuple(number - 1 for number in order_bands(names, reading.sensor, more=True))
    scale = _scale(array, old=old)
    times = _times(dataset, array, url)
    chunks = dict(zip(array.dims, array.encoding.get("chunks") or array.shape, strict=True))
    grid = grid_of(shape, reading)
    lower = [(name or "").lower() for name in names]
    inside = (lower.index(_CLASSES),) if _CLASSES in lower else ()
    scenes = []
    for label, day, number in times:
        layer = ZarrLayer(url, variable, number, numbers + inside, (scale,) * len(numbers) + (Scale(),) * len(inside))
        scene = Scene(
            url=f"{url}#{label}",
            date=day,
            fingerprint=etag,
            bands=reading.sensor.names,
            layers=(layer,),
            classes=None if inside else _classes(dataset, url, number),
            classified=bool(inside),
            epsg=epsg,
            west=west,
            north=north,
            resolution=resolution,
            grid=grid,
            block=(int(chunks["y"]), int(chunks["x"])),
            # Whatever is stored together with a pixel is decoded with it.
            pixel_bytes=array.dtype.itemsize
            * max(max(numbers) - min(numbers) + 1, int(chunks["band"]))
            * int(chunks.get("time", 1)),
        )
        scene.check()
        scenes.append(scene)
    return scenes


def _variable(dataset: xr.Dataset) -> str:
    fitting = [
        str(name)
        for name, array in dataset.data_vars.items()
        if set(array.dims) in ({"band", "y", "x"}, {"time", "band", "y", "x"})
    ]
    if len(fitting) == 1:
        return fitting[0]
    # Stores list their arrays in any order.
    arrays = sorted(dataset.data_vars.items(), key=lambda item: str(item[0]))
    found = ", ".join(f"{name} ({', '.join(map(str, array.dims))})" for name, array in arrays)
    raise ChipError(
        f"has the variables {found or '(none)'}: expected one with the dimensions [time,] band, y, x "
        '(xarray\'s Dataset.to_array("band") makes one of several)'
    )


def _epsg(dataset: xr.Dataset) -> int:
    """From a grid mapping (CF), or the attributes of GeoZarr."""
    described: list[Any] = [dataset.attrs.get(name) for name in ("proj:code", "proj:epsg", "proj:wkt2", "crs")]
    for variable in dataset.variables.values():
        described += [variable.attrs.get(name) for name in ("crs_wkt", "spatial_ref", "proj:code", "proj:wkt2")]
    found = {str(text) for text in described if text}
    codes = set[int | None]()
    for text in found:
        try:
            codes.add(pyproj.CRS.from_user_input(int(text) if text.isdigit() else text).to_epsg())
        except pyproj.exceptions.CRSError:
            raise ChipError(f"has a CRS that PROJ does not know: {text[:60]}") from None
    if not codes:
        raise ChipError("has no CRS: looked for spatial_ref (crs_wkt) and the attributes proj:code, proj:wkt2 and crs")
    if len(codes) > 1 or None in codes:
        raise ChipError(f"has the CRSs {', '.join(map(str, codes))}: expected one with an EPSG code, such as 32633")
    code = int(str(codes.pop()))
    if not pyproj.CRS(code).is_projected:
        raise ChipError(f"has EPSG:{code}, expected a projected CRS, such as EPSG:32633")
    return code


def _georeferencing(array: xr.DataArray, reading: Reading) -> tuple[float, float, float]:
    """Metres of the west and north edges, and of a pixel."""
    lacking = [name for name in ("x", "y") if name not in array.coords]
    if lacking:
        raise ChipError(f"lacks the coordinates {', '.join(lacking)}: expected the centres of the pixels")
    x, y = (array[name].to_numpy().astype(np.float64) for name in ("x", "y"))
    if len(x) < 2 or len(y) < 2:
        raise ChipError(f"has {len(y)} x {len(x)} pixels")
    step_x, step_y = (x[-1] - x[0]) / (len(x) - 1), (y[-1] - y[0]) / (len(y) - 1)
    for values, step, name in ((x, step_x, "x"), (y, step_y, "y")):
        if not np.allclose(np.diff(values), step, rtol=1e-3, atol=0):
            raise ChipError(f"has a coordinate {name} that is not evenly spaced: expected a regular grid")
    resolution = check_resolution((step_x, step_y), reading)
    return float(x[0] - step_x / 2), float(y[0] - step_y / 2), resolution


def _scale(array: xr.DataArray, *, old: bool) -> Scale:
    attributes: Mapping[Any, Any] = array.attrs
    gap = attributes.get("_FillValue", attributes.get("nodata", attributes.get("missing_value")))
    gap = None if gap is None else float(np.asarray(gap).reshape(-1)[0])
    # Zarr v2 has a fill value for every array, 0 by default, which xarray takes for nodata: a height of 0 is none.
    return Scale(
        None if gap is None or math.isnan(gap) or (old and gap == 0) else gap,
        float(attributes.get("scale_factor", 1.0)),
        float(attributes.get("add_offset", 0.0)),
    )


def _times(dataset: xr.Dataset, array: xr.DataArray, url: str) -> list[tuple[str, date, int | None]]:
    """Label, day and number of each time."""
    if "time" in array.dims:
        if "time" not in array.coords or array["time"].dtype.kind != "M":
            raise ChipError("has a dimension time without dates: expected a coordinate of datetime64, as CF encodes it")
        stamps = array["time"].to_numpy().astype("datetime64[s]")
        days = stamps.astype("datetime64[D]")
        if np.isnat(days).any():
            raise ChipError(f"lacks a date at time {int(np.flatnonzero(np.isnat(days))[0])}")
        # Two images of one day are told apart by the time of day.
        labels = days if len(set(days)) == len(days) else stamps
        if len(set(labels)) < len(labels):
            raise ChipError(
                "has several images of one time: expected a coordinate time of which each value occurs once"
            )
        return [
            (str(label).replace(":", ""), day, number)
            for number, (label, day) in enumerate(zip(labels, days.astype(object), strict=True))
        ]
    tag = dataset["time"].to_numpy().astype("datetime64[D]").astype(object) if "time" in dataset.coords else None
    day = tag or day_in(str(array.attrs.get("date", dataset.attrs.get("date", "")))) or day_in(url.rpartition("/")[2])
    if not isinstance(day, date):
        raise ChipError(
            "tells no date: looked for a coordinate time, an attribute date=YYYY-MM-DD and YYYYMMDD in the name"
        )
    return [(day.isoformat(), day, None)]


def _classes(dataset: xr.Dataset, url: str, time: int | None) -> ZarrLayer | None:
    """The scene classification in a variable of its own."""
    for name, array in dataset.data_vars.items():
        if str(name).lower() == _CLASSES and set(array.dims) in ({"y", "x"}, {"time", "y", "x"}):
            return ZarrLayer(url, str(name), time if "time" in array.dims else None, None, (Scale(),))
    return None


def _decode(array: xr.DataArray) -> NDArray[np.generic]:
    try:
        return array.to_numpy()
    except OSError as error:
        # Of gzip and bz2: damage, and none of a store.
        if isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.errno is None):
            raise ChipError(f"cannot be decoded, its part of the storage is damaged: {error}") from None
        raise


def open_layer(layer: ZarrLayer) -> Reader:
    """Open a layer for reading."""
    array = _open_dataset(layer.url)[layer.variable]
    if layer.time is not None:
        array = array.isel(time=layer.time)
    dims = ("y", "x") if layer.bands is None else ("band", "y", "x")
    bands = None if layer.bands is None else [number - min(layer.bands) for number in layer.bands]
    if layer.bands is not None:
        # Picked afterwards: one by one they would be decoded out of the same chunks again and again.
        array = array.isel(band=slice(min(layer.bands), max(layer.bands) + 1))

    def read(rows: slice, cols: slice) -> NDArray[np.generic]:
        with damage_is_the_chips(), explained(layer.url, layer.url):
            window = _decode(array.isel(y=rows, x=cols).transpose(*dims))
        return window[None] if bands is None else window[bands]

    return read
