"""What became of a run and of its tiles, and where a run stands."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from daskembed.energy import Energy
from daskembed.errors import InputError, StorageError
from daskembed.output.status import status
from daskembed.output.tile_status import TileStatus
from daskembed.runs.summary import describe_tile, summary

MOST_SAID = 1000
"""Lines of what was said that `Progress` keeps."""
WINDOW = 120
"""Seconds over which `Pace` takes its mean."""
Kind = Literal["embeddings", "cube"]
"""What is made of a tile, in the words of `daskembed.output.status.TileStatus`."""


@dataclass(frozen=True, repr=False)
class TileResult:
    """What became of one tile."""

    tile: str
    status: str
    """``done``, ``skipped`` (finished by an earlier run) or ``failed``; of an export also ``indexed``, ``left out``."""
    file: str | None = None
    """Path or URL of the published file, the first where there are several; None where there is none."""
    chips: int = 0
    """Chips in the file."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """URL -> reason."""
    reason: str | None = None
    """Why the tile failed."""
    size: int = 0
    """Bytes of all its published files."""
    files: tuple[str, ...] = ()
    """Paths or URLs of all of them, one a format."""
    rejected: dict[str, str] = field(default_factory=dict)
    """URL -> the rule that it breaks."""
    notes: tuple[str, ...] = ()
    """What was done to the pixels' values on the way in, and what is unusual about them."""
    filled: int = 0
    """Chips in the file of which some values were filled with their band's mean."""
    unit: str = "chip"
    """What `chips` counts: of an export they are rows."""
    energy: Energy | None = None
    """What the devices used for its chips, whichever runs encoded them; None where it was not measured."""

    def __repr__(self) -> str:
        return f"<TileResult {describe_tile(self)}>"


@dataclass(frozen=True)
class Expected:
    """What a plan expected of a run."""

    chips: int
    """Chips to encode."""
    seconds: float
    """As `RunResult.seconds`."""
    bytes: int
    """Of the files to publish."""
    workers: int


@dataclass(frozen=True, repr=False)
class RunResult:
    """What became of a run."""

    output: str
    tiles: tuple[TileResult, ...]
    """In the order in which they finished."""
    unfinished: int
    """Tiles that an interrupted run did not finish."""
    encoded: int
    """Chips encoded by this run."""
    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool
    stage_seconds: dict[str, float]
    """Seconds by stage, summed over the workers' threads; see `daskembed.timings.STAGES`."""
    expected: Expected | None = None
    """By the plan that was made for the same output and settings on this machine, if any."""
    remaining: tuple[str, ...] = ()
    """Tiles that an interrupted run did not finish."""
    version: str = "001"
    """Of the files."""
    kind: Kind = "embeddings"
    """What was made of the tiles."""
    preview: str | None = None
    """Path or URL of the page that shows the output; None if it was not asked for, or there is nothing to show."""

    def __repr__(self) -> str:
        return f"<RunResult>\n{summary(self)}"

    @property
    def chips(self) -> int:
        """Chips in the files of all tiles."""
        return sum(tile.chips for tile in self.tiles)

    @property
    def bytes(self) -> int:
        """Bytes of the files that this run published."""
        return sum(tile.size for tile in self.tiles if tile.status == "done")

    @property
    def quarantined(self) -> dict[str, str]:
        """URL -> reason, of all tiles."""
        return {url: reason for tile in self.tiles for url, reason in tile.quarantined.items()}

    @property
    def rejected(self) -> dict[str, str]:
        """URL -> rule, of all tiles."""
        return {url: rule for tile in self.tiles for url, rule in tile.rejected.items()}

    @property
    def chips_per_second(self) -> float:
        """Chips encoded by this run over its wall time."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def exit_status(self) -> int:
        """0 all done, 3 done with quarantined chips, 4 some tiles failed, 130 interrupted."""
        if self.interrupted:
            return 130
        if any(tile.status == "failed" for tile in self.tiles):
            return 4
        return 3 if self.quarantined else 0


@dataclass
class TileProgress:
    """Where a tile stands that is begun and not finished."""

    chips: int = 0
    """To encode; 0 as long as they are not known."""
    done: int = 0
    """Of these the ones of finished blocks."""
    quarantined: int = 0
    """Chips with bad headers."""


class Pace:
    """How fast something gets done: the mean of the last `WINDOW` seconds in which something was.

    It counts from the first thing that is done, as what comes before, such as loading weights, comes once.
    """

    def __init__(self) -> None:
        self._changes: deque[tuple[float, int]] = deque()
        self._start = time.monotonic()

    def note(self, done: int) -> None:
        """So much is done by now."""
        now = time.monotonic()
        if self._changes and done < self._changes[-1][1]:
            self._changes.clear()  # a worker was lost with what it had done
        if done and (not self._changes or done > self._changes[-1][1]):
            self._changes.append((now, done))
        while len(self._changes) > 2 and self._changes[1][0] < now - WINDOW:
            self._changes.popleft()

    @property
    def a_second(self) -> float:
        """How much is done in a second."""
        if not self._changes:
            return 0.0
        start, before = self._changes[0] if len(self._changes) > 1 else (self._start, 0)
        end, done = self._changes[-1]
        return (done - before) / (end - start) if end > start else 0.0

    def left(self, missing: float) -> float | None:
        """Seconds until the rest is done: they run down while nothing new is; None while nobody can know."""
        if not self.a_second or not missing:
            return None
        return max(0.0, missing / self.a_second - (time.monotonic() - self._changes[-1][0]))


@dataclass
class Progress:
    """Where a run stands; handed to `run`'s callback after every change, and once a second."""

    tiles: int
    """Tiles asked for."""
    dashboard: str
    """Address of the Dask dashboard."""
    workers: str
    """What they compute with, in a line."""
    finished: list[TileResult] = field(default_factory=list, repr=False)
    indexed: int = 0
    """Tiles whose chips are known."""
    chips: int = 0
    """Chips to encode, of those tiles."""
    encoded: int = 0
    """Chips of finished blocks."""
    quarantined: int = 0
    """Chips known to be bad."""
    rejected: int = 0
    """Chips of finished tiles that were left out by a rule."""
    asks: str = ""
    """The catalogue that is asked for the scenes of tiles; empty where there is none."""
    notice: str = ""
    """What holds the run up at the moment, if anything does."""
    page: str = ""
    """Address of the runs' own page on the scheduler; empty where there is none."""
    output: str = ""
    """Path or URL of the published files."""
    how: str = "running"
    """``running``, ``over``, ``interrupted`` or ``stopped``."""
    at_work: dict[str, TileProgress] = field(default_factory=dict, repr=False)
    """Tile -> where it stands, of those that are begun and not finished."""
    in_work: dict[str, int] = field(default_factory=dict, repr=False)
    """Task -> chips that its worker is done with, of blocks that are not finished."""
    said: list[str] = field(default_factory=list, repr=False)
    """What was to be told once, in lines: the latest `MOST_SAID`."""
    forgotten: int = field(default=0, repr=False)
    """Lines that were said before those."""
    units: tuple[str, str] = field(default=("tiles", "chips"), repr=False)
    """What `tiles` and `chips` count: of an export first tiles, then files, and rows."""
    pace: Pace = field(default_factory=Pace, repr=False)
    started: float = field(default_factory=lambda: time.monotonic(), repr=False)

    def say(self, line: str) -> None:
        """Add a line to what was said."""
        self.said.append(line)
        if len(self.said) > MOST_SAID:
            del self.said[0]
            self.forgotten += 1

    @property
    def done(self) -> int:
        """Chips that the devices are done with; what a lost worker did is no more among them."""
        return self.encoded + sum(self.in_work.values())

    @property
    def expected(self) -> int:
        """Chips to encode of all tiles, those not yet indexed being taken to be like the others."""
        return round(self.chips * self.tiles / self.indexed) if self.indexed else 0

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Chips a second, of late."""
        self.pace.note(self.done)
        return self.pace.a_second

    @property
    def left(self) -> float | None:
        """Seconds until the last chip is done, as far as one can know."""
        self.pace.note(self.done)
        return self.pace.left(self.expected - self.done) if self.how == "running" else None

    @property
    def counts(self) -> dict[str, int]:
        """Tiles and chips, as events and the page tell them."""
        ends = Counter(tile.status for tile in self.finished)
        return {
            "tiles": self.tiles,
            **{status: ends[status] for status in ("done", "skipped", "failed")},
            "indexed": self.indexed,
            "chips": self.chips,
            "encoded": self.done,
            "quarantined": self.quarantined,
            "rejected": self.rejected,
        }

    def done_of(self, tile: str) -> int:
        """Chips of a tile that the devices are done with."""
        found = self.at_work[tile].done
        return found + sum(chips for key, chips in self.in_work.items() if key.split("-")[1] == tile)


@dataclass(frozen=True)
class Event:
    """Something that happened in a run; what it does not have is None."""

    time: str
    """UTC, ISO 8601."""
    event: str
    """``run_started``, ``tile_started``, ``indexed``, ``embedded`` (a block), ``written`` (a shard), ``published``,
    ``skipped``, ``left out`` (of an export), ``failed``, ``retried``, ``quarantined``, ``notice``, ``progress`` (every
    half minute) or ``run_ended``."""
    tile: str | None = None
    block: int | None = None
    """Number of the block in its tile, from 0."""
    worker: str | None = None
    """Address of the worker that did it."""
    stage: str | None = None
    """Of what is tried again: ``index``, ``embed``, ``write``, ``examine`` or ``publish``."""
    reason: str | None = None
    file: str | None = None
    """Path or URL of the published file, the first where there are several."""
    files: list[str] | None = None
    """Of all of them."""
    chip: str | None = None
    """URL of the quarantined chip."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of tiles, blocks and chips."""
    dashboard: str | None = None
    page: str | None = None


def left_by(result: RunResult) -> tuple[TileStatus, ...]:
    """What the output holds of the tiles that an interrupted run did not finish; of those not begun there is nothing.

    It is read off the output, as blocks may have been finished after the run stopped listening. Nothing, if the store
    does not answer.
    """
    if not result.remaining:
        return ()
    try:
        found = status(result.output, result.remaining, result.version or None).tiles
    except (InputError, StorageError):
        return ()
    return tuple(tile for tile in found if tile.kind == result.kind and tile.version == result.version)
