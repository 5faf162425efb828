"""What can be said of a run before anything is fetched or started: where its tiles are, and whether any is to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from daskembed.errors import InputError, StorageDeniedError, StorageError, StorageUnusableError, TileError, did_you_mean
from daskembed.geo.mgrs import tile_in
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources.origin import Origin
from daskembed.sources.stac.catalogue import DESCRIPTIONS, FILES_OF_ITEMS, Catalogue, find_catalogue, packaged
from daskembed.sources.stac.roles import parts_of
from daskembed.sources.stac.search import collections_of
from daskembed.storage.local_files import meant_beside
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, local_path

if TYPE_CHECKING:
    from daskembed.output.state import Receipt, TileRecord
    from daskembed.runs.settings import Settings
    from daskembed.sources.reading import Reading

_log = logging.getLogger(__name__)
AT_ONCE = 16
"""Listings that are asked for at a time."""

Found = TypeVar("Found")


def check_source(source: Storage, tiles: Sequence[str]) -> bool:
    """Refuse a source that is not there, or that is above or below the folder that is meant; reads listings only.

    Returns
    -------
    bool
        Whether some of the tiles may be there: false if the source has nothing that is named after one of them. Of a
        source that does not answer here, the workers may know more.

    Raises
    ------
    InputError
        With what to type instead.
    StorageUnusableError
        If there is no such bucket.
    """
    if is_local(source.url) and not Path(source.url).is_dir():
        raise InputError(_missing(source, tiles))
    wanted = set(tiles)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            # Of a source of thousands of tiles a listing of all of them would take seconds.
            if any(pool.map(lambda tile: any(_names(source, tile)), tiles[:AT_ONCE])):
                return True
            if any(tile_in(name) in wanted for name in _names(source)):
                if (tile := _named_after(source.url)) in wanted and (hint := _above(source.url)):
                    _log.warning(
                        f"warning: {source.url} is in a folder that is named after {tile}: other folders there are not "
                        f"looked into; {hint}"
                    )
                return True
            if hint := _meant(source, wanted, pool):
                raise InputError(f"no tile of `tiles` is in {source.url}: {hint}")
    except StorageDeniedError:
        return True
    except StorageUnusableError:
        raise
    except StorageError:
        return True
    return False


def check_bands(source: Origin, reading: Reading, *, embeds: bool = True) -> None:
    """Raise `InputError` if a source is a catalogue that lacks bands of a sensor, or no period is said; asks nobody.

    Parameters
    ----------
    embeds
        Whether for an encoder: another may take other bands.
    """
    if not isinstance(source, Catalogue):
        return
    if reading.dates is None:
        raise InputError(
            f"`dates`: expected the period of which {source.name} is to be asked, such as 2024-05-01/2024-09-30"
        )
    try:
        parts_of(reading.sensor, source)
    except InputError as error:
        if not embeds or reading.sensor != CLAY_V0:
            raise
        raise InputError(
            f"{error}. Only clay-v0, the default encoder, needs radar and elevation: `encoder='clay-v1.5'` takes "
            "Sentinel-2 alone"
        ) from None


def check_catalogue(source: Origin, reading: Reading, *, needed: bool) -> None:
    """Refuse a catalogue that has not the collections that are wanted of it, or for which software is missing.

    Parameters
    ----------
    needed
        Whether nothing can be done if it does not answer here. Otherwise it is asked once: it may answer the workers,
        who ask again, and of tiles that were begun it need not be asked.

    Raises
    ------
    InputError
        In words; also if one that is `needed` does not answer.
    """
    if not isinstance(source, Catalogue) or source.is_file:
        return
    wanted = [part.images.collection for part in parts_of(reading.sensor, source)]
    try:
        there = collections_of(source.url, again=needed)
    except StorageError as error:
        if needed:
            raise InputError(str(error)) from None
        _log.warning(f"warning: {error}; the workers ask it, too")
        return
    if missing := [name for name in wanted if name not in there]:
        raise InputError(
            f"{source.name} has no collection {' and no '.join(missing)}: found "
            f"{', '.join(sorted(there)[:8]) or 'none'}{did_you_mean(missing[0], there)}; check `source`"
        )


def _names(source: Storage, folder: str = "") -> Iterator[str]:
    """Names of what is right below a folder."""
    yield from (path.rpartition("/")[2] for path in source.folders(folder))
    yield from (entry.path.rpartition("/")[2] for entry in source.entries(folder, recursive=False))


def _missing(source: Storage, tiles: Sequence[str]) -> str:
    """Why a local source is no folder."""
    path = local_path(source.url)
    if path.is_file():
        hint = _above(path.as_posix()) or f"`source` takes the folder above the tiles, such as {path.parent}"
        return f"{path} is a file: {hint}"
    listed = DESCRIPTIONS + FILES_OF_ITEMS
    if meant := meant_beside(path, lambda one: one.is_dir() or one.name.lower().endswith(listed)):
        return f"no folder {path}{meant}"
    if listing := [name for name, one in packaged().items() if path.name in one.collections]:
        return f"no folder {path}; did you mean {' or '.join(listing)}, which list the collection {path.name}?"
    return (
        f"no folder {path}: `source` takes the folder above the tiles, or a catalogue: {', '.join(packaged())}, "
        "stac+https://HOST/PATH, or a file of items (.json, .parquet) or of a catalogue of your own (.yaml)"
    )


def _named_after(url: str) -> str | None:
    """The tile of the first folder of a path that is named after one."""
    return next(filter(None, map(tile_in, url.split("/")[1:])), None)


def _above(url: str) -> str | None:
    """The folder above the one that is named after a tile, if there is one in a path."""
    parts = url.split("/")
    for number, part in enumerate(parts):
        if number and (tile := tile_in(part)):
            above = "/".join(parts[:number]) or "/"
            return f"`source` takes the folder above the tiles: `source={above!r}` `tiles={tile!r}`"
    return None


def _meant(source: Storage, wanted: set[str], pool: ThreadPoolExecutor) -> str | None:
    """What was meant in place of a source that has none of the tiles, if that can be seen."""
    if above := _above(source.url):
        return above
    names = set(_names(source))
    if names & {"zarr.json", ".zgroup", ".zmetadata"}:
        return f"it is a Zarr store: `source` takes the folder of stores, each named after its tile, {min(wanted)}.zarr"
    # Before what is below: granules by themselves would be neither joined nor freed of the 1000.
    if is_local(source.url) and (described := _described(source, names)):
        return f"a catalogue of scenes is there: `source={source.url_of(described)!r}`"
    folders = source.folders()[:AT_ONCE]
    below = pool.map(lambda folder: any(tile_in(name) in wanted for name in _names(source, folder)), folders)
    if found := [folder for folder, has in zip(folders, below, strict=True) if has]:
        return f"it is above the folder of the tiles: `source={source.url_of(found[0])!r}`"
    return None


def _described(source: Storage, names: Collection[str]) -> str | None:
    """The name of a catalogue's description, or else of a file of items, that lies right in a folder."""
    for endings in (DESCRIPTIONS, FILES_OF_ITEMS):
        found = []
        for name in sorted(name for name in names if name.lower().endswith(endings))[:AT_ONCE]:
            with suppress(InputError, StorageError):
                if catalogue := find_catalogue(source.url_of(name)):
                    found.append((not catalogue.is_file, name))
        if found:
            # What is a file can be read; a server may be gone.
            return min(found)[1]
    return None


def precision_of(receipts: Mapping[str, Receipt]) -> str:
    """What all that is there was made with; ``fp32`` where that is several things, or nothing."""
    kinds = {receipt.settings.get("precision") for receipt in receipts.values()}
    return str(kinds.pop() or "fp32") if len(kinds) == 1 else "fp32"


def settled(
    settings: Settings,
    tiles: Sequence[str],
    receipts: Mapping[str, Receipt],
    published: Mapping[str, Mapping[str, int]],
    kept: Mapping[str, Receipt | TileRecord] = MappingProxyType({}),
) -> dict[str, Receipt | str] | None:
    """What has become of all tiles already, if nothing is left to do: their receipts, or why there are no chips.

    Parameters
    ----------
    settings, tiles
        What is to be done with which tiles.
    receipts, published
        Receipts by tile, names and bytes of published files by tile.
    kept
        What keeps the scenes of a catalogue's tiles, by tile. One without them has something to do: no catalogue is
        asked here.

    Returns
    -------
    dict or None
        None as soon as a tile has something to do, or a store does not answer here: the workers will see.
    """
    from daskembed.sources.registry import list_tile

    identity = settings.identity
    fitting = {
        tile: receipt
        for tile in tiles
        if (receipt := receipts.get(tile)) and receipt.finishes(identity, published.get(tile, {}))
    }

    if isinstance(settings.source, Catalogue) and (settings.refresh or {*tiles} - {*kept}):
        return None

    def look(tile: str) -> Receipt | None:
        receipt = fitting.get(tile)
        scenes = kept[tile].scenes if tile in kept else ()
        listing = list_tile(tile, settings.source, settings.reading, scenes)
        if receipt is None or not receipt.holds(listing.fingerprint, retry_quarantined=settings.retry_quarantined):
            return None
        return receipt

    return settle(tiles, look, fitting)


def settle(
    tiles: Sequence[str], look: Callable[[str], Found | None], likely: Collection[str]
) -> dict[str, Found | str] | None:
    """What has become of all tiles already, if nothing is left to do.

    Parameters
    ----------
    tiles
        Which are wanted.
    look
        What has become of one of them; None if there is something to do, `TileError` if it has no chips.
    likely
        Tiles that an earlier run finished.

    Returns
    -------
    dict or None
        By tile, words for one without chips. None as soon as a tile has something to do, or a store does not answer
        here: the workers will see.
    """

    def outcome_of(tile: str) -> Found | str | None:
        try:
            return look(tile)
        except TileError as error:
            return str(error)

    # Most often the first one that no run has finished says that there is something to do.
    order = sorted(tiles, key=lambda tile: tile in likely)
    found: dict[str, Found | str] = {}
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start, end in pairwise((0, *range(1, len(order), AT_ONCE), len(order))):
                some = order[start:end]
                for tile, outcome in zip(some, pool.map(outcome_of, some), strict=True):
                    if outcome is None:
                        return None
                    found[tile] = outcome
    except (StorageError, InputError):
        return None
    return {tile: found[tile] for tile in tiles}


def no_cluster(*, nothing_left: bool) -> str:
    """What is said in place of the workers where none are needed."""
    return f"{'nothing is left to do' if nothing_left else 'no chips of any tile'}: no cluster is started"
