"""Exact search: the vectors of some files, streamed past the queries, in this process or on Dask."""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from daskembed.errors import ClusterLostError, InputError
from daskembed.explore.patches import centres, patches_at, positions
from daskembed.explore.queries import combine
from daskembed.explore.reading import read_ahead, read_blocks, read_facts
from daskembed.explore.topk import Best, Least, Queries, best_of
from daskembed.text import counted

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import NDArray

    from daskembed.explore.footers import Piece, Rows
    from daskembed.explore.queries import Combine, Example
    from daskembed.explore.reading import Block, Facts
    from daskembed.explore.topk import Metric

_STEP = 256
"""Vectors that are added up while they are in the processor's cache."""
HELD_BYTES = 2**30
"""Of vectors that are kept in memory from one pass to the next; of more, each pass reads all of them."""
_KEPT_BYTES = 128 * 2**20
"""Of vectors in a block that is kept, a row group of an export: the fewer calls, the less threads wait for Python."""
_MORE = 16
"""How many times as many are looked at where hits are kept apart, each time that there were too few."""
_FIRST = 4096
"""How many these are at first, at least."""
_PART_BYTES = 64 * 2**20
"""Of the vectors that one task of Dask reads, at least, unless it is the last."""
_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a search."""

    k: int = 50
    """Hits of each query."""
    metric: Metric = "cosine"
    center: bool = True
    """Whether the mean of all vectors of the files is taken out."""
    combine: Combine = "mean"
    apart: float | None = None
    """Metres that hits, and the examples, are away from each other, at least."""

    def __post_init__(self) -> None:
        # Whatever is given for the annotation's types.
        if not hasattr(self.k, "__index__") or self.k < 1:
            raise InputError(f"`k` {self.k}: expected a whole number from 1")
        if self.apart is not None and not 0 < self.apart < np.inf:
            raise InputError(f"`apart` {self.apart}: expected metres above 0")


@dataclass(frozen=True)
class Total:
    """A sum of vectors, and how many they are."""

    count: int
    sum: NDArray[np.float64]

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.sum + other.sum)


def find_similar(
    rows: Rows,
    examples: Sequence[Example],
    wanted: Wanted,
    *,
    dates: tuple[date, date] | None = None,
    region: str | None = None,
    client: Client | None = None,
) -> gpd.GeoDataFrame:
    """The rows that are most alike to some examples; see `daskembed.search`.

    Parameters
    ----------
    rows
        All rows of the files.
    examples
        What is alike, and what is not, found in `rows`.
    wanted
        How it is searched.
    dates, region
        First and last day of hits; WKT in OGC:CRS84 that they meet.
    client
        Of Dask, whose workers read and compare; None for the threads of this process.
    """
    near, filtered = rows.within(dates, region), dates is not None or region is not None
    if not near.pieces:
        raise InputError(_none(near, 0))
    over = _in_threads(near, HELD_BYTES) if client is None else _on_dask(near, client)
    centre = None
    if wanted.center and wanted.metric != "l2":
        # Distances are the same whatever is taken out.
        # What is common to all files is taken out, so that a hit's score is the same whatever part is searched.
        everywhere = over
        if filtered:
            everywhere = _in_threads(rows, 0) if client is None else _on_dask(rows, client)
        total = functools.reduce(Total.__add__, everywhere(sum_piece), Total(0, np.zeros(rows.dims)))
        centre = total.sum / max(1, total.count)
    queries = Queries(combine(examples, wanted.combine), wanted.metric, centre, rows.affine)
    own = {(rows.pieces[piece], vector) for one in examples for piece, vector in one.places.tolist()}
    most = wanted.k + len(own)
    if wanted.apart is not None:
        most = max(_FIRST, _MORE * most)
    count = len(queries.vectors)
    facts = functools.cache(lambda number: read_facts(near, near.pieces[number]))
    while True:
        best = Best.none(count)
        for one in over(functools.partial(search_piece, queries=queries, k=most, least=Least(count))):
            best = best.merge(one, most)
        if not best.seen:
            raise InputError(_none(near, best.left_out))
        hits = [_choose(near, facts, best, query, wanted, examples, own) for query in range(count)]
        whole = all(len(scores) < most for scores in best.scores)
        if wanted.apart is None or whole or all(len(one.scores) >= wanted.k for one in hits):
            break
        most *= _MORE
    frames = [_frame(near, facts, one, wanted.metric) for one in hits]
    if wanted.combine == "each":
        alike = [one.given.text for one in examples if one.given.alike]
        for text, frame in zip(alike, frames, strict=True):
            frame.insert(0, "query", pd.array([text] * len(frame), dtype=pd.ArrowDtype(pa.string())))
    found = pd.concat(frames, ignore_index=True)
    warn_of(rows, best, min(map(len, frames)), wanted)
    found.attrs["search"] = told_of(rows, best, wanted, examples)
    return found


def _none(rows: Rows, left_out: int) -> str:
    """Why nothing was compared."""
    if left_out:
        return f"all {counted(left_out, 'vector')} of {rows.storage.url} have NaN or infinity"
    asked = [] if rows.dates is None else [f"`dates` {rows.dates[0]}/{rows.dates[1]}"]
    asked += [] if rows.region is None else ["`region`"]
    return f"no rows of the {' and the '.join(asked) or 'files'} in {rows.storage.url}: ask for others"


def warn_of(rows: Rows, best: Best, hits: int, wanted: Wanted) -> None:
    """Say what whoever searched may not expect."""
    if rows.untrained:
        _log.warning(
            "warning: untrained weights. These embeddings were made with seeded noise in the place of weights: good "
            "for trying things out, meaningless for anything else"
        )
    if best.left_out:
        _log.warning(f"warning: {counted(best.left_out, 'vector')} with NaN or infinity left out")
    if hits < wanted.k:
        apart = "" if wanted.apart is None else f", {wanted.apart:g} m apart and from the examples"
        _log.warning(f"warning: `k` {wanted.k} hits were asked for, and there are {hits} beside the examples{apart}")


def told_of(rows: Rows, best: Best, wanted: Wanted, examples: Sequence[Example]) -> dict[str, Any]:
    """What was searched, in plain values: frames keep these in files, too."""
    return {
        "output": rows.storage.url,
        "encoder": rows.made.get("encoder"),
        "level": rows.made.get("level"),
        "version": rows.version,
        "grid": list(rows.grid),
        "untrained": rows.untrained,
        "metric": wanted.metric,
        "center": wanted.center,
        "combine": wanted.combine,
        "searched": best.seen,
        "left_out": best.left_out,
        "examples": [
            {
                "given": one.given.text,
                "alike": one.given.alike,
                "vectors": len(one.places),
                "footprint": shapely.to_wkt(shapely.union_all(one.footprints, grid_size=1e-7), rounding_precision=7),
            }
            for one in examples
        ],
    }


def sum_piece(rows: Rows, number: int, blocks: Iterator[Block]) -> Total:
    """The sum of the vectors of a piece, of those without NaN and infinity."""
    total = Total(0, np.zeros(rows.dims))
    for block in blocks:
        bad = np.isnan(block.squares)
        vectors = block.vectors[~bad] if bad.any() else block.vectors
        for start in range(0, len(vectors), _STEP):
            part = vectors[start : start + _STEP].astype(np.float64)
            total += Total(len(part), part.sum(axis=0))
    if rows.affine is not None:
        return Total(total.count, total.sum * rows.affine.scale + total.count * rows.affine.offset)
    return total


def search_piece(rows: Rows, number: int, blocks: Iterator[Block], queries: Queries, k: int, least: Least) -> Best:
    """The best of the vectors of a piece, of those that reach what is known of others."""
    best = Best.none(len(queries.vectors))
    for block in blocks:
        best = best_of(queries, k, number, block, best, least)
    return best


_Work = Callable[["Rows", int, Iterator["Block"]], _Found]
_Over = Callable[[_Work[Any]], Iterator[Any]]
"""Does some work on each piece and gives what that gave, in their order."""


def _in_threads(rows: Rows, held_bytes: int) -> _Over:
    """In threads of this process; few vectors are read once and kept."""
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController()
    kept: dict[int, list[Block]] | None = {} if rows.vectors * rows.vector_bytes <= held_bytes else None

    def work_on(number: int, work: _Work[Any]) -> Any:
        if kept is None:
            return _work_on(rows, number, work)
        if number not in kept:
            kept[number] = list(read_blocks(rows, rows.pieces[number], _KEPT_BYTES))
        return work(rows, number, iter(kept[number]))

    def over(work: _Work[Any]) -> Iterator[Any]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        pool = ThreadPoolExecutor(cores)
        ahead: deque[Any] = deque()
        # Each of these threads has a product of its own: threads of BLAS would wait for each other.
        with blas.limit(limits=1, user_api="blas"):
            try:
                for number in range(len(rows.pieces)):
                    if kept is None or number not in kept:
                        read_ahead(rows, rows.pieces[number])
                    ahead.append(pool.submit(work_on, number, work))
                    if len(ahead) > 2 * cores:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    return over


def _on_dask(rows: Rows, client: Client) -> _Over:
    """On the workers of Dask, some pieces a task: what each gives is small."""
    parts: list[list[int]] = []
    size = _PART_BYTES
    for number, piece in enumerate(rows.pieces):
        if size >= _PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(number)
        size += piece.rows * rows.patches * rows.vector_bytes

    def over(work: _Work[Any]) -> Iterator[Any]:
        import distributed

        # Named by what they hold, rows of a pass before could be released after this one has sent them again.
        sent = client.scatter(rows, hash=False)
        futures = client.map(_work_there, parts, rows=sent, work=work, pure=False, retries=2)
        numbers = {future.key: number for number, future in enumerate(futures)}
        there: dict[int, Any] = {}
        given = 0
        for future, found in distributed.as_completed(futures, with_results=True, loop=client.loop):
            if future.cancelled():
                raise ClusterLostError("the Dask cluster lost what it was asked to search: search again")
            there[numbers[future.key]] = found
            while given in there:
                yield from there.pop(given)
                given += 1

    return over


def _work_there(numbers: list[int], rows: Rows, work: _Work[Any]) -> list[Any]:
    return [_work_on(rows, number, work) for number in numbers]


def _work_on(rows: Rows, number: int, work: _Work[_Found]) -> _Found:
    """Read a piece and do the work."""
    return work(rows, number, read_blocks(rows, rows.pieces[number]))


@dataclass(frozen=True)
class _Hits:
    """Of one query, best first."""

    scores: NDArray[np.float64]
    places: NDArray[np.int64]
    """Piece and number in it."""
    footprints: NDArray[np.object_]


def _choose(
    rows: Rows,
    facts: Callable[[int], Facts],
    best: Best,
    query: int,
    wanted: Wanted,
    examples: Sequence[Example],
    own: set[tuple[Piece, int]],
) -> _Hits:
    """The hits of a query: the best that are no examples, as far apart as is wanted."""
    scores, places = best.scores[query], best.places[query]
    others = np.array([(rows.pieces[piece], vector) not in own for piece, vector in places.tolist()], bool)
    scores, places = scores[others], places[others]
    if wanted.apart is None:
        scores, places = scores[: wanted.k], places[: wanted.k]
        return _Hits(scores, places, _footprints(rows, facts, places))
    footprints = _footprints(rows, facts, places)
    chosen = apart_from(centres(footprints), examples, wanted)
    return _Hits(scores[chosen], places[chosen], footprints[chosen])


def apart_from(middles: NDArray[np.float64], examples: Sequence[Example], wanted: Wanted) -> list[int]:
    """The first of some places in degrees, best first, that are far enough from the examples and from better ones."""
    taken = positions(centres(np.concatenate([one.footprints for one in examples])))
    chosen: list[int] = []
    for number, place in enumerate(positions(middles)):
        if len(chosen) == wanted.k:
            break
        if np.square(taken - place).sum(axis=1).min() >= (wanted.apart or 0) ** 2:
            chosen.append(number)
            taken = np.concatenate([taken, place[None]])
    return chosen


def _footprints(rows: Rows, facts: Callable[[int], Facts], places: NDArray[np.int64]) -> NDArray[np.object_]:
    found = np.full(len(places), None, object)
    for number in np.unique(places[:, 0]):
        here = np.flatnonzero(places[:, 0] == number)
        row, patch = np.divmod(places[here, 1], rows.patches)
        shapes = facts(int(number)).footprints[row]
        found[here] = shapes if rows.patches == 1 else patches_at(shapes, rows.grid, patch)
    return found


def _frame(rows: Rows, facts: Callable[[int], Facts], hits: _Hits, metric: Metric) -> gpd.GeoDataFrame:
    """Hits as a frame."""
    urls, dates, cells, files = [], [], [], []
    for number, vector in hits.places.tolist():
        there = facts(number)
        row, patch = divmod(vector, rows.patches)
        urls.append(there.urls[row])
        dates.append(there.dates[row])
        files.append(rows.pieces[number].file)
        if rows.patches > 1:
            cells.append(divmod(patch, rows.grid[1]))
        elif there.cells is not None:
            cells.append((int(there.cells[row, 0]), int(there.cells[row, 1])))
    scores = np.sqrt(-hits.scores) if metric == "l2" else hits.scores
    columns: dict[str, Any] = {"rank": np.arange(1, len(scores) + 1), "score": scores}
    columns["source_url"] = pd.array(urls, dtype=pd.ArrowDtype(pa.string()))
    columns["date"] = pd.array(dates, dtype=pd.ArrowDtype(pa.date32()))
    if cells:
        columns["row"], columns["col"] = np.array(cells, np.int32).T
    columns["file"] = pd.array(files, dtype=pd.ArrowDtype(pa.string()))
    return gpd.GeoDataFrame(columns, geometry=list(hits.footprints), crs="OGC:CRS84")
