"""STAC documents of published files as JSON objects (pure): catalogue, collections and items.

STAC 1.0.0, to which the schema of the embeddings extension refers, with the fields of that extension and no others
that begin with ``emb:``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import shapely

from daskembed.documents import json_digest
from daskembed.geo.footprints import bounding_box, box

if TYPE_CHECKING:
    from daskembed.energy import Energy
    from daskembed.output.protocol import Place, Published, Written
    from daskembed.output.state import Receipt

STAC = "_stac"
"""Folder below the output: a reader that opens all files of a folder leaves out names that begin so."""
CATALOG = f"{STAC}/catalog.json"
MODELS = f"{STAC}/models"
OURS = re.compile(rf"{STAC}/(?:[^/]+/collection|models/[^/]+|[^/]+/(?P<file>[^/]+\.(?:gpq|zarr|parquet)))\.json")
"""Paths of all documents but the catalogue; others in the folder are somebody else's."""
VERSION = "1.0.0"
_EXTENSIONS = "https://stac-extensions.github.io"
EMBEDDINGS = f"{_EXTENSIONS}/embeddings/v0.0.1/schema.json"
FILE = f"{_EXTENSIONS}/file/v2.1.0/schema.json"
PROCESSING = f"{_EXTENSIONS}/processing/v1.2.0/schema.json"
GRID = f"{_EXTENSIONS}/grid/v1.1.0/schema.json"
_ITEM = [EMBEDDINGS, FILE, GRID, PROCESSING]
PROJECTION = f"{_EXTENSIONS}/projection/v2.0.0/schema.json"
SHA256 = "1220"
"""What a multihash of SHA-256 begins with: its code, and 32 bytes."""
_FORM = 1
"""Of these documents: another number, and all are written anew."""
_OF_MODEL = (
    *("encoder", "size", "sensor", "window", "checkpoint", "sha256", "untrained"),
    *("level", "dims", "labels", "windows", "shape"),
)
"""What a file says of how it was made that tells models and what they give."""
_MEDIA = {
    **dict.fromkeys((".gpq", ".parquet"), "application/vnd.apache.parquet"),
    ".zarr": "application/vnd.zarr; version=3",
}
_FORMATS = {".gpq": "geoparquet", ".zarr": "zarr", ".parquet": "geoparquet"}
_WORDS = {"geoparquet": "a GeoParquet file", "zarr": "a Zarr store"}
_DIGITS = 7
"""Of degrees: a centimetre."""

Kind = Mapping[str, Any]
"""What all items of a collection have in common; see `kind_of`."""


def kind_of(made: Mapping[str, Any], file: str, version: str) -> Kind:
    """What tells the collection of a file: its model, level, type of values, format and version.

    Parameters
    ----------
    made
        What the file says of how it was made.
    file, version
        Its name, and the version in that.

    Raises
    ------
    ValueError
        If it does not say what it must.
    """
    kind = {name: made[name] for name in _OF_MODEL if made.get(name) is not None}
    shape = kind.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError("it does not say the shape of its embeddings")
    if missing := [name for name in ("encoder", "level", "checkpoint") if not isinstance(kind.get(name), str)]:
        raise ValueError(f"it does not say its {' and '.join(missing)}")
    # Early files do not name them.
    dims = kind.setdefault("dims", ["group", "row", "col", "embedding"][-len(shape) :] if len(shape) != 2 else [])
    named = isinstance(dims, list) and all(isinstance(name, str) for name in dims)
    if not named or len(dims) != len(shape):
        raise ValueError(f"it does not say what the dimensions of its embeddings {shape} are")
    identity = made.get("identity")
    # A sensor of somebody's own has a digest there, by which it is told from ours of that name.
    if isinstance(identity, dict) and isinstance(identity.get("sensor"), str):
        kind["sensor"] = identity["sensor"]
    dtype = str(made.get("dtype") or "float32")
    return kind | {"dtype": dtype, "format": _FORMATS[PurePosixPath(file).suffix], "version": version}


def collection_id(kind: Kind) -> str:
    """Name of a collection, and of its folder: another for each kind, whatever else there is."""
    told = f"{kind['encoder']}-{kind['level']}-{kind['format']}-v{kind['version']}"
    return _plain(f"{told}-{json_digest(dict(kind))[:8]}")


def model_of(kind: Kind) -> dict[str, Any]:
    """Of a kind what tells the model, and what that gives."""
    return {name: kind[name] for name in _OF_MODEL if name in kind}


def model_id(kind: Kind) -> str:
    """Name of the item of a kind's model."""
    told = [str(kind[name]) for name in ("encoder", "size", "level") if kind.get(name)]
    return _plain(f"{'-'.join(told)}-{json_digest(model_of(kind))[:8]}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def collection_path(kind: Kind) -> str:
    """Of a collection, below the output."""
    return f"{STAC}/{collection_id(kind)}/collection.json"


def item_path(kind: Kind, file: str) -> str:
    """Of the item of a published file, below the output."""
    return f"{STAC}/{collection_id(kind)}/{file}.json"


def model_path(kind: Kind) -> str:
    """Of the item of a model, below the output."""
    return f"{MODELS}/{model_id(kind)}.json"


def item_of(path: str) -> str | None:
    """The published file of which an object of the output is the item; None if it is something else."""
    match = OURS.fullmatch(path)
    return match["file"] if match else None


def href(to: str, start: str, root: str | None) -> str:
    """A link from one document to another or to a file, both by their paths below the output."""
    if root is not None:
        return f"{root}/{to}"
    found = posixpath.relpath(to, posixpath.dirname(start))
    return found if found.startswith(".") else f"./{found}"


def links(path: str, root: str | None, *targets: tuple[str, str]) -> list[dict[str, Any]]:
    """Links of the document `path` to others of ours as (rel, path); to itself only where they are absolute."""
    kinds = {"item": "application/geo+json", "emb:model": "application/geo+json"}
    own = [] if root is None else [("self", path)]
    return [
        {"rel": rel, "href": href(to, path, root), "type": kinds.get(rel, "application/json")}
        for rel, to in (("root", CATALOG), *own, *targets)
    ]


def made_of(receipt: Receipt, file: Published, root: str | None) -> str:
    """Digest of all that an item is made of: it is written anew if that changes."""
    told = {**vars(receipt), "files": [vars(one) for one in receipt.files]}
    if receipt.energy is None:
        del told["energy"]
    else:
        told["energy"] = vars(receipt.energy)
    return json_digest([_FORM, root, vars(file), told])


def item(
    receipt: Receipt,
    file: Published,
    kind: Kind,
    place: Place,
    period: tuple[str, str],
    root: str | None,
) -> dict[str, Any]:
    """The item of a published file.

    Parameters
    ----------
    receipt, file
        What its receipt says.
    kind
        See `kind_of`.
    place, period
        Where its rows are, and their first and last day.
    root
        URL of the output, for absolute links; None for relative ones.
    """
    path = item_path(kind, file.name)
    shape = shapely.orient_polygons(place.footprint)
    targets = [
        ("parent", collection_path(kind)),
        ("collection", collection_path(kind)),
        ("emb:model", model_path(kind)),
    ]
    settings = {name: receipt.settings.get(name) for name in ("precision", "on_nan")}
    properties = {
        "datetime": None,
        "start_datetime": f"{period[0]}T00:00:00Z",
        "end_datetime": f"{period[1]}T23:59:59Z",
        "grid:code": f"MGRS-{receipt.tile}",
        **place.projection,
        "processing:datetime": receipt.finished,
        **({"processing:software": receipt.software} if receipt.software else {}),
        "emb:runtime_parameters": {name: value for name, value in settings.items() if value is not None},
        **quantization(kind),
        **({"emb:energy": _energy(receipt.energy)} if receipt.energy else {}),
        "daskembed:chips": receipt.chips,
        "daskembed:kind": dict(kind),
        "daskembed:made_of": made_of(receipt, file, root),
    }
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [*_ITEM, *([PROJECTION] if place.projection else [])],
        "id": file.name,
        "collection": collection_id(kind),
        "geometry": rounded(shapely.geometry.mapping(shape)),
        "bbox": rounded(bounding_box(np.array([shape], object))),
        "properties": properties,
        "links": [*links(path, root, *targets), *(_source_link(*scene) for scene in scenes_of(receipt))],
        "assets": {"embeddings": asset(file, path, root, f"Embeddings of tile {receipt.tile}")},
    }


def asset(file: Written, path: str, root: str | None, title: str) -> dict[str, Any]:
    """A file in its item, which is at `path`."""
    # What stands for the SHA-256 of a store is no hash of bytes that anybody could read in one piece.
    whole = not file.name.endswith(".zarr")
    return {
        "href": href(file.name, path, root),
        "type": _MEDIA[PurePosixPath(file.name).suffix],
        "title": title,
        "roles": ["data"],
        "file:size": file.size,
        **({"file:checksum": SHA256 + file.sha256} if whole else {"daskembed:sha256": file.sha256}),
    }


def _energy(energy: Energy) -> dict[str, Any]:
    return {
        "device_type": energy.device_type,
        "energy_kwh": energy.joules / 3.6e6,
        "inference_duration_s": energy.seconds,
        "avg_power_w": energy.joules / energy.seconds,
        "name": energy.name,
    }


def quantization(kind: Kind, how: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What became of an item's float32, as a property; nothing, if they are left as they are.

    `how` is that of int8.
    """
    told = CAST if kind["dtype"] == "float16" else how
    return {} if told is None else {"emb:quantization": dict(told)}


CAST = {"method": "cast", "original_dtype": "float32", "quantized_dtype": "float16"}


def rounded(value: Any) -> Any:
    """Coordinates to the last digit that is kept, as JSON has them."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def scenes_of(receipt: Receipt) -> list[tuple[str, str]]:
    """URL and title of the catalogue's items that a tile was cut out of, each once; none of other sources."""
    found: dict[str, str] = {}
    for scene in receipt.scenes:
        items = scene.get("items")
        for one in items if isinstance(items, list) else ():
            if isinstance(one, dict) and isinstance(url := one.get("url"), str) and url:
                found.setdefault(url_of_source(url), str(one.get("id", "")))
    return list(found.items())


def _source_link(url: str, title: str) -> dict[str, str]:
    return {
        "rel": "emb:source-data",
        "href": url,
        "type": "application/geo+json",
        **({"title": title} if title else {}),
    }


def sources_of(receipt: Receipt) -> list[str]:
    """URLs of what a tile was made from: collections of a catalogue's scenes, or else the source of its chips."""
    found = [url.partition("/items/")[0] for url, _ in scenes_of(receipt) if "/items/" in url]
    return found or [url_of_source(str(receipt.settings.get("source") or "unknown"))]


def url_of_source(place: str) -> str:
    """A source as something that a link can lead to."""
    if "://" in place:
        return place.removeprefix("stac+")
    path = PurePosixPath(place)
    return path.as_uri() if path.is_absolute() else f"urn:daskembed:source:{quote(place)}"


def collection(
    kind: Kind, items: Sequence[Mapping[str, Any]], sources: Iterable[str], root: str | None
) -> dict[str, Any]:
    """The collection of some items, of which there is at least one; `sources` are URLs."""
    path = collection_path(kind)
    boxes = np.array([box(*one["bbox"]) for one in items], object)
    told = [one["properties"] for one in items]
    period = [min(one["start_datetime"] for one in told), max(one["end_datetime"] for one in told)]
    size = f" {kind['size']}" if kind.get("size") else ""
    what = f"{kind['encoder']}{size}, level {kind['level']}, {kind['dtype']}, version {kind['version']}"
    shape = f"{' x '.join(map(str, kind['shape']))} ({', '.join(kind['dims'])})"
    named = sorted(str(one["id"]) for one in items)
    targets = [
        ("parent", CATALOG),
        ("emb:model", model_path(kind)),
        *(("item", item_path(kind, name)) for name in named),
    ]
    return {
        "type": "Collection",
        "stac_version": VERSION,
        "stac_extensions": [EMBEDDINGS],
        "id": collection_id(kind),
        "title": f"Embeddings of {what}",
        "description": f"Embeddings of {what}: {_WORDS[kind['format']]} a tile, of the shape {shape}.",
        "keywords": ["embeddings", str(kind["encoder"])],
        # Nobody has said which.
        "license": "other",
        "extent": {
            "spatial": {"bbox": [rounded(bounding_box(boxes))]},
            "temporal": {"interval": [period]},
        },
        "emb:type": "chip",
        "emb:dimensions": kind["shape"][-1],
        "data_type": kind["dtype"],
        **_layout(kind),
        "links": [
            *links(path, root, *targets),
            *({"rel": "emb:source-data", "href": url} for url in sorted({*sources})),
        ],
    }


def _layout(kind: Kind) -> dict[str, Any]:
    """Pixels of an embedding, where the file says of how many a window is."""
    window = kind.get("window")
    if type(window) is not int or window < 1:
        return {}
    lengths = dict(zip(kind["dims"], kind["shape"], strict=True))
    pixels = [window // lengths.get(name, 1) for name in ("row", "col")]
    return {"emb:chip_layout": {"layout_type": "regular_grid", "chip_size": pixels, "stride": pixels}}


def catalog(kinds: Iterable[Kind], root: str | None) -> dict[str, Any]:
    """What leads to all collections and models."""
    kinds = list(kinds)
    children = sorted({("child", collection_path(kind)) for kind in kinds})
    return {
        "type": "Catalog",
        "stac_version": VERSION,
        "id": "daskembed",
        "title": "Embeddings",
        "description": "Embeddings published by daskembed: a collection of each encoder, level, format and version.",
        "links": links(CATALOG, root, *children, *sorted({("item", model_path(kind)) for kind in kinds})),
    }
