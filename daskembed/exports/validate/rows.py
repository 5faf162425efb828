"""The rows of an exported GeoParquet file: vectors, places, boxes around them, dates, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from daskembed.exports.gather import BBOX
from daskembed.exports.index import keys_of
from daskembed.exports.rows import boxes_of
from daskembed.exports.validate.known import Known
from daskembed.geo import wkb
from daskembed.output.validate.bounds import TEXT_BYTES, decode
from daskembed.output.validate.findings import Faults, Finding
from daskembed.output.validate.rows import KINDS, Places, check_vectors
from daskembed.quantization import STEPS

_LOOSE = 1e-6
"""Degrees by which a box may be larger than what is in it: a decimetre."""


@dataclass
class _Order:
    """The order of the rows, a batch after another: along the curve, then by date; the same row stands side by side."""

    known: Known
    last: tuple[int, int] | None = None
    """Key and day of the row before."""
    same: tuple[Any, ...] | None = None
    """What tells that row from others."""
    faults: Faults = field(default_factory=Faults)

    def check(
        self, keys: NDArray[np.uint64], days: NDArray[np.int64], rows: list[tuple[Any, ...]], urls: Sequence[str]
    ) -> None:
        """Look at a batch; `rows` are empty where nothing tells them apart."""
        if not len(keys):
            return
        first = self.last or (int(keys[0]), int(days[0]))
        before = np.concatenate([np.array([first[0]], np.uint64), keys[:-1]])
        day_before = np.concatenate([[first[1]], days[:-1]])
        back = (keys < before) | ((keys == before) & (days < day_before))
        self.faults.add(
            "order", "the row is not in Hilbert order, or of one place not by date", urls, np.flatnonzero(back)
        )
        if (planned := self.known.planned) is not None:
            out = (keys < np.uint64(planned.first)) | (keys >= np.uint64(planned.end))
            what = "the place is not of the range that the plan gives this file: other files are before or after it"
            self.faults.add("order", what, urls, np.flatnonzero(out))
        again = [number for number, row in enumerate(rows) if row == (rows[number - 1] if number else self.same)]
        self.faults.add("duplicates", "the row is there twice", urls, np.array(again, np.int64))
        self.last, self.same = (int(keys[-1]), int(days[-1])), rows[-1] if rows else None


def check_rows(
    batches: Iterable[pa.RecordBatch], usable: list[str], vectors: str, column: dict[str, Any], known: Known
) -> Iterator[Finding]:
    """Look at the rows of a file, some at a time.

    Parameters
    ----------
    batches
        Them.
    usable
        Columns that are of the type that they should be.
    vectors
        That of them which holds the vectors.
    column
        What the footer says of the geometries.
    known
        What the export says of the file.
    """
    places, order, faults, start = Places(column, None, 1), _Order(known), Faults(), 0
    length: int | None = None
    days_asked = _asked(known)
    for batch in batches:
        urls = _names(batch, start, faults)
        days = np.zeros(len(batch), np.int64)
        if "date" in usable:
            days = _check_dates(batch["date"], days_asked, urls, faults)
        if vectors in usable:
            length = check_vectors(batch[vectors], urls, length, faults)
            if pa.types.is_int8(batch[vectors].type.value_type):
                low = pc.less(batch[vectors].flatten(), -STEPS).to_numpy(zero_copy_only=False)
                bad = np.flatnonzero(low.reshape(len(batch), -1).any(axis=1)) if low.any() else np.array([], np.int64)
                faults.add("vectors", f"a value below -{STEPS}, which stands for nothing", urls, bad)
        if "geometry" in usable:
            values = decode(batch["geometry"], wkb.MOST_BYTES)[0]
            places.check(values, urls, faults)
            shapes = _shapes(values)
            sound = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
            if "bbox" in usable:
                _check_boxes(batch["bbox"], shapes, sound, urls, faults)
            if sound.all():
                order.check(keys_of(boxes_of(shapes)), days, _rows(batch), urls)
        start += len(batch)
    yield from faults.findings()
    yield from order.faults.findings()


def _names(batch: pa.RecordBatch, start: int, faults: Faults) -> list[str]:
    """What rows are called."""
    numbers = [str(number) for number in range(start, start + len(batch))]
    if "source_url" not in batch.schema.names:
        return numbers
    found, long = decode(batch["source_url"], TEXT_BYTES)
    empty = found.is_null().to_numpy(zero_copy_only=False)
    urls = [url or number for url, number in zip(found.to_pylist(), numbers, strict=True)]
    faults.add("schema", "no source_url", urls, np.flatnonzero(empty & ~long))
    faults.add("schema", f"a source_url of more than {TEXT_BYTES:,} bytes", urls, np.flatnonzero(long))
    return urls


def _rows(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """What tells rows apart."""
    if "source_url" not in batch.schema.names:
        return []
    names = [name for name in ("source_url", "date", "row", "col") if name in batch.schema.names]
    return [*zip(*(decode(batch[name], TEXT_BYTES)[0].to_pylist() for name in names), strict=True)]


def _asked(known: Known) -> tuple[date, date] | None:
    """First and last date of the export."""
    try:
        first, last = map(date.fromisoformat, known.settings.get("dates") or ())
    except (TypeError, ValueError):
        return None
    return first, last


def _check_dates(
    column: pa.Array, asked: tuple[date, date] | None, urls: Sequence[str], faults: Faults
) -> NDArray[np.int64]:
    days = column.to_numpy(zero_copy_only=False).astype("datetime64[D]")
    faults.add("dates", "no date", urls, np.flatnonzero(np.isnat(days)))
    if asked is not None:
        outside = (days < np.datetime64(asked[0])) | (days > np.datetime64(asked[1]))
        faults.add("dates", f"the date is outside {asked[0]} to {asked[1]}", urls, np.flatnonzero(outside))
    numbers: NDArray[np.int64] = days.astype(np.int64)
    return numbers


def _shapes(values: pa.Array) -> NDArray[np.object_]:
    found = [value if value is not None and wkb.kind_of(value) in KINDS else None for value in values.to_pylist()]
    shapes: NDArray[np.object_] = shapely.from_wkb(np.array(found, object), on_invalid="ignore")
    return shapes


def _check_boxes(
    column: pa.StructArray, shapes: NDArray[np.object_], sound: NDArray[np.bool_], urls: Sequence[str], faults: Faults
) -> None:
    names = [column.type.field(number).name for number in range(column.type.num_fields)]
    if not set(BBOX) <= set(names):
        return
    found = np.stack([pc.struct_field(column, edge).to_numpy(zero_copy_only=False) for edge in BBOX]).astype(float)
    exact = shapely.bounds(shapes).T
    low, high = found[:2] - exact[:2], exact[2:] - found[2:]
    # NaN compares as false: a box without an edge holds nothing.
    holds = ((low <= 0).all(axis=0)) & ((high <= 0).all(axis=0))
    loose = ((low < -_LOOSE).any(axis=0)) | ((high < -_LOOSE).any(axis=0))
    faults.add(
        "covering",
        "the bbox does not hold the geometry: who asks by box misses it",
        urls,
        np.flatnonzero(sound & ~holds),
    )
    faults.add("covering", "the bbox is larger than the geometry", urls, np.flatnonzero(sound & holds & loose))
