"""``python -m daskembed``."""

import sys

from daskembed.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
