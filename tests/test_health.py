"""Whose fault a failure is: the machine's, the store's or the chip's."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest
from distributed.core import error_message
from distributed.protocol import deserialize, serialize
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile

from daskembed import health
from daskembed.errors import ChipError, ChipRejectedError, SickMachineError, StorageDeniedError, StorageError
from daskembed.hardware import hardware
from daskembed.health import fault_of, read_surely


def elsewhere(code: str, **env: str) -> str:
    """What a process with other variables prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COMPLAINT = "from daskembed.health import complaint; print(complaint())"


def test_this_machine_is_well() -> None:
    assert health.complaint() is None


def test_a_client_does_its_part_without_torch() -> None:
    # Which takes longer to load than all else that a client needs.
    told = pickle.dumps(hardware())
    code = f"""
import pickle, sys
import daskembed.runs.tiles
from daskembed.health import complaint
print(complaint(embeds=False), pickle.loads({told!r}).device, "torch" in sys.modules)
"""
    assert elsewhere(code) == f"None {hardware().device} False"


def test_without_a_driver_of_gdal_a_machine_is_sick() -> None:
    said = elsewhere(COMPLAINT, GDAL_SKIP="GTiff")
    assert "fails the trial of PROJ and GDAL (" in said
    assert "GDAL_SKIP=GTiff: unset what belongs to another program" in said


def test_the_projections_of_another_program_are_done_without() -> None:
    code = f"{COMPLAINT}; import os; print(os.environ.get('PROJ_DATA'), os.environ.get('PROJ_LIB'))"
    said = elsewhere(code, PROJ_DATA="/nonexistent", PROJ_LIB="/nonexistent")
    assert said.split("\n") == ["None", "None None"]


def test_without_any_projections_a_machine_is_sick() -> None:
    without = "import rasterio.env; rasterio.env.PROJDataFinder.search_wheel = lambda self: None; "
    said = elsewhere(without + COMPLAINT, PROJ_DATA="/nonexistent", PROJ_LIB="/elsewhere")
    assert "EPSG" in said or "proj.db" in said
    assert "PROJ_DATA=/nonexistent, PROJ_LIB=/elsewhere" in said


def answers(*found: object) -> tuple[Callable[[bool], object], list[bool]]:
    """A function that gives or raises these, one after the other, and whether it was asked to pass caches."""
    left, asked = list(found), list[bool]()

    def read(fresh: bool) -> object:
        asked.append(fresh)
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    return read, asked


def test_a_chip_is_read_again_fresh_before_it_is_condemned() -> None:
    read, asked = answers(ChipError("is no TIFF"), "pixels")
    assert read_surely("chip", read) == "pixels"
    assert asked == [False, True]


def test_a_chip_that_is_bad_twice_alike_is_condemned() -> None:
    read, asked = answers(ChipError("'/vsiriopener_0ab1/x' is bad"), ChipError("'/vsiriopener_77c/x' is bad"))
    with pytest.raises(ChipError, match="is bad"):
        read_surely("chip", read)
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("one", "other", "same", "same_kind"),
    [
        ("'/vsiriopener_0ab1/x' is bad", "'/vsiriopener_77c/x' is bad", True, True),
        ("'/vsimem/0badc0de/x' is bad", "'/vsimem/1badc0de/x' is bad", True, True),
        (f"'{uuid.UUID(int=12**30)}.tif' is bad", f"'{uuid.UUID(int=7**40)}.tif' is bad", True, True),
        ("has 3 values in B02", "has 17 values in B02", False, True),
        ("is gone", "has no CRS", False, False),
    ],
)
def test_reasons_that_differ_by_names_of_the_moment_or_by_numbers(
    one: str, other: str, same: bool, same_kind: bool
) -> None:
    assert (health.without_names(one) == health.without_names(other)) == same
    assert (health.kind_of(one) == health.kind_of(other)) == same_kind


@pytest.mark.parametrize(
    ("now", "recorded"),
    [
        ("say `numbers='stored'` or `numbers='values'`", "say --numbers stored or --numbers values"),
        (
            "in these numbers: `offset_applied` yes or no decides",
            "in these numbers: --offset-applied yes or no decides",
        ),
        ("say `offset_applied='yes'`", "say --offset-applied yes"),
        ("at the offset 0,7 (`edge='pad'` takes parts)", "at the offset 0,7 (--edge pad takes parts)"),
        ("(`edge='drop'`, `offset=(0, 7)`)", "(--edge drop, --offset 0,7)"),
        ("`encoder='clay-v1.5'` `sensor='radar'` needs vv", "--encoder clay-v1.5 --sensor radar needs vv"),
        ("NaN (`on_nan='fill'` puts means there)", "NaN (--on-nan fill puts means there)"),
        ("has the `date` tag '2022'", "has the `date` tag '2022'"),
    ],
)
def test_reasons_of_earlier_receipts_have_flags(now: str, recorded: str) -> None:
    assert health.as_recorded(now) == health.as_recorded(recorded) == recorded
    assert health.kind_of(now) == health.kind_of(recorded)


def test_a_store_of_which_each_reading_finds_something_else_is_at_fault() -> None:
    read, asked = answers(*(ChipError(f"is bad in way {way}") for way in "abcd"))
    with pytest.raises(StorageError, match="chip: each reading finds something else"):
        read_surely("chip", read)
    assert len(asked) == health.READINGS


def test_a_chip_that_breaks_a_rule_is_not_read_again() -> None:
    read, asked = answers(ChipRejectedError("B02 is 0"))
    with pytest.raises(ChipRejectedError):
        read_surely("chip", read)
    assert asked == [False]


def test_a_sick_machine_condemns_no_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a process without its TIFF driver makes of any file.
    monkeypatch.setattr(health, "_IMAGE", "AAAA")
    read, _ = answers(ChipError("is damaged"), ChipError("is damaged"))
    with pytest.raises(SickMachineError, match="fails the trial of PROJ and GDAL"):
        read_surely("chip", read)


SHORT = """
import resource
from daskembed.health import fault_of
import rasterio.errors
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + 100_000_000,) * 2)
for error in (MemoryError(), rasterio.errors.RasterioIOError("Cannot allocate 99 bytes"), OSError("std::bad_alloc")):
    print(type(fault_of(error, "is damaged")).__name__)
"""


def test_want_of_memory_is_the_machines() -> None:
    assert elsewhere(SHORT).split() == ["MemoryError"] * 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(RasterioIOError("Cannot allocate 9999999999999 bytes"), ChipError, id="absurd claim"),
        pytest.param(MemoryError("Unable to allocate 3 TiB"), ChipError, id="absurd shape"),
        pytest.param(RasterioIOError("chip.tif: Too many open files"), SickMachineError, id="files"),
        pytest.param(RuntimeError("can't start new thread"), SickMachineError, id="threads"),
        pytest.param(RasterioIOError("Read failed: strip 3"), ChipError, id="damage"),
    ],
)
def test_whose_fault(error: Exception, kind: type[Exception]) -> None:
    assert type(fault_of(error, "is damaged")) is kind


@pytest.mark.parametrize("kind", [StorageDeniedError, ChipError, SickMachineError])
def test_errors_keep_their_type_on_their_way_through_dask(kind: type[Exception]) -> None:
    """Also where they were raised in the handling of one of rasterio's, which do not survive it."""
    try:
        try:
            with MemoryFile(b"II*\0 is no TIFF", ext=".tif") as memory:
                memory.open(driver="GTiff")
        finally:
            raise kind("said so")
    except kind as error:
        sent = error_message(error)["exception"]
    found = pickle.loads(deserialize(*serialize(sent.data)))
    assert (type(found), str(found)) == (kind, "said so")
