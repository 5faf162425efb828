"""Which rows of an export stay where tiles overlap, so that there is one of a place and date (pure).

A place belongs to the Sentinel-2 tile whose 100 km square it lies in. A row whose middle belongs to its own tile
stays. Another leaves if all of it lies in rows of the same date of other tiles that stay: in such whose middles belong
to their own tiles, and such whose middles do not, of tiles whose names are before its own in the alphabet. Whether all
of it does is told by nine points: its middle, its corners, and the middles of its sides. Rows of one tile never make
each other leave.

So what leaves lies in what stays, which rows stay depends on nothing but where and when all of them are, and those that
stay all stay when the rule is applied again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely

from daskembed.exports.rows import Exported, Squares, to_degrees
from daskembed.geo.footprints import box
from daskembed.geo.regions import tiles_of_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""West, south, east and north in degrees; across 180 degrees west is more than east."""
FAR = 1.0
"""Degrees of a great circle around a tile in which there are all tiles on which it depends which of its rows stay: a
row depends on those that it meets, of which some are of a tile before its own in the alphabet and depend on others,
each a chip further away at most."""
_SHARES = (0.001, 0.5, 0.999)
"""Of a row's sides, where the points are that all have to lie in others."""


@dataclass(frozen=True)
class TilePlaces:
    """Where and when the published rows of a tile are."""

    tile: str
    days: NDArray[np.datetime64]
    squares: Squares
    grid: tuple[int, int] = (1, 1)
    """Rows and columns of what a published row becomes in the export."""
    wanted: NDArray[np.bool_] | None = None
    """Which rows of the export are in it, but for those that leave; all by default."""

    def __len__(self) -> int:
        """Rows of the export."""
        return len(self.days) * self.grid[0] * self.grid[1]

    def days_of(self, rows: NDArray[np.intp]) -> NDArray[np.datetime64]:
        """Days of numbered rows of the export."""
        found: NDArray[np.datetime64] = self.days[rows // (self.grid[0] * self.grid[1])]
        return found

    def points_of(self, rows: NDArray[np.intp], shares: Sequence[float]) -> NDArray[np.float64]:
        """Longitudes and latitudes of points of numbered rows of the export, ``(row, point, 2)``.

        They are at each two of some shares of its height and width.
        """
        published, cell = np.divmod(rows, self.grid[0] * self.grid[1])
        y, x = np.divmod(cell, self.grid[1])
        west, south, east, north = self.squares.bounds[published].T
        down, across = (part.ravel() for part in np.meshgrid(shares, shares, indexing="ij"))
        xs = west[:, None] + (x[:, None] + across) * ((east - west) / self.grid[1])[:, None]
        ys = north[:, None] - (y[:, None] + down) * ((north - south) / self.grid[0])[:, None]
        codes = np.broadcast_to(self.squares.epsg[published][:, None], xs.shape)
        return np.stack(to_degrees(codes, xs, ys), axis=-1)

    def at_home(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the middles of numbered rows of the export lie in the tile's own square."""
        found: NDArray[np.bool_] = tiles_of_places(*self.points_of(rows, (0.5,))[:, 0].T) == self.tile
        return found

    def holding(
        self, places: NDArray[np.float64], days: NDArray[np.datetime64]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Numbers of those of some places that lie in rows of the same day, and of the rows of the export.

        Parameters
        ----------
        places
            Longitude and latitude, ``(place, 2)``.
        days
            Of the places.
        """
        found: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        for code in np.unique(self.squares.epsg):
            here = np.flatnonzero(self.squares.epsg == code)
            west, south, east, north = self.squares.bounds[here].T
            x, y = pyproj.Transformer.from_crs("OGC:CRS84", int(code), always_xy=True).transform(*places.T)
            near = np.flatnonzero((x >= west.min()) & (x < east.max()) & (y > south.min()) & (y <= north.max()))
            tree = shapely.STRtree(shapely.box(west, south, east, north))
            point, square = tree.query(shapely.points(x[near], y[near]), predicate="intersects")
            point = near[point]
            # Of two rows that meet, one has the edge.
            inside = (x[point] < east[square]) & (y[point] > south[square])
            inside &= self.days[here[square]] == days[point]
            point, square = point[inside], square[inside]
            down, across = self.grid
            row = ((north[square] - y[point]) / (north - south)[square] * down).astype(np.intp).clip(0, down - 1)
            col = ((x[point] - west[square]) / (east - west)[square] * across).astype(np.intp).clip(0, across - 1)
            cell = (here[square] * down + row) * across + col
            kept = slice(None) if self.wanted is None else self.wanted[cell]
            found.append((point[kept], cell[kept]))
        points, rows = zip(*found, strict=True) if found else ((), ())
        empty = np.empty(0, np.intp)
        return np.concatenate([empty, *points]), np.concatenate([empty, *rows])


def places_of(rows: Exported) -> TilePlaces:
    """The places of the rows of an export.

    Raises
    ------
    TileError
        If it cannot be told where one lies.
    """
    days = rows.table["date"].to_numpy().astype("datetime64[D]")
    return TilePlaces(rows.about.tile, days, rows.published, rows.grid)


def neighbours(areas: Mapping[str, Box]) -> dict[str, list[str]]:
    """Of each tile those on which it may depend which of its rows stay, by bounding boxes; itself as well."""
    names, shapes = sorted(areas), [box(*areas[name]) for name in sorted(areas)]
    tree = shapely.STRtree(shapes)
    found: dict[str, list[str]] = {name: [] for name in names}
    around = np.array([_around(areas[name]) for name in names], object)
    for tile, other in tree.query(around, predicate="intersects").T:
        found[names[tile]].append(names[other])
    return {name: sorted(others) for name, others in found.items()}


def _around(area: Box) -> shapely.Geometry:
    west, south, east, north = area
    # Meridians are closer to each other towards the poles.
    wide = FAR / np.cos(np.deg2rad(min(max(abs(south), abs(north)) + FAR, 89)))
    start, end = west - wide, (east if east >= west else east + 360) + wide
    if end - start >= 360:
        start, end = -180, 180
    elif start < -180 or end > 180:
        start, end = (start + 180) % 360 - 180, (end + 180) % 360 - 180
    return box(start, max(south - FAR, -90), end, min(north + FAR, 90))


def stays(tile: str, areas: Mapping[str, Box], read: Callable[[str], TilePlaces]) -> NDArray[np.bool_]:
    """Which rows of a tile's export stay.

    Parameters
    ----------
    tile
        MGRS tile id.
    areas
        Bounding box of each tile of the export, or of the tile's `neighbours`.
    read
        Gives the places of a tile; called once of each at whose rows is to be looked.

    Returns
    -------
    numpy.ndarray
        ``(row,)``, in the order of the published rows, of each its patches row-major.
    """
    get = functools.cache(read)
    return _stay(get(tile), np.arange(len(get(tile))), areas, get)


def _stay(
    here: TilePlaces, rows: NDArray[np.intp], areas: Mapping[str, Box], get: Callable[[str], TilePlaces]
) -> NDArray[np.bool_]:
    """Which of the numbered rows of a tile stay."""
    staying = here.at_home(rows)
    undecided = np.flatnonzero(~staying)
    points = here.points_of(rows[undecided], _SHARES)
    days = np.repeat(here.days_of(rows[undecided]), points.shape[1])
    places, covered = points.reshape(-1, 2), np.zeros(len(days), bool)
    for at_home in (True, False):
        for name in sorted(areas):
            if name == here.tile or (not at_home and name > here.tile):
                continue
            near = np.flatnonzero(~covered & shapely.intersects_xy(_reach(areas[name]), places))
            if not len(near):
                continue
            there = get(name)
            found, others = there.holding(places[near], days[near])
            kind = there.at_home(others) == at_home
            found, others = found[kind], others[kind]
            if not at_home:
                asked, which = np.unique(others, return_inverse=True)
                found = found[_stay(there, asked, areas, get)[which]]
            covered[near[found]] = True
    staying[undecided] = ~covered.reshape(points.shape[:2]).all(axis=1)
    return staying


def _reach(area: Box) -> shapely.Geometry:
    """What the rows of a tile may reach: the edges of footprints are straight in degrees."""
    return shapely.buffer(box(*area), 1e-4)
