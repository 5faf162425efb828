"""Plans, runs and tiles in words: the lines that a plan, a run on its way and a finished one are told in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from daskembed.energy import total
from daskembed.output.state import CUBES
from daskembed.text import counted, describe_bytes, visible

if TYPE_CHECKING:
    from daskembed.output.tile_status import TileStatus
    from daskembed.runs.plan import Plan
    from daskembed.runs.results import Expected, Progress, RunResult, TileResult

MOST_LISTED = 5
"""Quarantined chips and failed tiles named in a summary; the receipts hold all."""


def describe_tile(result: TileResult) -> str:
    """One line for a tile that is finished."""
    if result.status == "failed":
        return f"{result.tile}  failed: {result.reason}"
    if result.status == "left out":
        return f"{result.tile}  left out: {result.reason}"
    if result.status == "checked":
        return f"{result.tile}  checked"
    if result.status in ("indexed", "counted"):
        return f"{result.tile}  {result.status}: {counted(result.chips, result.unit)}"
    bad = f", {len(result.quarantined)} quarantined" if result.quarantined else ""
    bad += f", {len(result.rejected)} rejected" if result.rejected else ""
    files = " and ".join(result.files or (result.file or "no file",))
    return f"{result.tile}  {result.status}: {counted(result.chips, result.unit)}{bad}, {files}"


def describe_progress(state: Progress) -> str:
    """One line for a run on its way."""
    tiles, chips, *more = parts_of_progress(state)
    return " · ".join([f"{state.units[0]} {tiles}", f"{state.units[1]} {chips}", *more])


def parts_of_progress(state: Progress) -> list[str]:
    """How many tiles and chips are done, and what else is said of a run on its way."""
    parts = [
        f"{len(state.finished)}/{state.tiles}",
        f"{state.done}/{state.chips}" + ("+" if state.indexed < state.tiles else ""),
        f"{state.rate:.2f} {state.units[1]}/s" if state.done else _beginning(state),
        f"{describe_seconds(state.seconds)} elapsed",
    ]
    left = state.left
    if state.how != "running":
        parts.append(state.how)
    elif left is not None:
        # Tiles not yet indexed are taken to be like those that are.
        parts.append(f"{describe_seconds(left)} left")
    if state.quarantined:
        parts.append(f"{state.quarantined} quarantined")
    if state.rejected:
        parts.append(f"{state.rejected} rejected")
    return parts


def _beginning(state: Progress) -> str:
    """What a run does of which no chip is done yet."""
    if state.indexed:
        return "first chips on their way"
    return f"asking {state.asks} for scenes" if state.asks else "listing the first tiles"


def describe_seconds(seconds: float) -> str:
    """A duration for people: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary(result: RunResult, left: Sequence[TileStatus] = ()) -> str:
    """The closing lines of a run; `left` is what an output holds of the tiles that it did not finish."""
    cubes = result.kind == "cube"
    files, made, pieces = ("cubes", "written", "shards") if cubes else ("files", "encoded", "blocks")
    some = partial(_some, where=f": see the receipts in {CUBES}/" if cubes else ": see the receipts")
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
        *([f"energy       {used}"] if (used := describe_energy(result.tiles)) else []),
        *([f"plan         {compare(result, result.expected)}"] if result.encoded and result.expected else []),
        f"{files:<12} {result.output}",
        *([f"preview      {result.preview}"] if result.preview else []),
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


def describe_energy(tiles: Sequence[TileResult]) -> str:
    """What the devices used for the tiles that a run finished, where it was measured; empty if it was nowhere."""
    done = [tile for tile in tiles if tile.status == "done"]
    measured = [tile for tile in done if tile.energy]
    if (used := total(tile.energy for tile in measured)) is None:
        return ""
    chips = sum(tile.chips for tile in measured)
    a_chip = f", {used.joules / chips:.3g} J a chip" if chips else ""
    some = f", for {len(measured)} of {counted(len(done), 'tile')}" if len(measured) < len(done) else ""
    return f"{describe_joules(used.joules)}{a_chip}{some} ({used.name})"


def describe_joules(number: float) -> str:
    """Energy for people: ``412 J``, ``3.1 Wh``, ``1.4 kWh``."""
    for unit, joules in (("kWh", 3.6e6), ("Wh", 3600)):
        if number >= joules:
            return f"{number / joules:,.3g} {unit}" if number < 1000 * joules else f"{number / joules:,.0f} {unit}"
    return f"{number:.3g} J"


def describe_plan(plan: Plan) -> str:
    """The lines of a plan."""
    missing = "would fail" if plan.catalogue else "without chips"
    tiles = ((len(plan.done), "done"), (len(plan.to_do), "to do"), (len(plan.missing), missing))
    levels = sorted(plan.bytes_to_write, key=lambda level: level != plan.level)
    sizes = ", ".join(f"{level} {describe_bytes(plan.bytes_to_write[level])}" for level in levels)
    lines = [
        f"tiles        {', '.join(f'{count} {what}' for count, what in tiles if count)}",
        *(f"  {tile}  {reason}" for tile, reason in plan.missing.items()),
        f"chips        {plan.chips} listed, {plan.chips - plan.chips_to_do} done, {plan.chips_to_do} to do",
        *([f"to do        {_names(plan.to_do)}"] if plan.to_do else []),
        *_some((f"note         {note}" for note in plan.notes), ""),
    ]
    if (speed := plan.speed) is None:
        failing = f"a run would fail {counted(len(plan.missing), 'tile')}, as said above"
        end = failing if plan.missing else "nothing is left to encode"
        return "\n".join(map(visible, [*lines, end]))
    lines += [
        f"read         {describe_bytes(plan.bytes_to_read)}"
        + (f", downloaded from where {plan.catalogue} has its files (an estimate)" if plan.catalogue else ""),
        f"write        {sizes} (estimates; the level chosen comes first)",
        f"speed        {speed.chips_per_second:.3g} chips/s a worker, the limit is the {speed.limit}",
        f"             {speed.basis}",
        f"device       {describe_seconds(3600 * plan.device_hours)} of encoding",
        f"time         {describe_seconds(plan.seconds)} on {counted(plan.workers, 'worker')}, after about "
        f"{describe_seconds(speed.start_seconds)} to start",
    ]
    if plan.price is not None:
        lines.append(f"price        {plan.price:,.2f}, at {plan.price_per_hour:g} an hour and worker")
    return "\n".join(map(visible, lines))


def describe_stages(result: RunResult) -> str:
    """Where the workers' time went, and which stage was the limit."""
    spent = result.stage_seconds
    busy = spent["device"] / (spent["device"] + spent["wait"]) if spent["device"] else 0.0
    limit = "device" if busy >= 0.5 else max(("source", "decode"), key=lambda stage: spent[stage])
    named = {"source": "source (the network, or the store)"}.get(limit, limit)
    shares = ", ".join(f"{stage} {spent[stage]:.1f} s" for stage in ("source", "decode", "device", "write"))
    return f"{shares}, side by side; device busy {busy:.0%} of its time, the limit was the {named}"


def _some(lines: Iterator[str], where: str) -> list[str]:
    listed = list(lines)
    more = [f"  and {len(listed) - MOST_LISTED} more{where}"] if len(listed) > MOST_LISTED else []
    return listed[:MOST_LISTED] + more


def _names(tiles: Sequence[str]) -> str:
    more = len(tiles) - MOST_LISTED
    return " ".join([*tiles[:MOST_LISTED], *([f"and {more} more"] if more > 0 else [])])
