"""Whole tiles as rasters: ``{MGRS}*.tif``, ``.vrt`` or ``.jp2`` of all bands, or a folder a date of one file a band."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import Interleaving, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from daskembed.errors import ChipError, DaskembedError, InputError, exact
from daskembed.health import fault_of, read_surely
from daskembed.sensors.bands import Band
from daskembed.sources.bands import alternative, order_bands, short
from daskembed.sources.baseline import Evidence
from daskembed.sources.chunks import lost_pixels
from daskembed.sources.protocol import Listing
from daskembed.sources.reading import Reading
from daskembed.sources.rules import CLASSES
from daskembed.sources.scenes import (
    Found,
    Reader,
    Scene,
    check_resolution,
    damage_is_the_chips,
    day_in,
    fingerprint_of,
    frame_of,
    grid_of,
    listing_of,
    one_day,
)
from daskembed.sources.values import (
    BESIDE,
    MOST_SIDECAR,
    SIDECARS,
    Scale,
    check_sidecar,
    part_masks,
    read_bands,
    scale_of,
    settle,
)
from daskembed.sources.vrt import MOST_BYTES, SIGNATURES, TOP, Virtual, read_vrt
from daskembed.storage.failures import explained
from daskembed.storage.readers import open_remote
from daskembed.storage.stores import Entry, Storage
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT", ".jp2": "JP2OpenJPEG"}
_BAND_FILE = re.compile(
    r"(?:(?P<scene>T?(?P<tile>\d\d[A-Z]{3})(?:_\d{8}(?:T\d{6})?)?|\d{8}(?:T\d{6})?)_)?(?P<band>.+?)(?:_(?P<metres>\d+)m)?",
    re.IGNORECASE,
)
_METRES = re.compile(r"R\d+m", re.IGNORECASE)
_NO_BAND = re.compile(r"T?\d\d[A-Z]{3}_\d{8}T\d{6}_(?:B01|B09|B10|AOT|WVP|TCI|CLD|SNW|PVI)(?:_\d+m)?", re.IGNORECASE)
"""Files of ESA's products that are beside those of the bands, and no image of all bands."""
# Each thread decodes for itself; a row of blocks of all bands fits into the cache. Of virtual rasters `read_vrt` lets
# nothing else through; GDAL itself would refuse the worst, too.
_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": 256,
    "GDAL_NUM_THREADS": 1,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
}


@dataclass(frozen=True)
class RasterLayer:
    """Some bands of a file."""

    url: str
    root: str
    """URL of the source: nothing that is not below it is read."""
    bands: tuple[int, ...]
    """1-based numbers."""
    scales: tuple[Scale, ...]
    coarser: int = 1
    kind: str = "daskembed.sources.raster"
    sidecars: tuple[str, ...] = ()
    """Those of `SIDECARS` that it has."""


@dataclass(frozen=True)
class _File:
    """What the header of a file says."""

    url: str
    root: str
    shape: tuple[int, int]
    epsg: int
    west: float
    north: float
    steps: tuple[float, float]
    block: tuple[int, int]
    kind: np.dtype[Any]
    descriptions: tuple[str | None, ...]
    scales: tuple[Scale, ...]
    tags: dict[str, str]
    sidecars: tuple[str, ...] = ()
    uncovered: tuple[int, ...] = ()
    """Numbers of the bands that hold 0 where nothing was stored."""
    sources: tuple[str, ...] = ()
    """URLs of the files that a virtual raster shows."""

    @property
    def date(self) -> str | None:
        return self.tags.get("date")


def list_chips(tile: str, storage: Storage, reading: Reading) -> Listing | None:
    """The chips of the rasters of a tile, or of those in its folder; see `daskembed.index_tile`."""
    top, below = storage.entries(recursive=False, broken=True), storage.entries(tile, broken=True)
    flat = [entry for entry in top if _is_raster(entry.path, tile)]
    inside = [entry for entry in below if _suffix(entry.path) in _DRIVERS]
    beside = {entry.path: entry for entry in (*top, *below) if entry.path.endswith(SIDECARS) and entry.reason is None}
    whole: list[Entry] = []
    folders: dict[str, list[_BandFile]] = {}
    for entry in (*flat, *inside):
        if (band := _band_file(entry, reading)) is not None:
            folders.setdefault(band.folder, []).append(band)
        elif _is_raster(entry.path, tile) and not _NO_BAND.fullmatch(PurePosixPath(entry.path).stem):
            whole.append(entry)
    scenes = [
        _found(
            storage,
            entry.path,
            _with(beside, [entry]),
            partial(_scene_of_file, entry=entry, reading=reading, beside=beside),
        )
        for entry in sorted(whole, key=lambda entry: entry.path)
    ]
    for folder, files in sorted(folders.items()):
        for path, group in _scenes_of(folder, files).items():
            entries = _with(beside, [file.entry for file in group])
            make = partial(_scene_of_files, group=group, path=path, tile=tile, reading=reading, beside=beside)
            scenes.append(_found(storage, path, entries, make))
    return listing_of("raster", tile, storage, reading, scenes)


def _with(beside: Mapping[str, Entry], entries: Sequence[Entry]) -> list[Entry]:
    """Some files, and what lies beside them."""
    found = [f"{entry.path}{end}" for entry in entries for end in SIDECARS]
    return [*entries, *(beside[path] for path in found if path in beside)]


def _is_raster(path: str, tile: str) -> bool:
    return _suffix(path) in _DRIVERS and PurePosixPath(path).name.startswith((tile, f"T{tile}"))


@dataclass(frozen=True)
class _BandFile:
    """A file of one band, by its name: ``B02.tif``, ``blue.tif``, ``T33TUL_20190416T100031_B02_10m.jp2``."""

    entry: Entry
    band: str
    """Name of the sensor's band, or of the classification."""
    scene: str
    """What the name says before the band: ``T33TUL_20190416T100031``; empty if nothing."""
    tile: str | None
    """In capitals, where it says one."""
    metres: int
    """Of a pixel, where it says so; else 0."""

    @property
    def folder(self) -> str:
        """Of its scene: ESA puts bands into a folder for each size of pixels."""
        above = PurePosixPath(self.entry.path).parent
        path = above.parent if _METRES.fullmatch(above.name) else above
        return "" if path == PurePosixPath(".") else path.as_posix()


def _band_file(entry: Entry, reading: Reading) -> _BandFile | None:
    bands = reading.sensor.bands
    names = {name.lower(): band.name for band in bands for name in (band.name, *band.aliases)} | {CLASSES: CLASSES}
    found = _BAND_FILE.fullmatch(PurePosixPath(entry.path).stem)
    if found is None or (band := names.get(found["band"].lower())) is None:
        return None
    if found["scene"] and len(bands) == 1:
        return None  # the whole raster
    tile = found["tile"]
    return _BandFile(entry, band, found["scene"] or "", tile and tile.upper(), int(found["metres"] or 0))


def _scenes_of(folder: str, files: Sequence[_BandFile]) -> dict[str, list[_BandFile]]:
    """The scenes of a folder by their paths: one, or those that the files' names tell apart."""
    named = sorted({file.scene for file in files if file.scene})
    if len(named) <= 1 and folder:
        return {folder: list(files)}
    groups: dict[str, list[_BandFile]] = {}
    for file in files:
        path = "/".join(filter(None, (folder, file.scene)))
        groups.setdefault(path, []).append(file)
    return groups


def describe(tile: str, storage: Storage) -> str:
    """Where rasters are looked for."""
    return f"{tile}*.tif, .vrt or .jp2 in either, or a file a band (B02.tif) in a folder below {storage.url_of(tile)}/"


def read_headers(listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
    """The index of a listing; the files' headers were read for the listing."""
    return frame_of(listing, reading)


def _found(storage: Storage, path: str, entries: Sequence[Entry], make: Callable[[Storage], Scene]) -> Found:
    stored = list(entries)

    def look(fresh: bool) -> Scene:
        seen = replace(storage, fresh=fresh)
        stored[len(entries) :] = _shown(seen, entries)
        return make(seen)

    try:
        if broken := next((entry for entry in entries if entry.reason is not None), None):
            raise ChipError(broken.reason if broken.path == path else f"holds {broken.path}, which {broken.reason}")
        scene = read_surely(storage.url_of(path), look)
        scene = replace(scene, fingerprint=fingerprint_of(stored))
        scene.check()
    except ChipError as error:
        return Found(path, sum(entry.size for entry in stored), fingerprint_of(stored), None, str(error))
    return Found(path, sum(entry.size for entry in stored), scene.fingerprint, scene)


def _shown(storage: Storage, entries: Sequence[Entry]) -> list[Entry]:
    """The files of the store that VRTs among `entries` show, also by way of other VRTs: pixels change with them."""
    found: dict[str, Entry] = {}
    folders: dict[str, dict[str, Entry]] = {}
    for vrt in (entry.path for entry in entries if _suffix(entry.path) == ".vrt"):
        for path in read_vrt(vrt, partial(_get_vrt, storage)).paths:
            folder = path.rpartition("/")[0]
            if folder not in folders:
                folders[folder] = {entry.path: entry for entry in storage.entries(folder, recursive=False)}
            if (source := folders[folder].get(path)) is not None:
                found[path] = source
    return sorted(found.values(), key=lambda entry: entry.path)


def _get_vrt(storage: Storage, path: str) -> bytes:
    if is_local(url := storage.url_of(path)):
        _check_file(url)
    try:
        return storage.get(path, most=MOST_BYTES)
    except InputError as error:
        raise ChipError(f"needs more than a virtual raster: {error}") from None


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _scene_of_file(storage: Storage, entry: Entry, reading: Reading, beside: Mapping[str, Entry]) -> Scene:
    file = _read_header(storage, entry, beside)
    numbers = order_bands(file.descriptions, reading.sensor, more=True)
    lower = [(text or "").strip().lower() for text in file.descriptions]
    inside = (lower.index(CLASSES) + 1,) if CLASSES in lower else ()
    day = _day(file.date, [PurePosixPath(entry.path).name])
    _check_covered(file, numbers, reading.sensor.bands, reading)
    bands = [file.scales[number - 1] for number in numbers]
    scales = settle(bands, reading.sensor.bands, reading.sensor, file.kind, reading, _evidence(file, day))
    # Classes are no quantity: of their tags only nodata is of use.
    scales += tuple(Scale(file.scales[number - 1].nodata) for number in inside)
    layer = RasterLayer(file.url, file.root, numbers + inside, scales, sidecars=file.sidecars)
    size = file.kind.itemsize * len(lower)
    scene = _scene(storage.url_of(entry.path), reading, file, (layer,), None, day, size)
    return replace(scene, classified=bool(inside))


def _check_covered(file: _File, numbers: Sequence[int], bands: Sequence[Band], reading: Reading) -> None:
    for number, band in zip(numbers, bands, strict=True):
        said = reading.sensor.numbers_of(band)
        # Where 0 stands for nothing, or is impossible, it is seen in the pixels.
        if number in file.uncovered and said.zero != "empty" and said.low <= 0 <= said.high:
            raise ChipError(
                f"has places in {file.url.rpartition('/')[2]} that no source of {band.name} covers, and no nodata: "
                "expected sources that fill it, or a NoDataValue (gdalbuildvrt -vrtnodata)"
            )


def _evidence(file: _File, day: date) -> Evidence:
    return Evidence(file.url, day, file.tags, tuple(Evidence(url, day) for url in file.sources))


def _scene_of_files(
    storage: Storage,
    group: Sequence[_BandFile],
    path: str,
    tile: str,
    reading: Reading,
    beside: Mapping[str, Entry],
) -> Scene:
    if strange := [file for file in group if file.tile not in (None, tile)]:
        raise ChipError(f"holds {strange[0].entry.path}, which is named after tile {strange[0].tile}, expected {tile}")
    names = {band: _finest(group, band).entry for band in {file.band: None for file in group}}
    if missing := [band for band in reading.sensor.names if band not in names]:
        raise ChipError(
            f"lacks the files of {', '.join(missing)}: expected {', '.join(f'{n}.tif' for n in reading.sensor.names)}"
            f"{alternative(missing, reading.sensor)}"
        )
    files = {band: _read_header(storage, entry, beside) for band, entry in names.items()}
    finest = min(files.values(), key=lambda file: file.steps[0])
    layers = {band: _fit(file, finest) for band, file in files.items()}
    tags = {file.date for file in files.values() if file.date}
    if len(tags) > 1:
        raise ChipError(f"holds files with the `date` tags {', '.join(sorted(tags))}: expected one date")
    paths = (path, *(file.entry.path for file in group))
    day = _day(next(iter(tags), None), [PurePosixPath(name).name for name in paths])
    used = [files[band] for band in reading.sensor.names]
    for file, band in zip(used, reading.sensor.bands, strict=True):
        _check_covered(file, (1,), (band,), reading)
    evidence = Evidence(storage.url_of(path), day, {}, tuple(_evidence(file, day) for file in files.values()))
    scales = settle(
        [file.scales[0] for file in used],
        reading.sensor.bands,
        reading.sensor,
        [file.kind for file in used],
        reading,
        evidence,
    )
    bands = tuple(
        replace(layers[name], scales=(scale,)) for name, scale in zip(reading.sensor.names, scales, strict=True)
    )
    # What the coarser files store together covers more of the finest one's pixels.
    blocks = [tuple(side * layers[band].coarser for side in file.block) for band, file in files.items()]
    finest = replace(finest, block=(max(block[0] for block in blocks), max(block[1] for block in blocks)))
    size = sum(files[band].kind.itemsize for band in reading.sensor.names)
    return _scene(storage.url_of(path), reading, finest, bands, layers.get(CLASSES), day, size)


def _finest(group: Sequence[_BandFile], band: str) -> _BandFile:
    """The file of a band, of several the one whose name says the smallest pixels."""
    first, *others = sorted((file for file in group if file.band == band), key=lambda file: file.metres)
    if others and first.metres in (0, others[0].metres):
        files = ", ".join(file.entry.path for file in (first, *others))
        raise ChipError(f"holds several files of one band: {files}")
    return first


def _fit(file: _File, finest: _File) -> RasterLayer:
    """A band's file on the grid of the finest one."""
    name = file.url.rpartition("/")[2]
    if len(file.descriptions) != 1:
        raise ChipError(f"holds {name} of {len(file.descriptions)} bands, expected 1 in each file")
    if file.epsg != finest.epsg:
        raise ChipError(f"holds {name} in EPSG:{file.epsg} beside others in EPSG:{finest.epsg}")
    times = file.steps[0] / finest.steps[0]
    covers = tuple(length * times for length in file.shape)
    same = np.allclose((file.west, file.north), (finest.west, finest.north), rtol=0, atol=finest.steps[0] / 100)
    square = math.isclose(file.steps[0], -file.steps[1], rel_tol=1e-6)
    if not (
        math.isclose(times, round(times), rel_tol=1e-6)
        and same
        and square
        and np.allclose(covers, finest.shape, atol=0.01)
    ):
        raise ChipError(
            f"holds {name} of {_grid(file)}, which does not fit {finest.url.rpartition('/')[2]}: {_grid(finest)}"
        )
    return RasterLayer(file.url, file.root, (1,), (Scale(file.scales[0].nodata),), round(times), sidecars=file.sidecars)


def _grid(file: _File) -> str:
    return (
        f"{file.shape[0]} x {file.shape[1]} pixels of {exact(file.steps[0])} m from {exact(file.west)}, "
        f"{exact(file.north)}"
    )


def _day(tag: str | None, names: Sequence[str]) -> date:
    # Of several names the first is that of all, the others of files of bands.
    named = [(f"holds {name} of" if number else "is named after", day_in(name)) for number, name in enumerate(names)]
    if (day := one_day([*named, ("has the `date` tag", day_in(tag or ""))])) is None:
        raise ChipError("tells no date: looked for a `date` tag (YYYY-MM-DD) and YYYYMMDD in the name")
    return day


def _scene(
    url: str,
    reading: Reading,
    file: _File,
    layers: tuple[RasterLayer, ...],
    classes: RasterLayer | None,
    day: date,
    pixel_bytes: int,
) -> Scene:
    step = check_resolution(file.steps, file.epsg, reading)
    return Scene(
        url=f"{url}#{day}",
        date=day,
        fingerprint="",  # of all that is stored: `_found` knows it
        bands=reading.sensor.names,
        layers=layers,
        classes=classes,
        epsg=file.epsg,
        west=file.west,
        north=file.north,
        step=step,
        grid=grid_of(file.shape, reading),
        block=file.block,
        pixel_bytes=pixel_bytes,
    )


def _read_header(storage: Storage, entry: Entry, beside: Mapping[str, Entry]) -> _File:
    name = entry.path.rpartition("/")[2]
    sidecars = tuple(end for end in SIDECARS if f"{entry.path}{end}" in beside)
    opening = _Opening(storage, entry.path, sidecars)
    opening.check()
    with damage_is_the_chips(opening.failure), rasterio.Env(**opening.environment):
        try:
            with rasterio.open(opening.name, **opening.options) as dataset:
                made = _header_of(storage, entry.path, dataset)
                file = replace(made, sidecars=sidecars, sources=tuple(map(storage.url_of, opening.sources)))
            return replace(file, uncovered=opening.check_sources(entry.path))
        except RasterioError as error:
            if (failure := opening.failure()) is not None:
                raise failure from None
            said = " ".join(str(error).split())[:200]
            raise fault_of(error, f"cannot be opened as a raster ({name}): {said}") from None


def _header_of(storage: Storage, path: str, dataset: Any) -> _File:
    name = path.rpartition("/")[2]
    crs = dataset.crs
    epsg = crs.to_epsg() if crs else None
    if epsg is None or not crs.is_projected:
        found = "no CRS" if not crs else f"the CRS {short(crs.to_string())}"
        raise ChipError(f"has {found} in {name}, expected a projected one with an EPSG code, such as EPSG:32633")
    step_x, shear_x, west, shear_y, step_y, north = dataset.transform[:6]
    if shear_x or shear_y:
        numbers = ", ".join(map(exact, dataset.transform[:6]))
        raise ChipError(f"has the geotransform {numbers} in {name}: expected one that is not rotated")
    kinds = set(dataset.dtypes)
    if len(kinds) > 1 or not kinds.pop().startswith(("int", "uint", "float")):
        raise ChipError(f"has {', '.join(sorted(set(dataset.dtypes)))} pixels, expected integers or floats of one type")
    scales = tuple(scale_of(dataset, number) for number in dataset.indexes)
    return _File(
        url=storage.url_of(path),
        root=storage.url,
        shape=dataset.shape,
        epsg=epsg,
        west=west,
        north=north,
        steps=(step_x, step_y),
        block=dataset.block_shapes[0],
        kind=np.dtype(dataset.dtypes[0]),
        descriptions=dataset.descriptions,
        scales=scales,
        tags=dataset.tags(),
    )


class _Opening:
    """How GDAL opens a file: by its path, or through the storage's own requests; a virtual one as it was checked."""

    def __init__(self, storage: Storage, path: str, sidecars: tuple[str, ...] = ()) -> None:
        suffix = _suffix(path)
        self.options: dict[str, Any] = {"driver": _DRIVERS[suffix]}
        # What lies beside a file is looked for where there is something.
        self.environment = _GDAL | (BESIDE if sidecars else {})
        self._storage, self._failed = storage, threading.local()
        self._virtual: Virtual | None = None
        for end in sidecars:
            beside = f"{path}{end}"
            check_sidecar(beside, storage.get_range(beside, 0, 8 if end == ".msk" else MOST_SIDECAR + 1))
        if suffix == ".vrt":
            self._virtual = read_vrt(path, partial(_get_vrt, storage))
            self.name, self.options["opener"] = TOP, self._open_virtual
        elif is_local(storage.url):
            self.name = storage.url_of(path)
            _check_file(self.name)
        else:
            self.name, self.options["opener"] = path, self._open
            self._wanted = tuple(f"{path}{end}" for end in ("", *sidecars))

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the files that hold the pixels of a virtual one."""
        return tuple(self._virtual.sources.values()) if self._virtual else ()

    def failure(self) -> DaskembedError | None:
        """What came last in this thread instead of data: GDAL swallows it."""
        failed: DaskembedError | None = getattr(self._failed, "error", None)
        self._failed.error = None
        return failed

    def check(self) -> None:
        """Raise `ChipError` if a file that a virtual raster refers to cannot be used; GDAL opens them much later."""
        for path in self.sources:
            try:
                self._open_source(path).close()
            except FileNotFoundError:  # also of a link that leads nowhere
                raise ChipError(f"needs {path}, which is not there") from None

    def check_sources(self, path: str) -> tuple[int, ...]:
        """Bands of a virtual raster that hold 0 where nothing was stored.

        Raises `ChipError` if a source has gaps that GDAL does not show through the virtual raster: unwritten blocks, or
        a mask, where the virtual raster has none.
        """
        if self._virtual is None:
            return ()
        for name, source in self._virtual.sources.items():
            with rasterio.open(name, opener=self._open_virtual) as image:
                masks = any(
                    MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds for kinds in image.mask_flag_enums
                )
                # GDAL reads blocks that are not there as nodata, where there is one.
                seen = self._virtual.tagged and image.nodata is not None
                sparse = not seen and image.driver == "GTiff" and not _whole(image)
            if masks and not self._virtual.masked:
                raise ChipError(
                    f"refers to {source}, which has a mask, and has none itself: write it with a MaskBand, as "
                    "gdal_translate and gdalbuildvrt do"
                )
            if sparse:
                raise ChipError(
                    f"refers to {source}, which has blocks that were never written, and tells no nodata: expected all "
                    "blocks, or a nodata value in both"
                )
        if inner := sorted({*self._virtual.uncovered} - {path}):
            raise ChipError(f"refers to {inner[0]}, which its sources do not fill, and has no nodata: write it anew")
        return self._virtual.uncovered.get(path, ())

    def _open(self, path: str, mode: str = "rb") -> Any:
        # GDAL asks for whatever may lie beside a file.
        if not path.endswith(self._wanted):
            raise FileNotFoundError(path)
        return self._open_remote(path)

    def _open_remote(self, path: str) -> Any:
        return open_remote(self._storage, path, lambda error: setattr(self._failed, "error", error))

    def _open_virtual(self, name: str, mode: str = "rb") -> Any:
        assert self._virtual is not None
        # Without what stands before it, which tells GDAL's openers apart.
        name = name.rpartition("/")[2]
        if name in self._virtual.documents:
            return io.BytesIO(self._virtual.documents[name])
        if name not in self._virtual.sources:
            raise FileNotFoundError(name)
        try:
            return self._open_source(self._virtual.sources[name])
        except DaskembedError as error:
            self._failed.error = error
            raise
        except FileNotFoundError:
            self._failed.error = ChipError(f"needs {self._virtual.sources[name]}, which is not there")
            raise

    def _open_source(self, path: str) -> Any:
        if is_local(url := self._storage.url_of(path)):
            _check_file(url)
            with explained(url, self._storage.url):
                file: Any = Path(url).open("rb")  # noqa: SIM115 (GDAL closes it)
        else:
            file = self._open_remote(path)
        start = file.read(max(map(len, SIGNATURES)))
        if not start.startswith(SIGNATURES):
            file.close()
            raise ChipError(f"refers to {path}, which is neither TIFF nor JPEG 2000: it starts with {start!r}")
        file.seek(0)
        return file


def _check_file(path: str) -> None:
    """Raise `ChipError` if there is something else than a file: opening a pipe would wait for ever."""
    if Path(path).exists() and not Path(path).is_file():
        raise ChipError(f"is no file: {path.rpartition('/')[2]} is a folder, a pipe or a device")


def open_layer(layer: RasterLayer, *, fresh: bool = False) -> Reader:
    """Open a layer for reading, past caches if `fresh`: each thread by a handle of its own."""
    opening = _Opening(Storage(layer.root, fresh), layer.url.removeprefix(f"{layer.root}/"), layer.sidecars)
    opened = threading.local()

    def dataset() -> Any:
        if not hasattr(opened, "dataset"):
            opened.dataset = rasterio.open(opening.name, **opening.options)
        return opened.dataset

    def pixels_of(rows: slice, cols: slice) -> NDArray[np.generic]:
        with damage_is_the_chips(opening.failure), rasterio.Env(**opening.environment):
            image = dataset()
            pixels = read_bands(image, layer.bands, Window.from_slices(rows, cols))
            if image.driver != "GTiff":
                return pixels
            numbers, mask = part_masks(pixels)
            lost = _unwritten(image, layer.bands, numbers, (rows.start, cols.start))
        if lost is None:
            return pixels
        if not fresh:
            # What is not there by one reading of the header may be there by the next.
            raise ChipError("lacks blocks of its pixels: it was not written to its end, or as a sparse file")
        return np.ma.masked_array(numbers, lost if mask is None else lost | mask)

    def read(rows: slice, cols: slice) -> NDArray[np.generic]:
        try:
            return pixels_of(rows, cols)
        except DaskembedError:
            # Through the same handle GDAL would later read zeros, without an error, from what did not open now.
            vars(opened).pop("dataset", None)
            raise

    return read


def _whole(image: Any) -> bool:
    """Whether a TIFF holds all of its blocks."""
    numbers = (1,) if image.interleaving is Interleaving.pixel else image.indexes
    (height, width), (rows, cols) = image.block_shapes[0], image.shape
    return all(
        image.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", number) is not None
        for number in numbers
        for y in range(-(-rows // height))
        for x in range(-(-cols // width))
    )


def _unwritten(
    image: Any, bands: Sequence[int], pixels: NDArray[np.generic], start: tuple[int, int]
) -> NDArray[np.bool_] | None:
    """Pixels of blocks that a TIFF does not hold, as a sparse file or one of which the writing was stopped."""
    height, width = image.block_shapes[0]
    together = image.interleaving is Interleaving.pixel

    def is_there(place: tuple[int, ...], value: np.generic) -> bool:
        band, y, x = place
        number = 1 if together else bands[band]
        return image.get_tag_item(f"BLOCK_OFFSET_{x // width}_{y // height}", "TIFF", number) is not None

    return lost_pixels(pixels, (0, *start), (1, height, width), is_there)
