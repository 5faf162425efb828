"""STAC of an output, below its folder ``_stac``: static, and written anew only where a receipt is another.

What is linked to is written before what links to it, and removed after: whoever reads meanwhile finds no link that
leads nowhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyproj
from shapely.errors import ShapelyError

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import InputError
from daskembed.output import stac_documents as documents
from daskembed.output.protocol import Published, format_of
from daskembed.output.published import list_published
from daskembed.output.stac_documents import CATALOG, OURS, STAC, Kind, item_of
from daskembed.output.stac_model import model_item
from daskembed.output.state import RECEIPTS, STATE, Receipt, read_receipt
from daskembed.storage.stores import Storage
from daskembed.storage.urls import SIGNED, USER, redact
from daskembed.text import counted

_log = logging.getLogger(__name__)
_NAME = re.compile(r"\w+_(\d{4})(\d\d)(\d\d)_(\d{4})(\d\d)(\d\d)_v\w+\.\w+")


@dataclass(frozen=True)
class StacResult:
    """What became of the STAC of an output."""

    catalog: str
    """URL or path of the catalogue, from where links lead to all else."""
    collections: dict[str, int]
    """Name -> its items."""
    written: int
    """Items that were written: those of files whose receipt is another than before."""
    removed: int
    """Items that were removed: those of files that are gone or no longer as their receipt says."""
    left_out: dict[str, str]
    """File, or receipt -> why there is no item of it."""


def write_stac(output: str, root: str | None = None) -> StacResult:
    """Write a STAC catalogue of an output's published files into its folder ``_stac``.

    There is an item a published file that is as its receipt says, a collection of each encoder, level, type of values,
    format and version, and an item a model. Items whose receipt has not changed stay as they are; those of files that
    are gone are removed. The published files are not changed, and of those that have an item nothing is read.

    Parameters
    ----------
    output
        Folder or URL of the published files.
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
        If `output` is no output of daskembed, or `root` is no URL.
    StorageError
        If the store does not answer as it should; what is written stays, and the same call goes on.
    """
    storage, root = Storage(output), check_root(root)
    receipts, left_out = _read_receipts(storage)
    present = {entry.path: entry.size for entry in storage.entries(STAC)}
    sizes = {one.name: one.size for one in list_published(storage)}
    if not (receipts or left_out or sizes or present) and STATE not in storage.folders():
        storage.check_exists()
        raise InputError(
            f"{storage.url} is no output of daskembed: it holds no published files and no receipts; give the `output` "
            "of a run"
        )
    wanted = _sound(receipts, sizes, left_out)
    before: dict[str, list[str]] = {}
    for path in present:
        if name := item_of(path):
            before.setdefault(name, []).append(path)

    def make(name: str) -> tuple[str, dict[str, Any], bool] | str:
        receipt, file = wanted[name]
        kept = _kept_item(storage, receipt, file, root, before.get(name, ()))
        if kept is not None:
            return (*kept, False)
        try:
            return (*_write_item(storage, receipt, file, root), True)
        except InputError as error:
            return str(error)

    items: dict[str, dict[str, Any]] = {}
    written = 0
    with ThreadPoolExecutor(16) as pool:
        for name, found in zip(wanted, pool.map(make, wanted), strict=True):
            if isinstance(found, str):
                left_out[name] = found
            else:
                path, document, new = found
                items[path] = document
                written += new
    collections = _write_above(storage, items, {name: receipt for name, (receipt, _) in wanted.items()}, root, present)
    kept = {*items, *collections, *(documents.model_path(_kind(one)) for one in items.values())}
    storage.delete([path for path in present if OURS.fullmatch(path) and path not in kept])
    return StacResult(
        storage.url_of(CATALOG),
        {path.split("/")[1]: count for path, count in sorted(collections.items())},
        written,
        len(before.keys() - {str(one["id"]) for one in items.values()}),
        dict(sorted(left_out.items())),
    )


def write_items(output: Storage, receipt: Receipt, root: str | None) -> None:
    """Write the items of a tile's files as far as can be; `write_stac` says of which it cannot, and leads to them."""
    for file in receipt.files:
        with contextlib.suppress(InputError):
            _write_item(output, receipt, file, root)


def complete(output: Storage, root: str | None) -> None:
    """As `write_stac`, at the end of a run: says as a warning what is left out."""
    result = write_stac(output.url, root)
    for name, reason in list(result.left_out.items())[:1]:
        told = counted(len(result.left_out), "file")
        _log.warning(f"warning: {told} left out of {STAC}/, such as {name}: {reason}")


def check_root(root: str | None) -> str | None:
    """Return `root` without a slash at its end if it is a URL that may be shown to anybody; raises `InputError`."""
    if root is None:
        return None
    if USER.search(root) or SIGNED.search(root):
        raise InputError(f"`root` {redact(root)}: everybody would read the user, password or signature in it")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s?#]*[^\s?#/]/*", root):
        raise InputError(
            f"`root` {root!r}: expected the URL under which others find the output, such as "
            "https://example.org/embeddings; leave it out for relative links"
        )
    return root.rstrip("/")


def kept_root(output: Storage) -> str | None:
    """The `root` that an output's catalogue was written with; None if its links are relative, or there is none."""
    try:
        links = parse_object(output.get(CATALOG, most=MOST_JSON))["links"]
        own = next(one["href"] for one in links if one["rel"] == "self")
        return check_root(own.removesuffix(f"/{CATALOG}"))
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, StopIteration, InputError):
        return None


def _read_receipts(storage: Storage) -> tuple[list[Receipt], dict[str, str]]:
    """All receipts of embeddings, and why those that are left out cannot be read."""
    paths = [entry.path for entry in storage.entries(RECEIPTS) if entry.path.endswith(".json")]

    def read(path: str) -> Receipt | str | None:
        try:
            return read_receipt(storage, path)
        except FileNotFoundError:
            return None  # a run at work makes its tile again
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(paths, pool.map(read, paths), strict=True))
    receipts = [one for one in found.values() if isinstance(one, Receipt)]
    return receipts, {path: one for path, one in found.items() if isinstance(one, str)}


def _sound(
    receipts: Iterable[Receipt], sizes: Mapping[str, int | None], left_out: dict[str, str]
) -> dict[str, tuple[Receipt, Published]]:
    """Files that are as their receipts say, by name; of others `left_out` is told why."""
    files = {file.name: (receipt, file) for receipt in receipts for file in receipt.files}
    for name in sizes.keys() - files.keys():
        left_out[name] = "it has no receipt: its run has not finished it, or it was not made by daskembed run"
    complete = {name: size for name, size in sizes.items() if size is not None}
    for name, (_, file) in files.items():
        if name not in complete:
            left_out[name] = (
                "it is gone, or not complete, its receipt says that it is there; the next run makes it again"
            )
        elif complete[name] != file.size:
            left_out[name] = f"it has {complete[name]} bytes, its receipt says {file.size}; the next run makes it again"
    return {name: files[name] for name in sorted(files) if name not in left_out}


def _kept_item(
    storage: Storage, receipt: Receipt, file: Published, root: str | None, paths: Iterable[str]
) -> tuple[str, dict[str, Any]] | None:
    """Of the items that there are of a file the one that was made of the same: its path and document."""
    for path in paths:
        try:
            found = parse_object(storage.get(path, most=MOST_JSON))
            told = found["properties"]
            same = told["daskembed:made_of"] == documents.made_of(receipt, file, root) and found["id"] == file.name
            whole = len(found["bbox"]) == 4 and {"start_datetime", "end_datetime"} <= told.keys()
            if same and whole and path == documents.item_path(_kind(found), file.name):
                return path, found
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, InputError):
            continue  # written anew
    return None


def _write_item(storage: Storage, receipt: Receipt, file: Published, root: str | None) -> tuple[str, dict[str, Any]]:
    form = format_of(file.name)
    try:
        made = form.read_provenance(storage, file.name)
        if made is None:
            raise ValueError("it does not say how it was made")
        kind = documents.kind_of(made, file.name, receipt.version)
        place = form.read_place(storage, file.name)
        dates = _NAME.fullmatch(file.name)
        if dates is None:
            raise ValueError("its name does not say its dates")
        first, last = "-".join(dates.groups()[:3]), "-".join(dates.groups()[3:])
        document = documents.item(receipt, file, kind, place, (first, last), root)
        data = _encoded(document)
    except (pa.ArrowException, ValueError, LookupError, TypeError, ShapelyError, pyproj.exceptions.ProjError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"damaged: {said}; `daskembed validate {shlex.quote(storage.url_of(file.name))}` says more"
        ) from None
    except FileNotFoundError:
        raise InputError("it is gone") from None
    path = documents.item_path(kind, file.name)
    storage.put(path, data)
    return path, document


def _kind(item: Mapping[str, Any]) -> Kind:
    kind: Kind = item["properties"]["daskembed:kind"]
    return kind


def _write_above(
    storage: Storage,
    items: Mapping[str, Mapping[str, Any]],
    receipts: Mapping[str, Receipt],
    root: str | None,
    present: Mapping[str, int],
) -> dict[str, int]:
    """Write what leads to the items, where it has changed; gives the items of each collection, by its path."""
    those: dict[str, list[Mapping[str, Any]]] = {}
    for one in items.values():
        those.setdefault(documents.collection_path(_kind(one)), []).append(one)
    kinds = {path: _kind(some[0]) for path, some in sorted(those.items())}
    made: dict[str, dict[str, Any]] = {documents.model_path(kind): model_item(kind, root) for kind in kinds.values()}
    for path, kind in kinds.items():
        sources = [url for one in those[path] for url in documents.sources_of(receipts[str(one["id"])])]
        made[path] = documents.collection(kind, those[path], sources, root)
    made[CATALOG] = documents.catalog(kinds.values(), root)
    for path, document in made.items():
        data = _encoded(document)
        if path not in present or storage.get(path) != data:
            storage.put(path, data)
    return {path: len(some) for path, some in those.items()}


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode()
