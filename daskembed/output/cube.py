"""A tile's cube of chips in Zarr: its grid, its shards, and what makes them one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed import __version__
from daskembed.geo.chips import CHIP
from daskembed.output.geozarr import encode, metadata, place_attributes
from daskembed.sensors.bands import MARK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.geo.cells import Grid
    from daskembed.output.state import Note


PIXELS = "pixels"
"""Name of a cube's variable."""

CHIPS_A_SHARD = 4
"""Along each side of a shard: 218 MB of pixels. A task takes 0.5 to 0.7 GB, with what zarr needs to encode them."""

COMPRESSION: dict[str, Any] = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 4}
"""Of Blosc. Of float32 whose values are whole, bitshuffle leaves little more than of uint16: `benchmarks/cube.py`."""


@dataclass(frozen=True)
class Layout:
    """A cube's grid, dates and bands."""

    grid: Grid
    dates: tuple[date, ...]
    bands: tuple[str, ...]
    offset_applied: tuple[date, ...] = ()
    """Dates of whose images Sentinel-2's offset was there and is out of the cube's numbers."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the cube: ``(time, band, y, x)``."""
        return (len(self.dates), len(self.bands), self.grid.height, self.grid.width)


def encode_shard(block: NDArray[np.float32]) -> memoryview:
    """The object of a shard; empty if there is nothing in it. What the block lacks, below and right, is NaN."""
    return encode(block, _encoding(block.shape[1]))


def _encoding(bands: int) -> dict[str, Any]:
    from zarr.codecs import BloscCodec, Crc32cCodec

    side = CHIPS_A_SHARD * CHIP
    return {
        "dtype": "float32",
        "chunks": (1, bands, CHIP, CHIP),
        "shards": (1, bands, side, side),
        # LZ4 does not notice every damage: with a checksum, a damaged chip is quarantined instead of embedded.
        "compressors": [BloscCodec(**COMPRESSION), Crc32cCodec()],
        "fill_value": float("nan"),
        "dimension_names": ("time", "band", "y", "x"),
    }


def cube_metadata(tile: str, layout: Layout) -> dict[str, bytes]:
    """Every object of a cube but its shards, in the order in which they are to be written: the root is the last."""
    applied = {MARK: [str(day) for day in layout.offset_applied]} if layout.offset_applied else {}
    return metadata(
        layout.grid,
        PIXELS,
        days=np.array(layout.dates, "datetime64[D]"),
        labels={"band": layout.bands},
        about={"title": f"chips of tile {tile}", "tile": tile, "daskembed": __version__} | applied,
        attributes=place_attributes(layout.grid),
        encoding={"shape": layout.shape, **_encoding(len(layout.bands))},
    )


def intact(notes: Mapping[str, Note], present: Mapping[str, int]) -> dict[str, Note]:
    """Those of some shards whose objects are there."""
    return {key: note for key, note in notes.items() if present.get(f"{PIXELS}/{key}", 0) == note.size}
