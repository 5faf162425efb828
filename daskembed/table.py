"""Embeddings as dask-geopandas frames: from a lazy array, one partition a block, or from published files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.errors import InputError
from daskembed.storage import Storage

if TYPE_CHECKING:
    import dask_geopandas
    import xarray as xr
    from numpy.typing import NDArray

PARTITION_BYTES = 128 * 2**20
"""Most bytes of vectors in one partition of `open_embeddings`."""


def to_geodataframe(embeddings: xr.DataArray) -> dask_geopandas.GeoDataFrame:
    """A lazy frame of embeddings, one partition a block.

    Parameters
    ----------
    embeddings
        From `daskembed.embed`.

    Returns
    -------
    dask_geopandas.GeoDataFrame
        In OGC:CRS84, with spatial partitions and the columns ``source_url``, ``date``, ``embeddings`` (flat,
        row-major vectors as an Arrow fixed-size list; null where a chip is quarantined), ``quarantined`` (why, or
        null), ``filled`` (values filled) and ``geometry``.

    Raises
    ------
    InputError
        If a coordinate is missing.
    """
    import dask_geopandas

    names = ("source_url", "date", "geometry", "quarantined", "filled")
    if missing := [name for name in names if name not in embeddings.coords]:
        raise InputError(f"the embeddings lack the coordinates {', '.join(missing)}: make them with daskembed.embed")
    inner = dict.fromkeys(embeddings.dims[1:], -1)
    lazy = embeddings if embeddings.chunks is not None else embeddings.chunk()
    arrays = [lazy.chunk(inner).data, lazy.coords["quarantined"].data, lazy.coords["filled"].data]
    blocks = [array.to_delayed(optimize_graph=False).ravel() for array in arrays]
    rows = gpd.GeoDataFrame(
        {
            "source_url": embeddings.coords["source_url"].to_numpy().astype(object),
            "date": embeddings.coords["date"].to_numpy().astype("datetime64[D]").astype(object),
        },
        geometry=embeddings.coords["geometry"].to_numpy(),
        crs="OGC:CRS84",
    )
    ends = np.cumsum(arrays[0].chunks[0])
    row_blocks = [rows.iloc[end - size : end] for end, size in zip(ends, arrays[0].chunks[0], strict=True)]
    meta = block_frame(
        np.empty((0, *arrays[0].shape[1:]), np.float32), np.empty(0, object), np.empty(0, np.int64), rows.iloc[:0]
    )
    make = dask.delayed(block_frame, pure=True)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dask_geopandas.from_dask_dataframe(
            dd.from_delayed([make(*parts) for parts in zip(*blocks, row_blocks, strict=True)], meta=meta)
        )
    frame.spatial_partitions = gpd.GeoSeries([shapely.box(*b.total_bounds) for b in row_blocks], crs="OGC:CRS84")
    return frame


def block_frame(
    vectors: NDArray[np.float32],
    quarantined: NDArray[np.object_],
    filled: NDArray[np.int64],
    rows: gpd.GeoDataFrame,
) -> gpd.GeoDataFrame:
    """One partition of `to_geodataframe`: a block's vectors, ``(chip, ...)``, beside its rows."""
    length = int(np.prod(vectors.shape[1:]))
    # xarray turns the None of a computed object array into NaN.
    reasons = [reason if isinstance(reason, str) else None for reason in quarantined]
    bad = pa.array([reason is not None for reason in reasons], pa.bool_())
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, length, mask=bad)
    return gpd.GeoDataFrame(
        {
            "source_url": pd.array(list(rows["source_url"]), dtype=pd.ArrowDtype(pa.string())),
            "date": pd.array(list(rows["date"]), dtype=pd.ArrowDtype(pa.date32())),
            "embeddings": pd.arrays.ArrowExtensionArray(storage),
            "quarantined": pd.array(reasons, dtype=pd.ArrowDtype(pa.string())),
            "filled": filled,
        },
        geometry=rows.geometry.to_numpy(),
        crs="OGC:CRS84",
    )


def open_embeddings(url: str, *, columns: list[str] | None = None) -> dask_geopandas.GeoDataFrame:
    """All published files of an output folder as one lazy frame.

    Parameters
    ----------
    url
        The run's ``--output``.
    columns
        Columns to read; all by default.

    Returns
    -------
    dask_geopandas.GeoDataFrame
        With spatial partitions, so that ``frame.cx[...]`` and spatial joins read only the files they need; the
        columns are as `geopandas.read_parquet` gives them, ``embeddings`` one flat, row-major array a row.

    Raises
    ------
    InputError
        If there are no published files.
    """
    import dask_geopandas

    storage = Storage(url)
    names = [entry.path for entry in storage.entries(recursive=False) if entry.path.endswith(".gpq")]
    if not names:
        raise InputError(f"no published files (*.gpq) in {storage.url}: make them with `daskembed run --output {url}`")
    with ThreadPoolExecutor(16) as pool:
        pieces = [piece for found in pool.map(lambda name: _pieces(storage, name), names) for piece in found]
    meta = _read_groups(storage, names[0], (), columns)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dask_geopandas.from_dask_dataframe(
            dd.from_map(
                _read_groups,
                [storage] * len(pieces),
                [name for name, _, _ in pieces],
                [groups for _, groups, _ in pieces],
                columns=columns,
                meta=meta,
                enforce_metadata=False,
            )
        )
    if columns is None or "geometry" in columns:
        frame.spatial_partitions = gpd.GeoSeries([bounds for _, _, bounds in pieces], crs="OGC:CRS84")
    return frame


def _open(storage: Storage, name: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_reader(name))


def _pieces(storage: Storage, name: str) -> list[tuple[str, tuple[int, ...], Any]]:
    """Partitions of a file: its name, row groups and bounds."""
    with _open(storage, name) as file:
        metadata = file.metadata
        bounds = shapely.box(*json.loads(metadata.metadata[b"geo"])["columns"]["geometry"]["bbox"])
        pieces, groups, size = [], [], 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            size += metadata.row_group(group).total_byte_size
            if size >= PARTITION_BYTES or group == metadata.num_row_groups - 1:
                pieces.append((name, tuple(groups), bounds))
                groups, size = [], 0
        return pieces


def _read_groups(storage: Storage, name: str, groups: tuple[int, ...], columns: list[str] | None) -> gpd.GeoDataFrame:
    with _open(storage, name) as file:
        table = file.read_row_groups(list(groups), columns=columns)
    frame = table.to_pandas()
    if "geometry" not in frame:
        return frame
    return gpd.GeoDataFrame(frame).set_geometry(gpd.GeoSeries.from_wkb(frame["geometry"], crs="OGC:CRS84"))
