"""What a run shows in a notebook: links and a bar below the cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from daskembed.runs.summary import MOST_LISTED, describe_progress
from daskembed.text import visible

if TYPE_CHECKING:
    from daskembed.runs.results import Progress


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
