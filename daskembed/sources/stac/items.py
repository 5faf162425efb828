"""Items of catalogues: what they say, typed, whatever version of STAC and of its extensions they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import shapely
import shapely.geometry

from daskembed.errors import StorageError
from daskembed.geo.footprints import box
from daskembed.sources.baseline import named_baseline
from daskembed.storage.urls import USER, is_local

if TYPE_CHECKING:
    from daskembed.sources.stac.catalogue import Catalogue


@dataclass(frozen=True)
class Asset:
    """A file of an item."""

    href: str
    """Where it lies, without a signature."""
    size: int | None = None
    """Bytes, where the item says it."""


@dataclass(frozen=True)
class Item:
    """What is used of one item."""

    collection: str
    id: str
    url: str
    """Its own, in its catalogue, without a query: what chips are named after."""
    time: datetime
    """When it was sensed, UTC."""
    bbox: tuple[float, float, float, float]
    """West, south, east and north, degrees; west is more than east across 180 degrees."""
    footprint: str
    """WKT in OGC:CRS84, of its ``geometry``, or its bounding box where it has none."""
    assets: Mapping[str, Asset] = field(repr=False)
    """By key; of those that its catalogue has a use for."""
    tile: str | None = None
    """MGRS tile, of Sentinel-2."""
    baseline: str | None = None
    """Processing baseline as it is written, such as ``05.09``, of Sentinel-2."""
    cloud: float | None = None
    """Percent."""
    nodata: float | None = None
    """Percent of the tile, of Sentinel-2."""
    platform: str | None = None
    """In small letters."""
    orbit_state: str | None = None
    """``ascending`` or ``descending``."""
    relative_orbit: int | None = None
    acquisition: str | None = None
    """The same of all products of one acquisition: of Sentinel-2 its datatake without the baseline."""
    processed: str | None = None
    """When it was made, ISO 8601 in UTC."""


_PRODUCT = ("s2:product_uri", "_private.product_name", "s2:granule_id", "eopf:product_name")
_TILE = re.compile(r"_T(\d{2}[C-X][A-Z]{2})_")
_ORBIT = re.compile(r"_R(\d{3})_")


def parse_item(raw: Mapping[str, Any], catalogue: Catalogue) -> Item:
    """What is used of an item as its catalogue gives it.

    Raises
    ------
    StorageError
        If it is no STAC item.
    """
    try:
        return _parse(raw, catalogue)
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
        named = f" {raw['id']!s:.80}" if isinstance(raw, Mapping) and "id" in raw else ""
        told = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise StorageError(f"{catalogue.name}: the item{named} is no STAC item: {told}") from None


def _parse(raw: Mapping[str, Any], catalogue: Catalogue) -> Item:
    told: Mapping[str, Any] = raw["properties"]
    collection, name = str(raw.get("collection") or ""), str(raw["id"])
    links = [link["href"] for link in raw.get("links", []) if link.get("rel") == "self"]
    place = f"{catalogue.url}/{collection}/{name}" if catalogue.is_file else _own(catalogue, collection, name)
    url = _bare(_join(catalogue.url, links[0])) if links else place
    names = (name, *(_text(told, key) or "" for key in _PRODUCT))
    tile = _tile(told, names)
    time = told.get("datetime") or told["start_datetime"]
    footprint, bbox = _place(raw)
    platform = (_text(told, "platform") or "").lower() or None
    baseline = _text(told, "s2:processing_baseline", "processing:version") or _in_names(names)
    datatake = _text(told, "s2:datatake_id", "eopf:datatake_id")
    sensed = _utc(time)
    return Item(
        collection=collection,
        id=name,
        url=url,
        time=sensed,
        bbox=bbox,
        footprint=shapely.to_wkt(footprint, rounding_precision=7),
        assets=_assets(raw, collection, url if links else catalogue.url, catalogue),
        tile=tile,
        baseline=baseline if tile else None,
        cloud=_percent(told, "eo:cloud_cover"),
        nodata=_percent(told, "s2:nodata_pixel_percentage", "statistics.nodata") if tile else None,
        platform=platform,
        orbit_state=(_text(told, "sat:orbit_state") or "").lower() or None,
        relative_orbit=_orbit(told, names),
        acquisition=re.sub(r"_N\d\d\.?\d\d$", "", datatake) if datatake else f"{platform}_{sensed:%Y%m%dT%H%M%S}",
        processed=_processed(told),
    )


def _own(catalogue: Catalogue, collection: str, name: str) -> str:
    return f"{catalogue.url}/collections/{collection}/items/{name}"


def _assets(raw: Mapping[str, Any], collection: str, base: str, catalogue: Catalogue) -> dict[str, Asset]:
    """Those that the catalogue has a use for; none on this machine where the catalogue is not."""
    keys = {
        key
        for images in catalogue.images
        if images.collection == collection
        for some in (*images.bands.values(), images.classes)
        for key in some
    }
    here = is_local(catalogue.url)
    found = {}
    for key, asset in raw.get("assets", {}).items():
        if key in keys:
            # Whatever the items of a file are called, their files may have been put on this machine.
            href = _bare(_join(catalogue.url if here and asset["href"].startswith("/") else base, asset["href"]))
            if here or not is_local(href):
                found[key] = Asset(href, _whole(asset.get("file:size")))
    return found


def _join(base: str, href: str) -> str:
    """Where a link leads that may be told from where it is written; `urljoin` knows no buckets."""
    if "://" in href:
        return href
    scheme, mark, rest = base.partition("://")
    return scheme + urljoin(f"https://{rest}", href).removeprefix("https") if mark else urljoin(base, href)


def _bare(url: str) -> str:
    """Without a user and a query, which may be a password and a signature, and without a fragment."""
    return re.split(r"[?#]", USER.sub("", url), maxsplit=1)[0]


def _look(told: Mapping[str, Any], key: str) -> Any:
    """A property, or one within another with a point between their names; None if there is none."""
    value: Any = told
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(told: Mapping[str, Any], *keys: str) -> str | None:
    """The first of some properties that is a text."""
    return next((found for key in keys if isinstance(found := _look(told, key), str) and found), None)


def _in_names(names: tuple[str, ...]) -> str | None:
    digits = next((found for name in names if (found := named_baseline(name))), None)
    return digits and f"{digits[:2]}.{digits[2:]}"


def _tile(told: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    if tile := _text(told, "s2:mgrs_tile"):
        return tile.removeprefix("T").zfill(5)
    code = _text(told, "grid:code") or ""
    if code.startswith("MGRS-"):
        return code.removeprefix("MGRS-").zfill(5)
    return next((found[1] for name in names if (found := _TILE.search(f"{name}_"))), None)


def _orbit(told: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    if (orbit := _whole(told.get("sat:relative_orbit"))) is not None:
        return orbit
    return next((int(found[1]) for name in names if (found := _ORBIT.search(name))), None)


def _percent(told: Mapping[str, Any], *keys: str) -> float | None:
    """The first of some properties that is a percentage; some say -1 where they do not know."""
    numbers = (value for key in keys if isinstance(value := _look(told, key), int | float) and value is not True)
    return next((float(value) for value in numbers if 0 <= value <= 100), None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _processed(told: Mapping[str, Any]) -> str | None:
    text = _text(told, "s2:generation_time", "processing:datetime", "updated", "created")
    return text and _utc(text).isoformat(timespec="microseconds")


def _place(raw: Mapping[str, Any]) -> tuple[shapely.Geometry, tuple[float, float, float, float]]:
    """Footprint, and west, south, east and north."""
    geometry, bounds = raw.get("geometry"), raw.get("bbox")
    shape = shapely.force_2d(shapely.geometry.shape(geometry)) if geometry else None
    if bounds:
        numbers = [float(value) for value in bounds]
        if len(numbers) not in (4, 6):
            raise ValueError(f"its bbox has {len(numbers)} numbers")
        # The third and the sixth of six are heights.
        west, south, east, north = (*numbers[:2], *numbers[len(numbers) // 2 :][:2])
    elif shape is not None and not shape.is_empty:
        west, south, east, north = shape.bounds
    else:
        raise ValueError("it has neither geometry nor bbox")
    return box(west, south, east, north) if shape is None or shape.is_empty else shape, (west, south, east, north)
