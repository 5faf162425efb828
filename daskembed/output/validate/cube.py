"""Zarr stores told apart, and cubes of chips checked; see `daskembed.validate`."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import DaskembedError, InputError
from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import check_tile
from daskembed.output import cube_state
from daskembed.output.cube import PIXELS
from daskembed.output.geozarr import ROOT
from daskembed.output.validate import zarr as validate_zarr
from daskembed.output.validate.geoparquet import EMBEDDINGS, Finding, Named
from daskembed.storage.zarr_metadata import checked

if TYPE_CHECKING:
    from daskembed.storage.stores import Storage

_OTHERS = (".zgroup", ".zarray", ".zmetadata")
_PLACE = f"{PIXELS}/c/"


def check_store(storage: Storage, name: str) -> Iterator[Finding]:
    """Check a store of ours, or say that it is another's."""
    sizes = {entry.path.removeprefix(f"{name}/"): entry.size for entry in storage.entries(name)}
    if not sizes:
        raise FileNotFoundError(storage.url_of(name))
    kind = _kind(storage, name, sizes)
    if kind == "embeddings":
        yield from validate_zarr.check_store(storage, name)
    elif kind == "cube":
        yield from _check_cube(storage, name, sizes)
    else:
        yield Finding(
            "zarr", "is no Zarr store that daskembed made, neither of embeddings nor of chips: nothing to check it by"
        )


def _kind(storage: Storage, name: str, sizes: dict[str, int]) -> Literal["embeddings", "cube"] | None:
    """By what its root says; by its name, if that says nothing."""
    attributes: Any = None
    if ROOT in sizes:
        try:
            attributes = parse_object(storage.get(f"{name}/{ROOT}", most=MOST_JSON)).get("attributes")
        except ValueError:
            attributes = None
    made = attributes.get("daskembed") if isinstance(attributes, dict) else None
    if isinstance(made, dict) or EMBEDDINGS.fullmatch(name):
        return "embeddings"
    if isinstance(made, str):
        return "cube"
    tile = _tile(name)
    known = tile is not None and any(
        entry.path == cube_state.receipt_path(tile) for entry in storage.entries(cube_state.CUBES)
    )
    unfinished = tile is not None and ROOT not in sizes and not any(other in sizes for other in _OTHERS)
    return "cube" if known or unfinished else None


def _tile(name: str) -> str | None:
    try:
        tile = check_tile(name.removesuffix(".zarr"))
    except InputError:
        return None
    return tile if name == f"{tile}.zarr" else None


def _check_cube(storage: Storage, name: str, sizes: dict[str, int]) -> Iterator[Finding]:
    tile = _tile(name)
    if tile is None:
        yield Finding("name", f"the name {name} is not of the form {{MGRS}}.zarr")
    receipt = None if tile is None else (yield from _find_receipt(storage, tile))
    if ROOT not in sizes:
        yield Finding("zarr", f"no {ROOT}: the cube was never finished, or is being written")
        return
    store = validate_zarr._Store(storage, name)
    shards = sorted(path for path in sizes if path.startswith(_PLACE))
    if (held := sum(size for path, size in sizes.items() if path not in {*shards})) > validate_zarr.MOST_HELD:
        yield Finding("zarr", f"{held:,} bytes beside its shards, expected at most {validate_zarr.MOST_HELD:,}")
        return
    if large := [path for path in shards if sizes[path] > validate_zarr.MOST_SHARD]:
        yield Finding("zarr", f"{sizes[large[0]]:,} bytes in {large[0]}, expected at most {validate_zarr.MOST_SHARD:,}")
        return
    for path in sizes.keys() - set(shards):
        store.load(path)
    try:
        yield from _check_content(store, shards, tile, receipt)
    except DaskembedError:
        raise
    except Exception as error:  # whatever zarr, xarray and PROJ raise of what somebody wrote
        yield Finding("zarr", f"cannot be looked at to its end: {validate_zarr._line(error)}")
    if receipt is not None:
        yield from _check_digests(store, shards, receipt)


def _find_receipt(storage: Storage, tile: str) -> Generator[Finding, None, cube_state.CubeReceipt | None]:
    path = cube_state.receipt_path(tile)
    try:
        receipt = cube_state.read_receipt(storage, path)
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
    store: validate_zarr._Store, shards: list[str], tile: str | None, receipt: cube_state.CubeReceipt | None
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
        yield Finding("zarr", f"cannot be opened, it is damaged: {validate_zarr._line(error)}")
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
    if (size := math.prod(chunk) * array.dtype.itemsize) > validate_zarr.MOST_SHARD:
        yield Finding("zarr", f"{size:,} bytes in a chip of {PIXELS}, expected at most {validate_zarr.MOST_SHARD:,}")
        return
    if receipt is not None and bands != (expected := receipt.settings.get("bands")):
        said = " ".join(map(str, expected)) if isinstance(expected, list) else repr(expected)
        yield Finding("schema", f"the bands are {' '.join(bands)}, the receipt says {said}")
    if tile is not None and attributes.get("tile", tile) != tile:
        yield Finding("provenance", f"the root says that it is of tile {attributes['tile']}, its name says {tile}")
    named = None if tile is None else Named(tile, date.min, date.max, "")
    yield from validate_zarr._check_place(cube, attributes, named, (CHIP, CHIP))
    yield from validate_zarr._check_times(cube, named)
    chips = yield from _check_pixels(store, shards, array)
    if receipt is not None and chips > receipt.chips:
        yield Finding("receipt", f"pixels of {chips} chips, the receipt says {receipt.chips}")


def _check_pixels(store: validate_zarr._Store, shards: list[str], array: Any) -> Generator[Finding, None, int]:
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
                yield Finding("zarr", f"{path} cannot be decoded: {validate_zarr._line(error)}")
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


def _check_digests(
    store: validate_zarr._Store, shards: list[str], receipt: cube_state.CubeReceipt
) -> Iterator[Finding]:
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
    if found == expected and (whole := cube_state.digest(store.hashes)) != receipt.sha256:
        yield Finding("receipt", f"SHA-256 of all objects {whole}, the receipt says {receipt.sha256}")
