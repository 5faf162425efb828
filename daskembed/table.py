"""Embeddings of a lazy array as a dask-geopandas frame: a partition a block, a row a chip or window."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa

from daskembed.cube import INSIDE
from daskembed.errors import InputError
from daskembed.fates import FATE_DTYPES, SAID
from daskembed.geo.cells import EDGES, window_bounds
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import bounding_box, box
from daskembed.vectors import VectorArray

if TYPE_CHECKING:
    import dask_geopandas
    import xarray as xr
    from numpy.typing import NDArray


def to_geodataframe(embeddings: xr.DataArray) -> dask_geopandas.GeoDataFrame:
    """A lazy frame of embeddings, one partition a block.

    Parameters
    ----------
    embeddings
        From `daskembed.embed`.

    Returns
    -------
    dask_geopandas.GeoDataFrame
        In OGC:CRS84, with spatial partitions and the columns ``source_url``, ``chip_url`` (of its chip), ``date``,
        ``embeddings`` (a flat, row-major array a row, `daskembed.vectors.VectorDtype`; None where a chip is quarantined
        or rejected), ``quarantined`` and ``rejected`` (why, or null), ``filled`` (values filled), ``noted`` (what is
        unusual about its pixels, or null), ``cloud`` (share of its chip that shows no ground by its scene
        classification, or NaN), ``datetime`` (UTC, or NaT), ``epsg``, ``west``, ``south``, ``east`` and ``north``
        (bounds in ``epsg``), ``coverage`` (share of the pixels that are in the image; these seven if the embeddings
        have them), and ``geometry``. Where an encoder sees several windows of a chip, each is a row, its
        ``source_url`` followed by ``#window=Y,X`` (pixels).

    Raises
    ------
    InputError
        If a coordinate is missing.
    """
    import dask_geopandas

    if missing := [name for name in ("source_url", "date", "geometry", *SAID) if name not in embeddings.coords]:
        raise InputError(f"the embeddings lack the coordinates {', '.join(missing)}: make them with daskembed.embed")
    inner = dict.fromkeys(embeddings.dims[1:], -1)
    lazy = embeddings if embeddings.chunks is not None else embeddings.chunk()
    vectors = lazy.chunk(inner).data
    unknown = da.full(len(vectors), np.nan, chunks=vectors.chunks[:1])
    # What earlier versions made has no clouds.
    arrays = [vectors, *(lazy.coords[name].data if name in lazy.coords else unknown for name in FATE_DTYPES)]
    blocks = [array.to_delayed(optimize_graph=False).ravel() for array in arrays]
    rows = _rows(embeddings)
    windows = embeddings.sizes.get("window", 1)
    ends = np.cumsum(arrays[0].chunks[0]) * windows
    sizes = np.array(arrays[0].chunks[0]) * windows
    row_blocks = [rows.iloc[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    empty = [np.empty((0, *array.shape[1:]), array.dtype) for array in arrays]
    meta = block_frame(*empty, rows=rows.iloc[:0], windows=windows)
    make = dask.delayed(block_frame, pure=True)
    parts = [make(*found, rows=part, windows=windows) for *found, part in zip(*blocks, row_blocks, strict=True)]
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dask_geopandas.from_dask_dataframe(dd.from_delayed(parts, meta=meta))
    frame.spatial_partitions = gpd.GeoSeries(
        [box(*bounding_box(b.geometry.to_numpy())) for b in row_blocks], crs="OGC:CRS84"
    )
    return frame


def _rows(embeddings: xr.DataArray) -> gpd.GeoDataFrame:
    """What is known of each row before anything is computed."""
    coords = embeddings.coords
    windows = embeddings.sizes.get("window", 1)
    urls, footprints = coords["source_url"].to_numpy(), coords["geometry"].to_numpy()
    places = {name: np.repeat(coords[name].to_numpy(), windows) for name in ("epsg", *EDGES) if name in coords}
    if "window" in embeddings.dims:
        footprints = coords["footprint"].to_numpy().reshape(-1)
        chips = np.stack([coords[edge].to_numpy() for edge in EDGES], axis=1)
        places |= dict(zip(EDGES, window_bounds(chips, math.isqrt(windows)).reshape(-1, 4).T, strict=True))
        urls = window_urls(urls, windows)
    if "datetime" in coords:
        places["datetime"] = pd.DatetimeIndex(np.repeat(coords["datetime"].to_numpy(), windows)).tz_localize("UTC")
    dates = coords["date"].to_numpy().astype("datetime64[D]").astype(object)
    return gpd.GeoDataFrame(
        {
            "source_url": list(urls),
            "chip_url": np.repeat(coords["source_url"].to_numpy().astype(object), windows),
            "date": np.repeat(dates, windows),
            **places,
            **_coverage(coords, windows),
        },
        geometry=list(footprints),
        crs="OGC:CRS84",
    )


def _coverage(coords: Any, windows: int) -> dict[str, NDArray[np.float64]]:
    """Share of the pixels of each row that are in the image, if it is known."""
    if not all(name in coords for name in INSIDE):
        return {}
    return {"coverage": window_shares(np.stack([coords[name].to_numpy() for name in INSIDE], axis=1), windows)}


def window_urls(urls: Iterable[str], windows: int) -> list[str]:
    """The ``source_url`` of each row of some chips, of `windows` a chip."""
    across = math.isqrt(windows)
    side = CHIP // across
    starts = [f"window={row * side},{col * side}" for row, col in np.ndindex(across, across)]
    return [f"{url}{'&' if '#' in url else '#'}{start}" for url in urls for start in starts]


def window_shares(inside: NDArray[np.integer[Any]], windows: int) -> NDArray[np.float64]:
    """Share of the pixels of each row that are in the image; `inside` is how many of a chip's are, ``(chip, y x)``."""
    across = math.isqrt(windows)
    side = CHIP // across
    starts = side * np.stack(np.divmod(np.arange(windows), across), axis=1)
    shares: NDArray[np.float64] = np.prod(np.clip(inside[:, None] - starts, 0, side) / side, axis=-1)
    return shares.reshape(-1)


def block_frame(
    vectors: NDArray[np.float32], *fates: NDArray[Any], rows: gpd.GeoDataFrame, windows: int = 1
) -> gpd.GeoDataFrame:
    """One partition of `to_geodataframe`: a block's vectors, ``(chip, ...)``, beside its rows, `windows` a chip.

    `fates` are what became of the chips, the parts of `Fate` in their order, ``(chip,)``.
    """
    length = int(np.prod(vectors.shape[1:])) // windows
    strings = pd.ArrowDtype(pa.string())

    def column(found: NDArray[Any]) -> Any:
        if found.dtype == object:
            # xarray turns the None of a computed object array into NaN.
            return pd.array([one if isinstance(one, str) else None for one in found], dtype=strings).repeat(windows)
        return found.repeat(windows)

    became = {name: column(found) for name, found in zip(FATE_DTYPES, fates, strict=True)}
    bad = ~(pd.isna(became["quarantined"]) & pd.isna(became["rejected"]))
    others = [name for name in rows.columns if name not in ("source_url", "chip_url", "date", "geometry")]
    return gpd.GeoDataFrame(
        {
            "source_url": pd.array(list(rows["source_url"]), dtype=strings),
            "chip_url": pd.array(list(rows["chip_url"]), dtype=strings),
            "date": pd.array(list(rows["date"]), dtype=pd.ArrowDtype(pa.date32())),
            "embeddings": VectorArray(np.ascontiguousarray(vectors).reshape(-1, length), bad),
            **became,
            **{name: rows[name].array for name in others},
        },
        geometry=rows.geometry.to_numpy(),
        crs="OGC:CRS84",
    )
