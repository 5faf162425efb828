"""Published files checked: against the format, their names, what they say of themselves, and their receipts."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError, InputError
from daskembed.geo import wkb
from daskembed.geo.footprints import at_tile, place_of
from daskembed.geo.mgrs import check_tile, square_of
from daskembed.output import zarr
from daskembed.output.protocol import DTYPES, SINKS, Published, get_sink
from daskembed.output.receipts import Receipt, read_receipt, receipt_path
from daskembed.output.validate.bounds import KEPT_BYTES, TEXT_BYTES, decode, rows_at_once, too_much
from daskembed.storage.stores import Storage, split_url
from daskembed.storage.urls import is_local, local_path
from daskembed.text import visible

HASHED_BYTES = 8 * 2**20
MOST_TOLD = 1000
"""Characters of a message."""
MOST_FOOTER = 4 * 2**20
"""Bytes of an object in the footer."""
_SUFFIXES = tuple(get_sink(name).SUFFIX for name in SINKS)
EMBEDDINGS = re.compile(r"(?P<tile>\w+)_(?P<first>\d{8})_(?P<last>\d{8})_v(?P<version>[0-9A-Za-z]+)\.\w+")
_CUT = re.compile(r"#[^#&=/]+/\d{4,}")
"""Of a chip's URL that was cut out of an image: date and number."""
_COLUMNS = ("source_url", "date", "embeddings", "geometry")
_KINDS = ("Polygon", "MultiPolygon")
_PROVENANCE = b"daskembed"
_TYPES: dict[str, tuple[type, str, type]] = {
    **dict.fromkeys(("tile", "encoder", "checkpoint", "level", "dtype"), (str, "text", object)),
    **dict.fromkeys(("chips", "windows", "window"), (int, "number", object)),
    "shape": (list, "list of lengths", int),
    "dims": (list, "list of names", str),
    "identity": (dict, "object", object),
}
"""Field of what a file says of how it was made -> its type, in words, and that of its items."""
_WINDOW = r"([#&])window=([0-9]+),([0-9]+)$"


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a file."""

    check: str
    """What was looked at: ``name``, ``parquet``, ``zarr``, ``geo``, ``schema``, ``vectors``, ``geometry``, ``dates``,
    ``order``, ``duplicates``, ``provenance`` or ``receipt``."""
    message: str
    """What was found and what was expected."""
    severity: Literal["problem", "note"] = "problem"
    """A note is a difference that does no harm, or a check that could not be made."""

    def __post_init__(self) -> None:
        # Much of it is what somebody else's file says.
        told = visible(self.message)
        object.__setattr__(self, "message", told if len(told) <= MOST_TOLD else f"{told[:MOST_TOLD]}...")

    def __str__(self) -> str:
        return f"note: {self.message}" if self.severity == "note" else self.message


def files_of(url: str) -> list[str]:
    """The files that an argument of the command names: a file itself, or all ``*.gpq`` and ``*.zarr`` of a folder.

    Raises
    ------
    InputError
        If there are none.
    """
    url = url.rstrip("/") or url
    if url.endswith(_SUFFIXES) or (is_local(url) and local_path(url).is_file()):
        return [url]
    storage = Storage(url)
    found = [*(entry.path for entry in storage.entries(recursive=False)), *storage.folders()]
    names = sorted(name for name in found if name.endswith(_SUFFIXES))
    if not names:
        raise InputError(f"no file {url}, and no folder of that name with files *{' or *'.join(_SUFFIXES)} in it")
    return [storage.url_of(name) for name in names]


def validate(file: str) -> list[Finding]:
    """Check a published file.

    A GeoParquet file is read twice, a few rows at a time: once to decode it, once for its SHA-256. Each object of a
    Zarr store is read once. Files of the reference implementation are taken too: where they are only different, there
    are notes.

    Parameters
    ----------
    file
        Path or URL of a ``.gpq`` file or a ``.zarr`` store, of embeddings or a cube. Its receipt is looked for in
        ``_daskembed/`` beside it.

    Returns
    -------
    list of Finding
        Problems and notes, in the order in which they were found; empty if the file is sound.

    Raises
    ------
    InputError
        If there is no such file.
    StorageError
        If the store does not answer as it should.
    """
    storage, name = split_url(str(local_path(file)) if is_local(file) else file.rstrip("/"))
    is_store = name.endswith(zarr.SUFFIX)
    if is_local(file) and not is_store and (there := local_path(file)).exists() and not there.is_file():
        what = "folder" if there.is_dir() else "pipe or a device"
        raise InputError(f"{file} is a {what}: expected a file *{_SUFFIXES[0]} or a store *{zarr.SUFFIX}")
    from daskembed.output.validate.cube import check_store

    try:
        return list(check_store(storage, name) if is_store else _findings(storage, name))
    except FileNotFoundError:
        raise InputError(f"{storage.url_of(name)} does not exist") from None


@dataclass(frozen=True)
class Named:
    """What a file's name says."""

    tile: str
    first: date
    last: date
    version: str


@dataclass
class _Faults:
    """Rows with faults, counted by fault, the first of each named."""

    seen: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def add(self, check: str, what: str, urls: Sequence[str], rows: Any) -> None:
        """Count `rows`, the numbers in `urls` of the rows that have the fault."""
        if len(rows):
            first, count = self.seen.get((check, what), (urls[rows[0]], 0))
            self.seen[check, what] = (first, count + len(rows))

    def findings(self) -> Iterator[Finding]:
        """A finding a fault."""
        for (check, what), (first, count) in self.seen.items():
            more = f" (and {count - 1} more)" if count > 1 else ""
            yield Finding(check, f"row {first}{more}: {what}")


def _findings(storage: Storage, name: str) -> Iterator[Finding]:
    try:
        with storage.open_reader(name) as reader:
            named = yield from check_name(name)
            receipt = None if named is None else (yield from _check_receipt(storage, name, named, reader))
            reader.seek(0)
            # By default whole columns of a row group are fetched ahead, and files of others are one row group.
            with pq.ParquetFile(reader, buffer_size=2**20, pre_buffer=False) as file:
                yield from _check_content(file, reader, named, receipt)
    except (FileNotFoundError, DaskembedError):
        raise
    except Exception as error:  # whatever pyarrow, shapely and PROJ raise of what somebody wrote
        reason = str(error).partition("\n")[0] or type(error).__name__
        yield Finding("parquet", f"cannot be read as Parquet, it is cut off or damaged: {reason}")


def check_name(name: str) -> Generator[Finding, None, Named | None]:
    """Look at a file's name; gives what it says."""
    match = EMBEDDINGS.fullmatch(name)
    if match is None or not name.endswith(_SUFFIXES):
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), _SUFFIXES[0])
        yield Finding(
            "name", f"the name {name} is not of the form {{MGRS}}_{{MINDATE}}_{{MAXDATE}}_v{{VERSION}}{suffix}"
        )
        return None
    try:
        tile = check_tile(match["tile"])
        square_of(tile)
        if tile != match["tile"]:
            raise InputError(f"the tile {match['tile']} is not in capitals")
    except InputError as error:
        yield Finding("name", f"the name {name}: {error}")
        return None
    try:
        first, last = (datetime.strptime(match[end], "%Y%m%d").date() for end in ("first", "last"))
    except ValueError:
        yield Finding("name", f"the name {name}: {match['first']}_{match['last']} are not two dates YYYYMMDD")
        return None
    if first > last:
        yield Finding("name", f"the name {name}: the first date {first} is after the last, {last}")
    return Named(tile, first, last, match["version"])


def find_receipt(
    storage: Storage, name: str, named: Named
) -> Generator[Finding, None, tuple[Receipt, Published] | None]:
    """Look for a file's receipt; gives it, and what it says of the file."""
    path = receipt_path(named.tile, named.version)
    try:
        receipt = read_receipt(storage, path)
    except FileNotFoundError:
        yield Finding("receipt", f"no receipt {path} beside it, so that its SHA-256 could not be checked", "note")
        return None
    except InputError as error:
        yield Finding("receipt", str(error))
        return None
    file = next((file for file in receipt.files if file.name == name), None)
    if file is None:
        others = " and ".join(receipt.names) or "none"
        yield Finding("receipt", f"the receipt {path} is of another file, {others}")
        return None
    return receipt, file


def _check_receipt(storage: Storage, name: str, named: Named, reader: Any) -> Generator[Finding, None, Receipt | None]:
    found = yield from find_receipt(storage, name, named)
    if found is None:
        return None
    receipt, file = found
    if file.size != reader.size():
        yield Finding("receipt", f"{reader.size()} bytes, the receipt says {file.size}")
        return receipt
    digest = hashlib.sha256()
    while data := reader.read(HASHED_BYTES):
        digest.update(data)
    if digest.hexdigest() != file.sha256:
        yield Finding("receipt", f"SHA-256 {digest.hexdigest()}, the receipt says {file.sha256}")
    return receipt


def _check_content(
    file: pq.ParquetFile, reader: Any, named: Named | None, receipt: Receipt | None
) -> Iterator[Finding]:
    footer = file.metadata.metadata or {}
    rows = file.metadata.num_rows
    foreign = _PROVENANCE not in footer
    made = yield from _read_provenance(footer)
    shape = None if made is None else (yield from check_provenance(made, rows, named, receipt))
    column = yield from _check_geo(footer)
    dtype = None if made is None else str(made.get("dtype") or "float32")
    usable = yield from _check_schema(file.schema_arrow, shape, dtype)
    if receipt is not None and receipt.chips * windows_of(made) != rows:
        yield Finding("receipt", f"{rows} rows, the receipt says {receipt.chips} chips")
    if not rows:
        yield Finding("schema", "no rows")
    elif problem := too_much(file.metadata, usable):
        yield Finding("schema", problem)
    elif usable:
        # A second time, as dictionaries: in the schema these columns would not be what they are.
        texts = [name for name in ("source_url", "geometry") if name in usable]
        options = {"metadata": file.metadata, "buffer_size": 2**20, "pre_buffer": False}
        file = pq.ParquetFile(reader, read_dictionary=texts, **options)
        yield from _check_rows(file, usable, named, receipt, column, made, foreign)


def _json(footer: dict[bytes, bytes], key: bytes) -> dict[str, Any] | None:
    """An object of the footer; None if it is not JSON or no object."""
    try:
        return parse_object(footer[key], most=MOST_FOOTER)
    except ValueError:
        return None


def _read_provenance(footer: dict[bytes, bytes]) -> Generator[Finding, None, dict[str, Any] | None]:
    if _PROVENANCE not in footer:
        yield Finding("provenance", "no `daskembed` in the footer: nothing says what made the embeddings", "note")
        return None
    made = _json(footer, _PROVENANCE)
    if made is None:
        yield Finding("provenance", "`daskembed` in the footer is not a JSON object")
        return None
    return (yield from typed(made, "footer"))


def typed(made: dict[str, Any], where: str) -> Generator[Finding, None, dict[str, Any]]:
    """What a file says of how it was made; None for what is not of the type that it should be."""
    kept: dict[str, Any] = {}
    for key, value in made.items():
        kind, words, of_items = _TYPES.get(key, (object, "", object))
        items = value if isinstance(value, list) else []
        # A truth value counts as a number.
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if fits and all(isinstance(one, of_items) for one in items):
            kept[key] = value
        else:
            kept[key] = None
            yield Finding("provenance", f"the {where}'s {key} {value} is no {words}")
    return kept


def windows_of(made: dict[str, Any] | None) -> int:
    """Rows of a chip."""
    windows = (made or {}).get("windows", 1)
    return windows if type(windows) is int and windows > 0 else 1


def check_provenance(
    made: dict[str, Any], rows: int, named: Named | None, receipt: Receipt | None, where: str = "footer"
) -> Generator[Finding, None, tuple[int, ...] | None]:
    """Look at what a file says of how it was made; gives the shape of one embedding, where it is known.

    Parameters
    ----------
    made
        What it says.
    rows
        Rows that it has.
    named, receipt
        What its name and its receipt say.
    where
        Where it says it, in words.
    """
    wanted = ("tile", "chips", "encoder", "checkpoint", "level", "shape", "identity")
    if missing := [key for key in wanted if key not in made]:
        yield Finding("provenance", f"`daskembed` in the {where} lacks {', '.join(missing)}")
    if named is not None and made.get("tile") not in (None, named.tile):
        yield Finding("provenance", f"the {where} says that it is of tile {made['tile']}, its name says {named.tile}")
    chips = made.get("chips")
    if isinstance(chips, int) and chips * windows_of(made) != rows:
        yield Finding("provenance", f"{rows} rows, the {where} says {chips} chips")
    if receipt is not None and made.get("identity") not in (None, receipt.settings):
        yield Finding("provenance", f"the {where} says that it was made with other settings than the receipt says")
    shape = made.get("shape")
    if isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape):
        return tuple(shape)
    if shape is not None:
        yield Finding("provenance", f"the {where}'s shape {shape} is no list of lengths")
    return None


def _check_geo(footer: dict[bytes, bytes]) -> Generator[Finding, None, dict[str, Any]]:
    """Gives what the footer says of the geometry column."""
    if b"geo" not in footer:
        yield Finding("geo", "no `geo` in the footer: not a GeoParquet file")
        return {}
    geo = _json(footer, b"geo")
    if geo is None:
        yield Finding("geo", "`geo` in the footer is not a JSON object")
        return {}
    version, primary = geo.get("version"), geo.get("primary_column")
    if version != "1.0.0":
        later = isinstance(version, str) and version.startswith("1.")
        message = f"GeoParquet version {version}, expected 1.0.0"
        yield Finding("geo", message, "note" if later else "problem")
    if primary != "geometry":
        yield Finding("geo", f"the footer's primary column is {primary}, expected geometry")
    columns = geo.get("columns")
    column = columns.get("geometry") if isinstance(columns, dict) else None
    if not isinstance(column, dict):
        yield Finding("geo", "the footer's `geo` does not describe a column geometry")
        return {}
    if column.get("encoding") != "WKB":
        yield Finding("geo", f"the footer's encoding of the geometries is {column.get('encoding')}, expected WKB")
    kinds = column.get("geometry_types")
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= set(_KINDS):
        yield Finding("geo", f"the footer's geometry types are {kinds}, expected {' and '.join(_KINDS)} at most")
        column = {**column, "geometry_types": None}
    yield from _check_crs(column)
    bbox = column.get("bbox")  # which may be left out
    if "bbox" in column and (
        not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(edge, (int, float)) for edge in bbox)
    ):
        yield Finding("geo", f"the footer's bbox is {bbox}, expected [west, south, east, north]")
        column = {**column, "bbox": None}
    return column


def _check_crs(column: dict[str, Any]) -> Iterator[Finding]:
    if "crs" not in column:
        return  # GeoParquet: then it is OGC:CRS84
    try:
        crs = pyproj.CRS.from_user_input(column["crs"])
    except pyproj.exceptions.CRSError:
        yield Finding("geo", "the footer's CRS is none that PROJ knows, expected OGC:CRS84")
        return
    if crs.to_authority() != ("OGC", "CRS84") and crs != pyproj.CRS("OGC:CRS84"):
        yield Finding("geo", f"the footer's CRS is {crs.name} ({crs.to_string()[:40]}), expected OGC:CRS84")


def _check_schema(
    schema: pa.Schema, shape: tuple[int, ...] | None, dtype: str | None
) -> Generator[Finding, None, list[str]]:
    """Gives the columns that can be looked at row by row; a file that does not say its `dtype` is not ours."""
    usable, foreign = [], dtype is None
    for name in _COLUMNS:
        if schema.names.count(name) != 1:
            yield Finding("schema", f"{schema.names.count(name)} columns {name}, expected 1")
            continue
        kind = schema.field(name).type
        problem = _vectors_problem(kind, shape, dtype) if name == "embeddings" else _column_problem(name, kind)
        if problem is None:
            usable.append(name)
        elif problem.severity == "note":
            usable.append(name)
            yield problem
        else:
            yield problem
    if extra := [f"{name} ({schema.field(name).type})" for name in schema.names if name not in _COLUMNS]:
        message = f"columns beside {', '.join(_COLUMNS)}: {', '.join(extra)}"
        yield Finding("schema", message, "note" if foreign else "problem")
    return usable


def _column_problem(name: str, kind: pa.DataType) -> Finding | None:
    sound, expected = {
        "source_url": (pa.types.is_string(kind) or pa.types.is_large_string(kind), "string"),
        "date": (pa.types.is_date32(kind), "date32"),
        "geometry": (pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "binary"),
    }[name]
    return None if sound else Finding("schema", f"column {name} is {kind}, expected {expected}")


def _vectors_problem(kind: pa.DataType, shape: tuple[int, ...] | None, dtype: str | None) -> Finding | None:
    expected = dtype if dtype in DTYPES else DTYPES[0]
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.value_type != pa.from_numpy_dtype(expected):
            return Finding("schema", f"column embeddings is of {kind.value_type}, expected {expected}")
        if shape is not None and tuple(kind.shape) != shape:
            return Finding("schema", f"the embeddings have the shape {kind.shape}, the footer says {list(shape)}")
        return None
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if dtype is None and lists and pa.types.is_float32(kind.value_type):
        return Finding("schema", f"column embeddings is {kind}: nothing says its shape", "note")
    return Finding("schema", f"column embeddings is {kind}, expected a fixed-shape tensor of {expected}")


def _check_rows(
    file: pq.ParquetFile,
    usable: list[str],
    named: Named | None,
    receipt: Receipt | None,
    column: dict[str, Any],
    made: dict[str, Any] | None,
    foreign: bool,
) -> Iterator[Finding]:
    rows, kept = rows_at_once(file.metadata, usable), 0
    faults, names, days, start = _Faults(), [], set[Any](), 0
    look_at = _Places(column, named, windows_of(made))
    length: int | None = None
    for batch in file.iter_batches(batch_size=rows, columns=usable):
        if "source_url" in usable:
            found, long = decode(batch["source_url"], TEXT_BYTES)
            urls = [url or f"{number}, without source_url" for number, url in enumerate(found.to_pylist(), start)]
            empty = found.is_null().to_numpy(zero_copy_only=False)
            faults.add("schema", "no source_url", urls, np.flatnonzero(empty & ~long))
            faults.add("schema", f"a source_url of more than {TEXT_BYTES:,} bytes", urls, np.flatnonzero(long))
            kept += found.nbytes
            names.append(found.cast(pa.string()))
            if kept > KEPT_BYTES:
                names.clear()
        else:
            urls = [str(number) for number in range(start, start + len(batch))]
        if "date" in usable:
            days |= _check_dates(batch["date"], urls, named, faults)
        if "embeddings" in usable:
            length = _check_vectors(batch["embeddings"], urls, length, faults)
        if "geometry" in usable:
            look_at.check(decode(batch["geometry"], wkb.MOST_BYTES)[0], urls, faults)
        start += len(batch)
    yield from faults.findings()
    yield from look_at.beyond()
    if named is not None and "date" in usable:
        yield from check_ends(days, named, receipt)
    if kept > KEPT_BYTES:
        yield Finding("order", f"source_urls of more than {KEPT_BYTES:,} bytes: their order was not looked at", "note")
    elif names:
        yield from _check_order(pa.chunked_array(names).combine_chunks(), foreign)


def _check_dates(column: pa.Array, urls: Sequence[str], named: Named | None, faults: _Faults) -> set[date]:
    days = column.to_numpy(zero_copy_only=False).astype("datetime64[D]")
    faults.add("dates", "no date", urls, np.flatnonzero(np.isnat(days)))
    if named is not None:
        outside = (days < np.datetime64(named.first)) | (days > np.datetime64(named.last))
        what = f"the date is outside {named.first} to {named.last}, which the name says"
        faults.add("dates", what, urls, np.flatnonzero(outside))
    return set(np.unique(days[~np.isnat(days)]).tolist())


def check_ends(days: set[date], named: Named, receipt: Receipt | None) -> Iterator[Finding]:
    """Look whether the dates of the name are among the embeddings'."""
    for day, which in ((named.first, "first"), (named.last, "last")):
        if day in days:
            continue
        message = f"no row is of {day}, the {which} date of its name"
        what = ("quarantined", "rejected") if receipt is not None else ()
        if aside := [
            why for why in what if any(re.search(f"{day:%Y%m%d}|{day}", url) for url in getattr(receipt, why))
        ]:
            yield Finding("dates", f"{message}; its chips are {' or '.join(aside)}", "note")
        else:
            yield Finding("dates", message)


def _check_vectors(column: pa.Array, urls: Sequence[str], length: int | None, faults: _Faults) -> int | None:
    """Gives the length that all vectors should have: that of the first."""
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    faults.add("vectors", "no embedding", urls, np.flatnonzero(lists.is_null()))
    lengths = pc.list_value_length(lists)
    if length is None:
        length = next((one for one in lengths.to_pylist() if one is not None), None)
    other = pc.not_equal(lengths, length).fill_null(False)
    faults.add("vectors", f"the embedding has not {length} values, as the first has", urls, np.flatnonzero(other))
    finite = np.isfinite(lists.flatten().to_numpy(zero_copy_only=False))
    if not finite.all():
        parents = pc.list_parent_indices(lists).to_numpy()
        faults.add("vectors", "NaN or infinity in the embedding", urls, np.unique(parents[~finite]))
    return length


class _Places:
    """The geometries' checks: each by itself, against the footer, and against the tile of the name."""

    def __init__(self, column: dict[str, Any], named: Named | None, windows: int) -> None:
        self._bbox = column.get("bbox")
        self._kinds = column.get("geometry_types") or _KINDS
        self._tile = None if named is None else named.tile
        self._across = math.isqrt(windows)
        self._reaches = False
        self._beyond = _Faults()

    def beyond(self) -> Iterator[Finding]:
        """Chips of images that are not at the tile: a note, if some are."""
        for finding in self._beyond.findings():
            yield replace(finding, severity="note") if self._reaches else finding

    def check(self, column: pa.Array, urls: Sequence[str], faults: _Faults) -> None:
        """Check a batch of WKB."""
        values = column.to_numpy(zero_copy_only=False)
        said = np.array([wkb.kind_of(value) for value in values], "U32")
        areal = np.isin(said, _KINDS)
        # Others never get to GEOS, which some of them bring down.
        shapes = shapely.from_wkb(np.where(areal, values, None), on_invalid="ignore")
        missing = shapely.is_missing(shapes) & ~((said != "") & ~areal)
        kinds = np.where(missing, "", said)
        areal &= ~missing

        def add(check: str, what: str, bad: Any) -> None:
            faults.add(check, what, urls, np.flatnonzero(bad))

        add("geometry", "no geometry, or none in WKB", missing)
        for kind in sorted(set(kinds[~missing & ~areal])):
            add("geometry", f"the geometry is a {kind}, expected a polygon", kinds == kind)
        for kind in sorted(set(kinds[areal]) - set(self._kinds)):
            add("geo", f"the geometry is a {kind}, which the footer's geometry types lack", kinds == kind)
        add("geometry", "the geometry is empty", shapely.is_empty(shapes))
        add("geometry", "the geometry is not valid", areal & ~shapely.is_valid(shapes))

        parts, owners = shapely.get_parts(shapes, return_index=True)
        west, south, east, north = shapely.bounds(parts).reshape(-1, 4).T
        bad = np.zeros(len(shapes), bool)
        bad[owners[east - west > 180]] = True
        add("geometry", "the geometry spans the globe: one that crosses the antimeridian is a MultiPolygon", bad)
        if self._bbox is not None:
            left, bottom, right, top = self._bbox
            # GeoParquet: a box across the antimeridian has its west edge east of its east edge.
            inside = (west >= left) & (east <= right) if left <= right else (west >= left) | (east <= right)
            bad = np.zeros(len(shapes), bool)
            bad[owners[~(inside & (south >= bottom) & (north <= top))]] = True
            add("geo", f"the geometry is not inside the footer's bbox {self._bbox}", bad & ~shapely.is_empty(shapes))
        if self._tile is not None:
            what = f"the geometry is not at tile {self._tile}: expected {place_of(self._tile)}"
            placed = areal & ~shapely.is_empty(shapes)
            far = self._far(self._tile, shapes) & placed
            self._reaches |= bool((placed & ~far).any())
            # An image may be larger than its tile.
            cut = np.array([_CUT.search(url) is not None for url in urls], bool)
            add("geometry", what, far & ~cut)
            self._beyond.add("geometry", what, urls, np.flatnonzero(far & cut))

    def _far(self, tile: str, shapes: Any) -> Any:
        """Which shapes are not at their tile, nor are the chips whose windows they are."""
        zone = square_of(tile).epsg
        # Of a footprint that crosses 180 degrees, both halves come to lie side by side.
        to_zone = pyproj.Transformer.from_crs("OGC:CRS84", zone, always_xy=True).transform
        placed = shapely.transform(shapes, lambda points: np.stack(to_zone(*points.T), axis=1))
        west, south, east, north = shapely.bounds(placed).T
        wide, high = (self._across - 1) * (east - west), (self._across - 1) * (north - south)
        return ~at_tile(tile, np.stack([west - wide, south - high, east + wide, north + high], axis=1), zone)


def _natural(url: str) -> str:
    return re.sub(_WINDOW, lambda found: f"{found[1]}window={int(found[2]):06d},{int(found[3]):06d}", url)


def _check_order(urls: pa.Array, foreign: bool) -> Iterator[Finding]:
    # Windows of a chip are in the order of their numbers.
    if pc.any(pc.match_substring_regex(urls, _WINDOW)).as_py():
        keys = pa.array([None if url is None else _natural(url) for url in urls.to_pylist()], pa.string())
    else:
        keys = urls
    behind = pc.less(keys[1:], keys[:-1]).fill_null(False)
    if pc.any(behind).as_py():
        number = pc.index(behind, True).as_py() + 1
        message = f"the rows are not in the order of source_url: {urls[number]} comes after {urls[number - 1]}"
        yield Finding("order", message, "note" if foreign else "problem")
    counts = urls.value_counts()
    counts = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(counts):
        more = f" (and {len(counts) - 1} more)" if len(counts) > 1 else ""
        first = counts[0].as_py()
        yield Finding("duplicates", f"{first['counts']} rows have the source_url {first['values']}{more}")
