"""Which items become a tile's scenes: rules that know no files and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import groupby

import shapely

from daskembed.errors import InputError
from daskembed.geo.mgrs import TILE
from daskembed.sources.baseline import parse_baseline
from daskembed.sources.choice import Choice
from daskembed.sources.reading import Reading
from daskembed.sources.stac.catalogue import Catalogue, Images
from daskembed.sources.stac.coverage import Ground
from daskembed.sources.stac.items import Item
from daskembed.sources.stac.roles import Part, parts_of
from daskembed.sources.stac.search import Bounds, find_items
from daskembed.text import counted

_LEAST = 0.001
"""Share of a tile that counts as covered more or less: footprints are drawn with fewer corners than the pixels have."""
_REDUNDANT = 0.01
"""Likewise, to what newer products of the same acquisition show: their footprints differ a little."""
_PASS = timedelta(minutes=10)
"""Longest time between neighbouring images of one pass of a satellite; its next pass is 98 minutes later."""
Find = Callable[[Catalogue, Images, Bounds, date | None, date | None], list[Item]]


@dataclass(frozen=True)
class Used:
    """An item that is used in a scene."""

    item: Item
    role: str
    """``optical``, ``radar`` or ``height``."""
    share: float
    """Of the tile's area, that its footprint covers."""


@dataclass(frozen=True)
class Chosen:
    """The items of one scene, those of each role in the order in which they count: the first that has a value."""

    day: date
    items: tuple[Used, ...]


@dataclass(frozen=True)
class LeftOut:
    """An item that is not used, and why."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Selection:
    """What is used of a tile, and what is not."""

    scenes: tuple[Chosen, ...]
    """By day."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    """What else is to be told, such as places without any radar or elevation."""


@dataclass(frozen=True)
class _Granule:
    """An item, and what it covers of the tile."""

    item: Item
    ground: shapely.Geometry
    share: float

    @property
    def key(self) -> tuple[str, str]:
        return (self.item.collection, self.item.id)

    @property
    def acquisition(self) -> tuple[str | None, str | None]:
        return (self.item.platform, self.item.acquisition)

    @property
    def baseline(self) -> float:
        known = None if self.item.baseline is None else parse_baseline(self.item.baseline)
        return -1.0 if known is None else known

    @property
    def valid(self) -> float:
        """Share of the tile of which it has pixels, by what it says or else by its footprint."""
        return self.share if self.item.nodata is None else 1 - self.item.nodata / 100


@dataclass(frozen=True)
class _Date:
    """Granules that together are the scene of a day, and what they are together."""

    granules: tuple[_Granule, ...]
    nodata: float
    """Percent of the tile."""
    cloud: float | None
    """Percent of what they cover; 0 of radar; None if they do not say it."""

    @property
    def time(self) -> datetime:
        return min(one.item.time for one in self.granules)

    @property
    def day(self) -> date:
        return self.time.date()

    @property
    def rank(self) -> tuple[float, float, date]:
        return (100.0 if self.cloud is None else self.cloud, self.nodata, self.day)


@dataclass
class _Reasons:
    """Why items are not used; of several reasons the first."""

    told: dict[tuple[str, str], LeftOut] = field(default_factory=dict)

    def add(self, granules: Iterable[_Granule], reason: str) -> None:
        for one in granules:
            self.told.setdefault(one.key, LeftOut(one.item, reason))

    def sorted(self) -> tuple[LeftOut, ...]:
        """By collection and time."""
        return tuple(sorted(self.told.values(), key=lambda one: (one.item.collection, one.item.time, one.item.id)))


def select(tile: str, catalogue: Catalogue, reading: Reading, find: Find = find_items) -> Selection:
    """Choose the items of a tile's scenes, in the way of the reference.

    Parameters
    ----------
    tile
        MGRS tile id.
    find
        How items are asked for: of which images, bounds in degrees, first and last day.

    Raises
    ------
    InputError
        If there is no such tile, the catalogue lacks bands of the sensor, or no period is given.
    StorageError
        If the catalogue does not answer.
    """
    parts = {part.role: part for part in parts_of(reading.sensor, catalogue)}
    if reading.dates is None:
        raise InputError(f"`dates`: expected the period in which {catalogue.name} is searched, START/END")
    choice, ground, reasons = reading.choice, Ground.of(tile), _Reasons()
    main = next(parts[role] for role in ("optical", "radar", "height") if role in parts)
    radar, height = (None if part is main else part for part in (parts.get("radar"), parts.get("height")))

    def ask(part: Part, first: date | None, last: date | None) -> list[_Granule]:
        return _usable(find(catalogue, part.images, ground.bounds, first, last), part, tile, ground, reasons)

    dates = _dates(_newest(ask(main, *reading.dates), reasons), main.role, choice, reasons)
    beside: list[_Granule] = []
    if radar is not None and dates:
        days, margin = [one.day for one in dates], timedelta(days=choice.radar_days)
        beside = _newest(ask(radar, min(days) - margin, max(days) + margin), reasons)
    taken: list[tuple[_Date, list[_Granule]]] = []
    for period, count in _periods(dates, reading.dates, choice):
        wanted = count
        for one in period:
            if not wanted:
                reasons.add(one.granules, f"is fit but not needed: {_before(choice)} ({_told(one)})")
                continue
            companions = [] if radar is None else _companions(one, beside, choice)
            if radar is not None and not companions:
                reasons.add(one.granules, f"has no radar within {counted(choice.radar_days, 'day')}")
                continue
            taken.append((one, companions))
            wanted -= 1
    taken.sort(key=lambda pair: pair[0].day)
    used = {one.key for _, companions in taken for one in companions}
    reasons.add([one for one in beside if one.key not in used], "is not needed beside a scene that is used")
    heights = [] if height is None or not taken else ask(height, None, None)
    scenes = [
        Chosen(one.day, (*_used(one.granules, main.role), *_used(companions, "radar"), *_used(heights, "height")))
        for one, companions in taken
    ]
    notes = []
    if 0 < len(taken) < choice.scenes:
        parts_of_it = ", each of another part of the period" if choice.pick == "spread" else ""
        notes.append(f"{counted(len(taken), 'date')} of the {choice.scenes} asked for{parts_of_it}: no other is fit")
    for one, companions in taken if radar is not None else []:
        notes += _gap(ground, companions, f"radar beside {one.day}")
    notes += _gap(ground, heights, "elevation") if height is not None and taken else []
    return Selection(tuple(scenes), reasons.sorted(), tuple(notes))


def _gap(ground: Ground, granules: Sequence[_Granule], what: str) -> list[str]:
    covered = ground.share(one.ground for one in granules)
    return [f"no {what} in {100 * (1 - covered):.3g} % of the tile"] if covered < 1 - _LEAST else []


def _used(granules: Iterable[_Granule], role: str) -> list[Used]:
    return [Used(one.item, role, round(one.share, 6)) for one in granules]


def _usable(items: Sequence[Item], part: Part, tile: str, ground: Ground, reasons: _Reasons) -> list[_Granule]:
    """Those that have all bands and lie at the tile, whatever their order."""
    found = []
    once = {(item.collection, item.id): item for item in items}
    for _, item in sorted(once.items()):
        here = ground.part(item.footprint)
        one = _Granule(item, here, _area(here))
        if item.tile is not None and item.tile != tile:
            reasons.add([one], f"is of the tile {item.tile}")
        elif not one.share:
            reasons.add([one], "covers nothing of the tile")
        elif lacking := part.lacking(item):
            reasons.add([one], f"has no {', '.join(lacking)}")
        else:
            found.append(one)
    return found


def _newest(granules: Sequence[_Granule], reasons: _Reasons) -> list[_Granule]:
    """Without redundant copies: of what shows the same acquisition the newest baseline, then what was made last."""
    kept: list[_Granule] = []
    for one in sorted(granules, key=lambda one: (one.baseline, one.item.processed or "", one.key), reverse=True):
        same = [other for other in kept if other.acquisition == one.acquisition]
        # Parts of a split acquisition show other ground.
        if not same or _added(one, same) > _REDUNDANT:
            kept.append(one)
        else:
            reasons.add([one], f"shows the same as {same[0].item.id}, which is newer")
    return kept


def _dates(granules: Sequence[_Granule], role: str, choice: Choice, reasons: _Reasons) -> list[_Date]:
    """The scene of each day that has one, in the order in which they are taken."""
    ordered = sorted(granules, key=lambda one: (one.item.platform or "", one.item.time, one.item.id))
    passes: list[list[_Granule]] = []
    for one in ordered:
        last = passes[-1][-1].item if passes else None
        if last is not None and last.platform == one.item.platform and one.item.time - last.time <= _PASS:
            passes[-1].append(one)
        else:
            passes.append([one])
    passes.sort(key=lambda granules: (granules[0].item.time, granules[0].item.id))
    found = []
    for _, of_day in groupby(passes, key=lambda granules: granules[0].item.time.date()):
        granules_of_day = list(of_day)
        together = [_joined(granules, role) for granules in granules_of_day]
        whole = [one for one in together if not _refused(one, choice)]
        if not whole and len(together) > 1:
            whole = [_joined([one for granules in granules_of_day for one in granules], role)]
        best = min(whole or together, key=lambda one: (one.rank, one.granules[0].key))
        if refusal := _refused(best, choice):
            reasons.add(best.granules, refusal)
        else:
            found.append(best)
        used = {one.key for one in best.granules}
        rest = [one for granules in granules_of_day for one in granules if one.key not in used]
        reasons.add(rest, f"adds nothing to {best.granules[0].item.id} of the same day")
    return sorted(found, key=lambda one: one.rank)


def _joined(granules: Iterable[_Granule], role: str) -> _Date:
    """Granules as one scene, the newest baseline first and then the largest, without those that add nothing to it.

    Radar: of one orbit state.
    """
    kept: list[_Granule] = []
    for one in sorted(granules, key=lambda one: (-one.baseline, -round(one.share, 6), one.key)):
        of_one = role != "radar" or not kept or one.item.orbit_state == kept[0].item.orbit_state
        if not kept or (of_one and _added(one, kept) > _LEAST):
            kept.append(one)
    valid = [one.valid for one in kept]
    overlap = sum(one.share for one in kept) - _area(shapely.union_all([one.ground for one in kept]))
    covered = min(1.0, max(*valid, sum(valid) - overlap))
    clouds = [0.0 if role == "radar" else one.item.cloud for one in kept]
    known = [cloud * part for cloud, part in zip(clouds, valid, strict=True) if cloud is not None]
    told = len(known) == len(kept) and sum(valid) > 0
    return _Date(tuple(kept), 100 * (1 - covered), sum(known) / sum(valid) if told else None)


def _area(ground: shapely.Geometry) -> float:
    """Share of a tile."""
    return float(shapely.area(ground)) / TILE**2


def _added(one: _Granule, others: Iterable[_Granule]) -> float:
    """Share of the tile that only one covers, and none of others."""
    return _area(shapely.difference(one.ground, shapely.union_all([other.ground for other in others])))


def _refused(one: _Date, choice: Choice) -> str | None:
    """Why a date is not used at all; None if it may be."""
    together = " with the others of its day" if len(one.granules) > 1 else ""
    if one.cloud is None and choice.max_scene_cloud < 100:
        return "does not say how cloudy it is: `max_scene_cloud` 100 takes it"
    if one.cloud is not None and one.cloud > choice.max_scene_cloud:
        return f"is cloudy in {_percent(one.cloud)}{together}: `max_scene_cloud` is {choice.max_scene_cloud:g}"
    if one.nodata > choice.max_scene_nodata:
        limit = f"`max_scene_nodata` is {choice.max_scene_nodata:g}"
        return f"has nothing in {_percent(one.nodata)} of the tile{together}: {limit}"
    return None


def _periods(dates: list[_Date], period: tuple[date, date], choice: Choice) -> list[tuple[list[_Date], int]]:
    """Dates from which some are taken, in order, and how many of them."""
    if choice.pick != "spread":
        return [(dates, choice.scenes)]
    days = (period[1] - period[0]).days + 1
    part = [(one.day - period[0]).days * choice.scenes // days for one in dates]
    return [([one for one, at in zip(dates, part, strict=True) if at == i], 1) for i in range(choice.scenes)]


def _told(one: _Date) -> str:
    nodata = f"empty {_percent(one.nodata)}"
    return f"this one: {nodata}" if one.cloud is None else f"this one: cloud {_percent(one.cloud)}, {nodata}"


def _percent(value: float) -> str:
    return f"{round(value, 2):g} %"


def _before(choice: Choice) -> str:
    if choice.pick == "spread":
        return "the one used of its part of the period ranks better"
    if choice.scenes == 1:
        return "the one that is used ranks better"
    return f"the {choice.scenes} that are used rank better"


def _companions(one: _Date, radar: Sequence[_Granule], choice: Choice) -> list[_Granule]:
    """Radar beside an optical scene: of one orbit state, the nearest in time first, as many as cover the tile."""
    near = [other for other in radar if abs((other.item.time.date() - one.day).days) <= choice.radar_days]

    def distance(other: _Granule) -> tuple[timedelta, float, str]:
        return (abs(other.item.time - one.time), -other.share, other.item.id)

    if not near:
        return []
    best = min(near, key=lambda other: (-round(other.share, 3), distance(other)))
    kept: list[_Granule] = []
    for other in sorted(near, key=distance):
        if other.item.orbit_state == best.item.orbit_state and _added(other, kept) > _LEAST:
            kept.append(other)
    return kept
