"""Which files are searched, and what their footers say: published ones, exports, and others with such columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely.errors import ShapelyError

from daskembed.documents import parse_object
from daskembed.errors import InputError
from daskembed.explore.columns import check_columns, check_places
from daskembed.geo.footprints import box
from daskembed.kinds import Kind, choose, kind_of
from daskembed.output.published import of_version, version_of
from daskembed.storage.stores import Storage, split_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".gpq", ".parquet")
_NAMES = {
    "vectors": ("embeddings", "embedding"),
    "url": ("source_url", "chip_url", "product_id", "unique_id"),
    "date": ("date", "datetime", "timestamp"),
    "row": ("row",),
    "col": ("col",),
}
"""What columns are called, ours first."""


@dataclass(frozen=True)
class Affine:
    """How whole numbers stand for values: ``x = q * scale + offset``, by dimension."""

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A row group: what is read at a time, and what its file's footer says of it."""

    file: str
    group: int
    rows: int
    """In the file: each has as many vectors as there are patches in it."""
    bounds: tuple[float, float, float, float] | None
    """West, south, east and north, in degrees, of its rows; None if nothing says that."""
    days: tuple[date, date] | None
    """First and last; likewise."""
    urls: tuple[str, str] | None
    """First and last of its rows' URLs by the alphabet; likewise."""


@dataclass(frozen=True)
class Rows:
    """The rows of some files that go together; it pickles as what it was read of footers."""

    storage: Storage
    pieces: tuple[Piece, ...]
    made: dict[str, Any] = field(repr=False)
    """What the footers say of how the vectors were made; empty if they were not made by this package."""
    shape: tuple[int, ...]
    """Of a row's embedding."""
    dtype: str
    affine: Affine | None = field(repr=False)
    """Of int8."""
    names: dict[str, str]
    """What is in a column -> what that is called in these files."""
    footers: dict[str, pq.FileMetaData] = field(repr=False)
    """File -> its footer, which need not be read again."""
    dates: tuple[date, date] | None = None
    """First and last day of the rows that are wanted."""
    region: str | None = field(default=None, repr=False)
    """WKT in OGC:CRS84 that these have to meet."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a row, down and across; (1, 1) if a row has one vector."""
        return (self.shape[-3], self.shape[-2]) if len(self.shape) > 2 else (1, 1)

    @property
    def patches(self) -> int:
        """How many vectors a row has."""
        return self.grid[0] * self.grid[1]

    @property
    def dims(self) -> int:
        """Values of a vector; of patches with several groups all of them, one after the other."""
        return int(np.prod(self.shape)) // self.patches

    @property
    def vectors(self) -> int:
        """How many there are in the pieces, wanted or not."""
        return sum(piece.rows for piece in self.pieces) * self.patches

    @property
    def vector_bytes(self) -> int:
        """Of one, as it is stored."""
        return self.dims * np.dtype(self.dtype).itemsize

    @property
    def version(self) -> str | None:
        """In the names of the files; None if there is none."""
        return version_of(self.pieces[0].file) if self.pieces else None

    @property
    def untrained(self) -> bool:
        """Whether the weights were drawn from a seed."""
        return bool(self.made.get("untrained")) or str(self.made.get("checkpoint", "")).startswith("untrained:")

    def within(self, dates: tuple[date, date] | None, region: str | None) -> Rows:
        """Those of some days and of a region, without the pieces that have none, as footers say."""
        area = None if region is None else shapely.from_wkt(region)
        kept = [
            piece
            for piece in self.pieces
            if (area is None or piece.bounds is None or shapely.intersects(area, box(*piece.bounds)))
            and (dates is None or piece.days is None or (piece.days[0] <= dates[1] and piece.days[1] >= dates[0]))
        ]
        return replace(self, pieces=tuple(kept), dates=dates, region=region)


def open_rows(output: str, *, encoder: str | None = None, level: str | None = None, version: str | None = None) -> Rows:
    """The rows of all files of a folder, or of one file; reads their footers.

    Parameters
    ----------
    output
        Folder or URL of published files (``.gpq``) or of an export (``.parquet``), or of one such file.
    encoder, level
        Only files that say in their footers that they are of these.
    version
        Only files with this version in their names.

    Raises
    ------
    InputError
        If there are no such files, one cannot be read, or they do not go together: it says what can be chosen.
    """
    storage, names = _files(output)
    if version is not None:
        names = of_version(names, version, storage.url)
    with ThreadPoolExecutor(16) as pool:
        looked = dict(zip(names, pool.map(lambda name: _look(storage, name), names), strict=True))
    looked = {name: look for name, look in looked.items() if look.rows.pieces}
    if names and not looked:
        raise InputError(f"the files of embeddings in {storage.url} have no rows: there is nothing to search")
    chosen = choose(storage.url, looked, encoder, level, version)
    first = next(iter(chosen.values()))
    footers = {name: footer for look in chosen.values() for name, footer in look.rows.footers.items()}
    pieces = tuple(piece for look in chosen.values() for piece in look.rows.pieces)
    return replace(first.rows, pieces=pieces, footers=footers)


@dataclass(frozen=True)
class _Look:
    """What a file's footer says."""

    made: dict[str, Any]
    rows: Rows
    kind: Kind
    """What has to be the same in all files."""


def _files(output: str) -> tuple[Storage, list[str]]:
    """Where files are, and which."""
    if output.endswith(SUFFIXES):
        storage, name = split_url(output)
        if any(entry.path == name for entry in storage.entries(recursive=False)):
            return storage, [name]
    storage = Storage(output)
    storage.check_exists()
    names = [entry.path for entry in storage.entries(recursive=False) if entry.path.endswith(SUFFIXES)]
    if names:
        return storage, names
    folders = storage.folders()
    if tables := [name for name in folders if name.endswith(".lance")]:
        raise InputError(f"{storage.url} is an export as a table of Lance: search {storage.url_of(tables[0])}")
    stores = [name for name in folders if name.endswith(".zarr")]
    why = ", only Zarr stores: a search reads the GeoParquet files of a run" if stores else ""
    raise InputError(
        f"no files of embeddings (*.gpq, *.parquet) in {storage.url}{why}; give the `output` of a run or an export"
    )


@contextlib.contextmanager
def opened(storage: Storage, name: str, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, whose `footer` may be known; what is wrong with it is told with its name."""
    url = storage.url_of(name)
    try:
        with pq.ParquetFile(storage.open_reader(name), metadata=footer) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{url} is gone: search again") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, ShapelyError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{url} cannot be searched: {type(error).__name__}: {said}; remove it, or have it made again (`daskembed "
            "validate` says more of published files)"
        ) from None


def _look(storage: Storage, name: str) -> _Look:
    with opened(storage, name) as file:
        metadata, schema = file.metadata, file.schema_arrow
        footer = metadata.metadata or {}
        made = parse_object(footer.get(b"daskembed", b"{}"))
        names = {
            what: found
            for what, known in _NAMES.items()
            if (found := next((n for n in known if n in schema.names), ""))
        }
        if "vectors" not in names or "geometry" not in schema.names:
            raise ValueError(f"it has the columns {', '.join(schema.names)}: expected embeddings and geometry")
        geo = parse_object(footer.get(b"geo", b"{}"))
        if not metadata.num_rows:
            return _Look(made, Rows(storage, (), made, (0,), "", None, names, {}), {})
        check_columns(schema, names, geo)
        shape, dtype = _shape(file, names, made)
        affine = None
        if dtype == "int8":
            affine = _affine(footer, int(np.prod(shape)), shape)
        elif dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"its vectors are of {dtype}, expected floating-point numbers or int8")
        paths = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
        bounds = _bounds(geo)
        pieces = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if not group.num_rows:
                continue
            check_places(group, paths.get("geometry"))
            days = _limits(group, paths.get(names.get("date", "")))
            urls = _limits(group, paths.get(names.get("url", "")))
            known_days = days if days and type(days[0]) is date else None
            pieces.append(Piece(name, number, group.num_rows, _covering(group, paths, geo) or bounds, known_days, urls))
    more = {"shape": "x".join(map(str, shape)), "dtype": dtype, "version": version_of(name) or "none"}
    if affine is not None:
        more["calibration"] = str(hash(affine.scale.tobytes() + affine.offset.tobytes()))
    rows = Rows(storage, tuple(pieces), made, shape, dtype, affine, names, {name: metadata})
    return _Look(made, rows, kind_of(made, **more))


def _shape(file: pq.ParquetFile, names: dict[str, str], made: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Shape of a row's embedding and type of its numbers."""
    kind = file.schema_arrow.field(names["vectors"]).type
    lists = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    value = str(np.dtype(lists.value_type.to_pandas_dtype()))
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape), value
    if pa.types.is_fixed_size_list(lists):
        length = lists.list_size
    else:
        # Lists that say no length, as the reference writes them.
        batch = next(file.iter_batches(1, columns=[names["vectors"]]), None)
        length = len(batch.column(0)[0]) if batch is not None and len(batch) else 0
    said = tuple(made.get("shape") or ())
    # Rows that are whole chips are flat in exports, and the footer says what they were.
    return (said if "row" not in names and said and np.prod(said) == length else (length,)), value


def _affine(footer: dict[bytes, bytes], length: int, shape: tuple[int, ...]) -> Affine:
    if b"quantization" not in footer:
        raise ValueError("its vectors are of int8, and its footer has no `quantization` that says what they stand for")
    said = parse_object(footer[b"quantization"])
    scale = np.atleast_1d(np.array(said["scale"], np.float64))
    if "offset" in said:
        offset = np.atleast_1d(np.array(said["offset"], np.float64))
    else:
        offset = -np.atleast_1d(np.array(said["zero_point"], np.float64)) * scale
    patches = shape[-3] * shape[-2] if len(shape) > 2 else 1
    dims = length // patches
    if dims % len(scale) or dims % len(offset):
        raise ValueError(f"its `quantization` has {len(scale)} scales, expected one a dimension of {dims}")
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        raise ValueError("its `quantization` has NaN or infinity, expected numbers")
    return Affine(np.tile(scale, dims // len(scale)), np.tile(offset, dims // len(offset)))


def _bounds(geo: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """The area that a file's footer says."""
    bbox = geo.get("columns", {}).get("geometry", {}).get("bbox")
    if bbox is None:
        return None
    west, south, east, north = (float(bbox[edge]) for edge in ((0, 1, 3, 4) if len(bbox) == 6 else range(4)))
    return west, south, east, north


def _covering(group: Any, paths: dict[str, int], geo: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """The area that the boxes of a row group's rows reach over, as its statistics say."""
    covering = geo.get("columns", {}).get("geometry", {}).get("covering", {}).get("bbox")
    if covering is None:
        return None
    found = {edge: _limits(group, paths.get(".".join(path))) for edge, path in covering.items()}
    west, south, east, north = (found.get(edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
    # Of rows across 180 degrees west is more than east: what lies between the others is not known then.
    if (
        west is None
        or south is None
        or east is None
        or north is None
        or west[0] > east[0]
        or west[1] > east[1]
        or east[1] - west[0] > 180
    ):
        return None
    return float(west[0]), float(south[0]), float(east[1]), float(north[1])


def _limits(group: Any, column: int | None) -> tuple[Any, Any] | None:
    """Smallest and largest value of a column in a row group."""
    if column is None:
        return None
    statistics = group.column(column).statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
