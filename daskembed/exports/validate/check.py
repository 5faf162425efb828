"""Published and exported files checked: each by what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from daskembed.documents import parse_object
from daskembed.errors import InputError
from daskembed.exports import state
from daskembed.exports.lance import TABLE
from daskembed.exports.validate.cog import check_cog
from daskembed.exports.validate.geoparquet import check_geoparquet
from daskembed.exports.validate.known import Known, read_known
from daskembed.exports.validate.lance import check_table
from daskembed.exports.validate.zarr import check_store, is_exported
from daskembed.output.stac_documents import STAC
from daskembed.output.validate import check as outputs
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import SUFFIXES
from daskembed.paths import StrPath, as_text
from daskembed.storage.stores import Storage, split_url
from daskembed.storage.urls import is_local, local_path

_Check = Callable[[Storage, str, Known], Iterator[Finding]]
_CHECKS: dict[str, _Check] = {
    ".parquet": check_geoparquet,
    ".tif": check_cog,
    ".zarr": check_store,
    ".lance": check_table,
}


def files_of(url: str) -> list[str]:
    """The files that an argument of the command names: a file itself, or all of a folder.

    Of an output that is all ``*.gpq`` and ``*.zarr``, of an export those of its plan, whether they are there or not. A
    folder's STAC is looked at as one.

    Raises
    ------
    InputError
        If there are none.
    """
    url = url.rstrip("/") or url
    if url.endswith(TABLE) or (url.endswith(tuple(_CHECKS)) and not (is_local(url) and local_path(url).is_dir())):
        return [url]
    # What its name says is a file or a store no server is asked about twice.
    named = url.endswith(SUFFIXES) or outputs.is_stac(url)
    if named or (is_local(url) and not local_path(url).is_dir()) or not state.is_export(Storage(url)):
        return outputs.files_of(url)
    target = Storage(url)
    if (plan := state.read_plan(target)) is None:
        raise InputError(f"the export {target.url} has no files yet: the same `daskembed export` goes on")
    stac = [STAC] if STAC in target.folders() else []
    # Of a table of many files there is one.
    names = dict.fromkeys(file.name.partition("/")[0] for file in plan.files)
    return [target.url_of(name) for name in (*names, *stac)]


def validate(file: StrPath) -> list[Finding]:
    """Check a published file, or one of an export.

    A GeoParquet file is read twice, a few rows at a time: once to decode it, once for its SHA-256. Each object of a
    Zarr store is read once. Files of the reference implementation are taken too: where they are only different, there
    are notes.

    Parameters
    ----------
    file
        Path or URL of a ``.gpq`` file or a ``.zarr`` store, of embeddings or a cube, of a ``.parquet`` or ``.tif`` file
        or the ``.lance`` table of an export, or of the folder ``_stac`` of either. Receipts are looked for in
        ``_daskembed/`` beside it.

    Returns
    -------
    list of Finding
        Problems and notes, in the order in which they were found; empty if the file is sound.

    Raises
    ------
    InputError
        If there is no such file, and no export that should have it.
    StorageError
        If the store does not answer as it should.
    """
    file = as_text(file).rstrip("/")
    check = next((one for suffix, one in _CHECKS.items() if file.endswith(suffix)), None)
    if check is None:
        return outputs.validate(file)
    storage, name = split_url(str(local_path(file)) if is_local(file) else file)
    known = read_known(storage, name, is_table=check is check_table)
    there = not is_local(file) or local_path(file).exists()
    if is_local(file) and there and local_path(file).is_file() == (check in (check_store, check_table)):
        return outputs.validate(file)  # which says what it is
    try:
        if known.nothing and (exported := _EXPORTED.get(check)) and not exported(storage, name):
            return outputs.validate(file)
        return [*known.findings, *check(storage, name, known)]
    except FileNotFoundError:
        if known.planned is None:
            raise InputError(f"{storage.url_of(name)} does not exist") from None
        return [Finding("receipt", "it is not there: the same `daskembed export` makes it")]


def _is_exported(storage: Storage, name: str) -> bool:
    """Whether a Parquet file says that it is of an export."""
    try:
        with pq.ParquetFile(storage.open_reader(name)) as file:
            return "export" in parse_object((file.metadata.metadata or {}).get(b"daskembed", b"{}"))
    except (pa.ArrowException, ValueError):
        return False


_EXPORTED: dict[_Check, Callable[[Storage, str], bool]] = {check_geoparquet: _is_exported, check_store: is_exported}
"""Check of files that runs have, too -> whether one says that it is of an export."""
