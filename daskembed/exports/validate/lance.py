"""Tables of Lance checked: the receipts of their data files, and what is in all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daskembed.documents import parse_object
from daskembed.errors import DaskembedError, InputError
from daskembed.exports import state
from daskembed.exports.validate.geoparquet import check_schema, vectors_of
from daskembed.exports.validate.known import Known, check_bytes, check_made, read_known
from daskembed.exports.validate.rows import check_rows
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.provenance import lengths_of, typed
from daskembed.storage.stores import Storage

_ROWS = 1024
"""Rows that are read at a time."""


def check_table(storage: Storage, name: str, known: Known) -> Iterator[Finding]:
    """Check a table: its data files are read twice, some rows at a time."""
    if not storage.entries(name):
        raise FileNotFoundError(storage.url_of(name))
    planned = yield from _check_files(storage, name)
    try:
        import lance
    except ModuleNotFoundError:
        yield Finding("lance", "not opened, as pylance is not installed: pip install 'daskembed[lance]'", "note")
        return
    try:
        yield from _check_content(lance.dataset(storage.url_of(name)), planned, known)
    except DaskembedError:
        raise
    except Exception as error:  # whatever Lance, pyarrow and shapely raise of what somebody wrote
        yield Finding("lance", f"cannot be read as a table of Lance: {' '.join(str(error).split())[:200]}")


def _check_files(storage: Storage, name: str) -> Any:
    """Compare data files with their receipts; gives how many rows these say, None if nothing does."""
    try:
        plan = state.read_plan(storage)
    except InputError:
        plan = None  # which is told of already
    if plan is None:
        return None
    rows = 0
    for file in plan.files:
        known = read_known(storage, file.name)
        yield from (Finding(one.check, f"{file.name}: {one.message}", one.severity) for one in known.findings)
        try:
            with storage.open_reader(file.name) as reader:
                for one in check_bytes(reader, known.receipt):
                    yield Finding(one.check, f"{file.name}: {one.message}", one.severity)
        except FileNotFoundError:
            yield Finding("receipt", f"{file.name} is not there: the same `daskembed export` makes it")
        rows += known.receipt.rows if known.receipt is not None else 0
    return rows


def _check_content(table: Any, planned: int | None, known: Known) -> Iterator[Finding]:
    schema, made = table.schema, dict[str, Any]()
    try:
        made = yield from typed(parse_object((schema.metadata or {}).get(b"daskembed", b"")), "table")
    except ValueError:
        yield Finding("provenance", "no `daskembed` in its metadata: nothing says what made the embeddings")
    if made:
        yield from check_made(made, known.settings)
    shape = yield from lengths_of(made, "table")
    vectors = vectors_of(schema, known)
    usable = yield from check_schema(schema, vectors, made, shape, known)
    rows = table.count_rows()
    if planned is not None and rows != planned:
        yield Finding("receipt", f"{rows} rows, the receipts of its files say {planned}")
    batches = table.to_batches(columns=usable, batch_size=_ROWS, scan_in_order=True)
    yield from check_rows(batches, usable, vectors, {}, known)
