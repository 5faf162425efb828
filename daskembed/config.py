"""Settings: the defaults of ``daskembed.yaml`` under Dask's configuration."""

from __future__ import annotations

import functools
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from daskembed.documents import parse_yaml


@functools.cache
def defaults() -> dict[str, Any]:
    """The packaged defaults, without importing Dask (so that ``--help`` stays quick)."""
    loaded: dict[str, Any] = parse_yaml(files("daskembed").joinpath("daskembed.yaml").read_text())["daskembed"]
    return loaded


def get(name: str) -> Any:
    """The value of ``daskembed.{name}`` in Dask's configuration, or its packaged default, or None."""
    import dask

    # The defaults are not registered with Dask: workers take over the client's configuration, and defaults in it would
    # hide what their own environment says.
    return dask.config.get(f"daskembed.{name}", defaults().get(name))


def cache_folder() -> Path:
    """Where downloaded checkpoints and plans are kept; it may not exist yet."""
    return Path(get("cache") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "daskembed").expanduser()
