"""Text of others, such as names of files and answers of servers, made fit to be shown (pure)."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""`text` with what would command a terminal, end a line or change the direction of reading written as an escape.

    Examples
    --------
    >>> print(visible("a\x1b[31m\n\u202eb"))
    a\x1b[31m\n\u202eb
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
