"""A preview of published files: a folder with a page, a map that a browser opens straight from disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from daskembed.errors import InputError
from daskembed.explore.basis import Basis
from daskembed.explore.components import check_basis, in_order
from daskembed.explore.mosaic import as_geotiff
from daskembed.explore.pages import (
    DEGREE,
    DEVIATIONS,
    Seen,
    call,
    empty_documents,
    tile_documents,
    vectors_document,
)
from daskembed.explore.tiles import dims_of, grid_of, read_rows
from daskembed.output.state import RECEIPTS, read_receipts
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    from daskembed.exports.selection import Selection
    from daskembed.output.state import Receipt

FOLDER = "_preview"
"""Below the output, unless another folder is named: readers that open all files of a folder leave out such names."""
PAGE = "index.html"
BASIS = "basis.json"
_INDEX = "data/index.js"
MOST_SEARCHED = 100_000
"""Vectors among which the page searches by itself: 77 MB of 768 dimensions, which a browser holds."""
_STATIC = (
    *("app.js", "search.js", "style.css", "world.js", "maplibre-gl.js", "maplibre-gl.css"),
    *("maplibre-gl.LICENSE.txt", "world.LICENSE.txt"),
)
_TILE = r"\d\d[A-Z]{3}_(?:\d{8}_\d{8}_)?v[0-9A-Za-z]{1,16}"
_OURS = re.compile(rf"data/{_TILE}(?:\.vectors)?\.js|geotiff/{_TILE}_\d{{8}}\.tif")


@dataclass(frozen=True)
class Preview:
    """What was written."""

    page: str
    """Path or URL of the page."""
    tiles: int
    rows: int
    """Chips, or windows of them."""
    vectors: int
    """As many, or their patches."""
    explained: list[float]
    """Share of the variance that each of the three colours stands for."""
    searchable: bool
    """Whether the page can search by itself."""
    geotiffs: list[str]
    """Paths or URLs of the files for QGIS and the like."""


@dataclass(frozen=True)
class Job:
    """What is the same for all tiles of a preview."""

    output: Storage
    to: Storage
    shape: tuple[int, ...]
    basis: Basis
    search: bool
    geotiff: bool


def write_preview(
    output: Storage,
    selection: Selection,
    basis: Basis,
    to: Storage,
    *,
    tiles: Collection[str] | None = None,
    geotiff: bool = False,
) -> Preview:
    """Write the page of some published files, and its data.

    Parameters
    ----------
    output, selection
        The files.
    basis
        With which colours.
    to
        Folder of the page. What an earlier preview left there of other tiles is removed.
    tiles
        Those of which it is told that all their chips were set aside; None for all.
    geotiff
        Whether to write the colours of each tile and date as a cloud-optimised GeoTIFF, too.

    Raises
    ------
    InputError
        If the basis is not of such vectors, or a file is not what its footer says.
    """
    check_basis(basis, selection)
    if to.url == output.url:
        raise InputError(f"{to.url} holds the published files: a preview goes into a folder of its own")
    down, across = grid_of(selection)
    rows = sum(_count(output, selection.tiles))
    search = rows * down * across <= MOST_SEARCHED
    job = Job(output, to, selection.shape, basis, search, geotiff)
    receipts = _receipts(output, selection)
    by_file = {name: receipt for receipt in receipts for name in receipt.names}
    numbered = [(number, name) for number, name in enumerate(sorted(selection.tiles))]

    def write(one: tuple[int, str]) -> tuple[dict[str, Any], list[str]]:
        number, name = one
        return write_tile(job, number, selection.tiles[name].tile, name, by_file.get(name))

    found = list(in_order(write, numbered))
    for receipt in receipts:
        if not receipt.files and (tiles is None or receipt.tile in tiles):
            entry, document = empty_documents(len(found), receipt)
            to.put(path := f"data/{entry['file']}.js", call("tile", document))
            found.append((entry, [path]))
    written = {path for _, paths in found for path in paths} | {_INDEX}
    to.put(_INDEX, call("index", _index(selection, basis, [entry for entry, _ in found], search=search)))
    to.put(BASIS, basis.to_json().encode())
    page = files("daskembed.explore") / "page"
    for name in (*_STATIC, PAGE):
        to.put(name, (page / name).read_bytes())
    to.delete([entry.path for entry in to.entries() if _OURS.fullmatch(entry.path) and entry.path not in written])
    return Preview(
        page=to.url_of(PAGE),
        tiles=len(numbered),
        rows=rows,
        vectors=rows * down * across,
        explained=basis.explained,
        searchable=search,
        geotiffs=[to.url_of(path) for path in sorted(written) if path.endswith(".tif")],
    )


def write_tile(
    job: Job, number: int, tile: str, name: str, receipt: Receipt | None
) -> tuple[dict[str, Any], list[str]]:
    """Write the documents of one published file; gives its entry in that of all, and the paths that were written."""
    seen, explained = Seen.of(read_rows(job.output, name, job.shape), job.basis, search=job.search)
    entry, document, images = tile_documents(number, tile, name, seen, explained, job.basis, receipt)
    stem = PurePosixPath(name).stem
    data = {f"data/{stem}.js": call("tile", document)}
    if job.search:
        data[f"data/{stem}.vectors.js"] = call("vectors", vectors_document(number, seen.small))
    if job.geotiff:
        data |= {f"geotiff/{stem}_{date.replace('-', '')}.tif": as_geotiff(image) for date, image in images.items()}
    for path, content in data.items():
        job.to.put(path, content)
    return entry, list(data)


def _count(output: Storage, names: Iterable[str]) -> Iterator[int]:
    """Rows of published files."""

    def rows(name: str) -> int:
        with pq.ParquetFile(output.open_reader(name)) as file:
            return int(file.metadata.num_rows)

    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(rows, names)


def _receipts(output: Storage, selection: Selection) -> list[Receipt]:
    """Those of the tiles of files, and of tiles of their kind that have none, by their tiles."""
    versions = {one.version for one in selection.tiles.values()}
    there = [PurePosixPath(entry.path).stem for entry in output.entries(RECEIPTS, recursive=False)]
    found: list[Receipt] = []
    for version in sorted(versions):
        tiles = sorted(name.removesuffix(mark) for name in there if name.endswith(mark := f"_v{version}"))
        found += read_receipts(output, tiles, version).values()
    level, names = selection.made.get("level"), selection.tiles.keys()
    return [one for one in found if names & {*one.names} or (not one.files and one.settings.get("level") == level)]


def _index(selection: Selection, basis: Basis, entries: list[dict[str, Any]], *, search: bool) -> dict[str, Any]:
    """What the page knows before a tile comes into view."""
    made = selection.made
    return {
        "made": {name: made[name] for name in ("encoder", "size", "sensor", "checkpoint", "level") if made.get(name)},
        "untrained": bool(made.get("untrained")),
        "basis": {
            "explained": [round(one, 4) for one in basis.explained],
            "count": basis.count,
            "left_out": basis.left_out,
        },
        "grid": list(grid_of(selection)),
        "degree": DEGREE,
        "search": None
        if not search
        else {
            "dims": dims_of(selection),
            "step": [float(f"{one * DEVIATIONS / 127:.6g}") for one in basis.deviation],
        },
        "most_searched": MOST_SEARCHED,
        "tiles": entries,
    }
