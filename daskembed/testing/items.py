"""STAC items of synthetic scenes, in the words of three catalogues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import shapely.affinity
import shapely.geometry
import yaml
from pyproj import Transformer

from daskembed.geo.mgrs import TILE, tile_corner
from daskembed.testing.images import HeightImage, Image, OpticalImage, RadarImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.testing.scenes import Raster

_FAR = 200_000
"""Metres, more than any tile or scene has from one side to the other."""
_EXTENSIONS = "https://stac-extensions.github.io"
_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_COMMON = ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16")
_COARSE = {"B01": 60, "B09": 60} | dict.fromkeys(("B02", "B03", "B04", "B08"), 10)


@dataclass(frozen=True)
class Style:
    """How a catalogue says things of Sentinel-2."""

    collection: str
    store: str
    """Folder of its files."""
    offset: bool
    """Whether these keep the +1000 of newer baselines."""
    assets: Mapping[str, str]
    """Band, or ``scl`` -> key of its asset."""
    url: str
    """Of the API, for the items' own links."""
    suffix: str = "tif"
    """Of its files, which says what they are."""


STYLES = {
    "planetary-computer": Style(
        "sentinel-2-l2a",
        "sentinel2-l2",
        True,
        dict(zip(_NAMES, _NAMES, strict=True)) | {"scl": "SCL"},
        "https://planetarycomputer.example/api/stac/v1",
    ),
    "earth-search": Style(
        "sentinel-2-l2a",
        "sentinel-cogs",
        False,
        dict(zip(_NAMES, (*_COMMON, "swir22"), strict=True)) | {"scl": "scl"},
        "https://earth-search.example/v1",
    ),
    "cdse": Style(
        "sentinel-2-l2a",
        "eodata",
        True,
        {name: f"{name}_{_COARSE.get(name, 20)}m" for name in _NAMES} | {"scl": "SCL_20m"},
        "https://dataspace.example/v1",
        "jp2",
    ),
}
"""By the names of the catalogues."""

_RADAR, _HEIGHT = "sentinel-1-rtc", "cop-dem-glo-30"


def catalogue_of(style: str, url: str, root: str) -> str:
    """The description, YAML, of a catalogue that lists such items.

    Parameters
    ----------
    style
        Key of `STYLES`.
    url
        Of its API, or the path of its file of items.
    root
        What hrefs begin with.
    """
    words = STYLES[style]
    optical: dict[str, Any] = {"role": "optical", "collection": words.collection, "numbers": "sentinel-2"}
    optical |= {"classes": words.assets["scl"], "bands": {name: words.assets[name] for name in _NAMES}}
    radar = {"role": "radar", "collection": _RADAR, "numbers": "power", "bands": {"vv": "vv", "vh": "vh"}}
    height = {"role": "height", "collection": _HEIGHT, "numbers": "height", "bands": {"dem": "data"}}
    files = [{"at": f"{root}/{words.store}/", "offset": "in" if words.offset else "out"}]
    described = {"url": url, "images": [optical, radar, height], "files": files}
    text: str = yaml.safe_dump(described, sort_keys=False)
    return text


def collection_of(style: str, image: Image) -> str:
    """Where a catalogue lists an image."""
    if isinstance(image, OpticalImage):
        return STYLES[style].collection
    return _RADAR if isinstance(image, RadarImage) else _HEIGHT


def name_of(style: str, tile: str, image: OpticalImage | RadarImage) -> str:
    """The id of an image's item."""
    if isinstance(image, RadarImage):
        kind = {("vv", "vh"): "DV", ("vv",): "SV", ("hh", "hv"): "DH", ("hh",): "SH"}[image.bands]
        return f"S1A_IW_GRDH_1S{kind}_{image.sensed:%Y%m%dT%H%M%S}_rtc"
    if style == "earth-search":
        # Copies and parts of a day are told apart by a number.
        number = f"{image.sensed:%S}{image.baseline.replace('.', '')}"
        return f"S2A_{tile}_{image.sensed:%Y%m%d}_{number}_L2A"
    baseline = "" if style == "planetary-computer" else f"_N{image.baseline.replace('.', '')}"
    return f"S2A_MSIL2A_{image.sensed:%Y%m%dT%H%M%S}{baseline}_R122_T{tile}_{image.made:%Y%m%dT%H%M%S}"


def item(
    style: str,
    tile: str,
    image: Image,
    name: str,
    hrefs: Mapping[str, str],
    rasters: Mapping[str, Raster],
    bounds: tuple[float, float, float, float] | None = None,
) -> dict[str, Any]:
    """A STAC item.

    Parameters
    ----------
    style
        Key of `STYLES`.
    tile, image, name
        What it is of, and its id.
    hrefs, rasters
        Band, or ``scl`` -> where its file is, and what that holds.
    bounds
        Degrees, of elevation: west, south, east and north.
    """
    collection = collection_of(style, image)
    first = next(iter(rasters.values()))
    if isinstance(image, HeightImage):
        assert bounds is not None
        footprint = shapely.box(*bounds)
    else:
        footprint = _footprint(tile, image, first)
    code: dict[str, Any] = {"proj:epsg": first.epsg}
    if style == "cdse":
        code = {}
    elif isinstance(image, OpticalImage) and style == "earth-search":
        code = {"proj:code": f"EPSG:{first.epsg}"}
    if isinstance(image, OpticalImage):
        seen = footprint.area / _footprint(tile, replace(image, part=""), first).area
        properties = _optical(style, tile, image, round(100 - 100 * seen, 4))
        keys = STYLES[style].assets
    elif isinstance(image, RadarImage):
        properties = _radar(image)
        keys = {band: band for band in rasters}
    else:
        properties = {"datetime": "2021-04-22T00:00:00Z", "platform": "TanDEM-X", "gsd": 30}
        keys = {"dem": "data"}
    geometry, bbox = _around_the_world(footprint)
    url = STYLES[style].url
    return {
        "type": "Feature",
        "stac_version": "1.1.0" if style == "cdse" else "1.0.0",
        "stac_extensions": [f"{_EXTENSIONS}/projection/v1.1.0/schema.json", f"{_EXTENSIONS}/eo/v1.1.0/schema.json"],
        "id": name,
        "collection": collection,
        "bbox": bbox,
        "geometry": shapely.geometry.mapping(geometry),
        "properties": properties | code,
        "links": [
            {"rel": "self", "type": "application/geo+json", "href": f"{url}/collections/{collection}/items/{name}"},
            {"rel": "collection", "type": "application/json", "href": f"{url}/collections/{collection}"},
        ],
        "assets": {keys[band]: _asset(style, raster, hrefs[band]) for band, raster in rasters.items()},
    }


def _asset(style: str, raster: Raster, href: str) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": href,
        "type": "image/jp2" if href.endswith(".jp2") else "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "proj:shape": list(raster.shape),
        "proj:transform": [raster.steps[0], 0, raster.west, 0, -raster.steps[1], raster.north],
    }
    reflectance = raster.band.startswith("B")
    if style == "cdse":
        asset |= {"proj:code": f"EPSG:{raster.epsg}", "nodata": 0}
        if reflectance:
            asset |= {"raster:scale": 0.0001, "raster:offset": -0.1}
    elif style == "earth-search" and reflectance:
        # Either way, whether it is in the numbers or out of them.
        asset["raster:bands"] = [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}]
    elif raster.band in ("vv", "vh"):
        asset["raster:bands"] = [{"nodata": -32768, "data_type": "float32", "spatial_resolution": 10.0}]
    return asset


def _optical(style: str, tile: str, image: OpticalImage, empty: float) -> dict[str, Any]:
    day, baseline = f"{image.sensed:%Y%m%dT%H%M%S}", image.baseline
    common: dict[str, Any] = {
        "datetime": _written(image.sensed),
        "platform": "Sentinel-2A" if style == "planetary-computer" else "sentinel-2a",
        "constellation": "Sentinel 2" if style == "planetary-computer" else "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": image.cloud,
    }
    datatake = f"GS2A_{day}_041489_N{baseline}"
    if style == "cdse":
        return common | {
            "grid:code": f"MGRS-{tile}",
            "processing:version": baseline,
            "processing:datetime": _written(image.made),
            "product:type": "S2MSI2A",
            "eopf:datatake_id": datatake,
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 122,
            "statistics": {"nodata": empty},
        }
    common |= {
        "s2:processing_baseline": baseline,
        "s2:generation_time": _written(image.made),
        "s2:datatake_id": datatake,
        "s2:nodata_pixel_percentage": empty,
        "s2:product_type": "S2MSI2A",
    }
    if style == "earth-search":
        return common | {"grid:code": f"MGRS-{tile}", "earthsearch:boa_offset_applied": True, "updated": "2024-12-01"}
    return common | {"s2:mgrs_tile": tile, "sat:orbit_state": "descending", "sat:relative_orbit": 122}


def _radar(image: RadarImage) -> dict[str, Any]:
    return {
        "datetime": _written(image.sensed),
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "sar:instrument_mode": "IW",
        "sar:polarizations": [band.upper() for band in image.bands],
        "sat:orbit_state": image.orbit_state,
        "sat:relative_orbit": 95,
        "s1:product_timeliness": "NRT-3h",
    }


def _written(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _around_the_world(polygon: Any) -> tuple[Any, list[float]]:
    """A polygon that may go on beyond 180 degrees, cut there as GeoJSON has it, and its west, south, east and north."""
    found = []
    for turn in (0, -360, 360):
        part = shapely.affinity.translate(polygon, turn) & shapely.box(-180, -90, 180, 90)
        if not part.is_empty:
            found.append(part)
    west, south, east, north = polygon.bounds
    bbox = [(west + 180) % 360 - 180, south, (east + 180) % 360 - 180, north]
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found), bbox


def _footprint(tile: str, image: OpticalImage | RadarImage, raster: Raster) -> Any:
    """The whole tile or a part of it, a polygon in degrees that goes on beyond 180."""
    epsg, west, north = tile_corner(tile)
    # Radar is not cut to tiles.
    beyond = 5_000 if isinstance(image, RadarImage) else 0
    outline = shapely.box(west - beyond, north - TILE - beyond, west + TILE + beyond, north + beyond)
    middle = 6 * (epsg % 100) - 183
    whole = _in_degrees(outline, epsg, middle)
    if not image.part:
        return whole
    # The edge of the swath goes on beyond what the files hold of it.
    top, bottom = raster.north + _FAR, raster.north - _FAR
    upper, lower = (raster.edge_at(northing) for northing in (top, bottom))
    far = raster.west + (-_FAR if image.part == "west" else _FAR)
    side = shapely.Polygon([(upper, top), (lower, bottom), (far, bottom), (far, top)])
    return whole & _in_degrees(shapely.segmentize(side, _FAR / 20), raster.epsg, middle)


def _in_degrees(polygon: Any, epsg: int, middle: float) -> Any:
    """In degrees, of which the longitude is within half a turn of `middle`."""
    transform = Transformer.from_crs(epsg, 4326, always_xy=True).transform

    def degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
        longitude, latitude = transform(*points.T)
        return np.stack([(longitude - middle + 180) % 360 - 180 + middle, latitude], axis=-1).round(9)

    return shapely.transform(polygon, degrees)
