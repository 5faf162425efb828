"""Published files opened as one dask-geopandas frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from shapely.errors import ShapelyError

from daskembed.documents import parse_object
from daskembed.errors import InputError
from daskembed.geo import wkb
from daskembed.geo.footprints import box
from daskembed.kinds import APART, Kind, choose, kind_of
from daskembed.output.published import of_version
from daskembed.paths import StrPath, as_text
from daskembed.quantization import KEY
from daskembed.storage.stores import Storage
from daskembed.vectors import VectorDtype

if TYPE_CHECKING:
    import dask_geopandas
    import shapely


PARTITION_BYTES = 128 * 2**20
"""Most bytes of vectors in one partition of `open_embeddings`."""


def open_embeddings(
    output: StrPath,
    *,
    columns: list[str] | None = None,
    encoder: str | None = None,
    level: str | None = None,
    version: str | None = None,
) -> dask_geopandas.GeoDataFrame:
    """The published GeoParquet files of an output folder, or those of an export, as one lazy frame.

    Parameters
    ----------
    output
        Folder or URL of the published files, or of an export.
    columns
        Columns to read; by default all but the boxes of an export.
    encoder, level
        Only files that say in their footers that they are of this encoder, such as ``clay-v0``, or of this level.
    version
        Only files with this version in their names, which those of exports have not.

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

    output = as_text(output)
    storage = Storage(output)
    found = [entry.path for entry in storage.entries(recursive=False)]
    # An export has no others; beside published files, Parquet files are somebody else's.
    names = [name for name in found if name.endswith(".gpq")] or [name for name in found if name.endswith(".parquet")]
    if not names:
        raise InputError(_nothing(storage, output))
    if version is not None:
        names = of_version(names, version, storage.url)
    with ThreadPoolExecutor(16) as pool:
        opened = dict(zip(names, pool.map(lambda name: _look(storage, name), names), strict=True))
    # Versions of one kind go together, and those of several may tell these apart.
    chosen = choose(storage.url, opened, encoder, level, version, f"choose by `version`, or {APART}")
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
    calibration: str
    """Digest of the one with which its values became int8; empty if they are floats."""

    @property
    def kind(self) -> Kind:
        """What has to be the same in one frame."""
        told = {"dtype": str(self.made["dtype"])} if self.made.get("dtype") is not None else {}
        if self.calibration:
            told["calibration"] = self.calibration
        return kind_of(self.made, ("encoder", "size", "sensor", "window", "level"), **told)


def _nothing(storage: Storage, output: str) -> str:
    """Why there is nothing to open."""
    stores = [name for name in storage.folders() if name.endswith(".zarr")]
    if stores:
        return (
            f"{storage.url} holds Zarr stores and no GeoParquet files: open one with "
            f"xarray.open_zarr({storage.url_of(stores[0])!r})"
        )
    return f"no published files (*.gpq) in {storage.url}: make them with daskembed.run(..., output={output!r})"


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
        return _Look(made, pieces, str(parse_object(footer.get(KEY.encode(), b"{}")).get("digest", "")))


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
        if columns is None:
            columns = [column for column in file.schema_arrow.names if column != "bbox"]
        table = file.read_row_groups(list(groups), columns=columns)
        places = None
        if "geometry" in table.column_names:
            wkb.check(values := table["geometry"].to_pylist())
            places = gpd.GeoSeries.from_wkb(values, crs="OGC:CRS84")
    frame = table.to_pandas(types_mapper=_column_type)
    if places is not None:
        frame = gpd.GeoDataFrame(frame).set_geometry(places)
    if how := (table.schema.metadata or {}).get(KEY.encode()):
        frame.attrs[KEY] = how.decode()  # for `daskembed.dequantize`
    return frame


def _column_type(kind: pa.DataType) -> Any:
    """Of a column of this kind in Arrow; None leaves it to pandas. Columns of objects tell Dask no schema of files."""
    return pd.ArrowDtype(kind) if pa.types.is_date32(kind) else VectorDtype.of(kind)
