"""Bad and odd chips: what a folder of GeoTIFFs may hold, each made from a good chip, with what is to become of it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Make = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Case:
    """One kind of chip."""

    name: str
    """What is odd about it."""
    make: Make
    """Called with a good chip as `write_chips` makes it and the path of the file to write."""
    fails: Literal["header", "pixels", "values"] | None = None
    """When it is found bad: when a tile is indexed, when its pixels are read or embedded; None if it is good."""
    reason: str = ""
    """A regular expression that the reason matches from its start."""
    same: bool = True
    """Whether a good one has exactly the pixels of the chip that it was made from."""
    file: str | None = None
    """Its path below the folder of the day, where the kind is in the name; else one with a number of its own."""

    def explains(self, reason: str) -> bool:
        """Whether `reason` is the one expected, on one line and not endless."""
        return re.match(self.reason, reason) is not None and "\n" not in reason and len(reason) <= 500

    def path(self, folder: Path, number: int) -> Path:
        """Where `write_odd_chips` puts it."""
        tile, day = folder.parent.name, folder.name.replace("-", "")
        return folder / (self.file or f"claytile_{tile}_{day}_v02_{number:04d}.tif")


def write_odd_chips(folder: Path, good: Path, *, first: int = 1001) -> dict[Path, Case]:
    """Write all `CASES` into the folder of a tile's day.

    Parameters
    ----------
    folder
        ``{tile}/{YYYY-MM-DD}``, the tile and the date of `good`.
    good
        A chip of `daskembed.testing.write_chips`.
    first
        Number of the first file; the others follow.
    """
    written = {}
    for number, case in enumerate(CASES, start=first):
        path = case.path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        case.make(good, path)
        written[path] = case
    return written


def _content(data: bytes) -> Make:
    return lambda good, path: path.write_bytes(data)


def _cut(length: float) -> Make:
    """Keep `length` bytes, or that share of them, or all but so many."""

    def make(good: Path, path: Path) -> None:
        data = _start_with_directory(good)
        path.write_bytes(data[: int(length * len(data)) if 0 < length < 1 else int(length)])

    return make


def _cut_late(good: Path, path: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def _put(offset: int | Callable[[bytes], int], new: bytes) -> Make:
    """Put other bytes at an offset."""

    def make(good: Path, path: Path) -> None:
        data = bytearray(_start_with_directory(good))
        start = offset(bytes(data)) if callable(offset) else offset
        data[start : start + len(new)] = new
        path.write_bytes(data)

    return make


def _rewrite(
    change: Callable[[Pixels], Pixels] = lambda pixels: pixels,
    *,
    tags: dict[str, str] | None = None,
    names: bool = True,
    late: bool = False,
    overviews: bool = False,
    **profile: Any,
) -> Make:
    """Write the chip again by rasterio with other pixels, tags or profile; None drops a key of the profile."""

    def make(good: Path, path: Path) -> None:
        import rasterio

        with rasterio.open(good) as file:
            pixels, bands, found = change(file.read()), file.descriptions, file.tags()
            new = {**file.profile, "blockysize": 1, "interleave": "pixel", "dtype": pixels.dtype}
        # Fast rather than small.
        new |= {"zlevel": 1, **profile} if profile.get("compress", "deflate") == "deflate" else profile
        if new.get("tiled") and "blockysize" not in profile:
            del new["blockysize"]
        new |= dict(zip(("count", "height", "width"), pixels.shape, strict=True))
        with rasterio.open(path, "w", **{key: value for key, value in new.items() if value is not None}) as file:
            # GDAL writes the directory before the first pixels, and again at the end if it changed since.
            if late:
                file.write(pixels)
            if names:
                file.descriptions = (*bands, *["more"] * 9)[: len(pixels)]
            file.update_tags(**({"date": found["date"]} if tags is None else tags))
            if not late:
                file.write(pixels)
            if overviews:
                file.build_overviews([2, 4])

    return make


_directory_first = _rewrite()


def _start_with_directory(good: Path) -> bytes:
    return _rewritten(good, good.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _rewritten(good: Path, changed: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _directory_first(good, Path(folder) / good.name)
        return (Path(folder) / good.name).read_bytes()


def _field(tag: int) -> Callable[[bytes], int]:
    """Offset of a tag's entry in the directory of a little-endian classic TIFF."""

    def find(data: bytes) -> int:
        (directory,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, directory)
        entries = range(directory + 2, directory + 2 + 12 * count, 12)
        return next(place for place in entries if struct.unpack_from("<H", data, place)[0] == tag)

    return find


def _values(tag: int) -> Callable[[bytes], int]:
    """Offset of the values of a tag that has more than fit into its entry."""
    return lambda data: int(struct.unpack_from("<I", data, _field(tag)(data) + 8)[0])


WIDTH, HEIGHT, OFFSETS, ROWS_A_STRIP, COUNTS, TILE_WIDTH, TILE_HEIGHT, SCALE, CODES = (
    *(256, 257, 273, 278, 279, 322, 323, 33550, 34735),
)


def _set_tags(values: dict[int, int], before: Make | None = None) -> Make:
    """Overwrite tags of one value by other values of 32 bits."""

    def make(good: Path, path: Path) -> None:
        if before is not None:
            before(good, path)
        data = bytearray((good if before is None else path).read_bytes())
        for tag, value in values.items():
            struct.pack_into("<HII", data, _field(tag)(bytes(data)) + 2, 4, 1, value)
        path.write_bytes(data)

    return make


def _bomb(good: Path, path: Path) -> None:
    """The first strip inflates to the right pixels, and then to 200 MB more."""
    data = bytearray(good.read_bytes())
    offset, length = (struct.unpack_from("<I", data, _values(tag)(bytes(data)))[0] for tag in (OFFSETS, COUNTS))
    bomb = zlib.compress(zlib.decompress(data[offset : offset + length]) + bytes(200_000_000), 9)
    struct.pack_into("<I", data, _values(OFFSETS)(bytes(data)), len(data))
    struct.pack_into("<I", data, _values(COUNTS)(bytes(data)), len(bomb))
    path.write_bytes(data + bomb)


def _unwritten(good: Path, path: Path) -> None:
    """What GDAL leaves of a chip when its process is killed while it writes: no strip has a place yet."""
    data = bytearray(good.read_bytes())
    for tag in (OFFSETS, COUNTS):
        field = _field(tag)(bytes(data))
        kind, count, start = struct.unpack_from("<HII", data, field + 2)
        size = count * (2 if kind == 3 else 4)
        data[start : start + size] = bytes(size)
    path.write_bytes(data)


def _huge(good: Path, path: Path) -> None:
    """A sparse file: a gigabyte that takes no room on most disks."""
    shutil.copyfile(good, path)
    with path.open("r+b") as file:
        file.truncate(2**30)


def _set(value: float, where: Any = ...) -> Callable[[Pixels], Pixels]:
    def change(pixels: Pixels) -> Pixels:
        pixels[where] = value
        return pixels

    return change


def _as(dtype: str) -> Callable[[Pixels], Pixels]:
    def change(pixels: Pixels) -> Pixels:
        kind = np.dtype(dtype)
        if kind.kind in "iu":
            pixels = np.clip(pixels, np.iinfo(kind).min, np.iinfo(kind).max)
        return pixels.astype(kind)

    return change


def _repeat(count: int) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.concatenate([pixels, pixels])[:count]


_LOCAL_CRS = "+proj=tmerc +lat_0=46 +lon_0=12.3 +k=1 +x_0=1234 +y_0=5678 +ellps=bessel +units=m +no_defs"
_HTML = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>" * 100
_TILED = _rewrite(tiled=True, blockxsize=256, blockysize=256)
_NOT_TIFF, _DAMAGED = "is not a TIFF: it starts with .*; expected a GeoTIFF of 13 bands", "has a damaged header: .+"
_UNDECODED = "cannot be decoded, it is damaged or truncated: .+"


def _bad(name: str, make: Make, reason: str, file: str | None = None) -> Case:
    return Case(name, make, "header", reason, file=file)


def _unread(name: str, make: Make, reason: str = _UNDECODED) -> Case:
    return Case(name, make, "pixels", reason)


def _unfit(name: str, make: Make, reason: str) -> Case:
    return Case(name, make, "values", reason)


CASES = (
    # No TIFF at all
    _bad("zero bytes", _content(b""), "is empty; expected a GeoTIFF of 13 bands"),
    _bad("three bytes", _content(b"II*"), _NOT_TIFF),
    _bad("HTML", _content(_HTML), _NOT_TIFF),
    _bad("JSON", _content(json.dumps({"error": "no such key"}).encode()), _NOT_TIFF),
    _bad("PNG", _content(b"\x89PNG\r\n\x1a\n" + bytes(500)), _NOT_TIFF),
    _bad("gzip", _content(b"\x1f\x8b\x08" + bytes(500)), _NOT_TIFF),
    _bad("Git LFS pointer", _content(b"version https://git-lfs.github.com/spec/v1\n"), _NOT_TIFF),
    _bad("zeros", _content(bytes(100_000)), _NOT_TIFF),
    _bad("noise behind the signature", _content(b"II*\0" + np.random.default_rng(0).bytes(4000)), _DAMAGED),
    # Truncated
    _bad("cut in the header", _cut(6), _DAMAGED),
    _bad("cut after the header", _cut(8), _DAMAGED),
    _bad("cut in the directory", _cut(100), _DAMAGED),
    _bad("cut before the values", _cut(300), _DAMAGED),
    _bad("cut in the values", _cut(1000), "has (no|a damaged|the) .+"),
    _bad("cut in the middle, directory at the end", _cut_late, _DAMAGED),
    _unread("cut after a tenth", _cut(0.1)),
    _unread("cut in the middle", _cut(0.5)),
    _unread("cut after nine tenths", _cut(0.9)),
    _unread("cut before the last hundred bytes", _cut(-100)),
    _unread("cut before the last byte", _cut(-1)),
    # Other bytes
    _bad("signature", _put(2, b"\xd5"), _NOT_TIFF),
    _bad("place of the directory", _put(4, b"\xff\xff\xff\xff"), _DAMAGED),
    _bad("length of the directory", _put(8, b"\xff\xff"), "has .+"),
    _bad("width and height", _put(_field(WIDTH), bytes(24)), "has .+"),
    _bad("a date that is not UTF-8", _put(lambda data: data.index(b"2019-04-16"), b"\xff" * 10), "has no `date` tag"),
    _bad(
        "a band that is not UTF-8", _put(lambda data: data.index(b"B8A"), b"\xff" * 3), "has a damaged header: 'utf-8'"
    ),
    _bad("codes of the CRS", _put(_values(CODES), b"\xff" * 32), "has (no CRS|the CRS .*|a damaged header.*)"),
    _bad("pixels of the size NaN", _put(_values(SCALE), struct.pack("<d", np.nan)), "has .+"),
    _bad("pixels of the size 1e-9", _put(_values(SCALE), struct.pack("<d", 1e-9)), "has the geotransform 1e-09, .+"),
    _bad("pixels of the size 1e30", _put(_values(SCALE), struct.pack("<d", 1e30)), "has the geotransform 1e\\+30, .+"),
    _unread("places of the strips", _put(_values(OFFSETS), b"\xff" * 64)),
    _unread("lengths of the strips", _put(_values(COUNTS), bytes(64)), "lacks 16 of its 512 blocks of pixels"),
    _unread("zeros over strips", _put(3_000_000, bytes(60_000))),
    _unread("noise over strips", _put(3_000_000, np.random.default_rng(1).bytes(60_000))),
    _unread("first byte of a strip", _put(lambda d: struct.unpack_from("<I", d, _values(OFFSETS)(d))[0], b"\0")),
    # Claims
    _bad("100,000 x 100,000", _set_tags({WIDTH: 100_000, HEIGHT: 100_000}), "has (100000 x 100000 pixels|a damaged).*"),
    _bad(
        "tiles of 100,000 x 100,000",
        _set_tags({TILE_WIDTH: 100_000, TILE_HEIGHT: 100_000}, _TILED),
        r"(is cut into blocks of 100000 x 100000 pixels, expected at most 1024 x 1024|has a damaged header.*)$",
    ),
    _bad(
        "tiles of 4,096 x 8,192",
        _set_tags({TILE_WIDTH: 8192, TILE_HEIGHT: 4096}, _TILED),
        "is cut into blocks of 4096 x 8192 pixels, expected at most 1024 x 1024$",
    ),
    _unread("100,000 rows a strip", _set_tags({ROWS_A_STRIP: 100_000})),
    # GDAL stops where the strip is full, within the last 258 bytes of it: no error, but no certain pixels either.
    Case("a strip that inflates to 200 MB", _bomb, same=False),
    _bad("a gigabyte long", _huge, "has 1,073,741,824 bytes, expected at most 134,217,728: a chip without compression"),
    # Bands, size, type
    _bad("1 band", _rewrite(_repeat(1)), "has 1 band, expected 13: B02 B03"),
    _bad("12 bands", _rewrite(_repeat(12)), "has 12 bands, expected 13: B02 B03"),
    _bad("14 bands", _rewrite(_repeat(14)), "has 14 bands, expected 13: B02 B03"),
    _bad("256 x 256", _rewrite(lambda x: x[:, :256, :256]), "has 256 x 256 pixels, expected 512 x 512"),
    _bad("511 x 512", _rewrite(lambda x: x[:, :511]), "has 511 x 512 pixels, expected 512 x 512"),
    _bad("complex64", _rewrite(_as("complex64")), "has complex64 pixels, expected integers or floats"),
    _bad("complex128", _rewrite(_as("complex128")), "has complex128 pixels, expected integers or floats"),
    _bad(
        "complex int16", _rewrite(lambda x: np.zeros_like(x, np.complex64), dtype="complex_int16"), "has complex_int16"
    ),
    # Place and date
    _bad("no CRS", _rewrite(crs=None), "has no CRS, expected a projected one with an EPSG code"),
    _bad("geographic CRS", _rewrite(crs="EPSG:4326"), "has the CRS EPSG:4326, expected a projected one"),
    _bad("CRS without a code", _rewrite(crs=_LOCAL_CRS), "has the CRS .*, expected a projected one with an EPSG code"),
    _bad("no transform", _rewrite(transform=None), "has no georeferencing: expected a geotransform of 10 m pixels"),
    _bad("rotated", _rewrite(transform=(9, 3, 3e5, 3, -9, 5.1e6)), "has the geotransform 9, 3, 300000, 3, -9, 5100000"),
    _bad("int8", _rewrite(_as("int8")), "has int8 without a scale in B02: the encoder was trained on a mean of 1369"),
    _bad("south up", _rewrite(transform=(10, 0, 3e5, 0, 10, 5e6)), "has the geotransform .* rows from north to south"),
    _bad("off the Earth", _rewrite(transform=(10, 0, 1e15, 0, -10, 1e15)), "has the bounds 1e\\+15, .* EPSG:32633"),
    _bad("no date", _rewrite(tags={"when": "2019-04-16"}), "has no `date` tag, expected date=YYYY-MM-DD"),
    _bad(
        "the year 1019", _rewrite(tags={"date": "1019-04-16"}), "has the `date` tag '1019-04-16', expected YYYY-MM-DD"
    ),
    _bad("no such day", _rewrite(tags={"date": "2019-02-30"}), "has the `date` tag '2019-02-30', expected YYYY-MM-DD"),
    _bad("a long date", _rewrite(tags={"date": "2019" * 9999}), r"has the `date` tag '(2019){15}\.\.\.', expected"),
    _bad(
        "date against name", _rewrite(tags={"date": "2019-04-17"}), "is named after 2019-04-16, but its `date` tag says"
    ),
    _bad(
        "wrong tile in the name", shutil.copyfile, "is named after tile 33TUM", "claytile_33TUM_20190416_v02_0001.tif"
    ),
    # Values
    _unfit("all NaN", _rewrite(_set(np.nan)), "has values that are not finite: 262144 in B02, .* 262144 in dem"),
    _unfit("one NaN", _rewrite(_set(np.nan, (11, 7, 9))), "has values that are not finite: 1 in vv "),
    # Power of less than 1 is none in whole numbers.
    *(
        _unfit(name, make, r"has values that are not finite: \d+ in vh, \d+ in vv ")
        for name, make in (
            ("all zeros", _rewrite(_set(0))),
            ("int16", _rewrite(_as("int16"))),
            ("uint16, predictor 2", _rewrite(_as("uint16"), predictor=2)),
            ("uint64", _rewrite(_as("uint64"))),
        )
    ),
    _unfit("infinity", _rewrite(_set(np.inf, (0, 511, 511))), "has values that are not finite: 1 in B02 "),
    _unread(
        "a fill value", _rewrite(_set(-3.4e38, (10, 5))), r"has values of up to 3\.4e\+38 in band 11, expected none"
    ),
    _unread("never finished", _unwritten, "lacks 512 of its 512 blocks of pixels: it was not written to its end"),
    _unread(
        "sparse",
        _rewrite(_set(0, (slice(None), slice(100, 200))), sparse_ok=True),
        "lacks 100 of its 512 blocks of pixels: .* or was written as a sparse file; write it again",
    ),
    # Good ones
    Case("BigTIFF", _rewrite(bigtiff="yes")),
    Case("big-endian", _rewrite(endianness="big")),
    Case("directory at the start", _directory_first),
    Case("BigTIFF, directory at the end", _rewrite(bigtiff="yes", late=True)),
    Case("tiles of 256 x 256", _TILED),
    Case("one tile of 1024 x 1024", _rewrite(tiled=True, blockxsize=1024, blockysize=1024)),
    Case("one strip", _rewrite(blockysize=512)),
    Case("bands apart", _rewrite(interleave="band")),
    Case("LZW", _rewrite(compress="lzw")),
    Case("ZSTD", _rewrite(compress="zstd")),
    Case("LZMA", _rewrite(compress="lzma", lzma_preset=0)),
    Case("PackBits", _rewrite(compress="packbits")),
    Case("no compression", _rewrite(compress="none")),
    Case("horizontal predictor", _rewrite(predictor=2)),
    Case("floating-point predictor", _rewrite(predictor=3)),
    Case("overviews", _rewrite(overviews=True, blockysize=16)),
    Case("float64", _rewrite(_as("float64"))),
    Case("no descriptions", _rewrite(names=False)),
    Case("name with spaces", shutil.copyfile, file="claytile_a b (1).tif"),
    Case("name in Unicode", shutil.copyfile, file="claytile_Žižkov_数.tif"),
    Case("name with dots", shutil.copyfile, file="claytile_..%2e%2e#?.tif"),
    Case("folder with dots", shutil.copyfile, file="..a/b..c/claytile_dots.tif"),
    # Twice the same
    _bad("the same name in another folder", shutil.copyfile, "is a copy of .*dots.tif", "b/claytile_dots.tif"),
)
"""Every kind: a tile of good chips and these comes out with its good chips as if these were not there."""
