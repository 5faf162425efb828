"""Which scenes of a catalogue a run would use, and which not, and why: told before anything is read."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Unpack

from daskembed.encoders.loading import find_encoder, foresee
from daskembed.errors import InputError, StorageError, StorageUnusableError, TileError
from daskembed.output.published import check_version
from daskembed.output.state import Receipt, TileRecord, read_receipts
from daskembed.paths import StrPath
from daskembed.runs.kept import chosen_by, keepers
from daskembed.runs.options import Options, RunOptions, documented
from daskembed.runs.preflight import check_bands, check_catalogue
from daskembed.runs.tiles import reading_of
from daskembed.sources.origin import open_source
from daskembed.sources.reading import Reading
from daskembed.sources.region import asked_tiles
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.sources.stac.items import Item
from daskembed.sources.stac.kept import KeptItem, KeptScene
from daskembed.sources.stac.scenes import keep, nothing_found, parse_kept
from daskembed.sources.stac.selection import select
from daskembed.storage.stores import Storage

AT_ONCE = 4
"""Tiles that a catalogue is asked for at a time."""


@dataclass(frozen=True)
class SceneItem:
    """An item of a catalogue, and what becomes of it."""

    collection: str
    id: str
    url: str
    time: str
    """When it was sensed; UTC, ISO 8601."""
    used: str | None
    """The date of the scene that it is used in, ISO 8601; None if it is not."""
    reason: str | None = None
    """Why it is not."""
    role: str | None = None
    """What it is used as: ``optical``, ``radar`` or ``height``."""
    share: float | None = None
    """Of the tile, where it is used."""
    cloud: float | None = None
    """Percent."""
    baseline: str | None = None
    orbit_state: str | None = None
    relative_orbit: int | None = None
    offset: str | None = None
    """What is decided about Sentinel-2's +1000, and why."""


@dataclass(frozen=True)
class TileScenes:
    """The scenes of one tile."""

    tile: str
    told_by: Literal["catalogue", "receipt", "record"]
    """Who says so: a catalogue, asked now; or the receipt of a finished tile, or the record of one that was begun."""
    items: tuple[SceneItem, ...] = ()
    """Those that are used come first, a scene after the other."""
    notes: tuple[str, ...] = ()
    reason: str | None = None
    """Why it has none."""

    @property
    def used(self) -> int:
        """How many scenes there are."""
        return len({item.used for item in self.items if item.used is not None})


@documented(RunOptions)
def find_scenes(tiles: StrPath | Iterable[str] | None = None, **options: Unpack[RunOptions]) -> tuple[TileScenes, ...]:
    """The scenes that `daskembed.run` would use with the same arguments, and those that it would not; reads no pixels.

    Tiles that were finished, or begun, with the same choice tell what their receipts or records keep: that is what a
    run goes on with.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids.
    options
        See `daskembed.runs.options.Options`.

    Raises
    ------
    InputError
        If the source is no catalogue or does not answer, or the run would be refused for what it asks of one.
    StorageUnusableError
        If the catalogue refuses the credentials.
    """
    asked = Options.of(options, RunOptions)
    source = open_source(asked.source)
    if not isinstance(source, Catalogue):
        raise InputError(f"the source {source.url} is no catalogue, and has no scenes to choose from: give one")
    names = asked_tiles(tiles, asked.region)
    which: dict[str, Any] = {"encoder": asked.encoder, "sensor": asked.sensor, "window": asked.window}
    needs = foresee(asked.checkpoint, **which) or find_encoder(asked.checkpoint, **which)("fp32").description
    reading = replace(reading_of(asked, source), sensor=needs.sensor, resolution=needs.resolution)
    check_bands(source, reading)
    output, version = Storage(asked.output), check_version(asked.version)
    decides = chosen_by(source, reading)
    kept = keepers(decides, output, version, names, read_receipts(output, names, version))
    if asked.refresh or {*names} - {*kept}:
        check_catalogue(source, reading, needed=True)
    found = {} if asked.refresh else {tile: _kept(tile, one) for tile, one in kept.items()}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rest = [tile for tile in names if tile not in found]
        found |= zip(rest, pool.map(partial(_ask, catalogue=source, reading=reading), rest), strict=True)
    return tuple(found[tile] for tile in names)


def _kept(tile: str, found: Receipt | TileRecord) -> TileScenes:
    by: Literal["receipt", "record"] = "receipt" if isinstance(found, Receipt) else "record"
    try:
        return _told(tile, by, parse_kept(tile, found.scenes))
    except TileError as error:
        return TileScenes(tile, by, reason=str(error))


def _ask(tile: str, *, catalogue: Catalogue, reading: Reading) -> TileScenes:
    try:
        selection = select(tile, catalogue, reading)
    except StorageUnusableError:
        raise
    except (StorageError, TileError) as error:
        return TileScenes(tile, "catalogue", reason=str(error))
    left_out = [_left_out(one.item, one.reason) for one in selection.left_out]
    try:
        scenes = keep(selection, catalogue, reading)
    except TileError as error:
        chosen = [(used.item, one.day) for one in selection.scenes for used in one.items]
        refused = [_left_out(item, f"is of the scene of {day}, which is refused: see below") for item, day in chosen]
        return TileScenes(tile, "catalogue", (*refused, *left_out), reason=str(error))
    if not scenes:
        why = nothing_found(tile, catalogue, reading, selection, listed=True)
        return TileScenes(tile, "catalogue", tuple(left_out), reason=why)
    return _told(tile, "catalogue", scenes, left_out)


def _told(
    tile: str,
    by: Literal["catalogue", "receipt", "record"],
    scenes: Iterable[KeptScene],
    left_out: Iterable[SceneItem] = (),
) -> TileScenes:
    used = [_used(item, scene.day) for scene in scenes for item in scene.items]
    notes = tuple(note for scene in scenes for note in scene.notes)
    return TileScenes(tile, by, (*used, *left_out), notes)


def _used(item: KeptItem, day: str) -> SceneItem:
    taken = " or ".join(str(number) for number in sorted({*item.offsets.values()}) if number)
    return SceneItem(
        collection=item.collection,
        id=item.id,
        url=item.url,
        time=item.time,
        used=day,
        role=item.role,
        share=item.share,
        cloud=item.cloud,
        baseline=item.baseline,
        orbit_state=item.orbit_state,
        relative_orbit=item.relative_orbit,
        offset=f"{taken or 'nothing'} taken out ({item.offset_why})" if item.offset_why else None,
    )


def _left_out(item: Item, reason: str) -> SceneItem:
    return SceneItem(
        collection=item.collection,
        id=item.id,
        url=item.url,
        time=item.time.isoformat(),
        used=None,
        reason=reason,
        cloud=item.cloud,
        baseline=item.baseline,
        orbit_state=item.orbit_state,
        relative_orbit=item.relative_orbit,
    )
