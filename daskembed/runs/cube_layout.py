"""What goes where in a tile's cube: its grid, and the shards that its chips fall into."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.documents import json_digest
from daskembed.errors import TileError
from daskembed.geo.cells import EDGES, common_grid, find_overlap
from daskembed.geo.chips import CHIP
from daskembed.output.cube import CHIPS_A_SHARD, COMPRESSION, Layout
from daskembed.runs.kept import chosen_by
from daskembed.sources.chip import Chip
from daskembed.sources.origin import Origin
from daskembed.sources.reading import Reading
from daskembed.sources.rules import Rules
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.output.lock import Lock


READERS = 8
"""Threads of a task that read chips."""

# Everything of a tile belongs in its cube, and what is drawn from it later has rules of its own.
READING = Reading(edge="pad", rules=Rules(keep_all=True))

_LAYOUT = 1
"""Of the cube: shards of another number are written anew."""


@dataclass(frozen=True)
class Job:
    """What to do with each tile."""

    source: Origin
    output: Storage
    reading: Reading = field(default_factory=lambda: READING)
    readers: int = READERS
    """Threads of a task that read chips."""
    max_quarantined: float = 0.1
    """Share of a tile's chips whose headers may newly be bad; `daskembed.runs.quarantine.FEW` may in any case."""
    refresh: bool = False
    """Whether a catalogue is asked again for the scenes of cubes that are begun or finished."""
    lock: Lock | None = None
    """Held by the run; whoever makes or unmakes a cube sees to it that it still is."""

    def confirm(self) -> None:
        """Raise `LockLostError` if another run has the output by now."""
        if self.lock is not None:
            self.lock.confirm()

    @property
    def settings(self) -> dict[str, Any]:
        """What determines a cube beside its chips."""
        bands = list(self.reading.sensor.names)
        made = {"layout": _LAYOUT, "bands": bands, "compression": COMPRESSION, "chips_a_shard": CHIPS_A_SHARD}
        # What is said of all chips is not said: the settings of cubes were told without it from the first.
        dates = {} if self.reading.period is None else {"dates": self.reading.period}
        scenes = chosen_by(self.source, self.reading)
        return made | dates | scenes | self.reading.place | self.reading.meaning


@dataclass(frozen=True)
class Shard:
    """Neighbouring chips of one date, which become one object."""

    key: str
    """Its object's path below the array."""
    chips: tuple[tuple[int, int, Chip], ...]
    """Row and column in the shard, and how to read the chip."""
    inputs: str
    """Digest of what it is made from: chips, their places, and settings."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Of its chips, one of which may be what workers die of; see `daskembed.runs.deadly_chips.Suspects`."""
        return tuple(chip.url for _, _, chip in self.chips)

    def warm_up(self) -> None:
        """Nothing is done once for all chips."""

    def touch(self, url: str) -> None:
        """Read a chip."""
        next(chip for _, _, chip in self.chips if chip.url == url).read()


def lay_out(job: Job, index: gpd.GeoDataFrame) -> tuple[Layout | None, list[Shard]]:
    """The grid of a tile's chips, and the shards that they fall into; no grid if all chips are quarantined.

    Raises
    ------
    TileError
        If the chips are not of one grid, or two are of the same place and date.
    """
    good = index[index["quarantined"].isna()]
    if good.empty:
        return None, []
    urls = list(good["source_url"])
    why = "a cube has one grid; remove what does not belong to the tile"
    bounds = good[list(EDGES)].to_numpy(np.float64)
    epsg = good["epsg"].to_numpy()
    grid, y, x = common_grid(urls, epsg, bounds, (CHIP, CHIP), pixels=CHIP, every=CHIP, why=why)
    rows, cols = y // CHIP, x // CHIP
    if overlap := find_overlap(rows, cols, (1, 1), good["date"].to_numpy()):
        one, other = (urls[number] for number in overlap)
        raise TileError(f"{one} and {other} are of one place and date: a cube has room for one; remove one")
    dates = tuple(sorted(set(good["date"])))
    bands = good["chip"].iloc[0].bands
    inside = np.array([chip.inside for chip in good["chip"]])
    height, width = (CHIP * np.stack([rows, cols], axis=1) + inside).max(axis=0).tolist()
    layout = Layout(replace(grid, height=height, width=width), dates, bands, _without_offset(job, good))
    shards: dict[str, list[tuple[int, int, Any]]] = {}
    for row, y, x in zip(good.itertuples(), rows.tolist(), cols.tolist(), strict=True):
        time = dates.index(row.date)
        key = f"c/{time}/0/{y // CHIPS_A_SHARD}/{x // CHIPS_A_SHARD}"
        shards.setdefault(key, []).append((y % CHIPS_A_SHARD, x % CHIPS_A_SHARD, row))
    return layout, [_shard(job, key, rows) for key, rows in sorted(shards.items())]


def _without_offset(job: Job, good: gpd.GeoDataFrame) -> tuple[date, ...]:
    """Dates of whose images Sentinel-2's offset was there and is out; raises `TileError` if nobody knows of others."""
    scales = [chip.scales for chip in good["chip"]]
    out = np.array([any(scale.taken_out or scale.offset_applied for scale in bands) for bands in scales], np.bool_)
    if job.reading.offset_applied is None:
        said = np.array([any(scale.numbers.added and scale.remark for scale in bands) for bands in scales], np.bool_)
        for day, url in zip(good["date"][said & ~out], good["source_url"][said & ~out], strict=True):
            if others := good["source_url"][out & (good["date"] == day)].tolist():
                raise TileError(
                    f"nothing tells of {url} whether the 1000 that ESA adds to Sentinel-2 is still in its numbers, and "
                    f"of {others[0]}, of the same date, it is out: a cube says it of a date; `offset_applied` yes or "
                    "no decides"
                )
    return tuple(sorted(set(good["date"][out])))


def _shard(job: Job, key: str, rows: list[tuple[int, int, Any]]) -> Shard:
    made_of = [job.settings, [(y, x, row.source_url, int(row.size), row.etag) for y, x, row in rows]]
    return Shard(key, tuple((y, x, row.chip) for y, x, row in rows), json_digest(made_of))
