"""The page of a search's hits, in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

pytest.importorskip("playwright.sync_api", reason="playwright, by which a browser is driven, is not installed")

from test_preview_page import BROWSER, Opened, browser, land, opened  # noqa: F401 (fixtures)

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.explore.hits import hits_document
from daskembed.runs.search import write_hits
from daskembed.testing import write_published

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at pages with")


BLUE, YELLOW, WHITE = [41, 121, 255], [255, 235, 59], [255, 255, 255]


def example(page: Any) -> str:
    """Whether the examples' frames are on the map."""
    found: str = page.evaluate("daskembed.map.getLayoutProperty('examples', 'visibility')")
    return found


def sketched(page: Any, canvases: str, frame: list[int]) -> list[str]:
    """Canvases that have this colour and at least two more besides black, once all of them have."""
    found: list[str] = page.wait_for_function(
        """([where, frame]) => {
          const all = [...document.querySelectorAll(where)], drawn = all.filter(canvas => {
            const seen = new Set(), {width, height} = canvas;
            const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            for (let n = 0; n < pixels.length; n += 4)
              if (pixels[n + 3] === 255) seen.add(pixels.slice(n, n + 3).join());
            return seen.has(frame.join()) && seen.size > 3;
          });
          return all.length && drawn.length === all.length && drawn.map(one => one.toDataURL());
        }""",
        arg=[canvases, frame],
    ).json_value()
    return found


@pytest.mark.parametrize("level", ["mean", "patch"])
@pytest.mark.parametrize("width", [1280, 400])
def test_examples_and_hits_are_shown(
    opened: Opened,  # noqa: F811
    tmp_path: Path,
    level: str,
    width: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = (8,) if level == "mean" else (4, 4, 8)

    def vectors(tile: str, rows: int) -> Any:
        return land(tile, rows if level == "mean" else rows * 16).reshape(rows, *shape)

    write_published(tmp_path / "output", ["33TUL", "33TVL", "33TWL"], side=3, shape=shape, vectors=vectors)
    frame = daskembed.open_embeddings(str(tmp_path / "output")).compute(scheduler="sync")
    place = frame.geometry.iloc[4].centroid
    asked = ["search", str(tmp_path / "output"), "--like", f"{place.x + 0.001},{place.y + 0.001}", "-k", "6"]
    assert main([*asked, "--to", f"{tmp_path / 'hits'}/"]) == 0
    assert f"written: {tmp_path / 'hits'}/index.html" in capsys.readouterr().out
    hits = daskembed.search(str(tmp_path / "output"), like=(place.x + 0.001, place.y + 0.001), k=6)
    page = opened((tmp_path / "hits" / "index.html").as_uri(), width=width)
    page.wait_for_selector("html[data-hits]", state="attached")
    told = page.locator("#hits ol li").all_inner_texts()
    assert len(told) == 6
    for line, hit in zip(told, hits.itertuples(), strict=True):
        assert line.startswith(f"{hit.rank}. {hit.file[:5]}")
        assert f"{hit.score:.3f}" in line
        assert level == "mean" or f"patch {hit.row},{hit.col}" in line
    examples = page.locator("#hits .examples li")
    assert examples.all_inner_texts() == [f"like {place.x + 0.001:.9g},{place.y + 0.001:.9g}"]
    # Side by side: of the example and of each hit, what is there, in a frame of its own colour.
    assert len(sketched(page, "#hits .examples canvas", BLUE)) == 1
    assert len(sketched(page, "#hits ol canvas", YELLOW)) == 6
    tops = [page.locator(one).first.bounding_box()["y"] for one in ("#hits .examples canvas", "#hits ol canvas")]
    assert tops[0] == pytest.approx(tops[1], abs=2)
    assert page.evaluate("daskembed.map.getSource('examples').serialize().data.features.length") == 1
    west, south, east, north = page.evaluate("daskembed.map.getBounds().toArray().flat()")
    bounds = hits.total_bounds
    assert west <= bounds[0] < bounds[2] <= east
    assert south <= bounds[1] < bounds[3] <= north
    # Beneath the panel and the map's controls there is none.
    box = page.evaluate(
        """bounds => { const [[w, s], [e, n]] = [bounds.slice(0, 2), bounds.slice(2)];
          const [a, b] = [daskembed.map.project([w, n]), daskembed.map.project([e, s])];
          return [a.x, a.y, b.x, b.y]; }""",
        [*bounds],
    )
    for control in ("#panel", ".maplibregl-ctrl-top-right", ".maplibregl-ctrl-bottom-right"):
        one = page.locator(control).bounding_box()
        assert (
            one["x"] > box[2]
            or one["x"] + one["width"] < box[0]
            or one["y"] > box[3]
            or one["y"] + one["height"] < box[1]
        ), control
    # One query at a time: a click on the map is another, and the command's can be had again.
    assert (page.title(), page.locator("h1").inner_text()) == ("Hits of a search in embeddings", "Hits of a search")
    back = page.get_by_role("button", name="The hits of the command")
    assert not back.is_visible()
    assert example(page) == "visible"
    best = hits.geometry.iloc[0].centroid
    page.evaluate("center => daskembed.map.jumpTo({center, zoom: 10})", [best.x, best.y])
    page.wait_for_function(
        "() => daskembed.map.areTilesLoaded() && daskembed.map.queryRenderedFeatures({layers: ['chips']}).length"
    )
    page.mouse.click(**page.evaluate("center => daskembed.map.project(center)", [best.x, best.y]))
    page.wait_for_selector("#hits:not([hidden]) h2:text-is('Most similar')")
    assert examples.all_inner_texts() == ["the chosen one"]
    assert len(sketched(page, "#hits .examples canvas", WHITE)) == 1
    assert example(page) == "none"
    back.click()
    assert not back.is_visible()
    assert not page.locator("#details").is_visible()
    assert page.locator("#hits ol li").all_inner_texts() == told
    assert examples.all_inner_texts() == [f"like {place.x + 0.001:.9g},{place.y + 0.001:.9g}"]
    assert example(page) == "visible"


def test_a_page_of_each_query_with_its_own_hits_in_the_colours_of_all(
    opened: Opened,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Three tiles of three kinds of land: the hits of two examples lie in two of them."""

    def vectors(tile: str, rows: int) -> Any:
        kind = np.eye(8)[["33TUL", "33TVL", "33TWL"].index(tile)] * 4
        rng = np.random.default_rng(int.from_bytes(tile.encode(), "big"))
        return (kind + rng.normal(size=(rows, 8)) * 0.1).astype(np.float32)

    output = str(tmp_path / "output")
    write_published(output, ["33TUL", "33TVL", "33TWL"], side=3, shape=(8,), vectors=vectors)
    frame = daskembed.open_embeddings(output).compute(scheduler="sync")
    urls = [frame["source_url"][frame["source_url"].str.contains(tile)].iloc[4] for tile in ("33TVL", "33TUL")]
    found = daskembed.search(output, like_row=urls, combine="each", k=4)
    page_url = write_hits(found, f"{tmp_path / 'hits'}/")
    basis = daskembed.principal_components(output)
    assert json.loads((tmp_path / "hits" / "basis.json").read_text()) == json.loads(basis.to_json())
    page = opened(Path(page_url).as_uri())
    page.wait_for_selector("html[data-hits]", state="attached")
    # Tiles with hits; colours, shares and what is taken out are those of all.
    assert page.evaluate("daskembed.tiles.map(tile => tile.tile)") == ["33TUL", "33TVL"]
    assert page.evaluate("daskembed.search.part")
    assert "components of 27 vectors" in page.locator("#basis").inner_text()
    assert page.locator("#hits h3").all_inner_texts() == [f"Like {url}" for url in urls]
    for number, tile in enumerate(("33TVL", "33TUL")):
        cards = page.locator("#hits .cards").nth(number)
        assert cards.locator(".examples li").all_inner_texts() == [f"like {urls[number]}"]
        hits = [one.get_attribute("title") for one in cards.locator("ol button").all()]
        assert hits == found["source_url"][found["query"] == urls[number]].tolist()
        told = cards.locator("ol button").all_inner_texts()
        assert [one.partition(" ")[0] for one in told] == ["1.", "2.", "3.", "4."]
        assert all(tile in one for one in told)
    assert len(sketched(page, "#hits .examples canvas", BLUE)) == 2
    # A click asks for something else, of what is shown.
    page.locator("#tiles button").first.click()
    page.wait_for_function("() => !daskembed.map.isMoving() && daskembed.map.areTilesLoaded()")
    page.evaluate("() => daskembed.map.getCanvas().focus()")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits:not([hidden]) h2:text-is('Most similar')")
    assert "Of 18 vectors of the tiles shown here" in page.locator("#hits p").inner_text()


def test_hits_across_180_degrees_and_none(tmp_path: Path) -> None:
    output = str(tmp_path / "output")
    write_published(output, ["01WCN", "60WWT"], side=21, shape=(4,))
    first = daskembed.open_embeddings(output).compute(scheduler="sync")["source_url"].iloc[0]
    found = daskembed.search(output, like_row=first, k=300)
    assert any(isinstance(one, shapely.MultiPolygon) for one in found.geometry)
    west, _, east, _ = hits_document(found, (1, 1))["box"]
    assert 176 < west < 180 < east < west + 6
    with pytest.raises(InputError, match="no hits to show"):
        write_hits(found.iloc[:0], f"{tmp_path / 'hits'}/")


def test_queries_of_a_page_may_have_no_hits_and_be_the_same(tmp_path: Path) -> None:
    write_published(tmp_path, ["33TUL"], side=3, shape=(8,), vectors=land)
    urls = daskembed.open_embeddings(str(tmp_path)).compute(scheduler="sync")["source_url"].tolist()
    given = [urls[0], urls[1], urls[1], urls[2]]
    found = daskembed.search(str(tmp_path), like_row=given, unlike_row=urls[3], combine="each", k=2)
    kept = found[found["query"] != urls[0]]
    kept.attrs = found.attrs
    queries = hits_document(kept, (1, 1))["queries"]
    assert [(one["title"], one["examples"], len(one["hits"])) for one in queries] == [
        (f"Like {url}", [number, 4], 2 * (number > 0)) for number, url in enumerate(given)
    ]
    assert [hit["url"] for one in queries for hit in one["hits"]] == kept["source_url"].tolist()


def test_no_page_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = write_published(tmp_path / "output", ["33TUL"], side=2, shape=(8,), vectors=land)
    (tmp_path / "output" / name).rename(tmp_path / "part.parquet")
    lon, lat = "12.45", "46.0"
    assert main(["search", str(tmp_path), "--like", f"{lon},{lat}", "--to", f"{tmp_path / 'hits'}/"]) == 2
    assert "--to a page: it shows tiles as runs publish them, and these files are others" in capsys.readouterr().err
