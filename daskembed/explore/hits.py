"""The hits of a search on the page of a preview: its document, and the two scripts that show it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from daskembed.explore.pages import box_round, call

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.storage.stores import Storage

DOCUMENT = "data/hits.js"
_SCRIPT = "hits.js"
_BEFORE = b"<noscript>"
_TITLES = {
    b"<title>Preview of embeddings</title>": b"<title>Hits of a search in embeddings</title>",
    b"<h1>Embeddings</h1>": b"<h1>Hits of a search</h1>",
}


def add_hits(page: Storage, found: gpd.GeoDataFrame, grid: tuple[int, int]) -> None:
    """Have the page of a preview show the hits of a search, and the examples.

    Parameters
    ----------
    page
        Folder of a preview of all files that have hits; it is written again by the next preview.
    found
        What `daskembed.search` gave.
    grid
        Patches of a row, down and across.
    """
    index = page.get("index.html")
    scripts = "".join(f'<script defer src="{one}"></script>\n' for one in (_SCRIPT, DOCUMENT)).encode()
    page.put(_SCRIPT, (files("daskembed.explore") / "page" / _SCRIPT).read_bytes())
    page.put(DOCUMENT, call("hits", hits_document(found, grid)))
    for title, ours in _TITLES.items():
        index = index.replace(title, ours, 1)
    page.put("index.html", index.replace(_BEFORE, scripts + _BEFORE, 1))


def hits_document(found: gpd.GeoDataFrame, grid: tuple[int, int]) -> dict[str, Any]:
    """What the page is told of the hits of a search; see `add_hits`."""
    told = found.attrs["search"]
    footprints = [shapely.from_wkt(one["footprint"]) for one in told["examples"]]
    centred = " after taking out the mean" if told["center"] and told["metric"] != "l2" else ""
    examples = [
        {
            "given": one["given"],
            "alike": one["alike"],
            "geometry": shapely.geometry.mapping(footprint),
            "middle": shapely.get_coordinates(shapely.point_on_surface(footprint))[0].tolist(),
        }
        for one, footprint in zip(told["examples"], footprints, strict=True)
    ]
    return {
        "said": f"{len(found)} of {told['searched']:,} vectors by {told['metric']}{centred}; examples in blue",
        "box": box_round(shapely.bounds(shapely.get_parts([*footprints, *found.geometry]))),
        "examples": examples,
        "queries": [
            {"title": title, "examples": numbers, "hits": _hits(rows, grid)}
            for title, numbers, rows in _queries(found, examples)
        ],
    }


def _queries(
    found: gpd.GeoDataFrame, examples: list[dict[str, Any]]
) -> Iterator[tuple[str, list[int], gpd.GeoDataFrame]]:
    """Of each query its title, the numbers of its examples, and its hits."""
    if "query" not in found.columns:
        yield "", [*range(len(examples))], found
        return
    others = [number for number, one in enumerate(examples) if not one["alike"]]
    starts = [*np.flatnonzero(found["rank"] == 1), len(found)]
    for number, one in enumerate(examples):
        if one["alike"]:
            # A query may have no hits, and be given twice.
            first = starts[0]
            if has := first < len(found) and found["query"].iloc[first] == one["given"]:
                del starts[0]
            yield f"Like {one['given']}", [number, *others], found.iloc[first : starts[0] if has else first]


def _hits(found: gpd.GeoDataFrame, grid: tuple[int, int]) -> list[dict[str, Any]]:
    """What a page is told of each."""
    patches = found["row"] * grid[1] + found["col"] if "row" in found.columns else np.zeros(len(found))
    columns = (found["rank"], found["file"], found["source_url"], patches, found["score"])
    return [
        {"rank": int(rank), "file": file, "url": url, "patch": int(patch), "score": round(float(score), 6)}
        for rank, file, url, patch, score in zip(*columns, strict=True)
    ]
