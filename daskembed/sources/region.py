"""A region as it is asked for: a file, or degrees."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskembed.errors import InputError, TileError, exact
from daskembed.geo.mgrs import is_tile, tiles_of
from daskembed.storage.urls import SCHEMES, is_local, local_path, redact

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy as np
    import pyproj
    import shapely
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_EXPECTED = (
    "expected a file that GeoPandas reads (GeoPackage, GeoJSON, a zipped shapefile, GeoParquet and others), or W,S,E,N "
    "in degrees, such as 11.3,47.9,11.9,48.3"
)
MOST_CORNERS = 20_000
"""Of a region: it travels with every task."""
_TOLERANCES = (1e-5, 1e-4, 1e-3)
"""Degrees by which edges of a region of more corners may be moved: 1, 11 and 111 m."""
_PRECISION = 1e-7
"""Degrees to which corners are kept: 1 cm."""
_POLYGON = 3
"""Of `shapely.GeometryType`."""
_MOST_FILE = 2**30
"""Bytes of a region's file in a store."""


def asked_tiles(tiles: str | Iterable[str] | None, region: str | None) -> tuple[str, ...]:
    """Tile ids of what `tiles_of` takes, or of a region in WKT.

    Raises
    ------
    InputError
        If neither or both are given, an id is bad, or the region meets no tile.
    """
    if (tiles is None) == (region is None):
        found = "both are given" if tiles is not None else "neither is given"
        raise InputError(f"which tiles? {found} of `tiles` and `region`: give one of them")
    return tiles_of(tiles) if tiles is not None else _tiles_meeting(str(region))


def tiles_of_region(region: str) -> tuple[str, ...]:
    """The Sentinel-2 tiles that a region meets, sorted by their ids.

    Parameters
    ----------
    region
        Path or URL of a file that GeoPandas reads, in any CRS that it says; or ``W,S,E,N`` in degrees, with west more
        than east across 180 degrees.

    Raises
    ------
    InputError
        If it is no region, or lies where there are no tiles.
    StorageError
        If the file's store does not answer.
    """
    return _tiles_meeting(read_region(region))


@functools.lru_cache(maxsize=4)
def _tiles_meeting(region: str) -> tuple[str, ...]:
    import shapely

    from daskembed.geo.regions import NORTH, SOUTH, tiles_meeting

    area = shapely.from_wkt(region)
    _, south, _, north = area.bounds
    beyond = " and ".join(
        name for name, lies in ((f"{-SOUTH} S", south < SOUTH), (f"{NORTH} N", north > NORTH)) if lies
    )
    tiles = tiles_meeting(area)
    if not tiles:
        raise InputError(f"no tile: the `region` lies beyond {beyond}, where UTM and with it MGRS tiles end")
    if beyond:
        _log.warning(f"warning: what of the `region` lies beyond {beyond} is left out: MGRS tiles end there")
    return tiles


def check_region(text: str) -> None:
    """Raise `InputError` if that can be seen of a text without reading a file."""
    if _degrees(text) is None and is_local(text) and not local_path(text).exists():
        hint = f"; did you mean `tiles={text!r}`?" if all(map(is_tile, text.split(","))) else ""
        raise InputError(f"no file {text}: {_EXPECTED}{hint}")


def read_region(text: str) -> str:
    """A region as WKT in OGC:CRS84; see `tiles_of_region` for what it takes and raises."""
    import shapely

    if not isinstance(text, str):
        raise InputError(f"`region` {text!r}: {_EXPECTED}")
    if (edges := _degrees(text)) is not None:
        from daskembed.geo.footprints import box

        west, south, east, north = edges
        if (span := east - west + 360) < 360 and span > 180:
            swapped = ",".join(map(exact, (east, south, west, north)))
            _log.warning(
                f"warning: the `region` {text} goes {exact(span)} degrees around the Earth, for its west is more than "
                f"its east: did you mean `region={swapped!r}`?"
            )
        return str(shapely.to_wkt(box(*edges), rounding_precision=-1))
    check_region(text)
    name = redact(text)
    found = read_frame(text, name, _EXPECTED)
    if found.crs is None:
        raise InputError(
            f"{name} says no CRS, so nobody knows where it is: expected a file with one (GeoPandas sets it by set_crs)"
        )
    shapes = shapely.force_2d(found.geometry[~(found.geometry.isna() | found.geometry.is_empty)].to_numpy())
    area = shapely.union_all(shapely.make_valid(shapes))
    if area.is_empty:
        raise InputError(f"{name} has no geometry that is not empty: {_EXPECTED}")
    area = _with_few_corners(in_degrees(area, found.crs, name), name)
    return str(shapely.to_wkt(shapely.normalize(area), rounding_precision=7))


def chips_within(tile: str, region: str | None, footprints: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which of a tile's chips meet a region in WKT, by their footprints; all where there is none.

    Raises
    ------
    TileError
        If none does.
    """
    import numpy as np

    from daskembed.geo.regions import meets

    if region is None:
        return np.ones(len(footprints), bool)
    found = meets(region, footprints)
    if not found.any():
        raise TileError(f"no chips of tile {tile} meet the region: all {len(footprints)} lie outside; check `region`")
    return found


def _degrees(text: str) -> tuple[float, float, float, float] | None:
    """West, south, east and north; None of what is not four numbers."""
    try:
        edges = tuple(map(float, text.split(",")))
    except ValueError:
        return None
    if len(edges) != 4:
        raise InputError(f"`region` {text!r}: {_EXPECTED}")
    west, south, east, north = edges
    # Written so that NaN is refused.
    if not (-180 <= west <= 180 and -180 <= east <= 180 and west != east):
        raise InputError(
            f"`region` {text!r}: expected a west and an east from -180 to 180 degrees, west more than east across 180"
        )
    if not -90 <= south < north <= 90:
        raise InputError(f"`region` {text!r}: expected a south below the north, from -90 to 90 degrees")
    return west, south, east, north


def read_frame(text: str, name: str, expected: str) -> gpd.GeoDataFrame:
    """What GeoPandas reads of a file, here or in a store; errors call it `name` and say what is `expected`."""
    import geopandas as gpd

    scheme = text.partition("://")[0]
    file: Any = local_path(text) if is_local(text) else text
    if not is_local(text) and scheme in SCHEMES:
        from daskembed.storage.stores import Storage

        folder, _, last = text.rpartition("/")
        try:
            file = io.BytesIO(Storage(folder).get(last, most=_MOST_FILE))
        except FileNotFoundError:
            raise InputError(f"no file {name}: {expected}") from None
    parquet = Path(text).suffix.lower() in (".parquet", ".geoparquet", ".gpq", ".pq")
    try:
        found = gpd.read_parquet(file) if parquet else gpd.read_file(file)
    except Exception as error:
        # Each driver and each format has errors of its own.
        raise InputError(f"{name} cannot be read by GeoPandas: {_said(error)}; {expected}") from None
    if not isinstance(found, gpd.GeoDataFrame):
        raise InputError(f"{name} has no geometry: {expected}")
    return found


def _said(error: Exception) -> str:
    # GDAL names the URL, which may be signed.
    return redact(" ".join(str(error).split()) or type(error).__name__)[:200]


def in_degrees(shape: shapely.Geometry, crs: pyproj.CRS, name: str) -> shapely.Geometry:
    """A valid geometry in OGC:CRS84, cut at 180 degrees; of a projected one, edges are straight as they are projected.

    Raises
    ------
    InputError
        If it cannot be brought there, or lies where degrees are none: calls it `name`.
    """
    try:
        found = _transformed(shape, crs)
    except Exception as error:
        raise InputError(f"{name} cannot be brought from {crs.name} to degrees: {_said(error)}") from None
    west, south, east, north = found.bounds
    if not (west >= -540 and east <= 540 and south >= -90 and north <= 90):
        raise InputError(
            f"{name} has the bounds {', '.join(map(exact, found.bounds))} in degrees: its coordinates are not of the "
            f"CRS that it says, {crs.name}"
        )
    return _within_a_turn(found)


def _transformed(shape: shapely.Geometry, crs: pyproj.CRS) -> shapely.Geometry:
    """In OGC:CRS84, with longitudes beyond 180 degrees where a projected geometry reaches over that."""
    import geopandas as gpd
    import numpy as np
    import shapely

    if crs.is_projected:
        west, south, east, north = shape.bounds
        unit = crs.axis_info[0].unit_conversion_factor
        # A kilometre, or more of what is more than a country.
        shape = shapely.segmentize(shape, max(1000 / unit, (east - west + north - south) / 20_000))
    degrees = gpd.GeoSeries([shape], crs=crs).to_crs("OGC:CRS84").iloc[0]
    if not np.isfinite(shapely.get_coordinates(degrees)).all():
        raise ValueError("some of its places are outside of the projection")
    if crs.is_projected:
        degrees = shapely.make_valid(shapely.union_all([_unwrapped(part) for part in shapely.get_parts(degrees)]))
    return degrees


def _unwrapped(part: shapely.Geometry) -> shapely.Geometry:
    """A part of a projected region, with longitudes beyond 180 where its edges cross that."""
    import numpy as np
    import shapely

    def unwrap(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.unwrap(corners[:, 0], period=360), corners[:, 1]], axis=1)

    for ring in (part.exterior, *part.interiors) if shapely.get_type_id(part) == _POLYGON else ():
        start, *_, end = unwrap(shapely.get_coordinates(ring))[:, 0]
        if abs(start - end) > 180:
            raise ValueError("it lies around a pole: cut it at 84 N or 80 S, or give it in degrees")
    return shapely.transform(part, unwrap)


def _within_a_turn(area: shapely.Geometry) -> shapely.Geometry:
    """A region with longitudes from -180 to 180."""
    import shapely

    west, _, east, _ = area.bounds
    if west >= -180 and east <= 180:
        return area
    parts = []
    for start in (-540, -180, 180):
        part = shapely.intersection(area, shapely.box(start, -90, start + 360, 90))
        parts.append(shapely.transform(part, lambda corners, start=start: corners - [start + 180, 0]))
    return shapely.union_all(parts)


def _with_few_corners(area: shapely.Geometry, name: str) -> shapely.Geometry:
    """A region whose edges are moved as little as leaves it `MOST_CORNERS`; raises `InputError` if nothing does."""
    import shapely

    rounded = shapely.set_precision(area, _PRECISION)
    area = area if rounded.is_empty else rounded
    corners = shapely.get_num_coordinates(area)
    if corners <= MOST_CORNERS:
        return area
    for tolerance in _TOLERANCES:
        simpler = shapely.simplify(area, tolerance)
        if shapely.get_num_coordinates(simpler) <= MOST_CORNERS:
            _log.warning(
                f"warning: {name} has {corners:,} corners: its edges are moved by up to {tolerance:g} degrees, so that "
                f"{shapely.get_num_coordinates(simpler):,} are left"
            )
            return simpler
    raise InputError(
        f"{name} has {corners:,} corners, and more than {MOST_CORNERS:,} with edges moved by {_TOLERANCES[-1]:g} "
        "degrees: simplify it, or cut it into several regions"
    )
