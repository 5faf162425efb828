"""What an output or an export holds: of an export the state of each file, read off its plan, receipts and listing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from daskembed.documents import MOST_JSON, parse_as
from daskembed.errors import InputError, StorageError
from daskembed.exports import state
from daskembed.exports.protocol import FORMATS, get_format
from daskembed.exports.state import ExportedFile, Plan, PlannedFile
from daskembed.output import geoparquet
from daskembed.output import status as outputs
from daskembed.output.export_status import ExportStatus, FileStatus, SourceStatus
from daskembed.output.published import list_published
from daskembed.output.stac_documents import STAC, item_of
from daskembed.output.state import RECEIPTS, read_receipt
from daskembed.output.tile_status import OutputStatus, StacStatus
from daskembed.paths import StrPath, as_text
from daskembed.storage.stores import Storage


def status(output: StrPath, tiles: StrPath | Iterable[str] | None = None, version: str | None = None) -> OutputStatus:
    """What an output or an export holds.

    Of an output: tiles done, unfinished, failed, missing and changed, and quarantined chips. Everything is read off
    its listing, its receipts and its records: three listings, one of each Zarr store, and one small file a tile.
    Published files are not opened; `daskembed.validate` does that. Of an export (`OutputStatus.export`) likewise: its
    plan, its receipts, its listing, and the receipts of the output that it was made of.

    Parameters
    ----------
    output
        Folder or URL of the published files, or of an export.
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids: only these, and those of them that were
        never begun are told as ``missing``.
    version
        Of the files, if others are not to be looked at.

    Raises
    ------
    InputError
        If `output` is neither an output of daskembed nor an export, `tiles` is no list of tiles, or either is given
        for an export, whose files hold rows of many.
    StorageError
        If the store does not answer as it should.
    """
    output = as_text(output)
    target = Storage(output)
    if not state.is_export(target):
        return outputs.status(output, tiles, version)
    if tiles is not None or version is not None:
        which = "tiles" if tiles is not None else "version"
        raise InputError(f"{target.url} is an export, whose files hold rows of many tiles: leave out `{which}`")
    plan = state.read_plan(target)
    failures = state.read_failures(target)
    if plan is None:
        return OutputStatus(target.url, (), export=ExportStatus("", {}, (), {}, (), None, failed=failures))
    there = {*(entry.path for entry in target.entries(recursive=False)), *target.folders()}
    files = _files(target, plan, failures)
    done = {file.name for file in files if file.status == "done"}
    suffixes = tuple(get_format(name).SUFFIX for name in FORMATS)
    own = {file.name.partition("/")[0] for file in files}
    others = tuple(name for name in sorted(there - own) if name.endswith(suffixes))
    found = ExportStatus(
        source=str(plan.identity.get("source", "")),
        settings=plan.identity,
        tiles=tuple(sorted(plan.tiles.keys() - plan.left_out.keys())),
        left_out=plan.left_out,
        files=files,
        finished=plan.finished,
        others=others,
        since=_since(plan),
        failed={name: why for name, why in failures.items() if name not in {*done, *plan.left_out}},
    )
    return OutputStatus(target.url, (), _stac(target, files), found)


def _files(target: Storage, plan: Plan, failures: Mapping[str, str]) -> tuple[FileStatus, ...]:
    sizes = state.sizes_of(target, [file.name for file in plan.files])
    known = {entry.path for entry in target.entries(state.FILES)}

    def look(planned: PlannedFile) -> FileStatus:
        path, size = state.receipt_of(planned.name), sizes.get(planned.name)
        if path not in known and planned.name in failures:
            why = f"{failures[planned.name]}; the same `daskembed export` tries it again"
            return FileStatus(planned.name, "failed", planned.rows, size, why)
        if path not in known:
            why = "not written yet: the same `daskembed export` goes on"
            return FileStatus(planned.name, "unfinished", planned.rows, size, why)
        try:
            receipt = parse_as(ExportedFile, target.get(path, most=MOST_JSON))
        except (FileNotFoundError, ValueError, InputError) as error:
            why = f"{path} is not a receipt of daskembed: {error}; the same `daskembed export` makes the file again"
            return FileStatus(planned.name, "damaged", planned.rows, size, why)
        if size == receipt.size:
            return FileStatus(planned.name, "done", receipt.rows, size)
        what = "it is gone" if size is None else f"it has {size} bytes, its receipt says {receipt.size}"
        why = f"{what}; the same `daskembed export` makes it again"
        return FileStatus(planned.name, "missing" if size is None else "changed", receipt.rows, size, why)

    with ThreadPoolExecutor(16) as pool:
        return tuple(pool.map(look, plan.files))


def _since(plan: Plan) -> SourceStatus:
    """How the published files are by now: of those without a receipt only size and tag are known, as in the plan."""
    try:
        source = Storage(str(plan.identity.get("source", "")))
        source.check_exists()
        there = {one.name for one in list_published(source) if one.name.endswith(geoparquet.SUFFIX)}
        entries = {entry.path: entry for entry in source.entries(recursive=False) if entry.path in there}
        with ThreadPoolExecutor(16) as pool:
            paths = [one.path for one in source.entries(RECEIPTS, recursive=False) if one.path.endswith(".json")]
            receipts = list(pool.map(lambda path: read_receipt(source, path), paths))
    except (InputError, StorageError, FileNotFoundError) as error:
        return SourceStatus(reason=str(error))
    published = {file.name: file for receipt in receipts for file in receipt.files}

    def content(name: str) -> str:
        entry = entries[name]
        if name not in published:
            return f"{entry.size} {entry.etag}"
        # Of another size than its receipt says, it is not what was exported.
        return published[name].sha256 if published[name].size == entry.size else f"{entry.size} {entry.etag}"

    both = plan.tiles.keys() & there
    return SourceStatus(
        changed=tuple(sorted(name for name in both - plan.left_out.keys() if content(name) != plan.tiles[name])),
        gone=tuple(sorted(plan.tiles.keys() - there)),
        new=tuple(sorted(there - plan.tiles.keys())),
    )


def _stac(target: Storage, files: Iterable[FileStatus]) -> StacStatus | None:
    """How the STAC fits the files that are done."""
    paths = [entry.path for entry in target.entries(STAC)]
    if not paths:
        return None
    items = {name for path in paths if (name := item_of(path))}
    done = {file.name for file in files if file.status == "done"}
    return StacStatus(len(items), tuple(sorted(done - items)), tuple(sorted(items - done)))
