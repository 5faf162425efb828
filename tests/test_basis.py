"""Principal components of sums: exact, the same in any order, with fixed signs; colours of percentiles."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daskembed.errors import InputError
from daskembed.explore.basis import Basis, Moments, Variance, basis_of
from daskembed.explore.colours import count_scores, rgb_of, with_colours

MADE = {"encoder": "clay-v0", "checkpoint": "a.ckpt", "sha256": "0" * 64, "level": "mean"}


def vectors(count: int = 5000, dims: int = 24, seed: int = 0) -> np.ndarray:
    """Correlated ones whose mean is far from 0, as those of encoders are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dims)) * np.geomspace(3, 0.01, dims) @ rng.normal(size=(dims, dims))
    return (mixed + rng.normal(size=dims) * 20).astype(np.float32)


def sums_of(rows: np.ndarray) -> Moments:
    """As of seven files."""
    return sum((Moments.of(part) for part in np.array_split(rows, 7)), Moments.none(rows.shape[1]))


def test_as_the_decomposition_of_all_rows() -> None:
    rows = vectors()
    basis = basis_of(sums_of(rows), **MADE)
    exact = rows.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(basis.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(basis.variance, singular[:3] ** 2 / len(rows), rtol=1e-9)
    np.testing.assert_allclose(basis.explained, (singular**2 / (singular**2).sum())[:3], rtol=1e-9)
    for axis, expected in zip(basis.axes, right, strict=False):
        largest = expected[np.argmax(np.abs(expected))]
        np.testing.assert_allclose(axis, expected * np.sign(largest), atol=1e-9)
        assert max(axis, key=abs) > 0
    np.testing.assert_allclose(basis.scores(rows), centred @ np.array(basis.axes).T, atol=1e-9)


def test_sums_are_kept_to_the_last_bit() -> None:
    found = sums_of(vectors())
    kept = Moments.unpack(found.pack(), 24)
    assert (kept.count, kept.left_out) == (found.count, found.left_out)
    np.testing.assert_array_equal(kept.total, found.total)
    np.testing.assert_array_equal(np.triu(kept.outer), np.triu(found.outer))
    assert basis_of(kept, **MADE) == basis_of(Moments.unpack(kept.pack(), 24), **MADE)
    for bad, what in ((b"no file", "no sums of vectors"), (found.pack()[:-40], "no sums"), (found.pack(), "of 23 dim")):
        with pytest.raises(ValueError, match=what):
            Moments.unpack(bad, 23)


def test_vectors_with_nan_are_left_out_and_counted() -> None:
    rows = vectors(300)
    bad = rows.copy()
    bad[[3, 200], 5] = [np.nan, np.inf]
    found = Moments.of(bad)
    assert (found.count, found.left_out) == (298, 2)
    np.testing.assert_array_equal(found.total, Moments.of(np.delete(rows, [3, 200], axis=0)).total)
    basis = basis_of(found, **MADE)
    assert np.isfinite(basis.axes).all()
    assert (rgb_of(basis, basis.scores(bad))[[3, 200]] == 0).all()
    with pytest.raises(InputError, match="no vector to make a basis of: 2 have NaN"):
        basis_of(Moments.of(bad[[3, 200]]), **MADE)


@pytest.mark.parametrize(("count", "axes"), [(1, 0), (2, 1), (3, 2)])
def test_few_vectors_have_few_components(count: int, axes: int) -> None:
    basis = basis_of(Moments.of(vectors(count)), **MADE)
    assert sum(one > 0 for one in basis.variance) == axes
    assert np.isfinite(basis.axes).all()
    colours = rgb_of(basis, basis.scores(vectors(count)))
    assert (colours[:, axes:] == 128).all()


def test_colours_lie_between_the_percentiles_of_all_tiles() -> None:
    rows = vectors()
    rows[:20] *= 30  # what is far off does not change the others' colours
    basis = basis_of(Moments.of(rows), **MADE)
    tiles = [count_scores(basis, part) for part in np.array_split(rows, 5)]
    coloured = with_colours(basis, tiles)
    assert coloured == with_colours(basis, reversed(tiles))
    scores = basis.scores(rows)
    deviation = np.sqrt(basis.variance)
    np.testing.assert_allclose(coloured.low, np.percentile(scores, 2, axis=0), atol=0.002 * deviation.max())
    np.testing.assert_allclose(coloured.high, np.percentile(scores, 98, axis=0), atol=0.002 * deviation.max())
    colours = rgb_of(coloured, scores)
    assert colours.min() == 1
    assert colours.max() == 255
    for number in range(3):
        assert 0.015 < (colours[:, number] == 1).mean() < 0.025
    middle = (np.array(coloured.low) + coloured.high) / 2
    assert rgb_of(coloured, middle[None]).tolist() == [[128, 128, 128]]


def explained_of(basis: Basis, rows: np.ndarray) -> list[float]:
    found = Variance(basis)
    for block in np.array_split(rows, 3):
        found.add(block, basis.scores(block))
    return found.explained


def test_share_explained_of_a_tile_is_its_own() -> None:
    rows = vectors()
    basis = basis_of(Moments.of(rows), **MADE)
    np.testing.assert_allclose(explained_of(basis, rows), basis.explained, rtol=1e-6)
    # A tile that varies in one direction only, which no component has.
    alone = np.linalg.svd(np.array(basis.axes))[2][-1]
    tile = (np.array(basis.mean) + np.linspace(-1, 1, 50)[:, None] * alone).astype(np.float64)
    np.testing.assert_allclose(explained_of(basis, tile), 0, atol=1e-12)
    assert explained_of(basis, rows[:1]) == [0, 0, 0]


def test_basis_as_json() -> None:
    basis = basis_of(Moments.of(vectors()), **MADE)
    assert Basis.from_json(basis.to_json()) == basis
    with pytest.raises(InputError, match="no basis: it has no field 'axes'"):
        Basis.from_json(basis.to_json().replace('"axes"', '"axis"').replace('"axis"', '"low"'))
    short = basis_of(Moments.of(vectors(dims=2)), **MADE).to_json().replace('"mean": [', '"mean": [0.0,')
    with pytest.raises(InputError, match=r"3 axes of \[2\] values and a mean of 3"):
        Basis.from_json(short)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("deviation", [1.0], "its deviation has 1 values, expected 24"),
        ("low", [1.0, 2.0], "its low has 2 values, expected 3"),
        ("mean", [float("nan"), *[0.0] * 23], "it has NaN or infinite values"),
        ("deviation", [float("inf")] * 24, "it has NaN or infinite values"),
        ("axes", [[float("nan")] * 24] * 3, "it has NaN or infinite values"),
        ("total_variance", float("nan"), "it has NaN or infinite values"),
    ],
)
def test_a_basis_that_fits_nothing_is_refused(field: str, value: object, told: str) -> None:
    basis = json.loads(basis_of(Moments.of(vectors()), **MADE).to_json())
    with pytest.raises(InputError, match=f"no basis: {told}"):
        Basis.from_json(json.dumps(basis | {field: value}))
