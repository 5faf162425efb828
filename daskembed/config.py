"""Settings: the defaults of ``daskembed.yaml`` under Dask's configuration."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import yaml


@functools.cache
def defaults() -> dict[str, Any]:
    """The packaged defaults, without importing Dask (so that ``--help`` stays quick)."""
    loaded: dict[str, Any] = yaml.safe_load(files("daskembed").joinpath("daskembed.yaml").read_text())["daskembed"]
    return loaded


@functools.cache
def _register() -> None:
    import dask

    dask.config.update_defaults({"daskembed": defaults()})


def get(name: str) -> Any:
    """The value of ``daskembed.{name}`` in Dask's configuration, or its packaged default, or None."""
    import dask

    _register()
    return dask.config.get(f"daskembed.{name}", None)
