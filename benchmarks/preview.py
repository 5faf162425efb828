"""Previews of many tiles: how large the page is, how long it takes to write it, and until a browser can be used."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import daskembed
from benchmarks.common import Row
from daskembed.errors import InputError
from daskembed.explore.preview import write_preview
from daskembed.explore.tiles import choose
from daskembed.geo.mgrs import check_tile, square_of
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
DEADLINE = 120_000
"""Milliseconds for a page."""


def run(*, smallest: bool = False) -> list[Row]:
    """1,000 tiles of 441 chips at `mean`, 100 tiles at `patch`, and two tiles of patches as long as the model's."""
    cases: list[tuple[str, int, int, tuple[int, ...]]] = [
        ("mean", 1000, 21, (768,)),
        ("patch, short vectors", 100, 21, (16, 16, 32)),
        ("patch", 2, 21, (16, 16, 768)),
    ]
    if smallest:
        cases = [("mean", 3, 2, (8,)), ("patch", 1, 2, (2, 2, 8))]
    return [_measure(*case, visits=1 if smallest else 3) for case in cases]


def _measure(level: str, tiles: int, side: int, shape: tuple[int, ...], *, visits: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        output, page = Path(folder) / "output", Path(folder) / "page"
        names = list(islice(tiles_of_europe(), tiles))
        storage = Storage(str(output))
        write_published(output, names, side=side, shape=shape, vectors=_vectors(shape))
        clocks = [(time.perf_counter(), time.process_time())]
        basis = daskembed.principal_components(str(output))
        clocks.append((time.perf_counter(), time.process_time()))
        made = write_preview(storage, choose(storage), basis, Storage(str(page)), own=basis)
        clocks.append((time.perf_counter(), time.process_time()))
        found, written = np.diff(clocks, axis=0)
        sizes = {path: path.stat().st_size for path in page.rglob("*") if path.is_file()}
        data = [size for path, size in sizes.items() if path.parent.name == "data" and path.name != "index.js"]
        row: Row = {
            "level": level,
            "tiles": tiles,
            "vectors": made.vectors,
            "GB read": round(3 * sum(path.stat().st_size for path in output.glob("*.gpq")) / 1e9, 2),
            # Of the clock, and of processors: on a busy machine the second says more.
            "basis s, CPU s": f"{found[0]:.1f}, {found[1]:.1f}",
            "page s, CPU s": f"{written[0]:.1f}, {written[1]:.1f}",
            "index kB": round((page / "data" / "index.js").stat().st_size / 1e3),
            "a tile kB": round(sum(data) / len(data) / 1e3),
            "all MB": round(sum(sizes.values()) / 1e6, 1),
            "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        }
        shutil.rmtree(output)
        return row | _browse(page, visits)


def _browse(page: Path, visits: int) -> Row:
    """Seconds until the page can be used, and until a tile that is chosen then is drawn; the best of some visits."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {"usable s": "no playwright", "tile s": ""}
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        return {"usable s": "no Chromium", "tile s": ""}
    usable, tile = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(ARGUMENTS), timeout=DEADLINE)
        for _ in range(visits):
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            tab = context.new_page()
            tab.set_default_timeout(DEADLINE)
            start = time.perf_counter()
            tab.goto((page / "index.html").as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            usable.append(time.perf_counter() - start)
            tab.wait_for_function("() => daskembed.map.areTilesLoaded()")
            start = time.perf_counter()
            tab.evaluate(_GO)
            tab.wait_for_function("() => +document.documentElement.dataset.drawn && daskembed.map.areTilesLoaded()")
            tile.append(time.perf_counter() - start)
            context.close()
        browser.close()
    return {"usable s": round(min(usable), 2), "tile s": round(min(tile), 2)}


_GO = """() => {
  const [west, south, east, north] = daskembed.tiles[0].box;
  daskembed.map.jumpTo({center: [(west + east) / 2, (south + north) / 2], zoom: 9});
}"""


def tiles_of_europe() -> Iterator[str]:
    """Ids of squares side by side, as those of a campaign, in whole zones."""
    for zone in range(31, 39):
        for band in "STUV":
            for column in "ABCDEFGHJKLMNPQRSTUVWXYZ":
                for row in "ABCDEFGHJKLMNPQRSTUV":
                    tile = f"{zone:02d}{band}{column}{row}"
                    try:
                        square = square_of(check_tile(tile))
                    except InputError:
                        continue
                    if 300_000 <= square.west < 700_000:
                        yield tile


def _vectors(shape: Sequence[int]) -> Any:
    """Seeded noise on a few directions, as of land that changes slowly; quickly made."""

    def make(tile: str, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        random = np.random.default_rng(int.from_bytes(tile.encode(), "big"))
        inner = (rows, *shape[:-1])
        directions = np.random.default_rng(0).standard_normal((6, shape[-1]), np.float32)
        found = random.standard_normal((*inner, 6), np.float32) @ directions
        found += random.standard_normal(shape[-1], np.float32) * np.float32(0.3)
        return found

    return make
