"""Search in the Lance table of an export: candidates by its own index, ranked exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from daskembed.documents import parse_object
from daskembed.errors import InputError, StorageError
from daskembed.explore.footers import Rows
from daskembed.explore.named import meant_by, no_patch
from daskembed.explore.patches import centres, metres_to
from daskembed.explore.queries import Example, combine, example_of, vectors_of
from daskembed.explore.reading import Facts
from daskembed.explore.search import apart_from, told_of, warn_of
from daskembed.explore.topk import Best, Queries
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.explore.queries import Given
    from daskembed.explore.search import Wanted

SUFFIX = ".lance"
CANDIDATES = 10
"""How many rows the index is asked for at first, for each hit that is wanted; their exact scores rank them."""
_MORE = 16
"""How many times as many it is asked for, each time that too few of these can be hits."""
PROBES = 32
"""Partitions of the index that are looked through."""


def find_indexed(
    table: str,
    given: Sequence[Given],
    wanted: Wanted,
    *,
    dates: tuple[date, date] | None = None,
    region: str | None = None,
) -> gpd.GeoDataFrame:
    """The rows of a Lance table that are most alike to some examples, as far as its index finds them.

    An index finds nearly all. Where it gives too few that can be hits, all rows are compared.

    Parameters
    ----------
    table
        Path or URL of the table, such as ``export/embeddings.lance``.
    given, wanted, dates, region
        As for `daskembed.explore.search.find_similar`.

    Raises
    ------
    InputError
        If there is no such table, or something else is asked than the index can tell.
    """
    if wanted.metric != "cosine" or wanted.center:
        raise InputError(
            f"{table} has an index of cosines of whole vectors: give `center=False`, and `metric='cosine'`; or search "
            "the published files"
        )
    found = _open(table)
    rows = _rows(table, found, dates)
    examples = [_example(found, rows, one) for one in given]
    queries = Queries(combine(examples, wanted.combine), "cosine", None)
    own = {number for one in examples for _, number in one.places.tolist()}
    area = None if region is None else shapely.from_wkt(region)
    chosen = _of_days_and_area(rows, area)
    index = bool(getattr(found, "describe_indices", found.list_indices)())
    looked = [
        _look(found, rows, queries, number, chosen, index, own, area, wanted, examples)
        for number in range(len(queries.vectors))
    ]
    frames = [one.hits for one in looked]
    if wanted.combine == "each":
        for one, frame in zip([one for one in examples if one.given.alike], frames, strict=True):
            frame.insert(0, "query", pd.array([one.given.text] * len(frame), dtype=pd.ArrowDtype(pa.string())))
    whole = pd.concat(frames, ignore_index=True)
    best = Best((), (), seen=found.count_rows(chosen))
    warn_of(rows, best, min(map(len, frames)), wanted)
    whole.attrs["search"] = told_of(rows, best, wanted, examples) | {
        "index": any(one.index for one in looked),
        "candidates": max(one.candidates for one in looked),
        # Lance gives none that have NaN or infinity, and does not count them.
        "left_out": None,
    }
    return whole


def _open(table: str) -> Any:
    try:
        import lance
    except ModuleNotFoundError:
        raise InputError(
            f"{table} is read with pylance, which is not installed: pip install 'daskembed[lance]'"
        ) from None
    try:
        return lance.dataset(table)
    except (OSError, ValueError) as error:
        raise InputError(f"{table} cannot be opened as a Lance table: {' '.join(str(error).split())[:200]}") from None


def _rows(table: str, found: Any, dates: tuple[date, date] | None) -> Rows:
    """What the table says of its vectors."""
    kind = found.schema.field("embeddings").type
    dtype = str(np.dtype(kind.value_type.to_pandas_dtype()))
    if dtype == "int8":
        raise InputError(f"{table} has int8, which its index takes for numbers without a scale: search the other files")
    made = parse_object((found.schema.metadata or {}).get(b"daskembed", b"{}"))
    return Rows(Storage(table), (), made, (kind.list_size,), dtype, None, {}, {}, dates)


def _select(found: Any, columns: Sequence[str], **how: Any) -> pa.Table:
    try:
        return found.to_table(columns=list(columns), with_row_id=True, **how)
    except (OSError, ValueError) as error:  # all of Lance's own
        raise StorageError(f"{found.uri}: {' '.join(str(error).split())[:300]}") from None


def _columns(found: Any) -> list[str]:
    return [
        name for name in ("source_url", "date", "row", "col", "geometry", "embeddings") if name in found.schema.names
    ]


def _facts(table: pa.Table) -> Facts:
    cells = None
    if "row" in table.column_names:
        cells = np.stack([table[name].to_numpy() for name in ("row", "col")], axis=1).astype(np.int64)
    footprints = shapely.from_wkb(np.array(table["geometry"].to_pylist(), object))
    return Facts(table["source_url"].to_pylist(), table["date"].to_pylist(), footprints, cells)


def _vectors(table: pa.Table, rows: Rows) -> NDArray[Any]:
    flat = table["embeddings"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(-1, rows.dims))


def _example(found: Any, rows: Rows, given: Given) -> Example:
    table = _select(found, _columns(found), filter=_which(given))
    if given.area is None and not len(table):
        urls = _select(found, ["source_url"])["source_url"].to_pylist()
        given = meant_by(given, dict.fromkeys(filter(None, urls)), found.uri)
        table = _select(found, _columns(found), filter=_which(given))
    facts = _facts(table)
    there = vectors_of(rows, facts, given) if len(table) else None
    if there is None or not len(there.numbers):
        why = no_patch(given, facts.cells) if given.area is None else _nothing(found, given, given.area)
        raise InputError(why)
    there = there.decided(bool(there.inside.any()))
    values = _vectors(table, rows)[there.numbers].astype(np.float64)
    ids = table["_rowid"].to_numpy()[there.numbers].astype(np.int64)
    return example_of(given, np.stack([np.zeros_like(ids), ids], axis=1), values, there.footprints)


def _which(given: Given) -> str:
    """Which rows Lance is asked for."""
    if given.area is not None:
        return _meeting(given.area)
    return "source_url = '{}'".format(str(given.url).replace("'", "''"))


def _nothing(found: Any, given: Given, area: shapely.Geometry) -> str:
    """Why nothing is there."""
    boxes = [_select(found, [f"bbox.{edge}"]).column(0).to_numpy() for edge in ("xmin", "ymin", "xmax", "ymax")]
    middle = area.representative_point()
    metres = metres_to((middle.x, middle.y), shapely.box(*boxes)).min(initial=np.inf)
    return (
        f"{given.told} has no row in {found.uri}, of the `dates` if they are given: the nearest is "
        f"{metres / 1000:,.1f} km away"
    )


def _meeting(area: shapely.Geometry) -> str:
    west, south, east, north = area.bounds
    return f"bbox.xmin <= {east} AND bbox.xmax >= {west} AND bbox.ymin <= {north} AND bbox.ymax >= {south}"


def _of_days_and_area(rows: Rows, area: shapely.Geometry | None) -> str | None:
    """What rows have to be, as Lance is asked; None of all."""
    conditions = [] if area is None else [_meeting(area)]
    if rows.dates is not None:
        conditions += [f"date >= date '{rows.dates[0]}'", f"date <= date '{rows.dates[1]}'"]
    return " AND ".join(conditions) or None


@dataclass(frozen=True)
class _Looked:
    """What was found for a query."""

    hits: gpd.GeoDataFrame
    index: bool
    """Whether an index chose the candidates; all rows were compared if not."""
    candidates: int


def _look(
    found: Any,
    rows: Rows,
    queries: Queries,
    query: int,
    chosen: str | None,
    index: bool,
    own: set[int],
    area: shapely.Geometry | None,
    wanted: Wanted,
    examples: Sequence[Example],
) -> _Looked:
    most = CANDIDATES * (wanted.k + len(own))
    while True:
        table, scores = _candidates(found, rows, queries, query, chosen, index, most)
        facts = _facts(table)
        order = np.argsort(-scores, kind="stable")
        order = order[~np.isin(table["_rowid"].to_numpy(), list(own))[order]]
        if area is not None:
            order = order[shapely.intersects(area, facts.footprints[order])]
        if wanted.apart is not None:
            order = order[apart_from(centres(facts.footprints[order]), examples, wanted)]
        order = order[: wanted.k]
        # An index that gives fewer than it is asked for has no more in the partitions that it looks through.
        last = len(scores) < most
        if len(order) == wanted.k or (last and not index):
            return _Looked(_frame(found, facts, scores, order), index, len(scores))
        index, most = (False, most) if last else (index, most * _MORE)


def _candidates(
    found: Any, rows: Rows, queries: Queries, query: int, chosen: str | None, index: bool, most: int
) -> tuple[pa.Table, NDArray[np.float64]]:
    """What Lance takes for the nearest rows, without their vectors, and their exact scores."""
    asked = queries.vectors[query].astype(np.float32)
    nearest = {"column": "embeddings", "q": asked, "k": most, "nprobes": PROBES, "metric": "cosine", "use_index": index}
    how = {} if chosen is None else {"filter": chosen, "prefilter": True}
    tables, scores = [], [np.empty(0)]
    try:
        scanner = found.scanner(columns=[*_columns(found), "_distance"], with_row_id=True, nearest=nearest, **how)
        empty = scanner.projected_schema.empty_table()
        for batch in scanner.to_batches():
            part = pa.Table.from_batches([batch])
            scores.append(queries.score(query, _vectors(part, rows)))
            tables.append(part.drop_columns(["embeddings"]))
    except (OSError, ValueError) as error:  # all of Lance's own
        raise StorageError(f"{found.uri}: {' '.join(str(error).split())[:300]}") from None
    return pa.concat_tables(tables or [empty]), np.concatenate(scores)


def _frame(found: Any, facts: Facts, scores: NDArray[np.float64], order: NDArray[np.int64]) -> gpd.GeoDataFrame:
    """Hits as a frame."""
    columns: dict[str, Any] = {"rank": np.arange(1, len(order) + 1), "score": scores[order]}
    columns["source_url"] = pd.array([facts.urls[one] for one in order], dtype=pd.ArrowDtype(pa.string()))
    columns["date"] = pd.array([facts.dates[one] for one in order], dtype=pd.ArrowDtype(pa.date32()))
    if facts.cells is not None:
        columns["row"], columns["col"] = facts.cells[order].astype(np.int32).T
    columns["file"] = pd.array([found.uri.rpartition("/")[2]] * len(order), dtype=pd.ArrowDtype(pa.string()))
    return gpd.GeoDataFrame(columns, geometry=list(facts.footprints[order]), crs="OGC:CRS84")
