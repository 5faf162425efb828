"""Bytes to pixels on one core: which library decodes a deflated, pixel-interleaved strip file fastest."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import CORES, Row, median_seconds
from daskembed.sources.geotiff_pixels import decode_chip
from daskembed.testing import write_chips

BANDS = tuple(range(1, 14))


def run(*, smallest: bool = False) -> list[Row]:
    """The real chips beside the repository where they are, else synthetic ones; pixels must be identical."""
    real = sorted((Path(__file__).parent.parent.parent / "shared" / "data" / "chips").rglob("*.tif"))
    with tempfile.TemporaryDirectory() as folder:
        paths = (real or write_chips(Path(folder), rows=3, cols=4))[: 1 if smallest else None]
        files = [path.read_bytes() for path in paths]
    size = sum(map(len, files)) / len(files) / 1e6
    print(f"{len(files)} {'real' if real else 'synthetic'} chips, {size:.1f} MB each")
    repeats = 1 if smallest else 5
    wanted = [decode_chip(data, BANDS) for data in files]
    rows: list[Row] = []
    for name, decode in _decoders().items():
        exact = all(np.array_equal(decode(data), pixels, equal_nan=True) for data, pixels in zip(files, wanted))

        def decode_all(mapped: Callable[..., Iterable[object]], decode: Callable[[bytes], Any] = decode) -> None:
            list(mapped(decode, files * 2))

        one = median_seconds(partial(decode_all, map), repeats=repeats) / len(files) / 2
        with ThreadPoolExecutor(CORES) as pool:
            many = median_seconds(partial(decode_all, pool.map), repeats=repeats) / len(files) / 2
        rows.append(
            {
                "library": name,
                "exact": exact,
                "ms a chip, one thread": one * 1e3,
                "chips/s a core": 1 / one,
                f"chips/s, {CORES} threads": 1 / many,
            }
        )
    return rows


def _decoders() -> dict[str, Callable[[bytes], Any]]:
    found: dict[str, Callable[[bytes], Any]] = {"rasterio": lambda data: decode_chip(data, BANDS)}
    try:
        import imagecodecs
    except ImportError:
        print("imagecodecs is not installed: left out")
    else:

        def by(inflate: Callable[..., Any]) -> Callable[[bytes], Any]:
            def decode(data: bytes) -> Any:
                chip = np.empty((512, 512 * 13), np.float32)
                for row, offset, count in zip(chip, *_strips(data), strict=True):
                    inflate(data[offset : offset + count], out=row.view(np.uint8))
                return np.ascontiguousarray(chip.reshape(512, 512, 13).transpose(2, 0, 1))

            return decode

        found |= {"imagecodecs zlib": by(imagecodecs.zlib_decode)}
        found |= {"imagecodecs libdeflate": by(imagecodecs.deflate_decode)}
    return found


def _strips(data: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and lengths of a little-endian classic TIFF's strips."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    tags = {}
    for place in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from("<HHII", data, place)
        tags[tag] = (kind, count, value)

    def values(tag: int) -> tuple[int, ...]:
        kind, count, place = tags[tag]
        return struct.unpack_from(f"<{count}{'H' if kind == 3 else 'I'}", data, place)

    return values(273), values(279)
