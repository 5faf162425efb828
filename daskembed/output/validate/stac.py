"""The STAC of an output checked: its links, and its items against the receipts and the files that are there."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import InputError
from daskembed.output.protocol import Published
from daskembed.output.published import list_published
from daskembed.output.stac import kept_root
from daskembed.output.stac_documents import CATALOG, OURS, SHA256, STAC, item_of
from daskembed.output.state import EXPORTED, RECEIPTS, read_receipt
from daskembed.output.validate.findings import Finding
from daskembed.storage.stores import Storage

_AGAIN = "`daskembed stac` writes it anew"


def check_stac(output: Storage) -> Iterator[Finding]:
    """Check the folder ``_stac`` of an output: no published file is read."""
    paths = {entry.path for entry in output.entries(STAC)}
    if not paths:
        raise FileNotFoundError(output.url_of(STAC))
    if CATALOG not in paths:
        yield Finding("stac", f"no {CATALOG}: a run that writes it has not ended; {_AGAIN}")
    root = kept_root(output)
    sizes: dict[str, int | None] = {one.name: one.size for one in list_published(output)}
    sizes |= {one.path: one.size for one in output.entries(recursive=False) if one.path.endswith(".parquet")}
    receipts = yield from _receipts(output)
    there = {*paths, *(name for name, size in sizes.items() if size is not None)}
    items, linked = set[str](), {CATALOG}
    for path in sorted(path for path in paths if path == CATALOG or OURS.fullmatch(path)):
        try:
            document = parse_object(output.get(path, most=MOST_JSON))
        except (ValueError, InputError) as error:
            yield Finding("stac", f"{path} is no JSON object: {error}; {_AGAIN}")
            continue
        for rel, to in _ours(document, path, root):
            linked.add(to)
            if to not in there:
                yield Finding("stac", f"{path}: its link {rel} leads to {to}, which is not there; {_AGAIN}")
        if name := item_of(path):
            items.add(name)
            yield from _check_item(path, document, receipts.get(name), sizes.get(name))
    for path in sorted(path for path in paths - linked if OURS.fullmatch(path)):
        yield Finding("stac", f"nothing leads to {path}; {_AGAIN}")
    for name in sorted(receipts.keys() - items):
        yield Finding("stac", f"{name} has no item; {_AGAIN}")


def _receipts(output: Storage) -> Any:
    """What the receipts say of each file, and an export of its own."""
    found: dict[str, Published] = {}
    for entry in output.entries(RECEIPTS):
        try:
            found |= {file.name: file for file in read_receipt(output, entry.path).files}
        except InputError as error:
            yield Finding("receipt", str(error))
    for entry in output.entries(EXPORTED):
        try:
            told = parse_object(output.get(entry.path, most=MOST_JSON))
            found[told["name"]] = Published(told["name"], told["size"], told["sha256"])
        except (ValueError, LookupError) as error:
            yield Finding("receipt", f"{entry.path} does not say what its file is: {error}")
    return found


def _ours(document: Mapping[str, Any], path: str, root: str | None) -> Iterator[tuple[str, str]]:
    """Links and assets of a document that lead into the output: rel, and path below it."""
    links, assets = document.get("links"), document.get("assets")
    told: list[tuple[Any, Any]] = [(None, one) for one in links] if isinstance(links, list) else []
    told += assets.items() if isinstance(assets, dict) else []
    for key, one in told:
        if not isinstance(one, dict) or not isinstance(href := one.get("href"), str):
            yield str(key), "nothing"
            continue
        rel = key or one.get("rel")
        if root is not None and href.startswith(f"{root}/"):
            yield str(rel), href.removeprefix(f"{root}/")
        elif ":" not in href and not href.startswith("/"):
            yield str(rel), posixpath.normpath(posixpath.join(posixpath.dirname(path), href))


def _check_item(path: str, document: Mapping[str, Any], file: Published | None, size: int | None) -> Iterator[Finding]:
    try:
        asset = document["assets"]["embeddings"]
        told = asset["file:size"], asset.get("file:checksum") or SHA256 + asset["daskembed:sha256"]
    except (LookupError, TypeError, AttributeError):
        yield Finding("stac", f"{path} does not say the size and SHA-256 of its file; {_AGAIN}")
        return
    if file is None:
        yield Finding("stac", f"{path} is of a file that no receipt is of; {_AGAIN}")
        return
    if told != (file.size, SHA256 + file.sha256):
        yield Finding(
            "stac",
            f"{path} says {told[0]} bytes and SHA-256 {str(told[1])[4:]}, the receipt says {file.size} "
            f"and {file.sha256}; {_AGAIN}",
        )
    if size is not None and size != file.size:
        yield Finding("receipt", f"{file.name} has {size} bytes, its receipt says {file.size}")
