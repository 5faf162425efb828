"""A tile's index as a lazy DataArray (chip, band, y, x)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from daskembed.errors import ChipError, InputError
from daskembed.geo.cells import EDGES
from daskembed.geo.chips import CHIP
from daskembed.sources.chip import Chip, ReadChip
from daskembed.sources.frame import INDEX_COLUMNS

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

INSIDE = ("inside_y", "inside_x")
"""Coordinates of a chip's pixels that are in the image."""
CHIPS_A_BLOCK = 64
"""Chips of a block: few enough to spread a tile over workers, many enough to keep the scheduler's share small."""


class ChipBlock(np.lib.mixins.NDArrayOperatorsMixin):
    """Some chips that are not read yet, in the place of an array (chip, band, y, x) of float32.

    `daskembed.embed` reads the chips of a block one by one while others are encoded, so a block is never in memory
    as a whole. Anything else that touches a block, NumPy or xarray, gets the array.
    """

    ndim = 4
    dtype = np.dtype(np.float32)
    flags = np.empty(0, np.float32).flags

    def __init__(self, chips: tuple[Chip, ...], aside: Mapping[str, str] | None = None) -> None:
        self.chips = chips
        self.aside = aside or {}
        """URL -> reason, of chips that are bad and are not to be touched."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array."""
        return (len(self.chips), len(self.chips[0].bands), CHIP, CHIP)

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, row: int) -> ReadChip:
        """Read one of the chips; raises as `Chip.read_with_findings` does."""
        chip = self.chips[row]
        if chip.url in self.aside:
            raise ChipError(self.aside[chip.url])
        return chip.read_with_findings()

    @property
    def size(self) -> int:
        """Values of the array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, key: Any) -> Any:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is None or first is Ellipsis:
            return np.asarray(self)[key]
        # Only the chips that are asked for are read, and none while whole chips are asked for.
        rows = np.arange(len(self.chips))[first]
        picked = ChipBlock(tuple(self.chips[row] for row in rows.reshape(-1)), self.aside)
        if rows.ndim and all(map(_is_whole, rest, self.shape[1:])):
            return picked
        return np.asarray(picked)[(slice(None) if rows.ndim else 0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        pixels = np.empty(self.shape, dtype or self.dtype)
        for row, chip in enumerate(self.chips):
            try:
                pixels[row] = self.read(row).pixels
            except ChipError as error:
                raise ChipError(f"{chip.url} {error}") from None
        return pixels

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(value) if isinstance(value, ChipBlock) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        # Dask and xarray ask any array what attributes it has: that must not read the chips.
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        if callable(getattr(np.ndarray, name)):
            return lambda *args, **options: getattr(np.asarray(self), name)(*args, **options)
        return getattr(np.asarray(self), name)

    def copy(self) -> ChipBlock:
        """Itself: nothing changes a block."""
        return self

    def __dask_tokenize__(self) -> object:
        return ("daskembed.ChipBlock", self.chips, dict(self.aside))


def block_ends(units: Sequence[tuple[object, ...]], chips_a_block: int) -> list[int]:
    """Where the blocks of some chips end: each as large as it may be without parting a row of storage.

    Parameters
    ----------
    units
        Of the chips; see `daskembed.sources.chip.Chip`.
    chips_a_block
        Most chips of a block, unless a single row of storage holds more.
    """
    groups = [len(list(group)) for _, group in groupby(units, lambda unit: unit if len(unit) == 1 else unit[:-1])]
    ends: list[int] = []
    start = end = 0
    for size in groups:
        if end > start and end + size - start > chips_a_block:
            ends.append(end)
            start = end
        end += size
    return [*ends, end] if end > start else ends


def _is_whole(part: Any, length: int) -> bool:
    return isinstance(part, slice) and range(*part.indices(length)) == range(length)


def open_tile(index: gpd.GeoDataFrame, *, chips_a_block: int = CHIPS_A_BLOCK) -> xr.DataArray:
    """The chips of an index as one lazy array; nothing is read.

    Parameters
    ----------
    index
        Index of one or more tiles, as `daskembed.index_tile` gives it. Quarantined chips are left out. To choose
        chips, choose rows here: choosing them by number from the array reads whole blocks.
    chips_a_block
        Chips of one Dask block: the unit that is sent to a worker.

    Returns
    -------
    xarray.DataArray
        float32 of shape ``(chip, band, y, x)``, with the coordinates ``chip`` (number, from 0), ``band``,
        ``source_url``, ``date``, ``datetime`` (UTC; NaT where only the day is known), ``epsg``, ``lat``, ``lon``
        (degrees), ``west``, ``south``, ``east``, ``north`` (bounds in ``epsg``), ``inside_y``, ``inside_x`` (pixels
        that are in the image; the others were added) and ``geometry`` (footprint in OGC:CRS84).

    Raises
    ------
    InputError
        If `index` lacks columns or has no usable chip.
    """
    # Indexes of earlier versions have no times.
    missing = [column for column in INDEX_COLUMNS if column not in index.columns and column != "datetime"]
    if missing:
        raise InputError(f"the index lacks the columns {', '.join(missing)}: make it with daskembed.index_tile")
    good = index[index["quarantined"].isna()]
    if good.empty:
        raise InputError("the index has no usable chip: the column `quarantined` says why")
    chips = tuple(good["chip"])
    # Sizes and tags of the files are part of the name: a chip that changed is another array.
    token = tokenize(chips, *(tuple(good[column]) for column in ("source_url", "size", "etag")), chips_a_block)
    name = f"open_tile-{token}"
    # Each block is in the graph by itself, so that the task of one does not carry the whole tile's chips.
    ends = block_ends([chip.unit for chip in chips], chips_a_block)
    blocks = [ChipBlock(chips[start:end]) for start, end in pairwise((0, *ends))]
    data = da.Array(
        {(name, number, 0, 0, 0): block for number, block in enumerate(blocks)},
        name,
        chunks=(tuple(len(block) for block in blocks), *((length,) for length in blocks[0].shape[1:])),
        meta=np.empty((0, 0, 0, 0), np.float32),
    )
    times = pd.to_datetime(good.get("datetime", pd.Series(pd.NaT, good.index)), utc=True)
    inside = np.array([chip.inside for chip in chips], dtype=np.int16)
    return xr.DataArray(
        data,
        dims=("chip", "band", "y", "x"),
        name="chips",
        coords={
            "chip": np.arange(len(good)),
            "band": list(chips[0].bands),
            "source_url": ("chip", good["source_url"].to_numpy(dtype=object)),
            "date": ("chip", np.array(good["date"].tolist(), dtype="datetime64[D]").astype("datetime64[s]")),
            "datetime": ("chip", times.to_numpy("datetime64[ms]")),
            "epsg": ("chip", good["epsg"].to_numpy(dtype=np.int32)),
            "lat": ("chip", good["lat"].to_numpy(dtype=np.float64)),
            "lon": ("chip", good["lon"].to_numpy(dtype=np.float64)),
            **{edge: ("chip", good[edge].to_numpy(dtype=np.float64)) for edge in EDGES},
            **{name: ("chip", pixels) for name, pixels in zip(INSIDE, inside.T, strict=True)},
            "geometry": ("chip", good.geometry.to_numpy()),
        },
    )
