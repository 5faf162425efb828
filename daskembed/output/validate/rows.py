"""The rows of a GeoParquet file: vectors, dates, places, and their order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely

from daskembed.geo import wkb
from daskembed.geo.footprints import at_tile, place_of
from daskembed.geo.mgrs import square_of
from daskembed.output.state import Receipt
from daskembed.output.validate.bounds import KEPT_BYTES, TEXT_BYTES, decode, rows_at_once
from daskembed.output.validate.findings import Faults, Finding
from daskembed.output.validate.names import Named, check_ends
from daskembed.output.validate.provenance import windows_of

_CUT = re.compile(r"#[^#&=/]+/\d{4,}")
"""Of a chip's URL that was cut out of an image: date and number."""

KINDS = ("Polygon", "MultiPolygon")

_WINDOW = r"([#&])window=([0-9]+),([0-9]+)$"


def check_rows(
    file: pq.ParquetFile,
    usable: list[str],
    named: Named | None,
    receipt: Receipt | None,
    column: dict[str, Any],
    made: dict[str, Any] | None,
    foreign: bool,
) -> Iterator[Finding]:
    """Look at the rows of a file, some at a time.

    Parameters
    ----------
    file
        It.
    usable
        Columns that are of the type that they should be.
    named, receipt
        What its name and its receipt say.
    column, made
        What its footer says of the geometries, and of how it was made.
    foreign
        Whether it was not made by this package.
    """
    rows, kept = rows_at_once(file.metadata, usable), 0
    faults, names, days, start = Faults(), [], set[Any](), 0
    look_at = Places(column, named, windows_of(made))
    length: int | None = None
    for batch in file.iter_batches(batch_size=rows, columns=usable):
        if "source_url" in usable:
            found, long = decode(batch["source_url"], TEXT_BYTES)
            urls = [url or f"{number}, without source_url" for number, url in enumerate(found.to_pylist(), start)]
            empty = found.is_null().to_numpy(zero_copy_only=False)
            faults.add("schema", "no source_url", urls, np.flatnonzero(empty & ~long))
            faults.add("schema", f"a source_url of more than {TEXT_BYTES:,} bytes", urls, np.flatnonzero(long))
            kept += found.nbytes
            names.append(found.cast(pa.string()))
            if kept > KEPT_BYTES:
                names.clear()
        else:
            urls = [str(number) for number in range(start, start + len(batch))]
        if "date" in usable:
            days |= _check_dates(batch["date"], urls, named, faults)
        if "embeddings" in usable:
            length = check_vectors(batch["embeddings"], urls, length, faults)
        if "geometry" in usable:
            look_at.check(decode(batch["geometry"], wkb.MOST_BYTES)[0], urls, faults)
        start += len(batch)
    yield from faults.findings()
    yield from look_at.beyond()
    if named is not None and "date" in usable:
        yield from check_ends(days, named, receipt)
    if kept > KEPT_BYTES:
        yield Finding("order", f"source_urls of more than {KEPT_BYTES:,} bytes: their order was not looked at", "note")
    elif names:
        yield from _check_order(pa.chunked_array(names).combine_chunks(), foreign)


def _check_dates(column: pa.Array, urls: Sequence[str], named: Named | None, faults: Faults) -> set[date]:
    days = column.to_numpy(zero_copy_only=False).astype("datetime64[D]")
    faults.add("dates", "no date", urls, np.flatnonzero(np.isnat(days)))
    if named is not None:
        outside = (days < np.datetime64(named.first)) | (days > np.datetime64(named.last))
        what = f"the date is outside {named.first} to {named.last}, which the name says"
        faults.add("dates", what, urls, np.flatnonzero(outside))
    return set(np.unique(days[~np.isnat(days)]).tolist())


def check_vectors(column: pa.Array, urls: Sequence[str], length: int | None, faults: Faults) -> int | None:
    """Gives the length that all vectors should have: that of the first."""
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    faults.add("vectors", "no embedding", urls, np.flatnonzero(lists.is_null()))
    lengths = pc.list_value_length(lists)
    if length is None:
        length = next((one for one in lengths.to_pylist() if one is not None), None)
    other = pc.not_equal(lengths, length).fill_null(False)
    faults.add("vectors", f"the embedding has not {length} values, as the first has", urls, np.flatnonzero(other))
    finite = np.isfinite(lists.flatten().to_numpy(zero_copy_only=False))
    if not finite.all():
        parents = pc.list_parent_indices(lists).to_numpy()
        faults.add("vectors", "NaN or infinity in the embedding", urls, np.unique(parents[~finite]))
    return length


class Places:
    """The geometries' checks: each by itself, against the footer, and against the tile of the name."""

    def __init__(self, column: dict[str, Any], named: Named | None, windows: int) -> None:
        self._bbox = column.get("bbox")
        self._kinds = column.get("geometry_types") or KINDS
        self._tile = None if named is None else named.tile
        self._across = math.isqrt(windows)
        self._reaches = False
        self._beyond = Faults()

    def beyond(self) -> Iterator[Finding]:
        """Chips of images that are not at the tile: a note, if some are."""
        for finding in self._beyond.findings():
            yield replace(finding, severity="note") if self._reaches else finding

    def check(self, column: pa.Array, urls: Sequence[str], faults: Faults) -> None:
        """Check a batch of WKB."""
        values = column.to_numpy(zero_copy_only=False)
        said = np.array([wkb.kind_of(value) for value in values], "U32")
        areal = np.isin(said, KINDS)
        # Others never get to GEOS, which some of them bring down.
        shapes = shapely.from_wkb(np.where(areal, values, None), on_invalid="ignore")
        missing = shapely.is_missing(shapes) & ~((said != "") & ~areal)
        kinds = np.where(missing, "", said)
        areal &= ~missing

        def add(check: str, what: str, bad: Any) -> None:
            faults.add(check, what, urls, np.flatnonzero(bad))

        add("geometry", "no geometry, or none in WKB", missing)
        for kind in sorted(set(kinds[~missing & ~areal])):
            add("geometry", f"the geometry is a {kind}, expected a polygon", kinds == kind)
        for kind in sorted(set(kinds[areal]) - set(self._kinds)):
            add("geo", f"the geometry is a {kind}, which the footer's geometry types lack", kinds == kind)
        add("geometry", "the geometry is empty", shapely.is_empty(shapes))
        add("geometry", "the geometry is not valid", areal & ~shapely.is_valid(shapes))

        parts, owners = shapely.get_parts(shapes, return_index=True)
        west, south, east, north = shapely.bounds(parts).reshape(-1, 4).T
        bad = np.zeros(len(shapes), bool)
        bad[owners[east - west > 180]] = True
        add("geometry", "the geometry spans the globe: one that crosses the antimeridian is a MultiPolygon", bad)
        if self._bbox is not None:
            left, bottom, right, top = self._bbox
            # GeoParquet: a box across the antimeridian has its west edge east of its east edge.
            inside = (west >= left) & (east <= right) if left <= right else (west >= left) | (east <= right)
            bad = np.zeros(len(shapes), bool)
            bad[owners[~(inside & (south >= bottom) & (north <= top))]] = True
            add("geo", f"the geometry is not inside the footer's bbox {self._bbox}", bad & ~shapely.is_empty(shapes))
        if self._tile is not None:
            what = f"the geometry is not at tile {self._tile}: expected {place_of(self._tile)}"
            placed = areal & ~shapely.is_empty(shapes)
            far = self._far(self._tile, shapes) & placed
            self._reaches |= bool((placed & ~far).any())
            # An image may be larger than its tile.
            cut = np.array([_CUT.search(url) is not None for url in urls], bool)
            add("geometry", what, far & ~cut)
            self._beyond.add("geometry", what, urls, np.flatnonzero(far & cut))

    def _far(self, tile: str, shapes: Any) -> Any:
        """Which shapes are not at their tile, nor are the chips whose windows they are."""
        zone = square_of(tile).epsg
        # Of a footprint that crosses 180 degrees, both halves come to lie side by side.
        to_zone = pyproj.Transformer.from_crs("OGC:CRS84", zone, always_xy=True).transform
        placed = shapely.transform(shapes, lambda points: np.stack(to_zone(*points.T), axis=1))
        west, south, east, north = shapely.bounds(placed).T
        wide, high = (self._across - 1) * (east - west), (self._across - 1) * (north - south)
        return ~at_tile(tile, np.stack([west - wide, south - high, east + wide, north + high], axis=1), zone)


def _natural(url: str) -> str:
    return re.sub(_WINDOW, lambda found: f"{found[1]}window={int(found[2]):06d},{int(found[3]):06d}", url)


def _check_order(urls: pa.Array, foreign: bool) -> Iterator[Finding]:
    # Windows of a chip are in the order of their numbers.
    if pc.any(pc.match_substring_regex(urls, _WINDOW)).as_py():
        keys = pa.array([None if url is None else _natural(url) for url in urls.to_pylist()], pa.string())
    else:
        keys = urls
    behind = pc.less(keys[1:], keys[:-1]).fill_null(False)
    if pc.any(behind).as_py():
        number = pc.index(behind, True).as_py() + 1
        message = f"the rows are not in the order of source_url: {urls[number]} comes after {urls[number - 1]}"
        yield Finding("order", message, "note" if foreign else "problem")
    counts = urls.value_counts()
    counts = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(counts):
        more = f" (and {len(counts) - 1} more)" if len(counts) > 1 else ""
        first = counts[0].as_py()
        yield Finding("duplicates", f"{first['counts']} rows have the source_url {first['values']}{more}")
