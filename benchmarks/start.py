"""The command on 16 chips of one tile: how much of its time is not their work, and where that goes."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row
from daskembed.testing import write_chips

ROUNDS = 5
SIDE = 4
"""Chips along each side of the tile."""


def run(*, smallest: bool = False) -> list[Row]:
    """Seconds by phase, medians and extremes; a phase ends with an event that the command tells."""
    # What outlives the command is waited for too, so that its time counts.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    side, rounds = (1, 1) if smallest else (SIDE, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        chips = Path(folder) / "chips"
        write_chips(chips, rows=side, cols=side)
        found = [_measure(chips, Path(folder) / str(number)) for number in range(rounds)]
    return [
        {"what": what, "median": statistics.median(values), "min": min(values), "max": max(values)}
        for what in found[0]
        for values in [[one[what] for one in found]]
    ]


def _measure(chips: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "daskembed", "run", "--tiles", "33TUL", "--source", str(chips)]
    command += ["--output", str(output), "--checkpoint", "untrained:tiny", "--cluster", "local", "--log-format", "json"]
    _wait_for([sys.executable, "-c", "import daskembed; daskembed.run"])  # its files are in the system's memory now
    _, imports = _wait_for([sys.executable, "-c", "import daskembed; daskembed.run"])
    before = _cpu_seconds()
    events, wall = _wait_for(command)
    phases = {
        "imports of the command": imports,
        "cluster, and what its workers are asked": events["run_started"] - imports,
        "the tile is indexed": events["indexed"] - events["run_started"],
        "chips are read and embedded": events["embedded"] - events["indexed"],
        "the file is published": events["run_ended"] - events["embedded"],
        "cluster and command end": wall - events["run_ended"],
    }
    beside = wall - phases["chips are read and embedded"]
    return phases | {"all": wall, "beside the chips": beside, "CPU time of all processes": _cpu_seconds() - before}


def _wait_for(command: list[str]) -> tuple[dict[str, float], float]:
    """Seconds until each kind of event was last told, and until the process had ended."""
    start, told = time.perf_counter(), dict[str, float]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            told[json.loads(line)["event"]] = time.perf_counter() - start
    assert process.returncode == 0, command
    return told, time.perf_counter() - start


def _cpu_seconds() -> float:
    """Of all processes that ended, once none is left."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            return used.ru_utime + used.ru_stime
