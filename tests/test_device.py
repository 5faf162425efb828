"""The owner of the device, with a small encoder in the real one's place: order, bounds, exclusive use, errors."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, Literal

import dask
import numpy as np
import pytest
import torch

from daskembed import hardware
from daskembed.compute import device
from daskembed.compute.device import Device, Encoded, get_device
from daskembed.encoders.description import Description, Place
from daskembed.encoders.loading import ENCODERS
from daskembed.encoders.protocol import Encoder
from daskembed.energy import collected
from daskembed.errors import ChipError, ChipRejectedError, StorageDeniedError, StorageError
from daskembed.sensors.bands import Band, Sensor
from daskembed.sources.chip import ReadChip
from daskembed.sources.findings import Finding

BANDS = ("red", "nir", "dem")
SHAPE = (len(BANDS), 2, 2)
MEANS = np.array([10, 20, 30], np.float32)
# Only ever reached where something hangs that should not.
LONG = 60
pytestmark = pytest.mark.timeout(120)


DESCRIPTION = Description(
    title="a fake",
    sensor=Sensor("fake", 10.0, tuple(Band(name, 0.0, 1.0) for name in BANDS)),
    resolution=10.0,
    window=512,
    levels={"mean": {"embedding": 3}},
    fill_values=tuple(map(float, MEANS)),
    flop=1,
)


class FakeModel:
    """Gives each chip its number (its first pixel), its latitude and the size of its batch."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.inputs: list[torch.Tensor] = []
        self.threads: set[int] = set()
        self.most_inside = self.inside = 0
        self.before: Callable[[list[float]], None] = lambda numbers: None
        self._lock = threading.Lock()

    def __call__(self, pixels: torch.Tensor, latlon: torch.Tensor, time: torch.Tensor, *, level: str) -> torch.Tensor:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self.threads.add(threading.get_ident())
        try:
            numbers = pixels[:, 0, 0, 0].float()
            self.batches.append(numbers.tolist())
            self.inputs.append(pixels.clone())
            self.before(numbers.tolist())
            size = torch.full_like(numbers, len(numbers))
            return torch.stack([numbers, latlon[:, 0], size], dim=1)
        finally:
            with self._lock:
                self.inside -= 1


class FakeModule(ModuleType):
    """What `daskembed.encoders.protocol.EncoderModule` asks for, with a model of three numbers a chip."""

    SIZES = {"only": 3}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.models: list[FakeModel] = []
        self.slow = 0.0

    def parameter_shapes(self, size: str) -> dict[str, tuple[int, ...]]:
        return {"weight": (3, 3)}

    def describe(self, size: str, **options: Any) -> Description:
        return DESCRIPTION

    def metadata(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        day = place.date.astype("datetime64[D]").astype(np.float32)
        return np.concatenate([place.lat, place.lon], axis=1).astype(np.float32), day[:, None]

    def build(self, state: Any, description: Description, *, device: torch.device, dtype: torch.dtype) -> FakeModel:
        time.sleep(self.slow)
        self.models.append(FakeModel())
        return self.models[-1]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModule]:
    """A registered encoder named ``fake``, with batches of several chips on any device."""
    fake = FakeModule("fake_encoder")
    monkeypatch.setitem(sys.modules, "fake_encoder", fake)
    monkeypatch.setitem(ENCODERS, "fake", "fake_encoder")
    monkeypatch.setattr(device, "CPU_BATCH", 4)
    device._load.cache_clear()
    threads = torch.get_num_threads()
    yield fake
    device._load.cache_clear()
    torch.set_num_threads(threads)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(
        name="fake",
        checkpoint="untrained:only:0",
        sha256=None,
        size="only",
        precision="fp32",
        batch_size=3,
        readers=2,
        description=DESCRIPTION,
    )


@pytest.fixture
def owner(module: FakeModule, encoder: Encoder) -> Device:
    return Device(encoder)


@pytest.fixture
def model(owner: Device, module: FakeModule) -> FakeModel:
    return module.models[0]


def chip(number: float, dtype: str = "float32") -> np.ndarray:
    return np.full(SHAPE, number).astype(dtype)


def encode(owner: Device, reads: list[Callable[[], np.ndarray]], *, on_nan: str = "quarantine") -> Encoded:
    lat = np.arange(len(reads), dtype=np.float64)[:, None] - 100
    dates = np.full(len(reads), "2019-04-16", "datetime64[s]")
    place = Place(lat, lat, dates, np.full(len(reads), 10.0))
    return owner.encode([partial(whole, read) for read in reads], place, level="mean", on_nan=on_nan)


def whole(read: Callable[[], np.ndarray | ReadChip]) -> ReadChip:
    found = read()
    return found if isinstance(found, ReadChip) else ReadChip(found, [])


def told(encoded: Encoded, name: str) -> list[Any]:
    return [getattr(fate, name) for fate in encoded.fates]


def reads_of(numbers: Any) -> list[Callable[[], np.ndarray]]:
    return [lambda n=n: chip(n) for n in numbers]


def raising(error: Exception) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        raise error

    return read


# What comes out


def test_each_chip_gets_its_own_row(owner: Device, model: FakeModel) -> None:
    encoded = encode(owner, reads_of(range(8)))
    assert encoded.vectors.dtype == np.float32
    np.testing.assert_array_equal(encoded.vectors, [[n, n - 100, 3 if n < 6 else 2] for n in range(8)])
    assert told(encoded, "quarantined") == [None] * 8
    assert told(encoded, "filled") == [0] * 8


def test_no_chips(owner: Device, model: FakeModel) -> None:
    encoded = encode(owner, [])
    assert encoded.vectors.shape == (0, 3)
    assert encoded.fates == []
    assert model.batches == []


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (4, 4), (32, 4)])
def test_size_of_batches(module: FakeModule, encoder: Encoder, asked: int, given: int) -> None:
    if torch.cuda.is_available():
        given = asked
    encode(Device(replace(encoder, batch_size=asked)), reads_of(range(2 * given + 1)))
    assert [len(batch) for batch in module.models[0].batches] == [given, given, 1]


def test_chip_that_cannot_be_read_is_quarantined(owner: Device, model: FakeModel) -> None:
    reads = reads_of(range(1, 7))
    reads[1] = raising(ChipError("is damaged"))
    encoded = encode(owner, reads)
    assert told(encoded, "quarantined") == [None, "is damaged", None, None, None, None]
    assert np.isnan(encoded.vectors[1]).all()
    np.testing.assert_array_equal(encoded.vectors[[0, 2, 3, 4, 5], 0], [1, 3, 4, 5, 6])
    # The batch keeps its shape: zeros stand in the chip's place.
    assert model.batches == [[1, 0, 3], [4, 5, 6]]


def test_batch_of_nothing_but_bad_chips(owner: Device) -> None:
    encoded = encode(owner, [*(raising(ChipError(f"is bad {n}")) for n in range(3)), *reads_of([7])])
    assert told(encoded, "quarantined") == ["is bad 0", "is bad 1", "is bad 2", None]
    assert np.isnan(encoded.vectors[:3]).all()
    np.testing.assert_array_equal(encoded.vectors[3], [7, -97, 1])


def test_nothing_is_held_for_bad_chips(owner: Device, model: FakeModel) -> None:
    tracemalloc.start()
    try:
        encoded = encode(owner, [raising(ChipError("gone"))] * 9)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert told(encoded, "quarantined") == ["gone"] * 9
    assert model.batches == []


def test_values_that_are_not_finite(owner: Device, model: FakeModel) -> None:
    bad = chip(5)
    bad[0, 0, 0], bad[2, 1, 0], bad[2, 1, 1] = np.nan, np.inf, -np.inf
    reads = [lambda: bad, *reads_of([6])]
    encoded = encode(owner, reads)
    assert encoded.fates[0].quarantined.startswith("has values that are not finite: 1 in red, 2 in dem ")
    assert encoded.fates[1].quarantined is None
    assert told(encoded, "filled") == [0, 0]
    filled = encode(owner, reads, on_nan="fill")
    assert told(filled, "quarantined") == [None, None]
    assert told(filled, "filled") == [3, 0]
    seen = model.inputs[-1][0].cpu().numpy()
    np.testing.assert_array_equal(seen, [[[10, 5], [5, 5]], [[5, 5], [5, 5]], [[5, 5], [30, 30]]])
    assert np.isnan(bad[0, 0, 0])


def test_vectors_that_are_not_finite_are_not_given(owner: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever made them so; the others of the batch are."""
    run = owner._run_model

    def overflowing(batch: list[torch.Tensor], level: str) -> torch.Tensor:
        vectors = run(batch, level)
        vectors[vectors[:, 0] == 6, 1] = torch.inf
        return vectors

    monkeypatch.setattr(owner, "_run_model", overflowing)
    encoded = encode(owner, reads_of([5, 6, 7]))
    assert told(encoded, "quarantined")[::2] == [None, None]
    assert encoded.fates[1].quarantined.startswith("has an embedding of which 1 of 3 numbers are not finite")
    assert np.isnan(encoded.vectors[1]).all()
    assert np.isfinite(encoded.vectors[[0, 2]]).all()


def test_what_is_told_of_pixels_is_noted(owner: Device) -> None:
    def found(number: int, *findings: Finding) -> Any:
        def read() -> ReadChip:
            pixels = chip(number)
            if any(one.missing for one in findings):
                pixels[0, 0, 1] = np.nan
            return ReadChip(pixels, list(findings))

        return read

    zero, gap = Finding("red", "is 0", 0.25, missing=False), Finding("nir", "is masked", 0.5)
    reads = [found(5, zero), found(6, gap), found(7)]
    encoded = encode(owner, reads)
    assert told(encoded, "noted") == ["red is 0 in 25.0000% of its pixels", None, None]
    assert "1 in red (nir is masked in 50.0000% of its pixels; `on_nan='fill'`" in encoded.fates[1].quarantined
    assert encode(owner, reads, on_nan="fill").fates[1].noted == "nir is masked in 50.0000% of its pixels"


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int16", "int32", "uint8"])
def test_chips_of_one_type_keep_it(owner: Device, model: FakeModel, dtype: str) -> None:
    encode(owner, [lambda: chip(200, dtype), lambda: chip(7, dtype)])
    assert model.inputs[0].dtype == getattr(torch, dtype)
    assert model.batches == [[200, 7]]


def test_chips_of_several_types_become_float32(owner: Device, model: FakeModel) -> None:
    reads = [lambda: chip(60_000, "uint16"), lambda: chip(-7, "int16"), lambda: chip(0.5, "float64")]
    encoded = encode(owner, reads)
    assert model.inputs[0].dtype == torch.float32
    np.testing.assert_array_equal(encoded.vectors[:, 0], [60_000, -7, 0.5])


# When things are done


def test_batches_are_encoded_in_the_order_of_reading(module: FakeModule, encoder: Encoder) -> None:
    """With one reading thread, and several blocks at once, the device sees chips just as they were read."""
    owner, started = Device(replace(encoder, readers=1)), []

    def reads(block: int) -> list[Callable[[], np.ndarray]]:
        def read(number: int) -> np.ndarray:
            started.append(float(number))
            return chip(number)

        return [lambda n=n: read(n) for n in range(100 * block, 100 * block + 7)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda block: encode(owner, reads(block)), range(6)))
    assert len(started) == 42
    assert [number for batch in module.models[0].batches for number in batch] == started
    # Blocks take turns: none is read between the chips of another.
    assert [started[i] % 100 for i in range(0, 42, 7)] == [0] * 6


def test_reads_that_finish_out_of_order_keep_their_places(module: FakeModule, encoder: Encoder) -> None:
    owner = Device(replace(encoder, readers=4))
    later = threading.Event()

    def first() -> np.ndarray:
        assert later.wait(LONG)
        return chip(0)

    def last() -> np.ndarray:
        later.set()
        return chip(3)

    encoded = encode(owner, [first, *reads_of([1, 2]), last])
    np.testing.assert_array_equal(encoded.vectors[:, 0], [0, 1, 2, 3])
    assert module.models[0].batches == [[0, 1, 2], [3]]


def test_next_block_is_read_while_one_is_encoded(owner: Device, model: FakeModel) -> None:
    """The first block's encoding does not end before the second block's reading has begun."""
    encoding, reading = threading.Event(), threading.Event()
    met = []

    def before(numbers: list[float]) -> None:
        if numbers == [1]:
            encoding.set()
            met.append(reading.wait(LONG))

    def read() -> np.ndarray:
        reading.set()
        return chip(2)

    model.before = before
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(encode, owner, reads_of([1]))
        assert encoding.wait(LONG)
        two = pool.submit(encode, owner, [read])
        assert (one.result(LONG).vectors[0, 0], two.result(LONG).vectors[0, 0]) == (1, 2)
    assert met == [True]


def test_later_chips_of_a_block_are_read_while_its_first_are_encoded(owner: Device, model: FakeModel) -> None:
    reading, met = threading.Event(), []

    def before(numbers: list[float]) -> None:
        if numbers[0] == 0:
            met.append(reading.wait(LONG))

    def read() -> np.ndarray:
        reading.set()
        return chip(4)

    model.before = before
    encode(owner, [*reads_of(range(4)), read])
    assert met == [True]


@pytest.mark.parametrize(("batch_size", "readers"), [(3, 2), (1, 1), (2, 5)])
def test_chips_in_memory_are_bounded(module: FakeModule, encoder: Encoder, batch_size: int, readers: int) -> None:
    """However many blocks run: the chips being read, two batches that wait and the one on the device."""
    owner = Device(replace(encoder, batch_size=batch_size, readers=readers))
    lock, held, most = threading.Lock(), 0, 0

    def read() -> np.ndarray:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return chip(1)

    def after(numbers: list[float]) -> None:
        nonlocal held
        time.sleep(0.002)  # a slow device, so that readers run as far ahead as they may
        with lock:
            held -= len(numbers)

    module.models[0].before = after
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda block: encode(owner, [read] * 20), range(8)))
    assert held == 0
    assert batch_size < most <= readers + 3 * batch_size


def test_chips_are_read_by_that_many_threads(module: FakeModule, encoder: Encoder) -> None:
    owner, together = Device(replace(encoder, readers=3)), threading.Barrier(3)

    def read() -> np.ndarray:
        together.wait(LONG)
        return chip(1)

    assert len(encode(owner, [read] * 6).vectors) == 6


def test_one_thread_alone_computes(owner: Device, model: FakeModel) -> None:
    model.before = lambda numbers: time.sleep(0.001)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda block: encode(owner, reads_of(range(10 * block, 10 * block + 5))), range(16)))
    for block, encoded in enumerate(found):
        np.testing.assert_array_equal(encoded.vectors[:, 0], np.arange(10 * block, 10 * block + 5))
    assert model.most_inside == 1
    assert len(model.threads) == 1
    assert len(model.batches) == 32


# Errors


@pytest.mark.parametrize("error", [StorageError, StorageDeniedError, MemoryError, ValueError])
def test_error_of_a_read_is_the_blocks(owner: Device, error: type[Exception]) -> None:
    """It is no fault of the chip; and more failures than chips have room in memory leave the device as it was."""
    for failing in range(12):
        reads = reads_of(range(7))
        reads[failing % 7] = raising(error("no answer"))
        with pytest.raises(error, match="no answer"):
            encode(owner, reads)
    np.testing.assert_array_equal(encode(owner, reads_of(range(20))).vectors[:, 0], range(20))


def test_error_of_the_encoder_is_the_blocks(owner: Device, model: FakeModel) -> None:
    def before(numbers: list[float]) -> None:
        if 99 in numbers:
            raise RuntimeError("out of memory")

    model.before = before
    for _ in range(12):
        with pytest.raises(RuntimeError, match="out of memory"):
            encode(owner, reads_of([1, 2, 99, 4, 5]))
    np.testing.assert_array_equal(encode(owner, reads_of(range(20))).vectors[:, 0], range(20))


def test_chip_of_another_shape_is_the_blocks_error(owner: Device) -> None:
    for _ in range(12):
        with pytest.raises(RuntimeError, match="must match the size"):
            encode(owner, [*reads_of([1]), lambda: np.ones((5, 2, 2), np.float32)])
    np.testing.assert_array_equal(encode(owner, reads_of([1, 2])).vectors[:, 0], [1, 2])


def test_error_of_one_block_is_not_anothers(owner: Device) -> None:
    def run(block: int) -> Encoded | str:
        reads = reads_of(range(5))
        if block % 2:
            reads[block % 5] = raising(StorageError(f"block {block}"))
        try:
            return encode(owner, reads)
        except StorageError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, range(12)))
    for block, result in enumerate(found):
        if block % 2:
            assert result == f"block {block}"
        else:
            np.testing.assert_array_equal(result.vectors[:, 0], range(5))


# One device a process


class Counter:
    """A meter that rises by 10 J with every batch, of whichever block."""

    device_type: Literal["cpu", "gpu"] = "gpu"
    name = "a fake"

    def __init__(self, model: FakeModel) -> None:
        self.model, self.seen = model, 0

    def joules(self) -> float:
        seen, self.seen = self.seen, len(self.model.batches)
        return 10.0 * (self.seen - seen)


def used(owner: Device, reads: list[Callable[[], np.ndarray]]) -> list[float | None]:
    with collected() as found:
        encode(owner, reads)
    return [one and one.joules for one in found]


def test_each_block_is_told_what_it_used(
    module: FakeModule, encoder: Encoder, owner: Device, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = [partial(chip, number) for number in range(7)]
    assert used(owner, chips) == [None]  # this device has no meter
    monkeypatch.setattr(device, "open_meter", lambda kind: Counter(module.models[-1]))
    monkeypatch.setattr(module, "build", lambda *_, **__: model)
    metered = Device(encoder)
    assert used(metered, chips) == [30]

    def fail(numbers: list[float]) -> None:
        raise ValueError("no")

    model.before = fail
    with pytest.raises(ValueError, match="no"), collected() as found:
        encode(metered, chips[:3])
    assert found == []
    model.before = lambda numbers: None
    nowhere = Place(*(np.zeros((0, 1)),) * 2, np.zeros(0, "datetime64[s]"), np.zeros(0))
    with pytest.raises(IndexError), collected() as found:
        metered.encode([partial(whole, read) for read in chips], nowhere, level="mean", on_nan="quarantine")
    assert found == []
    encode(owner, chips)  # nobody's, as the other device has nothing to do
    assert used(metered, chips[:4]) == [20]
    together: list[float | None] = []
    with ThreadPoolExecutor(4) as threads:
        for told in threads.map(lambda _: used(metered, chips), range(8)):
            together += told
    assert sum(one or 0 for one in together) == 8 * 30


def test_encoder_is_loaded_once(module: FakeModule, encoder: Encoder) -> None:
    module.slow = 0.05
    together = threading.Barrier(8)

    def get(_: int) -> Device:
        together.wait(LONG)
        return get_device(replace(encoder))

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(get, range(8)))
    assert len(found) == 1
    assert len(module.models) == 1


def test_another_encoder_is_loaded_in_its_turn(module: FakeModule, encoder: Encoder) -> None:
    first = get_device(encoder)
    other = get_device(replace(encoder, checkpoint="untrained:only:1"))
    assert other is not first
    assert len(module.models) == 2


def test_encoder_that_cannot_be_loaded_is_tried_again(
    module: FakeModule, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FakeModule, "build", lambda *_, **__: raising(RuntimeError("no memory on the device"))())
        with pytest.raises(RuntimeError, match="no memory on the device"):
            get_device(encoder)
    assert len(encode(get_device(encoder), reads_of([1])).vectors) == 1


def test_torch_threads_are_set_on_purpose(
    module: FakeModule, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU: there torch's threads do the work")
    monkeypatch.delenv("DASK_DASKEMBED__TORCH_THREADS")
    torch.set_num_threads(3)
    with dask.config.set({"daskembed.torch-threads": 2}):
        Device(encoder)
    assert torch.get_num_threads() == 2


# Limits of the device


def test_batch_too_large_for_the_memory_is_halved_and_stays_so(owner: Device, model: FakeModel) -> None:
    def small(numbers: list[float]) -> None:
        if len(numbers) > 1:
            raise torch.OutOfMemoryError("no room")

    model.before = small
    encoded = encode(owner, [lambda number=number: chip(number) for number in range(6)])
    assert encoded.vectors[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    # Three and two fail once; from then on chips go one by one.
    assert [len(batch) for batch in model.batches] == [3, 2, 1, 1, 1, 1, 1, 1]


def test_less_is_taken_once_for_all_blocks_that_came_back(module: FakeModule, encoder: Encoder) -> None:
    owner = Device(replace(encoder, batch_size=4, readers=8))
    (model,) = module.models
    for halvings, size, held in [(0, 4, 16), (1, 2, 8), (1, 2, 8), (2, 1, 4), (1, 1, 4), (9, 1, 2)]:
        owner.take_less(halvings)
        model.batches.clear()
        lock, gate, full, read = threading.Lock(), threading.Event(), threading.Event(), [0]

        def count(lock: Any = lock, full: Any = full, read: list[int] = read, held: int = held) -> np.ndarray:
            with lock:
                read[0] += 1
                if read[0] == held:
                    full.set()
            return chip(1)

        model.before = lambda numbers, gate=gate: gate.wait(LONG)
        with ThreadPoolExecutor(1) as pool:
            encoded = pool.submit(encode, owner, [count] * 24)
            assert full.wait(LONG)
            time.sleep(0.05)  # in which another would be read
            most = read[0]
            gate.set()
            encoded.result(LONG)
        assert most == held
        assert {len(batch) for batch in model.batches} == {size}


def test_chip_too_large_for_the_memory_is_the_blocks_error(owner: Device, model: FakeModel) -> None:
    def none(numbers: list[float]) -> None:
        raise torch.OutOfMemoryError("no room")

    model.before = none
    with pytest.raises(torch.OutOfMemoryError):
        encode(owner, [lambda: chip(1)])


@pytest.mark.parametrize(("read", "compute", "limit"), [(0.02, 0.02, "device"), (0.2, 0.01, "reading")])
def test_the_slower_of_reading_and_computing_never_waits(
    module: FakeModule, encoder: Encoder, read: float, compute: float, limit: str
) -> None:
    """With 8 readers: 2.5 ms a chip against 20 ms, and 25 ms against 10 ms; counted in sleeps, not in wall time."""
    owner = Device(replace(encoder, batch_size=4, readers=8))
    reading, computing, events = [0], [0], []

    def slow_read(number: int) -> np.ndarray:
        reading[0] += 1
        time.sleep(read)
        events.append((reading[0], computing[0]))
        reading[0] -= 1
        return chip(number)

    def slow_compute(numbers: list[float]) -> None:
        computing[0] = 1
        time.sleep(compute * len(numbers))
        computing[0] = 0

    module.models[0].before = slow_compute
    with ThreadPoolExecutor(2) as threads:
        blocks = [
            threads.submit(encode, owner, [lambda number=number: slow_read(number) for number in range(32)])
            for _ in range(3)
        ]
        for block in blocks:
            block.result(LONG)
    middle = events[16:-16]
    if limit == "device":
        busy = [computing for _, computing in middle]
        assert sum(busy) / len(busy) >= 0.95
    else:
        width = [readers for readers, _ in middle]
        assert sum(width) / len(width) >= 0.8 * 8


# What is held


class Watched(np.ndarray):
    """Pixels that can be watched."""


@pytest.mark.parametrize("error", [ChipError, ChipRejectedError])
def test_chips_that_are_set_aside_keep_no_pixels(owner: Device, error: type[ChipError]) -> None:
    """Also before the collector comes: arrays do not count for it, whatever they weigh."""
    alive = []

    def read() -> np.ndarray:
        pixels = chip(1).view(Watched)
        alive.append(weakref.ref(pixels))
        raise error("is set aside")

    gc.collect()
    gc.disable()
    try:
        encoded = encode(owner, [read] * 6)
    finally:
        gc.enable()
    assert told(encoded, "rejected" if error is ChipRejectedError else "quarantined") == ["is set aside"] * 6
    assert [one() for one in alive] == [None] * 6


@pytest.mark.parametrize(("chips", "held", "batch"), [(100, 2 + 2 * 3, 3), (7, 7, 3), (4, 4, 2), (1, 2, 1), (0, 2, 1)])
def test_memory_bounds_what_is_held(
    module: FakeModule, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, chips: int, held: int, batch: int
) -> None:
    """Two readers and two batches of three, where there is room for as many chips."""
    monkeypatch.setattr(device, "allowance", lambda: chips * 4 * len(BANDS) * 512**2 + 5)
    owner = Device(encoder)
    assert (owner._held, owner._batch) == (held, batch)
    reads = [lambda number=number: chip(number) for number in range(9)]
    assert encode(owner, reads).vectors[:, 0].tolist() == list(range(9))


def test_systems_that_do_not_tell_which_cores_a_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert hardware.usable_cores() == hardware.hardware().cores == os.cpu_count()
    hardware.set_torch_threads()
