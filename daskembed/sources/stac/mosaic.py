"""One band of a scene, from several files, on the grid of the tile."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely

from daskembed.errors import ChipError, InputError
from daskembed.geo.cells import Grid, cell_bounds
from daskembed.sensors.bands import Band, Numbers, Sensor
from daskembed.sources.baseline import Evidence
from daskembed.sources.scales import Scale, settle
from daskembed.sources.stac import places
from daskembed.sources.stac.blocks import File, open_anew, start
from daskembed.sources.stac.images import GONE, Image
from daskembed.sources.stac.places import Places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources.reading import Reading

CLASSES = Numbers(None, 0, 255, "empty")
"""What the numbers of a scene classification are: where one file has 0, the next one may know."""
MARGIN = 2500.0
"""Metres by which footprints are taken to be wrong: those of corners alone are, by 1.9 km near the poles."""
_AROUND = {"nearest": 0, "bilinear": 2, "cubic": 4}
"""Pixels of a file around those of a window that resampling looks at."""
_TIGHT = 1e-9
"""Pixels of a file by which the place of a value may be wrong where it is resampled."""
_EDGE = 0.05
"""Degrees between the points of an edge that is projected."""


@dataclass(frozen=True)
class Part:
    """A file of a mosaic."""

    image: Image
    offset: int = 0
    """What is taken out of each of its numbers."""
    footprint: str = ""
    """WKT in OGC:CRS84 of where it has values; empty if that is not known."""
    item: str = ""
    """Id of its item, for messages."""


@dataclass(frozen=True)
class Mosaic:
    """One band of a scene from several files, of which the first that has a value counts: a `Layer`."""

    band: str
    parts: tuple[Part, ...]
    epsg: int
    west: float
    """Of the tile's north-western corner, in the CRS's unit; likewise `north`."""
    north: float
    step: float
    shape: tuple[int, int]
    scale: Scale
    """Of the band, as `scale_of_band` says it; by its `numbers` what is no value is known."""
    resampling: str = "nearest"
    """``nearest``, ``bilinear`` or ``cubic``, where a file's grid is not the tile's."""

    @property
    def coarser(self) -> int:
        """1: what is read is on the tile's grid."""
        return 1

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of its band, as it is read: the files' own scale and offset are in the numbers."""
        return (replace(self.scale, nodata=(), scale=1.0, offset=0.0, applied=True),)

    def open(self, *, fresh: bool = False) -> MosaicReader:
        """Open it for reading; a file that gave something wrong is read past caches from then on by itself."""
        return MosaicReader(self)


class MosaicReader:
    """An open mosaic, for any thread."""

    def __init__(self, mosaic: Mosaic) -> None:
        self._mosaic = mosaic
        self._grid = Grid(mosaic.epsg, mosaic.west, mosaic.north, mosaic.step, mosaic.step, *mosaic.shape)
        for part in mosaic.parts:
            if part.image.failure is None:
                start(part.image.url, part.image.access)

    def __call__(self, rows: slice, cols: slice) -> NDArray[np.generic]:
        """Pixels ``(1, y, x)``: see `begin`."""
        return self.begin(rows, cols)()

    def begin(self, rows: slice, cols: slice) -> Callable[[], NDArray[np.generic]]:
        """Have fetched what a window needs; what is returned waits for it and gives its pixels.

        They are ``(1, y, x)``, masked where no file has a value: in a band of which 0 stands for nothing it is 0.

        Raises
        ------
        ChipError
            If a file that the window needs is not there, or is damaged.
        StorageError
            If a store does not answer.
        """
        mosaic = self._mosaic
        step, shape = (mosaic.step, mosaic.step), _shape(rows, cols)
        window = shapely.box(*cell_bounds(mosaic.west, mosaic.north, step, rows.start, cols.start, shape))
        near = [part for part in mosaic.parts if _meets(part, mosaic.epsg, window)]
        covered = None
        for part in near:
            if part.image.failure is not None:
                break
            # One that cannot be read is told of where its pixels are needed.
            with contextlib.suppress(ChipError):
                self._begin(part, rows, cols)
            # What lies behind is needed where the first has no value; where it has some is known by its footprint.
            ground = _footprint(part.footprint, mosaic.epsg)
            if ground is None:
                break
            covered = ground if covered is None else covered.union(ground)
            if covered.buffer(-MARGIN).contains(window):
                break
        return functools.partial(self._read, near, rows, cols)

    def _begin(self, part: Part, rows: slice, cols: slice) -> None:
        found = _places(self._grid, (rows.start, rows.stop), (cols.start, cols.stop), _raster(part.image))
        if found is not None:
            with _named(self._mosaic.band, part):
                _file_of(part.image).begin(*self._window(part.image, found, _shape(rows, cols)))

    def _window(self, image: Image, found: Places, shape: tuple[int, int]) -> tuple[slice, slice]:
        """What is read of a file for `shape` pixels of the grid."""
        around = 0 if self._nearest(image) else _AROUND[self._mosaic.resampling]
        rows, cols = (
            # Where a file is finer, as many of its pixels more.
            slice(max(0, part.start - around * times), min(length, part.stop + around * times))
            for part, length, times in (
                (part, length, max(1, -(-(part.stop - part.start) // wanted)))
                for part, length, wanted in zip(
                    (found.rows, found.cols), (image.height, image.width), shape, strict=True
                )
            )
        )
        return rows, cols

    def _nearest(self, image: Image) -> bool:
        """Whether pixels of the file are taken as they are."""
        if self._mosaic.resampling == "nearest":
            return True
        grid = self._grid
        shift = ((grid.west - image.west) / grid.step_x, (grid.north - image.north) / grid.step_y)
        return (
            image.epsg == grid.epsg
            and (image.step_x, image.step_y) == (grid.step_x, grid.step_y)
            and all(abs(off - round(off)) < 1e-6 for off in shift)
        )

    def _read(self, parts: Sequence[Part], rows: slice, cols: slice) -> NDArray[np.generic]:
        mosaic, shape = self._mosaic, _shape(rows, cols)
        found: NDArray[Any] | None = None
        lacking: NDArray[np.bool_] | None = None
        for part in parts:
            if part.image.failure is not None:
                raise ChipError(f"{_name(mosaic.band, part)} {part.image.failure}")
            sampled = self._sample(part, rows, cols)
            if sampled is None:
                continue
            values, there = sampled
            if found is None:
                found, lacking = values, None if there is None else ~there
                if there is not None:
                    found = np.where(there, values, values.dtype.type(0))
            else:
                assert lacking is not None
                taken = lacking if there is None else lacking & there
                kind = np.result_type(found, values)
                found = np.where(taken, values.astype(kind), found.astype(kind))
                lacking = None if there is None else lacking & ~there
            if lacking is None or not lacking.any():
                return found[None]
        if found is None:
            kinds = {np.dtype(part.image.dtype) for part in mosaic.parts if part.image.dtype}
            found = np.zeros(shape, np.result_type(*kinds) if kinds and not self._values else np.float32)
            lacking = np.ones(shape, np.bool_)
        if mosaic.scale.numbers.zero == "empty":
            return found[None]
        return np.ma.masked_array(found[None], np.False_ if lacking is None else lacking[None])

    @property
    def _values(self) -> bool:
        """Whether the files' scale and offset make the values."""
        return self._mosaic.scale.applied and self._mosaic.scale.tagged

    def _sample(self, part: Part, rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | None:
        """Values on the tile's grid, and where there are some (None: everywhere); None if the file is elsewhere."""
        image = part.image
        found = _places(self._grid, (rows.start, rows.stop), (cols.start, cols.stop), _raster(image))
        if found is None:
            return None
        window = self._window(image, found, _shape(rows, cols))
        with _named(self._mosaic.band, part):
            stored = _file_of(image).read(*window)
        values, there = self._values_of(stored, part)
        if self._nearest(image):
            return _pick(values, there, found)
        return self._resample(values, there, image, window, rows, cols)

    def _values_of(self, stored: NDArray[Any], part: Part) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The band's values of a file's numbers, and which are some (None: all)."""
        numbers, image = self._mosaic.scale.numbers, part.image
        values = stored
        if self._values and (image.scale, image.offset) != (1, 0):
            values = stored.astype(np.float32) * np.float32(image.scale) + np.float32(image.offset)
        nodata = None if numbers.zero == "value" and image.nodata == 0 else image.nodata
        if nodata is not None and stored.dtype.kind == "f":
            nodata = float(stored.dtype.type(nodata))
        there = None
        # Most windows are sound, and their extremes show it; those of NaN do not.
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if not (
            numbers.low <= low
            and high <= numbers.high
            and not (numbers.zero == "empty" and stored.min() <= 0)
            and (nodata is None or nodata < stored.min() or nodata > stored.max())
        ):
            with np.errstate(invalid="ignore"):
                there = (values >= numbers.low) & (values <= numbers.high)
            if numbers.zero == "empty":
                there &= stored != 0
            if nodata is not None:
                there &= stored != nodata
        if part.offset:
            least = values.dtype.type(part.offset + 1)
            values = np.where(values >= 1, np.maximum(values, least) - values.dtype.type(part.offset), values)
        return values, None if there is None or there.all() else there

    def _resample(
        self,
        values: NDArray[Any],
        there: NDArray[np.bool_] | None,
        image: Image,
        window: tuple[slice, slice],
        rows: slice,
        cols: slice,
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        from rasterio.enums import Resampling
        from rasterio.io import MemoryFile
        from rasterio.transform import from_origin
        from rasterio.vrt import WarpedVRT

        grid, kind = self._grid, values.dtype
        source = values.astype(np.float32)
        if there is not None:
            source[~there] = np.nan
        west, north = image.west + window[1].start * image.step_x, image.north - window[0].start * image.step_y
        told = {"crs": f"EPSG:{image.epsg}", "transform": from_origin(west, north, image.step_x, image.step_y)}
        west, north = grid.west + cols.start * grid.step_x, grid.north - rows.start * grid.step_y
        # A pixel is the same in whichever window it is read: GDAL would take the windows' ratio for the pixels', and
        # `rasterio.warp.reproject` transforms exactly in no release before 1.5.
        across, down = places.shrinkage(grid, _raster(image))
        wanted = {
            "crs": f"EPSG:{grid.epsg}",
            "transform": from_origin(west, north, grid.step_x, grid.step_y),
            "height": rows.stop - rows.start,
            "width": cols.stop - cols.start,
            "resampling": Resampling[self._mosaic.resampling],
            "tolerance": _TIGHT,
            "XSCALE": across,
            "YSCALE": down,
        }
        size = {"height": source.shape[0], "width": source.shape[1], "count": 1, "dtype": "float32", "nodata": np.nan}
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", **size, **told) as file:
                file.write(source, 1)
            with memory.open() as file, WarpedVRT(file, **wanted) as warped:
                made = warped.read(1)
        found = np.isfinite(made)
        if kind.kind != "f":
            limits = np.iinfo(kind)
            least = 1 if self._mosaic.scale.numbers.zero == "empty" else limits.min
            made = np.clip(np.rint(np.where(found, made, np.float32(0))), least, limits.max)
            made = np.where(found, made, np.float32(0)).astype(kind)
        return made, None if found.all() else found


def _shape(rows: slice, cols: slice) -> tuple[int, int]:
    return rows.stop - rows.start, cols.stop - cols.start


def _pick(
    values: NDArray[Any], there: NDArray[np.bool_] | None, found: Places
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    known = None if there is None else found.pick(there)
    if found.inside is not None:
        known = found.inside if known is None else known & found.inside
    return found.pick(values), known


# A file of radar has two bands: what one asks the other asks next.
@functools.lru_cache(32)
def _places(grid: Grid, rows: tuple[int, int], cols: tuple[int, int], source: Grid) -> Places | None:
    return places.find(grid, slice(*rows), slice(*cols), source)


def _raster(image: Image) -> Grid:
    return Grid(image.epsg, image.west, image.north, image.step_x, image.step_y, image.height, image.width)


def _name(band: str, part: Part) -> str:
    return f"{band}: the asset {part.image.asset!r} of {part.item or part.image.url}"


@contextlib.contextmanager
def _named(band: str, part: Part) -> Iterator[None]:
    """Say of which file a failure is."""
    try:
        yield
    except FileNotFoundError:
        raise ChipError(f"{_name(band, part)} {GONE}") from None
    except (ChipError, InputError) as error:
        raise ChipError(f"{_name(band, part)} {error}") from None


def _file_of(image: Image) -> File:
    file = start(image.url, image.access).result()
    if (file.size, file.etag) != (image.size, image.etag):
        # Another process may have seen the new one when this one had opened the old one.
        file = open_anew(image.url, image.access)
    if (file.size, file.etag) != (image.size, image.etag):
        raise ChipError("was replaced since its header was read for the list of chips")
    return file


@functools.lru_cache(512)
def _footprint(wkt: str, epsg: int) -> Any:
    """A footprint in the tile's CRS; None if there is none."""
    if not wkt:
        return None
    transform = pyproj.Transformer.from_crs("OGC:CRS84", epsg, always_xy=True).transform
    parts = [shapely.transform(part, _unwrapped) for part in shapely.get_parts(shapely.from_wkt(wkt))]
    edges = shapely.segmentize(shapely.union_all(shapely.make_valid(parts)), _EDGE)
    shape = shapely.transform(edges, lambda points: np.stack(transform(*points.T), axis=-1))
    if not np.isfinite(shapely.get_coordinates(shape)).all():
        return None
    return shapely.make_valid(shape)


def _unwrapped(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of a polygon with longitudes beyond 180 where an edge crosses that; no image is half as wide as Earth."""
    lon, lat = corners.T
    return np.stack([np.where(lon < 0, lon + 360, lon), lat], axis=1) if np.ptp(lon) > 180 else corners


def _meets(part: Part, epsg: int, window: Any) -> bool:
    shape: Any = _footprint(part.footprint, epsg)
    # Without its file nothing is known of it but where it should be.
    margin = 0.0 if part.image.failure is not None else MARGIN
    return shape is None or bool(shapely.dwithin(shape, window, margin))


def scale_of_band(band: Band, sensor: Sensor, images: Sequence[Image], reading: Reading) -> Scale:
    """What is made of the numbers of a band's files; its `applied` says whether their scale and offset make values.

    Tags of reflectance are no values where digital numbers of Sentinel-2 are taken: what is taken out of these is
    decided elsewhere, by file.

    Raises
    ------
    ChipError
        If tags can be meant in two ways, or in none.
    """
    numbers = sensor.numbers_of(band)
    found: list[Scale] = []
    evidence = Evidence("", date(2020, 1, 1), {})
    for image in images:
        if image.failure is not None:
            continue
        tags = Scale() if numbers.added else Scale((), image.scale, image.offset)
        asked = replace(reading, offset_applied="yes") if numbers.added else reading
        found += settle([tags], [band], sensor, np.dtype(image.dtype), asked, evidence)
    if len({(one.applied and one.tagged, one.expected) for one in found}) > 1:
        raise ChipError(f"has files of {band.name} of which some hold values and others numbers to be scaled")
    scale = found[0] if found else Scale(numbers=numbers)
    # Of the numbers of sensors only those of heights have a 0 that is a value whatever else is said.
    return replace(scale, taken_out=0, absent="is in no file", sea=numbers.zero == "value")
