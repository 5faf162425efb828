"""Cubes of chips checked; see `daskembed.validate`."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError, InputError
from daskembed.geo.chips import CHIP
from daskembed.output import state
from daskembed.output.cube import PIXELS
from daskembed.output.geozarr import ROOT, cube_digest
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import Named, tile_of_cube
from daskembed.output.validate.stores import MOST_SHARD, HeldStore, check_place, check_times, hold, told_of
from daskembed.storage.zarr_metadata import checked

if TYPE_CHECKING:
    from daskembed.storage.stores import Storage

_PLACE = f"{PIXELS}/c/"


def check_cube(storage: Storage, name: str, sizes: dict[str, int]) -> Iterator[Finding]:
    """Check a cube, given the bytes of its objects: each is read once, the shards one at a time."""
    tile = tile_of_cube(name)
    if tile is None:
        yield Finding("name", f"the name {name} is not of the form {{MGRS}}.zarr")
    receipt = None if tile is None else (yield from _find_receipt(storage, tile))
    if ROOT not in sizes:
        yield Finding("zarr", f"no {ROOT}: the cube was never finished, or is being written")
        return
    shards = sorted(path for path in sizes if path.startswith(_PLACE))
    if large := [path for path in shards if sizes[path] > MOST_SHARD]:
        yield Finding("zarr", f"{sizes[large[0]]:,} bytes in {large[0]}, expected at most {MOST_SHARD:,}")
        return
    if (store := (yield from hold(storage, name, sizes, shards))) is None:
        return
    try:
        yield from _check_content(store, shards, tile, receipt)
    except DaskembedError:
        raise
    except Exception as error:  # whatever zarr, xarray and PROJ raise of what somebody wrote
        yield Finding("zarr", f"cannot be looked at to its end: {told_of(error)}")
    if receipt is not None:
        yield from _check_digests(store, shards, receipt)


def _find_receipt(storage: Storage, tile: str) -> Generator[Finding, None, state.CubeReceipt | None]:
    path = state.receipt_path(tile, None)
    try:
        receipt = state.read_cube_receipt(storage, tile)
    except InputError as error:
        yield Finding("receipt", str(error))
        return None
    if receipt is None:
        yield Finding("receipt", f"no receipt {path} beside it, so that its SHA-256 could not be checked", "note")
    elif receipt.status != "done":
        yield Finding("receipt", f"the receipt {path} says that it is not finished: the same command goes on with it")
        return None
    return receipt


def _check_content(
    store: HeldStore, shards: list[str], tile: str | None, receipt: state.CubeReceipt | None
) -> Iterator[Finding]:
    import xarray as xr
    import zarr
    from zarr.storage import MemoryStore

    memory = checked(MemoryStore(store.held))
    # Whatever zarr, numcodecs and xarray raise of damaged metadata.
    try:
        attributes = parse_object(store.held[ROOT].to_bytes())["attributes"]
        cube = xr.open_zarr(memory, chunks=None, consolidated=True)
        array = zarr.open_array(memory, path=PIXELS, mode="r")
        pixels = cube[PIXELS]
    except Exception as error:
        yield Finding("zarr", f"cannot be opened, it is damaged: {told_of(error)}")
        return
    dims = ("time", "band", "y", "x")
    if pixels.dims != dims:
        yield Finding(
            "schema",
            f"{PIXELS} has the dimensions {', '.join(map(str, pixels.dims))}, expected {', '.join(dims)}",
        )
        return
    if str(array.dtype) != "float32" or not np.isnan(array.fill_value):
        found = f"{array.dtype} with the fill value {array.fill_value}"
        yield Finding("schema", f"{PIXELS} is of {found}, expected float32 with NaN")
    if missing := [coordinate for coordinate in (*dims, "spatial_ref") if coordinate not in cube.coords]:
        yield Finding("schema", f"no coordinates {', '.join(missing)}")
        return
    bands = list(map(str, cube["band"].values))
    if array.chunks != (chunk := (1, len(bands), CHIP, CHIP)) or array.shards is None:
        yield Finding("schema", f"{PIXELS} has the chunks {array.chunks}, expected {chunk} in shards")
        return
    if (size := math.prod(chunk) * array.dtype.itemsize) > MOST_SHARD:
        yield Finding("zarr", f"{size:,} bytes in a chip of {PIXELS}, expected at most {MOST_SHARD:,}")
        return
    if receipt is not None and bands != (expected := receipt.settings.get("bands")):
        said = " ".join(map(str, expected)) if isinstance(expected, list) else repr(expected)
        yield Finding("schema", f"the bands are {' '.join(bands)}, the receipt says {said}")
    if tile is not None and attributes.get("tile", tile) != tile:
        yield Finding("provenance", f"the root says that it is of tile {attributes['tile']}, its name says {tile}")
    named = None if tile is None else Named(tile, date.min, date.max, "")
    yield from check_place(cube, attributes, named, (CHIP, CHIP))
    yield from check_times(cube, named)
    chips = yield from _check_pixels(store, shards, array)
    if receipt is not None and chips > receipt.chips:
        yield Finding("receipt", f"pixels of {chips} chips, the receipt says {receipt.chips}")


def _check_pixels(store: HeldStore, shards: list[str], array: Any) -> Generator[Finding, None, int]:
    """Gives how many chips have pixels: each is decoded by itself, which finds damage by its checksum."""
    chips = 0
    for path in shards:
        starts = _start(path, array)
        if starts is None:
            yield Finding("zarr", f"{path} is no shard of {PIXELS}")
            continue
        store.load(path)
        steps = [
            range(start, min(start + length, end), chunk)
            for start, length, end, chunk in zip(starts, array.shards, array.shape, array.chunks, strict=True)
        ]
        for corner in np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, array.ndim).tolist():
            region = tuple(slice(start, start + chunk) for start, chunk in zip(corner, array.chunks, strict=True))
            # Whatever zarr and numcodecs raise of damaged bytes.
            try:
                values = array[region]
            except Exception as error:
                yield Finding("zarr", f"{path} cannot be decoded: {told_of(error)}")
                break
            if np.isinf(values).any():
                yield Finding("vectors", f"infinity in a chip of {path}, as the chip may have it", "note")
            chips += not np.isnan(values).all()
        del store.held[path]
    return chips


def _start(path: str, array: Any) -> list[int] | None:
    """First index of a shard in each dimension; None if there is none such."""
    numbers = path.removeprefix(_PLACE).split("/")
    if array.shards is None or len(numbers) != array.ndim or not all(number.isdecimal() for number in numbers):
        return None
    starts = [int(number) * length for number, length in zip(numbers, array.shards, strict=True)]
    return starts if all(start < end for start, end in zip(starts, array.shape, strict=True)) else None


def _check_digests(store: HeldStore, shards: list[str], receipt: state.CubeReceipt) -> Iterator[Finding]:
    """Against the receipt: each shard, and then all objects together."""
    expected = {f"{PIXELS}/{key}": note.sha256 for key, note in receipt.shards.items() if note.size}
    found = {path: store.hashes.get(path) for path in shards}
    for path in sorted({*expected, *found}):
        if path not in found:
            yield Finding("receipt", f"{path} is gone: the same command writes it again")
        elif path not in expected:
            yield Finding("receipt", f"{path} is not in the receipt")
        elif found[path] != expected[path]:
            yield Finding("receipt", f"SHA-256 of {path} {found[path]}, the receipt says {expected[path]}")
    if found == expected and (whole := cube_digest(store.hashes)) != receipt.sha256:
        yield Finding("receipt", f"SHA-256 of all objects {whole}, the receipt says {receipt.sha256}")
