"""From tokens to a level's embeddings."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from daskembed.encoders.levels import LEVELS, reduce_tokens

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7))


@st.composite
def token_arrays(draw: st.DrawFn) -> np.ndarray:
    """Tokens (chip, group, row, col, embedding), in float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(draw(st.sampled_from([0, 5, -1e3])), 1, draw(shapes))


def test_levels_and_their_dimensions():
    assert LEVELS == {
        "mean": ("embedding",),
        "patch": ("row", "col", "embedding"),
        "group": ("group", "row", "col", "embedding"),
    }


@given(tokens=token_arrays())
def test_group_is_the_tokens_as_they_are(tokens):
    np.testing.assert_array_equal(reduce_tokens(tokens, "group"), tokens)


@given(tokens=token_arrays())
def test_patch_is_the_mean_over_groups(tokens):
    expected = sum(tokens[:, g] for g in range(tokens.shape[1])) / tokens.shape[1]
    np.testing.assert_allclose(reduce_tokens(tokens, "patch"), expected, rtol=1e-12, atol=1e-12)


@given(tokens=token_arrays())
def test_mean_is_the_mean_of_patch_and_of_group(tokens):
    mean, patch, group = (reduce_tokens(tokens, level) for level in ("mean", "patch", "group"))
    chips, *_, dim = tokens.shape
    np.testing.assert_allclose(mean, patch.reshape(chips, -1, dim).mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mean, group.reshape(chips, -1, dim).mean(1), rtol=1e-12, atol=1e-12)


@given(tokens=token_arrays(), level=st.sampled_from(list(LEVELS)))
def test_shapes(tokens, level):
    chips, groups, rows, cols, dim = tokens.shape
    sizes = {"group": groups, "row": rows, "col": cols, "embedding": dim}
    assert reduce_tokens(tokens, level).shape == (chips, *(sizes[name] for name in LEVELS[level]))


@given(tokens=token_arrays(), level=st.sampled_from(list(LEVELS)))
def test_numpy_and_torch_agree(tokens, level):
    found = reduce_tokens(torch.from_numpy(tokens), level)
    np.testing.assert_allclose(found.numpy(), reduce_tokens(tokens, level), rtol=1e-12, atol=1e-12)
