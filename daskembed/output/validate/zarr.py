"""Published Zarr stores checked; see `daskembed.validate`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
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
from daskembed.output.zarr_store import VARIABLE, fill_of
from daskembed.storage.zarr_metadata import checked

if TYPE_CHECKING:
    import xarray as xr

    from daskembed.output.protocol import Written
    from daskembed.output.state import Receipt
    from daskembed.storage.stores import Storage

_SHARD = re.compile(re.escape(VARIABLE) + r"/c((?:/\d+)+)")


@dataclass(frozen=True)
class Content:
    """What was found in a store."""

    made: dict[str, Any]
    """What its root says of how it was made; empty if that is nothing."""
    attributes: dict[str, Any]
    """Of its root."""
    cube: xr.Dataset
    days: set[date]
    cells: int
    """That have values."""


def check_store(storage: Storage, name: str, sizes: dict[str, int]) -> Iterator[Finding]:
    """Check a store, given the bytes of its objects: each is read once, the shards one at a time."""
    named = yield from check_name(name)
    found = None if named is None else (yield from find_receipt(storage, name, named))
    receipt, published = found or (None, None)
    yield from check_objects(storage, name, sizes, named, DTYPES, partial(_check_rows, named, receipt), published)


def check_objects(
    storage: Storage,
    name: str,
    sizes: dict[str, int],
    named: Named | None,
    dtypes: Collection[str],
    check_rest: Callable[[Content], Iterator[Finding]],
    written: Written | None,
) -> Iterator[Finding]:
    """Check all objects of a store.

    Parameters
    ----------
    storage, name, sizes
        Where it is, and the bytes of its objects.
    named
        What its name says.
    dtypes
        Types that its values may have.
    check_rest
        Looks at what was found in it.
    written
        What its receipt says of its objects.
    """
    if ROOT not in sizes:
        yield Finding("zarr", f"no {ROOT}: it was never finished, or is being written")
        return
    shards = sorted(path for path in sizes if _SHARD.fullmatch(path))
    if (store := (yield from hold(storage, name, sizes, shards))) is None:
        return
    try:
        content = yield from _check_content(store, {path: sizes[path] for path in shards}, named, dtypes)
        if content is not None:
            yield from check_rest(content)
    except DaskembedError:
        raise
    except Exception as error:  # whatever zarr, xarray and PROJ raise of what somebody wrote
        yield Finding("zarr", f"cannot be looked at to its end: {told_of(error)}")
    if written is not None:
        yield from _check_digest(store, sizes, written)


def _check_digest(store: HeldStore, sizes: dict[str, int], written: Written) -> Iterator[Finding]:
    if (size := sum(sizes.values())) != written.size:
        yield Finding("receipt", f"{len(sizes)} objects of {size} bytes, the receipt says {written.size}")
        return
    for path in sizes.keys() - store.hashes.keys():
        store.load(path)
        del store.held[path]
    if (found := digest(store.hashes)) != written.sha256:
        yield Finding("receipt", f"SHA-256 of all objects {found}, the receipt says {written.sha256}")


def _check_content(
    store: HeldStore, shards: dict[str, int], named: Named | None, dtypes: Collection[str]
) -> Generator[Finding, None, Content | None]:
    """Gives what was found, if the store can be looked at to its end."""
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
        return None
    attributes = root["attributes"]
    made = attributes.get("daskembed")
    if not isinstance(made, dict):
        yield Finding("provenance", "no `daskembed` in the attributes: nothing says what made the embeddings", "note")
        made = {}
    made = yield from typed(made, "root")
    if not (yield from _check_variable(cube, array, made, dtypes)):
        return None
    across = math.isqrt(windows_of(made))
    lengths = lengths_along(made)
    chip = (across * lengths.get("row", 1), across * lengths.get("col", 1))
    yield from check_place(cube, attributes, named, chip)
    days = yield from check_times(cube, named)
    cells = yield from _check_shards(store, shards, array)
    return Content(made, attributes, cube, days, cells)


def lengths_along(made: Mapping[str, Any]) -> dict[str, int]:
    """Dimension of a row -> how many places there are along it."""
    return dict(zip(made.get("dims") or (), made.get("shape") or (), strict=False))


def _check_rows(named: Named | None, receipt: Receipt | None, content: Content) -> Iterator[Finding]:
    if named is not None and content.days:
        yield from check_ends(content.days, named, receipt)
    if made := content.made:
        lengths = lengths_along(made)
        a_row = max(1, lengths.get("row", 1) * lengths.get("col", 1))
        rows, rest = divmod(content.cells, a_row)
        if rest:
            yield Finding(
                "vectors", f"{content.cells} cells have values, which is no whole number of {a_row}: some are lost"
            )
        yield from check_provenance(made, rows, named, receipt, "root")
        chips = receipt.chips * windows_of(made) if receipt is not None else rows
        if rows != chips:
            yield Finding("receipt", f"values of {rows} windows of chips, the receipt's chips have {chips}")


def _check_variable(
    cube: xr.Dataset, array: Any, made: dict[str, Any], dtypes: Collection[str]
) -> Generator[Finding, None, bool]:
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
    if made.get("dtype") not in (None, dtype) or dtype not in dtypes:
        yield Finding("schema", f"{VARIABLE} is of {dtype}, expected {made.get('dtype') or ' or '.join(dtypes)}")
    if not _is_fill(array.fill_value, dtype):
        fill = "NaN" if math.isnan(fill_of(dtype)) else fill_of(dtype)
        yield Finding("schema", f"the fill value of {VARIABLE} is {array.fill_value}, expected {fill}")
    lengths = lengths_along(made)
    for name in (*others, "embedding"):
        if cube.sizes[name] != lengths.get(name, cube.sizes[name]):
            yield Finding("schema", f"{cube.sizes[name]} places along {name}, the root says {lengths[name]}")
    if missing := [name for name in ("time", "y", "x", "spatial_ref") if name not in cube.coords]:
        yield Finding("schema", f"no coordinates {', '.join(missing)}")
        return False
    return True


def _is_fill(values: Any, dtype: str) -> Any:
    """Whether values stand for none."""
    fill = fill_of(dtype)
    return np.isnan(values) if math.isnan(fill) else values == fill


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
        empty = _is_fill(values, str(array.dtype))
        full = ~empty.any(axis=places)
        if (torn := int((~full & ~empty.all(axis=places)).sum())) > 0:
            what = "NaN" if values.dtype.kind == "f" else "no value"
            yield Finding("vectors", f"{what} in some components of {torn} cells of {path}")
        cells += int(full.sum())
    return cells
