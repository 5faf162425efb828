"""Counts of values that add up exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskembed.histogram import Histogram


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """Three dimensions: around 0, everywhere the same, and far from 0 and hardly different."""
    drawn = np.random.default_rng(seed).standard_normal((rows, 3))
    return (drawn * [1, 0, 1e-3] + [0, -0.25, 40]).astype(np.float32)


def test_all_orders_of_addition_give_the_same_to_the_last_bit() -> None:
    parts = [Histogram.of(vectors(rows, seed)) for seed, rows in enumerate((7, 100, 1, 33))]
    together = Histogram.of(np.concatenate([vectors(rows, seed) for seed, rows in enumerate((7, 100, 1, 33))])).pack()
    for order in itertools.permutations(parts):
        a, b, c, d = order
        assert (((a + b) + c) + d).pack() == together
        assert ((a + b) + (c + d)).pack() == together


@pytest.mark.parametrize("percentile", [100, 99.9, 99, 90])
def test_no_more_is_outside_a_range_than_the_percentile_says(percentile: float) -> None:
    found = vectors(20_000)
    low, high = Histogram.of(found).range(percentile)
    allowed = {100: 0, 99.9: 20, 99: 200, 90: 2000}[percentile]
    assert ((found < low).sum(axis=0) <= allowed).all()
    assert ((found > high).sum(axis=0) <= allowed).all()
    # The limits are no looser than the edge of a bucket, 1/32 of the value, and the extremes.
    ordered = np.sort(found, axis=0)
    assert low[0] == pytest.approx(ordered[allowed, 0], rel=1 / 32)
    assert high[0] == pytest.approx(ordered[-1 - allowed, 0], rel=1 / 32)
    assert (low >= found.min(axis=0)).all()
    assert (high <= found.max(axis=0)).all()


def test_of_all_values_the_range_is_the_extremes() -> None:
    found = vectors(100)
    low, high = Histogram.of(found).range(100)
    np.testing.assert_array_equal(low, found.min(axis=0))
    np.testing.assert_array_equal(high, found.max(axis=0))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_buckets_are_in_the_order_of_values_and_hold_them(values: list[float]) -> None:
    column = np.array(values, np.float32)[:, None]
    for percentile in (100, 95, 90):
        low, high = Histogram.of(column).range(percentile)
        allowed = int(len(values) * (100 - percentile) / 100)
        assert (column < low).sum() <= allowed
        assert (column > high).sum() <= allowed
        assert low <= high


def test_packed_counts_are_the_same_again() -> None:
    found = Histogram.of(vectors(500))
    again = Histogram.unpack(found.pack())
    assert again.rows == 500
    assert again.pack() == found.pack()
    np.testing.assert_array_equal(again.counts, found.counts)


@pytest.mark.parametrize(
    ("values", "why"), [([[np.nan, 1]], "NaN or infinite"), ([[1, -np.inf]], "NaN or infinite"), ([], "no vectors")]
)
def test_what_is_no_number_is_not_counted(values: list[list[float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Histogram.of(np.array(values, np.float32).reshape(-1, 2))


def _of(**changed: object) -> bytes:
    import io

    found: dict[str, object] = dict(np.load(io.BytesIO(Histogram.of(vectors(10)).pack())))
    file = io.BytesIO()
    np.savez(file, **{**found, **changed})  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 cut off",
        Histogram.of(vectors(10)).pack()[:-30],
        _of(form=np.int64(2)),
        _of(rows=np.int64(11)),
        _of(least=np.zeros(2, np.float32)),
        _of(steps=np.zeros(3, np.int32)),
        _of(steps=np.array(["a"], object)),
    ],
)
def test_what_is_not_packed_counts_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="counts"):
        Histogram.unpack(data)
