"""Chips of a Zarr cube against GeoTIFFs in strips: bytes, and chips a second of one core, from memory to pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, ZstdCodec

from benchmarks.common import Row, median_seconds
from daskembed.geo.chips import CHIP
from daskembed.hardware import keep_freed_memory
from daskembed.output.cube import CHIPS_A_SHARD, COMPRESSION
from daskembed.sources.geotiff_pixels import decode_chip
from daskembed.testing import write_chips

BANDS = tuple(range(1, 14))
SENTINEL_2 = 10
"""Bands of whole numbers, the first ones."""
Read = Callable[[int], Any]


def run(*, smallest: bool = False) -> list[Row]:
    """The real chips beside the repository where they are, else synthetic ones; pixels must be identical.

    As all is from memory, "kept" is with what the package's workers ask of the allocator: not to give memory back after
    each chip.
    """
    real = sorted((Path(__file__).parent.parent.parent / "shared" / "data" / "chips").rglob("*.tif"))
    with tempfile.TemporaryDirectory() as folder:
        paths = (real or write_chips(Path(folder), rows=3, cols=4))[: 2 if smallest else None]
        files = [path.read_bytes() for path in paths]
    print(f"{len(files)} {'real' if real else 'synthetic'} chips")
    repeats = 1 if smallest else 5
    chips = [decode_chip(data, BANDS).astype(np.float32) for data in files]
    blosc.set_nthreads(1)
    cases: dict[str, tuple[int, Read]] = {
        "GeoTIFF, strips of deflate": (sum(map(len, files)), lambda number: decode_chip(files[number], BANDS))
    }
    with zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1}):
        cases |= {
            "cube": _cube(chips, [BloscCodec(**COMPRESSION)]),
            "a chunk a band": _cube(chips, [BloscCodec(**COMPRESSION)], bands=1),
            "Sentinel-2 as uint16 in an array of its own": _two(chips),
            "Blosc, Zstandard 5, bitshuffle": _cube(chips, [_blosc(4, cname="zstd")]),
            "Blosc, Zstandard 5, shuffle": _cube(chips, [_blosc(4, cname="zstd", shuffle="shuffle")]),
            "Zstandard 3": _cube(chips, [ZstdCodec(level=3)]),
            "no compression": _cube(chips, []),
        }
        rates = {name: [_rate(read, len(chips), repeats)] for name, (_, read) in cases.items()}
        keep_freed_memory()
        for name, (_, read) in cases.items():
            rates[name].append(_rate(read, len(chips), repeats))
        exact = {
            name: all(np.array_equal(read(number), chip, equal_nan=True) for number, chip in enumerate(chips))
            for name, (_, read) in cases.items()
        }
    plain = rates["GeoTIFF, strips of deflate"]
    return [
        {
            "chips as": name,
            "exact": exact[name],
            "MB a chip": size / len(chips) / 1e6,
            "chips/s a core": fresh,
            "times GeoTIFF's": fresh / plain[0],
            "kept: chips/s a core": kept,
            "times": kept / plain[1],
        }
        for (name, (size, _)), (fresh, kept) in zip(cases.items(), rates.values(), strict=True)
    ]


def _rate(read: Read, chips: int, repeats: int) -> float:
    return chips / median_seconds(lambda: [read(number) for number in range(chips)], repeats)


def _blosc(itemsize: int, **other: Any) -> BloscCodec:
    return BloscCodec(**{**COMPRESSION, "typesize": itemsize, **other})


def _cube(chips: list[Any], compressors: list[Any], bands: int | None = None) -> tuple[int, Read]:
    size, array = _array(np.stack(chips), compressors, bands)
    return size, lambda number: array[_window(number)]


def _two(chips: list[Any]) -> tuple[int, Read]:
    pixels = np.stack(chips)
    whole_size, whole = _array(pixels[:, :SENTINEL_2].astype(np.uint16), [_blosc(2)])
    rest_size, rest = _array(pixels[:, SENTINEL_2:], [_blosc(4)])

    def read(number: int) -> Any:
        chip = np.empty(pixels.shape[1:], np.float32)
        chip[:SENTINEL_2] = whole[_window(number)]
        chip[SENTINEL_2:] = rest[_window(number)]
        return chip

    return whole_size + rest_size, read


def _array(pixels: Any, compressors: list[Any], bands: int | None = None) -> tuple[int, Any]:
    """Chips ``(chip, band, y, x)`` side by side in shards of 4 x 4, in memory."""
    cols = -(-len(pixels) // CHIPS_A_SHARD)
    count, side = pixels.shape[1], CHIPS_A_SHARD * CHIP
    store: dict[str, Any] = {}
    array = zarr.create_array(
        store=zarr.storage.MemoryStore(store),
        shape=(1, count, side, cols * CHIP),
        chunks=(1, bands or count, CHIP, CHIP),
        shards=(1, count, side, side),
        dtype=pixels.dtype,
        compressors=compressors,
        fill_value=0,
    )
    for row in range(0, cols, CHIPS_A_SHARD):
        block = np.zeros((1, count, side, min(side, (cols - row) * CHIP)), pixels.dtype)
        for number, chip in enumerate(pixels):
            y, x = number % CHIPS_A_SHARD, number // CHIPS_A_SHARD - row
            if 0 <= x < CHIPS_A_SHARD:
                block[0, :, y * CHIP : (y + 1) * CHIP, x * CHIP : (x + 1) * CHIP] = chip
        array[..., row * CHIP : row * CHIP + block.shape[-1]] = block
    return sum(len(made) for made in store.values()), array


def _window(number: int) -> tuple[Any, ...]:
    y, x = number % CHIPS_A_SHARD * CHIP, number // CHIPS_A_SHARD * CHIP
    return 0, slice(None), slice(y, y + CHIP), slice(x, x + CHIP)
