"""Text for people: numbers in words, and text of others, such as names of files, made fit to be shown (pure)."""

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


def describe_seconds(seconds: float) -> str:
    """A duration for people: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe_bytes(number: float) -> str:
    """A size for people: ``512 B``, ``1.4 MB``, ``3.1 TB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 999.5 else f"{number:,.0f} TB"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 chip``, ``2 chips``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
