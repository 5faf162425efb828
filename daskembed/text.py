"""Text of others, such as names of files and answers of servers, made fit to be shown (pure)."""

from __future__ import annotations

import unicodedata
from typing import Any


def visible(text: str) -> str:
    r"""`text` with what would command a terminal, end a line or change the direction of reading written as an escape.

    Examples
    --------
    >>> print(visible("a\x1b[31m\n\u202eb"))
    a\x1b[31m\n\u202eb
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or unicodedata.category(one) == "Zs" else one.encode("unicode_escape").decode()
        for one in text
    )


def one_line(text: str) -> str:
    """`visible` text without its line breaks: messages of libraries have some."""
    return visible(" ".join(text.split()))


def all_visible(value: Any) -> Any:
    """Lists and mappings, in each other, with `visible` text."""
    if isinstance(value, dict):
        return {all_visible(key): all_visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_visible(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value
