"""Levels: how the patch tokens of a chip become its embedding (pure, the same for NumPy and torch)."""

from __future__ import annotations

from typing import Any

from daskembed.errors import InputError

LEVELS: dict[str, tuple[str, ...]] = {
    "mean": ("embedding",),
    "patch": ("row", "col", "embedding"),
    "group": ("group", "row", "col", "embedding"),
}
"""The dimensions of one chip's embedding at each level, the chip's own left out."""


def check_level(level: str) -> str:
    """Return `level` if it is one of `LEVELS`.

    Raises
    ------
    InputError
        If it is not.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}: choose one of {', '.join(LEVELS)}")
    return level


def level_shape(level: str, *, groups: int, side: int, dim: int) -> tuple[int, ...]:
    """Shape of one chip's embedding, e.g. ``(16, 16, 768)`` at level ``patch``."""
    sizes = {"group": groups, "row": side, "col": side, "embedding": dim}
    return tuple(sizes[name] for name in LEVELS[check_level(level)])


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
    Array or tensor of shape ``(chip, *level_shape)``.
    """
    if check_level(level) == "mean":
        return tokens.mean(axis=(1, 2, 3))
    return tokens.mean(axis=1) if level == "patch" else tokens
