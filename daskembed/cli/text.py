"""What the command shows: the library's words with flags in the place of keywords, lines of JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from daskembed.cli.parser import flag_of
from daskembed.runs.options import RULES, RunOptions

if TYPE_CHECKING:
    from daskembed.runs.results import Event

KEYWORDS = {*RunOptions.__annotations__, *RULES, "tiles", "device", "price_per_hour", "quarantined"}
"""What is a flag here and an argument, or an attribute, in Python."""
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


def with_flags(text: str) -> str:
    """What the library says of its arguments, in backticks, as it is typed here.

    Examples
    --------
    >>> with_flags("unknown `on_nan` 'x': give `on_nan='fill'`, `overwrite=True` or `Rules(zeros=False)`")
    "unknown --on-nan 'x': give --on-nan fill, --overwrite or --no-reject-zeros"
    """
    return _MARK.sub(_typed, text)


def _typed(mark: re.Match[str]) -> str:
    if mark["name"] not in KEYWORDS:
        return mark[0]
    flag = flag_of(mark["name"])
    if mark["no"]:
        return flag.replace("--", "--no-", 1)
    values = (mark["text"], mark["pair"] and mark["pair"].replace(" ", ""), mark["plain"])
    return " ".join([flag, *(value for value in values if value is not None)])


def say(text: str) -> None:
    """Print what the library says."""
    print(with_flags(text))


class _WithFlags(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return with_flags(super().format(record))


def show_warnings() -> None:
    """Have warnings of the library name flags, too, where nobody has said where they go."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_WithFlags())


def print_event(event: Event) -> None:
    """One line of JSON, at once: whoever collects them may wait for it."""
    found = asdict(event)
    counts = found.pop("counts")
    told = {name: value for name, value in found.items() if value is not None}
    say(json.dumps(told | counts))
    sys.stdout.flush()
