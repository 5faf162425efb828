"""Whether this machine can do its work, and whose fault a failure is: only a machine that is well condemns chips."""

from __future__ import annotations

import base64
import logging
import os
import platform
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from daskembed.errors import ChipError, ChipRejectedError, SickMachineError, StorageError
from daskembed.text import put_flags

READINGS = 4
"""How often a chip is read of which each reading finds something else."""
ROOM = 256 * 2**20
"""Bytes that can be had where memory is not short: a chip takes less."""
FOREIGN = ("PROJ_DATA", "PROJ_LIB")
"""Variables by which other programs name a PROJ database of their own."""
_TOLD = (*FOREIGN, "GDAL_DATA", "GDAL_DRIVER_PATH", "GDAL_SKIP")
_MEMORY = re.compile(r"(?i)alloc|MemoryError|out of memory|not enough memory")
_NAMES = re.compile(r"vsi\w+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8,}")
_NUMBERS = re.compile(r"[\d.,-]+")
_ARGUMENTS = ("encoder", "sensor", "edge", "offset", "numbers", "offset_applied", "on_nan")
"""That reasons to quarantine chips name."""
_RECORDED = {name: f"--{name.replace('_', '-')}" for name in _ARGUMENTS}
_LIMITS = re.compile(r"(?i)too many open files|can't start new thread|stale file handle|input/output error")
_IMAGE = (
    "SUkqAAgAAAAQAAABAwABAAAACAAAAAEBAwABAAAACAAAAAIBAwABAAAAEAAAAAMBAwABAAAACAAAAAYBAwABAAAAAQAAABEBBAABAAAAdAEAAB"
    "UBAwABAAAAAQAAABYBAwABAAAACAAAABcBBAABAAAAWAAAABwBAwABAAAAAQAAAD0BAwABAAAAAQAAAFMBAwABAAAAAQAAAA6DDAADAAAAzgAA"
    "AIKEDAAGAAAA5gAAAK+HAwAgAAAAFgEAALGHAgAeAAAAVgEAAAAAAAAAAAAAAAAkQAAAAAAAACRAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAgIQeQQAAAAAAAFRAAAAAAAAAAAABAAEAAAAHAAAEAAABAAEAAQQAAAEAAQACBLGHFgAAAAEIsYcHABYABggAAAEAjiMADAAA"
    "AQB5fwQMAAABACkjV0dTIDg0IC8gVVRNIHpvbmUgMzNOfFdHUyA4NHwAeJwFwYMBAgAAALBl27Zt1/9ftREQFBIWERUTl5CUkpaRlZNXUFRSVl"
    "FVU9fQ1NLW0dXTNzA0MjYxNTO3sLSytrG1s3dwdHJ2cXVz9/D08vbx9fMHVc8H4Q=="
)
"""A TIFF of 8 x 8 pixels in EPSG:32633, packed by deflate."""
_Read = TypeVar("_Read")


def complaint(*, embeds: bool = True) -> str | None:
    """What this process cannot do that every tile needs, and what to look at; None if it is well.

    A PROJ database that another program's variables name is done without, where rasterio brings one. Torch, which takes
    longest to load, is tried where chips are embedded.
    """
    trials = {"PROJ and GDAL": _prove_rasters, "pyproj": _prove_pyproj} | ({"torch": _prove_torch} if embeds else {})
    for what, prove in trials.items():
        if (said := _tried(prove)) is not None:
            return _describe(what, said)
    return None


def check_rasters() -> None:
    """Raise `SickMachineError` if PROJ or GDAL cannot do in this process what every chip needs."""
    if (said := _tried(_prove_rasters)) is not None:
        raise SickMachineError(_describe("PROJ and GDAL", said))


def read_surely(what: str, read: Callable[[bool], _Read]) -> _Read:
    """What `read` gives; its `ChipError` only if it is raised twice alike, on a machine that is well.

    Parameters
    ----------
    what
        Is read: a URL.
    read
        Called with whether caches are to be passed.

    Raises
    ------
    ChipError
    SickMachineError
        If this process cannot read any chip.
    StorageError
        If each reading finds something else.
    """
    before = None
    for reading in range(READINGS):
        if reading > 1:
            time.sleep(0.1 * 2**reading * random.uniform(0.5, 1))
        try:
            return read(reading > 0)
        except ChipRejectedError:
            raise
        except ChipError as error:
            reason = str(error)
        alike = without_names(reason)
        if alike == before:
            raise ChipError(reason)
        check_rasters()
        before = alike
    raise StorageError(f"{what}: each reading finds something else, at last that it {reason}; look at the store")


def without_names(reason: str) -> str:
    """A reason without names of the moment, by which GDAL and others call what they read."""
    return _NAMES.sub("", reason)


def kind_of(reason: str) -> str:
    """What reasons have in common that differ by names of the moment, by numbers or by how arguments are written."""
    return _NUMBERS.sub("", without_names(as_recorded(reason)))


def as_recorded(reason: str) -> str:
    """A reason as the first receipts have it, for what is compared with them: with arguments as the command's flags."""
    return put_flags(reason, _RECORDED)


def fault_of(error: BaseException, reason: str) -> Exception:
    """What is to be raised for a failure to read a chip: `ChipError(reason)`, unless it is this machine's.

    Returns
    -------
    Exception
        `MemoryError` if memory is short, `SickMachineError` if the process is at one of its limits, or a `ChipError`.
    """
    chain = [error, error.__cause__, error.__context__]
    said = " ".join(f"{type(one).__name__} {one}" for one in chain if one is not None)
    # Damaged files ask for absurd amounts: that such a one cannot be had does not mean that memory is short.
    if (isinstance(error, MemoryError) or is_want_of_memory(said)) and not _has_room():
        return MemoryError(f"memory is short: {' '.join(str(error).split())[:200]}")
    if limit := _LIMITS.search(said):
        return SickMachineError(
            f"{platform.node()}: {limit[0]}: look at the limits (ulimit -a) and disks of this machine"
        )
    return ChipError(reason)


def is_want_of_memory(said: str) -> bool:
    """Whether an error's words are those of one for want of memory."""
    return bool(_MEMORY.search(said))


def _tried(prove: Callable[[], None]) -> str | None:
    try:
        prove()
    except Exception as error:
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    return None


def _describe(what: str, said: str) -> str:
    named = ", ".join(f"{name}={os.environ[name]}" for name in _TOLD if name in os.environ)
    return (
        f"{platform.node()} fails the trial of {what} ({said}); "
        + (f"its environment has {named}: unset what belongs to another program, or " if named else "")
        + "install daskembed's packages anew there"
    )


def _prove_rasters() -> None:
    try:
        _read_image()
    except Exception:
        if not _without_foreign_projections():
            raise
        _read_image()


def _without_foreign_projections() -> bool:
    """Do without another program's PROJ database; whether there is one that rasterio brought instead."""
    from rasterio.env import PROJDataFinder, set_proj_data_search_path

    own = PROJDataFinder().search_wheel()
    if own is None or not any(name in os.environ for name in FOREIGN):
        return False
    foreign = {name: os.environ.pop(name) for name in FOREIGN if name in os.environ}
    told = ", ".join(f"{name}={path}" for name, path in foreign.items())
    logging.getLogger(__name__).warning(
        f"warning: {told} is no PROJ database of rasterio's, which takes its own instead"
    )
    set_proj_data_search_path(own)
    return True


def _read_image() -> None:
    from rasterio.io import MemoryFile

    with MemoryFile(base64.b64decode(_IMAGE), ext=".tif") as memory, memory.open(driver="GTiff") as dataset:
        if (code := dataset.crs.to_epsg() if dataset.crs else None) != 32633:
            raise RuntimeError(f"a file in EPSG:32633 is read as one in {dataset.crs or 'no CRS'} (EPSG code {code})")
        if not np.array_equal(dataset.read(1), np.arange(64, dtype=np.uint16).reshape(8, 8)):
            raise RuntimeError("a file packed by deflate is read as other pixels")


def _prove_pyproj() -> None:
    from pyproj import Transformer

    place = Transformer.from_crs(32633, "OGC:CRS84", always_xy=True).transform(500_000, 0)
    if not np.allclose(place, (15, 0), rtol=0, atol=1e-6):
        raise RuntimeError(f"500000, 0 of EPSG:32633 is taken for {place[0]:g}, {place[1]:g} degrees, not 15, 0")


def _prove_torch() -> None:
    import torch

    ones = torch.ones(64, 64)
    if not bool((ones @ ones == 64).all()):
        raise RuntimeError("the product of two matrices of ones is wrong")


def _has_room() -> bool:
    try:
        bytearray(ROOM)
    except MemoryError:
        return False
    return True
