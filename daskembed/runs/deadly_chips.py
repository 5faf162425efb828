"""Chips of which a process dies: each is tried in a process that may."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import platform
import signal
import subprocess
import sys
from typing import Protocol

from daskembed import config
from daskembed.errors import SickMachineError
from daskembed.health import is_want_of_memory

START_LIMIT = 1800
"""Seconds that the process may take until it has done what is done once for all chips."""
CHIP_LIMIT = 600
"""Seconds that it may take for a chip, beyond those for which the stores are asked again."""
_TRIED = "daskembed tries chip "
_HANGS = "Timeout ("
"""What Python's watchdog says before it ends a process."""


class Suspects(Protocol):
    """Chips of a task of which workers die."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all of them."""

    def warm_up(self) -> None:
        """Take what every chip takes, memory above all: a death here is none of the chips' fault."""

    def touch(self, url: str) -> None:
        """Do to one chip what the task does; what that raises is for the task to tell."""


def deadly_chips(suspects: Suspects) -> dict[str, str]:
    """Do to each chip by itself what a task does to it, in a child process.

    Parameters
    ----------
    suspects
        The chips; they are pickled.

    Returns
    -------
    dict
        URL -> reason, of the chips at which the process died or hung twice.

    Raises
    ------
    MemoryError
        If there is none for a process that has not begun with the first chip.
    SickMachineError
        If such a process fails for another reason.
    """
    found: dict[str, str] = {}
    waiting = list(suspects.urls)
    while waiting:
        done, _ = _try(suspects, waiting)
        waiting = waiting[done:]
        if waiting:
            # It may have been killed for another reason: only a chip that kills again is condemned.
            again, how = _try(suspects, waiting[:1])
            if not again:
                found[waiting[0]] = f"{how}, each time"
            waiting = waiting[1:]
    return found


def _try(suspects: Suspects, urls: list[str]) -> tuple[int, str]:
    """How many of `urls` a child process survived, in their order, and what the next one did to it."""
    limit = CHIP_LIMIT + 10 * config.get("retry-timeout")
    child = subprocess.run(
        [sys.executable, "-m", "daskembed.runs.deadly_chips"],
        input=pickle.dumps((START_LIMIT, limit, suspects, urls)),
        # What it says of its death is not for the worker's log.
        capture_output=True,
        # Of a module of the user's own, the worker knows where it is.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    begun = child.stdout.decode(errors="replace").count(_TRIED)
    if child.returncode == 0:
        return len(urls), ""
    said = child.stderr.decode(errors="replace").strip()
    if begun:
        # In the words of receipts that are published: chips that are known are told from new ones by them.
        hangs = f"is not read and embedded within {limit:g} s" if _HANGS in said else None
        return begun - 1, hangs or f"ends the process that reads or embeds it ({_describe(child.returncode)})"
    last = said.rpartition("\n")[2]
    if child.returncode == -signal.SIGKILL or is_want_of_memory(last):
        raise MemoryError(
            f"memory is short: the process that tries chips ends before the first one ({last or 'killed'})"
        )
    why = f"takes longer than {START_LIMIT} s" if _HANGS in said else last or _describe(child.returncode)
    raise SickMachineError(f"{platform.node()}: the process that tries chips does not start: {why}")


def _describe(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main() -> None:
    """In the child: read one chip after the other, and do what else its task does to it."""
    start_limit, chip_limit, suspects, urls = pickle.load(sys.stdin.buffer)
    # It ends the process even where a library hangs in its own code.
    faulthandler.dump_traceback_later(start_limit, exit=True)
    suspects.warm_up()
    for url in urls:
        faulthandler.dump_traceback_later(chip_limit, exit=True)
        sys.stdout.write(f"{_TRIED}{url}\n")
        sys.stdout.flush()
        # What is raised is for the worker to tell: a store that fails, or want of memory, is no fault of the chip's.
        with contextlib.suppress(Exception):
            suspects.touch(url)
    # Threads that a library left running must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
