"""What the command shows: the library's words with flags in the place of keywords, tables, lines of JSON."""

from __future__ import annotations

import ast
import csv
import io
import json
import logging
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from daskembed.cli.parser import flag_of
from daskembed.runs.options import RULES, RunOptions
from daskembed.text import all_visible, visible

if TYPE_CHECKING:
    from rich.table import Table

    from daskembed.output.status import OutputStatus
    from daskembed.runs.results import Event

KEYWORDS = {*RunOptions.__annotations__, *RULES, "tiles", "device", "price_per_hour", "quarantined"}
"""What is a flag here and an argument, or an attribute, in Python."""
_MARK = re.compile(r"`(?P<rules>Rules\()?(?P<name>[a-z_]+)(?:=(?P<value>[^`]+?))?(?(rules)\))`")


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
    if mark["value"] is None:
        return flag
    try:
        value = ast.literal_eval(mark["value"])
    except (ValueError, SyntaxError):
        value = mark["value"]
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


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


def show_status(found: OutputStatus) -> None:
    """Print a table and a summary for people; where the output is no terminal, plain lines as long as they need be."""
    from rich.console import Console

    from daskembed.output.status import summary

    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(_table(found), soft_wrap=False)
        lines = []
    else:
        wide = Console(highlight=False, width=100_000)
        with wide.capture() as table:
            wide.print(_table(found))
        lines = [line.rstrip() for line in table.get().splitlines()]
    for line in [*lines, *map(with_flags, summary(found))]:
        console.print(line, markup=False)


def _table(found: OutputStatus) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("tile", "version", "status"):
        table.add_column(name, no_wrap=True)
    rejected = any(tile.rejected for tile in found.tiles)
    for name in ("chips", "blocks", "quarantined", *(["rejected"] if rejected else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("file, reason", overflow="fold")
    for tile in found.tiles:
        unfinished = tile.status in ("unfinished", "failed")
        blocks = f"{tile.parts_done} of {'?' if tile.parts is None else tile.parts}" if unfinished else ""
        chips = "" if tile.chips is None else str(tile.chips)
        what = " ".join((tile.reason or " ".join(tile.files) or ("no file" if tile.status == "done" else "")).split())
        bad = (str(len(tile.quarantined)), *([str(len(tile.rejected))] if rejected else []))
        cells = (tile.tile, "cube" if tile.kind == "cube" else tile.version, tile.status, chips, blocks, *bad, what)
        # As `Text`, so that brackets in names and reasons are no markup.
        table.add_row(*(Text(visible(with_flags(cell))) for cell in cells))
    return table


def status_as_json(found: OutputStatus) -> str:
    """Everything, as one document."""
    return json.dumps({**asdict(found), "counts": found.counts}, indent=1)


def quarantined_as_csv(found: OutputStatus) -> str:
    """The quarantined chips, a line each."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("tile", "version", "url", "reason"))
    lines.writerows(all_visible(found.quarantined))
    return text.getvalue().removesuffix("\n")
