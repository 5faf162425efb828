"""Whole tiles as Zarr stores: ``{MGRS}*.zarr`` with the dimensions [time,] band, y, x."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from daskembed.errors import ChipError, InputError
from daskembed.health import read_surely
from daskembed.sources.bands import order_bands
from daskembed.sources.baseline import Evidence
from daskembed.sources.cf import epsg_of, georeferencing, plain, times_of
from daskembed.sources.chunks import ZarrChunks
from daskembed.sources.listing import Listing
from daskembed.sources.pixel_rules import CLASSES
from daskembed.sources.reading import Reading
from daskembed.sources.scales import Scale, settle
from daskembed.sources.scene import Reader, Scene, damage_is_the_chips, grid_of
from daskembed.sources.scenes import Found, fingerprint_of, frame_of_scenes, listing_of
from daskembed.storage.failures import explained
from daskembed.storage.stores import Storage, is_stray, zarr_store
from daskembed.storage.zarr_metadata import checked

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

_SUFFIX = ".zarr"


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

    def open(self, *, fresh: bool = False) -> Reader:
        """Open it for reading, past caches if `fresh`."""
        array = _open_dataset(self.url, fresh=fresh)[self.variable]
        dims_of_all = tuple(map(str, array.dims))
        sides = array.encoding.get("chunks") or array.shape
        chunks = ZarrChunks(Storage(self.url, fresh), self.variable, dims_of_all, sides)
        if self.time is not None:
            array = array.isel(time=self.time)
        dims = ("y", "x") if self.bands is None else ("band", "y", "x")
        bands = None if self.bands is None else [number - min(self.bands) for number in self.bands]
        if self.bands is not None:
            # Picked afterwards: one by one they would be decoded out of the same chunks again and again.
            array = array.isel(band=slice(min(self.bands), max(self.bands) + 1))

        start = {"time": self.time or 0, "band": min(self.bands or (0,))}

        def read(rows: slice, cols: slice) -> NDArray[np.generic]:
            with damage_is_the_chips(), explained(self.url, self.url):
                window = _decode(array.isel(y=rows, x=cols).transpose(*dims))
                lost = chunks.lost(window, start | {"y": rows.start, "x": cols.start})
            found = window if lost is None else np.ma.masked_array(window, lost)
            return found[None] if bands is None else found[bands]

        return read


def list_chips(tile: str, storage: Storage, reading: Reading) -> Listing | None:
    """The chips of the stores of a tile, or of those in its folder; see `daskembed.index_tile`."""
    found: list[Found] = []
    for path in _stores(tile, storage):
        entries = [entry for entry in storage.entries(path) if not is_stray(entry.path.removeprefix(path))]
        size = sum(entry.size for entry in entries)
        etag = fingerprint_of(entries)
        try:
            old = not any(entry.path.endswith("zarr.json") for entry in entries)
            url = storage.url_of(path)
            scenes = read_surely(url, partial(_scenes, url, etag, reading, old))
        except ChipError as error:
            found.append(Found(path, size, etag, None, str(error)))
            continue
        except InputError:
            raise
        # Of attributes that nobody thought of.
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found.append(Found(path, size, etag, None, f"has metadata that are not understood: {said}"))
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
    return frame_of_scenes(listing)


def _open_dataset(url: str, *, fresh: bool) -> xr.Dataset:
    root = Storage(url, fresh)
    # Consolidated metadata are a copy, and say nothing of what was appended or replaced since. What is a number and
    # what is none is for `Scale` to say, which keeps integers as they are; times are for `times_of`, grid
    # mappings for `epsg_of`: xarray would warn of one that is not there.
    options: dict[str, Any] = {"engine": "zarr", "chunks": None, "cache": False, "consolidated": False}
    with explained(url, url):
        try:
            store = checked(zarr_store(root), root)
            return xr.open_dataset(store, mask_and_scale=False, decode_times=False, decode_coords=True, **options)
        except InputError:
            raise
        except (FileNotFoundError, KeyError):
            raise ChipError("is no Zarr group: expected zarr.json or .zgroup in it") from None
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ChipError(f"cannot be opened as Zarr: {' '.join(str(error).split())[:200]}") from None


def _scenes(url: str, etag: str, reading: Reading, old: bool, fresh: bool) -> list[Scene]:
    dataset = _open_dataset(url, fresh=fresh)
    variable = _variable(dataset)
    array = dataset[variable]
    if array.dtype.kind not in "iuf":
        raise ChipError(f"holds {array.dtype} in {variable}, expected integers or floats")
    epsg = epsg_of(dataset)
    west, north, step = georeferencing(dataset, array, epsg, reading)
    shape = (array.sizes["y"], array.sizes["x"])
    names: list[str | None] = [None] * array.sizes["band"]
    if "band" in array.coords and array["band"].dtype.kind not in "iuf":
        names = [str(plain(name)) for name in array["band"].values]
    numbers = tuple(number - 1 for number in order_bands(names, reading.sensor, more=True))
    said = _scale(array, old=old)
    times = times_of(dataset, array, url)
    chunks = dict(zip(array.dims, array.encoding.get("chunks") or array.shape, strict=True))
    grid = grid_of(shape, reading)
    lower = [(name or "").lower() for name in names]
    inside = (lower.index(CLASSES),) if CLASSES in lower else ()
    scenes = []
    for label, day, number in times:
        evidence = Evidence(url, day, _about(dataset, array, number))
        scales = settle([said] * len(numbers), reading.sensor.bands, reading.sensor, array.dtype, reading, evidence)
        if said.tagged and len({scale.applied for scale in scales}) > 1:
            scales = _alike(scales, reading)
        # Classes beside packed values are packed like these.
        packed = replace(said, applied=scales[0].applied)
        layer = ZarrLayer(url, variable, number, numbers + inside, scales + (packed,) * len(inside))
        scene = Scene(
            url=f"{url}#{label}",
            date=day,
            fingerprint=etag,
            bands=reading.sensor.names,
            layers=(layer,),
            classes=None if inside else _classes(dataset, url, number, old=old),
            classified=bool(inside),
            epsg=epsg,
            west=west,
            north=north,
            step=step,
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


def _alike(scales: tuple[Scale, ...], reading: Reading) -> tuple[Scale, ...]:
    """The bands of one array, which are packed all or none, though their kinds alone would say otherwise."""
    if reading.numbers is None:
        raise ChipError(
            f"has one scale ({scales[0].scale:g}) and offset ({scales[0].offset:g}) for bands that are digital numbers "
            "and bands that are values: say which to take of all with `numbers='stored'` or `numbers='values'`"
        )
    return tuple(replace(scale, applied=reading.numbers == "values") for scale in scales)


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


def _scale(array: xr.DataArray, *, old: bool) -> Scale:
    """What the attributes of a variable say of its numbers, as CF and xarray read them."""
    if "_Unsigned" in array.attrs:
        raise ChipError(f"has the attribute _Unsigned in {array.name}: write its numbers in the type that they are of")
    fill, *others = (_numbers_in(array, name) for name in ("_FillValue", "missing_value", "nodata"))
    # Zarr v2 has a fill value for every array, 0 by default, which xarray takes for nodata: a height of 0 is none.
    fill = tuple(number for number in fill if not (old and number == 0))
    nodata = dict.fromkeys(number for numbers in (fill, *others) for number in numbers if not math.isnan(number))
    scale, offset = _one_number(array, "scale_factor", 1.0), _one_number(array, "add_offset", 0.0)
    return Scale(tuple(nodata), scale, offset, absent="has no chunk (write_empty_chunks=True keeps those of zeros)")


def _one_number(array: xr.DataArray, name: str, default: float) -> float:
    found = _numbers_in(array, name)
    if name in array.attrs and len(found) != 1:
        raise ChipError(
            f"has {len(found)} numbers in the attribute {name} of {array.name}: expected one for all bands; write "
            "bands that differ as variables of their own and join them decoded, or decode them before writing"
        )
    return found[0] if found else default


def _numbers_in(array: xr.DataArray, name: str) -> tuple[float, ...]:
    """Numbers in an attribute that may be there."""
    said = array.attrs.get(name)
    if said is None:
        return ()
    try:
        # Of text only what JSON has no number for; of bytes and the like nothing.
        if isinstance(said, str) and said not in ("NaN", "Infinity", "-Infinity"):
            raise ValueError
        numbers = np.asarray(said).astype(np.float64) if not isinstance(said, bytes | bool) else None
    except (ValueError, TypeError):
        numbers = None
    if numbers is None:
        raise ChipError(f"has {said!r:.40} in the attribute {name} of {array.name}: expected a number")
    return tuple(numbers.reshape(-1).tolist())


def _about(dataset: xr.Dataset, array: xr.DataArray, time: int | None) -> dict[Any, Any]:
    """What is said of the images at one time: attributes, and coordinates of text or number as catalogues' items."""
    found: dict[Any, Any] = {**dataset.attrs, **array.attrs}
    for name, coordinate in array.coords.items():
        if coordinate.dims == ():
            found[name] = coordinate.item()
        elif coordinate.dims == ("time",) and time is not None:
            found[name] = coordinate.values[time]
    return found


def _classes(dataset: xr.Dataset, url: str, time: int | None, *, old: bool) -> ZarrLayer | None:
    """The scene classification in a variable of its own."""
    for name, array in dataset.data_vars.items():
        if str(name).lower() == CLASSES and set(array.dims) in ({"y", "x"}, {"time", "y", "x"}):
            return ZarrLayer(url, str(name), time if "time" in array.dims else None, None, (_scale(array, old=old),))
    return None


def _decode(array: xr.DataArray) -> NDArray[np.generic]:
    try:
        return array.to_numpy()
    except OSError as error:
        # Of gzip and bz2: damage, and none of a store.
        if isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.errno is None):
            raise ChipError(f"cannot be decoded, its part of the storage is damaged: {error}") from None
        raise
