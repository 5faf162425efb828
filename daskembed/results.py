"""What became of a run and of its tiles, and where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TileResult:
    """What became of one tile."""

    tile: str
    status: str
    """``done``, ``skipped`` (finished by an earlier run) or ``failed``."""
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


@dataclass(frozen=True)
class RunResult:
    """What became of a run."""

    output: str
    tiles: tuple[TileResult, ...]
    """In the order in which they finished."""
    unfinished: int
    """Tiles that an interrupted run did not come to."""
    encoded: int
    """Chips encoded by this run."""
    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool
    stage_seconds: dict[str, float]
    """Seconds by stage, summed over the workers' threads; see `daskembed.timings.STAGES`."""
    expected: Expected | None = None
    """By the plan that was made for the same output and settings on this machine, if any."""

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
class Progress:
    """Where a run stands; handed to `run`'s callback after every change."""

    tiles: int
    """Tiles asked for."""
    dashboard: str
    """Address of the Dask dashboard."""
    workers: str
    """What they compute with, in a line."""
    finished: list[TileResult] = field(default_factory=list)
    indexed: int = 0
    """Tiles whose chips are known."""
    chips: int = 0
    """Chips to encode, of those tiles."""
    encoded: int = 0
    """Chips encoded."""
    quarantined: int = 0
    """Chips known to be bad."""
    rejected: int = 0
    """Chips of finished tiles that were left out by a rule."""
    notice: str = ""
    """What holds the run up at the moment, if anything does."""
    page: str = ""
    """Address of the runs' own page on the scheduler; empty where there is none."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run; what it does not have is None."""

    time: str
    """UTC, ISO 8601."""
    event: str
    """``run_started``, ``tile_started``, ``indexed``, ``embedded`` (a block), ``published``, ``skipped``, ``failed``,
    ``retried``, ``quarantined``, ``notice`` or ``run_ended``."""
    tile: str | None = None
    block: int | None = None
    """Number of the block in its tile, from 0."""
    worker: str | None = None
    """Address of the worker that did it."""
    stage: str | None = None
    """Of what is tried again: ``index``, ``embed``, ``examine`` or ``publish``."""
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
