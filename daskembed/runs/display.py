"""What a run shows: live progress on a terminal, plain lines when piped, a summary at the end, or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from daskembed.runs.results import MOST_LISTED, describe_tile
from daskembed.text import describe_seconds, visible

if TYPE_CHECKING:
    from rich.table import Table

    from daskembed.runs.progress import Event, Progress

LINE_EVERY = 30
"""Seconds between two lines that say how far a run is, where there is no terminal."""


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for `daskembed.run`: a live bar on a terminal; elsewhere a line a tile, and one every half minute."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    finished, said, begun, due = 0, 0, False, time.monotonic() + LINE_EVERY

    def tell(state: Progress) -> None:
        nonlocal finished, said, begun, due
        if not begun:
            begun = True
            page = f"\nrun's page: {state.page}" if state.page else ""
            say(f"dashboard: {state.dashboard}{page}\nworkers: {state.workers}" if state.dashboard else state.workers)
        for result in state.finished[finished:]:
            # Where no cluster is needed, the summary follows at once and has the reasons.
            brief = result.status == "failed" and not state.dashboard
            say(visible(f"{result.tile}  failed" if brief else describe_tile(result)))
        for line in state.said[max(0, said - state.forgotten) :]:
            say(visible(line))
        finished, said = len(state.finished), state.forgotten + len(state.said)
        if not console.is_terminal and time.monotonic() >= due and state.how == "running":
            due = time.monotonic() + LINE_EVERY
            say(visible(describe_progress(state)))

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(state: Progress) -> None:
            tell(state)
            live.update(_bar(state))

        yield show
        live.update("")


def _bar(state: Progress) -> Table:
    """A bar of chips above the line of `describe_progress`."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    lines = Table.grid()
    lines.add_row(ProgressBar(max(1, state.expected), state.done, width=78))
    lines.add_row(Text(visible(describe_progress(state))))
    return lines


def in_notebook() -> Callable[[Progress], None] | None:
    """A callback for `daskembed.run`, with links and a bar below the cell, if this is a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display  # type: ignore[import-not-found]

    cell = display(HTML(""), display_id=True)
    shown = 0.0

    def show(state: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now >= shown + 1 or state.how != "running":
            shown = now
            cell.update(HTML(progress_as_html(state)))

    return show


def progress_as_html(state: Progress) -> str:
    """Links to the pages, a bar, and the line of `describe_progress`."""
    links = (("the run's page", state.page), ("Dask's dashboard", state.dashboard))
    shown = [f'<a href="{escape(link)}" target="_blank">{name}</a>' for name, link in links if link]
    full = state.how == "over"
    done, most = (1, 1) if full else (state.done, max(1, state.expected))
    lines = [" · ".join(shown), f'<progress value="{done}" max="{most}" style="width: 30em"></progress>']
    lines += (escape(visible(line)) for line in (describe_progress(state), *state.said[-MOST_LISTED:]))
    return "<br>".join(lines)


def print_event(event: Event) -> None:
    """One line of JSON, at once: whoever collects them may wait for it."""
    found = asdict(event)
    counts = found.pop("counts")
    told = {name: value for name, value in found.items() if value is not None}
    sys.stdout.write(json.dumps(told | counts) + "\n")
    sys.stdout.flush()


def describe_progress(state: Progress) -> str:
    """One line for a run on its way."""
    parts = [
        f"tiles {len(state.finished)}/{state.tiles}",
        f"chips {state.done}/{state.chips}" + ("+" if state.indexed < state.tiles else ""),
        f"{state.rate:.2f} chips/s" if state.done else "first chips on their way",
        f"{describe_seconds(state.seconds)} elapsed",
    ]
    left = state.left
    if state.how != "running":
        parts.append(state.how)
    elif left is not None:
        # Tiles not yet indexed are taken to be like those that are.
        parts.append(f"{describe_seconds(left)} left")
    if state.quarantined:
        parts.append(f"{state.quarantined} quarantined")
    if state.rejected:
        parts.append(f"{state.rejected} rejected")
    return " · ".join(parts)
