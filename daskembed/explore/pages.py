"""The documents of a preview: one of all tiles, and two of each, in the form in which a page takes them from disk.

A browser that opens a page from disk lets it read no files, but it lets it add scripts: each document is a call with a
JSON object.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from daskembed.errors import TileError
from daskembed.explore.basis import COMPONENTS, Basis, Variance
from daskembed.explore.colours import rgb_of
from daskembed.explore.mosaic import Mosaic, for_web, mosaic
from daskembed.explore.places import places_of
from daskembed.geo.footprints import to_lonlat
from daskembed.geo.mgrs import SIDE, square_of
from daskembed.text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.tiles import Rows
    from daskembed.output.state import Receipt

DEGREE = 100_000
"""Steps of a degree in which corners are told: a metre."""
DEVIATIONS = 4
"""Standard deviations of a dimension that 127 steps of a vector for the page's own search stand for."""
_FACTS = ("encoder", "checkpoint", "level", "sensor", "precision", "source")


def call(name: str, value: Any) -> bytes:
    """A script that gives the page a value."""
    return f"daskembed.{name}({json.dumps(value, separators=(',', ':'))});\n".encode()


@dataclass
class Seen:
    """What a preview keeps of the rows of a tile: all but the vectors."""

    urls: list[str]
    dates: list[str]
    footprints: list[NDArray[np.object_]]
    scores: list[NDArray[np.float64]]
    """``(row, down, across, component)``."""
    small: list[NDArray[np.int8]]
    """Vectors for the page's own search, ``(row, down, across, dims)``; none if it has no search."""

    @classmethod
    def of(cls, blocks: Iterable[Rows], basis: Basis, *, search: bool) -> tuple[Seen, list[float]]:
        """Those of a tile, and the share of its variance that each component explains."""
        seen, sums = cls([], [], [], [], []), Variance(basis)
        for rows in blocks:
            seen.urls += rows.urls
            seen.dates += rows.dates
            seen.footprints.append(rows.footprints)
            scores = basis.scores(rows.flat)
            sums.add(rows.flat, scores)
            seen.scores.append(scores.reshape(*rows.vectors.shape[:-1], -1))
            if search:
                seen.small.append(as_small(basis, rows.vectors))
        return seen, sums.explained


def as_small(basis: Basis, vectors: NDArray[np.floating]) -> NDArray[np.int8]:
    """Vectors in steps of one size a dimension, around the mean of all; -128 in those with NaN."""
    step = np.array(basis.deviation) * (DEVIATIONS / 127)
    with np.errstate(invalid="ignore"):
        steps = np.where(step > 0, (vectors - np.array(basis.mean)) / np.where(step > 0, step, 1), 0)
    known = np.isfinite(steps).all(axis=-1, keepdims=True)
    return np.where(known, np.clip(np.rint(np.nan_to_num(steps)), -127, 127), -128).astype(np.int8)


def tile_documents(
    number: int, tile: str, name: str, seen: Seen, explained: Sequence[float], basis: Basis, receipt: Receipt | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Mosaic]]:
    """What a preview tells of a tile.

    Parameters
    ----------
    number
        By which its documents name it.
    tile, name
        MGRS id, and name of the published file.
    seen, explained
        Of its rows.
    basis
        With which colours.
    receipt
        What is known of the tile; None if nothing is.

    Returns
    -------
    dict
        Its entry in the document of all tiles.
    dict
        Its own document.
    dict
        Date -> its image, of dates whose rows lie on one grid.
    """
    footprints, scores = np.concatenate(seen.footprints), np.concatenate(seen.scores)
    colours = rgb_of(basis, scores)
    whole = rgb_of(basis, _mean(scores, (1, 2)))
    dates, which = np.unique(seen.dates, return_inverse=True)
    shapes = [_unwrapped(one) for one in footprints]
    bad = _bad(tile, seen.urls, footprints, receipt)
    all_shapes = [*shapes, *(place for *_, place in bad if place is not None)]
    west, south, east, north = shapely.bounds(np.array(all_shapes)).T
    box = [float(west.min()), float(south.min()), float(east.max()), float(north.max())]
    origin = [int(np.floor(edge * DEGREE)) for edge in box[:2]]
    images, notes, encoded = {}, [], []
    for index, date in enumerate(dates):
        chosen = np.flatnonzero(which == index)
        try:
            image = mosaic(tile, [seen.urls[row] for row in chosen], footprints[chosen], colours[chosen])
        except TileError as error:
            notes.append(f"{date}: drawn chip by chip: {error}")
            continue
        images[str(date)] = image
        if colours.shape[1:3] != (1, 1):
            png, corners = for_web(image)
            encoded.append([index, base64.b64encode(png).decode(), corners])
    prefix = os.path.commonprefix(seen.urls)  # noqa: RUF071 (letters, whatever the paths are)
    outline = shapely.convex_hull(shapely.union_all(np.array(shapes), grid_size=1 / DEGREE))
    entry = {
        "id": number,
        "tile": tile,
        "file": name,
        "box": [round(edge, 5) for edge in box],
        "outline": _steps(shapely.simplify(outline, 0.002), origin),
        "origin": origin,
        "dates": [
            [str(date), int((which == index).sum()), _hex(_mean_colour(basis, scores[which == index]))]
            for index, date in enumerate(dates)
        ],
        "explained": [round(one, 4) for one in explained],
        "bad": [sum(one[0] == kind for one in bad) for kind in ("quarantined", "rejected")],
    }
    document = {
        "id": number,
        "prefix": prefix,
        "chips": [
            [int(date), _hex(colour), url[len(prefix) :], _steps(shape, origin)]
            for date, colour, url, shape in zip(which, whole, seen.urls, shapes, strict=True)
        ],
        "bad": [[kind, url, why, None if place is None else _steps(place, origin)] for kind, url, why, place in bad],
        "images": encoded,
        "facts": facts_of(receipt),
        "notes": [one_line(note) for note in [*notes, *(receipt.notes if receipt else [])]],
    }
    return entry, document, images


def empty_documents(number: int, receipt: Receipt) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `tile_documents`, of a tile of which all chips were set aside: it has no file."""
    square = square_of(receipt.tile)
    side = np.array([[square.west, square.south, square.west + SIDE, square.south + SIDE]], np.float64)
    box = shapely.bounds(_unwrapped(to_lonlat(square.epsg, side)[2][0]))
    bad = _bad(receipt.tile, [], np.array([], object), receipt)
    entry = {
        "id": number,
        "tile": receipt.tile,
        "file": f"{receipt.tile}_v{receipt.version}",
        "box": [round(float(edge), 5) for edge in box],
        "outline": [],
        "origin": [0, 0],
        "dates": [],
        "explained": [0.0] * COMPONENTS,
        "bad": [len(receipt.quarantined), len(receipt.rejected)],
    }
    listed = [[kind, url, why, None] for kind, url, why, _ in bad]
    told = {"id": number, "prefix": "", "chips": [], "bad": listed, "images": [], "notes": []}
    return entry, told | {"facts": facts_of(receipt)}


def vectors_document(number: int, small: Sequence[NDArray[np.int8]]) -> dict[str, Any]:
    """The vectors of a tile for the page's own search: those of its chips in their order, patch by patch."""
    return {"id": number, "values": base64.b64encode(np.concatenate(small).tobytes()).decode()}


def facts_of(receipt: Receipt | None) -> dict[str, str]:
    """What a receipt says of a tile, in words for a table."""
    if receipt is None:
        return {"receipt": "none: nothing but the file is known"}
    facts = {"chips": f"{receipt.chips:,}"}
    facts |= {
        kind: f"{len(found):,}"
        for kind, found in (("quarantined", receipt.quarantined), ("rejected", receipt.rejected))
    }
    facts |= {name: str(value) for name in _FACTS if (value := receipt.settings.get(name)) is not None}
    facts |= {"finished": receipt.finished[:19].replace("T", " ") + " UTC"}
    software = {"software": ", ".join(f"{name} {version}" for name, version in sorted(receipt.software.items()))}
    return {name: one_line(value) for name, value in (facts | software).items() if value}


def _bad(
    tile: str, urls: Sequence[str], footprints: NDArray[np.object_], receipt: Receipt | None
) -> list[tuple[str, str, str, Any]]:
    """Chips without rows: what became of them, URL, reason, and footprint where it is known."""
    if receipt is None:
        return []
    found: dict[str, Mapping[str, str]] = {"quarantined": receipt.quarantined, "rejected": receipt.rejected}
    places = places_of(tile, urls, footprints, [url for bad in found.values() for url in bad])
    return [
        (kind, one_line(url), one_line(why), _unwrapped(places[url]) if url in places else None)
        for kind, bad in found.items()
        for url, why in sorted(bad.items())
    ]


def _mean(scores: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Of what is not NaN; NaN of nothing."""
    known = np.isfinite(scores)
    count = known.sum(axis=axes)
    total = np.where(known, scores, 0).sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean_colour(basis: Basis, scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    return rgb_of(basis, _mean(scores, (0, 1, 2)))


def _hex(colour: NDArray[np.uint8]) -> str:
    return bytes(colour.tolist()).hex()


def _unwrapped(shape: Any) -> Any:
    """A footprint in one piece: one that is cut at 180 degrees goes on beyond it."""
    parts = shapely.get_parts(shape)
    if len(parts) < 2:
        return shape
    moved = [
        shapely.transform(part, lambda xy: xy + np.array([360, 0])) if shapely.bounds(part)[0] < 0 else part
        for part in parts
    ]
    return shapely.convex_hull(shapely.union_all(moved))


def _steps(shape: Any, origin: Sequence[int]) -> list[int]:
    """The corners of a polygon from the north-western one on, clockwise, each but the first as its way from the last.

    In steps of a `DEGREE`, from the origin.
    """
    ring = shapely.get_coordinates(shapely.get_exterior_ring(shape))[:-1]
    # Clockwise; then the corner that is farthest to the north-west.
    if not len(ring):
        return []
    x, y = ring.T
    if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:
        ring = ring[::-1]
    x, y = ring.T
    ring = np.roll(ring, -int(np.argmin(x / max(np.ptp(x), 1e-12) - y / max(np.ptp(y), 1e-12))), axis=0)
    steps = np.rint(ring * DEGREE).astype(np.int64) - np.array(origin)
    return [int(one) for one in np.diff(steps, axis=0, prepend=0).reshape(-1)]
