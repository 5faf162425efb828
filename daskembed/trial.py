"""Chips of which a process dies: each is tried in a process that may."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daskembed.stages import Block

_TRIED = "daskembed tries chip "


def deadly_chips(block: Block) -> dict[str, str]:
    """Read and embed each chip of a block by itself, in a child process.

    Returns
    -------
    dict
        URL -> reason, of the chips at which the process died twice.
    """
    found: dict[str, str] = {}
    waiting = list(block.urls)
    while waiting:
        done, _ = _try(block, waiting)
        waiting = waiting[done:]
        if waiting:
            # It may have been killed for another reason: only a chip that kills again is condemned.
            again, status = _try(block, waiting[:1])
            if not again:
                found[waiting[0]] = f"ends the process that reads or embeds it ({_describe(status)}), each time"
            waiting = waiting[1:]
    return found


def _try(block: Block, urls: list[str]) -> tuple[int, int]:
    """How many of `urls` a child process survived, in their order, and its exit status."""
    child = subprocess.run(
        [sys.executable, "-m", "daskembed.trial"],
        input=pickle.dumps((block, urls)),
        # What it says of its death is not for the worker's log.
        capture_output=True,
        # Of a module of the user's own, the worker knows where it is.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    begun = child.stdout.decode(errors="replace").count(_TRIED)
    if child.returncode == 0:
        return len(urls), 0
    if not begun:
        said = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"the process that tries chips did not start: {said or f'exit status {child.returncode}'}")
    return begun - 1, child.returncode


def _describe(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main() -> None:
    """In the child: embed one chip after the other."""
    block, urls = pickle.load(sys.stdin.buffer)
    for url in urls:
        sys.stdout.write(f"{_TRIED}{url}\n")
        sys.stdout.flush()
        # What is raised is for the worker to tell: a store that fails, or want of memory, is no fault of the chip's.
        with contextlib.suppress(Exception):
            block.compute({other: "" for other in block.urls if other != url})
    # Threads that a library left running must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
