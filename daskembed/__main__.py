"""``python -m daskembed``."""

import sys

from daskembed.cli import main

if __name__ == "__main__":
    sys.exit(main())
