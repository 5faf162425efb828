"""What became of a run and of its tiles, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from daskembed.errors import InputError, StorageError
from daskembed.output.state import CUBES
from daskembed.output.status import status
from daskembed.output.tile_status import TileStatus
from daskembed.text import counted, describe_bytes, describe_seconds, visible

Kind = Literal["embeddings", "cube"]
"""What is made of a tile, in the words of `daskembed.output.status.TileStatus`."""


@dataclass(frozen=True, repr=False)
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
    filled: int = 0
    """Chips in the file of which some values were filled with their band's mean."""

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


MOST_LISTED = 5
"""Quarantined chips and failed tiles named in a summary; the receipts hold all."""


def describe_tile(result: TileResult) -> str:
    """One line for a tile that is finished."""
    if result.status == "failed":
        return f"{result.tile}  failed: {result.reason}"
    bad = f", {len(result.quarantined)} quarantined" if result.quarantined else ""
    bad += f", {len(result.rejected)} rejected" if result.rejected else ""
    files = " and ".join(result.files or (result.file or "no file",))
    return f"{result.tile}  {result.status}: {counted(result.chips, 'chip')}{bad}, {files}"


def summary(result: RunResult, left: Sequence[TileStatus] = ()) -> str:
    """The closing lines of a run; `left` is what an output holds of the tiles that it did not finish."""
    cubes = result.kind == "cube"
    files, made, pieces = ("cubes", "written", "shards") if cubes else ("files", "encoded", "blocks")
    some = partial(some_of, where=f": see the receipts in {CUBES}/" if cubes else ": see the receipts")
    statuses = Counter(tile.status for tile in result.tiles)
    # What an earlier run finished and this one did not come to is as good as skipped.
    statuses += Counter({"done": "skipped"}.get(tile.status, tile.status) for tile in left)
    statuses["not begun" if left else "not finished"] = result.unfinished - len(left)
    states = ("done", "skipped", "failed", "unfinished", "missing", "changed", "damaged", "not begun", "not finished")
    tiles = ", ".join(f"{statuses[status]} {status}" for status in states if statuses[status])
    kept = [tile for tile in left if tile.status == "unfinished"]
    blocks, of_all = sum(tile.parts_done for tile in kept), sum(tile.parts or 0 for tile in kept)
    quarantined = result.quarantined | {url: why for tile in left for url, why in tile.quarantined.items()}
    rejected = len(result.rejected) + sum(len(tile.rejected) for tile in left)
    chips = result.chips + sum(tile.chips or 0 for tile in left)
    rate = f" in {describe_seconds(result.seconds)} ({result.chips_per_second:.2f} chips/s)" if result.encoded else ""
    size = sum(tile.size for tile in result.tiles)
    a_chip = f", {describe_bytes(size / result.chips)} a chip" if result.chips else ""
    lines = [
        f"tiles        {tiles}",
        f"chips        {chips} in the {files}, {result.encoded} {made} now{rate}",
        *([f"size         {describe_bytes(size)}{a_chip}"] if cubes else []),
        *([f"{pieces:<12} {blocks} of {of_all} of the unfinished tiles are kept"] if kept else []),
        f"quarantined  {len(quarantined)}",
        *some(f"  {url}  {reason}" for url, reason in quarantined.items()),
        *([f"rejected     {rejected} (the receipts say why)"] if rejected else []),
        *some(f"note         {note}" for tile in result.tiles if tile.status == "done" for note in tile.notes),
        *([f"failed       {statuses['failed']}"] if statuses["failed"] else []),
        *some(f"  {tile.tile}  {tile.reason}" for tile in result.tiles if tile.status == "failed"),
        *([f"time         {describe_stages(result)}"] if result.encoded and result.stage_seconds and not cubes else []),
        *([f"plan         {compare(result, result.expected)}"] if result.encoded and result.expected else []),
        f"{files:<12} {result.output}",
    ]
    if result.interrupted:
        lines.append("interrupted: the same command goes on from here")
    elif statuses["failed"]:
        lines.append("the same command tries the failed tiles again")
    return "\n".join(map(visible, lines))


def compare(result: RunResult, expected: Expected) -> str:
    """What a plan expected of a run, and what came of it."""
    # Of other chips than the planned ones, the time says nothing about the plan.
    same = result.encoded == expected.chips and not result.interrupted and expected.seconds
    off = f" ({result.seconds / expected.seconds - 1:+.0%})" if same else ""
    return (
        f"{counted(expected.chips, 'chip')} in {describe_seconds(expected.seconds)} on "
        f"{counted(expected.workers, 'worker')}, {describe_bytes(expected.bytes)}; "
        f"actual {counted(result.encoded, 'chip')} in {describe_seconds(result.seconds)}{off}, "
        f"{describe_bytes(result.bytes)}"
    )


def describe_stages(result: RunResult) -> str:
    """Where the workers' time went, and which stage was the limit."""
    spent = result.stage_seconds
    busy = spent["device"] / (spent["device"] + spent["wait"]) if spent["device"] else 0.0
    limit = "device" if busy >= 0.5 else max(("source", "decode"), key=lambda stage: spent[stage])
    shares = ", ".join(f"{stage} {spent[stage]:.1f} s" for stage in ("source", "decode", "device", "write"))
    return f"{shares}; device busy {busy:.0%} of its time, the limit was the {limit}"


def some_of(lines: Iterator[str], where: str) -> list[str]:
    """The first of some lines, and how many more there are and where."""
    listed = list(lines)
    more = [f"  and {len(listed) - MOST_LISTED} more{where}"] if len(listed) > MOST_LISTED else []
    return listed[:MOST_LISTED] + more
