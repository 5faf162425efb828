"""How fast a worker is: measured on this machine in a process like a worker's, or from a table of devices."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from daskembed.errors import InputError

if TYPE_CHECKING:
    from daskembed.encoders.protocol import Encoder
    from daskembed.runs.settings import Settings
    from daskembed.sources.listing import Listing

SAMPLE = 16
"""Chips that are read to measure: few enough to be fetched in seconds."""
SECONDS = 8.0
"""How long chips are encoded to measure, after the first ones; the blocks that were begun are finished."""
SHARE = 0.35
"""Of a GPU's rate on its data sheet, what the encoder is taken to reach: an assumption, no GPU was measured."""
DECODED = 20.0
"""Chips that one core of a cloud machine (half a core of the processor) decodes in a second; a whole one does 33."""
STARTING = 180.0
"""Seconds in which a cloud machine boots, sets up its environment and loads the weights: an assumption."""


STARTING_HERE = 5.0
"""Seconds in which the processes of the cluster ``local`` start, on a machine that is there."""


class Device(NamedTuple):
    """A worker's device and the machine around it."""

    bf16: float | None
    """TFLOP/s in bfloat16 that the encoder reaches; None where the device does not multiply it natively."""
    fp32: float
    """TFLOP/s in float32 that the encoder reaches."""
    cores: int
    """Cores for one device, as a cloud counts them."""
    gbit: float
    """Gbit/s of network for one device that last."""
    basis: str
    """Where these numbers come from."""


def _gpu(bf16: float | None, fp32: float, cores: int, gbit: float, machine: str) -> Device:
    """A GPU by the dense TFLOP/s of its data sheet, in a machine of a cloud."""
    basis = f"assumed, not measured: {SHARE:.0%} of the data sheet's TFLOP/s, in a machine like {machine}"
    return Device(bf16 and SHARE * bf16, SHARE * fp32, cores, gbit, basis)


DEVICES = {
    "t4": _gpu(None, 8.1, 4, 5, "AWS g4dn.xlarge"),
    "l4": _gpu(121, 30.3, 4, 2.5, "AWS g6.xlarge"),
    "a10g": _gpu(70, 35, 4, 2.5, "AWS g5.xlarge"),
    "a100": _gpu(312, 19.5, 12, 24, "Google a2-highgpu-1g"),
    "h100": _gpu(989, 67, 16, 25, "AWS p5.4xlarge"),
    "h200": _gpu(989, 67, 24, 25, "an eighth of AWS p5en.48xlarge"),
    "cpu": Device(0.51, 0.18, 2, 10, "measured: the whole job on two cores of an AMD EPYC with AVX512-BF16"),
}
"""Devices that can be planned for without being at hand."""


@dataclass(frozen=True)
class Speed:
    """How fast one worker is."""

    chips_per_second: float
    """Once it is at work."""
    limit: str
    """``device``, ``reading``, ``decoding`` or ``network``: what it cannot be faster than."""
    first_seconds: float
    """From its first task to the first chip that is encoded: headers, weights, whatever is imported on the way."""
    start_seconds: float
    """Until it can take its first task: its machine, its process."""
    basis: str
    """Where these numbers come from."""


def of_device(device: str, encoder: Encoder, chip_bytes: float, *, here: bool = False) -> Speed:
    """The speed of a worker with a device of the table.

    Parameters
    ----------
    device
        Key of `DEVICES`.
    encoder
        With its precision.
    chip_bytes
        Mean size of a chip's file.
    here
        Whether its machine is there already, and no cloud has to give it.
    """
    found = DEVICES[device]
    tflops = found.bf16 if encoder.precision == "bf16" and found.bf16 else found.fp32
    limits = {
        "device": tflops * 1e12 / encoder.description.flop,
        "decoding": DECODED * found.cores,
        "network": found.gbit * 1e9 / 8 / chip_bytes,
    }
    limit = min(limits, key=limits.__getitem__)
    return Speed(limits[limit], limit, 0.0, STARTING_HERE if here else STARTING, found.basis)


def measure(settings: Settings, listing: Listing) -> Speed:
    """The speed of this machine: some of a tile's chips, by the code of a worker in a process of its own.

    Parts are written to a temporary folder and removed.

    Raises
    ------
    InputError
        If no chip of the sample can be used, or the process fails.
    """
    from daskembed.storage.stores import Storage

    sample = listing.first(SAMPLE)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="daskembed-") as folder:
        child = subprocess.run(
            [sys.executable, "-m", "daskembed.runs.throughput"],
            input=pickle.dumps((replace(settings, output=Storage(folder)), sample, SECONDS)),
            capture_output=True,
            # Of a module of the user's own, this process knows where it is.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            check=False,
        )
    wall = time.perf_counter() - start
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(
            f"the speed of this machine could not be measured on chips of {listing.tile}: "
            f"{said or f'exit status {child.returncode}'}; name a `device` to plan without"
        )
    found = json.loads(child.stdout)
    busy = found.pop("busy_seconds")
    # What is not accounted for is the time in which a worker's process starts.
    return Speed(**found, start_seconds=wall - busy, basis="measured now, on this machine")


def _measure(given: bytes) -> dict[str, float | str]:
    """In the child: what a worker does with a tile, one block for its first chip and then many."""
    import distributed  # noqa: F401 (without it there is no worker)

    from daskembed.encoders.loading import resolve_precision

    resolve_precision("auto")  # what a run asks its workers before their first task
    began = time.perf_counter()
    import pandas as pd

    from daskembed import timings
    from daskembed.runs.blocks import Block, all_blocks, embed_block
    from daskembed.sources.registry import read_headers

    settings: Settings
    sample: Listing
    settings, sample, seconds = pickle.loads(given)
    index = read_headers(sample, settings.reading, readers=settings.encoder.readers or 16)
    good = index[index["quarantined"].isna()]
    if good.empty:
        raise InputError(f"none of its first {len(index)} chips can be used: {index['quarantined'].iloc[0]}")
    repeated = pd.concat([good] * -(-settings.chips_a_block // len(good)), ignore_index=True)

    def block_of(chips: int) -> Block:
        sized = replace(settings, chips_a_block=chips)
        return all_blocks(sized, sample.tile, repeated[:chips], sample.fingerprint)[0]

    def seconds_of(block: Block) -> float:
        start = time.perf_counter()
        embed_block(block, settings=settings)
        return time.perf_counter() - start

    size = 1
    seconds_of(block_of(size))
    first = time.perf_counter() - began
    # Blocks as large as a run's where the device is fast, and such that a few of them fit into the time elsewhere.
    while size < settings.chips_a_block and seconds_of(block_of(size)) < seconds / 8:
        size = min(2 * size, settings.chips_a_block)
    block, before, start = block_of(size), timings.seconds(), time.perf_counter()

    def work() -> int:
        blocks = 0
        while time.perf_counter() < start + seconds:
            embed_block(block, settings=settings)
            blocks += 1
        return blocks

    with ThreadPoolExecutor(2) as pool:  # a worker's two threads
        workers = [pool.submit(work) for _ in range(2)]
        chips = size * sum(worker.result() for worker in workers)
    taken = time.perf_counter() - start
    spent = {stage: now - before[stage] for stage, now in timings.seconds().items()}
    return {
        "chips_per_second": chips / taken,
        "limit": "device" if spent["device"] >= spent["wait"] else "reading",
        "first_seconds": first,
        "busy_seconds": time.perf_counter() - began,
    }


def main() -> None:
    """In the child: measure, and say what was found as JSON."""
    try:
        found = _measure(sys.stdin.buffer.read())
    except Exception as error:
        sys.exit(f"{error}")
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    # Threads that a library left running must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
