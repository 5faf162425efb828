"""What is alike: places, areas and rows as they are given, and the vectors that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from daskembed.errors import InputError
from daskembed.explore.named import meant_by, no_patch
from daskembed.explore.patches import centres, metres_to, patch_footprints
from daskembed.explore.reading import read_blocks, read_facts, read_urls
from daskembed.geo.footprints import box
from daskembed.sources.region import in_degrees, read_frame
from daskembed.storage.urls import is_local, local_path, redact

if TYPE_CHECKING:
    from datetime import date

    import pyproj
    from numpy.typing import NDArray

    from daskembed.explore.footers import Piece, Rows
    from daskembed.explore.reading import Block, Facts

Combine = Literal["mean", "each"]
COMBINE: tuple[Combine, ...] = ("mean", "each")
_CELL = re.compile(r"[#&]patch=(\d+),(\d+)$")
"""What follows a row's URL where one of its patches is meant."""
_EXPECTED = "expected LON,LAT in degrees, such as 12.43,45.94, or a file that GeoPandas reads"
_MOST_EXAMPLES = 10_000
"""Features of a file."""


@dataclass(frozen=True)
class Given:
    """A place, an area or a row that is, or is not, like what is searched."""

    text: str
    """As it was given."""
    alike: bool
    area: shapely.Geometry | None
    """In degrees; None of a row."""
    url: str | None = None
    """Of a row."""
    cell: tuple[int, int] | None = None
    """Of one of its patches: row and column."""

    @property
    def told(self) -> str:
        """As messages name it."""
        return f"{_asked(self.alike, '' if self.url is None else '_row')} {self.text!r}"


@dataclass(frozen=True)
class Example:
    """What was found there."""

    given: Given
    places: NDArray[np.int64]
    """Number of the piece and of the vector in it, of all vectors that are there: ``(vector, 2)``."""
    vector: NDArray[np.float64]
    """Their mean."""
    footprints: NDArray[np.object_]
    """Of each of them, in degrees."""


def read_given(like: Any, *, alike: bool) -> list[Given]:
    """Places and areas of what can be given: text, longitude and latitude, a geometry, a frame, or several of them.

    Raises
    ------
    InputError
        If one cannot be understood, a file cannot be read, or it holds nothing.
    """
    if like is None:
        return []
    if isinstance(like, str):
        return _read_text(like, alike)
    if isinstance(like, Path):
        return _read_file(str(like), alike)
    if isinstance(like, shapely.Geometry):
        return [Given(_told(like), alike, _checked(like, "a geometry"))]
    if isinstance(like, gpd.GeoDataFrame | gpd.GeoSeries):
        return _of_frame(like.geometry, "the frame", alike)
    if isinstance(like, pd.Series) and isinstance(row := like.get("geometry"), shapely.Geometry):
        return read_given(row, alike=alike)
    if isinstance(like, Sequence | np.ndarray) and len(like) == 2 and all(isinstance(one, Real) for one in like):
        return [_place(float(like[0]), float(like[1]), alike)]
    if isinstance(like, Iterable) and not isinstance(like, pd.DataFrame | pd.Series | bytes):
        return [given for one in like for given in read_given(one, alike=alike)]
    raise InputError(
        f"{_asked(alike)} {like!r}: {_EXPECTED}, a geometry in degrees, a GeoDataFrame, or several of them"
    )


def read_rows_given(urls: str | Iterable[str] | None, *, alike: bool) -> list[Given]:
    """Rows by their URLs or the ends of these, which ``#patch=ROW,COL`` follows where one of their patches is meant."""
    found = []
    for url in [urls] if isinstance(urls, str) else () if urls is None else urls:
        if not isinstance(url, str):
            raise InputError(f"{_asked(alike, '_row')} {url!r}: expected the URL of a row, its source_url")
        cell = _CELL.search(url)
        place = (int(cell[1]), int(cell[2])) if cell else None
        found.append(Given(url, alike, None, _CELL.sub("", url), place))
    return found


def _asked(alike: bool, more: str = "") -> str:
    """The argument that gave an example."""
    return f"`{'' if alike else 'un'}like{more}`"


def find_examples(rows: Rows, given: Sequence[Given]) -> list[Example]:
    """The vectors of what is given.

    Parameters
    ----------
    rows
        Where it is looked for. Their days count, their region does not: it is that of the hits.
    given
        At least one of them alike.

    Raises
    ------
    InputError
        If nothing is there: it says how far the nearest row is, or what URLs look like.
    """
    found = _look(rows, given)
    lost = [which for which, one in enumerate(given) if one.area is None and not found[which]]
    if lost:
        # It may be the end of a URL, whose beginning statistics do not tell.
        urls = dict.fromkeys(url for piece in rows.pieces for url in read_urls(rows, piece) if url)
        meant = {which: meant_by(given[which], urls, rows.storage.url) for which in lost}
        given = [meant.get(which, one) for which, one in enumerate(given)]
        for which, pieces in zip(lost, _look(rows, list(meant.values())), strict=True):
            found[which] = pieces
    for which, pieces in enumerate(found):
        if not pieces:
            raise InputError(_nothing(rows, given[which]))
        inside = any(there.inside.any() for _, there in pieces)
        found[which] = [(number, there.decided(inside)) for number, there in pieces]
    values = _read_vectors(rows, found)
    return [_example(one, pieces, values) for one, pieces in zip(given, found, strict=True)]


def combine(examples: Sequence[Example], how: Combine) -> NDArray[np.float64]:
    """The vectors to search for, ``(query, dims)``.

    With ``mean`` one, 2 mean(alike) - mean(unlike), which is mean(alike) if nothing is unlike; with ``each`` one of
    that form for each that is alike.
    """
    alike = np.stack([one.vector for one in examples if one.given.alike])
    unlike = [one.vector for one in examples if not one.given.alike]
    if how == "mean":
        alike = alike.mean(axis=0, keepdims=True)
    return 2 * alike - np.mean(unlike, axis=0) if unlike else alike


def _read_text(text: str, alike: bool) -> list[Given]:
    try:
        lon, lat = map(float, text.split(","))
    except ValueError:
        pass
    else:
        return [_place(lon, lat, alike)]
    if is_local(text) and not (text and local_path(text).exists()):
        raise InputError(f"{_asked(alike)} {redact(text)!r}: no such file, and no place: {_EXPECTED}")
    return _read_file(text, alike)


def _read_file(path: str, alike: bool) -> list[Given]:
    name = redact(path)
    return _of_frame(read_frame(path, name, _EXPECTED).geometry, name, alike)


def _of_frame(shapes: gpd.GeoSeries, name: str, alike: bool) -> list[Given]:
    if not len(shapes) or len(shapes) > _MOST_EXAMPLES:
        raise InputError(f"{name} has {len(shapes):,} features: expected 1 to {_MOST_EXAMPLES:,} examples")
    several = len(shapes) > 1
    return [
        Given(
            f"{name} feature {number}" if several else name,
            alike,
            _checked(shape, f"{name}, feature {number}", shapes.crs),
        )
        for number, shape in enumerate(shapes, start=1)
    ]


def _checked(shape: Any, name: str, crs: pyproj.CRS | None = None) -> shapely.Geometry:
    """A geometry of some CRS, without one in degrees, in degrees."""
    if shape is None or shape.is_empty:
        raise InputError(f"{name} is empty: give a place or an area")
    shape = shapely.force_2d(shapely.make_valid(shape))
    if crs is not None:
        return in_degrees(shape, crs, name)
    west, south, east, north = shape.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise InputError(f"{name} lies from {west:g},{south:g} to {east:g},{north:g}: expected degrees of OGC:CRS84")
    return shape


def _place(lon: float, lat: float, alike: bool) -> Given:
    text, swapped = (f"{round(x, 7):.10g},{round(y, 7):.10g}" for x, y in ((lon, lat), (lat, lon)))
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        meant = f"; did you mean {swapped}?" if -180 <= lat <= 180 and -90 <= lon <= 90 else ""
        raise InputError(
            f"{_asked(alike)} {text}: a longitude from -180 to 180 comes first, then a latitude from -90 to 90{meant}"
        )
    return Given(text, alike, shapely.Point(lon, lat))


def _told(shape: shapely.Geometry) -> str:
    text = shape.wkt
    return text if len(text) <= 60 else f"{text[:57]}..."


def _look(rows: Rows, given: Sequence[Given]) -> list[list[tuple[int, There]]]:
    """Of each that is given the numbers of pieces with vectors of it, and these."""
    found: list[list[tuple[int, There]]] = [[] for _ in given]
    for number, piece in enumerate(rows.pieces):
        near = [which for which, one in enumerate(given) if _may_hold(piece, one, rows.dates)]
        if near:
            facts = read_facts(rows, piece)
            for which in near:
                there = vectors_of(rows, facts, given[which])
                if len(there.numbers):
                    found[which].append((number, there))
    return found


def _may_hold(piece: Piece, given: Given, dates: tuple[date, date] | None) -> bool:
    """Whether a piece can hold what is given, as its footer says."""
    if given.area is None:
        return piece.urls is None or piece.urls[0] <= str(given.url) <= piece.urls[1]
    if dates is not None and piece.days is not None and not (piece.days[0] <= dates[1] and piece.days[1] >= dates[0]):
        return False
    return piece.bounds is None or bool(shapely.intersects(box(*piece.bounds), given.area))


@dataclass(frozen=True)
class There:
    """Vectors of a piece that are what is given."""

    numbers: NDArray[np.int64]
    footprints: NDArray[np.object_]
    inside: NDArray[np.bool_]
    """Of an area: whether their middle is in it; of others the area's middle is in them. True of all else."""

    def decided(self, inside: bool) -> There:
        """Those inside; all where none is, in this piece and the others."""
        kept = self.inside if inside else np.ones_like(self.inside)
        return There(self.numbers[kept], self.footprints[kept], self.inside[kept])


def vectors_of(rows: Rows, facts: Facts, given: Given) -> There:
    """The vectors of a piece that are, or may be, what is given: see `There.decided`."""
    if given.area is None:
        there = np.array([url == given.url for url in facts.urls], bool)
    else:
        there = shapely.intersects(facts.footprints, given.area)
        if rows.dates is not None:
            there &= [day is not None and rows.dates[0] <= day <= rows.dates[1] for day in facts.dates]
    chosen = np.flatnonzero(there)
    if not len(chosen):
        return There(chosen, np.empty(0, object), np.empty(0, bool))
    shapes = facts.footprints[chosen]
    cells = None if facts.cells is None else facts.cells[chosen]
    if rows.patches > 1:
        shapes = patch_footprints(shapes, rows.grid).reshape(-1)
        chosen = (chosen[:, None] * rows.patches + np.arange(rows.patches)).reshape(-1)
        cells = np.stack(np.divmod(chosen % rows.patches, rows.grid[1]), axis=1)
    inside = np.ones(len(chosen), bool)
    if given.cell is not None:
        wanted = np.zeros(len(chosen), bool) if cells is None else (cells == given.cell).all(axis=1)
    elif given.area is None:
        wanted = np.ones(len(chosen), bool)
    else:
        wanted = shapely.intersects(shapes, given.area)
        if shapely.get_dimensions(given.area) == 2:
            # Of an area those that lie in it, not what only touches it; if it is smaller, where its middle is.
            inside = shapely.contains_xy(given.area, *centres(shapes).T)
            middle = shapely.intersects(shapes, shapely.point_on_surface(given.area))
            wanted = inside | middle
    return There(chosen[wanted], shapes[wanted], inside[wanted])


def _read_vectors(
    rows: Rows, found: Sequence[Sequence[tuple[int, There]]]
) -> dict[int, dict[int, NDArray[np.float64]]]:
    """Number of a piece -> number of a vector in it -> its values."""
    wanted: dict[int, set[int]] = {}
    for there in found:
        for number, one in there:
            wanted.setdefault(number, set()).update(one.numbers.tolist())
    values: dict[int, dict[int, NDArray[np.float64]]] = {}
    for number, chosen in wanted.items():
        values[number] = {}
        for block in read_blocks(rows.within(None, None), rows.pieces[number]):
            values[number] |= _values(rows, block, chosen)
    return values


def _values(rows: Rows, block: Block, wanted: set[int]) -> dict[int, NDArray[np.float64]]:
    chosen = np.flatnonzero(np.isin(block.numbers, list(wanted)))
    found = block.vectors[chosen].astype(np.float64)
    if rows.affine is not None:
        found = found * rows.affine.scale + rows.affine.offset
    return dict(zip(block.numbers[chosen].tolist(), found, strict=True))


def _example(
    given: Given, pieces: Sequence[tuple[int, There]], values: dict[int, dict[int, NDArray[np.float64]]]
) -> Example:
    places = np.concatenate(
        [np.stack([np.full(len(there.numbers), one), there.numbers], axis=1) for one, there in pieces]
    )
    vectors = np.stack([values[piece][vector] for piece, vector in places.tolist()])
    return example_of(given, places, vectors, np.concatenate([there.footprints for _, there in pieces]))


def example_of(
    given: Given, places: NDArray[np.int64], vectors: NDArray[np.float64], footprints: NDArray[np.object_]
) -> Example:
    """An example of the vectors that were found; raises `InputError` if none of them has numbers only."""
    good = np.isfinite(vectors).all(axis=1)
    if not good.any():
        raise InputError(
            f"{given.told}: the {len(vectors)} vectors there have NaN or infinity: nothing can be like them"
        )
    return Example(given, places, vectors[good].mean(axis=0), footprints)


def _nothing(rows: Rows, given: Given) -> str:
    """Why nothing is there."""
    if given.area is None:
        if rows.patches > 1:
            return no_patch(given, np.array([(0, 0), rows.grid]) - [(0, 0), (1, 1)])
        near = (read_facts(rows, piece) for piece in rows.pieces if _may_hold(piece, given, None))
        cells = [one.cells[np.array(one.urls) == given.url] for one in near if one.cells is not None]
        return no_patch(given, np.concatenate(cells) if cells else None)
    middle = given.area if given.area.geom_type == "Point" else given.area.representative_point()
    metres, name, days = _nearest(rows, (middle.x, middle.y))
    if metres == 0 and rows.dates is not None:
        return (
            f"{given.told}: no row of the `dates` {rows.dates[0]}/{rows.dates[1]} is there; there are some of "
            f"{', '.join(days[:5])}"
        )
    x, y = middle.x, middle.y
    swapped = given.area.geom_type == "Point" and abs(x) <= 90 and _nearest(rows, (y, x))[0] == 0
    return (
        f"{given.told} is outside of all rows of {rows.storage.url}: the nearest is {_far(metres)} away, in "
        f"{name}; {f'longitude comes first: did you mean {y},{x}?' if swapped else 'give a place inside, as LON,LAT'}"
    )


def _nearest(rows: Rows, place: tuple[float, float]) -> tuple[float, str, list[str]]:
    """How far the nearest row is from a place, its file, and of which days there are some so near."""
    whole = np.array([box(*(piece.bounds or (-180, -90, 180, 90))) for piece in rows.pieces], object)
    # Edges of boxes are parallels and meridians: as straight lines they would be elsewhere.
    far = metres_to(place, shapely.segmentize(whole, 0.5))
    far[shapely.intersects(whole, shapely.Point(place))] = 0
    best, name, days = np.inf, "", set[str]()
    for number in np.argsort(far, kind="stable"):
        if far[number] > best:
            break
        facts = read_facts(rows, rows.pieces[number])
        metres = metres_to(place, facts.footprints)
        if metres.min(initial=np.inf) < best:
            best, name, days = float(metres.min()), rows.pieces[number].file, set()
        days |= {str(facts.dates[one] or "no date") for one in np.flatnonzero(metres <= best)}
    return best, name, sorted(days)


def _far(metres: float) -> str:
    return f"{metres / 1000:,.0f} km" if metres >= 10_000 else f"{metres / 1000:.1f} km"
