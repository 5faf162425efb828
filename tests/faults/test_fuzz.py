"""Any bytes in place of a chip and any text in place of a tile: only the package's own errors come out."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from daskembed.errors import ChipError, InputError
from daskembed.geo.mgrs import check_tile, parse_tiles, read_tiles
from daskembed.sources.geotiff import BANDS, read_headers
from daskembed.sources.geotiff_header import named_date, read_header
from daskembed.sources.geotiff_pixels import decode_chip
from daskembed.sources.listing import Listing
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage

TILE = "33TUL"
NAME = f"{TILE}/claytile_{TILE}_20190416_v02_0001.tif"
IN_ORDER = tuple(range(1, 14))
LONG_SECONDS = 300
"""Of the two long forms together."""

LAYOUTS = {
    "directory first": {},
    "directory last": {"late": True},
    "BigTIFF": {"bigtiff": "yes"},
    "big-endian": {"endianness": "big"},
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256, "predictor": 3},
    "bands apart": {"interleave": "band", "blockysize": 128},
    "no compression": {"compress": "none", "dtype": "uint8", "blockysize": 512},
    "LZW": {"compress": "lzw", "predictor": 2, "blockysize": 64},
}

Edit = tuple[str, float, bytes]
"""What to do, where (0 to 1; most of that is in the first 6 KiB or the last 2), and with what bytes."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    # rasterio logs GDAL's messages from a callback, which cannot raise: one that is not UTF-8 is lost there.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def write_small(path: Path, *, late: bool = False, **profile) -> bytes:
    """A whole chip of few bytes: each band has one value."""
    profile = {"dtype": "float32", "compress": "deflate", "interleave": "pixel", "blockysize": 1, **profile}
    if profile.get("tiled"):
        profile["blockysize"] = profile["blockxsize"]
    pixels = np.ones((13, 512, 512), profile["dtype"]) * np.arange(13, dtype=profile["dtype"])[:, None, None]
    shape = {"count": 13, "height": 512, "width": 512}
    place = {"crs": "EPSG:32633", "transform": from_origin(299_995, 5_100_005, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **profile) as file:
        if late:
            file.write(pixels)
        file.descriptions = BANDS
        file.update_tags(date="2019-04-16")
        if not late:
            file.write(pixels)
    return path.read_bytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    found = [write_small(folder / f"{number}.tif", **layout) for number, layout in enumerate(LAYOUTS.values())]
    for data in found:
        np.testing.assert_array_equal(decode_chip(data, IN_ORDER)[:, 0, 0], range(13))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / TILE).mkdir()
    return path


def damage(data: bytes, edits: Sequence[Edit]) -> bytes:
    changed = bytearray(data)
    for kind, where, new in edits:
        head, tail = min(6144, len(changed)), max(0, len(changed) - 2048)
        if where < 0.6:
            start = int(where / 0.6 * head)
        elif where < 0.8:
            start = tail + int((where - 0.6) / 0.2 * (len(changed) - tail))
        else:
            start = int((where - 0.8) / 0.2 * len(changed))
        if kind == "put":
            changed[start : start + len(new)] = new
        elif kind == "flip" and start < len(changed):
            changed[start] ^= 1 << new[0] % 8
        elif kind == "insert":
            changed[start:start] = new
        elif kind == "cut":
            del changed[start:]
        elif kind == "drop":
            del changed[start : start + len(new)]
    return bytes(changed)


KINDS = ("flip", "flip", "put", "put", "insert", "drop", "cut")
EDITS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def refusal(error: type[Exception], function: Callable[[], object]) -> str | None:
    """The message of the error, one line of bounded length, or None if there was none; any other error goes on."""
    try:
        function()
    except error as refused:
        message = str(refused)
    else:
        return None
    assert message
    assert "\n" not in message
    assert len(message) < 1000
    return message


def check_damaged(folder: Path, data: bytes) -> str:
    """Index and decode: what came of it, and nothing but a reason if it is bad."""
    (folder / NAME).write_bytes(data)
    storage = Storage(str(folder))
    (entry,) = storage.entries(TILE)
    outcome = "bad header" if refusal(ChipError, lambda: read_header(storage, entry, TILE)) else "good"
    index = read_headers(Listing("geotiff", storage, TILE, (entry,)), Reading(), readers=1)
    reason = index["quarantined"][0]
    if reason is None:
        assert outcome == "good"
        assert np.isfinite([index["lat"][0], index["lon"][0]]).all()
        assert index.geometry[0].is_valid
        assert index["date"][0] is not None
    elif outcome == "good":
        outcome = "bad place"
    # Also where the header is bad: a chip may change after it was indexed.
    found: list[np.ndarray] = []
    if refusal(
        ChipError, lambda: found.append(decode_chip(data, index["chip"][0].numbers if index["chip"][0] else IN_ORDER))
    ):
        return f"{outcome}, bad pixels"
    (pixels,) = found
    assert pixels.shape == (13, 512, 512)
    assert pixels.dtype.kind in "iuf"
    return f"{outcome}, pixels"


@given(which=st.integers(0, len(LAYOUTS) - 1), edits=EDITS)
@settings(max_examples=400)
def test_damaged_chips(seeds, folder, which, edits):
    check_damaged(folder, damage(seeds[which], edits))


@given(data=st.binary(max_size=200), sign=st.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
@settings(max_examples=200)
def test_any_bytes(folder, data, sign):
    assert check_damaged(folder, sign + data) == "bad header, bad pixels"


def peak_megabytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS * 2)
def test_damaged_chips_for_long(seeds, folder):
    """Prints how many inputs it ran and what came of them: `pytest -s`."""
    outcomes: Counter[str] = Counter()
    before, end = peak_megabytes(), time.monotonic() + LONG_SECONDS * 0.8
    for seed in itertools.count():
        rng = random.Random(seed)
        edits = [
            (rng.choice(KINDS), rng.random(), rng.choice([rng.randbytes(rng.randint(1, 8)), b"\xff" * 4, bytes(4)]))
            for _ in range(rng.randint(1, 6))
        ]
        try:
            outcomes[check_damaged(folder, damage(rng.choice(seeds), edits))] += 1
        except Exception as error:
            raise AssertionError(f"with the seed {seed}: {error!r}") from error
        if time.monotonic() > end:
            break
    grown = peak_megabytes() - before
    sys.stdout.write(f"\n{outcomes.total()} damaged chips: {dict(outcomes)}; peak memory grew by {grown} MB")
    # The largest block that is let through is 1024 x 1024 pixels of 13 x 8 bytes.
    assert grown < 600


# Text


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
TILE_LIKE = st.text("0123456789CDEFGHJKLMNPQRSTUVWXYZabcxyz \t#,;/.\0\n\r\ufeff", max_size=12)
NAME_LIKE = st.from_regex(r"(a/)?claytile_[0-9]{2}[A-Z]{3}_\d{8}_v02_\d{4}\.tif", fullmatch=True)


def check_text(text: str) -> None:
    """Whatever the text: a tile id in its one form, or an error that shows what was found."""
    if message := refusal(InputError, lambda: check_tile(text)):
        assert repr(text) in message
        return
    tile = check_tile(text)
    assert re.fullmatch("[0-9]{2}[C-X][A-Z][A-V]", tile)
    assert tile == text.strip().upper() == check_tile(tile)


def check_list(lines: list[str]) -> None:
    if message := refusal(InputError, lambda: parse_tiles(lines, name="list")):
        assert message.startswith(("list, line ", "list names no tile"))
        return
    tiles = parse_tiles(lines, name="list")
    assert [check_tile(tile) for tile in tiles] == list(tiles)
    assert len(set(tiles)) == len(tiles) > 0


def check_value(text: str) -> None:
    # What was typed is shown as it is, however long.
    with contextlib.suppress(InputError):
        assert read_tiles(text)


def check_name(path: str) -> None:
    found = named_date(path)
    match = re.fullmatch(r"claytile_[0-9]{2}[A-Z]{3}_([0-9]{8})_v02_[0-9]{4}\.tif", path.rpartition("/")[2])
    wanted: date | None = None
    if match is not None:
        try:
            wanted = datetime.strptime(match[1], "%Y%m%d").date()
        except ValueError:
            wanted = None
    assert found == wanted


@given(ANY_TEXT | TILE_LIKE)
@settings(max_examples=500)
def test_any_text_as_a_tile(text):
    check_text(text)


@given(st.lists(ANY_TEXT | TILE_LIKE, max_size=6))
@settings(max_examples=300)
def test_any_lines_as_a_list(lines):
    check_list(lines)


@given(ANY_TEXT | TILE_LIKE | st.text("27WXN/.", min_size=200, max_size=6000))
@example("W" * 300)
@example("W/" * 3000)
@settings(max_examples=300)
def test_any_value_of_the_flag(text):
    check_value(text)


@given(ANY_TEXT | NAME_LIKE)
@settings(max_examples=300)
def test_any_name_of_a_file(path):
    check_name(path)


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS * 2)
def test_text_for_long(tmp_path, monkeypatch):
    """Prints how many inputs it ran: `pytest -s`."""
    monkeypatch.chdir(tmp_path)
    alphabets = [
        [chr(code) for code in range(256)],
        list("0123456789CWXNabcwxn _#,;/.\0\n\r\ufeff\u0661\udc80\u00df\u0131\u017f"),
    ]
    end = time.monotonic() + LONG_SECONDS * 0.2
    for seed in itertools.count():
        rng = random.Random(seed)
        texts = ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(0, 12))) for _ in range(4)]
        digits = "".join(rng.choices("0123456789" if rng.random() < 0.9 else "01\u0660\u0661\u00b2", k=8))
        try:
            check_list(texts)
            check_value(texts[0])
            check_text(texts[1])
            check_name(texts[2])
            check_name(f"a/claytile_33TUL_{digits}_v02_0001.tif")
        except Exception as error:
            raise AssertionError(f"with the seed {seed}: {error!r}") from error
        if time.monotonic() > end:
            break
    sys.stdout.write(f"\n{5 * (seed + 1)} texts")
