"""Levels of Clay v0: how the patch tokens of a chip become its embedding (pure, for NumPy and torch)."""

from __future__ import annotations

from typing import Any

LEVELS: dict[str, tuple[str, ...]] = {
    "mean": ("embedding",),
    "patch": ("row", "col", "embedding"),
    "group": ("group", "row", "col", "embedding"),
}
"""The dimensions of one chip's embedding at each level, the chip's own left out."""


def reduce_tokens(tokens: Any, level: str) -> Any:
    """Reduce the patch tokens of some chips to a level.

    Parameters
    ----------
    tokens
        Array or tensor of shape ``(chip, group, row, col, embedding)``, in float32 or wider: a mean over 1,536
        tokens in bfloat16 would lose two digits.
    level
        ``mean`` over groups, rows and columns; ``patch``, mean over groups; ``group``, the tokens as they are.

    Returns
    -------
    Array or tensor of shape ``(chip, ...)``, with the dimensions of `LEVELS`.
    """
    if level == "mean":
        return tokens.mean(axis=(1, 2, 3))
    return tokens.mean(axis=1) if level == "patch" else tokens
