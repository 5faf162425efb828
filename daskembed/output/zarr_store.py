"""Zarr v3 stores of embeddings written: one variable ``(time, [group,] embedding, y, x)``, shard by shard.

The objects of a store are written in this order: shards, metadata and coordinates of the arrays, the root's metadata.
Without the last one there is no store to open, and it is the first to go when a store is made again or removed.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

from daskembed.errors import StorageError
from daskembed.output.geozarr import ROOT, digest, encode, metadata
from daskembed.output.protocol import Published
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.geo.cells import Grid, Placed
    from daskembed.storage.stores import Storage

VARIABLE = "embeddings"
"""Name of a store's variable: that of the column of the other files. xarray takes an array that is called like one of
its own dimensions, as `embedding` is, for a coordinate."""
SHARD_BYTES = 64 * 2**20
"""Most bytes of values in a shard, unless one chunk has more: what writing holds at a time, and again encoded."""
COMPRESSION = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}
"""Of Blosc. `small` on real chips, chunks of one window, two cores: bitshuffle leaves 0.793 of float32 at 535 MB/s,
shuffle 0.803 at 390, zstd alone 0.920 at 235; level 5 is slower and saves less than a hundredth. Of float16 it leaves
0.768.

A chunk is one window's patches, all components: a vector is 1 ms away. Chunks of 32 x 32 patches need 2.8 ms, chunks of
64 components 3.1 ms, and the map of three components of a row of chips takes 8 ms with these and 13 ms with ours."""
_MODEL = "https://github.com/Clay-foundation/model"
_GEOEMB = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


def fill_of(dtype: str) -> float:
    """What stands for no value; no whole number that stands for one is -128."""
    return -128 if dtype == "int8" else math.nan


@dataclass(frozen=True)
class _Layout:
    """The variable of a store: its shape ``(time, [group,] embedding, y, x)``, and how that is cut up."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, grid: Grid, times: int, sides: Mapping[str, int], dtype: str) -> _Layout:
        others = {name: length for name, length in sides.items() if name not in ("row", "col", "embedding")}
        vectors = (*others.values(), sides["embedding"])
        # Whole rows of windows, or pieces of these of about the same length.
        chunk_bytes = np.dtype(dtype).itemsize * math.prod(sides.values())
        windows = math.ceil(grid.width / sides["col"])
        pieces = math.ceil(windows / max(1, SHARD_BYTES // chunk_bytes))
        return cls(
            dims=("time", *others, "embedding", "y", "x"),
            shape=(times, *vectors, grid.height, grid.width),
            chunks=(1, *(1 for _ in others), sides["embedding"], sides["row"], sides["col"]),
            shards=(1, *vectors, sides["row"], math.ceil(windows / pieces) * sides["col"]),
            dtype=dtype,
        )

    @property
    def encoding(self) -> dict[str, Any]:
        from zarr.codecs import BloscCodec

        return {
            "dtype": self.dtype,
            "chunks": self.chunks,
            "shards": self.shards,
            "compressors": [BloscCodec(**COMPRESSION)],  # type: ignore[arg-type]
            "fill_value": fill_of(self.dtype),
            "dimension_names": self.dims,
        }


def write(
    output: Storage,
    name: str,
    placed: Placed,
    made: Mapping[str, Any],
    read: Callable[[int], NDArray[Any]],
    about: Mapping[str, Any] = MappingProxyType({}),
    along: Mapping[str, tuple[str, NDArray[Any]]] = MappingProxyType({}),
) -> Published:
    """Make one store, a shard in memory at a time.

    One task writes all of it: no chunk ever has two writers.

    Parameters
    ----------
    output, name
        Where; the store can be opened once it is complete. An earlier one is removed first.
    placed
        Where its rows lie on the grid of its cells.
    made
        What made the embeddings: written to the root's attributes under ``daskembed``. Its `dims` and `shape` are those
        of a row, `dtype` is the type of the values, `window` the pixels along each side of a row, and `labels` names
        along dimensions.
    read
        Gives a row by its number: ``([group,] row, col, embedding)`` of that type.
    about, along
        Attributes of the root beside those that follow from the others, and coordinates of the variable; see
        `daskembed.output.geozarr.metadata`.

    Raises
    ------
    StorageError
        If an object is gone before the store is complete.
    """
    sides = dict(zip(made["dims"], made["shape"], strict=True))
    days = np.unique(placed.days)
    layout = _Layout.of(placed.grid, len(days), sides, made.get("dtype", "float32"))
    # One of another level may have files where this one needs folders.
    remove(output, name)
    written: dict[str, tuple[int, str]] = {}

    def put(path: str, data: bytes | memoryview) -> None:
        output.put(f"{name}/{path}", data)  # type: ignore[arg-type]
        written[path] = len(data), hashlib.sha256(data).hexdigest()

    for key, data in _shards(placed, days, layout, sides, read):
        put(f"{VARIABLE}/{key}", data)
    *objects, root = metadata(
        placed.grid,
        VARIABLE,
        days=days,
        labels=made.get("labels", {}),
        about={
            "title": f"embeddings of tile {made.get('tile')}",
            **_geoemb(placed.grid, layout, made),
            **about,
            "daskembed": dict(made),
        },
        conventions=[_GEOEMB],
        attributes={"_FillValue": _as_attribute(fill_of(layout.dtype))},
        encoding={"shape": layout.shape, **layout.encoding},
        along=along,
    ).items()
    for path, text in objects:
        put(path, text)
    _check_alone(output, name, written)
    put(*root)
    size = sum(size for size, _ in written.values())
    return Published(name, size, digest({path: sha256 for path, (_, sha256) in written.items()}))


def remove(output: Storage, name: str) -> None:
    """Remove a store, its root first."""
    output.delete([f"{name}/{ROOT}"])
    output.delete([entry.path for entry in output.entries(name)])


def _shards(
    placed: Placed,
    days: NDArray[np.datetime64],
    layout: _Layout,
    sides: Mapping[str, int],
    read: Callable[[int], NDArray[Any]],
) -> Iterator[tuple[str, memoryview]]:
    """Key and object of each shard that is not empty."""
    times = np.searchsorted(days, placed.days)
    high, wide = layout.shards[-2:]
    zeros = "/".join("0" for _ in layout.shape[1:-2])
    down, across = math.ceil(placed.grid.height / high), math.ceil(placed.grid.width / wide)
    for time, top, left in np.ndindex(len(days), down, across):
        y, x = placed.y - top * high, placed.x - left * wide
        inside = (times == time) & (y < high) & (y > -sides["row"]) & (x < wide) & (x > -sides["col"])
        if not inside.any():
            continue
        block = np.full(layout.shards, fill_of(layout.dtype), layout.dtype)
        for row in np.flatnonzero(inside):
            found = np.moveaxis(read(int(row))[None], -1, -3)
            into_y, from_y = _overlap(y[row], high, sides["row"])
            into_x, from_x = _overlap(x[row], wide, sides["col"])
            block[..., into_y, into_x] = found[..., from_y, from_x]
        if len(data := encode(block, layout.encoding)):
            yield f"c/{time}/{zeros}/{top}/{left}", data


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Where `size` cells from `start` lie in `length` cells, and which of them do."""
    first, last = max(0, start), min(length, start + size)
    return slice(first, last), slice(first - start, last - start)


def _check_alone(output: Storage, name: str, written: Mapping[str, tuple[int, str]]) -> None:
    """See that all objects are there before the root makes a store of them, and remove others."""
    present = {entry.path.removeprefix(f"{name}/"): entry.size for entry in output.entries(name)}
    # A run that was stopped may have left a task that did the same, and this run's may have removed what it wrote.
    if lost := [path for path, (size, _) in written.items() if present.get(path) != size]:
        raise StorageError(f"{output.url_of(name)}: {lost[0]} is gone or changed while the store was written")
    output.delete([f"{name}/{path}" for path in present if path not in written])


def _as_attribute(fill: float) -> str | float:
    """A fill value as xarray writes and reads it; without the attribute rioxarray knows of no nodata."""
    return base64.standard_b64encode(struct.pack("<d", fill)).decode() if math.isnan(fill) else fill


def _geoemb(grid: Grid, layout: _Layout, made: Mapping[str, Any]) -> dict[str, Any]:
    """What the convention of embeddings asks for, as far as it is known."""
    found: dict[str, Any] = {
        "geoemb:type": "chip",
        "geoemb:dimensions": layout.shape[-3],
        "geoemb:model": _model(str(made.get("checkpoint"))),
        "geoemb:data_type": layout.dtype,
    }
    if source := made.get("identity", {}).get("source"):
        found["geoemb:source_data"] = Path(source).as_uri() if is_local(source) and "://" not in source else source
    if window := made.get("window"):
        pixels = [window // side for side in layout.chunks[-2:]]
        found["geoemb:chip_layout"] = {"layout_type": "regular_grid", "chip_size": pixels, "stride": pixels}
        found["geoemb:gsd"] = (
            grid.step_x / pixels[1] * pyproj.CRS.from_epsg(grid.epsg).axis_info[0].unit_conversion_factor
        )
    return found


def _model(checkpoint: str) -> str:
    """The URL of a checkpoint, or where the model is described if it has none."""
    if match := re.fullmatch(r"hf://([^@]+)@([^/]+)/(.+)", checkpoint):
        return "https://huggingface.co/{}/resolve/{}/{}".format(*match.groups())
    return checkpoint if "://" in checkpoint else _MODEL
