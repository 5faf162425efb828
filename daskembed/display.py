"""What a run shows: live progress on a terminal, plain lines when piped, a summary at the end, or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daskembed.planning import Plan
    from daskembed.results import Event, Expected, Progress, RunResult, TileResult

MOST_LISTED = 5
"""Quarantined chips and failed tiles named in a summary; the receipts hold all."""


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for `daskembed.run`: one live line on a terminal, a line a tile elsewhere."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    start = time.monotonic()
    told, noticed = 0, ""

    def tell(state: Progress) -> None:
        nonlocal told, noticed
        if not told and not state.finished and not state.indexed:
            page = f"\nrun's page: {state.page}" if state.page else ""
            console.print(f"dashboard: {state.dashboard}{page}\nworkers: {state.workers}", markup=False)
        for result in state.finished[told:]:
            console.print(describe_tile(result), markup=False)
        told = len(state.finished)
        if state.notice != noticed:
            noticed = state.notice
            console.print(noticed or "workers are back", markup=False)

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(state: Progress) -> None:
            tell(state)
            live.update(Text(describe_progress(state, time.monotonic() - start)))

        yield show
        live.update(Text(""))


def print_event(event: Event) -> None:
    """One line of JSON, at once: whoever collects them may wait for it."""
    found = asdict(event)
    counts = found.pop("counts")
    told = {name: value for name, value in found.items() if value is not None}
    sys.stdout.write(json.dumps(told | counts) + "\n")
    sys.stdout.flush()


def describe_tile(result: TileResult) -> str:
    """One line for a tile that is finished."""
    if result.status == "failed":
        return f"{result.tile}  failed: {result.reason}"
    bad = f", {len(result.quarantined)} quarantined" if result.quarantined else ""
    bad += f", {len(result.rejected)} rejected" if result.rejected else ""
    files = " and ".join(result.files or (result.file or "no file",))
    return f"{result.tile}  {result.status}: {_count(result.chips, 'chip')}{bad}, {files}"


def describe_progress(state: Progress, seconds: float) -> str:
    """One line for a run on its way."""
    rate = state.encoded / seconds if seconds else 0.0
    parts = [
        f"tiles {len(state.finished)}/{state.tiles}",
        f"chips {state.encoded}/{state.chips}" + ("+" if state.indexed < state.tiles else ""),
        f"{rate:.2f} chips/s",
    ]
    if rate and state.indexed:
        # Tiles not yet indexed are taken to be like those that are.
        expected = state.chips * state.tiles / state.indexed
        parts.append(f"{describe_seconds((expected - state.encoded) / rate)} left")
    parts.append(f"{state.quarantined} quarantined")
    if state.rejected:
        parts.append(f"{state.rejected} rejected")
    return "  ·  ".join(parts)


def describe_seconds(seconds: float) -> str:
    """A duration for people: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary(result: RunResult) -> str:
    """The closing lines of a run."""
    statuses = Counter(tile.status for tile in result.tiles)
    tiles = ", ".join(f"{statuses[status]} {status}" for status in ("done", "skipped", "failed") if statuses[status])
    if result.unfinished:
        tiles += f"{', ' if tiles else ''}{result.unfinished} not finished"
    rate = f" in {describe_seconds(result.seconds)} ({result.chips_per_second:.2f} chips/s)" if result.encoded else ""
    lines = [
        f"tiles        {tiles}",
        f"chips        {result.chips} in the files, {result.encoded} encoded now{rate}",
        f"quarantined  {len(result.quarantined)}",
        *_some(f"  {url}  {reason}" for url, reason in result.quarantined.items()),
        *([f"rejected     {len(result.rejected)} (the receipts say why)"] if result.rejected else []),
        *_some(f"note         {note}" for tile in result.tiles if tile.status == "done" for note in tile.notes),
        *([f"failed       {statuses['failed']}"] if statuses["failed"] else []),
        *_some(f"  {tile.tile}  {tile.reason}" for tile in result.tiles if tile.status == "failed"),
        *([f"time         {describe_stages(result)}"] if result.encoded and result.stage_seconds else []),
        *([f"plan         {compare(result, result.expected)}"] if result.encoded and result.expected else []),
        f"files        {result.output}",
    ]
    if result.interrupted:
        lines.append("interrupted: the same command goes on from here")
    elif statuses["failed"]:
        lines.append("the same command tries the failed tiles again")
    return "\n".join(lines)


def compare(result: RunResult, expected: Expected) -> str:
    """What a plan expected of a run, and what came of it."""
    # Of other chips than the planned ones, the time says nothing about the plan.
    same = result.encoded == expected.chips and not result.interrupted and expected.seconds
    off = f" ({result.seconds / expected.seconds - 1:+.0%})" if same else ""
    return (
        f"{_count(expected.chips, 'chip')} in {describe_seconds(expected.seconds)} on "
        f"{_count(expected.workers, 'worker')}, {describe_bytes(expected.bytes)}; "
        f"actual {_count(result.encoded, 'chip')} in {describe_seconds(result.seconds)}{off}, "
        f"{describe_bytes(result.bytes)}"
    )


def describe_bytes(number: float) -> str:
    """A size for people: ``512 B``, ``1.4 MB``, ``3.1 TB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 999.5 else f"{number:,.0f} TB"


def describe_plan(plan: Plan) -> str:
    """The lines of a plan."""
    tiles = ((len(plan.done), "done"), (len(plan.to_do), "to do"), (len(plan.missing), "without chips"))
    levels = sorted(plan.bytes_to_write, key=lambda level: level != plan.level)
    sizes = ", ".join(f"{level} {describe_bytes(plan.bytes_to_write[level])}" for level in levels)
    lines = [
        f"tiles        {', '.join(f'{count} {what}' for count, what in tiles if count)}",
        *(f"  {tile}  {reason}" for tile, reason in plan.missing.items()),
        f"chips        {plan.chips} listed, {plan.chips - plan.chips_to_do} done, {plan.chips_to_do} to do",
        *_some((f"note         {note}" for note in plan.notes), ""),
    ]
    if (speed := plan.speed) is None:
        return "\n".join([*lines, "nothing is left to encode"])
    lines += [
        f"read         {describe_bytes(plan.bytes_to_read)}",
        f"write        {sizes} (estimates; the level chosen comes first)",
        f"speed        {speed.chips_per_second:.3g} chips/s a worker, the limit is the {speed.limit}",
        f"             {speed.basis}",
        f"device       {describe_seconds(3600 * plan.device_hours)} of encoding",
        f"time         {describe_seconds(plan.seconds)} on {_count(plan.workers, 'worker')}, after about "
        f"{describe_seconds(speed.start_seconds)} to start",
    ]
    if plan.price is not None:
        lines.append(f"price        {plan.price:,.2f}, at {plan.price_per_hour:g} an hour and worker")
    return "\n".join(lines)


def describe_stages(result: RunResult) -> str:
    """Where the workers' time went, and which stage was the limit."""
    spent = result.stage_seconds
    busy = spent["device"] / (spent["device"] + spent["wait"]) if spent["device"] else 0.0
    limit = "device" if busy >= 0.5 else max(("source", "decode"), key=lambda stage: spent[stage])
    shares = ", ".join(f"{stage} {spent[stage]:.1f} s" for stage in ("source", "decode", "device", "write"))
    return f"{shares}; device busy {busy:.0%} of its time, the limit was the {limit}"


def _some(lines: Iterator[str], where: str = ": see the receipts") -> list[str]:
    listed = list(lines)
    more = [f"  and {len(listed) - MOST_LISTED} more{where}"] if len(listed) > MOST_LISTED else []
    return listed[:MOST_LISTED] + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
