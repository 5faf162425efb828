"""Joules: the counters, whose they are, and where they end up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import published
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client, LocalCluster

import daskembed
from daskembed import energy
from daskembed.compute import device
from daskembed.energy import Account, Energy, Meter, collected, note, open_meter, total
from daskembed.output.parts import read_notes, write_part
from daskembed.output.state import read_receipt, receipt_path
from daskembed.runs import stages, summary
from daskembed.runs.results import TileResult
from daskembed.storage.stores import Storage
from daskembed.testing import write_chips

USED = Energy(7200.0, 40.0, "gpu", "NVIDIA H100")


# RAPL


@pytest.fixture
def zones(tmp_path, monkeypatch) -> Path:
    """Two packages, one with what is inside of it, and what counts other things."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    for zone, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }.items():
        (folder := tmp_path / "powercap" / zone).mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
        (folder / "energy_uj").write_text(f"{5_000_000:018}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return tmp_path / "powercap"


def counts(zones: Path, **joules: float) -> None:
    for name, number in joules.items():
        zone = name.replace("_", ":").replace("rapl", "intel-rapl")
        # At once, as whoever reads it meanwhile must find a number.
        with (zones / zone / "energy_uj").open("r+b", buffering=0) as file:
            file.write(b"%018d\n" % round(number * 1e6))


def test_joules_are_those_of_the_packages(zones):
    meter = open_meter("cpu")
    assert meter is not None
    assert (meter.device_type, meter.joules()) == ("cpu", None)  # since when?
    counts(zones, rapl_0=15, rapl_1=6.5, rapl_0_0=99, rapl_2=999)
    assert meter.joules() == pytest.approx(11.5)
    assert meter.joules() == 0


def test_a_counter_that_begins_anew(zones):
    counts(zones, rapl_0=262_140)
    meter = open_meter("cpu")
    meter.joules()
    counts(zones, rapl_0=10, rapl_1=6)
    assert meter.joules() == pytest.approx(262_143.32885 - 262_140 + 10 + 1)


def test_a_counter_that_may_have_begun_anew_twice(zones, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    meter = open_meter("cpu")
    meter.joules()
    now[0] += 262
    counts(zones, rapl_0=15)
    assert meter.joules() == 10
    now[0] += 263  # at a thousand watts
    assert meter.joules() is None
    counts(zones, rapl_0=16)
    assert meter.joules() == 1


@pytest.mark.parametrize("lacking", ["energy_uj", "max_energy_range_uj"])
def test_counters_that_cannot_be_read(zones, lacking):
    (zones / "intel-rapl:1" / lacking).unlink()
    assert open_meter("cpu") is None
    # Root may read what others may not: a file that gives no number is refused all the same.
    (zones / "intel-rapl:1" / lacking).write_text("")
    assert open_meter("cpu") is None


def test_a_machine_without_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nowhere")
    assert open_meter("cpu") is None


def test_a_counter_that_fails_later(zones):
    meter = open_meter("cpu")
    meter.joules()
    counts(zones, rapl_0=6)
    kept = (zones / "intel-rapl:1" / "energy_uj").read_text()
    (zones / "intel-rapl:1" / "energy_uj").write_text("")
    assert meter.joules() is None
    (zones / "intel-rapl:1" / "energy_uj").write_text(kept)
    assert meter.joules() is None  # of the time before nobody knows
    counts(zones, rapl_0=8)
    assert meter.joules() == 2


OTHER = """
import sys
from pathlib import Path
from daskembed import energy
energy.POWERCAP = Path(sys.argv[1])
meter = energy.open_meter("cpu")
print(meter.joules(), flush=True)
sys.stdin.read()
print(meter.joules(), flush=True)
"""


def test_another_process_that_measures_the_same(zones):
    meter = open_meter("cpu")
    meter.joules()
    command = [sys.executable, "-c", OTHER, str(zones)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "None\n"
        counts(zones, rapl_0=15)
        assert meter.joules() is None
        assert other.communicate(timeout=60)[0] == "None\n"
    assert meter.joules() is None  # it was there when this was last asked
    counts(zones, rapl_0=16)
    assert meter.joules() == 1


# NVML


class Nvml(ModuleType):
    """What NVML says of one GPU, under the names of its Python package."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules, self.pids, self.missing = 5_000_000, [1], {"nvmlDeviceGetMigMode"}

    def _answer(self, name: str, value: object) -> object:
        if name in self.missing:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("nvmlInit", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        assert uuid == "GPU-6a21d6c3-0d5c-6fde-8a1e-5d1b0f2d9e77"
        return self._answer("nvmlDeviceGetHandleByUUID", "handle")

    def nvmlDeviceGetMigMode(self, handle: str) -> object:
        return self._answer("nvmlDeviceGetMigMode", [1, 1])

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> object:
        assert handle == "handle"
        return self._answer("nvmlDeviceGetTotalEnergyConsumption", self.millijoules)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> object:
        return self._answer("nvmlDeviceGetComputeRunningProcesses", self.pids)


@pytest.fixture
def nvml(monkeypatch) -> Nvml:
    found = SimpleNamespace(uuid="6a21d6c3-0d5c-6fde-8a1e-5d1b0f2d9e77", name="NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", {0: found}.__getitem__)
    monkeypatch.setitem(sys.modules, "pynvml", module := Nvml())
    return module


def test_joules_of_a_gpu(nvml):
    meter = open_meter("cuda")
    assert (meter.device_type, meter.name, meter.joules()) == ("gpu", "NVIDIA H100", None)
    nvml.millijoules += 1500
    assert meter.joules() == 1.5
    nvml.millijoules = 7  # its driver was loaded anew
    assert meter.joules() is None
    nvml.missing.add("nvmlDeviceGetComputeRunningProcesses")
    nvml.millijoules += 1000
    assert meter.joules() == 1


def test_a_gpu_that_others_use(nvml):
    meter = open_meter("cuda")
    meter.joules()
    nvml.pids = [1, 2]
    assert meter.joules() is None
    nvml.pids = [1]
    assert meter.joules() is None  # they were there when this was last asked
    assert meter.joules() == 0


@pytest.mark.parametrize("lost", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_without_a_counter(nvml, lost):
    nvml.missing.add(lost)
    assert open_meter("cuda") is None


def test_a_part_of_a_gpu(nvml):
    nvml.missing.clear()
    assert open_meter("cuda") is None


def test_a_gpu_without_the_package(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_meter("cuda") is None


def test_a_gpu_that_is_lost(nvml):
    meter = open_meter("cuda")
    meter.joules()
    nvml.missing.add("nvmlDeviceGetTotalEnergyConsumption")
    assert meter.joules() is None


# Whose they are


class Fake:
    """A meter that a test feeds."""

    device_type = "cpu"
    name = "a fake"

    def __init__(self) -> None:
        self.counter: float | None = 1000.0
        self._last: float | None = None

    def joules(self) -> float | None:
        last, self._last = self._last, self.counter
        return None if self._last is None or last is None else self._last - last


FITS: type[Meter] = Fake


def use(meter: Fake, joules: float) -> None:
    assert meter.counter is not None
    meter.counter += joules


def test_blocks_have_what_the_counter_rises_by():
    account = Account(meter := Fake())
    use(meter, 5)  # before there was anything to do
    account.begin()
    use(meter, 10)
    account.look()
    account.begin()  # the next one is read while the first is encoded
    use(meter, 1)
    first = account.end().result()
    use(meter, 100)
    second = account.end().result()
    use(meter, 5000)  # nothing to do
    account.begin()
    use(meter, 7)
    third = account.end().result()
    assert [one.joules for one in (first, second, third)] == [11, 100, 7]
    assert all(one.seconds > 0 and (one.device_type, one.name) == ("cpu", "a fake") for one in (first, second, third))


def test_a_block_in_which_the_counter_failed_has_none():
    account = Account(meter := Fake())
    account.begin()
    account.begin()
    meter.counter = None
    assert account.end().result() is None
    meter.counter = 0.0
    assert account.end().result() is None
    account.begin()
    use(meter, 3)
    assert account.end().result().joules == 3


def test_nothing_is_said_where_nothing_counts():
    account = Account(None)
    account.begin()
    account.look()
    assert account.end().result() is None


def test_all_of_some_chips():
    other = replace(USED, joules=800.0, seconds=10.0, name="NVIDIA A100")
    assert total([USED, other, USED]) == Energy(15200.0, 90.0, "gpu", "NVIDIA A100 and NVIDIA H100")
    assert total([total([USED, other]), USED]).name == "NVIDIA A100 and NVIDIA H100"
    assert total([USED, None]) is None
    assert total([]) is None
    assert total([USED, replace(USED, device_type="cpu")]) is None


def test_a_note_belongs_to_its_thread():
    with collected() as found:
        note(USED)
        other = threading.Thread(target=note, args=(None,))
        other.start()
        other.join()
    note(None)
    assert found == [USED]


# Parts, receipts and summaries


@pytest.fixture
def joined(tmp_path):
    """Publishes parts, each of as many joules as is said, and gives the receipt."""
    made, case = published.settings(published.CASES["patch"], str(tmp_path)), published.CASES["patch"]

    def join(*measured: Energy | None):
        paths = tuple(f"_daskembed/parts/33TUL_v001/0123456789abcdef/{n:05d}.parquet" for n in range(len(measured)))
        frame, shape = published.part(case), made.encoder.description.row_shape(case.level)
        rows = [frame.iloc[n : n + 1] for n in range(len(measured))]
        for path, row, used in zip(paths, rows, measured, strict=True):
            with made.output.open_writer(path) as file:
                write_part(row, file, shape, used)
        indexed = stages.Indexed(listing="as listed", quarantined={}, parts=paths)
        return stages.publish(made, "33TUL", indexed, "2026-11-25T12:00:00.000+00:00", [])

    return join


def test_a_tile_has_what_all_its_parts_have_whoever_made_them(joined, tmp_path):
    receipt = joined(USED, replace(USED, joules=800.0, seconds=10.0, name="NVIDIA A100"))
    assert receipt.energy == Energy(8000.0, 50.0, "gpu", "NVIDIA A100 and NVIDIA H100")
    assert read_receipt(Storage(str(tmp_path)), receipt_path("33TUL", "001")) == receipt
    assert stages.result_of(Storage(str(tmp_path)), receipt, "done").energy == receipt.energy


@pytest.mark.parametrize(
    "measured",
    [(None, None), (USED, None), (USED, replace(USED, device_type="cpu")), (replace(USED, joules=0.0),) * 2],
)
def test_a_tile_of_which_something_was_not_measured_has_none(joined, tmp_path, measured):
    assert joined(*measured).energy is None
    assert "energy" not in json.loads((tmp_path / receipt_path("33TUL", "001")).read_text())


def test_files_do_not_depend_on_what_was_measured(joined):
    files = joined(None, None).files
    assert joined(USED, USED).files == files


def test_parts_without_any_number(tmp_path):
    made, case = published.settings(published.CASES["mean"], str(tmp_path)), published.CASES["mean"]
    published.write(case, made.output, "a.parquet")
    assert b"daskembed-energy" not in pq.read_metadata(tmp_path / "a.parquet").metadata
    assert read_notes(made.output, ["a.parquet"]).energy is None


def test_summary_says_what_was_used():
    def said(*tiles: TileResult) -> str:
        return summary.describe_energy(tiles)

    done = TileResult("27WXN", "done", "/out/a.gpq", 100, energy=USED)
    none = TileResult("27WXM", "done", "/out/b.gpq", 50)
    skipped = TileResult("27WXP", "skipped", "/out/c.gpq", 100, energy=USED)
    assert said(done, skipped) == "2 Wh, 72 J a chip (NVIDIA H100)"
    assert said(done, none) == "2 Wh, 72 J a chip, for 1 of 2 tiles (NVIDIA H100)"
    assert said(none, skipped) == said() == ""


@pytest.mark.parametrize(
    ("joules", "said"),
    [
        (0.5, "0.5 J"),
        (3599, "3.6e+03 J"),
        (3600, "1 Wh"),
        (1.234e6, "343 Wh"),
        (5e6, "1.39 kWh"),
        (5e12, "1,388,889 kWh"),
    ],
)
def test_energy_for_people(joules, said):
    assert summary.describe_joules(joules) == said


# A run


@pytest.fixture
def counted_by_chip(zones, monkeypatch) -> Iterator[list[int]]:
    """A machine whose counter rises by 5 J with every chip that is encoded; gives their number."""
    chips = [0]
    count = device.count_chips

    def count_chips(number: int) -> None:
        chips[0] += number
        counts(zones, rapl_0=5 + 5 * chips[0])
        count(number)

    monkeypatch.setattr(device, "count_chips", count_chips)
    device._load.cache_clear()
    yield chips
    device._load.cache_clear()


def run(chips: Path, output: Path, threads: int) -> daskembed.RunResult:
    with (
        LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return daskembed.run(
            ["33TUL", "33TUM"],
            source=str(chips),
            output=str(output),
            checkpoint="untrained:least",
            precision="fp32",
            cluster=client,
        )


@pytest.fixture(scope="module")
def chips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chips")
    write_chips(folder, tile="33TUL", rows=1, cols=5)
    write_chips(folder, tile="33TUM", rows=1, cols=3)
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_says_what_its_tiles_used(chips, tmp_path, small_blocks, counted_by_chip, threads):
    result = run(chips, tmp_path / "out", threads)
    assert result.exit_status == 0
    found = {tile.tile: tile.energy for tile in result.tiles}
    assert sum(one.joules for one in found.values()) == pytest.approx(5 * counted_by_chip[0])
    if threads == 1:  # of two, the counter is read while the other's first chip is encoded
        assert {tile: one.joules for tile, one in found.items()} == pytest.approx({"33TUL": 25, "33TUM": 15})
    output = Storage(str(tmp_path / "out"))
    assert {tile: read_receipt(output, receipt_path(tile, "001")).energy for tile in found} == found
    assert f"energy       40 J, 5 J a chip ({found['33TUL'].name})" in repr(result).splitlines()


def test_a_run_where_nothing_counts_says_nothing(chips, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nowhere")
    device._load.cache_clear()
    result = run(chips, tmp_path / "out", 1)
    device._load.cache_clear()
    assert [tile.energy for tile in result.tiles] == [None, None]
    assert "energy" not in repr(result)
    assert "energy" not in (tmp_path / "out" / receipt_path("33TUL", "001")).read_text()
