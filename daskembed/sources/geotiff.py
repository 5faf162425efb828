"""Chips as GeoTIFF files in Clay's layout: a tile's listing, its index of headers, and a chip's values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np

from daskembed.errors import ChipError, TileError
from daskembed.health import read_surely
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources.chip import ReadChip
from daskembed.sources.days import within
from daskembed.sources.frame import Placed, frame_of
from daskembed.sources.gdal import SIDECARS
from daskembed.sources.geotiff_header import Header, named_date, read_header
from daskembed.sources.geotiff_pixels import (
    GONE,
    SIZE,
    read_chip,
)
from daskembed.sources.listing import Listing
from daskembed.sources.pixel_rules import NEVER, check_pixels
from daskembed.sources.reading import Reading
from daskembed.sources.region import chips_within
from daskembed.sources.rules import NO_RULES, Rules
from daskembed.sources.scales import Scale, note_of
from daskembed.sources.values import part_masks, to_values
from daskembed.storage.stores import Entry, Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS = tuple(band.name for band in CLAY_V0.bands)
"""Bands of a chip in Clay's layout, by their descriptions in the file and in the order of files without any."""


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
        """Pixels ``(band, y, x)``; see `Chip`."""
        return self.read_with_findings().pixels

    def read_with_findings(self) -> ReadChip:
        """Pixels and what is unusual about them; see `Chip` and `read_chip`."""
        beside = {"sidecars": self.sidecars} if self.sidecars else {}
        stored, masked = part_masks(read_chip(self.url, self.numbers, self.listed, **beside))
        pixels, findings = to_values(stored, self.bands, self.scales, masked)
        check_pixels(pixels, self.bands, self.rules, findings)
        return ReadChip(pixels, findings)


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
        entries = [entry for entry in entries if (named := named_date(entry.path)) is None or within(named, dates)]
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
    names, rules = reading.sensor.names, reading.rules.or_else(zeros=False, nan=False, max_cloud=NEVER)

    def placed(entry: Entry, header: Header | str) -> Placed | str:
        if isinstance(header, str):
            return header
        url, listed = listing.url_of(entry), (entry.size, entry.etag)
        chip = GeotiffChip(url, names, header.bands, rules, listed, header.scales, header.sidecars)
        return Placed(chip, header.date, header.epsg, header.bounds)

    found = list(map(placed, listing.entries, _set_copies_aside(listing, headers)))
    outside = "has the bounds {bounds} (west, south, east, north), expected a place in EPSG:{epsg}"
    index = frame_of(listing, found, outside=outside, apart=True).sort_values("source_url", ignore_index=True)
    if (dates := reading.dates) is not None:
        # Chips whose date is not known are kept, so that they are reported.
        index = index[[day is None or within(day, dates) for day in index["date"]]].reset_index(drop=True)
        if index.empty:
            raise _none_within(listing.tile, dates)
    # Likewise those whose place is not known.
    near = chips_within(listing.tile, reading.region, index.geometry.to_numpy())
    return index[near].reset_index(drop=True)


def _is_chip(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("claytile_") and name.endswith(".tif")


def _none_within(tile: str, dates: tuple[date, date]) -> TileError:
    return TileError(f"no chips of tile {tile} from {dates[0]} to {dates[1]}: check `dates`")


def _set_copies_aside(listing: Listing, headers: list[Header | str]) -> list[Header | str]:
    """Keep the first usable one of the chips that share name and date, in the order of their paths."""
    kept: dict[tuple[str, date], str] = {}
    unique: list[Header | str] = []
    for entry, header in zip(listing.entries, headers, strict=True):
        url = listing.url_of(entry)
        if isinstance(header, Header):
            first = kept.setdefault((entry.path.rpartition("/")[2], header.date), url)
            if first != url:
                header = f"is a copy of {first}: a tile may hold a chip's name and date once; remove one of the two"
        unique.append(header)
    return unique


def _header_or_reason(listing: Listing, entry: Entry, reading: Reading) -> Header | str:
    sidecars = tuple(end for end in SIDECARS if any(one.path == f"{entry.path}{end}" for one in listing.sidecars))
    storage = listing.storage
    assert storage is not None

    def read(fresh: bool) -> Header:
        try:
            return read_header(storage, entry, listing.tile, reading, sidecars, fresh=fresh)
        except FileNotFoundError:
            raise ChipError(GONE) from None

    try:
        return read_surely(listing.url_of(entry), read)
    except ChipError as error:
        return str(error)
