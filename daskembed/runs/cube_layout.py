"""What goes where in a tile's cube: its grid, and the shards that its chips fall into."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.errors import (
    TileError,
    exact,
)
from daskembed.geo.chips import CHIP
from daskembed.output.cube import CHIPS_A_SHARD, COMPRESSION, Layout
from daskembed.output.cube_state import (
    digest_of,
)
from daskembed.output.geozarr import Grid
from daskembed.sources.protocol import Chip
from daskembed.sources.reading import Reading, Rules
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

    source: Storage
    output: Storage
    reading: Reading = field(default_factory=lambda: READING)
    readers: int = READERS
    """Threads of a task that read chips."""
    max_quarantined: float = 0.1
    """Share of a tile's chips whose headers may newly be bad; `daskembed.runs.quarantine.FEW` may in any case."""
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
        return made | self.reading.meaning


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
    first = good.iloc[0]
    step_x, step_y = (first["east"] - first["west"]) / CHIP, (first["north"] - first["south"]) / CHIP

    def refuse(row: Any, found: str, expected: str) -> None:
        raise TileError(
            f"{row.source_url} {found}, but {first['source_url']} {expected}: a cube has one grid; "
            "remove what does not belong to the tile"
        )

    for row in good.itertuples():
        if row.epsg != first["epsg"]:
            refuse(row, f"is in EPSG:{row.epsg}", f"in EPSG:{first['epsg']}")
        here = (row.east - row.west) / CHIP, (row.north - row.south) / CHIP
        if not np.allclose(here, (step_x, step_y), rtol=1e-6, atol=0):
            refuse(
                row,
                f"has pixels of {exact(here[0])} x {exact(here[1])}",
                f"of {exact(step_x)} x {exact(step_y)} in units of EPSG:{row.epsg}",
            )
        off = np.array([(row.west - first["west"]) / step_x, (first["north"] - row.north) / step_y])
        if np.abs(off - CHIP * np.round(off / CHIP)).max() > 0.01:
            refuse(
                row,
                f"lies {exact(off[0])} pixels east and {exact(off[1])} south of it",
                f"calls for multiples of {CHIP}",
            )
    west, north = float(good["west"].min()), float(good["north"].max())
    cols = np.round((good["west"].to_numpy() - west) / step_x / CHIP).astype(int)
    rows = np.round((north - good["north"].to_numpy()) / step_y / CHIP).astype(int)
    dates = tuple(sorted(set(good["date"])))
    bands = good["chip"].iloc[0].bands
    inside = np.array([chip.inside for chip in good["chip"]])
    height, width = (CHIP * np.stack([rows, cols], axis=1) + inside).max(axis=0).tolist()
    grid = Grid(int(first["epsg"]), west, north, step_x, step_y, height, width)
    layout = Layout(grid, dates, bands, _without_offset(job, good))
    taken: dict[tuple[int, int, int], str] = {}
    shards: dict[str, list[tuple[int, int, Any]]] = {}
    for row, y, x in zip(good.itertuples(), rows.tolist(), cols.tolist(), strict=True):
        time = dates.index(row.date)
        other = taken.setdefault((time, y, x), row.source_url)
        if other != row.source_url:
            raise TileError(
                f"{row.source_url} and {other} are of one place and date: a cube has room for one; remove one"
            )
        key = f"c/{time}/0/{y // CHIPS_A_SHARD}/{x // CHIPS_A_SHARD}"
        shards.setdefault(key, []).append((y % CHIPS_A_SHARD, x % CHIPS_A_SHARD, row))
    return layout, [_shard(job, key, rows) for key, rows in sorted(shards.items())]


def _without_offset(job: Job, good: gpd.GeoDataFrame) -> tuple[date, ...]:
    """Dates of whose images Sentinel-2's offset was there and is out; raises `TileError` if nobody knows of others."""
    scales = [getattr(chip, "scene", chip).scales for chip in good["chip"]]
    out = np.array([any(scale.taken_out or scale.offset_applied for scale in bands) for bands in scales], np.bool_)
    if job.reading.offset_applied is None:
        said = np.array([any(scale.numbers.added and scale.remark for scale in bands) for bands in scales], np.bool_)
        for day, url in zip(good["date"][said & ~out], good["source_url"][said & ~out], strict=True):
            if others := good["source_url"][out & (good["date"] == day)].tolist():
                raise TileError(
                    f"nothing tells of {url} whether the 1000 that ESA adds to Sentinel-2 is still in its numbers, and "
                    f"of {others[0]}, of the same date, it is out: a cube says it of a date; --offset-applied yes or "
                    "no decides"
                )
    return tuple(sorted(set(good["date"][out])))


def _shard(job: Job, key: str, rows: list[tuple[int, int, Any]]) -> Shard:
    made_of = [job.settings, [(y, x, row.source_url, int(row.size), row.etag) for y, x, row in rows]]
    return Shard(key, tuple((y, x, row.chip) for y, x, row in rows), digest_of(made_of))
