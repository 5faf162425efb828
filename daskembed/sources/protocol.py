"""Where chips come from: one module a kind of source, found by what a tile's folder holds."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, cast

from daskembed.encoders.description import CLAY_V0, Sensor
from daskembed.errors import InputError, TileError
from daskembed.geo.chips import square_of
from daskembed.storage.stores import Entry, Storage
from daskembed.geo.mgrs import check_tile

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy as np
    from numpy.typing import NDArray

    from daskembed.encoders import Encoder

SOURCES = {
    "geotiff": "daskembed.sources.geotiff",
    "zarr": "daskembed.sources.zarr",
    "raster": "daskembed.sources.raster",
}
"""Kind of source -> the module that implements `Source`."""

INDEX_COLUMNS = (
    "source_url",
    "source",
    "date",
    "epsg",
    "lat",
    "lon",
    "west",
    "south",
    "east",
    "north",
    "coverage",
    "chip",
    "size",
    "etag",
    "quarantined",
    "geometry",
)
"""Columns of a tile's index; `index_tile` says what each holds."""
EDGE = ("drop", "pad")
EDGES = ("west", "south", "east", "north")
"""Columns of a chip's bounds."""


@dataclass(frozen=True)
class Rules:
    """What a chip must be to be embedded; one that is not is rejected."""

    zeros: bool | None = None
    """Refuse a 0 in the first band of Sentinel-2 (B02), where Sentinel-2 saw nothing."""
    nan: bool | None = None
    """Refuse pixels that are not there, in any band: nodata, masked, not finite, or nothing that the band can be."""
    max_cloud: float | None = None
    """Refuse this share and more of cloud, shadow, saturation and nodata in the scene classification, if there is
    one."""
    keep_all: bool = False
    """Refuse nothing."""

    # What is None is for the kind of source to say: whole tiles are judged, ready-made chips were when they were cut.
    def or_else(self, *, zeros: bool, nan: bool, max_cloud: float) -> Rules:
        """These rules, with defaults for the ones that are not set."""
        if self.keep_all:
            return Rules(False, False, 2.0)
        return Rules(
            zeros if self.zeros is None else self.zeros,
            nan if self.nan is None else self.nan,
            max_cloud if self.max_cloud is None else self.max_cloud,
        )


NO_RULES = Rules()
"""All of them left to the kind of source."""


@dataclass(frozen=True)
class Reading:
    """How chips are found, cut and judged."""

    sensor: Sensor = CLAY_V0
    """Whose bands are read."""
    resolution: float | None = CLAY_V0.gsd
    """Metres that a pixel of a whole tile must have; None for any."""
    dates: tuple[date, date] | None = None
    """First and last acquisition date, both inclusive."""
    offset: tuple[int, int] = (0, 0)
    """Pixels (y, x) from a whole tile's north-west corner to that of its first chip."""
    edge: str = "drop"
    """Of chips that reach beyond a whole tile: ``drop`` them, or ``pad`` them with the pixels at its edge."""
    rules: Rules = NO_RULES
    numbers: str | None = None
    """Of bands with scale and offset: ``stored`` numbers or ``values``, where it is not clear which are meant."""
    offset_applied: str | None = None
    """Whether the +1000 of Sentinel-2's newer files is taken out of them already: ``yes`` or ``no``."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What is chosen in words, None where it is the default; without the dates and the sensor."""
        told = ", ".join(
            f"{name} {value}" for name, value in asdict(self.rules).items() if value is not None and value is not False
        )
        off = ", ".join(name for name in ("zeros", "nan") if getattr(self.rules, name) is False)
        return {
            "offset": f"{self.offset[0]},{self.offset[1]}" if any(self.offset) else None,
            "edge": self.edge if self.edge != EDGE[0] else None,
            "rules": "; ".join(filter(None, [told, off and f"not {off}"])) or None,
            **self.meaning,
        }

    @property
    def meaning(self) -> dict[str, str]:
        """What is said of the files' numbers; nothing where nothing is, as before there was anything to say."""
        said = {"numbers": self.numbers, "offset_applied": self.offset_applied}
        return {name: value for name, value in said.items() if value is not None}

    def check(self) -> None:
        """Raise `InputError` if it makes no sense."""
        if min(self.offset) < 0:
            raise InputError(
                f"--offset {self.offset[0]},{self.offset[1]}: expected pixels of at least 0, such as 0,256"
            )
        if self.edge not in EDGE:
            raise InputError(f"unknown --edge {self.edge!r}: choose one of {', '.join(EDGE)}")
        if self.numbers not in (None, "stored", "values"):
            raise InputError(f"unknown --numbers {self.numbers!r}: choose one of stored, values")
        if self.offset_applied not in (None, "yes", "no"):
            raise InputError(f"unknown --offset-applied {self.offset_applied!r}: choose one of yes, no")
        if self.rules.max_cloud is not None and not 0 <= self.rules.max_cloud <= 1.01:
            raise InputError(f"--max-cloud {self.rules.max_cloud:g}: expected a share from 0 to 1, such as 0.3")


def yes_or_no(said: Any) -> Any:
    """``yes`` or ``no``, of which YAML makes truth values."""
    return ("yes" if said else "no") if isinstance(said, bool) else said


class Chip(Protocol):
    """How to read one chip: what travels to a worker in place of pixels; small, frozen and comparable."""

    @property
    def url(self) -> str:
        """Its ``source_url``."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that `read` gives."""

    @property
    def unit(self) -> tuple[object, ...]:
        """The piece of storage that holds it.

        Blocks keep chips together whose units differ in the last place only, and read those of one unit one after the
        other.
        """

    @property
    def inside(self) -> tuple[int, int]:
        """How many of its pixels (y, x) were there; what `read` gives beyond was added."""

    def read(self) -> NDArray[np.generic]:
        """Pixels ``(band, y, x)`` in the source's own type, in the encoder's order of bands.

        Raises
        ------
        ChipError
            If the chip cannot be used; without its name.
        StorageError
            If the store does not answer.
        """


@dataclass(frozen=True)
class Listing:
    """A tile's chips as the store lists them, before any is read."""

    kind: str
    """Key of `SOURCES`."""
    storage: Storage
    tile: str
    entries: tuple[Entry, ...]
    """One a chip."""
    units: tuple[tuple[object, ...], ...] = ()
    """Their `Chip.unit`; empty if each has one of its own."""
    scenes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """URL of a whole tile at one date -> what its kind knows of it."""
    sidecars: tuple[Entry, ...] = ()
    """Files beside the chips that say more of their pixels."""
    refused: Mapping[str, int] = field(default_factory=dict, compare=False)
    """URL of a whole tile that cannot be used, of which there is one entry -> how many chips one beside it has."""

    @property
    def fingerprint(self) -> str:
        """Changes when a chip appears, disappears or is written anew."""
        made_of = (self.storage.url, self.entries, *([self.sidecars] if self.sidecars else []))
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    def by_chip(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """URL -> reason, with as many URLs for a whole tile that is refused as it would have chips."""
        more = {f"{url}/{n}": why for url, why in reasons.items() for n in range(1, self.refused.get(url, 1))}
        return {**reasons, **more}

    @property
    def coverage(self) -> tuple[str, ...]:
        """What of its whole tiles no chip has, and which chips reach beyond them: a line for those that are alike."""
        found: dict[str, list[str]] = {}
        for url, scene in self.scenes.items():
            for said in getattr(scene, "coverage", ()):
                found.setdefault(said, []).append(url)
        more = {said: f" and {len(urls) - 1} more" if len(urls) > 1 else "" for said, urls in found.items()}
        return tuple(f"{urls[0]}{more[said]}: {said}" for said, urls in found.items())


class Source(Protocol):
    """What a kind of source can do; modules implement it with plain functions."""

    def list_chips(self, tile: str, storage: Storage, reading: Reading) -> Listing | None:
        """List a tile's chips; None if there are none of this kind."""

    def read_headers(self, listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
        """The chips of a listing, one row each, in the columns `INDEX_COLUMNS`."""

    def describe(self, tile: str, storage: Storage) -> str:
        """Where chips of this kind are looked for, in words."""


def list_tile(tile: str, source: Storage, reading: Reading) -> Listing:
    """List a tile's chips, of the first of `SOURCES` that has some.

    Raises
    ------
    InputError
        If the source does not exist.
    TileError
        If there are none, or no such tile.
    StorageError
        If the source does not answer.
    """
    source.check_exists()
    try:
        square_of(tile)
    except InputError as error:
        raise TileError(str(error)) from None
    for kind in SOURCES:
        if (listing := _module(kind).list_chips(tile, source, reading)) is not None:
            return listing
    raise TileError(no_chips(tile, source))


def no_chips(tile: str, source: Storage) -> str:
    """What is said of a tile of which no kind of source finds chips."""
    places = ", ".join(_module(kind).describe(tile, source) for kind in SOURCES)
    return f"no chips of tile {tile}: expected {places}; check the tile id and --source"


def read_headers(listing: Listing, reading: Reading, *, readers: int = 16) -> gpd.GeoDataFrame:
    """The chips of a listing, one row each; see `index_tile`."""
    return _module(listing.kind).read_headers(listing, reading, readers=readers)


def _module(kind: str) -> Source:
    return cast(Source, importlib.import_module(SOURCES[kind]))


def index_tile(
    tile: str,
    source: str,
    *,
    encoder: Encoder | None = None,
    dates: tuple[date, date] | None = None,
    offset: tuple[int, int] = (0, 0),
    edge: str = "drop",
    rules: Rules = NO_RULES,
    numbers: str | None = None,
    offset_applied: str | None = None,
    readers: int = 16,
) -> gpd.GeoDataFrame:
    """List a tile's chips and read their headers, no pixels.

    Parameters
    ----------
    tile
        MGRS tile id, such as ``27WXN``.
    source
        Folder or URL above the tiles. The chips are all ``claytile_*.tif`` under ``{source}/{tile}/`` at any depth,
        or, where that folder is empty, ``{source}/claytile_{tile}_*.tif``.
    encoder
        Whose bands are read; by default the 13 of Clay v0.
    dates
        First and last acquisition date wanted, both inclusive.
    offset
        Pixels (y, x) from a whole tile's north-west corner to that of its first chip.
    edge
        Of chips that reach beyond a whole tile: ``drop`` or ``pad``, with the pixels at its edge.
    rules
        What a chip must be to be embedded; what they leave open is for the kind of source to say.
    numbers
        Of bands with a scale and an offset: ``stored`` takes the numbers as they are in the files, ``values`` what they
        stand for. By default what the encoder was trained on, and a file is refused where that cannot be told.
    offset_applied
        Whether the 1000 that ESA adds to Sentinel-2's numbers since 2022-01-25 is taken out of the files already:
        ``no`` takes it out of images that have it. By default what the files tell, else numbers are left.
    readers
        How many headers are read at a time.

    Returns
    -------
    geopandas.GeoDataFrame
        One row a chip in the order of ``source_url``, in OGC:CRS84: ``source_url`` (full URL, or absolute path of
        a local file), ``source`` (kind), ``date``, ``epsg``, ``lat`` and ``lon`` of the centre (degrees),
        ``west``, ``south``, ``east`` and ``north`` (bounds in the chip's own CRS), ``coverage`` (share of its pixels
        that are in the image: less than 1 where ``pad`` filled it up), ``chip`` (a `Chip`, which reads it; files hold
        an index without it: ``index.drop(columns="chip").to_parquet(...)``), ``size`` (bytes), ``etag``,
        ``quarantined`` (why the chip cannot be used; None if it can) and ``geometry`` (footprint). A row with a reason
        may lack the rest.

    Raises
    ------
    InputError
        If the tile id is bad or the source does not exist.
    TileError
        If the tile has no chips.
    StorageError
        If the source does not answer.
    """
    reading = Reading(
        dates=dates, offset=offset, edge=edge, rules=rules, numbers=numbers, offset_applied=offset_applied
    )
    if encoder is not None:
        reading = replace(reading, sensor=encoder.description.sensor, resolution=encoder.description.resolution)
    reading.check()
    return read_headers(list_tile(check_tile(tile), Storage(source), reading), reading, readers=readers)
