"""Every benchmark at its smallest size: that it runs, not what it measures."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import NAMES

HERE = ("encoder", "decode", "cube", "read", "stac", "job", "overlap", "small", "search", "preview", "export")
"""Those that take seconds in this process."""
LONGER = ("write", "whole", "baseline")
APART = ("scheduling", "workers", "fleet", "plan", "start")
"""Those that start clusters of processes."""


def test_every_benchmark_is_run_here() -> None:
    assert sorted((*HERE, *LONGER, *APART, "gpu")) == sorted(NAMES)


@pytest.mark.parametrize("name", [*HERE, *(pytest.param(name, marks=pytest.mark.faults) for name in LONGER)])
def test_a_benchmark_in_this_process(name: str) -> None:
    threads = torch.get_num_threads()
    try:
        check(importlib.import_module(f"benchmarks.{name}").run(smallest=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.faults
@pytest.mark.parametrize("name", APART)
def test_a_benchmark_as_it_is_typed(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--smallest", "--json", str(tmp_path / "numbers")]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "numbers").read_text().splitlines()
    found = json.loads(line)
    assert found["benchmark"] == name
    check(found["rows"])


def test_the_gpu_benchmark_begins_with_right_numbers() -> None:
    from benchmarks import gpu

    if torch.cuda.is_available():
        check(gpu.run(smallest=True))
    else:
        check(gpu.parity("cpu"))
        with pytest.raises(SystemExit, match="no GPU here"):
            gpu.run(smallest=True)


def check(rows: list[dict[str, object]]) -> None:
    """A table: rows of the same columns, whose numbers are numbers."""
    assert rows
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
