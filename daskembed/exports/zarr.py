"""Patches as cells: a Zarr store of each tile as a run would publish it, of int8 with what gives the floats back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskembed.documents import parse_object
from daskembed.exports.grids import check_patches, find_rows, reading
from daskembed.exports.index import open_published
from daskembed.output import zarr, zarr_store
from daskembed.output.stac_documents import CAST, url_of_source
from daskembed.quantization import KEY, METHOD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.exports.settings import Export
    from daskembed.exports.state import ExportedFile, PlannedFile

SUFFIX = zarr.SUFFIX
FOLDER = ""
UNIT: Literal["range", "tile", "day"] = "tile"


def check(export: Export) -> None:
    """Raise `InputError` if there are no patches."""
    check_patches(export)


def finish(export: Export, written: Sequence[ExportedFile]) -> list[str]:
    """Each store is whole by itself."""
    return []


def write_tile(export: Export, planned: PlannedFile, tile: ExportTile) -> tuple[int, str]:
    """Make the store of a tile; see `daskembed.exports.protocol.TileFormat`.

    In memory are a row group of the published file and a shard; what stands for the SHA-256 is
    `daskembed.output.geozarr.digest`.
    """
    rows = find_rows(export, tile, "a Zarr store")
    made = export.provenance | {
        "tile": tile.tile,
        # Of a published row: patches are cells, whether they are exported by chips or one by one.
        "dims": export.made["dims"],
        "shape": list(export.shape),
    }
    with reading(export, tile, rows) as read:
        about = {"geoemb:source_data": [_source(export, tile)], **_quantization(export)}
        found = zarr_store.write(export.target, planned.name, rows.placed, made, read, about, _numbers(export))
    return found.size, found.sha256


def _source(export: Export, tile: ExportTile) -> str:
    """URL of what the embeddings were made of, or of the output that has them, if its file does not say that."""
    with open_published(export, tile) as file:
        identity = parse_object((file.metadata.metadata or {}).get(b"daskembed", b"{}")).get("identity")
    source = identity.get("source") if isinstance(identity, dict) else None
    return url_of_source(str(source or export.source.url))


def _quantization(export: Export) -> dict[str, Any]:
    """What the root says of how floats come back: by the convention, which knows one scale for all or one a cell.

    So it is named there by its digest, and is said in full beside it.
    """
    if export.calibration is None:
        return {} if export.dtype == "float32" else {"geoemb:quantization": CAST}
    told = {
        "method": METHOD,
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "link": f"urn:daskembed:calibration:{export.calibration.digest}",
    }
    return {"geoemb:quantization": told, KEY: export.calibration.document()}


def _numbers(export: Export) -> dict[str, tuple[str, NDArray[Any]]]:
    """Scale and offset of each component."""
    if export.calibration is None:
        return {}
    of_each = {"scale": export.calibration.scale, "offset": export.calibration.offset}
    return {name: ("embedding", np.array(numbers, np.float32)) for name, numbers in of_each.items()}
