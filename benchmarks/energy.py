"""Joules a chip of a GPU by its own counter, and whether what two tiles are told adds up to what that rose by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.common import Row, describe, median_seconds, places
from daskembed.compute.device import Device
from daskembed.energy import Energy, collected, open_meter, total
from daskembed.sources.chip import ReadChip
from daskembed.testing.landscape import landscape


def joules(name: str, size: str, *, blocks: int, chips: int = 64) -> Row:
    """Blocks from memory by two threads, each with a tile; a meter of its own is read before and after.

    Its share is that of the counter's joules which the tiles were told.
    """
    encoder = describe(name, size, batch=min(32, chips))
    level, pixels = (
        next(iter(encoder.description.levels)),
        landscape(512, 512, seed=0)[: len(encoder.description.bands)],
    )
    device, counter = Device(encoder), open_meter("cuda")
    what = f"{name} {size}, joules a chip"
    if counter is None:
        return {"what": what, "value": 0.0, "unit": "nothing counts them here", "share of the limit": 0.0}
    reads = [lambda: ReadChip(pixels, [])] * chips

    def tile(blocks: int) -> Energy | None:
        with collected() as found:
            for _ in range(blocks):
                device.encode(reads, places(encoder, chips), level=level, on_nan="quarantine")
        return total(found)

    tile(1)
    reading = median_seconds(counter.joules)
    with ThreadPoolExecutor(2) as threads:
        tiles = list(threads.map(tile, [blocks] * 2))
    counted, used = counter.joules(), total(tiles)
    if counted is None or used is None:
        return {"what": what, "value": 0.0, "unit": f"counter {counted}, tiles {tiles}", "share of the limit": 0.0}
    told = " + ".join(f"{one.joules:.1f}" for one in tiles if one)
    watts, ms = used.joules / used.seconds, 1e3 * reading
    return {
        "what": what,
        "value": used.joules / (2 * blocks * chips),
        "unit": f"J, {watts:.0f} W; tiles {told} J of {counted:.1f}; asking takes {ms:.2g} ms",
        "share of the limit": used.joules / counted if counted else 0.0,
    }
