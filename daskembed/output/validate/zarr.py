"""Published Zarr stores checked; see `daskembed.validate`."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError
from daskembed.output.geozarr import ROOT, digest
from daskembed.output.protocol import DTYPES
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import Named, check_ends, check_name, find_receipt
from daskembed.output.validate.provenance import check_provenance, typed, windows_of
from daskembed.output.validate.stores import MOST_SHARD, HeldStore, check_place, check_times, hold, told_of
from daskembed.output.zarr import VARIABLE
from daskembed.storage.zarr_metadata import checked

if TYPE_CHECKING:
    import xarray as xr

    from daskembed.output.protocol import Published
    from daskembed.output.state import Receipt
    from daskembed.storage.stores import Storage

_SHARD = re.compile(re.escape(VARIABLE) + r"/c((?:/\d+)+)")


def check_store(storage: Storage, name: str, sizes: dict[str, int]) -> Iterator[Finding]:
    """Check a store, given the bytes of its objects: each is read once, the shards one at a time."""
    named = yield from check_name(name)
    found = None if named is None else (yield from find_receipt(storage, name, named))
    receipt, published = found or (None, None)
    if ROOT not in sizes:
        yield Finding("zarr", f"no {ROOT}: it was never finished, or is being written")
        return
    shards = sorted(path for path in sizes if _SHARD.fullmatch(path))
    if (store := (yield from hold(storage, name, sizes, shards))) is None:
        return
    try:
        yield from _check_content(store, {path: sizes[path] for path in shards}, named, receipt)
    except DaskembedError:
        raise
    except Exception as error:  # whatever zarr, xarray and PROJ raise of what somebody wrote
        yield Finding("zarr", f"cannot be looked at to its end: {told_of(error)}")
    if published is not None:
        yield from _check_digest(store, sizes, published)


def _check_digest(store: HeldStore, sizes: dict[str, int], published: Published) -> Iterator[Finding]:
    if (size := sum(sizes.values())) != published.size:
        yield Finding("receipt", f"{len(sizes)} objects of {size} bytes, the receipt says {published.size}")
        return
    for path in sizes.keys() - store.hashes.keys():
        store.load(path)
        del store.held[path]
    if (found := digest(store.hashes)) != published.sha256:
        yield Finding("receipt", f"SHA-256 of all objects {found}, the receipt says {published.sha256}")


def _check_content(
    store: HeldStore, shards: dict[str, int], named: Named | None, receipt: Receipt | None
) -> Iterator[Finding]:
    import xarray as xr
    import zarr
    from zarr.storage import MemoryStore

    memory = checked(MemoryStore(store.held))
    # Whatever zarr, numcodecs and xarray raise of damaged metadata.
    try:
        root = parse_object(store.held[ROOT].to_bytes())
        cube = xr.open_zarr(memory, chunks=None, consolidated=True)
        array = zarr.open_array(memory, path=VARIABLE, mode="r")
    except Exception as error:
        yield Finding("zarr", f"cannot be opened, it is damaged or no store of ours: {told_of(error)}")
        return
    attributes = root["attributes"]
    made = attributes.get("daskembed")
    if not isinstance(made, dict):
        yield Finding("provenance", "no `daskembed` in the attributes: nothing says what made the embeddings", "note")
        made = {}
    made = yield from typed(made, "root")
    if not (yield from _check_variable(cube, array, made)):
        return
    across = math.isqrt(windows_of(made))
    lengths = dict(zip(made.get("dims") or (), made.get("shape") or (), strict=False))
    chip = (across * lengths.get("row", 1), across * lengths.get("col", 1))
    yield from check_place(cube, attributes, named, chip)
    days = yield from check_times(cube, named)
    if named is not None and days:
        yield from check_ends(days, named, receipt)
    cells = yield from _check_shards(store, shards, array)
    if made:
        a_row = max(1, lengths.get("row", 1) * lengths.get("col", 1))
        rows, rest = divmod(cells, a_row)
        if rest:
            yield Finding("vectors", f"{cells} cells have values, which is no whole number of {a_row}: some are lost")
        yield from check_provenance(made, rows, named, receipt, "root")
        chips = receipt.chips * windows_of(made) if receipt is not None else rows
        if rows != chips:
            yield Finding("receipt", f"values of {rows} windows of chips, the receipt's chips have {chips}")


def _check_variable(cube: xr.Dataset, array: Any, made: dict[str, Any]) -> Generator[Finding, None, bool]:
    """Whether the rest can be looked at."""
    if VARIABLE not in cube:
        yield Finding("schema", f"no variable {VARIABLE}")
        return False
    dims = tuple(map(str, cube[VARIABLE].dims))
    others = [name for name in made.get("dims") or () if name not in ("row", "col", "embedding")]
    expected = ("time", *others, "embedding", "y", "x")
    if dims != expected:
        yield Finding("schema", f"{VARIABLE} has the dimensions {', '.join(dims)}, expected {', '.join(expected)}")
        return False
    dtype = str(array.dtype)
    if made.get("dtype") not in (None, dtype) or dtype not in DTYPES:
        yield Finding("schema", f"{VARIABLE} is of {dtype}, expected {made.get('dtype') or ' or '.join(DTYPES)}")
    if not np.isnan(array.fill_value):
        yield Finding("schema", f"the fill value of {VARIABLE} is {array.fill_value}, expected NaN")
    lengths = dict(zip(made.get("dims") or (), made.get("shape") or (), strict=False))
    for name in (*others, "embedding"):
        if cube.sizes[name] != lengths.get(name, cube.sizes[name]):
            yield Finding("schema", f"{cube.sizes[name]} places along {name}, the root says {lengths[name]}")
    if missing := [name for name in ("time", "y", "x", "spatial_ref") if name not in cube.coords]:
        yield Finding("schema", f"no coordinates {', '.join(missing)}")
        return False
    return True


def _check_shards(store: HeldStore, sizes: dict[str, int], array: Any) -> Generator[Finding, None, int]:
    """Gives how many cells have values."""
    cells = 0
    for path in sorted(sizes):
        numbers = tuple(map(int, path.partition("/c/")[2].split("/")))
        starts = [number * length for number, length in zip(numbers, array.shards or array.chunks, strict=False)]
        if len(numbers) != array.ndim or any(start >= end for start, end in zip(starts, array.shape, strict=True)):
            yield Finding("zarr", f"{path} is no shard of {VARIABLE}")
            continue
        if (size := max(sizes[path], math.prod(array.shards or array.chunks) * array.dtype.itemsize)) > MOST_SHARD:
            yield Finding("zarr", f"{path} has {size:,} bytes, expected at most {MOST_SHARD:,}")
            continue
        store.load(path)
        ends = zip(starts, array.shards or array.chunks, array.shape, strict=True)
        region = tuple(slice(start, min(start + length, end)) for start, length, end in ends)
        # Whatever zarr and numcodecs raise of damaged bytes.
        try:
            values = array[region]
        except Exception as error:
            yield Finding("zarr", f"{path} cannot be decoded: {told_of(error)}")
            continue
        finally:
            del store.held[path]
        if np.isinf(values).any():
            yield Finding("vectors", f"infinity in {path}")
        places = tuple(range(1, array.ndim - 2))
        empty = np.isnan(values)
        full = ~empty.any(axis=places)
        if (torn := int((~full & ~empty.all(axis=places)).sum())) > 0:
            yield Finding("vectors", f"NaN in some components of {torn} cells of {path}")
        cells += int(full.sum())
    return cells
