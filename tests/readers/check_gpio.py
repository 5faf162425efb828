"""`gpio check`, a checker of GeoParquet, on an export: `python tests/readers/check_gpio.py [EXPORT]`.

It needs an older DuckDB than the tests, hence an environment of its own; and of that one the version of which the wheel
of its spatial extension is. Without a folder, an export of made-up vectors is checked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import environment


def _exported() -> str:
    """A new export, of some files."""
    import daskembed
    from daskembed.testing import write_published

    folder = tempfile.mkdtemp(prefix="daskembed-export-")
    write_published(f"{folder}/output", ["33TUL", "33TVL", "33TUM"])
    result = daskembed.export(f"{folder}/output", to=f"{folder}/export")
    assert result.exit_status == 0, result
    return f"{folder}/export"


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append(_exported())
    environment.enter("gpio", "geoparquet-io==1.7.0")
    try:
        from duckdb_extensions import import_extension
    except ImportError:
        pinned = ["duckdb==1.5.5", "duckdb-extensions==1.5.5", "duckdb-extension-spatial==1.5.5"]
        if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *pinned]).returncode:
            environment.not_run("DuckDB's spatial extension cannot be installed: see above")
        from duckdb_extensions import import_extension
    import_extension("spatial")
    gpio = Path(sys.executable).parent / "gpio"
    files = sorted(Path(sys.argv[1]).glob("*.parquet"))
    for file in files:
        done = subprocess.run([gpio, "check", "all", file], capture_output=True, text=True)
        print(done.stdout + done.stderr)
        assert done.returncode == 0, f"{file} does not pass"
        assert "failed" not in done.stdout, f"{file} does not pass"
    print(f"gpio check passes {len(files)} files of {sys.argv[1]}")
