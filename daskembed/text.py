"""Words as they are shown: those of others made fit for it, arguments as flags, counts (pure)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Not by Python's parser: parts of messages are of whoever wrote the files.
_VALUE = "|".join(
    (
        r"(?P<no>False)|True",
        r"(?P<quote>['\"])(?P<text>[^`]*?)(?P=quote)",
        r"\((?P<pair>[-\d, ]+)\)",
        r"(?P<plain>[-+.\w]+)",
    )
)
_MARK = re.compile(rf"`(?P<rules>Rules\()?(?P<name>[a-z_]+)(?:=(?:{_VALUE}))?(?(rules)\))`")


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


def put_flags(text: str, flags: Mapping[str, str]) -> str:
    """`text` with flags, by argument, in the place of the arguments in backticks that have one, and of their values."""

    def typed(mark: re.Match[str]) -> str:
        flag = flags.get(mark["name"])
        if flag is None:
            return mark[0]
        if mark["no"]:
            return f"{flag[:2]}no-{flag[2:]}"
        values = (mark["text"], mark["pair"] and mark["pair"].replace(" ", ""), mark["plain"])
        return " ".join([flag, *(value for value in values if value is not None)])

    return _MARK.sub(typed, text)


def counted(number: int, noun: str) -> str:
    """A number and what it counts, such as ``2 tiles``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_bytes(number: float) -> str:
    """A size for people: ``512 B``, ``1.4 MB``, ``3.1 TB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 999.5 else f"{number:,.0f} TB"
