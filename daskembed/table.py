"""Embeddings as dask-geopandas frames: from a lazy array, one partition a block, or from published files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from shapely.errors import ShapelyError

from daskembed.cube import INSIDE
from daskembed.documents import parse_object
from daskembed.errors import InputError
from daskembed.geo import wkb
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import bounding_box, box
from daskembed.output.receipts import check_version
from daskembed.sources.frame import EDGES
from daskembed.storage.stores import Storage
from daskembed.vectors import VectorArray, VectorDtype

if TYPE_CHECKING:
    import dask_geopandas
    import shapely
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
        In OGC:CRS84, with spatial partitions and the columns ``source_url``, ``chip_url`` (of its chip), ``date``,
        ``embeddings`` (a flat, row-major array a row, `daskembed.vectors.VectorDtype`; None where a chip is quarantined
        or rejected), ``quarantined`` and ``rejected`` (why, or null), ``filled`` (values filled), ``noted`` (what is
        unusual about its pixels, or null), ``epsg``, ``west``, ``south``, ``east`` and ``north`` (bounds in ``epsg``),
        ``coverage`` (share of the pixels that are in the image; these six if the embeddings have them), and
        ``geometry``. Where an
        encoder sees several windows of a chip, each is a row, its ``source_url`` followed by ``#window=Y,X`` (pixels).

    Raises
    ------
    InputError
        If a coordinate is missing.
    """
    import dask_geopandas

    found = ("quarantined", "rejected", "filled", "noted")
    if missing := [name for name in ("source_url", "date", "geometry", *found) if name not in embeddings.coords]:
        raise InputError(f"the embeddings lack the coordinates {', '.join(missing)}: make them with daskembed.embed")
    inner = dict.fromkeys(embeddings.dims[1:], -1)
    lazy = embeddings if embeddings.chunks is not None else embeddings.chunk()
    arrays = [lazy.chunk(inner).data, *(lazy.coords[name].data for name in found)]
    blocks = [array.to_delayed(optimize_graph=False).ravel() for array in arrays]
    rows = _rows(embeddings)
    windows = embeddings.sizes.get("window", 1)
    ends = np.cumsum(arrays[0].chunks[0]) * windows
    sizes = np.array(arrays[0].chunks[0]) * windows
    row_blocks = [rows.iloc[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    nothing = (np.empty(0, object), np.empty(0, object), np.empty(0, np.int64), np.empty(0, object))
    meta = block_frame(np.empty((0, *arrays[0].shape[1:]), np.float32), *nothing, rows.iloc[:0], windows)
    make = dask.delayed(block_frame, pure=True)
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dask_geopandas.from_dask_dataframe(
            dd.from_delayed([make(*parts, windows) for parts in zip(*blocks, row_blocks, strict=True)], meta=meta)
        )
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
        places |= _window_bounds(places, math.isqrt(windows))
        urls = window_urls(urls, windows)
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


def _window_bounds(places: dict[str, NDArray[Any]], across: int) -> dict[str, NDArray[Any]]:
    west, north = places["west"], places["north"]
    width, height = (places["east"] - west) / across, (north - places["south"]) / across
    row, col = np.divmod(np.arange(len(west)) % across**2, across)
    top, left = north - row * height, west + col * width
    return {"west": left, "south": top - height, "east": left + width, "north": top}


def block_frame(
    vectors: NDArray[np.float32],
    quarantined: NDArray[np.object_],
    rejected: NDArray[np.object_],
    filled: NDArray[np.int64],
    noted: NDArray[np.object_],
    rows: gpd.GeoDataFrame,
    windows: int = 1,
) -> gpd.GeoDataFrame:
    """One partition of `to_geodataframe`: a block's vectors, ``(chip, ...)``, beside its rows, `windows` a chip."""
    length = int(np.prod(vectors.shape[1:])) // windows
    # xarray turns the None of a computed object array into NaN.
    reasons = {
        name: [reason if isinstance(reason, str) else None for reason in np.repeat(found, windows)]
        for name, found in (("quarantined", quarantined), ("rejected", rejected), ("noted", noted))
    }
    notes = reasons.pop("noted")
    bad = np.array([whys != (None, None) for whys in zip(*reasons.values(), strict=True)], bool)
    strings = pd.ArrowDtype(pa.string())
    others = [name for name in rows.columns if name not in ("source_url", "chip_url", "date", "geometry")]
    return gpd.GeoDataFrame(
        {
            "source_url": pd.array(list(rows["source_url"]), dtype=strings),
            "chip_url": pd.array(list(rows["chip_url"]), dtype=strings),
            "date": pd.array(list(rows["date"]), dtype=pd.ArrowDtype(pa.date32())),
            "embeddings": VectorArray(np.ascontiguousarray(vectors).reshape(-1, length), bad),
            **{name: pd.array(found, dtype=strings) for name, found in reasons.items()},
            "filled": np.repeat(filled, windows),
            "noted": pd.array(notes, dtype=strings),
            **{name: rows[name].to_numpy() for name in others},
        },
        geometry=rows.geometry.to_numpy(),
        crs="OGC:CRS84",
    )


def open_embeddings(
    url: str,
    *,
    columns: list[str] | None = None,
    encoder: str | None = None,
    level: str | None = None,
    version: str | None = None,
) -> dask_geopandas.GeoDataFrame:
    """The published GeoParquet files of an output folder as one lazy frame.

    Parameters
    ----------
    url
        The run's ``--output``.
    columns
        Columns to read; all by default.
    encoder, level
        Only files that say in their footers that they are of this encoder, such as ``clay-v0``, or of this level.
    version
        Only files with this version in their names.

    Returns
    -------
    dask_geopandas.GeoDataFrame
        With spatial partitions, so that ``frame.cx[...]`` and spatial joins read only the files they need; the
        columns hold what `geopandas.read_parquet` gives, ``embeddings`` one flat, row-major array a row
        (`daskembed.vectors.VectorDtype`), ``date`` Arrow's ``date32``: with these, ``frame.to_parquet(...)`` works.

    Raises
    ------
    InputError
        If there are no such files, one cannot be read, or they are of several encoders, levels or types and it is not
        said which.
    """
    import dask_geopandas

    storage = Storage(url)
    names = [entry.path for entry in storage.entries(recursive=False) if entry.path.endswith(".gpq")]
    if not names:
        raise InputError(_nothing(storage, url))
    if version is not None:
        names = [name for name in names if name.endswith(f"_v{check_version(version)}.gpq")]
    with ThreadPoolExecutor(16) as pool:
        opened = dict(zip(names, pool.map(lambda name: _look(storage, name), names), strict=True))
    chosen = {
        name: look
        for name, look in opened.items()
        if (encoder is None or look.made.get("encoder") == encoder)
        and (level is None or look.made.get("level") == level)
    }
    if not chosen:
        wanted = (("encoder", encoder), ("level", level), ("version", version))
        what = ", ".join(f"{name} {value}" for name, value in wanted if value is not None)
        raise InputError(f"no published files of {what} in {storage.url}; {_mixture(opened)}")
    if len({look.kind for look in chosen.values()}) > 1:
        raise InputError(
            f"{storage.url} mixes embeddings that do not go into one frame: {_mixture(chosen)}; choose with "
            "encoder=..., level=... or version=..."
        )
    pieces = [piece for look in chosen.values() for piece in look.pieces]
    meta = _read_groups(storage, next(iter(chosen)), (), columns)
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


@dataclass(frozen=True)
class _Look:
    """What a file's footer says."""

    made: dict[str, Any]
    """How it was made; empty if it was not made by this package."""
    pieces: list[tuple[str, tuple[int, ...], Any]]
    """Partitions: its name, row groups and bounds."""

    @property
    def kind(self) -> tuple[str, ...]:
        """What has to be the same in one frame."""
        known = (self.made.get(name) for name in ("encoder", "size", "sensor", "window", "level", "dtype"))
        return tuple(str(value) for value in known if value is not None)


def _nothing(storage: Storage, url: str) -> str:
    """Why there is nothing to open."""
    stores = [name for name in storage.folders() if name.endswith(".zarr")]
    if stores:
        return (
            f"{storage.url} holds Zarr stores and no GeoParquet files: open one with "
            f"xarray.open_zarr({storage.url_of(stores[0])!r})"
        )
    return f"no published files (*.gpq) in {storage.url}: make them with `daskembed run --output {url}`"


def _mixture(opened: dict[str, _Look]) -> str:
    """Which kinds of files there are, and one of each."""
    kinds = {look.kind: name for name, look in reversed(opened.items())}
    return "; ".join(f"{' '.join(kind) or 'unknown'} in {kinds[kind]}" for kind in sorted(kinds)) or "there are others"


def _look(storage: Storage, name: str) -> _Look:
    with _naming(storage, name), _open(storage, name) as file:
        metadata = file.metadata
        footer = metadata.metadata or {}
        made = parse_object(footer.get(b"daskembed", b"{}"))
        bounds = _bounds(footer)
        pieces, groups, size = [], [], 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            size += metadata.row_group(group).total_byte_size
            if size >= PARTITION_BYTES or group == metadata.num_row_groups - 1:
                pieces.append((name, tuple(groups), bounds))
                groups, size = [], 0
        return _Look(made, pieces)


@contextlib.contextmanager
def _naming(storage: Storage, name: str) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{storage.url_of(name)} is gone: open the folder again") from None
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        pyproj.exceptions.CRSError,
        ShapelyError,
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{storage.url_of(name)} cannot be read as GeoParquet: {type(error).__name__}: {said}; "
            "`daskembed validate` says more; remove it, or have its tile made again"
        ) from None


def _bounds(footer: dict[bytes, bytes]) -> shapely.Geometry:
    """The area that a file's footer says, which may be none, or reach across the antimeridian."""
    if b"geo" not in footer:
        raise ValueError("no `geo` in its footer")
    column = parse_object(footer[b"geo"])["columns"]["geometry"]
    if column["encoding"] != "WKB" or pyproj.CRS.from_user_input(column.get("crs", "OGC:CRS84")) != "OGC:CRS84":
        raise ValueError("its geometries are not WKB in OGC:CRS84")
    bbox = column.get("bbox", [-180, -90, 180, 90])
    west, south, east, north = (bbox[edge] for edge in ((0, 1, 3, 4) if len(bbox) == 6 else range(4)))
    return box(west, south, east, north)


def _read_groups(storage: Storage, name: str, groups: tuple[int, ...], columns: list[str] | None) -> gpd.GeoDataFrame:
    with _naming(storage, name), _open(storage, name) as file:
        table = file.read_row_groups(list(groups), columns=columns)
        places = None
        if "geometry" in table.column_names:
            wkb.check(values := table["geometry"].to_pylist())
            places = gpd.GeoSeries.from_wkb(values, crs="OGC:CRS84")
    frame = table.to_pandas(types_mapper=_column_type)
    return frame if places is None else gpd.GeoDataFrame(frame).set_geometry(places)


def _column_type(kind: pa.DataType) -> Any:
    """Of a column of this kind in Arrow; None leaves it to pandas. Columns of objects tell Dask no schema of files."""
    return pd.ArrowDtype(kind) if pa.types.is_date32(kind) else VectorDtype.of(kind)
