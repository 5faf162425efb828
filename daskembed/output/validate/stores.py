"""What stores of embeddings and of chips have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

from daskembed.geo.footprints import at_tile, place_of
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import Named

if TYPE_CHECKING:
    import xarray as xr

    from daskembed.storage.stores import Storage


MOST_HELD = 256 * 2**20
"""Bytes of all objects but the shards, which are in memory together."""

MOST_SHARD = 512 * 2**20
"""Of a shard, as it is stored and as it becomes."""


@dataclass
class HeldStore:
    """A store in memory, of which the shards come and go."""

    storage: Storage
    name: str
    held: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each object that was read."""

    def load(self, path: str) -> None:
        """Read an object, by requests whose errors are the package's own."""
        from zarr.buffer import default_buffer_prototype

        data = self.storage.get(f"{self.name}/{path}")
        self.hashes[path] = hashlib.sha256(data).hexdigest()
        self.held[path] = default_buffer_prototype().buffer.from_bytes(data)


def hold(
    storage: Storage, name: str, sizes: Mapping[str, int], shards: Collection[str]
) -> Generator[Finding, None, HeldStore | None]:
    """Read all of a store but its shards; None if that is more than is held."""
    store, rest = HeldStore(storage, name), sizes.keys() - set(shards)
    if (held := sum(sizes[path] for path in rest)) > MOST_HELD:
        yield Finding("zarr", f"{held:,} bytes beside its shards, expected at most {MOST_HELD:,}")
        return None
    for path in rest:
        store.load(path)
    return store


def check_place(
    cube: xr.Dataset, attributes: dict[str, Any], named: Named | None, chip: tuple[int, int]
) -> Iterator[Finding]:
    """Look whether all that says where a store lies says the same, and whether that is at the tile of its name.

    Parameters
    ----------
    cube, attributes
        The store, and the attributes of its root.
    named
        What its name says.
    chip
        Cells of a chip, down and across.
    """
    about = cube["spatial_ref"].attrs
    try:
        crs = pyproj.CRS.from_wkt(about["crs_wkt"])
        west, step_x, _, north, _, step_y = map(float, about["GeoTransform"].split())
    except (KeyError, ValueError, pyproj.exceptions.CRSError):
        yield Finding("geometry", "spatial_ref does not have a CRS and a GeoTransform that PROJ and GDAL know")
        return
    if (code := attributes.get("proj:code")) and crs != pyproj.CRS(code):
        yield Finding("geometry", f"spatial_ref says {crs.name}, proj:code says {code}")
    for name, start, step in (("x", west, step_x), ("y", north, step_y)):
        expected = start + (np.arange(cube.sizes[name]) + 0.5) * step
        found = cube[name].to_numpy()
        if not np.allclose(found, expected, rtol=0, atol=1e-3 * abs(step)):
            worst = int(np.abs(found - expected).argmax())
            yield Finding("geometry", f"{name}[{worst}] is {found[worst]}, the GeoTransform says {expected[worst]}")
    if named is not None:
        # The chips in the four corners of the grid.
        height, width = min(chip[0], cube.sizes["y"]) * step_y, min(chip[1], cube.sizes["x"]) * step_x
        east, south = west + cube.sizes["x"] * step_x, north + cube.sizes["y"] * step_y
        tops, lefts = (north, south - height), (west, east - width)
        corners = [(left, top + height, left + width, top) for top in tops for left in lefts]
        # An image may be larger than its tile.
        reaches = at_tile(named.tile, np.array([(west, south, east, north)]), crs).all()
        if not at_tile(named.tile, np.array(corners), crs).all():
            what = "the grid reaches far beyond" if reaches else "the grid is not at"
            message = f"{what} tile {named.tile}: expected {place_of(named.tile)}"
            yield Finding("geometry", message, "note" if reaches else "problem")


def check_times(cube: xr.Dataset, named: Named | None) -> Generator[Finding, None, set[date]]:
    """Look at a store's times; gives their dates."""
    times = cube["time"].to_numpy()
    if times.dtype.kind != "M":
        yield Finding("dates", f"the times are of {times.dtype}, expected dates")
        return set()
    days = times.astype("datetime64[D]")
    if (np.diff(days.astype(np.int64)) <= 0).any():
        yield Finding("dates", "the times are not in order, each once")
    found: set[date] = set(days.tolist())
    if named is not None and (outside := sorted(day for day in found if not named.first <= day <= named.last)):
        what = f"{named.first} to {named.last}, which the name says"
        yield Finding("dates", f"{outside[0]} is outside {what}")
    return found


def told_of(error: BaseException) -> str:
    """What an exception of a library says, as part of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
