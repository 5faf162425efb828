"""Clay embeddings of Sentinel chips on Dask: tiles of chips in, GeoParquet files out.

The public functions are imported on first use, so that ``import daskembed`` loads neither torch, Dask nor
GeoPandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskembed.cube import open_tile as open_tile
    from daskembed.embedding import embed as embed
    from daskembed.encoders.loading import load_encoder as load_encoder
    from daskembed.encoders.protocol import Encoder as Encoder
    from daskembed.index import index_tile as index_tile
    from daskembed.output.open import open_embeddings as open_embeddings
    from daskembed.runs.cubes import write_cubes as write_cubes
    from daskembed.runs.plan import Plan as Plan
    from daskembed.runs.plan import plan as plan
    from daskembed.runs.results import RunResult as RunResult
    from daskembed.runs.results import TileResult as TileResult
    from daskembed.runs.tiles import run as run
    from daskembed.table import to_geodataframe as to_geodataframe

__version__ = "0.1.0"

_HOME = {
    "index_tile": "index",
    "open_tile": "cube",
    "embed": "embedding",
    "Encoder": "encoders.protocol",
    "load_encoder": "encoders.loading",
    "to_geodataframe": "table",
    "open_embeddings": "output.open",
    "run": "runs.tiles",
    "plan": "runs.plan",
    "write_cubes": "runs.cubes",
    "Plan": "runs.plan",
    "RunResult": "runs.results",
    "TileResult": "runs.results",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'daskembed' has no attribute {name!r}")
    return getattr(importlib.import_module(f"daskembed.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
