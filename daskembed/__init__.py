"""Clay embeddings of Sentinel chips on Dask: tiles of chips in, GeoParquet files out.

The public functions are imported on first use, so that ``import daskembed`` loads neither torch, Dask nor
GeoPandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskembed.clusters.connection import connect as connect
    from daskembed.cube import open_tile as open_tile
    from daskembed.embedding import embed as embed
    from daskembed.encoders.description import Description as Description
    from daskembed.encoders.loading import load_encoder as load_encoder
    from daskembed.encoders.protocol import Encoder as Encoder
    from daskembed.energy import Energy as Energy
    from daskembed.errors import CheckpointError as CheckpointError
    from daskembed.errors import ChipError as ChipError
    from daskembed.errors import ChipRejectedError as ChipRejectedError
    from daskembed.errors import ClusterLostError as ClusterLostError
    from daskembed.errors import ConflictError as ConflictError
    from daskembed.errors import DaskembedError as DaskembedError
    from daskembed.errors import InputError as InputError
    from daskembed.errors import LockLostError as LockLostError
    from daskembed.errors import SickMachineError as SickMachineError
    from daskembed.errors import StorageDeniedError as StorageDeniedError
    from daskembed.errors import StorageError as StorageError
    from daskembed.errors import StorageUnusableError as StorageUnusableError
    from daskembed.errors import TileError as TileError
    from daskembed.explore.basis import Basis as Basis
    from daskembed.explore.preview import Preview as Preview
    from daskembed.exports.stac import write_stac as write_stac
    from daskembed.exports.state import ExportedFile as ExportedFile
    from daskembed.exports.status import status as status
    from daskembed.exports.validate.check import validate as validate
    from daskembed.index import index_tile as index_tile
    from daskembed.output.export_status import ExportStatus as ExportStatus
    from daskembed.output.export_status import FileStatus as FileStatus
    from daskembed.output.export_status import SourceStatus as SourceStatus
    from daskembed.output.open import open_embeddings as open_embeddings
    from daskembed.output.stac import StacResult as StacResult
    from daskembed.output.tile_status import OutputStatus as OutputStatus
    from daskembed.output.tile_status import StacStatus as StacStatus
    from daskembed.output.tile_status import TileStatus as TileStatus
    from daskembed.output.validate.findings import Finding as Finding
    from daskembed.quantization import Calibration as Calibration
    from daskembed.quantization import dequantize as dequantize
    from daskembed.runs.calibration import CalibrationResult as CalibrationResult
    from daskembed.runs.calibration import calibrate as calibrate
    from daskembed.runs.components import principal_components as principal_components
    from daskembed.runs.cubes import write_cubes as write_cubes
    from daskembed.runs.export_options import CalibrationOptions as CalibrationOptions
    from daskembed.runs.export_options import ExportOptions as ExportOptions
    from daskembed.runs.export_options import PreviewOptions as PreviewOptions
    from daskembed.runs.export_results import ExportResult as ExportResult
    from daskembed.runs.exports import export as export
    from daskembed.runs.options import CubeOptions as CubeOptions
    from daskembed.runs.options import RunOptions as RunOptions
    from daskembed.runs.plan import Plan as Plan
    from daskembed.runs.plan import plan as plan
    from daskembed.runs.previews import preview as preview
    from daskembed.runs.results import Event as Event
    from daskembed.runs.results import Expected as Expected
    from daskembed.runs.results import Progress as Progress
    from daskembed.runs.results import RunResult as RunResult
    from daskembed.runs.results import TileResult as TileResult
    from daskembed.runs.scenes import SceneItem as SceneItem
    from daskembed.runs.scenes import TileScenes as TileScenes
    from daskembed.runs.scenes import find_scenes as find_scenes
    from daskembed.runs.search import search as search
    from daskembed.runs.throughput import Speed as Speed
    from daskembed.runs.tiles import run as run
    from daskembed.sources.chip import Chip as Chip
    from daskembed.sources.region import tiles_of_region as tiles_of_region
    from daskembed.sources.rules import Rules as Rules
    from daskembed.table import to_geodataframe as to_geodataframe
    from daskembed.vectors import VectorDtype as VectorDtype

__version__ = "0.1.0"

_HOME = {
    "tiles_of_region": "sources.region",
    "index_tile": "index",
    "open_tile": "cube",
    "embed": "embedding",
    "load_encoder": "encoders.loading",
    "to_geodataframe": "table",
    "open_embeddings": "output.open",
    "dequantize": "quantization",
    "run": "runs.tiles",
    "plan": "runs.plan",
    "find_scenes": "runs.scenes",
    "write_cubes": "runs.cubes",
    "search": "runs.search",
    "calibrate": "runs.calibration",
    "preview": "runs.previews",
    "principal_components": "runs.components",
    "export": "runs.exports",
    "connect": "clusters.connection",
    "status": "exports.status",
    "write_stac": "exports.stac",
    "validate": "exports.validate.check",
    "Encoder": "encoders.protocol",
    "Description": "encoders.description",
    "Chip": "sources.chip",
    "VectorDtype": "vectors",
    "Calibration": "quantization",
    "Energy": "energy",
    "Rules": "sources.rules",
    "RunOptions": "runs.options",
    "CubeOptions": "runs.options",
    "ExportOptions": "runs.export_options",
    "CalibrationOptions": "runs.export_options",
    "CalibrationResult": "runs.calibration",
    "ExportResult": "runs.export_results",
    "ExportedFile": "exports.state",
    "RunResult": "runs.results",
    "TileResult": "runs.results",
    "Progress": "runs.results",
    "Event": "runs.results",
    "Plan": "runs.plan",
    "Speed": "runs.throughput",
    "TileScenes": "runs.scenes",
    "SceneItem": "runs.scenes",
    "Expected": "runs.results",
    "StacResult": "output.stac",
    "PreviewOptions": "runs.export_options",
    "Basis": "explore.basis",
    "Preview": "explore.preview",
    "OutputStatus": "output.tile_status",
    "TileStatus": "output.tile_status",
    "StacStatus": "output.tile_status",
    "ExportStatus": "output.export_status",
    "FileStatus": "output.export_status",
    "SourceStatus": "output.export_status",
    "Finding": "output.validate.findings",
    "DaskembedError": "errors",
    "InputError": "errors",
    "CheckpointError": "errors",
    "ConflictError": "errors",
    "ChipError": "errors",
    "ChipRejectedError": "errors",
    "TileError": "errors",
    "ClusterLostError": "errors",
    "SickMachineError": "errors",
    "LockLostError": "errors",
    "StorageError": "errors",
    "StorageUnusableError": "errors",
    "StorageDeniedError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'daskembed' has no attribute {name!r}")
    return getattr(importlib.import_module(f"daskembed.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
