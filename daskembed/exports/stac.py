"""STAC of an export, below its folder ``_stac``: an item a file, one collection, the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from shapely import orient_polygons
from shapely.geometry import mapping

from daskembed.documents import MOST_JSON, json_digest, parse_object
from daskembed.errors import InputError
from daskembed.exports.state import ExportedFile, Plan, is_export, read_plan, read_written
from daskembed.geo.footprints import bounding_box, box
from daskembed.output import stac as of_output
from daskembed.output import stac_documents as documents
from daskembed.output import zarr
from daskembed.output.geozarr import ROOT
from daskembed.output.protocol import Place
from daskembed.output.stac import StacResult, check_root
from daskembed.output.stac_documents import CATALOG, OURS, STAC, Kind, item_of
from daskembed.output.stac_model import model_item
from daskembed.quantization import KEY, METHOD, Calibration, parse_calibration
from daskembed.storage.stores import Storage
from daskembed.text import counted

_READABLE = (".parquet", zarr.SUFFIX)
"""What the files' names end with whose items can be written."""


def write_stac(output: str, root: str | None = None) -> StacResult:
    """Write a STAC catalogue of an output's published files, or of an export, into its folder ``_stac``.

    There is an item a file that is as its receipt says, a collection of each encoder, level, type of values, format and
    version, and an item a model. Items that would come out the same stay as they are; those of files that are gone are
    removed. The files are not changed, and of those of an output that have an item nothing is read.

    Parameters
    ----------
    output
        Folder or URL of the published files, or of an export.
    root
        URL under which others find that folder: makes all links absolute. By default they are relative, so that the
        folder can be moved.

    Returns
    -------
    StacResult
        What was written, and which files were left out, and why.

    Raises
    ------
    InputError
        If `output` is neither, or an export that is not finished or neither in GeoParquet nor in Zarr, or `root` is no
        URL.
    StorageError
        If the store does not answer as it should; what is written stays, and the same call goes on.
    """
    storage = Storage(output)
    if not is_export(storage):
        return of_output.write_stac(output, root)
    plan = read_plan(storage)
    if plan is None or plan.finished is None:
        raise InputError(f"the export {storage.url} is not finished: first run the same `daskembed export` again")
    root = check_root(root)
    there = read_written(storage, names := [file.name for file in plan.files])
    if strange := [name for name in names if not name.endswith(_READABLE)]:
        raise InputError(
            f"{storage.url} holds {strange[0]}: STAC is written of exports of `format='geoparquet'` or `format='zarr'`"
        )
    left_out = {name: "it is gone, or not as it was written" for name in names if name not in there}
    if not there:
        raise InputError(f"no file of the export {storage.url} is left: export it again with `overwrite=True`")
    kind, made, how = _said_by(storage, next(iter(there)), plan)

    def make(file: ExportedFile) -> dict[str, Any]:
        place = _place(storage, file.name) if file.name.endswith(zarr.SUFFIX) else None
        return _item(file, place, kind, made, how, plan, root)

    with ThreadPoolExecutor(16) as pool:
        made_items = pool.map(make, (there[name] for name in sorted(there)))
        items = {documents.item_path(kind, one["id"]): one for one in made_items}
    above = _above(kind, items, plan, root)
    present = {entry.path: entry.size for entry in storage.entries(STAC)}
    written = sum(_put(storage, path, document, present) for path, document in items.items())
    for path, document in above.items():
        _put(storage, path, document, present)
    gone = [path for path in present if OURS.fullmatch(path) and path not in items and path not in above]
    storage.delete(gone)
    removed = {item_of(path) for path in gone} - {None, *there}
    return StacResult(
        storage.url_of(CATALOG), {documents.collection_id(kind): len(items)}, written, len(removed), left_out
    )


def _said_by(storage: Storage, name: str, plan: Plan) -> tuple[Kind, dict[str, Any], Calibration | None]:
    """What all files say alike: their kind, how they were made, and how their values became int8."""
    try:
        if name.endswith(zarr.SUFFIX):
            told = parse_object(storage.get(f"{name}/{ROOT}", most=MOST_JSON))["attributes"]
            made, how = told["daskembed"], json.dumps(told[KEY]) if KEY in told else None
        else:
            with pq.ParquetFile(storage.open_reader(name)) as file:
                said = file.metadata.metadata or {}
            made, how = parse_object(said.get(b"daskembed", b"{}")), said.get(KEY.encode())
        # Of those that are made of one version alone.
        version = next(iter(plan.tiles)).rpartition(".")[0].rpartition("_v")[2]
        kind = documents.kind_of(made, name, version)
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(f"{storage.url_of(name)} can have no item: {' '.join(str(error).split())[:200]}") from None
    return kind, made, None if how is None else parse_calibration(how, f"`{KEY}` of {storage.url_of(name)}")


def _place(storage: Storage, name: str) -> Place:
    try:
        return zarr.read_place(storage, name)
    except ValueError as error:
        raise InputError(f"{storage.url_of(name)} can have no item: {error}") from None


def _item(
    file: ExportedFile,
    place: Place | None,
    kind: Kind,
    made: Mapping[str, Any],
    how: Calibration | None,
    plan: Plan,
    root: str | None,
) -> dict[str, Any]:
    """The item of a file; of a store it is known on which grid it lies."""
    path = documents.item_path(kind, file.name)
    first, last = _period(file, plan)
    settings = {name: made[name] for name in ("precision", "on_nan") if made.get(name) is not None}
    targets = [
        ("parent", documents.collection_path(kind)),
        ("collection", documents.collection_path(kind)),
        ("emb:model", documents.model_path(kind)),
    ]
    shape = box(*file.bbox) if place is None else orient_polygons(place.footprint)
    of_tile = {} if place is None else {"grid:code": f"MGRS-{file.name.partition('_')[0]}", **place.projection}
    extensions = [documents.EMBEDDINGS, documents.FILE, documents.PROCESSING]
    return {
        "type": "Feature",
        "stac_version": documents.VERSION,
        "stac_extensions": [*extensions, *([] if place is None else [documents.GRID, documents.PROJECTION])],
        "id": file.name,
        "collection": documents.collection_id(kind),
        "geometry": documents.rounded(mapping(shape)),
        "bbox": documents.rounded(file.bbox if place is None else bounding_box(np.array([shape], object))),
        "properties": {
            "datetime": None,
            "start_datetime": f"{first}T00:00:00Z",
            "end_datetime": f"{last}T23:59:59Z",
            **of_tile,
            "processing:datetime": plan.finished,
            **({"processing:software": file.software} if file.software else {}),
            **({"emb:runtime_parameters": settings} if settings else {}),
            **documents.quantization(kind, None if how is None else _affine(how)),
            "daskembed:rows": file.rows,
            "daskembed:kind": dict(kind),
            "daskembed:made_of": json_digest([root, file.name, file.sha256, plan.finished]),
        },
        "links": documents.links(path, root, *targets),
        "assets": {"embeddings": documents.asset(file, path, root, f"Embeddings of {_told_of(file, place)}")},
    }


def _told_of(file: ExportedFile, place: Place | None) -> str:
    return _tiles(file.tiles) if place is None else f"tile {file.name.partition('_')[0]}"


def _tiles(published: Iterable[str]) -> str:
    """How many tiles some published files are of."""
    return counted(len({name.partition("_")[0] for name in published}), "tile")


def _affine(how: Calibration) -> dict[str, Any]:
    return {
        "method": METHOD,
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": list(how.scale),
        "offset": list(how.offset),
    }


def _period(file: ExportedFile, plan: Plan) -> tuple[str, str]:
    """First and last day, as the names of the published files say them, within the dates that were asked for.

    The name of a store says its own.
    """
    names = [file.name] if file.name.endswith(zarr.SUFFIX) else file.tiles
    days = sorted(day for name in names for day in name.split("_")[1:3])
    first, last = (f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in (days[0], days[-1]))
    asked = plan.identity.get("dates") or [first, last]
    return max(first, asked[0]), min(last, asked[1])


def _above(kind: Kind, items: Mapping[str, Any], plan: Plan, root: str | None) -> dict[str, dict[str, Any]]:
    """What leads to the items, by path."""
    source = documents.url_of_source(str(plan.identity.get("source")))
    collection = documents.collection(kind, [*items.values()], [source], root)
    if kind["format"] != "zarr":
        whole = plan.tiles.keys() - plan.left_out.keys()
        collection["description"] = f"{collection['title']}: rows of {_tiles(whole)}, in spatial order."
    shape, window = plan.identity.get("shape"), kind.get("window")
    if plan.identity.get("rows") == "patch" and isinstance(shape, list) and type(window) is int:
        pixels = [int(side) for side in np.full(2, window) // shape[-3:-1]]
        collection["emb:chip_layout"] |= {"chip_size": pixels, "stride": pixels}
    return {
        documents.model_path(kind): model_item(kind, root),
        documents.collection_path(kind): collection,
        CATALOG: documents.catalog([kind], root),
    }


def _put(storage: Storage, path: str, document: Mapping[str, Any], present: Mapping[str, int]) -> bool:
    """Write a document where it is not there as it is; whether it was written."""
    data = json.dumps(document, indent=1, allow_nan=False).encode()
    if path in present and storage.get(path) == data:
        return False
    storage.put(path, data)
    return True
