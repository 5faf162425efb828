"""Blocks of files: fetched once, neighbours together, decoded once, kept within bounds."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from web import Web

from daskembed.errors import ChipError
from daskembed.sources import keeping
from daskembed.sources.stac import blocks
from daskembed.sources.stac.blocks import File

PIXELS = np.random.default_rng(0).integers(1, 9000, (512, 640), np.uint16)


def tiff(path: Path, pixels: np.ndarray = PIXELS, **more: Any) -> bytes:
    profile = {"driver": "COG", "blocksize": 128, "compress": "deflate", "overviews": "none", **more}
    with rasterio.open(
        path,
        "w",
        width=pixels.shape[1],
        height=pixels.shape[0],
        count=1,
        dtype=pixels.dtype,
        crs="EPSG:32633",
        transform=from_origin(300_000, 5_100_000, 10, 10),
        **profile,
    ) as file:
        file.write(pixels, 1)
    return path.read_bytes()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with Web({"a.tif": tiff(tmp_path / "a.tif")}) as server:
        yield server


def test_each_block_is_fetched_once_also_by_many_threads(web: Web) -> None:
    file = blocks.start(f"{web.url}/a.tif", ()).result()
    assert blocks.start(f"{web.url}/a.tif", ()).result() is file
    windows = [(slice(y, y + 150), slice(x, x + 150)) for y in range(0, 350, 50) for x in range(0, 490, 70)]
    with ThreadPoolExecutor(8) as pool:
        for (rows, cols), found in zip(windows, pool.map(lambda window: file.read(*window), windows), strict=True):
            np.testing.assert_array_equal(found, PIXELS[rows, cols])
    header, *rest = sorted(web.requests, key=lambda one: one[1])
    assert header[1:] == (0, 32 * 2**10)
    size = len(web.files["a.tif"])
    wanted = sum(end - start for _, start, end in rest)
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(rest)), "no byte twice"
    assert wanted <= size


def test_neighbours_travel_in_one_request(web: Web) -> None:
    file = blocks.start(f"{web.url}/a.tif", ()).result()
    web.requests.clear()
    np.testing.assert_array_equal(file.read(slice(130, 250), slice(0, 640)), PIXELS[130:250])
    assert len(web.requests) == 1, "a row of five blocks"
    web.requests.clear()
    file.read(slice(300, 500), slice(130, 380))
    assert len(web.requests) == 2, "two blocks of each of two rows"
    needed = sum(end - start for _, start, end in web.requests)
    assert needed < 1.05 * 4 * 128 * 128 * 2


def test_all_of_a_window_is_on_its_way_before_the_first_is_waited_for(web: Web) -> None:
    file = blocks.start(f"{web.url}/a.tif", ()).result()
    together, seen = threading.Barrier(3), []

    def wait(handler: Any) -> bool:
        seen.append(handler.headers["Range"])
        together.wait(30)
        return False

    web.fault = wait
    for row in range(3):
        file.begin(slice(row * 128, row * 128 + 10), slice(0, 10))
    np.testing.assert_array_equal(file.read(slice(0, 384), slice(0, 10)), PIXELS[:384, :10])
    assert len(seen) == 3


def test_what_is_kept_is_bounded_and_right_without_room(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    file = blocks.start(f"{web.url}/a.tif", ()).result()
    kept = keeping.Keeping[Any](lambda block: block.nbytes)
    monkeypatch.setattr(blocks, "_decoded", kept)
    monkeypatch.setattr(keeping, "allowance", lambda: 3 * 128 * 128 * 2)
    monkeypatch.setattr(blocks, "MOST_FETCHED", 0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: file.read(slice(row, row + 100), slice(0, 640)), range(0, 400, 25)))
    for row, pixels in zip(range(0, 400, 25), found, strict=True):
        np.testing.assert_array_equal(pixels, PIXELS[row : row + 100])
    assert sum(kept._sizes.values()) <= 3 * 128 * 128 * 2


def test_blocks_that_nobody_asks_for_are_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a chip whose other bands turned out to be damaged."""
    file = blocks.start(f"{web.url}/a.tif", ()).result()
    blocks._coming.clear()
    file.begin(slice(0, 384), slice(0, 640))
    fetched = [*blocks._coming.values()]
    assert len(fetched) == 15
    sizes = [len(one.result(60)) for one in fetched]
    monkeypatch.setattr(blocks, "MOST_FETCHED", sum(sizes[-5:]))
    file.begin(slice(384, 500), slice(0, 640))
    assert len(blocks._coming) == 10
    np.testing.assert_array_equal(file.read(slice(0, 512), slice(0, 640)), PIXELS)


@pytest.mark.parametrize(
    "how",
    [
        {"driver": "GTiff", "compress": None, "blocksize": None},
        {"driver": "GTiff", "compress": "lzw", "predictor": 2, "blocksize": None, "bigtiff": "yes"},
        {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "blockxsize": 256, "blockysize": 256},
        {"compress": "zstd", "predictor": "yes"},
    ],
    ids=["strips", "BigTIFF", "JPEG 2000", "ZSTD"],
)
def test_files_of_other_kinds(how: dict[str, Any], tmp_path: Path) -> None:
    kinds = {key: value for key, value in how.items() if value is not None}
    made = {"overviews": None, **({"compress": None} if how.get("driver") == "JP2OpenJPEG" else {}), **kinds}
    profile = {key: value for key, value in made.items() if value is not None}
    path = tmp_path / "file.jp2"
    with rasterio.open(
        path,
        "w",
        **{
            "driver": "COG",
            "width": 640,
            "height": 512,
            "count": 1,
            "dtype": "uint16",
            "crs": "EPSG:32633",
            "transform": from_origin(300_000, 5_100_000, 10, 10),
            **profile,
        },
    ) as file:
        file.write(PIXELS, 1)
    with Web({"b": path.read_bytes()}) as web:
        opened = blocks.start(f"{web.url}/b", ()).result()
        np.testing.assert_array_equal(opened.read(slice(100, 300), slice(5, 630)), PIXELS[100:300, 5:630])
        np.testing.assert_array_equal(opened.read(slice(0, 512), slice(0, 640)), PIXELS)


def test_blocks_that_were_never_written_are_nodata(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=512,
        height=512,
        count=1,
        dtype="float32",
        nodata=-32768,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        SPARSE_OK=True,
        crs="EPSG:32633",
        transform=from_origin(300_000, 5_100_000, 10, 10),
    ) as file:
        file.write(np.ones((256, 256), np.float32), 1, window=((0, 256), (0, 256)))
    found = blocks.start(str(path), ()).result().read(slice(0, 512), slice(0, 512))
    assert (found[:256, :256] == 1).all()
    assert (found[256:] == -32768).all()


def test_what_is_no_image_is_said_to_be_none(web: Web) -> None:
    web.files["page.html"] = b"<html>" * 100
    with pytest.raises(ChipError, match="is neither TIFF nor JPEG 2000: it starts with b'<html><h'"):
        blocks.start(f"{web.url}/page.html", ()).result()
    web.files["empty.tif"] = b""
    with pytest.raises(ChipError, match="is empty"):
        blocks.start(f"{web.url}/empty.tif", ()).result()


def test_a_file_that_was_given_up_is_closed_and_opened_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    first = blocks.start(f"{web.url}/a.tif", ()).result()
    monkeypatch.setattr(blocks, "MOST_FILES", 1)
    web.files["b.tif"] = web.files["a.tif"]
    other: File = blocks.start(f"{web.url}/b.tif", ()).result()
    assert not first._free
    np.testing.assert_array_equal(other.read(slice(0, 9), slice(0, 9)), PIXELS[:9, :9])
    assert blocks.start(f"{web.url}/a.tif", ()).result() is not first
    np.testing.assert_array_equal(first.read(slice(0, 9), slice(0, 9)), PIXELS[:9, :9])
    assert not first._free


def test_a_file_given_up_while_it_is_opened_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets that are left to the garbage collector crash GDAL."""
    for name in ("first.tif", "second.tif"):
        with rasterio.open(tmp_path / name, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8") as file:
            file.write(np.full((1, 64, 64), 7, np.uint8))
    go, fetch = threading.Event(), blocks.fetch

    def slowly(url: str, *args: Any, **more: Any) -> Any:
        assert not url.endswith("first.tif") or go.wait(30)
        return fetch(url, *args, **more)

    monkeypatch.setattr(blocks, "fetch", slowly)
    monkeypatch.setattr(blocks, "MOST_FILES", 1)
    first = blocks.start(str(tmp_path / "first.tif"), ())
    blocks.start(str(tmp_path / "second.tif"), ()).result()
    go.set()
    pixels = first.result().read(slice(0, 64), slice(0, 64))
    assert (pixels == 7).all()
    assert first.result()._closed
    assert not first.result()._free
