"""Whole tiles as rasters: ``{MGRS}*.tif``, ``.vrt`` or ``.jp2`` of all bands, or a folder a date of one file a band."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from daskembed.errors import ChipError, exact
from daskembed.health import read_surely
from daskembed.sensors.bands import Band
from daskembed.sources.bandfiles import BandFile, band_file, by_scene, finest_of
from daskembed.sources.bands import alternative, order_bands
from daskembed.sources.baseline import Evidence
from daskembed.sources.days import day_in, one_day
from daskembed.sources.gdal import SIDECARS
from daskembed.sources.listing import Listing
from daskembed.sources.opening import DRIVERS, get_vrt, suffix_of
from daskembed.sources.pixel_rules import CLASSES
from daskembed.sources.rasterfile import RasterFile, RasterLayer, read_header
from daskembed.sources.reading import Reading
from daskembed.sources.scales import Scale, settle
from daskembed.sources.scene import Scene, check_resolution, grid_of
from daskembed.sources.scenes import Found, fingerprint_of, frame_of_scenes, listing_of
from daskembed.sources.vrt import read_vrt
from daskembed.storage.stores import Entry, Storage

if TYPE_CHECKING:
    import geopandas as gpd

_NO_BAND = re.compile(r"T?\d\d[A-Z]{3}_\d{8}T\d{6}_(?:B01|B09|B10|AOT|WVP|TCI|CLD|SNW|PVI)(?:_\d+m)?", re.IGNORECASE)
"""Files of ESA's products that are beside those of the bands, and no image of all bands."""


def list_chips(tile: str, storage: Storage, reading: Reading) -> Listing | None:
    """The chips of the rasters of a tile, or of those in its folder; see `daskembed.index_tile`."""
    top, below = storage.entries(recursive=False, broken=True), storage.entries(tile, broken=True)
    flat = [entry for entry in top if _is_raster(entry.path, tile)]
    inside = [entry for entry in below if suffix_of(entry.path) in DRIVERS]
    beside = {entry.path: entry for entry in (*top, *below) if entry.path.endswith(SIDECARS) and entry.reason is None}
    whole: list[Entry] = []
    folders: dict[str, list[BandFile]] = {}
    for entry in (*flat, *inside):
        if (band := band_file(entry, reading)) is not None:
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
        for path, group in by_scene(folder, files).items():
            entries = _with(beside, [file.entry for file in group])
            make = partial(_scene_of_files, group=group, path=path, tile=tile, reading=reading, beside=beside)
            scenes.append(_found(storage, path, entries, make))
    return listing_of("raster", tile, storage, reading, scenes)


def _with(beside: Mapping[str, Entry], entries: Sequence[Entry]) -> list[Entry]:
    """Some files, and what lies beside them."""
    found = [f"{entry.path}{end}" for entry in entries for end in SIDECARS]
    return [*entries, *(beside[path] for path in found if path in beside)]


def _is_raster(path: str, tile: str) -> bool:
    return suffix_of(path) in DRIVERS and PurePosixPath(path).name.startswith((tile, f"T{tile}"))


def describe(tile: str, storage: Storage) -> str:
    """Where rasters are looked for."""
    return f"{tile}*.tif, .vrt or .jp2 in either, or a file a band (B02.tif) in a folder below {storage.url_of(tile)}/"


def read_headers(listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
    """The index of a listing; the files' headers were read for the listing."""
    return frame_of_scenes(listing)


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
    for vrt in (entry.path for entry in entries if suffix_of(entry.path) == ".vrt"):
        for path in read_vrt(vrt, partial(get_vrt, storage)).paths:
            folder = path.rpartition("/")[0]
            if folder not in folders:
                folders[folder] = {entry.path: entry for entry in storage.entries(folder, recursive=False)}
            if (source := folders[folder].get(path)) is not None:
                found[path] = source
    return sorted(found.values(), key=lambda entry: entry.path)


def _scene_of_file(storage: Storage, entry: Entry, reading: Reading, beside: Mapping[str, Entry]) -> Scene:
    file = read_header(storage, entry, beside)
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


def _check_covered(file: RasterFile, numbers: Sequence[int], bands: Sequence[Band], reading: Reading) -> None:
    for number, band in zip(numbers, bands, strict=True):
        said = reading.sensor.numbers_of(band)
        # Where 0 stands for nothing, or is impossible, it is seen in the pixels.
        if number in file.uncovered and said.zero != "empty" and said.low <= 0 <= said.high:
            raise ChipError(
                f"has places in {file.url.rpartition('/')[2]} that no source of {band.name} covers, and no nodata: "
                "expected sources that fill it, or a NoDataValue (gdalbuildvrt -vrtnodata)"
            )


def _evidence(file: RasterFile, day: date) -> Evidence:
    return Evidence(file.url, day, file.tags, tuple(Evidence(url, day) for url in file.sources))


def _scene_of_files(
    storage: Storage,
    group: Sequence[BandFile],
    path: str,
    tile: str,
    reading: Reading,
    beside: Mapping[str, Entry],
) -> Scene:
    if strange := [file for file in group if file.tile not in (None, tile)]:
        raise ChipError(f"holds {strange[0].entry.path}, which is named after tile {strange[0].tile}, expected {tile}")
    names = {band: finest_of(group, band).entry for band in {file.band: None for file in group}}
    if missing := [band for band in reading.sensor.names if band not in names]:
        raise ChipError(
            f"lacks the files of {', '.join(missing)}: expected {', '.join(f'{n}.tif' for n in reading.sensor.names)}"
            f"{alternative(missing, reading.sensor)}"
        )
    files = {band: read_header(storage, entry, beside) for band, entry in names.items()}
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


def _fit(file: RasterFile, finest: RasterFile) -> RasterLayer:
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


def _grid(file: RasterFile) -> str:
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
    file: RasterFile,
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
