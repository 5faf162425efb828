"""Zarr v3 stores: one a tile, its patches on one grid ``(time, [group,] embedding, y, x)``.

The objects of a store are written in this order: shards, metadata and coordinates of the arrays, the root's metadata.
Without the last one there is no store to open, and it is the first to go when a store is made again or removed.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from daskembed.documents import MOST_JSON, parse_json
from daskembed.errors import InputError, StorageError, TileError
from daskembed.geo.cells import EDGES, common_grid, find_overlap
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import to_lonlat
from daskembed.output.geozarr import ROOT, digest, encode, metadata
from daskembed.output.parts import cast_vectors
from daskembed.output.protocol import Place, Published
from daskembed.storage.urls import is_local
from daskembed.timings import timed

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

    from daskembed.encoders.description import Description
    from daskembed.geo.cells import Grid
    from daskembed.storage.stores import Storage

SUFFIX = ".zarr"
VARIABLE = "embeddings"
"""Name of a store's variable: that of the column of the other files. xarray takes an array that is called like one of
its own dimensions, as `embedding` is, for a coordinate."""
SHARD_BYTES = 64 * 2**20
"""Most bytes of values in a shard, unless one chunk has more: what publishing holds at a time, and again encoded."""
COMPRESSION = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}
"""Of Blosc. `small` on real chips, chunks of one window, two cores: bitshuffle leaves 0.793 of float32 at 535 MB/s,
shuffle 0.803 at 390, zstd alone 0.920 at 235; level 5 is slower and saves less than a hundredth. Of float16 it leaves
0.768.

A chunk is one window's patches, all components: a vector is 1 ms away. Chunks of 32 x 32 patches need 2.8 ms, chunks of
64 components 3.1 ms, and the map of three components of a row of chips takes 8 ms with these and 13 ms with ours."""
_ONE_GRID = "a Zarr store has one grid; give `format='geoparquet'`"
_PIECES = 8
"""Along each side of a footprint, of which each has straight edges in degrees."""
_PLACES = ("source_url", "date", "epsg", *EDGES)
_MODEL = "https://github.com/Clay-foundation/model"
# xarray writes fill values in this form, and without the attribute rioxarray knows of no nodata.
_NAN = base64.standard_b64encode(struct.pack("<d", math.nan)).decode()
_GEOEMB = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


@dataclass(frozen=True)
class _Layout:
    """The variable of a store: its shape ``(time, [group,] embedding, y, x)``, and how that is cut up."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    dtype: str

    @property
    def encoding(self) -> dict[str, Any]:
        from zarr.codecs import BloscCodec

        return {
            "dtype": self.dtype,
            "chunks": self.chunks,
            "shards": self.shards,
            "compressors": [BloscCodec(**COMPRESSION)],  # type: ignore[arg-type]
            "fill_value": float("nan"),
            "dimension_names": self.dims,
        }


@dataclass(frozen=True)
class _Rows:
    """Where the rows of all parts are: in their files, and on the grid."""

    urls: list[str]
    days: NDArray[np.datetime64]
    part: NDArray[np.int64]
    group: NDArray[np.int64]
    """Row group of the part."""
    within: NDArray[np.int64]
    """Number in the row group."""
    y: NDArray[np.int64]
    """Of its first cell; likewise `x`."""
    x: NDArray[np.int64]


def check_level(description: Description, level: str) -> None:
    """Raise `InputError` if a level has no grid of patches."""
    if not _has_grid(description.levels[level]):
        able = [name for name, sides in description.levels.items() if _has_grid(sides)]
        raise InputError(
            f"`format='zarr'` needs a grid of patches, and level {level} of {description.title} has none: "
            + (
                f"choose `level` {' or '.join(able)}, or `format='geoparquet'`"
                if able
                else "choose `format='geoparquet'`"
            )
        )


def check_chips(index: gpd.GeoDataFrame, description: Description, level: str) -> None:
    """Raise `TileError` if a tile's usable chips do not share a grid."""
    sides = description.levels[level]
    across = math.isqrt(sides.get("window", 1))
    good = index[index["quarantined"].isna()]
    if len(good):
        bounds = good[list(EDGES)].to_numpy(np.float64)
        cells = (across * sides["row"], across * sides["col"])
        common_grid(list(good["source_url"]), good["epsg"].to_numpy(), bounds, cells, pixels=CHIP, why=_ONE_GRID)


def publish(output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
    """Make one Zarr v3 store of a tile's parts, a shard in memory at a time.

    One task writes all of it: no chunk ever has two writers.

    Parameters
    ----------
    output, name
        Where; the store can be opened once it is complete. An earlier one is removed first.
    parts
        The tile's part files in the order of their rows.
    provenance
        What made the embeddings: written to the root's attributes under ``daskembed``. Its `dims` are the dimensions
        of a row, `dtype` is the type of the values, and `window` the pixels along each side of a row.

    Raises
    ------
    TileError
        If the rows do not share a grid, two of them are of the same place and date, or a value is too large.
    """
    with timed("write"):
        sides = dict(zip(provenance["dims"], _row_shape(output, parts[0]), strict=True))
        grid, rows = _find_rows(output, parts, sides, provenance.get("window", CHIP))
        days = np.unique(rows.days)
        layout = _lay_out_variable(grid, len(days), sides, provenance.get("dtype", "float32"))
        # One of another level may have files where this one needs folders.
        remove(output, name)
        written: dict[str, tuple[int, str]] = {}

        def put(path: str, data: bytes | memoryview) -> None:
            output.put(f"{name}/{path}", data)  # type: ignore[arg-type]
            written[path] = len(data), hashlib.sha256(data).hexdigest()

        for key, data in _shards(output, parts, rows, days, layout, sides):
            put(f"{VARIABLE}/{key}", data)
        made = {**provenance, "shape": list(sides.values()), "chips": len(rows.urls) // provenance.get("windows", 1)}
        *objects, root = _metadata(grid, layout, days, made).items()
        for path, text in objects:
            put(path, text)
        _check_alone(output, name, written)
        put(*root)
    return Published(
        name, sum(size for size, _ in written.values()), digest({k: sha for k, (_, sha) in written.items()})
    )


def size(output: Storage, name: str) -> int | None:
    """Bytes of a store's objects, from their listing; None if it has no root, as while it is written."""
    entries = output.entries(name)
    return sum(entry.size for entry in entries) if any(entry.path == f"{name}/{ROOT}" for entry in entries) else None


def read_provenance(output: Storage, name: str) -> dict[str, Any] | None:
    """What a store's attributes say under ``daskembed``; None if it was not made by this package."""
    try:
        found = parse_json(output.get(f"{name}/{ROOT}", most=MOST_JSON))["attributes"]["daskembed"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def read_place(output: Storage, name: str) -> Place:
    """The grid of a store, as its root tells it."""
    try:
        told = parse_json(output.get(f"{name}/{ROOT}", most=MOST_JSON))["attributes"]
        code, (height, width) = str(told["proj:code"]), map(int, told["spatial:shape"])
        west, south, east, north = map(float, told["spatial:bbox"])
        transform = [float(one) for one in told["spatial:transform"]]
        epsg = int(code.removeprefix("EPSG:"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its root does not say where it is: {type(error).__name__} {error}") from None
    # A side of 100 km that is straight in the projection is none in degrees.
    x, y = np.linspace(west, east, _PIECES + 1), np.linspace(south, north, _PIECES + 1)
    bounds = [(x[i], y[j], x[i + 1], y[j + 1]) for i, j in np.ndindex(_PIECES, _PIECES)]
    *_, pieces = to_lonlat(epsg, np.array(bounds))
    projection = {
        "proj:code": code,
        "proj:shape": [height, width],
        "proj:transform": transform,
        "proj:bbox": [west, south, east, north],
    }
    return Place(shapely.union_all(pieces[~shapely.is_missing(pieces)], grid_size=1e-7), projection)


def remove(output: Storage, name: str) -> None:
    """Remove a store, its root first."""
    output.delete([f"{name}/{ROOT}"])
    output.delete([entry.path for entry in output.entries(name)])


def _has_grid(sides: Mapping[str, int]) -> bool:
    return "row" in sides and "col" in sides


def _row_shape(output: Storage, part: str) -> tuple[int, ...]:
    with pq.ParquetFile(output.open_reader(part)) as file:
        return tuple(file.schema_arrow.field("embeddings").type.shape)


def _find_rows(output: Storage, parts: Sequence[str], sides: Mapping[str, int], pixels: int) -> tuple[Grid, _Rows]:
    tables, part, group, within = [], [], [], []
    for number, path in enumerate(parts):
        with pq.ParquetFile(output.open_reader(path)) as file:
            tables.append(file.read(columns=list(_PLACES)).replace_schema_metadata())
            counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        part.append(np.full(sum(counts), number))
        group.append(np.repeat(np.arange(len(counts)), counts))
        within.append(np.concatenate([np.arange(count) for count in counts]) if counts else np.empty(0, np.int64))
    table = pa.concat_tables(tables)
    urls = table["source_url"].to_pylist()
    bounds = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    cells = (sides["row"], sides["col"])
    grid, y, x = common_grid(urls, table["epsg"].to_numpy(), bounds, cells, pixels=pixels, why=_ONE_GRID)
    days = table["date"].to_numpy().astype("datetime64[D]")
    if overlap := find_overlap(y, x, cells, days):
        one, other = overlap
        raise TileError(
            f"{urls[one]} and {urls[other]} overlap on {days[one]}: a Zarr store has one vector a place and date; give "
            "`format='geoparquet'`"
        )
    return grid, _Rows(urls, days, np.concatenate(part), np.concatenate(group), np.concatenate(within), y, x)


def _lay_out_variable(grid: Grid, times: int, sides: Mapping[str, int], dtype: str) -> _Layout:
    others = {name: length for name, length in sides.items() if name not in ("row", "col", "embedding")}
    vectors = (*others.values(), sides["embedding"])
    # Whole rows of windows, or pieces of these of about the same length.
    chunk_bytes = np.dtype(dtype).itemsize * math.prod(sides.values())
    windows = math.ceil(grid.width / sides["col"])
    pieces = math.ceil(windows / max(1, SHARD_BYTES // chunk_bytes))
    return _Layout(
        dims=("time", *others, "embedding", "y", "x"),
        shape=(times, *vectors, grid.height, grid.width),
        chunks=(1, *(1 for _ in others), sides["embedding"], sides["row"], sides["col"]),
        shards=(1, *vectors, sides["row"], math.ceil(windows / pieces) * sides["col"]),
        dtype=dtype,
    )


def _shards(
    output: Storage,
    parts: Sequence[str],
    rows: _Rows,
    days: NDArray[np.datetime64],
    layout: _Layout,
    sides: Mapping[str, int],
) -> Iterator[tuple[str, memoryview]]:
    """Key and object of each shard that is not empty."""
    shape = tuple(sides.values())
    times = np.searchsorted(days, rows.days)
    high, wide = layout.shards[-2:]
    zeros = "/".join("0" for _ in layout.shape[1:-2])
    with _Reader(output, parts) as reader:
        for time, top, left in np.ndindex(
            len(days), math.ceil(layout.shape[-2] / high), math.ceil(layout.shape[-1] / wide)
        ):
            y, x = rows.y - top * high, rows.x - left * wide
            inside = (times == time) & (y < high) & (y > -sides["row"]) & (x < wide) & (x > -sides["col"])
            if not inside.any():
                continue
            block = np.full(layout.shards, np.nan, layout.dtype)
            for row in np.flatnonzero(inside):
                vectors = reader.read(rows.part[row], rows.group[row], rows.within[row]).reshape(1, *shape)
                found = np.moveaxis(cast_vectors(vectors, layout.dtype, rows.urls[row : row + 1]), -1, -3)
                (into_y, from_y), (into_x, from_x) = (
                    _overlap(y[row], high, shape[-3]),
                    _overlap(x[row], wide, shape[-2]),
                )
                block[..., into_y, into_x] = found[..., from_y, from_x]
            if len(data := encode(block, layout.encoding)):
                yield f"c/{time}/{zeros}/{top}/{left}", data


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Where `size` cells from `start` lie in `length` cells, and which of them do."""
    first, last = max(0, start), min(length, start + size)
    return slice(first, last), slice(first - start, last - start)


class _Reader:
    """The vectors of the parts' rows, the latest row group in memory."""

    def __init__(self, output: Storage, parts: Sequence[str]) -> None:
        self._output, self._parts = output, parts
        self._file: pq.ParquetFile | None = None
        self._at: tuple[int, int] = (-1, -1)
        self._held: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, part: int, group: int, row: int) -> NDArray[np.float32]:
        """One row's vectors, flat."""
        if self._at != (part, group):
            if self._file is None or self._at[0] != part:
                self._close()
                self._file = pq.ParquetFile(self._output.open_reader(self._parts[part]))
            column = self._file.read_row_group(group, columns=["embeddings"])["embeddings"].combine_chunks()
            storage = column.chunk(0).storage if isinstance(column, pa.ChunkedArray) else column.storage
            self._held = storage.flatten().to_numpy().reshape(len(storage), -1)
            self._at = (part, group)
        vectors: NDArray[np.float32] = self._held[row]
        return vectors


def _check_alone(output: Storage, name: str, written: Mapping[str, tuple[int, str]]) -> None:
    """See that all objects are there before the root makes a store of them, and remove others."""
    present = {entry.path.removeprefix(f"{name}/"): entry.size for entry in output.entries(name)}
    # A run that was stopped may have left a task that did the same, and this run's may have removed what it wrote.
    if lost := [path for path, (size, _) in written.items() if present.get(path) != size]:
        raise StorageError(f"{output.url_of(name)}: {lost[0]} is gone or changed while the store was written")
    output.delete([f"{name}/{path}" for path in present if path not in written])


def _metadata(
    grid: Grid, layout: _Layout, days: NDArray[np.datetime64], provenance: Mapping[str, Any]
) -> dict[str, bytes]:
    """Every object of a store but its shards, in the order in which they are to be written: the root is the last."""
    about = {"title": f"embeddings of tile {provenance.get('tile')}", **_geoemb(grid, layout, provenance)}
    return metadata(
        grid,
        VARIABLE,
        days=days,
        labels=provenance.get("labels", {}),
        about=about | {"daskembed": dict(provenance)},
        conventions=[_GEOEMB],
        attributes={"_FillValue": _NAN},
        encoding={"shape": layout.shape, **layout.encoding},
    )


def _geoemb(grid: Grid, layout: _Layout, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the convention of embeddings asks for, as far as it is known."""
    found: dict[str, Any] = {
        "geoemb:type": "chip",
        "geoemb:dimensions": layout.shape[-3],
        "geoemb:model": _model(str(provenance.get("checkpoint"))),
        "geoemb:data_type": layout.dtype,
    }
    if source := provenance.get("identity", {}).get("source"):
        found["geoemb:source_data"] = Path(source).as_uri() if is_local(source) and "://" not in source else source
    if window := provenance.get("window"):
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
