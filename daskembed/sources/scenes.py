"""Whole tiles cut into chips: what rasters and Zarr stores have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np

from daskembed.errors import TileError
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import elsewhere, to_lonlat
from daskembed.health import as_recorded
from daskembed.sources.cutting import SceneChip
from daskembed.sources.days import within
from daskembed.sources.frame import Placed, frame_of
from daskembed.sources.listing import Listing, RefusedScene
from daskembed.sources.reading import Reading
from daskembed.sources.region import chips_within
from daskembed.sources.scene import Scene
from daskembed.storage.stores import Entry, Storage

MAX_CLOUD = 0.30
"""Share of a chip that must not be reached by clouds, shadows and nodata."""


def fingerprint_of(entries: Sequence[Entry]) -> str:
    """Of stored objects."""
    return hashlib.sha256(repr(list(entries)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Found:
    """A scene of a tile, or why one cannot be used."""

    path: str
    """Below the source, or a whole URL."""
    size: int
    """Bytes."""
    etag: str
    scene: Scene | None
    reason: str | None = None


def listing_of(
    kind: str, tile: str, storage: Storage | None, reading: Reading, found: Sequence[Found]
) -> Listing | None:
    """The listing of some scenes: an entry a chip. Without a storage their paths are whole URLs.

    Raises
    ------
    TileError
        If there are scenes, and none of them can be used or is of the dates wanted.
    """
    if not found:
        return None

    def url_of(path: str) -> str:
        return path if storage is None else storage.url_of(path)

    placed = [_at_tile(one, tile) for one in found]
    # A store that cannot be used is one, whatever dates it has.
    refused = {one.path: one for one in placed if one.scene is None}
    found = [*refused.values(), *(one for one in placed if one.scene is not None)]
    if not any(one.scene for one in found):
        raise TileError(f"{url_of(found[0].path)} {found[0].reason}")
    wanted = [one for one in found if one.scene is None or within(one.scene.date, reading.dates)]
    if not any(one.scene for one in wanted):
        assert reading.dates is not None
        raise TileError(f"no scene of tile {tile} from {reading.dates[0]} to {reading.dates[1]}: check `dates`")
    # In other sensors' images, 0 in the blue is a value like others.
    sentinel2 = any("B02" in (band.name, *band.aliases) for band in reading.sensor.bands)
    rules = reading.rules.or_else(zeros=sentinel2, nan=True, max_cloud=MAX_CLOUD)
    numbers = _numbers_within(tile, [one.scene for one in wanted if one.scene is not None], reading.region)
    most = max(map(len, numbers.values()))
    rows: list[tuple[Entry, SceneChip | RefusedScene]] = []
    for one in wanted:
        if one.scene is None:
            reason = str(one.reason)
            # What is finished beside it stays so when messages write arguments in another way.
            entry = Entry(one.path, one.size, f"{one.etag} {as_recorded(reason)}")
            rows.append((entry, RefusedScene(url_of(one.path), reason, most)))
            continue
        count = one.scene.grid.count
        label = one.scene.url.rpartition("#")[2]
        for number in numbers[one.scene]:
            entry = Entry(f"{one.path}#{label}/{number:04d}", one.size // count, one.scene.fingerprint)
            rows.append((entry, SceneChip(one.scene, number, rules)))
    entries, chips = zip(*sorted(rows, key=lambda row: row[0].path), strict=True)
    return Listing(kind, storage, tile, entries, chips, tuple(scene for scene, some in numbers.items() if some))


def _numbers_within(tile: str, scenes: Sequence[Scene], region: str | None) -> dict[Scene, list[int]]:
    """The chips of each scene that meet a region; raises `TileError` if none does."""
    numbers = {scene: list(range(1, scene.grid.count + 1)) for scene in scenes}
    if region is None:
        return numbers
    footprints = {
        scene: to_lonlat(
            scene.epsg, np.array([scene.bounds_of(scene.grid.start(number), (CHIP, CHIP)) for number in all_])
        )[2]
        for scene, all_ in numbers.items()
    }
    near = iter(chips_within(tile, region, np.concatenate(list(footprints.values()))).tolist())
    return {scene: [number for number in all_ if next(near)] for scene, all_ in numbers.items()}


def _at_tile(found: Found, tile: str) -> Found:
    """The scene, or why it is none of the tile's."""
    if found.scene is None or (reason := elsewhere(tile, np.array([found.scene.bounds]), found.scene.epsg)[0]) is None:
        return found
    return replace(found, scene=None, reason=reason)


def frame_of_scenes(listing: Listing) -> gpd.GeoDataFrame:
    """The index of a listing that `listing_of` made: what the scenes say was read for the listing."""
    found = [
        Placed(chip, chip.scene.date, chip.scene.epsg, chip.bounds, chip.scene.time)
        if isinstance(chip, SceneChip)
        else chip.reason
        for chip in listing.chips
    ]
    return frame_of(listing, found, outside="lies outside of EPSG:{epsg}: its bounds are {bounds}")
