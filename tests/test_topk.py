"""The most similar of many vectors: against FAISS, and against all at once in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from daskembed.explore.estimates import squares_of
from daskembed.explore.footers import Affine
from daskembed.explore.reading import Block
from daskembed.explore.topk import Best, Least, Metric, Queries, best_of

DIMS = 48


def vectors(count: int = 3000, seed: int = 0) -> np.ndarray:
    """Like those of Clay: not of unit length, around a mean that is much longer than their spread."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(DIMS) * 3 + rng.standard_normal((count, DIMS))).astype(np.float32)


def search(queries: Queries, found: np.ndarray, k: int, block: int = 10_000) -> Best:
    best, least = Best.none(len(queries.vectors)), Least(len(queries.vectors))
    for start in range(0, len(found), block):
        part = found[start : start + block]
        there = Block(np.arange(start, start + len(part)), part, squares_of(part, queries.affine))
        best = best_of(queries, k, 0, there, best, least)
    return best


def plain(queries: Queries, values: np.ndarray) -> np.ndarray:
    """Scores ``(query, vector)`` in double precision by the formulae."""
    x, q = values.astype(np.float64), queries.vectors
    if queries.centre is not None:
        x, q = x - queries.centre, q - queries.centre
    if queries.metric == "dot":
        return q @ x.T
    if queries.metric == "l2":
        return -(((x[None] - q[:, None]) ** 2).sum(axis=2))
    return q @ x.T / np.linalg.norm(x, axis=1) / np.linalg.norm(q, axis=1)[:, None]


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("count", [1, 7])
def test_it_finds_what_faiss_finds(metric: Metric, count: int) -> None:
    faiss = pytest.importorskip("faiss")
    found, asked = vectors(), vectors(count, seed=1)
    if metric == "l2":
        index, there, given = faiss.IndexFlatL2(DIMS), found, asked
    else:
        index, there, given = faiss.IndexFlatIP(DIMS), found.copy(), asked.copy()
        if metric == "cosine":
            faiss.normalize_L2(there)
            faiss.normalize_L2(given)
    index.add(there)
    scores, numbers = index.search(given, 20)
    best = search(Queries(asked.astype(np.float64), metric, None), found, 20, block=700)
    assert (np.stack(best.places)[:, :, 1] == numbers).all()
    np.testing.assert_allclose(np.stack(best.scores), -scores if metric == "l2" else scores, rtol=1e-4)


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
@pytest.mark.parametrize("count", [1, 6])
def test_all_types_and_metrics(metric: Metric, centred: bool, dtype: str, count: int) -> None:
    values = vectors()
    affine = None
    stored = values.astype(dtype) if dtype != "int8" else None
    if stored is None:
        low, high = values.min(axis=0), values.max(axis=0)
        affine = Affine(((high - low) / 254).astype(np.float64), ((high + low) / 2).astype(np.float64))
        stored = np.rint((values - affine.offset) / affine.scale).astype(np.int8)
        values = stored * affine.scale + affine.offset
    else:
        values = stored
    centre = values.mean(axis=0, dtype=np.float64) if centred else None
    queries = Queries(vectors(count, seed=2).astype(np.float64), metric, centre, affine)
    scores = plain(queries, values)
    best = search(queries, stored, 10, block=999)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert (np.stack(best.places)[:, :, 1] == order).all()
    np.testing.assert_allclose(np.stack(best.scores), np.take_along_axis(scores, order, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_many_blocks_find_what_one_finds(metric: Metric) -> None:
    found = vectors()
    found[1500:] = found[:1500]  # equal scores: the first is better
    queries = Queries(vectors(3, seed=3).astype(np.float64), metric, found.mean(axis=0, dtype=np.float64))
    whole, parts = search(queries, found, 25), search(queries, found, 25, block=37)
    for query in range(3):
        assert (whole.scores[query] == parts.scores[query]).all()
        assert (whole.places[query] == parts.places[query]).all()
        assert (np.diff(whole.scores[query]) <= 0).all()


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_without_numbers_are_left_out_and_counted(metric: Metric, bad: float) -> None:
    found = vectors(200)
    found[[3, 150], 5] = bad
    best = search(Queries(vectors(1, seed=1).astype(np.float64), metric, None), found, 500, block=64)
    assert (best.seen, best.left_out) == (198, 2)
    assert len(best.scores[0]) == 198
    assert not {3, 150} & set(best.places[0][:, 1].tolist())


def test_differences_that_single_precision_does_not_tell() -> None:
    """Vectors far from the origin and near each other: lengths around the mean are lost in those of the vectors."""
    rng = np.random.default_rng(0)
    found = (1000 + rng.standard_normal((600, DIMS))).astype(np.float32)
    queries = Queries(found[:1].astype(np.float64), "cosine", found.mean(axis=0, dtype=np.float64))
    best = search(queries, found, 200)
    assert (best.places[0][:, 1] == np.argsort(-plain(queries, found)[0], kind="stable")[:200]).all()


def test_what_has_no_direction_is_like_nothing() -> None:
    found = vectors(50)
    found[7] = 0
    best = search(Queries(vectors(1, seed=1).astype(np.float64), "cosine", None), found, 50)
    assert best.left_out == 0
    assert best.scores[0][best.places[0][:, 1] == 7] == 0


def test_fewer_vectors_than_hits() -> None:
    best = search(Queries(vectors(2, seed=1).astype(np.float64), "cosine", None), vectors(5), 50, block=2)
    assert [len(scores) for scores in best.scores] == [5, 5]
