"""Joules of the device that encodes, as a counter of its own says, and for which chips; none where nothing counts.

A GPU's counter is read through NVML, those of a machine's CPUs through RAPL. Each counts a whole device, whoever uses
it: where another process is seen to have a part in what it counts, nothing is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

POWERCAP = Path("/sys/class/powercap")
"""Where Linux has RAPL's counters."""
MOST_WATTS = 1000
"""That a package of CPUs can use: how soon its counter may begin anew."""
EVERY = 10.0
"""Seconds after which a counter is looked at while a block is encoded, so that it cannot begin anew unseen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Energy:
    """What a device used for some chips."""

    joules: float
    seconds: float
    """In which it did; of several devices, those of each."""
    device_type: Literal["cpu", "gpu"]
    name: str
    """Of the device; of several that differ, all names."""


def total(measured: Iterable[Energy | None]) -> Energy | None:
    """What was used for all of some chips; None if of some it was not measured, or on both kinds of devices."""
    found = list(measured)
    known = [one for one in found if one is not None]
    kinds = {one.device_type for one in known}
    if len(known) < len(found) or len(kinds) != 1:
        return None
    names = " and ".join(sorted({name for one in known for name in one.name.split(" and ")}))
    return Energy(sum(one.joules for one in known), sum(one.seconds for one in known), kinds.pop(), names)


class Meter(Protocol):
    """A counter of a device's joules."""

    @property
    def device_type(self) -> Literal["cpu", "gpu"]:
        """Its kind."""

    @property
    def name(self) -> str:
        """Of the device."""

    def joules(self) -> float | None:
        """Those since this was last asked; None if it cannot be known, or others are seen to have used some of them."""


def open_meter(device_type: str) -> Meter | None:
    """The meter of this process's device, ``cuda`` or ``cpu``; None where nothing counts, or it may not be read."""
    return _open_nvml() if device_type == "cuda" else _open_rapl()


class Nvml:
    """A GPU, from Volta on."""

    device_type: Literal["gpu"] = "gpu"

    def __init__(self, nvml: Any, handle: Any, name: str) -> None:
        self._nvml, self._handle, self.name = nvml, handle, name
        self._last: int | None = None

    def joules(self) -> float | None:
        """See `Meter`."""
        try:
            now = None if self._shared() else self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            now = None
        last, self._last = self._last, now
        # Anew from 0 once its driver is loaded anew.
        return None if last is None or now is None or now < last else (now - last) / 1000

    def _shared(self) -> bool:
        """Whether another process is seen to compute there: a container may see none, its own neither."""
        with contextlib.suppress(self._nvml.NVMLError):
            return len(self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) > 1
        return False


def _open_nvml() -> Meter | None:
    import torch

    try:
        import pynvml
    except ImportError:
        return _unmeasured("there is no nvidia-ml-py, which is installed with daskembed[cuda]")
    found = torch.cuda.get_device_properties(0)
    try:
        pynvml.nvmlInit()
        # By its name, as CUDA_VISIBLE_DEVICES gives numbers of its own to what it shows.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{found.uuid}")
        if _divided(pynvml, handle):
            return _unmeasured(f"{found.name} is divided (MIG), and its counter is that of the whole")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return _unmeasured(f"NVML of {found.name}: {error}")
    return Nvml(pynvml, handle, found.name)


def _divided(nvml: Any, handle: Any) -> bool:
    with contextlib.suppress(nvml.NVMLError):  # most GPUs cannot be
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    return False


class _Package(NamedTuple):
    """One of RAPL's counters."""

    file: int
    """Descriptor."""
    most: int
    """Microjoules at which it begins anew."""


class Rapl:
    """All CPU packages of the machine."""

    device_type: Literal["cpu"] = "cpu"

    def __init__(self, packages: Sequence[_Package], name: str) -> None:
        self._packages, self.name = packages, name
        self._last: tuple[float, list[int]] | None = None

    def __del__(self) -> None:
        for package in self._packages:
            os.close(package.file)

    def joules(self) -> float | None:
        """See `Meter`."""
        now = None
        with contextlib.suppress(OSError, ValueError):
            if self._alone():
                now = time.monotonic(), [int(os.pread(package.file, 64, 0)) for package in self._packages]
        last, self._last = self._last, now
        if last is None or now is None:
            return None
        if now[0] - last[0] > min(package.most for package in self._packages) / 1e6 / MOST_WATTS:
            return None
        rises = zip(self._packages, last[1], now[1], strict=True)
        return sum(after - before + (package.most if after < before else 0) for package, before, after in rises) / 1e6

    def _alone(self) -> bool:
        """Whether no other process with a meter is on this machine: each has a lock on the counters, shared."""
        file = self._packages[0].file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            # Failing, it has lost the shared one.
            fcntl.flock(file, fcntl.LOCK_SH)
        return True


def _open_rapl() -> Meter | None:
    packages = []
    with contextlib.ExitStack() as opened:
        try:
            for zone in sorted(POWERCAP.glob("intel-rapl:*")):
                # Inside of packages there are cores and more, which these count too.
                if not (zone / "name").read_text().startswith("package-"):
                    continue
                file = os.open(zone / "energy_uj", os.O_RDONLY)
                opened.callback(os.close, file)
                int(os.pread(file, 64, 0))
                packages.append(_Package(file, int((zone / "max_energy_range_uj").read_text())))
            if not packages:
                return _unmeasured(f"no counters of CPUs in {POWERCAP}")
            fcntl.flock(packages[0].file, fcntl.LOCK_SH)
        except (OSError, ValueError) as error:
            return _unmeasured(f"the counters of the CPUs cannot be read: {error}")
        opened.pop_all()
    return Rapl(packages, _cpu())


def _cpu() -> str:
    """What the CPUs call themselves."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def _unmeasured(why: str) -> Meter | None:
    _log.info(f"energy is not measured: {why}")
    return None


class Account:
    """Says what a device used for each block.

    Blocks follow one another on a device. A block has what the counter rises by from the end of the one before to its
    own, waiting for its chips included; if there was nothing to do, from its own beginning. So all that the counter
    rises by while there is work is some block's, once.

    The counter is read in a thread of its own: an answer takes milliseconds, in which the device would be idle.
    """

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self._reader = ThreadPoolExecutor(1, "daskembed-meter")
        self._lock = threading.Lock()
        self._in_work = 0
        self._look_at = 0.0
        # These belong to the reader.
        self._joules: float | None = 0.0
        self._since = 0.0

    def begin(self) -> None:
        """A block is about to begin; blocks end in the order in which they began."""
        with self._lock:
            if self._meter and not self._in_work:
                self._reader.submit(self._start).result()
            self._in_work += 1

    def look(self) -> None:
        """Something of a block is done."""
        if self._meter and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + EVERY
            self._reader.submit(self._read)

    def end(self) -> Future[Energy | None]:
        """The first of the blocks that have begun is done: what was used for it, if that was measured."""
        with self._lock:
            self._in_work -= 1
            return self._reader.submit(self._close)

    def _start(self) -> None:
        self._read()
        self._joules, self._since = 0.0, time.perf_counter()

    def _read(self) -> None:
        more = self._meter.joules() if self._meter else None
        self._joules = None if more is None or self._joules is None else self._joules + more

    def _close(self) -> Energy | None:
        self._read()
        joules, since = self._joules, self._since
        self._joules, self._since = 0.0, time.perf_counter()
        if joules is None or self._meter is None:
            return None
        return Energy(joules, self._since - since, self._meter.device_type, self._meter.name)


_collected: ContextVar[list[Energy | None] | None] = ContextVar("daskembed-energy", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[Energy | None]]:
    """What is noted in this thread meanwhile."""
    found: list[Energy | None] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def note(energy: Energy | None) -> None:
    """So much was used for some chips; None if that was not measured."""
    if (found := _collected.get()) is not None:
        found.append(energy)
