"""Synthetic scenes of catalogues: files in their true layout, of which each pixel is known by its row and column.

Sentinel-2 in 10, 20 and 60 m on a tile's own grid, radar in a neighbouring UTM zone, elevation in tiles of one degree.
All are views of one `landscape`, repeated without end and begun elsewhere in each image, so that their numbers are
plausible and a pixel that is read from the wrong image, row or column is seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskembed.geo.mgrs import TILE, check_tile, tile_corner
from daskembed.testing import items
from daskembed.testing.images import HeightImage, Image, OpticalImage, RadarImage
from daskembed.testing.landscape import BANDS, landscape

_PERIOD = 1024
_SLOPE = 8
"""Rows in which the edge of a swath goes west by a column."""
_OVERLAP, _RADAR_OVERLAP = 60, 2000
"""Metres that the two parts of an image have in common; of radar, which may be of two zones, more."""
_DARK = 997
"""Of so many pixels one is darker than nothing, as corrected reflectances are now and then."""
_STEPS = dict.fromkeys(("B02", "B03", "B04", "B08"), 10) | {"B01": 60, "B09": 60}
_WIDTHS = ((50, 3600), (60, 2400), (70, 1800), (80, 1200), (85, 720), (90, 360))
"""Degrees from the equator, and how many pixels of elevation a degree of longitude has that is nearer to it."""
_MARGIN = 500
"""Metres that radar reaches beyond the other images."""


@cache
def _texture() -> NDArray[np.float32]:
    return landscape(_PERIOD, _PERIOD)


@dataclass(frozen=True)
class Raster:
    """A file whose pixels are known."""

    path: str
    """Within the folder of the scenes."""
    band: str
    """Of `BANDS`; ``scl``, or one of the bands of 60 m."""
    epsg: int
    west: float
    north: float
    steps: tuple[float, float]
    """Width and height of a pixel, in the CRS's unit."""
    shape: tuple[int, int]
    seed: int
    """Where in the landscape it begins."""
    nothing: float | None = None
    """What is stored where nothing was seen, and its nodata tag."""
    added: int = 0
    """To each digital number."""
    part: str = ""
    """``west`` or ``east`` of the edge of a swath; all of it if empty."""
    constant: float | None = None
    """What is stored where something was seen, in place of a landscape."""
    window: tuple[slice, slice] | None = None
    """Rows and columns of the landscape, beyond which all is 0; all of them if None."""

    def values(self, rows: ArrayLike, cols: ArrayLike) -> NDArray[Any]:
        """What is stored in some pixels, by their indices, which are broadcast against each other."""
        y, x = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
        kind = {"dem": np.float32, "vv": np.float32, "vh": np.float32, "scl": np.uint8}.get(self.band, np.uint16)
        stored = (
            self._landscape(y, x)
            if self.constant is None
            else np.full(np.broadcast_shapes(y.shape, x.shape), self.constant)
        )
        if self.window is not None:
            inside = [
                (part.start <= index) & (index < part.stop) for part, index in zip(self.window, (y, x), strict=True)
            ]
            stored = np.where(inside[0] & inside[1], stored, 0)
        if self.nothing is not None:
            stored = np.where(self.seen(y, x), stored, self.nothing)
        pixels: NDArray[Any] = stored.astype(kind)
        return pixels

    def seen(self, rows: ArrayLike, cols: ArrayLike) -> NDArray[np.bool_]:
        """Whether some pixels are in the swath."""
        x = self.west + (np.asarray(cols) + 0.5) * self.steps[0]
        beyond = x - self.edge_at(self.north - (np.asarray(rows) + 0.5) * self.steps[1])
        common = _RADAR_OVERLAP if self.band in ("vv", "vh") else _OVERLAP
        if self.part == "west":
            seen: NDArray[np.bool_] = beyond < common / 2
            return seen
        if self.part == "east":
            seen = beyond >= -common / 2
            return seen
        return np.ones(beyond.shape, bool)

    def edge_at(self, northing: ArrayLike) -> NDArray[np.float64]:
        """Eastings of the edge of the swath, which goes through the middle of the file."""
        height, width = (step * length for step, length in zip(self.steps[::-1], self.shape, strict=True))
        south = self.north - np.asarray(northing) - height / 2
        east: NDArray[np.float64] = self.west + width / 2 - south / _SLOPE
        return east

    def _landscape(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[Any]:
        if self.band in ("dem", "vv", "vh"):
            return self._texture(self.band, y, x)
        finer = round(self.steps[0] / 10)
        if self.band == "scl":
            red, near = (self._texture(band, finer * y, finer * x) for band in ("B04", "B08"))
            return np.where(near < 300, 6, np.where(near > 2 * red, 4, 5))
        band = {"B01": "B02", "B09": "B8A"}.get(self.band, self.band)
        numbers = self._texture(band, finer * y, finer * x)
        dark = (7 * y + 13 * x) % _DARK == 0
        stored: NDArray[Any] = np.maximum(np.where(dark, -10, numbers) + self.added, 1)
        return stored

    def _texture(self, band: str, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, cols = (y + 211 * self.seed) % _PERIOD, (x + 337 * self.seed) % _PERIOD
        pixels: NDArray[np.float32] = _texture()[BANDS.index(band)][rows, cols]
        return pixels

    def write(self, folder: Path, *, block: int = 512) -> None:
        """Write it below a folder, as a Cloud Optimized GeoTIFF or, by its name, as JPEG 2000 without loss."""
        import rasterio
        from rasterio.transform import Affine

        height, width = self.shape
        rows, cols = self.window or (slice(0, height), slice(0, width))
        part = self.values(np.arange(height)[rows, None], np.arange(width)[cols])
        pixels = np.zeros(self.shape, part.dtype)
        pixels[rows, cols] = part
        target = folder / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        profile: dict[str, Any] = {"crs": f"EPSG:{self.epsg}", "dtype": pixels.dtype, "count": 1}
        if target.suffix == ".jp2":
            profile |= {"driver": "JP2OpenJPEG", "reversible": "yes", "quality": 100}
            profile |= {"blockxsize": block, "blockysize": block}
        else:
            profile |= {"driver": "COG", "blocksize": block, "compress": "deflate", "level": 1, "predictor": "yes"}
            profile |= {"overview_resampling": "nearest", "bigtiff": "no", "nodata": self.nothing}
            if self.window is not None:
                profile["overviews"] = "none"
        transform = Affine(self.steps[0], 0, self.west, 0, -self.steps[1], self.north)
        with rasterio.open(target, "w", height=height, width=width, transform=transform, **profile) as image:
            image.write(pixels, 1)


@dataclass(frozen=True)
class Scenes:
    """What `write_scenes` has written."""

    folder: Path
    tile: str
    file: Path
    """The ItemCollection."""
    description: Path
    """Of it as a catalogue that tells where the +1000 is in the files."""
    items: list[dict[str, Any]]
    rasters: dict[str, dict[str, Raster]]
    """Item's id -> band, or ``scl`` -> its file."""
    bounds: tuple[float, float, float, float]
    """West, south, east and north of the extent, degrees."""
    style: str
    root: str
    """What hrefs begin with."""

    def describe(self, url: str) -> None:
        """Write the description of the catalogue for another place of its items: the URL of a STAC API."""
        self.description.write_text(items.catalogue_of(self.style, url, self.root))


def _near(first: float, last: float, length: int) -> slice:
    """Indices of a range and a few more, of those that there are."""
    start, stop = max(0, math.floor(first) - 9), min(length, math.ceil(last) + 9)
    return slice(start, max(start, stop))


@dataclass(frozen=True)
class _Named:
    """The files of one item."""

    id: str
    files: dict[str, Raster]
    bounds: tuple[float, float, float, float] | None = None
    """Degrees, of elevation."""


@dataclass(frozen=True)
class _Extent:
    """What of a tile the files hold."""

    tile: str
    start: tuple[int, int]
    shape: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int, int]:
        """EPSG code, west and north, metres."""
        epsg, west, north = tile_corner(self.tile)
        return epsg, west + 10 * self.start[1], north - 10 * self.start[0]

    def bounds_in(self, epsg: int) -> tuple[float, float, float, float]:
        """West, south, east and north in another CRS; beyond 180 degrees east goes on."""
        from pyproj import Transformer

        own, west, north = self.corner
        south, east = north - 10 * self.shape[0], west + 10 * self.shape[1]
        there = Transformer.from_crs(own, epsg, always_xy=True)
        left, bottom, right, top = there.transform_bounds(west, south, east, north, densify_pts=41)
        return left, bottom, right + 360 * (right < left), top

    def rasters(self, image: Image, style: str, seed: int) -> Iterator[_Named]:
        """The items that an image has, and the files of each."""
        if isinstance(image, HeightImage):
            yield from self._heights(image, seed)
        elif isinstance(image, RadarImage):
            yield self._radar(image, style, seed)
        else:
            yield self._optical(image, style, seed)

    def _optical(self, image: OpticalImage, style: str, seed: int) -> _Named:
        words, name = items.STYLES[style], items.name_of(style, self.tile, image)
        added = 1000 if words.offset and image.baseline >= "04.00" else 0
        epsg, west, north = self.corner

        def raster(band: str, asset: str) -> Raster:
            step = _STEPS.get(band, 20)
            height, width = (-(-10 * length // step) for length in self.shape)
            path = f"{words.store}/{self.tile}/{name}/{asset}.{words.suffix}"
            made = Raster(path, band, epsg, west, north, (step, step), (height, width), seed, 0, added, image.part)
            return replace(made, constant=image.classes) if band == "scl" else made

        return _Named(name, {band: raster(band, asset) for band, asset in words.assets.items()})

    def _radar(self, image: RadarImage, style: str, seed: int) -> _Named:
        name = items.name_of(style, self.tile, image)
        epsg = self.corner[0] + image.zone
        west, south, east, north = self.bounds_in(epsg)
        left, top = 10 * ((west - _MARGIN) // 10), 10 * ((north + _MARGIN) // 10)
        shape = math.ceil((top - south + _MARGIN) / 10), math.ceil((east - left + _MARGIN) / 10)
        constant = 0 if image.zeros else None

        def raster(band: str) -> Raster:
            path = f"sentinel1-grd-rtc/{name}/iw-{band}.rtc.tiff"
            return Raster(path, band, epsg, left, top, (10, 10), shape, seed, -32768, 0, image.part, constant)

        return _Named(name, {band: raster(band) for band in image.bands})

    def _heights(self, image: HeightImage, seed: int) -> Iterator[_Named]:
        west, south, east, north = _Extent(self.tile, (0, 0), (TILE // 10, TILE // 10)).bounds_in(4326)
        for latitude in range(math.floor(south), math.floor(north) + 1):
            for unturned in range(math.floor(west), math.floor(east) + 1):
                longitude = (unturned + 180) % 360 - 180
                place = f"{'NS'[latitude < 0]}{abs(latitude):02d}_00_{'EW'[longitude < 0]}{abs(longitude):03d}_00"
                if place not in image.without:
                    yield self._degree(place, latitude, longitude, seed, unturned - longitude)

    def _degree(self, place: str, latitude: int, longitude: int, seed: int, turn: int) -> _Named:
        name = f"Copernicus_DSM_COG_10_{place}"
        far = max(abs(latitude), abs(latitude + 1) - 1)
        width = next(width for limit, width in _WIDTHS if far < limit)
        step_x, step_y = 1 / width, 1 / 3600
        # Its first pixels are centred on the degree's western and northern edge.
        west, north = longitude - step_x / 2, latitude + 1 + step_y / 2
        path = f"copernicus-dem/{name}_DEM.tif"
        # The degrees differ from each other, too.
        own = seed + 10 * latitude + longitude
        bounds = self.bounds_in(4326)
        # Of an extent on the other side of 180 degrees from the tile's corner, too.
        if bounds[0] > turn + longitude + 2:
            turn += 360
        first, last = (north - bounds[3]) / step_y, (north - bounds[1]) / step_y
        left, right = (bounds[0] - turn - west) / step_x, (bounds[2] - turn - west) / step_x
        rows, cols = _near(first, last, 3600), _near(left, right, width)
        raster = Raster(path, "dem", 4326, west, north, (step_x, step_y), (3600, width), own, window=(rows, cols))
        return _Named(f"{name}_DEM", {"dem": raster}, (west, north - 1, west + 1, north))


FIRST_IMAGES: tuple[Image, ...] = (
    OpticalImage("2024-06-02T10:20:31Z", part="west"),
    OpticalImage("2024-06-02T10:20:45Z", part="east"),
    OpticalImage(
        "2024-06-02T10:20:31Z", part="west", baseline="02.14", processed="2024-06-02T12:00:00Z", listed_only=True
    ),
    OpticalImage("2024-06-12T10:20:31Z", cloud=71.5, listed_only=True),
    OpticalImage("2021-06-03T10:20:31Z", cloud=4.25, baseline="03.00"),
    RadarImage("2024-06-01T05:10:02Z", part="west"),
    RadarImage("2024-06-01T05:10:27Z", part="east"),
    RadarImage("2021-06-04T05:10:02Z"),
    HeightImage(),
)
"""One date of two parts, of which one has a redundant copy; a cloudy date; one of before the +1000; their radar."""


def write_scenes(
    folder: str | Path,
    *,
    tile: str = "33TUL",
    images: Sequence[Image] = FIRST_IMAGES,
    style: str = "planetary-computer",
    start: tuple[int, int] = (0, 0),
    shape: tuple[int, int] = (1080, 1080),
    root: str | None = None,
    block: int = 512,
) -> Scenes:
    """Write files of a tile's scenes; ``items.json``, the ItemCollection that lists them; and ``catalogue.yaml``.

    Items claim the whole tile, as the ones of true catalogues do; the files hold a part of it, so that they are made
    in a second. Beyond it nothing was seen.

    Parameters
    ----------
    folder
        Where all goes.
    tile
        MGRS tile.
    images
        What is to be there.
    style
        Whose names and properties the items have; see `daskembed.testing.items.STYLES`.
    start, shape
        Pixels (y, x) of 10 m: where in the tile the files begin, and their size; multiples of 6.
    root
        What hrefs begin with in place of the folder, such as the URL of a server that shows it.
    block
        Pixels of a stored block's side.
    """
    folder, tile = Path(folder).resolve(), check_tile(tile)
    root = root or f"file://{folder}"
    extent = _Extent(tile, start, shape)
    rasters: dict[str, dict[str, Raster]] = {}
    features, files = [], list[Raster]()
    for seed, image in enumerate(images, start=1):
        for named in extent.rasters(image, style, seed):
            if not (isinstance(image, OpticalImage) and image.listed_only):
                files += named.files.values()
            rasters[named.id] = named.files
            hrefs = {band: f"{root}/{raster.path}" for band, raster in named.files.items()}
            features.append(items.item(style, tile, image, named.id, hrefs, named.files, named.bounds))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda raster: raster.write(folder, block=block), files))
    file = folder / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=1))
    description = folder / "catalogue.yaml"
    made = Scenes(folder, tile, file, description, features, rasters, extent.bounds_in(4326), style, root)
    made.describe(str(file))
    return made
