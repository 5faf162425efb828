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
from daskembed.explore.basis import Basis, Variance
from daskembed.explore.components import in_order
from daskembed.explore.mosaic import as_geotiff
from daskembed.explore.pages import (
    DEGREE,
    DEVIATIONS,
    Seen,
    box_round,
    call,
    lost_documents,
    named,
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
_OURS = re.compile(rf"data/{_TILE}(?:\.vectors)?(?:\.[0-9a-f]{{12}})?\.js|geotiff/{_TILE}_\d{{8}}\.tif")


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
    """Share of the variance of these files that each of the three colours stands for."""
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
    around: Basis | None
    """Around whose mean the page's own search compares; None if there is none."""
    geotiff: bool


def write_preview(
    output: Storage,
    selection: Selection,
    basis: Basis,
    to: Storage,
    *,
    own: Basis,
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
        Folder of the page, complete or as it was. What an earlier preview left there of other tiles is removed.
    own
        That of all vectors that the files are of: `basis` unless that is another data set's. The page's own search
        compares around its mean.
    tiles
        Those of which it is told that all their chips were set aside; None for all.
    geotiff
        Whether to write the colours of each tile and date as a cloud-optimised GeoTIFF, too.

    Raises
    ------
    InputError
        If a file is not what its footer says.
    """
    if to.url == output.url:
        raise InputError(f"{to.url} holds the published files: a preview goes into a folder of its own")
    down, across = grid_of(selection)
    rows = sum(_count(output, selection.tiles))
    search = rows * down * across <= MOST_SEARCHED
    job = Job(output, to, selection.shape, basis, own if search else None, geotiff)
    receipts = _receipts(output, selection)
    by_file = {name: receipt for receipt in receipts for name in receipt.names}
    total, entries, written = Variance(basis), [], {_INDEX}
    for entry, sums, paths in in_order(
        lambda name: write_tile(job, selection.tiles[name].tile, name, by_file.get(name)), sorted(selection.tiles)
    ):
        total += sums
        entries.append(entry)
        written |= {*paths}
    for receipt in receipts:
        if not receipt.files and (tiles is None or receipt.tile in tiles):
            entry, document = lost_documents(receipt)
            written.add(_put(to, entry, "document", entry["file"], call("tile", document)))
            entries.append(entry)
    explained = basis.explained if basis == own else total.explained
    part = rows * down * across < own.count + own.left_out
    page = files("daskembed.explore") / "page"
    for name in _STATIC:
        to.put(name, (page / name).read_bytes())
    # What is there of an earlier preview has other names, and goes when all of this one is there.
    to.put(_INDEX, call("index", _index(selection, basis, own, explained, entries, search=search, part=part)))
    to.put(BASIS, basis.to_json().encode())
    to.put(PAGE, (page / PAGE).read_bytes())
    to.delete([entry.path for entry in to.entries() if _OURS.fullmatch(entry.path) and entry.path not in written])
    return Preview(
        page=to.url_of(PAGE),
        tiles=len(selection.tiles),
        rows=rows,
        vectors=rows * down * across,
        explained=explained,
        searchable=search,
        geotiffs=[to.url_of(path) for path in sorted(written) if path.endswith(".tif")],
    )


def write_tile(job: Job, tile: str, name: str, receipt: Receipt | None) -> tuple[dict[str, Any], Variance, list[str]]:
    """Write the documents of one published file.

    Gives its entry in that of all, how much of its variance the colours show, and the paths that were written.
    """
    seen, sums = Seen.of(read_rows(job.output, name, job.shape), job.basis, job.around)
    entry, document, images = tile_documents(tile, name, seen, sums.explained, job.basis, receipt, images=job.geotiff)
    stem = PurePosixPath(name).stem
    written = [_put(job.to, entry, "document", stem, call("tile", document))]
    if seen.small:
        vectors = call("vectors", vectors_document(name, seen.small))
        written.append(_put(job.to, entry, "vectors", f"{stem}.vectors", vectors))
    if job.geotiff:
        for date, image in images.items():
            job.to.put(path := f"geotiff/{stem}_{date.replace('-', '')}.tif", as_geotiff(image))
            written.append(path)
    return entry, sums, written


def _put(to: Storage, entry: dict[str, Any], kind: str, stem: str, document: bytes) -> str:
    """Write a document, and have the tile's entry name it; gives its path."""
    entry[kind] = named(stem, document)
    to.put(path := f"data/{entry[kind]}.js", document)
    return path


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
    names = selection.tiles.keys()
    return [one for one in found if names & {*one.names} or (not one.files and _is_kin(one, selection.made))]


def _is_kin(receipt: Receipt, made: dict[str, Any]) -> bool:
    """Whether a tile without a file was of the encoder and level that published files have in common."""
    encoder = " ".join(str(made[name]) for name in ("encoder", "size") if name in made)
    told = str(receipt.settings.get("encoder"))
    return receipt.settings.get("level") == made.get("level") and f"{told} ".startswith(f"{encoder} ")


def _index(
    selection: Selection,
    basis: Basis,
    own: Basis,
    explained: list[float],
    entries: list[dict[str, Any]],
    *,
    search: bool,
    part: bool,
) -> dict[str, Any]:
    """What the page knows before a tile comes into view."""
    made = selection.made
    return {
        "made": {name: made[name] for name in ("encoder", "size", "sensor", "checkpoint", "level") if made.get(name)},
        "untrained": bool(made.get("untrained")),
        "basis": {
            "explained": [round(one, 4) for one in explained],
            "count": basis.count,
            "left_out": own.left_out,
            "foreign": basis != own,
        },
        "box": box_round([entry["box"] for entry in entries]),
        "grid": list(grid_of(selection)),
        "degree": DEGREE,
        "search": None
        if not search
        else {
            "dims": dims_of(selection),
            "part": part,
            "step": [float(f"{one * DEVIATIONS / 127:.6g}") for one in own.deviation],
        },
        "most_searched": MOST_SEARCHED,
        "tiles": entries,
    }
