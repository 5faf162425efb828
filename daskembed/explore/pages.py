"""The documents of a preview: one of all tiles, and two of each, in the form in which a page takes them from disk.

A browser that opens a page from disk lets it read no files, but it lets it add scripts: each document is a call with a
JSON object.
"""

from __future__ import annotations

import base64
import hashlib
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
from daskembed.explore.patches import in_one_piece
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


def named(stem: str, document: bytes) -> str:
    """What a document is called: another name if it says something else, so that a page finds what it was made with."""
    return f"{stem}.{hashlib.sha256(document).hexdigest()[:12]}"


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
    def of(cls, blocks: Iterable[Rows], basis: Basis, around: Basis | None) -> tuple[Seen, Variance]:
        """Those of a tile, in the colours of a basis, and how much of its variance these show.

        The page's own search compares around the mean of a basis of its own; None if it has no search.
        """
        seen, sums = cls([], [], [], [], []), Variance(basis)
        for rows in blocks:
            if not len(rows):
                continue
            seen.urls += rows.urls
            seen.dates += rows.dates
            seen.footprints.append(rows.footprints)
            scores = basis.scores(rows.flat)
            sums.add(rows.flat, scores)
            seen.scores.append(scores.reshape(*rows.vectors.shape[:-1], -1))
            if around is not None:
                seen.small.append(as_small(around, rows.vectors))
        return seen, sums


def as_small(basis: Basis, vectors: NDArray[np.floating]) -> NDArray[np.int8]:
    """Vectors in steps of one size a dimension, around the mean of all; -128 in those with NaN."""
    step = np.array(basis.deviation) * (DEVIATIONS / 127)
    with np.errstate(invalid="ignore"):
        steps = np.where(step > 0, (vectors - np.array(basis.mean)) / np.where(step > 0, step, 1), 0)
    known = np.isfinite(steps).all(axis=-1, keepdims=True)
    return np.where(known, np.clip(np.rint(np.nan_to_num(steps)), -127, 127), -128).astype(np.int8)


def tile_documents(
    tile: str,
    name: str,
    seen: Seen,
    explained: Sequence[float],
    basis: Basis,
    receipt: Receipt | None,
    *,
    images: bool,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Mosaic]]:
    """What a preview tells of a tile.

    Parameters
    ----------
    tile, name
        MGRS id, and name of the published file, by which its documents name it.
    seen, explained
        Of its rows.
    basis
        With which colours.
    receipt
        What is known of the tile; None if nothing is.
    images
        Whether images are wanted of chips of one colour, too.

    Returns
    -------
    dict
        Its entry in the document of all tiles.
    dict
        Its own document.
    dict
        Date -> its image, of dates whose rows lie on one grid.
    """
    if not seen.urls:
        return *_empty_documents(tile, name, receipt), {}
    footprints, scores = np.concatenate(seen.footprints), np.concatenate(seen.scores)
    colours = rgb_of(basis, scores)
    whole = rgb_of(basis, _mean(scores, (1, 2)))
    dates, which = np.unique(seen.dates, return_inverse=True)
    shapes = _beside(tile, footprints)
    bad = _bad(tile, seen.urls, footprints, receipt)
    box = shapely.total_bounds([*shapes, *(place for *_, place in bad if place is not None)]).tolist()
    origin = [int(np.floor(edge * DEGREE)) for edge in box[:2]]
    patches = colours.shape[1:3] != (1, 1)
    made: dict[str, Mosaic] = {}
    notes, encoded = [], []
    for index, date in enumerate(dates if patches or images else ()):
        chosen = np.flatnonzero(which == index)
        try:
            image = mosaic(tile, [seen.urls[row] for row in chosen], footprints[chosen], colours[chosen])
        except TileError as error:
            notes.append(f"{date}: {'drawn chip by chip' if patches else 'no GeoTIFF'}: {error}")
            continue
        made[str(date)] = image
        if patches:
            png, place = for_web(image)
            encoded.append([index, base64.b64encode(png).decode(), place])
    prefix = os.path.commonprefix(seen.urls)  # noqa: RUF071 (letters, whatever the paths are)
    outline = shapely.convex_hull(shapely.union_all(shapes, grid_size=1 / DEGREE))
    entry = {
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
        "file": name,
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
    return entry, document, made


def lost_documents(receipt: Receipt) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `tile_documents`, of a tile of which all chips were set aside: it has no file."""
    return _empty_documents(receipt.tile, f"{receipt.tile}_v{receipt.version}", receipt)


def _empty_documents(tile: str, name: str, receipt: Receipt | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a tile without a row."""
    square = square_of(tile)
    side = np.array([[square.west, square.south, square.west + SIDE, square.south + SIDE]], np.float64)
    box = shapely.total_bounds(_beside(tile, to_lonlat(square.epsg, side)[2]))
    bad = _bad(tile, [], np.array([], object), receipt)
    entry = {
        "tile": tile,
        "file": name,
        "box": [round(float(edge), 5) for edge in box],
        "outline": [],
        "origin": [0, 0],
        "dates": [],
        "explained": [0.0] * COMPONENTS,
        "bad": [sum(one[0] == kind for one in bad) for kind in ("quarantined", "rejected")],
    }
    listed = [[kind, url, why, None] for kind, url, why, _ in bad]
    told = {"file": name, "prefix": "", "chips": [], "bad": listed, "images": [], "notes": []}
    return entry, told | {"facts": facts_of(receipt)}


def vectors_document(name: str, small: Sequence[NDArray[np.int8]]) -> dict[str, Any]:
    """The vectors of a tile for the page's own search: those of its chips in their order, patch by patch."""
    return {"file": name, "values": base64.b64encode(np.concatenate(small).tobytes()).decode()}


def box_round(boxes: Sequence[Sequence[float]] | NDArray[np.float64]) -> list[float]:
    """West, south, east and north of the narrowest box around some others; east is beyond 180 if it crosses that.

    Parameters
    ----------
    boxes
        West, south, east and north in degrees, any number of turns away.
    """
    west, south, east, north = np.array(boxes, np.float64).T
    order = np.argsort(turned := (west + 180) % 360 - 180)
    west, east = turned[order], np.maximum.accumulate((turned + east - west)[order])
    # It begins where the widest gap ends.
    first = (int(np.argmax(np.append(west[1:], west[0] + 360) - east)) + 1) % len(west)
    last = max(east[-1], east[first - 1] + 360 if first else -np.inf)
    return [float(west[first]), float(south.min()), float(last), float(north.max())]


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
    known = places_of(tile, urls, footprints, [url for bad in found.values() for url in bad])
    places = dict(zip(known, _beside(tile, np.array([*known.values()], object)), strict=True))
    return [
        (kind, one_line(url), one_line(why), places.get(url))
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
    """As a page has it after ``#``; see through where there is none."""
    return bytes(colour.tolist()).hex() if colour.any() else "0000"


def _beside(tile: str, squares: NDArray[np.object_]) -> NDArray[np.object_]:
    """Footprints of a tile on its side of 180 degrees: those that are cut there in one piece, which goes on beyond."""
    middle = square_of(tile).epsg % 100 * 6 - 183
    moved: NDArray[np.object_] = shapely.transform(
        in_one_piece(squares), lambda xy: xy - [360, 0] * np.rint((xy[:, :1] - middle) / 360)
    )
    return moved


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
