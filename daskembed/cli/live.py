"""What the command shows of a run on its way: bars on a terminal, plain lines when piped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from daskembed.cli.text import with_flags
from daskembed.runs.summary import describe_progress, describe_tile, parts_of_progress
from daskembed.text import visible

if TYPE_CHECKING:
    from daskembed.runs.results import Progress


LINE_EVERY = 30
"""Seconds between two lines that say how far a run is, where there is no terminal."""
WIDTH = 40
"""Characters of a bar."""


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for `daskembed.run`: live bars on a terminal; elsewhere a line a tile, and one every half minute."""
    from rich import progress
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    finished, said, begun, due = 0, 0, False, time.monotonic() + LINE_EVERY

    def tell(state: Progress) -> None:
        nonlocal finished, said, begun, due
        if not begun:
            begun = True
            page = f"\nrun's page: {state.page}" if state.page else ""
            say(f"dashboard: {state.dashboard}{page}\nworkers: {state.workers}" if state.dashboard else state.workers)
        # An export tells first of tiles, then of files.
        finished = finished if len(state.finished) >= finished else 0
        for result in state.finished[finished:]:
            # Of what is soon over, or needs no cluster, the summary has the reasons; a run of days tells them at once.
            brief = result.status in ("failed", "left out") and (not state.dashboard or state.units[1] != "chips")
            say(visible(with_flags(f"{result.tile}  {result.status}" if brief else describe_tile(result))))
        for line in state.said[max(0, said - state.forgotten) :]:
            say(visible(with_flags(line)))
        finished, said = len(state.finished), state.forgotten + len(state.said)
        if not console.is_terminal and time.monotonic() >= due and state.how == "running":
            due = time.monotonic() + LINE_EVERY
            say(visible(describe_progress(state)))

    if not console.is_terminal:
        yield tell
        return
    bars = progress.Progress("{task.description}", progress.BarColumn(WIDTH), "{task.fields[count]}", console=console)
    tiles, chips = (bars.add_task(what, total=None, visible=False, count="") for what in ("tiles", "chips"))
    # How fast and how long still is the run's to say: it takes off what a lost worker had done.
    line = Text()

    def show(state: Progress) -> None:
        tell(state)
        of_tiles, of_chips, *more = parts_of_progress(state)
        for bar, what, done, total, count in (
            (tiles, state.units[0], len(state.finished), state.tiles, of_tiles),
            (chips, state.units[1], state.done, state.expected or None, of_chips),
        ):
            bars.update(bar, description=what, completed=done, total=total, count=count, visible=True)
        line.plain = visible(" · ".join(more))

    with Live(Group(bars, line), console=console, refresh_per_second=4, transient=True):
        yield show
