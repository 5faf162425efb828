"""The page of a preview in a browser, from disk and from the server: no error, and nobody outside is asked."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daskembed
from daskembed.output.state import read_receipt, receipt_path, write_receipt
from daskembed.storage.stores import Storage
from daskembed.testing import write_published
from daskembed.testing.loopback import FileServer

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, by which a browser is driven, is not installed"
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at pages with")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHOTS = os.environ.get("DASKEMBED_SCREENSHOTS")
"""Folder for pictures of what the tests saw, if they are to be kept."""
REAL = Path(__file__).parents[2] / "shared" / "data" / "published"
TILE, DAYS = "33TUL", ("2024-06-01", "2024-07-01")
DEADLINE = 120_000
"""Milliseconds for each wait: a busy machine is slow."""


def land(tile: str, rows: int) -> np.ndarray:
    """Every third chip is like the others of its kind; kinds change places on the second day."""
    rng = np.random.default_rng(int.from_bytes(tile.encode(), "big"))
    kinds = np.eye(8)[(np.arange(rows) // 2 + np.arange(rows) % 2) % 3] * 4
    return (kinds + rng.normal(size=(rows, 8)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles of 16 chips on two days, of which one chip is quarantined and one rejected."""
    folder = tmp_path_factory.mktemp("mean")
    write_published(folder / "output", [TILE, "33TVL"], side=4, shape=(8,), days=DAYS, vectors=land)
    storage = Storage(str(folder / "output"))
    receipt = read_receipt(storage, receipt_path(TILE, "001"))
    bad = {"s3://made-up/<img src=x onerror=alert(1)>.tif": "is cut off <script>alert(1)</script>"}
    write_receipt(storage, replace(receipt, quarantined=bad, rejected={"s3://made-up/b.tif": "cloud 0.7"}))
    lost = replace(receipt, tile="33TVM", files=[], chips=0, quarantined={"s3://made-up/c.tif": "has two bands"})
    write_receipt(storage, lost)
    daskembed.preview(str(folder / "output"), to=str(folder / "page"))
    return folder / "page"


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile of 4 chips of 4 x 4 patches."""
    folder = tmp_path_factory.mktemp("patch")

    def fields(tile: str, rows: int) -> np.ndarray:
        return land(tile, rows * 16).reshape(rows, 4, 4, 8)

    write_published(folder / "output", [TILE], side=2, shape=(4, 4, 8), vectors=fields)
    daskembed.preview(str(folder / "output"), to=str(folder / "page"))
    return folder / "page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=ARGUMENTS, timeout=DEADLINE)
        yield started
        started.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Opens a page; when the test is over, there must have been no error and no request to anybody else."""
    contexts, wrong = [], []

    def open_page(url: str, *, width: int = 800, scheme: str = "light", motion: str = "reduce") -> Any:
        # As each picture is drawn without a GPU, most pages are small, and go to a place without a flight.
        context = browser.new_context(
            viewport={"width": width, "height": 600 if width == 800 else 800},
            color_scheme=scheme,
            reduced_motion=motion,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(DEADLINE)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)

        def ask(route: Any) -> None:
            asked = route.request.url
            if asked.startswith((url.rpartition("/")[0], "data:", "blob:")):
                route.continue_()
            else:
                wrong.append(f"asked for {asked}")
                route.abort()

        context.route("**/*", ask)
        page.goto(url)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for number, context in enumerate(contexts):
        if SHOTS:
            context.pages[0].screenshot(path=Path(SHOTS) / f"{request.node.name}-{number}.png")
        context.close()
    assert wrong == []


@contextmanager
def served(folder: Path, how: str) -> Iterator[str]:
    if how == "disk":
        yield (folder / "index.html").as_uri()
    else:
        with FileServer(folder) as server:
            yield f"{server.url}/index.html"


def pixel(page: Any, tile: int, chip: int, u: float = 0.5, v: float = 0.5) -> dict[str, float]:
    """Where a place in a chip is on the screen."""
    found: dict[str, float] = page.evaluate(
        """([tile, chip, u, v]) => {
          const [a, b, c] = daskembed.loaded.get(tile).chips[chip].ring;
          return daskembed.map.project([a[0] + u * (b[0] - a[0]) + v * (c[0] - b[0]),
                                        a[1] + u * (b[1] - a[1]) + v * (c[1] - b[1])]);
        }""",
        [tile, chip, u, v],
    )
    return found


def colours(page: Any, places: Iterable[dict[str, float]]) -> list[list[int]]:
    """Of pixels of the map, which is drawn once."""
    found: list[list[int]] = page.evaluate(
        """places => new Promise(resolve => {
          daskembed.map.once("render", () => {
            const gl = daskembed.map.painter.context.gl, pixel = new Uint8Array(4), ratio = devicePixelRatio;
            resolve(places.map(({x, y}) => {
              gl.readPixels(x * ratio, gl.drawingBufferHeight - y * ratio, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
              return [...pixel.slice(0, 3)];
            }));
          });
          daskembed.map.triggerRepaint();
        })""",
        [*places],
    )
    return found


def swatch(page: Any, where: str) -> list[int]:
    """Colour of a swatch, as soon as it has one."""
    page.wait_for_function("where => document.querySelector(where).style.background !== ''", arg=where)
    said: str = page.evaluate("where => getComputedStyle(document.querySelector(where)).backgroundColor", where)
    return [int(one) for one in re.findall(r"[\d.]+", said)[:3]]


def go_to(page: Any, tile: str) -> None:
    """To a tile of the list; waits until the map is at rest."""
    page.get_by_role("button", name=tile).click()
    page.locator("#details h2", has_text=f"Tile {tile}").wait_for()
    page.wait_for_function("() => !daskembed.map.isMoving() && daskembed.map.areTilesLoaded()")


def wait_for_colour(page: Any, place: dict[str, float], wanted: list[int]) -> None:
    for _ in range(200):
        (found,) = colours(page, [place])
        if np.abs(np.subtract(found, wanted)).max() <= 2:
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{place} has the colour {found}, expected {wanted}")


def told(page: Any, tile: int, chip: int) -> list[int]:
    """The colour that the page is told of a chip."""
    return list(bytes.fromhex(page.evaluate("([t, c]) => daskembed.loaded.get(t).chips[c].colour", [tile, chip])))


@pytest.mark.parametrize("how", ["disk", "server"])
@pytest.mark.parametrize("width", [1280, 400])
def test_click_slider_and_search(mean: Path, opened: Opened, how: str, width: int) -> None:
    with served(mean, how) as url:
        page = opened(url, width=width, motion="no-preference" if how == "disk" else "reduce")
        assert not page.locator("#untrained").is_visible()
        assert page.locator("#tiles li").count() == 3
        go_to(page, TILE)
        assert page.locator("#details h2").inner_text() == f"Tile {TILE}"
        page.keyboard.press("Escape")
        assert not page.locator("#details").is_visible()
        # Rows alternate between the days: the second day's are shown first.
        place = pixel(page, 0, 1, 0.3, 0.3)
        wait_for_colour(page, place, told(page, 0, 1))
        page.locator("#date").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#day").inner_text() == DAYS[0]
        wait_for_colour(page, place, told(page, 0, 0))
        page.mouse.click(**place)
        details = page.locator("#details")
        assert DAYS[0] in details.inner_text()
        # LON,LAT as the command takes it.
        lon, lat = details.locator("dd").last.inner_text().split(",")
        ring = page.evaluate("daskembed.loaded.get(0).chips[0].ring")
        assert (float(lon), float(lat)) == pytest.approx(np.add(ring[0], ring[2]) / 2, abs=1e-5)
        # The answer comes before the path.
        source = page.locator("#about dl").first.inner_text().replace("\n", "")
        assert source.endswith(f"claytile_{TILE}_0001_{DAYS[0]}.tif")
        assert (
            page.evaluate("document.querySelector('#hits').compareDocumentPosition(document.querySelector('#about'))")
            & 4
        )
        page.wait_for_selector("#hits li")
        hits = page.evaluate("() => [...document.querySelectorAll('#hits button')].map(one => one.title)")
        vectors = {f"{TILE}": land(TILE, 32), "33TVL": land("33TVL", 32)}
        kinds = {
            f"s3://made-up/chips/{tile}/claytile_{tile}_{n // 2 + 1:04d}_{DAYS[n % 2]}.tif": int(one.argmax())
            for tile, found in vectors.items()
            for n, one in enumerate(found)
        }
        assert len(hits) == 3
        assert page.locator("#hits p").inner_text() == (
            "Of 64 vectors the 3 of the highest cosine with this one, after taking out the mean of all. A twentieth is "
            "shown, 3 at least and 50 at most: daskembed search -k N gives more."
        )
        assert page.locator("#hits ol canvas").first.bounding_box()["y"] < 700  # of 800: seen without scrolling
        assert {kinds[url] for url in hits} == {kinds[f"s3://made-up/chips/{TILE}/claytile_{TILE}_0001_{DAYS[0]}.tif"]}
        about = page.locator("#about").inner_text()
        assert "clay-v0 made-up" in about
        assert "2 set aside" in about
        page.keyboard.press("Escape")
        assert not page.locator("#hits").is_visible()
        # Nothing sticks out sideways.
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "() => document.querySelector('#inside').scrollWidth <= document.querySelector('#inside').clientWidth"
        )


def test_names_and_reasons_are_shown_as_text(mean: Path, opened: Opened) -> None:
    page = opened((mean / "index.html").as_uri())
    go_to(page, TILE)
    page.locator("#about summary", has_text="set aside").click()
    said = page.locator("#about .bad").first.inner_text()
    assert "<img src=x onerror=alert(1)>.tif: is cut off <script>alert(1)</script>" in said
    assert "its place is not known" in said
    assert page.locator("#about img, #about script").count() == 0
    go_to(page, "33TVM")
    page.locator("#about summary", has_text="set aside").click()
    assert "s3://made-up/c.tif: has two bands" in page.locator("#about .bad").first.inner_text()


def test_by_keyboard_alone(mean: Path, opened: Opened) -> None:
    page = opened((mean / "index.html").as_uri())
    reached: list[list[Any]] = []
    while len(reached) < 50:
        page.keyboard.press("Tab")
        one = page.evaluate(
            """() => { const one = document.activeElement, box = one.getBoundingClientRect();
              return one === document.body ? null : [one.id || one.className, getComputedStyle(one).outlineStyle,
                one.getAttribute("aria-label") || one.textContent || one.labels?.[0]?.textContent || "",
                box.width > 0]; }"""
        )
        if one is None or one in reached[:1]:
            break
        reached.append(one)
    found = [name for name, *_ in reached]
    assert found[0] == "maplibregl-canvas"
    assert {"theme", "fold", "date", "similar", "set-aside", "online"} <= set(found)
    for name, outline, label, seen in reached:
        assert outline != "none", f"{name} has the focus and does not show it"
        assert label.strip(), f"{name} has no name"
        assert seen
    go_to(page, TILE)
    page.keyboard.press("Escape")
    page.evaluate("() => daskembed.map.jumpTo({center: daskembed.loaded.get(0).chips[1].ring[0], zoom: 11})")
    page.wait_for_function("() => daskembed.map.areTilesLoaded()")
    assert page.evaluate("() => document.activeElement.className") == "maplibregl-canvas"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => !daskembed.map.isMoving() && daskembed.map.areTilesLoaded()")
    page.keyboard.press("Enter")
    page.wait_for_selector("#details:not([hidden])")
    assert page.evaluate("() => document.activeElement.id") == "details"
    first = page.locator("#details dl").inner_text()
    page.get_by_role("button", name="Next chip").press("Enter")
    assert page.locator("#details dl").inner_text() != first
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.className") == "maplibregl-canvas"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_patches(patch: Path, opened: Opened, scheme: str) -> None:
    page = opened((patch / "index.html").as_uri(), scheme=scheme)
    assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
    page.wait_for_function("() => daskembed.map.areTilesLoaded()")
    kinds = land(TILE, 64).argmax(axis=1).reshape(4, 4, 4)
    places = {(row, col): pixel(page, 0, 3, (col + 0.5) / 4, (row + 0.5) / 4) for row in range(4) for col in range(4)}
    for _ in range(200):
        seen = dict(zip(places, colours(page, places.values()), strict=True))
        if len({str(np.round(np.array(one) / 30)) for one in seen.values()}) >= 3:
            break
        page.wait_for_timeout(50)
    of_kind: dict[int, list[list[int]]] = {}
    for (row, col), one in seen.items():
        of_kind.setdefault(int(kinds[3, row, col]), []).append(one)
    # Three kinds differ in two directions: blue is noise.
    means = np.array([np.mean(of_kind[kind], axis=0)[:2] for kind in range(3)])
    for kind, ones in of_kind.items():
        assert np.abs(np.array(ones)[:, :2] - means[kind]).max() < 40
    assert min(np.abs(means[one] - means[other]).max() for one, other in ((0, 1), (0, 2), (1, 2))) > 80
    page.mouse.click(**places[1, 2])
    assert page.locator("#details h2").inner_text() == "Patch"
    facts = page.locator("#details dd").all_inner_texts()
    assert facts[2] == "1,2"
    ring = np.array(page.evaluate("daskembed.patchRing(daskembed.loaded.get(0).chips[3].ring, 6)"))
    assert tuple(map(float, facts[3].split(","))) == pytest.approx((ring[0] + ring[2]) / 2, abs=1e-5)
    page.wait_for_selector("#hits li")
    hits = page.evaluate(
        "() => [...document.querySelectorAll('#hits button')].map(one => [one.title, one.children[1].textContent])"
    )
    assert len(hits) == 3
    for url, name in hits:
        row, col = map(int, name.partition("patch ")[2].split(","))
        assert kinds[int(url.split("_")[2]) - 1, row, col] == kinds[3, 1, 2]
    # What is said of a patch has its own colour, not its chip's; so has the map, where hits are framed.
    own = [int(one) for one in seen[1, 2]]
    swatches = [
        swatch(page, "#details .swatch"),
        *(swatch(page, f"#hits li:nth-child({n}) .swatch") for n in (1, 2, 3)),
    ]
    for found in swatches:
        assert np.abs(np.subtract(found, own)[:2]).max() < 40
    assert np.abs(np.subtract(swatches[0], own)).max() <= 2
    for number in range(3):
        url, name = hits[number]
        row, col = map(int, name.partition("patch ")[2].split(","))
        place = pixel(page, 0, int(url.split("_")[2]) - 1, (col + 0.5) / 4, (row + 0.5) / 4)
        wait_for_colour(page, place, swatches[1 + number])
    page.locator("#theme").click()
    assert page.evaluate("() => document.documentElement.dataset.theme") != scheme


def test_hits_that_adjoin_have_one_frame(patch: Path, opened: Opened) -> None:
    page = opened((patch / "index.html").as_uri())
    frames = """([grid, patches]) => { const {ring} = daskembed.loaded.get(0).chips[0];
      return daskembed.frames(patches.map(patch => daskembed.patchRing(ring, patch))); }"""
    rows = {
        "alone": [0],
        "two in a row": [0, 1],
        "the same on two dates": [5, 5],
        "apart": [0, 2],
        "corner to corner": [0, 5],
        "around a hole": [0, 1, 2, 4, 6, 8, 9, 10],
    }
    found = {name: page.evaluate(frames, [4, patches]) for name, patches in rows.items()}
    for name, lines in found.items():
        assert all(line[0] == pytest.approx(line[-1]) for line in lines), name
    assert {name: sorted(len(line) - 1 for line in lines) for name, lines in found.items()} == {
        "alone": [4],
        "two in a row": [6],
        "the same on two dates": [4],
        "apart": [4, 4],
        "corner to corner": [8],
        "around a hole": [4, 12],
    }
    # Clockwise around what is framed, the other way round in a hole: the frame lies outside of both.
    hole, outer = sorted(found["around a hole"], key=len)
    areas = [sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(one)) for one in (outer, hole)]
    assert areas[0] < 0 < areas[1]
    # Of two in a row the edge between is not yellow, the outer one is.
    page.evaluate("""() => { const chip = daskembed.loaded.get(0).chips[0];
      daskembed.showHits([{examples: [], hits: [0, 1].map(patch => ({chip, patch, score: 1, rank: 1}))}], ""); }""")
    corners = page.evaluate(
        "daskembed.patchRing(daskembed.loaded.get(0).chips[0].ring, 0).map(one => daskembed.map.project(one))"
    )
    above = {axis: (corners[0][axis] + corners[1][axis]) / 2 - 1.5 * (axis == "y") for axis in "xy"}
    between = {axis: (corners[1][axis] + corners[2][axis]) / 2 for axis in "xy"}
    wait_for_colour(page, above, [255, 235, 59])
    assert colours(page, [between])[0][2] < 200
    assert np.abs(np.subtract(colours(page, [between])[0], [255, 235, 59])).max() > 60


@pytest.mark.parametrize("turn", [0, 360])
def test_patches_beyond_180_degrees(tmp_path: Path, opened: Opened, turn: int) -> None:
    """Their image is shown from both sides; the tile's chips here all lie west of -180 degrees."""

    def fields(tile: str, rows: int) -> np.ndarray:
        return land(tile, rows * 16).reshape(rows, 4, 4, 8)

    write_published(tmp_path / "output", ["01WCN"], side=2, shape=(4, 4, 8), vectors=fields)
    daskembed.preview(str(tmp_path / "output"), to=str(tmp_path / "page"))
    page = opened((tmp_path / "page" / "index.html").as_uri())
    page.evaluate(
        """turn => {
          const [lng, lat] = daskembed.loaded.get(0).chips[0].ring[2];
          daskembed.map.jumpTo({center: [lng + turn, lat], zoom: 10});
        }""",
        turn,
    )
    page.wait_for_function("() => daskembed.map.areTilesLoaded()")
    page.wait_for_function("() => daskembed.loaded.get(0).drawn")
    patches = [(chip, col, row) for chip in range(4) for col in range(4) for row in range(4)]
    places = page.evaluate(
        """([patches, turn]) => patches.map(([chip, col, row]) => {
          const [a, b, c] = daskembed.patchRing(daskembed.loaded.get(0).chips[chip].ring, 4 * row + col);
          return {...daskembed.map.project([(a[0] + c[0]) / 2 + turn, (a[1] + c[1]) / 2])};
        })""",
        [patches, turn],
    )
    kinds = land("01WCN", 64).argmax(axis=1).reshape(4, 4, 4)
    for _ in range(200):
        seen = np.array(colours(page, places), float)[:, :2]  # three kinds differ in two directions
        if np.ptp(seen, axis=0).min() > 80:
            break
        page.wait_for_timeout(50)
    of_kind = [seen[[kinds[chip, row, col] == kind for chip, col, row in patches]] for kind in range(3)]
    assert max(np.abs(one - one.mean(axis=0)).max() for one in of_kind) < 40
    means = [one.mean(axis=0) for one in of_kind]
    assert min(np.abs(means[one] - means[other]).max() for one, other in ((0, 1), (0, 2), (1, 2))) > 80


def test_copies_and_names_of_buttons(mean: Path, opened: Opened) -> None:
    page = opened((mean / "index.html").as_uri())
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    go_to(page, TILE)
    page.mouse.click(**pixel(page, 0, 1))
    place = page.locator("#details dd").last.inner_text()
    for name, copied in (
        ("Copy as --like", f"--like {place}"),
        ("Copy source", page.evaluate("daskembed.loaded.get(0).chips[1].url")),
    ):
        page.get_by_role("button", name=name).click()
        page.get_by_role("button", name="Copied").last.wait_for()
        assert page.evaluate("window.copied") == copied
    for name in ("Light or dark", "Fold or unfold the panel", "Previous chip", "Next chip", "Let go of what is chosen"):
        assert page.get_by_role("button", name=name).get_attribute("title") == name
    # A panel that was folded stays so.
    page.locator("#fold").click()
    page.mouse.click(**pixel(page, 0, 3))
    assert not page.locator("#inside").is_visible()


def test_untrained_weights_are_said(tmp_path: Path, opened: Opened) -> None:
    daskembed.preview(str(Path(__file__).parent / "data" / "published" / "mean"), to=str(tmp_path))
    page = opened((tmp_path / "index.html").as_uri())
    assert (
        page.locator("#untrained")
        .inner_text()
        .replace("\n", " ")
        .startswith("Untrained weights: meaningless. These embeddings were made with seeded noise")
    )
    # In one line, when something is chosen.
    page.locator("#tiles button").first.click()
    page.locator("#details h2").wait_for()
    assert page.locator("#untrained").inner_text() == "Untrained weights: meaningless."


def test_online_base_map_is_asked_for_only_by_its_switch(patch: Path, browser: Any) -> None:
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.set_default_timeout(DEADLINE)

    def ask(route: Any) -> None:
        asked.append(route.request.url)
        route.abort()

    context.route("http*://**/*", ask)
    page.goto((patch / "index.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_function("() => daskembed.map.areTilesLoaded()")
    assert asked == []
    page.locator("#online").check()
    page.wait_for_function("() => daskembed.map.isSourceLoaded('online')")
    assert asked
    assert {url.split("/")[2] for url in asked} == {"tiles.maps.eox.at"}
    # That it cannot be reached is said; chips let through what is beneath them.
    page.wait_for_selector("#unreached:not([hidden])")
    assert page.locator("#unreached").inner_text() == "Satellite images could not be reached."
    opacity = "() => daskembed.map.getPaintProperty('tiles', 'fill-opacity')"
    assert page.evaluate(opacity) == 0.5
    page.locator("#online").uncheck()
    assert page.evaluate("() => daskembed.map.getLayer('online') === undefined")
    assert not page.locator("#unreached").is_visible()
    assert page.evaluate(opacity) == 1
    context.close()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real published file in {REAL}")
def test_real_published_file(tmp_path: Path, opened: Opened) -> None:
    made = daskembed.preview(str(REAL), to=str(tmp_path))
    assert (made.rows, made.searchable) == (417, True)
    assert sum(made.explained) > 0.9
    page = opened((tmp_path / "index.html").as_uri())
    page.wait_for_function("() => daskembed.map.areTilesLoaded()")
    page.mouse.click(**pixel(page, 0, 0))
    page.wait_for_selector("#hits li")
    # Land cover goes on beyond a chip: of its neighbours some are among the most similar 21 of 417.
    near = page.evaluate(
        """() => { const chips = daskembed.loaded.get(0).chips;
          const middle = one => [0, 1].map(axis => (one.ring[0][axis] + one.ring[2][axis]) / 2);
          const [x, y] = middle(chips[0]);
          return [...document.querySelectorAll('#hits button')]
            .map(one => middle(chips.find(chip => chip.url === one.title)))
            .filter(([a, b]) => Math.hypot((a - x) * 0.42, b - y) < 0.2).length; }"""
    )
    assert near >= 3
