"""Published files checked: each by what it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import InputError
from daskembed.output import state, zarr
from daskembed.output.geozarr import ROOT
from daskembed.output.stac_documents import STAC
from daskembed.output.validate.cube import check_cube
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.geoparquet import check_file
from daskembed.output.validate.names import EMBEDDINGS, SUFFIXES, tile_of_cube
from daskembed.output.validate.stac import check_stac
from daskembed.output.validate.zarr import check_store as check_embeddings
from daskembed.storage.local_files import meant_beside
from daskembed.storage.stores import Storage, split_url
from daskembed.storage.urls import is_local, local_path

_OTHERS = (".zgroup", ".zarray", ".zmetadata")
"""Roots of stores of Zarr 2."""


def files_of(url: str) -> list[str]:
    """The files that an argument of the command names: a file itself, or all ``*.gpq`` and ``*.zarr`` of a folder.

    The folder of an output's STAC is looked at as one.

    Raises
    ------
    InputError
        If there are none.
    """
    url = url.rstrip("/") or url
    if url.endswith(SUFFIXES) or (is_local(url) and local_path(url).is_file()):
        return [url]
    storage = Storage(url)
    found = [*(entry.path for entry in storage.entries(recursive=False)), *storage.folders()]
    if is_stac(url):
        return [url]
    names = sorted(name for name in found if name.endswith(SUFFIXES))
    if STAC in found:
        names.append(STAC)
    if not names:
        if is_local(url) and not (path := local_path(url)).exists():
            raise InputError(f"no file and no folder {path}{meant_beside(path, Path.exists)}")
        raise InputError(
            f"no files *{' or *'.join(SUFFIXES)} in {storage.url}: give a file, or the folder of an output or an export"
        )
    return [storage.url_of(name) for name in names]


def validate(file: str) -> list[Finding]:
    """Check a published file.

    A GeoParquet file is read twice, a few rows at a time: once to decode it, once for its SHA-256. Each object of a
    Zarr store is read once. Files of the reference implementation are taken too: where they are only different, there
    are notes.

    Parameters
    ----------
    file
        Path or URL of a ``.gpq`` file or a ``.zarr`` store, of embeddings or a cube, or of the folder ``_stac`` of an
        output. Receipts are looked for in ``_daskembed/`` beside it.

    Returns
    -------
    list of Finding
        Problems and notes, in the order in which they were found; empty if the file is sound.

    Raises
    ------
    InputError
        If there is no such file.
    StorageError
        If the store does not answer as it should.
    """
    storage, name = split_url(str(local_path(file)) if is_local(file) else file.rstrip("/"))
    is_store = name.endswith(zarr.SUFFIX)
    if is_stac(name):
        try:
            return list(check_stac(storage))
        except FileNotFoundError as error:
            raise InputError(f"{error} does not exist: `daskembed stac {shlex.quote(storage.url)}` writes it") from None
    if is_local(file) and not is_store and (there := local_path(file)).exists() and not there.is_file():
        what = "folder" if there.is_dir() else "pipe or a device"
        raise InputError(f"{file} is a {what}: expected a file *{SUFFIXES[0]} or a store *{zarr.SUFFIX}")
    try:
        return list(_check_store(storage, name) if is_store else check_file(storage, name))
    except FileNotFoundError:
        raise InputError(f"{storage.url_of(name)} does not exist") from None


def is_stac(url: str) -> bool:
    """Whether a path or URL is that of an output's STAC."""
    return url.rstrip("/").rpartition("/")[2] == STAC


def _check_store(storage: Storage, name: str) -> Iterator[Finding]:
    """Check a store of ours, or say that it is another's."""
    sizes = {entry.path.removeprefix(f"{name}/"): entry.size for entry in storage.entries(name)}
    if not sizes:
        raise FileNotFoundError(storage.url_of(name))
    kind = _kind(storage, name, sizes)
    if kind == "embeddings":
        yield from check_embeddings(storage, name, sizes)
    elif kind == "cube":
        yield from check_cube(storage, name, sizes)
    else:
        yield Finding(
            "zarr", "is no Zarr store that daskembed made, neither of embeddings nor of chips: nothing to check it by"
        )


def _kind(storage: Storage, name: str, sizes: dict[str, int]) -> Literal["embeddings", "cube"] | None:
    """By what its root says; by its name, if that says nothing."""
    attributes: Any = None
    if ROOT in sizes:
        try:
            attributes = parse_object(storage.get(f"{name}/{ROOT}", most=MOST_JSON)).get("attributes")
        except ValueError:
            attributes = None
    made = attributes.get("daskembed") if isinstance(attributes, dict) else None
    if isinstance(made, dict) or EMBEDDINGS.fullmatch(name):
        return "embeddings"
    if isinstance(made, str):
        return "cube"
    tile = tile_of_cube(name)
    known = tile is not None and any(
        entry.path == state.receipt_path(tile, None) for entry in storage.entries(state.CUBES)
    )
    unfinished = tile is not None and ROOT not in sizes and not any(other in sizes for other in _OTHERS)
    return "cube" if known or unfinished else None
