"""Chips as GeoTIFF files in the Clay layout: list a tile's chips, read headers, read pixels."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from daskembed.errors import ChipError, InputError, TileError, exact
from daskembed.geo.cells import EDGES
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import elsewhere, metres_of_unit, to_lonlat
from daskembed.health import fault_of, read_surely
from daskembed.sensors.bands import CLAY_V0, LARGEST
from daskembed.sources.bands import order_bands, short
from daskembed.sources.baseline import Evidence
from daskembed.sources.frame import INDEX_COLUMNS
from daskembed.sources.protocol import Listing
from daskembed.sources.reading import NO_RULES, Reading, Rules
from daskembed.sources.rules import NEVER, check_pixels
from daskembed.sources.values import (
    BESIDE,
    MOST_SIDECAR,
    SIDECARS,
    Scale,
    check_sidecar,
    note_of,
    part_masks,
    read_bands,
    scale_of,
    settle,
    tell,
    to_values,
)
from daskembed.storage.stores import Entry, Storage, split_url
from daskembed.timings import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS = tuple(band.name for band in CLAY_V0.bands)
"""Bands of a chip in Clay's layout, by their descriptions in the file and in the order of files without any."""
SIZE = CHIP

# What a damaged or hostile file may claim is bounded before anything is allocated for it. Without compression a chip of
# the widest type takes 27 MB; GDAL decodes whole blocks, which may be larger than the image.
_MOST_BYTES = 128 * 1024**2
_LARGEST_BLOCK = 1024
_SMALLEST_PIXEL, _LARGEST_PIXEL = 0.01, 1000.0
_READING = Reading()
_PIXEL_ERROR = 1e-3
"""Of a pixel's side, relative: half a pixel in a chip."""

# Drivers other than GTiff never see the bytes, and blocks are read once.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 16, "GDAL_NUM_THREADS": 1}
_GONE = "is gone: it was listed, but the store no longer has it"
# Of a chip that has such files GDAL sees them, and nothing else.
_GDAL_BESIDE = _GDAL | BESIDE
_NAME = re.compile(r"claytile_(?P<tile>[0-9]{2}[A-Z]{3})_(?P<date>[0-9]{8})_v02_(?P<number>[0-9]{4})\.tif")
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class GeotiffChip:
    """How to read one chip."""

    url: str
    bands: tuple[str, ...]
    numbers: tuple[int, ...]
    """1-based, of the bands in the file."""
    rules: Rules = NO_RULES
    listed: tuple[int, str] | None = None
    """Bytes and ETag of the file as its listing has them, if there is one."""
    scales: tuple[Scale, ...] = ()
    """What is made of the bands' numbers."""
    sidecars: tuple[str, ...] = ()
    """Those of `SIDECARS` that lie beside it."""

    @property
    def note(self) -> str:
        """What is done to the file's numbers, if anything."""
        return note_of(self.bands, self.scales)

    @property
    def unit(self) -> tuple[object, ...]:
        """Its file."""
        return (self.url,)

    @property
    def inside(self) -> tuple[int, int]:
        """All of it."""
        return (SIZE, SIZE)

    def read(self) -> NDArray[np.generic]:
        """See `read_chip`; raises `ChipRejectedError` if it breaks a rule."""
        beside = {"sidecars": self.sidecars} if self.sidecars else {}
        stored, masked = part_masks(read_chip(self.url, self.numbers, self.listed, **beside))
        pixels, findings = to_values(stored, self.bands, self.scales, masked)
        check_pixels(pixels, self.bands, self.rules, findings)
        tell(findings)
        return pixels


def list_chips(tile: str, storage: Storage, reading: Reading) -> Listing | None:
    """List a tile's chips in one request (two where its folder is empty); see `daskembed.index_tile`."""
    found = storage.entries(tile, broken=True)
    entries = [entry for entry in found if _is_chip(entry.path)]
    if not entries:
        found = storage.entries(recursive=False, broken=True)
        entries = [entry for entry in found if _is_chip(entry.path) and f"_{tile}_" in entry.path]
    if not entries:
        return None
    if (dates := reading.dates) is not None:
        # Names are trusted to leave chips out without opening them; one whose tag disagrees is quarantined later.
        entries = [entry for entry in entries if (named := _named_date(entry.path)) is None or _within(named, dates)]
        if not entries:
            raise _none_within(tile, dates)
    names = {f"{entry.path}{end}" for entry in entries for end in SIDECARS}
    return Listing(
        "geotiff", storage, tile, tuple(entries), sidecars=tuple(entry for entry in found if entry.path in names)
    )


def describe(tile: str, storage: Storage) -> str:
    """Where chips are looked for."""
    return f"claytile_*.tif under {storage.url_of(tile)}/ or claytile_{tile}_*.tif in {storage.url}/"


def read_headers(listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
    """Read the headers of a listing's chips; see `daskembed.index_tile`."""
    with ThreadPoolExecutor(readers) as pool:
        headers = list(pool.map(lambda entry: _header_or_reason(listing, entry, reading), listing.entries))
    index = _to_frame(listing, reading, _set_copies_aside(listing, headers))
    if (dates := reading.dates) is not None:
        # Chips whose date is not known are kept, so that they are reported.
        index = index[[day is None or _within(day, dates) for day in index["date"]]].reset_index(drop=True)
        if index.empty:
            raise _none_within(listing.tile, dates)
    return index


def read_chip(
    url: str, bands: tuple[int, ...], listed: tuple[int, str] | None = None, *, sidecars: Sequence[str] = ()
) -> NDArray[np.generic]:
    """Fetch a chip in one request and decode its pixels; fetch it again before it is condemned.

    Parameters
    ----------
    url
        URL or path of the file.
    bands
        1-based numbers of the bands, in the order wanted.
    listed
        Its bytes and ETag in a listing, which the store's answers are compared with.
    sidecars
        Those of `SIDECARS` that lie beside it, each another request.

    Returns
    -------
    Stored numbers ``(band, y, x)`` in the file's own type; a masked array where the file has masks.

    Raises
    ------
    ChipError
        If the file is gone, damaged, unfinished or not of the size that its header said.
    StorageError
        If the store does not answer, or not with what it lists.
    SickMachineError
        If this process cannot decode any chip.
    """
    storage, name = split_url(url)

    def read(fresh: bool) -> NDArray[np.generic]:
        try:
            with timed("source"):
                data = storage.get_listed(Entry(name, *listed), fresh=fresh) if listed else storage.get(name)
                beside = _get_sidecars(replace(storage, fresh=fresh), name, sidecars)
        except FileNotFoundError:
            raise ChipError(_GONE) from None
        with timed("decode"):
            return decode_chip(data, bands, beside)

    return read_surely(url, read)


def decode_chip(
    data: bytes, bands: tuple[int, ...], sidecars: Mapping[str, bytes] | None = None
) -> NDArray[np.generic]:
    """Decode a chip's bytes, and those of what lies beside it; see `read_chip`."""
    if data[:4] not in _SIGNATURES:
        raise ChipError(f"cannot be decoded, it is no longer a TIFF: it starts with {data[:4]!r}")
    try:
        with _in_memory(data, sidecars or {}) as dataset:
            _check_grid(dataset)
            _check_blocks(dataset)
            if dataset.count < max(bands):
                raise ChipError(f"has {dataset.count} bands, its header had at least {max(bands)}: it was replaced")
            pixels = read_bands(dataset, bands)
            nodata = [dataset.nodatavals[number - 1] for number in bands]
    except (RasterioError, ValueError, IndexError) as error:
        # rasterio's own errors do not survive pickling.
        raise fault_of(error, f"cannot be decoded, it is damaged or truncated: {_oneline(error)}") from None
    _check_values(pixels, bands, nodata)
    return pixels


@contextlib.contextmanager
def _in_memory(data: bytes, sidecars: Mapping[str, bytes]) -> Iterator[Any]:
    """A dataset of a chip's bytes."""
    folder = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**(_GDAL_BESIDE if sidecars else _GDAL)))
        memory = stack.enter_context(MemoryFile(data, dirname=folder, filename=f"{folder}.tif"))
        for end, beside in sidecars.items():
            stack.enter_context(MemoryFile(beside, dirname=folder, filename=f"{folder}.tif{end}"))
        yield stack.enter_context(memory.open(driver="GTiff"))


@dataclass(frozen=True)
class _Header:
    date: date
    epsg: int
    bounds: tuple[float, float, float, float]
    bands: tuple[int, ...]
    scales: tuple[Scale, ...]
    sidecars: tuple[str, ...] = ()


def _is_chip(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("claytile_") and name.endswith(".tif")


def _named_date(path: str) -> date | None:
    match = _NAME.fullmatch(path.rpartition("/")[2])
    return None if match is None else _parse_date(match["date"])


def _parse_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _within(day: date, dates: tuple[date, date]) -> bool:
    return dates[0] <= day <= dates[1]


def _none_within(tile: str, dates: tuple[date, date]) -> TileError:
    return TileError(f"no chips of tile {tile} from {dates[0]} to {dates[1]}: check `dates`")


def _oneline(error: BaseException) -> str:
    cause = error.__cause__ or error
    # GDAL calls a file in memory by a random name.
    text = re.sub(r"['`]?[\w/-]*[0-9a-f]{8}-?[0-9a-f-]{23,}[\w/-]*\.tif['`]?", "the file", " ".join(str(cause).split()))
    return text or type(cause).__name__


def _set_copies_aside(listing: Listing, headers: list[_Header | str]) -> list[_Header | str]:
    """Keep the first usable one of the chips that share name and date, in the order of their paths."""
    kept: dict[tuple[str, date], str] = {}
    unique: list[_Header | str] = []
    for entry, header in zip(listing.entries, headers, strict=True):
        url = listing.storage.url_of(entry.path)
        if isinstance(header, _Header):
            first = kept.setdefault((entry.path.rpartition("/")[2], header.date), url)
            if first != url:
                header = f"is a copy of {first}: a tile may hold a chip's name and date once; remove one of the two"
        unique.append(header)
    return unique


def _header_or_reason(listing: Listing, entry: Entry, reading: Reading) -> _Header | str:
    sidecars = tuple(end for end in SIDECARS if any(one.path == f"{entry.path}{end}" for one in listing.sidecars))

    def read(fresh: bool) -> _Header:
        try:
            return _read_header(listing.storage, entry, listing.tile, reading, sidecars, fresh=fresh)
        except FileNotFoundError:
            raise ChipError(_GONE) from None

    try:
        return read_surely(listing.storage.url_of(entry.path), read)
    except ChipError as error:
        return str(error)


def _read_header(
    storage: Storage,
    entry: Entry,
    tile: str,
    reading: Reading = _READING,
    sidecars: tuple[str, ...] = (),
    *,
    fresh: bool = False,
) -> _Header:
    if entry.reason is not None:
        raise ChipError(entry.reason)
    if entry.size > _MOST_BYTES:
        raise ChipError(
            f"has {entry.size:,} bytes, expected at most {_MOST_BYTES:,}: a chip without compression has 27 MB"
        )
    file = _RangedFile(lambda start, end: storage.get_listed(entry, start, end, fresh=fresh), entry.size)
    start = file.read(4)
    file.seek(0)
    if file.failure is not None:
        raise file.failure
    if start not in _SIGNATURES:
        found = "is empty" if not start else f"is not a TIFF: it starts with {start!r}"
        raise ChipError(f"{found}; expected a GeoTIFF of {len(reading.sensor.bands)} bands")
    name = f"{uuid.uuid4().hex}.tif"
    more = _get_sidecars(replace(storage, fresh=fresh), entry.path, sidecars)
    beside = {f"{name}{end}": data for end, data in more.items()}

    def opener(path: str, mode: str = "rb") -> io.RawIOBase | io.BytesIO:
        for known, data in beside.items():
            if path.endswith(known):
                return io.BytesIO(data)
        if not path.endswith(name):
            raise FileNotFoundError(path)
        file.seek(0)
        return file

    try:
        with (
            rasterio.Env(**(_GDAL_BESIDE if sidecars else _GDAL)),
            rasterio.open(name, opener=opener, driver="GTiff") as dataset,
        ):
            header = _check_header(dataset, entry.path, tile, reading)
            scales = settle(
                [scale_of(dataset, number) for number in header.bands],
                reading.sensor.bands,
                reading.sensor,
                np.dtype(dataset.dtypes[0]),
                reading,
                Evidence(storage.url_of(entry.path), header.date, dataset.tags()),
            )
            return replace(header, scales=scales, sidecars=sidecars)
    except (RasterioError, ValueError) as error:
        raise fault_of(error, f"has a damaged header: {_oneline(error)}") from None
    finally:
        # GDAL goes on without what could not be fetched: that is not the chip's fault.
        if file.failure is not None:
            raise file.failure


def _get_sidecars(storage: Storage, path: str, ends: Sequence[str]) -> dict[str, bytes]:
    """What lies beside a chip, by the ends of the names; raises `ChipError` if it is too long or names other files."""
    found = {}
    for end in ends:
        beside, most = f"{path}{end}", _MOST_BYTES if end == ".msk" else MOST_SIDECAR
        try:
            found[end] = storage.get(beside, most=most)
        except InputError:
            raise ChipError(f"has beside it {beside}, which has more than {most:,} bytes: remove it") from None
        check_sidecar(beside, found[end])
    return found


def _check_grid(dataset: Any) -> None:
    if dataset.shape != (SIZE, SIZE):
        raise ChipError(f"has {dataset.height} x {dataset.width} pixels, expected {SIZE} x {SIZE}")
    # Not by way of NumPy, which lacks some of GDAL's types.
    if kinds := sorted({kind for kind in dataset.dtypes if not kind.startswith(("int", "uint", "float"))}):
        raise ChipError(f"has {', '.join(kinds)} pixels, expected integers or floats")
    if (largest := max(dataset.block_shapes, key=max)) and max(largest) > _LARGEST_BLOCK:
        raise ChipError(
            f"is cut into blocks of {largest[0]} x {largest[1]} pixels, expected at most "
            f"{_LARGEST_BLOCK} x {_LARGEST_BLOCK}"
        )


# Made once: there are 512 to look up in a chip of strips of one row.
@functools.cache
def _block_items(height: int, width: int) -> tuple[str, ...]:
    down, across = -(-SIZE // height), -(-SIZE // width)
    return tuple(f"BLOCK_SIZE_{x}_{y}" for y in range(down) for x in range(across))


def _check_blocks(dataset: Any) -> None:
    """GDAL reads blocks that are not in the file as zeros, and a writer that was killed leaves all of them out."""
    items = _block_items(*dataset.block_shapes[0])
    numbers = (1,) if dataset.interleaving is Interleaving.pixel else dataset.indexes
    sizes = [dataset.get_tag_item(item, "TIFF", number) for number in numbers for item in items]
    if missing := sizes.count(None):
        raise ChipError(
            f"lacks {missing} of its {len(sizes)} blocks of pixels: it was not written to its end, is damaged, or was "
            "written as a sparse file; write it again"
        )


def _check_values(pixels: NDArray[np.generic], bands: tuple[int, ...], nodata: Sequence[float | None]) -> None:
    """Damaged strips that inflate without an error mostly hold floats with random exponents."""
    numbers, mask = part_masks(pixels)
    # Values that are not finite are for `on_nan` to judge, the others still for this. Looking for the bands is slower.
    extremes = np.array([numbers.min(), numbers.max()], np.float64)
    if np.isfinite(extremes).all() and np.abs(extremes).max() <= LARGEST:
        return
    for place, (number, band) in enumerate(zip(bands, numbers, strict=True)):
        there = np.isfinite(band) & (True if nodata[place] is None else band != nodata[place])
        there &= True if mask is None else ~mask[place]
        beyond = np.abs(band[there].astype(np.float64)).max(initial=0)
        if beyond > LARGEST:
            raise ChipError(
                f"has values of up to {beyond:.3g} in band {number}, expected none beyond {LARGEST:g}: "
                "it is damaged, or has a fill value"
            )


def _check_header(dataset: Any, path: str, tile: str, reading: Reading) -> _Header:
    _check_grid(dataset)
    numbers = order_bands(dataset.descriptions, reading.sensor)
    crs = dataset.crs
    epsg = crs.to_epsg() if crs else None
    if epsg is None or not crs.is_projected:
        found = "no CRS" if not crs else f"the CRS {short(crs.to_string())}"
        raise ChipError(f"has {found}, expected a projected one with an EPSG code, such as EPSG:32633")
    if dataset.transform.is_identity:
        raise ChipError("has no georeferencing: expected a geotransform of 10 m pixels")
    step_x, shear_x, _, shear_y, step_y, _ = dataset.transform[:6]
    sides = [step * metres_of_unit(epsg) for step in (step_x, -step_y)]
    # Written so that NaN is refused.
    if not (shear_x == shear_y == 0 and all(_SMALLEST_PIXEL <= side <= _LARGEST_PIXEL for side in sides)):
        raise ChipError(
            f"has the geotransform {', '.join(map(exact, dataset.transform[:6]))}: expected 10 m pixels, "
            "rows from north to south, not rotated"
        )
    if (wanted := reading.resolution) is not None and not np.allclose(sides, wanted, rtol=_PIXEL_ERROR, atol=0):
        raise ChipError(
            f"has pixels of {exact(sides[0])} x {exact(sides[1])} m, expected {exact(wanted)} m: resample it"
        )
    tag = dataset.tags().get("date")
    if tag is None:
        raise ChipError("has no `date` tag, expected date=YYYY-MM-DD")
    day = _parse_date(tag) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", tag) else None
    if day is None or not 2014 <= day.year <= 2100:
        raise ChipError(f"has the `date` tag {short(tag)!r}, expected YYYY-MM-DD within the years of Sentinel-1 and -2")
    named = _NAME.fullmatch(path.rpartition("/")[2])
    if named is not None:
        if named["tile"] != tile:
            raise ChipError(f"is named after tile {named['tile']}, expected {tile}")
        if (dated := _parse_date(named["date"])) is not None and dated != day:
            raise ChipError(f"is named after {dated}, but its `date` tag says {day}")
    return _Header(day, epsg, tuple(dataset.bounds), numbers, ())


class _RangedFile(io.RawIOBase):
    """A remote TIFF's header as a file: one small request, and one more where the directory is elsewhere."""

    _FIRST, _NEXT = 16 * 1024, 64 * 1024

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._position = fetch, size, 0
        self._ranges: list[tuple[int, bytes]] = []
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = min(self._size, self._size if size < 0 else start + size)
        if end <= start:
            return b""
        data = self._cached(start, end)
        if data is None:
            length = max(self._NEXT if self._ranges else self._FIRST, end - start)
            try:
                fetched = self._fetch(start, min(self._size, start + length))
            except Exception as error:
                # GDAL swallows an exception of a callback: it is raised again once GDAL has given up.
                self.failure = error
                return b""
            self._ranges.append((start, fetched))
            data = fetched[: end - start]
        self._position = start + len(data)
        return data

    def _cached(self, start: int, end: int) -> bytes | None:
        for first, data in self._ranges:
            if first <= start and end <= first + len(data):
                return data[start - first : end - first]
        return None


def _to_frame(listing: Listing, reading: Reading, headers: list[_Header | str]) -> gpd.GeoDataFrame:
    entries = listing.entries
    headers = list(headers)
    lon, lat = np.full((2, len(headers)), np.nan)
    footprints = np.full(len(headers), None, dtype=object)
    bounds = np.array([h.bounds if isinstance(h, _Header) else (np.nan,) * 4 for h in headers]).reshape(-1, 4)
    for epsg in sorted({header.epsg for header in headers if isinstance(header, _Header)}):
        found = {row: h.bounds for row, h in enumerate(headers) if isinstance(h, _Header) and h.epsg == epsg}
        rows = np.array(list(found))
        lon[rows], lat[rows], footprints[rows] = to_lonlat(epsg, np.array(list(found.values())))
        for row in (row for row in found if footprints[row] is None):
            headers[row] = (
                f"has the bounds {', '.join(map(exact, found[row]))} (west, south, east, north), "
                f"expected a place in EPSG:{epsg}"
            )
        for row, reason in zip(found, elsewhere(listing.tile, np.array(list(found.values())), epsg), strict=True):
            if reason is not None and footprints[row] is not None:
                headers[row] = reason
    good = [header if isinstance(header, _Header) else None for header in headers]
    urls = [listing.storage.url_of(entry.path) for entry in entries]
    names, rules = reading.sensor.names, reading.rules.or_else(zeros=False, nan=False, max_cloud=NEVER)
    chips = [
        header
        and GeotiffChip(url, names, header.bands, rules, (entry.size, entry.etag), header.scales, header.sidecars)
        for url, entry, header in zip(urls, entries, good, strict=True)
    ]
    index = pd.DataFrame(
        {
            "source_url": urls,
            "source": "geotiff",
            "date": pd.Series([header and header.date for header in good], dtype=object),
            "epsg": pd.array([header and header.epsg for header in good], dtype="Int32"),
            "lat": lat,
            "lon": lon,
            **dict(zip(EDGES, bounds.T, strict=True)),
            "chip": pd.Series(chips, dtype=object),
            "coverage": [1.0 if header else np.nan for header in good],
            "size": [entry.size for entry in entries],
            "etag": [entry.etag for entry in entries],
            "quarantined": pd.Series([h if isinstance(h, str) else None for h in headers], dtype=object),
        }
    )
    frame = gpd.GeoDataFrame(index, geometry=gpd.GeoSeries(footprints, crs="OGC:CRS84"))
    return frame[list(INDEX_COLUMNS)].sort_values("source_url", ignore_index=True)
