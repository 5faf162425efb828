"""The command with blocks of two chips, so that small tiles have several: ``python drive.py run ...``."""

from __future__ import annotations

import sys

from daskembed.cli.main import main
from daskembed.runs import settings

if __name__ == "__main__":
    settings.CHIPS_A_BLOCK = 2  # type: ignore[attr-defined]
    sys.exit(main())
