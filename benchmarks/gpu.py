"""One GPU in one run under ten minutes: parity first, then limits, encoder, copies and the whole way of a block."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Row, build, describe, inputs, median_seconds, places, product_rate
from benchmarks.energy import joules
from daskembed import timings
from daskembed.compute.device import Device
from daskembed.encoders import clay_v0
from daskembed.encoders.description import Place
from daskembed.encoders.loading import get_encoder_module
from daskembed.encoders.untrained import untrained_state
from daskembed.sources.chip import ReadChip
from daskembed.testing.landscape import landscape

BATCHES = (8, 32, 64, 128)


def run(*, smallest: bool = False) -> list[Row]:
    """A table of limits and what was reached of them; stops at once if the numbers are wrong."""
    if not torch.cuda.is_available():
        sys.exit("no GPU here: this benchmark is for a machine that has one")
    rows = parity("cuda")
    side = 512 if smallest else 8192
    rate = product_rate(torch.bfloat16, side, "cuda")
    rows += [_row(f"limit: product of {side} x {side} in bf16", rate / 1e3, "TFLOP/s", 1.0), _copies()]
    for name, size in (("clay-v0", "small"), ("clay-v1.5", "large")):
        chosen = "tiny" if smallest else size
        rows += _encoder(name, chosen, rate, BATCHES[:1] if smallest else BATCHES)
        rows += [_blocks(name, chosen, rate, batch) for batch in ((1,) if smallest else (32, 128))]
        rows += [joules(name, chosen, blocks=1, chips=2) if smallest else joules(name, chosen, blocks=24)]
    return rows


def _encoder(name: str, size: str, rate: float, batches: tuple[int, ...]) -> list[Row]:
    described = describe(name, size)
    # After another size it would be compiled for all sizes, which is slower: a worker has one encoder.
    torch._dynamo.reset()
    model, rows = build(described, "cuda"), []
    level, blocks = next(iter(described.description.levels)), model.transformer  # type: ignore[attr-defined]
    for way, step in (("eager", blocks._run), ("compiled", blocks._run_compiled)):
        blocks._step = step
        for batch in batches:
            given = inputs(described, batch, "cuda")

            @torch.inference_mode()
            def encode(given: list[torch.Tensor] = given) -> None:
                model(*given, level=level)
                torch.cuda.synchronize()

            what = f"{name} {size}, {way}, batch {batch}"
            try:
                chips = batch / median_seconds(encode, repeats=7, warmup=3)
            except Exception as error:
                # A batch too large, or no compiler: the other rows are worth having.
                rows.append(_row(what, 0.0, f"failed: {str(error)[:60]}", 0.0))
                continue
            rows.append(_row(what, chips, "chips/s", chips * described.description.flop / 1e9 / rate))
    return rows


def _row(what: str, value: float, unit: str, share: float) -> Row:
    # As they come: the time with the machine may end before all are there.
    print(f"{what}: {value:.4g} {unit}", flush=True)
    return {"what": what, "value": value, "unit": unit, "share of the limit": share}


def parity(device: str) -> list[Row]:
    """The distance from the stored expected numbers of the test-suite, which are of float64 arithmetic."""
    tests = Path(__file__).parent.parent / "tests"
    sys.path.insert(0, str(tests))
    from reference import SCENES

    wanted = np.load(tests / "data" / "expected.npz")["tiny_mean"]
    seeds, lat, lon, days = zip(*SCENES, strict=True)
    lats, lons = np.array([lat, lon], np.float64)[:, :, None]
    place = clay_v0.metadata(Place(lats, lons, np.array(days, "datetime64[s]"), np.full(len(days), 10.0)))
    pixels = torch.from_numpy(np.stack([landscape(512, 512, seed=seed) for seed in seeds])).to(device)
    rows = []
    for precision, dtype, limit in (("fp32", torch.float32, 2e-6), ("bf16", torch.bfloat16, 5e-3)):
        state = untrained_state(get_encoder_module("clay-v0"), "tiny", 0)
        model = clay_v0.build(state, clay_v0.describe("tiny"), device=torch.device(device), dtype=dtype)
        with torch.inference_mode():
            found = (
                model(pixels, *(torch.from_numpy(values).to(device) for values in place), level="mean").cpu().numpy()
            )
        error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not error <= limit:
            sys.exit(f"wrong numbers: {precision} is {error:.2e} from the expected ones, more than {limit:.0e}")
        rows.append(_row(f"parity of {precision}", error, f"at most {limit:.0e}", error / limit))
    return rows


def _copies() -> Row:
    """Host to device, pinned: what the pixels of a chip (13.6 MB) allow."""
    batch = torch.empty(32, 13, 512, 512).pin_memory()

    def copy() -> None:
        batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()

    return _row("limit: copies from pinned memory", 32 / median_seconds(copy), "chips/s", 1.0)


def _blocks(name: str, size: str, rate: float, batch: int) -> Row:
    """Chips in memory by way of the device's threads: how busy the GPU is."""
    encoder = describe(name, size, batch=batch)
    needs = encoder.description
    device, pixels, count = Device(encoder), landscape(512, 512, seed=0)[: len(needs.bands)], 16 * batch
    level = next(iter(needs.levels))

    def encode(count: int) -> None:
        device.encode([lambda: ReadChip(pixels, [])] * count, places(encoder, count), level=level, on_nan="quarantine")

    encode(4 * batch)
    before, start = timings.seconds()["device"], time.perf_counter()
    encode(count)
    wall, busy = time.perf_counter() - start, timings.seconds()["device"] - before
    chips = count / wall
    what = f"{name} {size}, blocks from memory, batch {batch}"
    return _row(what, chips, f"chips/s, device busy {busy / wall:.0%}", chips * needs.flop / 1e9 / rate)
