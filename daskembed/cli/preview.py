"""What the command tells of a preview, and how its page is opened and served."""

from __future__ import annotations

import contextlib
import sys
import time
import webbrowser
from typing import TYPE_CHECKING

from daskembed.cli.text import say
from daskembed.errors import InputError
from daskembed.storage.urls import is_local, local_path, redact
from daskembed.testing.loopback import FileServer
from daskembed.text import counted, visible

if TYPE_CHECKING:
    from daskembed.explore.preview import Preview


def check_shown(folder: str) -> None:
    """Raise `InputError` if a page in a folder, or at a URL, cannot be opened and served: it is not on this machine."""
    if not is_local(folder):
        raise InputError(f"{redact(folder)} is not on this machine: give a folder with `to` to open or serve the page")


def show(made: Preview, *, serve: bool, browse: bool) -> int:
    """Say what was made, and open or serve it if that is asked; gives the exit status."""
    for line in describe(made):
        say(visible(line))
    if not (serve or browse):
        return 0
    page = local_path(made.page)
    if not serve:
        _open(page.as_uri())
        return 0
    with FileServer(page.parent) as server, contextlib.suppress(KeyboardInterrupt):
        address = f"{server.url}/{page.name}"
        say(f"{address} (Ctrl-C ends it)")
        if browse:
            _open(address)
        sys.stdout.flush()  # somebody may read it who waits for the address
        while True:
            time.sleep(1)  # and no longer: a signal that comes just before a sleep begins is seen after it only
    return 0


def _open(address: str) -> None:
    """Open a page in this machine's browser, or say that there is none."""
    if not webbrowser.open(address):
        say(f"no browser can be started here: open {address} in one")


def describe(made: Preview) -> list[str]:
    """What was made, in lines."""
    red, green, blue = (f"{100 * share:.1f} %" for share in made.explained)
    together = f"{100 * sum(made.explained):.1f} % together"
    lines = [
        f"tiles        {made.tiles:,}, {counted(made.rows, 'chip')}",
        f"colours      the first three principal components: {red}, {green} and {blue} of the variance, {together}",
    ]
    if made.geotiffs:
        lines.append(f"GeoTIFFs     {len(made.geotiffs)} in {made.geotiffs[0].rpartition('/')[0]}")
    if not made.searchable:
        lines.append(
            f"search       not in the page: {made.vectors:,} vectors are too many for it; `daskembed search` finds them"
        )
    does = "open this and click a field" if made.searchable else "open this"
    return [*lines, f"page         {made.page}: {does}"]
