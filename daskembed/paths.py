"""What users give as a folder, a file or a URL, as text (pure)."""

from __future__ import annotations

import os

from daskembed.errors import InputError

StrPath = str | os.PathLike[str]
"""Text, or a path such as `pathlib.Path`."""


def as_text(given: StrPath) -> str:
    """What is given, as text; raises `InputError` for what is neither text nor a path."""
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str):
        raise InputError(f"{given!r}: expected a folder, a file or a URL, as text or as a path")
    return text
