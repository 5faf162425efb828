"""The page of a search's hits, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright, by which a browser is driven, is not installed")

from test_preview_page import BROWSER, Opened, browser, land, opened  # noqa: F401 (fixtures)

import daskembed
from daskembed.cli.main import main
from daskembed.testing import write_published

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at pages with")


def example(page: Any) -> str:
    """Whether the examples' frames are on the map."""
    found: str = page.evaluate("daskembed.map.getLayoutProperty('examples', 'visibility')")
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
        assert level == "mean" or f"patch {hit.row}, {hit.col}" in line
    assert page.locator("#examples li").all_inner_texts() == [f"like {place.x + 0.001:g},{place.y + 0.001:g}"]
    assert page.evaluate("daskembed.map.getSource('examples').serialize().data.features.length") == 1
    west, south, east, north = page.evaluate("daskembed.map.getBounds().toArray().flat()")
    bounds = hits.total_bounds
    assert west <= bounds[0] < bounds[2] <= east
    assert south <= bounds[1] < bounds[3] <= north
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
    assert page.locator("#examples").count() == 0
    assert example(page) == "none"
    back.click()
    assert not back.is_visible()
    assert not page.locator("#details").is_visible()
    assert page.locator("#hits ol li").all_inner_texts() == told
    assert page.locator("#examples").is_visible()
    assert example(page) == "visible"


def test_no_page_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = write_published(tmp_path / "output", ["33TUL"], side=2, shape=(8,), vectors=land)
    (tmp_path / "output" / name).rename(tmp_path / "part.parquet")
    lon, lat = "12.45", "46.0"
    assert main(["search", str(tmp_path), "--like", f"{lon},{lat}", "--to", f"{tmp_path / 'hits'}/"]) == 2
    assert "--to a page: it shows tiles as runs publish them, and these files are others" in capsys.readouterr().err
