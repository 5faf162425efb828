"""Files of embeddings with any vectors, as this package publishes them, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

MADE = {"encoder": "clay-v0", "size": "small", "checkpoint": "clay-v0.ckpt", "sha256": "ab" * 32}
DAY = date(2022, 6, 10)


def squares(count: int, lon: float = 12.0, lat: float = 45.0, across: int = 10, side: float = 0.05) -> list[Any]:
    """Footprints in rows from the north-west, in degrees."""
    rows, cols = np.divmod(np.arange(count), across)
    west, north = lon + cols * side, lat - rows * side
    return list(shapely.box(west, north - side, west + side, north))


def url_of(number: int, tile: str = "33TUL") -> str:
    """Of a chip."""
    return f"s3://chips/{tile}/chip_{number:06d}.tif"


def write_rows(
    path: Path,
    vectors: NDArray[Any],
    *,
    footprints: Sequence[Any] | None = None,
    days: Sequence[date] | None = None,
    tile: str = "33TUL",
    made: dict[str, Any] | None = None,
    group: int = 1000,
    footer: dict[str, Any] | None = None,
    columns: dict[str, Any] | None = None,
    covering: bool = False,
) -> Path:
    """Write a file.

    Parameters
    ----------
    path
        Of the file.
    vectors
        ``(row, ...)``, in any type.
    footprints, days
        Of the rows; by default `squares`, all of one day.
    made
        What the footer says of that under ``daskembed``; None for files of others.
    group
        Rows of a row group.
    footer, columns
        More of them.
    covering
        Whether each row has its box.
    """
    count, shape = len(vectors), vectors.shape[1:]
    shapes = np.array(squares(count) if footprints is None else footprints, object)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), int(np.prod(shape)))
    kind = pa.fixed_shape_tensor(lists.type.value_type, shape)
    table: dict[str, Any] = {
        "source_url": pa.array([url_of(number, tile) for number in range(count)]),
        "date": pa.array([DAY] * count if days is None else days, pa.date32()),
        "embeddings": pa.ExtensionArray.from_storage(kind, lists),
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        **(columns or {}),
    }
    geo: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "bbox": list(shapely.total_bounds(shapes))}
    if covering:
        edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(pa.array, shapely.bounds(shapes).T), strict=True))
        table["bbox"] = pa.StructArray.from_arrays(list(edges.values()), list(edges))
        geo["covering"] = {"bbox": {edge: ["bbox", edge] for edge in edges}}
    metadata = {"geo": json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geo}})}
    if made is not None:
        metadata["daskembed"] = json.dumps({"level": "mean", "shape": list(shape), **made})
    metadata |= {key: json.dumps(value) for key, value in (footer or {}).items()}
    whole = pa.table(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole.replace_schema_metadata(metadata), path, row_group_size=group, compression="zstd")
    return path
