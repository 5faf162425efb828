"""What the tests of faults share: small tiles, a counting encoder, the command as a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from daskembed.testing import write_chips

HERE = Path(__file__).parent
TILES = {"33TUL": 5, "33TUM": 4, "22JGS": 3}
"""Tile -> chips."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is here is a test of faults, but for the long forms, which have a command of their own."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("long") is None:
            item.add_marker("faults")


@dataclass
class Command:
    """``daskembed run`` with the counting encoder and blocks of two chips, into one output."""

    source: Path
    output: Path
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """Start it in a session of its own, so that all its processes can be killed together."""
        self.log.write_bytes(b"")
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "DASK_DASKEMBED__ENCODER": "faults.counting",
            "DASK_DASKEMBED__CHIPS_A_BLOCK": "2",
            "DASK_DASKEMBED__TORCH_THREADS": "1",
            "COUNTING_LOG": str(self.log),
        }
        command = [sys.executable, "-m", "daskembed", "run", "--tiles", ",".join(TILES)]
        command += ["--source", str(self.source), "--output", str(self.output), "--precision", "fp32"]
        command += ["--checkpoint", "untrained:tiny", *flags]
        return subprocess.Popen(
            command,
            env=env | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str) -> tuple[int, str]:
        """Run it to its end: exit status and what it printed."""
        process = self.start(*flags)
        text, _ = process.communicate(timeout=240)
        return process.returncode, text

    @property
    def encoded(self) -> int:
        """Chips that the last run encoded."""
        return self.log.stat().st_size

    @property
    def files(self) -> dict[str, str]:
        """Name -> SHA-256 of the published files."""
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.output.glob("*.gpq")}

    @property
    def left(self) -> int:
        """Chips that are neither in a part nor in a tile with a receipt."""
        chips = 0
        for tile, count in TILES.items():
            if not (self.output / "_daskembed/receipts" / f"{tile}_v001.json").exists():
                parts = (self.output / "_daskembed/parts" / f"{tile}_v001").glob("*/*.parquet")
                chips += count - sum(min(2, count - 2 * int(part.stem)) for part in parts)
        return chips


def wait_until_dead(processes: list[psutil.Process]) -> None:
    """Wait for processes to end; fails if they do not."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def wait_for(condition: object, seconds: float = 120) -> None:
    """Wait until a function is true."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def receipt(output: Path, tile: str) -> dict[str, object]:
    """A tile's receipt."""
    found: dict[str, object] = json.loads((output / "_daskembed/receipts" / f"{tile}_v001.json").read_text())
    return found


@pytest.fixture(scope="session")
def small_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the chips of `TILES`; not to be changed."""
    folder = tmp_path_factory.mktemp("small-tiles")
    for seed, (tile, count) in enumerate(TILES.items()):
        write_chips(folder, tile=tile, rows=1, cols=count, seed=seed)
    return folder


@pytest.fixture(scope="session")
def undisturbed(small_tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> SHA-256 of the files of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(small_tiles, folder / "out", folder / "log")
    status, text = command.run()
    assert status == 0, text
    assert command.encoded == sum(TILES.values())
    assert len(command.files) == len(TILES)
    return command.files


@pytest.fixture
def command(small_tiles: Path, tmp_path: Path) -> Command:
    """The command, into a new output."""
    return Command(small_tiles, tmp_path / "out", tmp_path / "log", {"COUNTING_SLEEP": "0.2"})
