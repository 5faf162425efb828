"""Published rows as an export has them: chips, or patches with footprints of their own (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyproj
import shapely

from daskembed.errors import InputError, TileError
from daskembed.exports.names import ADDED, Kind
from daskembed.geo import wkb
from daskembed.geo.cells import EDGES, cell_bounds
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import bounding_box, split_at_antimeridian
from daskembed.geo.mgrs import square_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CENTIMETRE = 0.01
"""Metres by which the corners of a footprint may be beside those of a square."""
_TIME = pa.timestamp("ms", "UTC")
_WINDOW = re.compile(r"[#&]window=(\d+),(\d+)$")
_EAST_SOUTH_FIRST = ((1, 1), (0, 1), (0, 0), (1, 0), (1, 1))
"""Corners of a cell as steps (y, x) from its north-western one, in the order of published footprints."""


@dataclass(frozen=True)
class TileRows:
    """What is known of the rows of a published file beside its table."""

    tile: str
    grid: tuple[int, int] = (1, 1)
    """Rows and columns of the patches of one published row; one of a level without a grid."""
    window: int = CHIP
    """Pixels along each side of a published row."""
    known: pa.Table | None = None
    """What `daskembed.output.index_rows` keeps of them; None of what earlier versions published."""


class Squares(NamedTuple):
    """Where some rows lie."""

    epsg: NDArray[np.int32]
    """Code of the CRS of each."""
    bounds: NDArray[np.float64]
    """West, south, east and north of each in its CRS, ``(row, 4)``; NaN where that cannot be told."""


class Exported:
    """The rows of a published table as an export has them: each property is made when it is first asked for.

    Parameters
    ----------
    table
        Some rows of a published file; what is asked for has to be in it.
    about
        What is known of them.
    rows
        What a row of the export is: of a ``patch`` each row of the table becomes as many as it has patches, row-major.
    """

    def __init__(self, table: pa.Table, about: TileRows, rows: Kind) -> None:
        self.table, self.about = table, about
        self.grid = about.grid if rows == "patch" else (1, 1)
        self.patches = rows == "patch"

    @cached_property
    def number(self) -> NDArray[np.int64]:
        """Number of the published row of each row."""
        return np.repeat(np.arange(len(self.table)), self.grid[0] * self.grid[1])

    @cached_property
    def row(self) -> NDArray[np.int32]:
        """From the north, of each row's patch in its published row."""
        return np.tile(np.repeat(np.arange(self.grid[0], dtype=np.int32), self.grid[1]), len(self.table))

    @cached_property
    def col(self) -> NDArray[np.int32]:
        """From the west, of each row's patch in its published row."""
        return np.tile(np.arange(self.grid[1], dtype=np.int32), len(self.table) * self.grid[0])

    def of_each(self, values: pa.Array | pa.ChunkedArray) -> pa.Array:
        """For each row what `values` says of its published row."""
        whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        return whole.take(pa.array(self.number)) if self.patches else whole

    @cached_property
    def shapes(self) -> NDArray[np.object_]:
        """Footprints of the published rows; raises `ValueError` if one is no polygon."""
        return _shapes(self.table)

    @cached_property
    def places(self) -> Squares:
        """Where the published rows lie."""
        return squares_of(self.table, self.about)

    @property
    def published(self) -> Squares:
        """Where the published rows lie; raises `TileError` if that cannot be told of one."""
        bounds = self.places.bounds
        if (bad := np.flatnonzero(np.isnan(bounds).any(axis=1))).size:
            raise TileError(
                f"{self.table['source_url'][int(bad[0])]}: its footprint is no square in EPSG:"
                f"{square_of(self.about.tile).epsg}, the CRS of tile {self.about.tile}, and nothing says which CRS it "
                "has: give `format='geoparquet'` with `rows='chip'` and no `unique` or `profile`, or have the tile "
                "made again"
            )
        return self.places

    @cached_property
    def squares(self) -> Squares:
        """Where the rows lie; raises `TileError` if that cannot be told of one."""
        epsg, bounds = self.published
        west, south, east, north = bounds[self.number].T
        step = (north - south) / self.grid[0], (east - west) / self.grid[1]
        return Squares(epsg[self.number], cell_bounds(west, north, step, self.row, self.col, (1, 1)))

    @cached_property
    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude of the middle of each row."""
        epsg, bounds = self.squares
        west, south, east, north = bounds.T
        return to_degrees(epsg, (west + east) / 2, (south + north) / 2)

    @cached_property
    def corners(self) -> NDArray[np.float64]:
        """Longitude and latitude of the corners of each patch, a closed ring: ``(row, 5, 2)``."""
        (down, across), (epsg, bounds) = self.grid, self.published
        west, south, east, north = bounds.T[:, :, None, None]
        y, x = np.arange(down + 1)[:, None], np.arange(across + 1)
        # Patches that meet have the same corners, whichever of them is asked.
        xs, ys = np.broadcast_arrays(west + x * (east - west) / across, north - y * (north - south) / down)
        lon, lat = to_degrees(np.broadcast_to(epsg[:, None, None], xs.shape), xs, ys)
        whole = np.stack([lon, lat], axis=-1)
        cells = [whole[:, dy : dy + down, dx : dx + across] for dy, dx in _EAST_SOUTH_FIRST]
        return np.stack(cells, axis=3).reshape(-1, 5, 2)

    @property
    def geometry(self) -> pa.Array:
        """Footprints in degrees as well-known binary, in two parts where they cross 180 degrees."""
        if not self.patches:
            return _whole(self.table["geometry"]).cast(pa.binary())
        return to_wkb(self.corners)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """West, south, east and north of the footprints in degrees, ``(row, 4)``.

        Of those across 180 degrees west is more than east, as RFC 7946 (section 5.2) asks.
        """
        if self.patches:
            lon, lat = self.corners[..., 0], self.corners[..., 1]
            boxes = np.stack([lon.min(1), lat.min(1), lon.max(1), lat.max(1)], axis=1)
            for number in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > 180):
                boxes[number, 0] = lon[number][lon[number] > 0].min()
                boxes[number, 2] = lon[number][lon[number] <= 0].max()
            return boxes
        rings = wkb.rings_of(_whole(self.table["geometry"]))
        if rings is None or not np.isfinite(rings).all() or (np.ptp(rings[..., 0], axis=1) > 180).any():
            return boxes_of(self.shapes)
        return np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)

    @property
    def vectors(self) -> NDArray[Any]:
        """Vectors ``(row, value)``; those of a patch's groups, if it has some, one after the other."""
        column = _whole(self.table["embeddings"])
        lists = column.storage if isinstance(column, pa.ExtensionArray) else column
        shape = tuple(column.type.shape) if isinstance(column.type, pa.FixedShapeTensorType) else ()
        flat = lists.flatten()
        length = len(flat) // max(1, len(lists))
        if not pa.types.is_fixed_size_list(lists.type) and pc.any(pc.not_equal(pc.list_value_length(lists), length)):
            raise TileError("its vectors are of several lengths")
        if self.patches:
            down, across = self.grid
            if shape[-3:-1] != (down, across):
                raise TileError(f"its vectors have the shape {shape}, expected patches of {down} x {across}")
            grouped = flat.to_numpy(zero_copy_only=False).reshape(len(lists), -1, down, across, shape[-1])
            vectors: NDArray[Any] = np.moveaxis(grouped, 1, 3).reshape(len(self.number), -1)
            return vectors
        found: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), length)
        return found

    def known(self, name: str, kind: pa.DataType) -> pa.Array:
        """What is kept of each row in the column `name`; null where nothing is."""
        if self.about.known is None:
            return pa.nulls(len(self.number), kind)
        return self.of_each(_kept(self.table, self.about.known, name).cast(kind))

    @cached_property
    def window_starts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixel of each published row in its chip, down and across."""
        starts = [_WINDOW.search(url) for url in self.table["source_url"].to_pylist()]
        y, x = np.array([(int(one[1]), int(one[2])) if one else (0, 0) for one in starts]).reshape(-1, 2).T
        return y, x

    @property
    def ids(self) -> list[str]:
        """An identifier of each row: tile, date and north-western corner in whole units of its CRS."""
        west, _, _, north = self.squares.bounds.T
        return _ids(self.about.tile, self.of_each(self.table["date"]), west, north)

    @property
    def chip_ids(self) -> pa.Array:
        """An identifier of the chip of each row; null where it cannot be told where that lies."""
        west, south, east, north = self.places.bounds.T
        (y, x), side = self.window_starts, self.about.window
        corner = west - x * (east - west) / side, north + y * (north - south) / side
        known = np.isfinite(west)
        found = _ids(self.about.tile, _whole(self.table["date"]), *(np.where(known, one, 0) for one in corner))
        return self.of_each(pa.array(found, pa.string(), mask=~known))


def _datetime(rows: Exported) -> pa.Array:
    return rows.known("datetime", _TIME)


def _tile(rows: Exported) -> pa.Array:
    return pa.array(np.full(len(rows.number), rows.about.tile), pa.string())


def _cloud(rows: Exported) -> pa.Array:
    return rows.known("cloud", pa.float32())


def _epsg(rows: Exported) -> pa.Array:
    epsg, bounds = rows.places
    return rows.of_each(pa.array(epsg, pa.int32(), mask=np.isnan(bounds).any(axis=1)))


Column = Callable[[Exported], pa.Array]

COLUMNS: Mapping[str, Column] = MappingProxyType(
    dict(zip(ADDED, (_datetime, _tile, _cloud, _epsg, lambda rows: rows.chip_ids), strict=True))
)
"""What can be added: when it was taken, UTC; MGRS tile id; share of the chip that shows no ground, by its scene
classification; EPSG code of its CRS; identifier of the chip."""
KEPT = ("datetime", "cloud")
"""Those that only what is kept beside the receipts tells."""
VECTORS = "embeddings"
"""What the column of vectors is called without a profile."""
PLAIN: Mapping[str, Column | None] = MappingProxyType(
    {
        "source_url": lambda rows: rows.of_each(rows.table["source_url"]).cast(pa.string()),
        "date": lambda rows: rows.of_each(rows.table["date"]),
        VECTORS: None,
        "geometry": lambda rows: rows.geometry,
    }
)
"""What a row has without a profile, and how it is made; vectors come from elsewhere."""
PATCH: Mapping[str, Column] = MappingProxyType(
    {"row": lambda rows: pa.array(rows.row), "col": lambda rows: pa.array(rows.col)}
)
"""What a row that is a patch has, too: its row and column in the published row."""


def parse_columns(text: str) -> tuple[str, ...]:
    """The columns of a list such as ``datetime,cloud``, in the order of `COLUMNS`; raises `InputError` for others."""
    if not isinstance(text, str):
        raise InputError(f"`columns` {text!r}: expected one text of names, such as datetime,cloud")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise InputError(f"unknown `columns` {', '.join(map(repr, unknown))}: choose of {', '.join(COLUMNS)}")
    return tuple(name for name in COLUMNS if name in names)


def columns_of(
    rows: Kind, columns: Sequence[str] = (), profile: Mapping[str, Column | None] | None = None
) -> dict[str, Column | None]:
    """The columns of an export in their order, and how each is made.

    Parameters
    ----------
    rows
        What a row is.
    columns
        Of `COLUMNS`, what is added.
    profile
        Columns in the place of the usual ones.
    """
    first = {name: PLAIN[name] for name in ("source_url", "date")}
    plain = {**first, **(PATCH if rows == "patch" else {}), **PLAIN}
    return {**(plain if profile is None else profile), **{name: COLUMNS[name] for name in columns}}


def squares_of(table: pa.Table, about: TileRows) -> Squares:
    """Where published rows lie: as it is kept, else as their footprints say, if they are squares in the tile's CRS."""
    epsg = np.full(len(table), square_of(about.tile).epsg, np.int32)
    bounds = np.full((len(table), 4), np.nan)
    if about.known is not None:
        codes = _kept(table, about.known, "epsg")
        kept = codes.is_valid().to_numpy(zero_copy_only=False)
        epsg[kept] = codes.drop_null().to_numpy()
        for number, edge in enumerate(EDGES):
            bounds[kept, number] = _kept(table, about.known, edge).drop_null().to_numpy()
    if (unknown := np.flatnonzero(np.isnan(bounds).any(axis=1))).size:
        bounds[unknown] = _squares_under(_shapes(table.take(pa.array(unknown))), int(square_of(about.tile).epsg))
    return Squares(epsg, bounds)


def to_degrees(
    epsg: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude of places in the CRS of each; all arrays of one shape."""
    lon, lat = np.empty((2, *x.shape))
    for code in np.unique(epsg):
        there = epsg == code
        transform = pyproj.Transformer.from_crs(int(code), "OGC:CRS84", always_xy=True).transform
        lon[there], lat[there] = transform(x[there], y[there])
    return lon, lat


def boxes_of(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """West, south, east and north of each footprint, ``(row, 4)``; west is more than east across 180 degrees."""
    boxes: NDArray[np.float64] = shapely.bounds(shapes)
    for row in np.flatnonzero(boxes[:, 2] - boxes[:, 0] > 180):
        boxes[row] = bounding_box(shapes[row : row + 1])
    return boxes


def to_wkb(corners: NDArray[np.float64]) -> pa.Array:
    """Well-known binary of closed rings ``(ring, 5, 2)``; polygons in two parts where they cross 180 degrees."""
    made = wkb.squares(corners)
    ends = pa.array(np.arange(len(corners) + 1, dtype=np.int64) * made.itemsize)
    whole = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(corners), [None, ends.buffers()[1], pa.py_buffer(made.tobytes())]
    ).cast(pa.binary())
    crossing = np.flatnonzero(np.ptp(corners[..., 0], axis=1) > 180)
    if not len(crossing):
        return whole
    around = corners[crossing, :4]
    around[..., 0] += 360 * (around[..., 0] < 0)
    values = whole.to_pylist()
    for number, shape in zip(crossing, split_at_antimeridian(around), strict=True):
        values[number] = shapely.to_wkb(shape)
    return pa.array(values, pa.binary())


def _squares_under(shapes: NDArray[np.object_], epsg: int) -> NDArray[np.float64]:
    """Bounds in a CRS of footprints that are rectangles in it; NaN of others."""
    count = len(shapes)
    places, number = shapely.get_coordinates(shapes, return_index=True)
    # Cut at 180 degrees, a footprint has points there that are no corners.
    corner = np.abs(places[:, 0]) < 180
    places, number = places[corner], number[corner]
    transform = pyproj.Transformer.from_crs("OGC:CRS84", epsg, always_xy=True).transform
    x, y = transform(*places.T)
    low, high = np.full((2, count), np.inf), np.full((2, count), -np.inf)
    for axis, values in enumerate((x, y)):
        np.minimum.at(low[axis], number, values)
        np.maximum.at(high[axis], number, values)
    seen, off = np.zeros(count, np.int64), np.zeros(count)
    is_high = []
    for axis, values in enumerate((x, y)):
        from_low, from_high = values - low[axis, number], high[axis, number] - values
        np.maximum.at(off, number, np.minimum(from_low, from_high))
        is_high.append(from_high < from_low)
    np.bitwise_or.at(seen, number, 1 << (2 * is_high[0].astype(np.int64) + is_high[1]))
    found = np.stack([low[0], low[1], high[0], high[1]], axis=1)
    # All four corners, and nothing beside them.
    found[(seen != 0b1111) | ~(off <= CENTIMETRE)] = np.nan
    return found


def _kept(table: pa.Table, known: pa.Table, name: str) -> pa.Array:
    places = pc.index_in(_whole(table["source_url"]).cast(pa.string()), value_set=_whole(known["source_url"]))
    return _whole(known[name]).take(places)


def _shapes(table: pa.Table) -> NDArray[np.object_]:
    wkb.check(values := table["geometry"].to_pylist())
    found: NDArray[np.object_] = shapely.from_wkb(values)
    return found


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else whole.chunk(0)


def _ids(tile: str, days: pa.Array, west: NDArray[np.float64], north: NDArray[np.float64]) -> list[str]:
    said = pc.strftime(days.cast(pa.date32()).cast(pa.timestamp("s")), "%Y%m%d").to_pylist()
    corners = np.rint(np.stack([west, north], axis=1)).astype(np.int64).tolist()
    return [f"{tile}_{day}_{x}_{y}" for day, (x, y) in zip(said, corners, strict=True)]
