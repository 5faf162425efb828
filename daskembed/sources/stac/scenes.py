"""Scenes of a catalogue: the headers of their files, what is kept of them, and their place on the tile's own grid."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import pyproj

from daskembed.documents import json_digest, parse_as
from daskembed.errors import ChipError, TileError
from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import TILE, tile_corner
from daskembed.health import kind_of
from daskembed.sources.listing import Listing
from daskembed.sources.reading import Reading
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Scene, grid_of
from daskembed.sources.scenes import Found, frame_of_scenes, listing_of
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.sources.stac.images import Image, look
from daskembed.sources.stac.kept import KeptItem, KeptScene
from daskembed.sources.stac.mosaic import CLASSES as CLASS_NUMBERS
from daskembed.sources.stac.mosaic import Mosaic, Part, scale_of_band
from daskembed.sources.stac.offsets import decide
from daskembed.sources.stac.roles import CLASSES, parts_of
from daskembed.sources.stac.roles import Part as RolePart
from daskembed.sources.stac.selection import Selection, Used, select

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.sensors.bands import Band

KIND = "stac"
"""What the index calls chips of catalogues."""
AT_ONCE = 16
"""Headers that are read at a time."""
MOST_REASONS = 3
"""Kinds of reasons that are told of items that are left out."""


def list_scenes(
    tile: str, catalogue: Catalogue, reading: Reading, kept: Sequence[Mapping[str, Any]] = (), *, again: bool = False
) -> Listing:
    """List the chips of a tile; see `daskembed.sources.registry.list_tile`."""
    if kept:
        scenes = [_with_access(scene, catalogue) for scene in parse_kept(tile, kept)]
        if again:
            scenes = _look(scenes)
    else:
        selection, scenes = choose(tile, catalogue, reading)
        if not scenes:
            raise TileError(nothing_found(tile, catalogue, reading, selection))
        scenes = _look(scenes)
    uses = Counter(image.url for one in scenes for item in one.items for image in item.images.values())
    listing = listing_of(KIND, tile, None, reading, [_found(tile, one, reading, uses) for one in scenes])
    assert listing is not None
    notes = tuple(note for one in scenes for note in one.notes)
    return replace(listing, kept=tuple(map(asdict, scenes)), notes=notes)


def parse_kept(tile: str, kept: Sequence[Mapping[str, Any]]) -> list[KeptScene]:
    """Scenes that an output keeps of a tile; raises `TileError` if they are none."""
    try:
        return [parse_as(KeptScene, json.dumps(scene)) for scene in kept]
    except ValueError as error:
        raise TileError(
            f"what is kept of the scenes of tile {tile} is damaged: {error}; `refresh=True` asks the catalogue again"
        ) from None


def read_headers(listing: Listing, reading: Reading, *, readers: int) -> gpd.GeoDataFrame:
    """The index of a listing; the files' headers were read for the listing."""
    return frame_of_scenes(listing)


def choose(tile: str, catalogue: Catalogue, reading: Reading) -> tuple[Selection, list[KeptScene]]:
    """Ask a catalogue for the scenes of a tile; no file of theirs is looked at."""
    selection = select(tile, catalogue, reading)
    parts = {part.role: part for part in parts_of(reading.sensor, catalogue)}
    scenes = [
        KeptScene(one.day.isoformat(), [_item(used, parts[used.role], catalogue, reading) for used in one.items])
        for one in selection.scenes
    ]
    unclassified = [
        f"{item.id} has no scene classification: clouds in its chips are not seen"
        for scene in scenes
        for item in scene.items
        if parts[item.role].images.classes and CLASSES not in item.images
    ]
    if scenes:
        scenes[0] = replace(scenes[0], notes=[*selection.notes, *unclassified])
    return selection, scenes


def nothing_found(tile: str, catalogue: Catalogue, reading: Reading, selection: Selection) -> str:
    """What is said of a tile without a scene: what was searched, and why items are left out."""
    searched = ", ".join(part.images.collection for part in parts_of(reading.sensor, catalogue))
    when = "" if reading.dates is None else f" from {reading.dates[0]} to {reading.dates[1]}"
    head = f"no scene of tile {tile} in {catalogue.name}{when}: searched {searched}"
    if not selection.left_out:
        return f"{head}, where nothing is of it; check the tile id, `dates` and `source`"
    first = {kind_of(one.reason): one for one in reversed(selection.left_out)}
    kinds = Counter(kind_of(one.reason) for one in selection.left_out).most_common(MOST_REASONS)
    told = [f"{count} such as {first[kind].item.id}: {first[kind].reason}" for kind, count in kinds]
    if more := len(selection.left_out) - sum(count for _, count in kinds):
        told.append(f"{more} for other reasons")
    return (
        f"{head}, {len(selection.left_out)} items are left out ({'; '.join(told)}); `daskembed scenes` lists them all, "
        "and other `dates`, `max_scene_cloud`, `max_scene_nodata` or `radar_days` may do"
    )


def _item(used: Used, part: RolePart, catalogue: Catalogue, reading: Reading) -> KeptItem:
    item = used.item
    images: dict[str, Image] = {}
    offsets: dict[str, int] = {}
    why: list[str] = []
    added = {band.name for band in part.bands if reading.sensor.numbers_of(band).added}
    for band, (key, asset) in part.assets_of(item).items():
        images[band] = Image(asset.href, key, access=_access(asset.href, catalogue))
        if band in added:
            offsets[band], reason = decide(item, asset.href, catalogue, reading.offset_applied)
            why.append(reason)
    return KeptItem(
        catalogue=catalogue.name,
        collection=item.collection,
        id=item.id,
        url=item.url,
        role=used.role,
        time=item.time.isoformat(),
        share=round(used.share, 4),
        footprint=item.footprint,
        images=images,
        cloud=item.cloud,
        baseline=item.baseline,
        orbit_state=item.orbit_state,
        relative_orbit=item.relative_orbit,
        offsets=offsets,
        offset_why="; ".join(dict.fromkeys(why)),
    )


def _access(href: str, catalogue: Catalogue) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(catalogue.files_at(href).access.items()))


def _with_access(kept: KeptScene, catalogue: Catalogue) -> KeptScene:
    """A scene of an output, its files reached as its catalogue says now: credentials go where that says, only."""
    return replace(
        kept,
        items=[
            replace(
                item,
                images={
                    band: replace(image, access=_access(image.url, catalogue)) for band, image in item.images.items()
                },
            )
            for item in kept.items
        ],
    )


def _look(scenes: Sequence[KeptScene]) -> list[KeptScene]:
    """The scenes with the headers of their files as these are now; what several items share is looked at once."""
    images = (image for scene in scenes for item in scene.items for image in item.images.values())
    files = {(image.url, image.access): image for image in images}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        look_at = pool.map(lambda image: look(image.url, image.asset, image.access), files.values())
        seen = dict(zip(files, look_at, strict=True))

    def with_headers(item: KeptItem) -> KeptItem:
        found = {band: seen[image.url, image.access] for band, image in item.images.items()}
        # Of another item the same file may be another asset.
        assets = {band: replace(image, asset=item.images[band].asset) for band, image in found.items()}
        return replace(item, images=assets)

    return [replace(scene, items=[*map(with_headers, scene.items)]) for scene in scenes]


def _found(tile: str, kept: KeptScene, reading: Reading, uses: Mapping[str, int]) -> Found:
    """The scene on the tile's grid, or why it cannot be used."""
    path = kept.items[0].url
    # What decides on no pixel may be told otherwise the next time: words, and clouds of the scene.
    told = asdict(replace(kept, notes=[]))
    for item in told["items"]:
        item |= {"cloud": None, "offset_why": ""}
        for image in item["images"].values():
            # Why it cannot be read may be told in other words the next time, and how it is reached is not what it is.
            image |= {"failure": image["failure"] is not None, "access": None}
    fingerprint = json_digest(told)[:32]
    size = _bytes(tile, kept, uses)
    try:
        scene = _scene(tile, kept, reading, fingerprint)
        scene.check()
    except ChipError as error:
        return Found(path, size, fingerprint, None, str(error))
    return Found(path, size, fingerprint, scene)


def _scene(tile: str, kept: KeptScene, reading: Reading, fingerprint: str) -> Scene:
    sensor, (epsg, west, north), first = reading.sensor, tile_corner(tile), kept.items[0]
    side = int(TILE // sensor.gsd)
    grid = grid_of((side, side), reading)

    def mosaic(name: str, scale: Scale) -> Mosaic:
        files = _files(kept, name, sea=scale.sea)
        parts = tuple(Part(image, item.offsets.get(name, 0), item.footprint, item.id) for item, image in files)
        return Mosaic(
            name, parts, epsg, west, north, sensor.gsd, grid.shape, scale, resampling=reading.choice.resampling
        )

    layers = tuple(mosaic(band.name, _scale(kept, band, reading)) for band in sensor.bands)
    classified = any(CLASSES in item.images for item in kept.items)
    return Scene(
        url=f"{first.url}#{kept.day}",
        date=date.fromisoformat(kept.day),
        fingerprint=fingerprint,
        bands=sensor.names,
        layers=layers,
        # Between classes there are none.
        classes=replace(mosaic(CLASSES, Scale(numbers=CLASS_NUMBERS)), resampling="nearest") if classified else None,
        epsg=epsg,
        west=west,
        north=north,
        step=sensor.gsd,
        grid=grid,
        block=(CHIP, CHIP),
        pixel_bytes=4 * len(layers),
        time=datetime.fromisoformat(first.time),
    )


def _files(kept: KeptScene, band: str, *, sea: bool = False) -> list[tuple[KeptItem, Image]]:
    """The files of a band, in the order in which they count; raises `ChipError` if none can be read.

    Of one that has none where there is only `sea` there may be none.
    """
    files = [(item, item.images[band]) for item in kept.items if band in item.images]
    if sea and not files:
        return []
    if not files:
        raise ChipError(f"lacks {band}: none of {', '.join(item.id for item in kept.items)} has it")
    if all(image.failure is not None for _, image in files):
        item, image = files[0]
        raise ChipError(f"{band}: the asset {image.asset!r} of {item.id} {image.failure}")
    return files


def _scale(kept: KeptScene, band: Band, reading: Reading) -> Scale:
    """What is made of a band's numbers, and what the receipt says of it."""
    files = _files(kept, band.name, sea=reading.sensor.numbers_of(band).zero == "value")
    scale = scale_of_band(band, reading.sensor, [image for _, image in files], reading)
    if not scale.numbers.added:
        return scale
    told = {f"{item.offsets.get(band.name) or 'nothing'} taken out ({item.offset_why})" for item, _ in files}
    return replace(scale, remark="; ".join(sorted(told)), offset_applied=True)


def _bytes(tile: str, kept: KeptScene, uses: Mapping[str, int]) -> int:
    """About how many bytes of the files the tile takes; of what several scenes use, its share."""
    epsg, west, north = tile_corner(tile)
    total = 0.0
    for image in (image for item in kept.items for image in item.images.values() if image.failure is None):
        bounds = _transformer(epsg, image.epsg).transform_bounds(west, north - TILE, west + TILE, north)
        south, east = image.north - image.height * image.step_y, image.west + image.width * image.step_x
        wide = max(0.0, min(east, bounds[2]) - max(image.west, bounds[0])) / (east - image.west)
        tall = max(0.0, min(image.north, bounds[3]) - max(south, bounds[1])) / (image.north - south)
        total += image.size * wide * tall / uses[image.url]
    return round(total)


@functools.cache
def _transformer(source: int, target: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source, target, always_xy=True)
