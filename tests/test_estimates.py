"""Scores in single and half precision: as wrong as they say, and no more, whatever the numbers are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from daskembed.explore import estimates
from daskembed.explore.estimates import squares_of
from daskembed.explore.footers import Affine
from daskembed.explore.reading import Block
from daskembed.explore.topk import METRICS, Best, Least, Metric, Queries, best_of

DIMS = 96


def made(kind: str, dtype: str, count: int = 600) -> np.ndarray:
    """Vectors of some kind, in the order of nothing."""
    rng = np.random.default_rng(len(kind))
    found = rng.standard_normal((count, DIMS))
    if kind == "around a mean":
        found = found * 0.3 + 8 * rng.standard_normal(DIMS)
    elif kind == "extreme":
        # Halves end at 65,504, and go down to 6e-8 by losing digits.
        found[::3] *= 6e-8
        found[1::7] = rng.choice([-65504, 65504, 6e-8, 0], (len(found[1::7]), DIMS))
        found[5] = 65504
        found[6] = 0
    elif kind == "cancelling":
        # Products with queries that are the same everywhere are next to nothing beside what they are added up of.
        found *= 100
        found[:, 1::2] = -found[:, ::2]
        found[:, 0] += 1e-3 * rng.standard_normal(count)
    elif kind == "alike":
        found = np.repeat(found[:3], count // 3, axis=0)
    if dtype == "int8":
        return np.rint(found * 20).clip(-127, 127).astype(np.int8)
    return found.clip(-65504, 65504).astype(dtype)


def asked(kind: str, metric: Metric, count: int, scale: float, affine: Affine | None, centred: bool) -> Queries:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, DIMS))
    if kind == "cancelling":
        vectors = 1 + 1e-4 * np.arange(count)[:, None] * vectors
    elif kind == "alike":
        vectors = np.rint(2 * vectors)  # numbers that half precision knows: only products are rounded
    elif kind == "around a mean":
        vectors = vectors * 0.3 + made(kind, "float64", 1)
    return Queries(vectors * scale, metric, rng.standard_normal(DIMS) if centred else None, affine)


def exact(queries: Queries, stored: np.ndarray) -> np.ndarray:
    return np.stack([queries.score(number, stored) for number in range(len(queries.vectors))])


KINDS = ("plain", "around a mean", "extreme", "cancelling", "alike")
CASES = [
    (kind, dtype, metric, count, scale, centred)
    for kind, dtype, metric, count, scale, centred in itertools.product(
        KINDS, ("float32", "float16", "float64", "int8"), METRICS, (1, 6), (1.0, 1e-30, 1e30), (False, True)
    )
    # Scales that are out of the way: of one query, which has all ways there are.
    if scale == 1 or (count == 1 and not centred)
]


def quantized(dtype: str) -> Affine | None:
    rng = np.random.default_rng(5)
    return Affine(rng.uniform(0.001, 3, DIMS), rng.standard_normal(DIMS) * 4) if dtype == "int8" else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
def test_estimates_are_as_wrong_as_they_say(kind: str, dtype: str) -> None:
    stored, affine = made(kind, dtype), quantized(dtype)
    squares = squares_of(stored, affine)
    for _, _, metric, count, scale, centred in (case for case in CASES if case[:2] == (kind, dtype)):
        queries = asked(kind, metric, count, scale, affine, centred)
        scores = exact(queries, stored) / queries.screen.units[:, None]
        given = list(queries.screen.estimates(stored, squares))
        estimate, off = (np.concatenate([getattr(one, name) for one in given], axis=1) for name in ("scores", "off"))
        assert (np.abs(estimate.astype(np.float64) - scores) <= off).all(), (metric, count, scale, centred)
        assert np.isfinite(off).all() or abs(np.log10(scale)) == 30 or dtype == "float64"
        # And they say something: where numbers are plain, what is left to look at is little.
        if kind == "plain" and scale == 1:
            assert np.median(off) < 0.01 * np.ptp(scores), (metric, count, centred)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_lengths_around_a_centre_far_away_are_as_wrong_as_they_say(dtype: str, metric: Metric) -> None:
    """What is stored is long beside what is left without the centre, which no few digits tell, in all dimensions."""
    spread = np.random.default_rng(1).standard_normal((600, DIMS))
    affine = Affine(np.full(DIMS, 0.02), np.zeros(DIMS)) if dtype == "int8" else None
    centre = np.where(np.arange(DIMS) < 2, 2.0, 1.2341)
    stored = centre + 0.1 * spread
    stored = np.rint(stored / 0.02).clip(-127, 127).astype(np.int8) if dtype == "int8" else stored.astype(dtype)
    queries = Queries(centre + 0.1 * spread[::-300], metric, centre, affine)
    given = list(queries.screen.estimates(stored, squares_of(stored, affine)))
    estimate, off = (np.concatenate([getattr(one, name) for one in given], axis=1) for name in ("scores", "off"))
    scores = exact(queries, stored)
    assert (np.abs(estimate - scores) <= off).all()
    assert np.median(off) < 0.1 * np.ptp(scores)


@pytest.mark.parametrize(("kind", "k"), [*((kind, 7) for kind in KINDS), ("extreme", 5000)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
def test_the_best_are_those_of_double_precision(kind: str, dtype: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_CHUNK", 70)
    monkeypatch.setattr(estimates, "_STEP", 90)
    stored, affine = made(kind, dtype), quantized(dtype)
    squares = squares_of(stored, affine)
    for _, _, metric, count, scale, centred in (case for case in CASES if case[:2] == (kind, dtype)):
        queries = asked(kind, metric, count, scale, affine, centred)
        order = np.argsort(-exact(queries, stored), axis=1, kind="stable")[:, :k]  # of equal ones the first
        least, pieces = Least(count), []
        # Pieces come in any order, and know of each other what is sure.
        for start in (400, 0, 200):
            here = slice(start, start + 200)
            block = Block(np.arange(200), stored[here], squares[here])
            pieces.append(best_of(queries, k, start, block, Best.none(count), least))
        best = Best.none(count)
        for piece in pieces:
            best = best.merge(piece, k)
        places = np.stack(best.places).sum(axis=2)
        assert (places == order).all(), (metric, count, scale, centred)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_query_of_zeros(dtype: str, metric: Metric) -> None:
    """It has no direction, and is as like to all by products; the first are the best then."""
    stored, affine = made("plain", dtype), Affine(np.full(DIMS, 0.02), np.zeros(DIMS)) if dtype == "int8" else None
    queries = Queries(np.zeros((1, DIMS)), metric, None, affine)
    block = Block(np.arange(len(stored)), stored, squares_of(stored, affine))
    best = best_of(queries, 5, 0, block, Best.none(1), Least(1))
    order = np.argsort(-exact(queries, stored), axis=1, kind="stable")[:, :5]
    assert best.places[0][:, 1].tolist() == order[0].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("length", [1e-42, 1e42])
def test_queries_of_a_length_that_single_precision_cannot_tell(dtype: str, length: float) -> None:
    stored = made("plain", dtype)
    queries = asked("plain", "cosine", 2, length, None, False)
    squares = squares_of(stored, None)
    (given,) = queries.screen.estimates(stored, squares)
    assert (np.abs(given.scores - exact(queries, stored)) <= given.off).all()
    assert given.off.max() < 0.01


def test_pieces_leave_out_what_others_know_to_be_worse() -> None:
    """Most of what is read after the first pieces is in no list, and compared in double precision by nobody."""
    stored = made("plain", "float32")
    queries = asked("plain", "dot", 6, 1.0, None, False)
    least = Least(6)
    first = Block(np.arange(300), stored[:300] * np.float32(10), squares_of(stored[:300] * np.float32(10), None))
    second = Block(np.arange(300), stored[300:], squares_of(stored[300:], None))
    best = best_of(queries, 9, 0, first, Best.none(6), least)
    assert [len(scores) for scores in best.scores] == [9] * 6
    assert least.scores.tolist() == [scores[-1] for scores in best.scores]
    found = best_of(queries, 9, 1, second, Best.none(6), least)
    assert [len(scores) for scores in found.scores] == [0] * 6
    assert (found.seen, found.left_out) == (300, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("count", [1, 6])
def test_vectors_without_numbers_and_those_too_long_for_single_precision(dtype: str, count: int) -> None:
    stored = made("plain", dtype)
    stored[[3, 500], 5] = np.nan, np.inf
    if dtype != "float16":
        stored[7] *= np.asarray(1e30 if dtype == "float32" else 1e120, dtype)
    squares = squares_of(stored, None)
    assert np.flatnonzero(np.isnan(squares)).tolist() == [3, 500]
    assert np.flatnonzero(np.isinf(squares)).tolist() == ([] if dtype == "float16" else [7])
    good = np.delete(np.arange(len(stored)), [3, 500])
    for metric in METRICS:
        queries = asked("plain", metric, count, 1.0, None, False)
        best = best_of(queries, 20, 0, Block(np.arange(600), stored, squares), Best.none(count), Least(count))
        assert (best.seen, best.left_out) == (598, 2)
        order = good[np.argsort(-exact(queries, stored[good]), axis=1, kind="stable")[:, :20]]
        assert (np.stack(best.places)[:, :, 1] == order).all(), metric


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 6])
def test_a_centre_and_zeros_beside_vectors_that_are_too_long_for_single_precision(dtype: str, count: int) -> None:
    """Whatever is infinite or no number in an estimate, its vector is compared: it is never left out."""
    stored = made("plain", dtype)
    stored[300:] *= np.asarray(1e25, dtype)
    squares, good = squares_of(stored, None), np.arange(len(stored))
    far = asked("plain", "cosine", count, 1.0, None, False).vectors * np.geomspace(1, 1e25, count)[:, None]
    for metric, centre in itertools.product(METRICS, (None, stored.mean(axis=0, dtype=np.float64))):
        for vectors in (far, np.zeros((count, DIMS)), np.repeat(stored[400:401], count, axis=0).astype(np.float64)):
            queries = Queries(vectors, metric, centre)
            best = best_of(queries, 20, 0, Block(good, stored, squares), Best.none(count), Least(count))
            order = np.argsort(-exact(queries, stored), axis=1, kind="stable")[:, :20]
            assert (np.stack(best.places)[:, :, 1] == order).all(), (metric, centre is None)


def test_memory_that_cannot_be_written_to() -> None:
    """As Arrow's is."""
    stored = made("plain", "float16")
    queries = asked("plain", "cosine", 1, 1.0, None, False)
    first = [one.scores for one in queries.screen.estimates(stored, squares_of(stored, None))]
    stored.flags.writeable = False
    again = [one.scores for one in queries.screen.estimates(stored, squares_of(stored, None))]
    assert (np.stack(first) == np.stack(again)).all()
