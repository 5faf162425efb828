"""Which published files of an output are exported, and what they have in common: by names, receipts and footers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import json_digest, parse_object
from daskembed.errors import InputError
from daskembed.exports.settings import KIND
from daskembed.exports.state import read_plan
from daskembed.geo.footprints import box
from daskembed.output import geoparquet
from daskembed.output.published import check_version, list_published
from daskembed.output.state import CUBES, RECEIPTS, read_receipt
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local
from daskembed.text import counted

if TYPE_CHECKING:
    from daskembed.output.protocol import Published


_OWN = ("tile", "chips", "shape", "format", "identity", "software")
"""What a footer says of one file, and of what wrote it."""


@dataclass(frozen=True)
class ExportTile:
    """A published file that is exported."""

    name: str
    """Of the file, such as ``33TUL_20240601_20240831_v001.gpq``."""
    tile: str
    version: str
    size: int
    """Bytes."""
    sha256: str | None
    """As its receipt says; None if there is none, as others have made it."""
    etag: str
    """The store's tag of it."""
    bbox: tuple[float, float, float, float]
    """West, south, east and north of its footprints, degrees; west is more than east across 180."""

    @property
    def content(self) -> str:
        """What is another if the file is."""
        return self.sha256 or f"{self.size} {self.etag}"

    @property
    def written(self) -> str:
        """What is another whenever the file is written, whether its receipt knows of that or not."""
        return json_digest([self.name, self.size, self.etag, self.sha256])

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return self.name.removesuffix(geoparquet.SUFFIX)


@dataclass(frozen=True)
class Selection:
    """The published files of an export."""

    tiles: dict[str, ExportTile]
    """By their names, sorted."""
    made: dict[str, Any]
    """What all footers say alike of how they were made."""
    shape: tuple[int, ...]
    """Of the embedding of one row."""
    dtype: str
    """Of its values."""
    unreadable: dict[str, str]
    """Name -> why its footer cannot be read."""
    lacking: list[str] = field(default_factory=list)
    """Tiles wanted of which there is no published file."""

    @property
    def notes(self) -> list[str]:
        """What is to be told of what was wanted."""
        if not self.lacking:
            return []
        return [f"no published file of {counted(len(self.lacking), 'tile')} of `tiles`: {_some(self.lacking)}"]


@dataclass(frozen=True)
class _Footer:
    made: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    bbox: tuple[float, float, float, float]

    def kind(self, version: str) -> tuple[tuple[str, str], ...]:
        """What has to be the same in all files."""
        said = {name: self.made.get(name) for name in KIND}
        told = {"encoder": "unknown", **{name: str(value) for name, value in said.items() if value is not None}}
        return (*told.items(), ("dtype", self.dtype), ("shape", "x".join(map(str, self.shape))), ("version", version))


def select(
    output: Storage,
    *,
    tiles: Collection[str] | None = None,
    encoder: str | None = None,
    level: str | None = None,
    version: str | None = None,
    region: str | None = None,
    dates: tuple[date, date] | None = None,
) -> Selection:
    """The published GeoParquet files of an output that are wanted.

    Parameters
    ----------
    output
        Where.
    tiles
        Ids of those wanted; None for all.
    encoder, level, version
        Of those wanted; None for any.
    region, dates
        WKT in OGC:CRS84, and first and last day: files that have nothing of them are left out.

    Raises
    ------
    InputError
        If there is none, or they are not of one kind: the message has the choices.
    """
    listed = list_published(output)
    files = [one for one in listed if one.name.endswith(geoparquet.SUFFIX)]
    if not files:
        raise InputError(_nothing(output, [one.name for one in listed]))
    if version is not None:
        version, versions = check_version(version), sorted({one.version for one in files})
        files = [one for one in files if one.version == version]
        if not files:
            raise InputError(
                f"no published file of `version` {version} in {output.url}: choose {' or '.join(versions)}"
            )
    lacking = sorted({*tiles} - {one.tile for one in files}) if tiles is not None else []
    if tiles is not None:
        files = [one for one in files if one.tile in tiles]
        if not files:
            raise InputError(f"{output.url} holds no published file of the tiles {_some(lacking)}: check `tiles`")
    entries = {entry.path: entry for entry in output.entries(recursive=False)}
    with ThreadPoolExecutor(16) as pool:
        receipts = _receipts(output, pool)
        looked = dict(zip(files, pool.map(lambda one: _look(output, one.name), files), strict=True))
    unreadable = {one.name: found for one, found in looked.items() if isinstance(found, str)}
    area = None if region is None else shapely.from_wkt(region)
    footers = {
        one: found
        for one, found in looked.items()
        if not isinstance(found, str)
        and (encoder is None or found.made.get("encoder") == encoder)
        and (level is None or found.made.get("level") == level)
        and (area is None or shapely.intersects(area, box(*found.bbox)))
        and (dates is None or _meets(one.name, dates))
    }
    if not footers:
        given = None if dates is None else "/".join(map(str, dates))
        wanted = (("encoder", encoder), ("level", level), ("version", version), ("dates", given))
        what = [f"`{name}` {value}" for name, value in wanted if value is not None]
        what += ["the `region`"] if area is not None else []
        known = [found.kind(one.version) for one, found in looked.items() if not isinstance(found, str)]
        why = f"it holds {_told(known)}" if known else f"no file can be read: {next(iter(unreadable.values()))}"
        raise InputError(f"no published file{' of ' + ' and '.join(what) if what else ''} in {output.url}: {why}")
    kinds = {one: found.kind(one.version) for one, found in footers.items()}
    if len(set(kinds.values())) > 1:
        raise InputError(_mixed(output, list(kinds.values())))
    first = next(iter(footers.values()))
    alike = {
        key: value
        for key, value in first.made.items()
        if key not in _OWN and all(found.made.get(key) == value for found in footers.values())
    }
    chosen = {}
    for one, found in sorted(footers.items(), key=lambda item: item[0].name):
        entry, receipt = entries[one.name], receipts.get(one.name)
        chosen[one.name] = ExportTile(
            one.name, one.tile, one.version, entry.size, receipt.sha256 if receipt else None, entry.etag, found.bbox
        )
    return Selection(chosen, alike, first.shape, first.dtype, unreadable, lacking)


def check_places(output: str, to: str) -> tuple[Storage, Storage]:
    """An output and where its export goes, if that can be; raises `InputError`."""
    if not output or not to:
        raise InputError(f"{'the copy' if output else 'the output'} has no path or URL: give a folder, such as ./copy")
    source, target = Storage(output), Storage(to)
    for storage, what in ((source, "the folder that it is in"), (target, "a folder of its own as `to`")):
        if is_local(storage.url) and Path(storage.url).is_file():
            raise InputError(f"{storage.url} is a file: give {what}")
    if source == target:
        raise InputError(f"{source.url} is the output itself: give another folder or URL as `to`")
    source.check_exists()
    if f"{target.url}/".startswith(f"{source.url}/") or f"{source.url}/".startswith(f"{target.url}/"):
        inside = "inside" if len(target.url) > len(source.url) else "above"
        raise InputError(
            f"{target.url} is {inside} the output {source.url}: who opens all of one would read both; give a folder "
            "beside it as `to`"
        )
    return source, target


def check_readable(selection: Selection, *, skip_damaged: bool) -> None:
    """Raise `InputError` if a chosen file cannot be read, and is not to be skipped."""
    if selection.unreadable and not skip_damaged:
        reasons = [*selection.unreadable.values()]
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise InputError(f"{reasons[0]}{more}: have it made again, or leave it out with `skip_damaged=True`")


def _meets(name: str, dates: tuple[date, date]) -> bool:
    """Whether a file has dates between these, as its name says."""
    first, last = (date.fromisoformat(day) for day in name.split("_")[1:3])
    return first <= dates[1] and last >= dates[0]


def _receipts(output: Storage, pool: ThreadPoolExecutor) -> Mapping[str, Published]:
    """Published file -> what its receipt says of it."""
    paths = [entry.path for entry in output.entries(RECEIPTS, recursive=False) if entry.path.endswith(".json")]
    found = pool.map(lambda path: read_receipt(output, path), paths)
    return {file.name: file for receipt in found for file in receipt.files}


def _look(output: Storage, name: str) -> _Footer | str:
    """What a file's footer says; words if it cannot be read."""
    try:
        with pq.ParquetFile(output.open_reader(name)) as file:
            schema, said = file.schema_arrow, file.metadata.metadata or {}
            missing = [column for column in geoparquet.COLUMNS if column not in schema.names]
            if missing:
                return f"{output.url_of(name)} has no column {missing[0]!r}: it is no published file"
            made = parse_object(said.get(b"daskembed", b"{}"))
            kind = schema.field("embeddings").type
            shape, lists = _shape(file, kind)
            bbox = _bbox(parse_object(said.get(b"geo", b"{}")))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{output.url_of(name)} cannot be read as GeoParquet: {' '.join(str(error).split())[:200]}"
    return _Footer(made, shape, str(lists.value_type.to_pandas_dtype().__name__), bbox)


def _shape(file: pq.ParquetFile, kind: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """The shape of one row's embedding, and the type that stores it."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape), kind.storage_type
    if pa.types.is_fixed_size_list(kind):
        return (kind.list_size,), kind
    # The reference's, whose lists say no length.
    batch = next(file.iter_batches(1, columns=["embeddings"]), None)
    return (len(batch["embeddings"][0]) if batch is not None and len(batch) else 0,), kind


def _bbox(geo: dict[str, Any]) -> tuple[float, float, float, float]:
    bbox = geo.get("columns", {}).get("geometry", {}).get("bbox", [-180, -90, 180, 90])
    west, south, east, north = (float(bbox[edge]) for edge in ((0, 1, 3, 4) if len(bbox) == 6 else range(4)))
    return west, south, east, north


def _some(tiles: list[str]) -> str:
    more = f" and {len(tiles) - 5} more" if len(tiles) > 5 else ""
    return ", ".join(tiles[:5]) + more


def _nothing(output: Storage, names: list[str]) -> str:
    """Why there is nothing to export."""
    if (plan := read_plan(output)) is not None:
        return f"{output.url} is an export itself: give the output that it was made of, {plan.identity.get('source')}"
    if names:
        return (
            f"{output.url} holds Zarr stores and no GeoParquet files, from which exports are made: run it again with "
            "`format='geoparquet,zarr'` and another `version`"
        )
    if output.entries(CUBES):
        return f"{output.url} holds cubes of chips and no embeddings: give the `output` of a run"
    return f"no published files (*{geoparquet.SUFFIX}) in {output.url}: give the `output` of a run"


def _mixed(output: Storage, kinds: list[tuple[tuple[str, str], ...]]) -> str:
    """That files do not go into one export, and what can be chosen."""
    differ = [name for name in dict(kinds[0]) if len({dict(kind).get(name) for kind in kinds}) > 1]
    named = {"encoder", "level", "version"}
    flags = [f"`{name}`" for name in differ if name in named]
    advice = f"choose by {' or '.join(flags)}" if flags else "choose by `tiles`, or put them into folders of their own"
    return f"{output.url} mixes embeddings that do not go into one export: {_told(kinds)}; {advice}"


def _told(kinds: list[tuple[tuple[str, str], ...]]) -> str:
    """How many files there are of each kind, by what tells these apart."""
    names = list(dict.fromkeys(name for kind in kinds for name, _ in kind))
    differ = [name for name in names if len({dict(kind).get(name) for kind in kinds}) > 1] or ["encoder", "level"]
    told = [" ".join(f"{name} {dict(kind).get(name, 'unknown')[:16]}" for name in differ) for kind in kinds]
    return "; ".join(f"{told.count(one)} of {one}" for one in dict.fromkeys(sorted(told)))
