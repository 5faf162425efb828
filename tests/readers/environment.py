"""An environment of its own for a reader that cannot be installed beside the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).parent.parent.parent / ".readers"
NOT_RUN = 3
"""Exit status of a script that could not try."""


def not_run(why: str) -> NoReturn:
    """End the script, and say why."""
    print(f"not run: {why}")
    raise SystemExit(NOT_RUN)


def enter(name: str, *packages: str, python: tuple[int, int] = (3, 11)) -> None:
    """Go on in a virtual environment with these packages, which is made on first use in `.readers/` of the repository.

    The script that calls this begins anew in there. Where Python is older than `python`, a newer one is looked for.
    """
    home = FOLDER / f"{name}-{'-'.join(packages)}".replace("==", "-")
    inside = home / "bin" / "python"
    if Path(sys.prefix) == home:
        return
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([_find(python), "-m", "venv", home], check=True)
        print(f"installing {', '.join(packages)} in {home}", flush=True)
        if subprocess.run([inside, "-m", "pip", "install", "--quiet", *packages]).returncode:
            not_run(f"{', '.join(packages)} cannot be installed: see above")
        (home / "complete").touch()
    os.execv(inside, [str(inside), *sys.argv])


def _find(least: tuple[int, int]) -> str:
    if sys.version_info[:2] >= least:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(20, least[1] - 1, -1)]
    for name in names:
        # What a manager of versions puts on the PATH is there for versions that are not, too.
        if (found := shutil.which(name)) and not subprocess.run([found, "--version"], capture_output=True).returncode:
            return found
    here = ".".join(map(str, sys.version_info[:2]))
    not_run(f"this is Python {here}, and there is no {names[-1]} or newer on the PATH: run the script by one")
