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
from typing import TYPE_CHECKING

from daskembed import config
from daskembed.errors import SickMachineError
from daskembed.health import is_want_of_memory

if TYPE_CHECKING:
    from daskembed.encoders.protocol import Encoder
    from daskembed.runs.blocks import Block

START_LIMIT = 1800
"""Seconds that the process may take until it has loaded the encoder and embedded zeros."""
CHIP_LIMIT = 600
"""Seconds that it may take for a chip, beyond those for which the stores are asked again."""
_TRIED = "daskembed tries chip "
_HANGS = "Timeout ("
"""What Python's watchdog says before it ends a process."""


def deadly_chips(block: Block, encoder: Encoder, level: str) -> dict[str, str]:
    """Read and embed each chip of a block by itself, in a child process.

    Parameters
    ----------
    block, encoder, level
        The block, and with what and on which level it is embedded.

    Returns
    -------
    dict
        URL -> reason, of the chips at which the process died or hung twice.

    Raises
    ------
    MemoryError
        If there is none for a process that embeds nothing but zeros.
    SickMachineError
        If such a process fails for another reason.
    """
    found: dict[str, str] = {}
    waiting = list(block.urls)
    while waiting:
        done, _ = _try(block, encoder, level, waiting)
        waiting = waiting[done:]
        if waiting:
            # It may have been killed for another reason: only a chip that kills again is condemned.
            again, how = _try(block, encoder, level, waiting[:1])
            if not again:
                found[waiting[0]] = f"{how}, each time"
            waiting = waiting[1:]
    return found


def _try(block: Block, encoder: Encoder, level: str, urls: list[str]) -> tuple[int, str]:
    """How many of `urls` a child process survived, in their order, and what the next one did to it."""
    limit = CHIP_LIMIT + 10 * config.get("retry-timeout")
    child = subprocess.run(
        [sys.executable, "-m", "daskembed.runs.deadly_chips"],
        input=pickle.dumps((START_LIMIT, limit, encoder, level, block, urls)),
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
        hangs = f"is not read and embedded within {limit:g} s" if _HANGS in said else None
        return begun - 1, hangs or f"ends the process that reads or embeds it ({_describe(child.returncode)})"
    last = said.rpartition("\n")[2]
    if child.returncode == -signal.SIGKILL or is_want_of_memory(last):
        raise MemoryError(
            f"memory is short: the process that tries chips cannot embed zeros in it ({last or 'killed'})"
        )
    why = f"takes longer than {START_LIMIT} s" if _HANGS in said else last or _describe(child.returncode)
    raise SickMachineError(f"{platform.node()}: the process that tries chips does not start: {why}")


def _describe(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _embed_zeros(encoder: Encoder, level: str) -> None:
    """Have this process take what every chip takes, the weights above all."""
    import numpy as np

    from daskembed.compute.device import get_device
    from daskembed.encoders.description import Place
    from daskembed.geo.chips import CHIP
    from daskembed.sources.chip import ReadChip

    needs = encoder.description
    degrees = np.zeros((1, (CHIP // needs.window) ** 2))
    place = Place(degrees, degrees, np.array(["2020-01-01T12"], "datetime64[s]"), np.array([needs.sensor.gsd]))

    def zeros() -> ReadChip:
        return ReadChip(np.zeros((len(needs.bands), CHIP, CHIP), np.float32), [])

    get_device(encoder).encode([zeros], place, level=level, on_nan="fill")


def main() -> None:
    """In the child: embed one chip after the other."""
    start_limit, chip_limit, encoder, level, block, urls = pickle.load(sys.stdin.buffer)
    # It ends the process even where a library hangs in its own code.
    faulthandler.dump_traceback_later(start_limit, exit=True)
    # A death before a chip is touched is none of the chips' fault.
    _embed_zeros(encoder, level)
    for url in urls:
        faulthandler.dump_traceback_later(chip_limit, exit=True)
        sys.stdout.write(f"{_TRIED}{url}\n")
        sys.stdout.flush()
        # What is raised is for the worker to tell: a store that fails, or want of memory, is no fault of the chip's.
        with contextlib.suppress(Exception):
            block.compute({other: "" for other in block.urls if other != url})
    # Threads that a library left running must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
