"""The hits of a search on the page of a preview: its document, and the two scripts that show it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from daskembed.explore.pages import call

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
    patches = found["row"] * grid[1] + found["col"] if "row" in found.columns else np.zeros(len(found))
    columns = (found["file"], found["source_url"], patches, found["score"])
    centred = " after taking out the mean" if told["center"] and told["metric"] != "l2" else ""
    west, south, east, north = shapely.total_bounds([*footprints, *found.geometry])
    return {
        "said": f"{len(found)} of {told['searched']:,} vectors by {told['metric']}{centred}; examples in blue",
        "box": [west, south, east, north],
        "examples": [
            {"given": one["given"], "alike": one["alike"], "geometry": shapely.geometry.mapping(footprint)}
            for one, footprint in zip(told["examples"], footprints, strict=True)
        ],
        "hits": [
            {"file": file, "url": url, "patch": int(patch), "score": round(float(score), 6)}
            for file, url, patch, score in zip(*columns, strict=True)
        ],
    }
