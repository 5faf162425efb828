"""What the command shows: the library's words with flags in the place of keywords, lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from daskembed.cli.parser import flag_of
from daskembed.runs.export_options import CalibrationOptions, ExportOptions
from daskembed.runs.options import RULES, RunOptions
from daskembed.text import put_flags

if TYPE_CHECKING:
    from rich.table import Table

    from daskembed.runs.results import Event

_ALSO = ("tiles", "to", "device", "price_per_hour", "quarantined", "root", "basis", "geotiff")
_SEARCH = ("like", "like_row", "unlike", "unlike_row", "k", "combine", "metric", "center", "apart")
FLAGS = {
    name: flag_of(name)
    for name in (
        *RunOptions.__annotations__,
        *ExportOptions.__annotations__,
        *CalibrationOptions.__annotations__,
        *RULES,
        *_ALSO,
        *_SEARCH,
    )
}
"""What is a flag here and an argument, or an attribute, in Python."""


def with_flags(text: str) -> str:
    """What the library says of its arguments, in backticks, as it is typed here.

    Examples
    --------
    >>> with_flags("unknown `on_nan` 'x': give `on_nan='fill'`, `overwrite=True` or `Rules(zeros=False)`")
    "unknown --on-nan 'x': give --on-nan fill, --overwrite or --no-reject-zeros"
    """
    return put_flags(text, FLAGS)


def say(text: str) -> None:
    """Print what the library says."""
    print(with_flags(text))


def print_table(table: Table) -> None:
    """Print a table; where the output is no terminal, in plain lines as long as they need be."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(highlight=False, width=100_000)
    with wide.capture() as lines:
        wide.print(table)
    for line in lines.get().splitlines():
        print(line.rstrip())


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
    if event.reason is not None:
        told["reason"] = with_flags(event.reason)
    print(json.dumps(told | counts))
    sys.stdout.flush()
