"""The one place that owns a device: loading once a process, exclusive use, and reading while it computes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from daskembed.encoders.checkpoint import load_state
from daskembed.encoders.description import Place
from daskembed.encoders.loading import get_encoder_module
from daskembed.encoders.protocol import Encoder
from daskembed.energy import Account, note, open_meter
from daskembed.errors import ChipError, ChipRejectedError
from daskembed.fates import Fate
from daskembed.geo.chips import CHIP
from daskembed.hardware import allowance, keep_freed_memory, set_torch_threads, torch_device
from daskembed.sources.chip import ReadChip
from daskembed.sources.findings import summarise
from daskembed.timings import count_chips, for_this_task, timed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Read = Callable[[], ReadChip]

# On a CPU larger batches are no faster, and their activations leave the cache.
CPU_BATCH = 1

# An encoder on a CPU takes longer for a chip than one thread for reading it; each reader holds a file and its pixels.
READERS = {"cpu": 8, "cuda": 16}


class Encoded(NamedTuple):
    """What became of some chips."""

    vectors: NDArray[np.float32]
    """Embeddings, ``(chip, ...)``; NaN where a chip has none."""
    fates: list[Fate]
    """Of each chip."""


class _Chip(NamedTuple):
    """A chip that was read, or was not: a value, as an exception's frames would hold its pixels."""

    pixels: torch.Tensor | None
    """In their own type; where a GPU can fetch them while it computes, if there is one."""
    fate: Fate


class Device:
    """An encoder on this process's device, fed by a pool of reading threads.

    One thread alone computes, batch after batch in the order in which their reading began; another puts the next
    batch together and on the device meanwhile. Blocks take turns at reading, so that the next block is read while the
    last one is encoded. At most ``readers`` chips and two device batches are held at once, however many blocks run, and
    fewer where those would be more than `daskembed.hardware.allowance`.
    """

    def __init__(self, encoder: Encoder) -> None:
        module = get_encoder_module(encoder.name)
        self._device = torch_device()
        on_cpu = self._device.type == "cpu"
        keep_freed_memory()
        if on_cpu:
            set_torch_threads()
        dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
        self._encoder, self._metadata = encoder, module.metadata
        self._bands, self._fill_values = encoder.description.bands, np.array(encoder.description.fill_values)
        batch = min(encoder.batch_size, CPU_BATCH) if on_cpu else encoder.batch_size
        readers = encoder.readers or READERS[self._device.type]
        fitting = allowance() // (4 * len(self._bands) * CHIP**2)
        self._batch = max(1, min(batch, fitting // 2))
        self._compute = ThreadPoolExecutor(1, "daskembed-device")
        self._stage = ThreadPoolExecutor(1, "daskembed-stage")
        self._copies = None if on_cpu else torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._readers = ThreadPoolExecutor(readers, "daskembed-read")
        self._limit = self._batch
        self._turn = threading.Lock()
        self._held = max(2 * self._batch, min(readers + 2 * self._batch, fitting))
        self._whole = self._batch, self._held
        self._room = threading.Semaphore(self._held)
        self._account = Account(open_meter(self._device.type))
        self._model = module.build(load_state(encoder, module), encoder.description, device=self._device, dtype=dtype)

    def encode(
        self,
        chips: Sequence[Read],
        place: Place,
        *,
        level: str,
        on_nan: str,
        order: Sequence[int] | None = None,
    ) -> Encoded:
        """Read and embed chips.

        Parameters
        ----------
        chips
            One function a chip, called in a reading thread; it returns a `ReadChip` or raises `ChipError`.
        place
            Where and when they were taken.
        level
            One of the encoder's.
        on_nan
            ``quarantine`` or ``fill``, for chips with values that are not finite.
        order
            Numbers of the chips in the order in which they are to be read; their own by default.
        """
        count = len(chips)
        metadata = [torch.from_numpy(values) for values in self._metadata(place)]
        sequence = np.arange(count) if order is None else np.asarray(order)
        vectors = np.full((count, *self._encoder.shape(level)), np.nan, np.float32)
        encoded = Encoded(vectors, [Fate()] * count)
        batches = []
        read, encode = for_this_task(self._read), for_this_task(self._encode_batch)
        with self._turn:
            self._account.begin()
            try:
                for start in range(0, count, self._batch):
                    rows = sequence[start : start + self._batch]
                    reads = []
                    for row in rows:
                        self._room.acquire()
                        reads.append(self._readers.submit(read, chips[row], on_nan))
                    told = [values[rows] for values in metadata]
                    staged = self._stage.submit(self._stage_batch, reads, told, encoded, rows)
                    batches.append(self._compute.submit(encode, staged, level, encoded, rows))
            finally:
                spent = self._compute.submit(self._account.end)
        wait(batches)
        for batch in batches:
            batch.result()
        note(spent.result().result())
        return encoded

    def take_less(self, halvings: int) -> None:
        """From now on hold at most the 2**halvings-th part of the chips, and of a batch: memory was short."""
        batch, held = self._whole
        with self._turn:
            self._batch = min(self._batch, max(1, batch >> halvings))
            kept = min(self._held, max(2 * self._batch, held >> halvings))
            for _ in range(self._held - kept):
                self._room.acquire()
            self._held = kept

    def _read(self, chip: Read, on_nan: str) -> _Chip:
        try:
            return self._read_finite(chip, on_nan)
        except ChipRejectedError as error:
            return _Chip(None, Fate(rejected=str(error)))
        except ChipError as error:
            return _Chip(None, Fate(quarantined=str(error)))

    def _read_finite(self, chip: Read, on_nan: str) -> _Chip:
        pixels, found, cloud = chip()
        noted = summarise(found) or None
        # What is not finite shows in the extremes.
        if pixels.dtype.kind != "f" or (np.isfinite(pixels.min()) and np.isfinite(pixels.max())):
            return _Chip(self._hold(pixels), Fate(noted=noted, cloud=cloud))
        bad = ~np.isfinite(pixels)
        if on_nan == "quarantine":
            counts = zip(bad.sum(axis=(1, 2)), self._bands, strict=True)
            bands = [f"{count} in {band}" for count, band in counts if count]
            why = summarise(one for one in found if one.missing and one.what not in ("is NaN", "is infinite"))
            raise ChipError(
                f"has values that are not finite: {', '.join(bands)} ({f'{why}; ' if why else ''}`on_nan='fill'` puts "
                "the bands' means there)"
            )
        means = self._fill_values[:, None, None].astype(pixels.dtype)
        filled = self._hold(np.where(bad, means, pixels))
        return _Chip(filled, Fate(filled=int(bad.sum()), noted=noted, cloud=cloud))

    def _hold(self, pixels: NDArray[np.generic]) -> torch.Tensor:
        held = torch.from_numpy(pixels)
        # By the reading threads: one thread alone copies fewer chips than a GPU encodes.
        return held if self._copies is None else held.pin_memory()

    def _stage_batch(
        self,
        reads: list[Future[_Chip]],
        metadata: list[torch.Tensor],
        encoded: Encoded,
        rows: NDArray[np.intp],
    ) -> list[torch.Tensor] | None:
        """Put a batch on the device, raw pixels in their own type, while the one before it is encoded.

        None if all its chips are bad: nothing is held for chips that are not touched.
        """
        wait(reads)
        if self._copies is None:
            pixels = self._stack(reads, encoded, rows)
            return None if pixels is None else [pixels, *metadata]
        with torch.cuda.stream(self._copies):
            pixels = self._stack(reads, encoded, rows)
            batch = None if pixels is None else [pixels, *(told.pin_memory().to(self._device) for told in metadata)]
        self._copies.synchronize()
        return batch

    def _encode_batch(
        self, staged: Future[list[torch.Tensor] | None], level: str, encoded: Encoded, rows: NDArray[np.intp]
    ) -> None:
        try:
            with timed("wait"):
                batch = staged.result()
            if batch is not None:
                good = np.array([encoded.fates[row].embedded for row in rows])
                with timed("device"), torch.inference_mode():
                    vectors = self._run_model(batch, level).cpu().numpy()
                for row, vector in zip(rows[good], vectors[good], strict=True):
                    _keep(encoded, row, vector)
            count_chips(len(rows))
            self._account.look()
        finally:
            # Only now may as many others be read.
            self._room.release(len(rows))

    def _run_model(self, batch: list[torch.Tensor], level: str) -> torch.Tensor:
        """Encode a batch, in halves from now on where the device's memory is too small for it."""
        count = len(batch[0])
        if count > self._limit:
            half = (count + 1) // 2
            halves = [[tensor[:half] for tensor in batch], [tensor[half:] for tensor in batch]]
            return torch.cat([self._run_model(part, level) for part in halves])
        try:
            return self._model(*batch, level=level)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        # Outside of the handler, whose traceback would keep the failed batch's tensors.
        self._limit = (count + 1) // 2
        torch.cuda.empty_cache()
        return self._run_model(batch, level)

    def _stack(self, reads: list[Future[_Chip]], encoded: Encoded, rows: NDArray[np.intp]) -> torch.Tensor | None:
        # A quarantined chip leaves zeros in its place: a batch always has the same shape, so the others' embeddings
        # do not depend on it.
        chips: list[torch.Tensor | None] = []
        for row, read in zip(rows, reads, strict=True):
            pixels, encoded.fates[row] = read.result()
            chips.append(pixels)
        good = [pixels for pixels in chips if pixels is not None]
        if not good:
            return None
        if len(chips) == 1:
            return good[0][None].to(self._device)
        kinds = {pixels.dtype for pixels in good}
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
        stacked = torch.zeros((len(chips), *good[0].shape), dtype=dtype, device=self._device)
        for place, chip in zip(stacked, chips, strict=True):
            if chip is not None:
                place.copy_(chip, non_blocking=True)
        return stacked


def _keep(encoded: Encoded, row: int, vector: NDArray[np.float32]) -> None:
    """Take a chip's vector, unless it is not finite, whatever let that through: then the chip is quarantined."""
    bad = vector.size - int(np.count_nonzero(np.isfinite(vector)))
    if not bad:
        encoded.vectors[row] = vector
        return
    why = (
        f"has an embedding of which {bad} of {vector.size} numbers are not finite: its pixels are far from anything "
        "that the encoder was trained on, or the device computes wrongly"
    )
    encoded.fates[row] = encoded.fates[row]._replace(quarantined=why)


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load(encoder: Encoder) -> Device:
    return Device(encoder)


def get_device(encoder: Encoder) -> Device:
    """The process's device with the encoder on it, loaded by the first call."""
    with _loading:
        return _load(encoder)
