"""Serving copies of an output's published files: what is asked, resolved, sent through the window and concluded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import shapely

from daskembed.clusters.connection import check_connection, shares_files
from daskembed.errors import ConflictError, InputError
from daskembed.exports import state
from daskembed.exports.plan import cut, one_a_day, one_a_tile
from daskembed.exports.protocol import FORMATS, get_format
from daskembed.exports.rows import KEPT
from daskembed.exports.settings import DEFAULT, Export, Sizes
from daskembed.exports.state import Plan
from daskembed.exports.unique import neighbours
from daskembed.kinds import MODEL, differences
from daskembed.output import lock
from daskembed.output.geoparquet import SUFFIX
from daskembed.output.state import CUBES, RECEIPTS, RECORDS, STATE, now
from daskembed.runs import fleet
from daskembed.runs.export_job import Job, prepare
from daskembed.runs.export_options import Asked, ExportOptions
from daskembed.runs.export_results import ExportResult
from daskembed.runs.export_tasks import CheckedFiles, ExportedFiles, PublishedFiles
from daskembed.runs.options import documented
from daskembed.runs.reporting import Report
from daskembed.runs.shared_files import blind_to_output, check_source_seen, refuse_output, refuse_source
from daskembed.runs.window import Passage, Window, on_cluster
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local
from daskembed.text import counted

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.exports.selection import ExportTile

LOCK = "export"
"""What the lock of a target is called, in the place of a version."""


@documented(ExportOptions, Asked)
def export(output: str, *, to: str, **options: Unpack[ExportOptions]) -> ExportResult:
    """Make a serving copy of an output's published files: rows in Hilbert order, in large files with boxes.

    Nothing is computed again. Each file of the copy is complete or absent, and the same call goes on with what an
    earlier one left; a copy that is finished is left as it is.

    Parameters
    ----------
    output
        Folder or URL of the published files.
    to
        Folder or URL of the copy, with nothing else in it.
    options
        See `daskembed.runs.export_options.Asked`.

    Returns
    -------
    ExportResult

    Raises
    ------
    InputError
        If anything is refused before a vector is read; `ConflictError`, if the copy there is of other files or
        settings.
    ClusterLostError
        If the scheduler or all workers are lost.
    StorageUnusableError
        If a store refuses the credentials, loses its bucket or is full; the same call goes on from there.
    """
    asked = Asked.of(options, ExportOptions)
    return run_export(output, to, asked)


def run_export(output: str, to: str, asked: Asked, sizes: Sizes = DEFAULT) -> ExportResult:
    """As `export`, of what is asked, in files of some sizes."""
    start: dict[str, Any] = {"cluster_arguments": asked.cluster_arguments, "workers": asked.workers}
    check_connection(asked.cluster, **start)
    job = prepare(output, to, asked, sizes)
    with lock.hold(job.export.target, LOCK, called="to") as held:
        job = replace(job, export=replace(job.export, lock=held))
        job.tidy()
        plan = agreed(job, asked.overwrite)
        if plan is not None and plan.finished and not job.missing(plan):
            return _conclude(job, plan, asked)
        chosen, work = asked.cluster, partial(_run_on, job=job, plan=plan, asked=asked, check=held)
        if not isinstance(chosen, str):
            return work(chosen)
        if shares_files(chosen) is False:
            _refuse_local(job, chosen)
        return on_cluster(chosen, work, start)


def agreed(job: Job, overwrite: bool) -> Plan | None:
    """The plan that the target has of this export; None if one is to be made.

    Raises
    ------
    ConflictError
        If what is there is of other files or settings, and is not to be replaced.
    InputError
        If it is no export.
    """
    target, plan = job.export.target, state.read_plan(job.export.target)
    if plan is None:
        _check_empty(target)
        return None
    before, now_ = plan.tiles, job.contents
    new, gone = now_.keys() - before.keys(), before.keys() - now_.keys()
    changed = {name for name in before.keys() & now_.keys() if before[name] != now_[name]}
    of_model = differences(plan.identity, job.export.identity)
    settings = [
        _told_apart(key, plan.identity.get(key), value)
        for key, value in job.export.identity.items()
        if (key in of_model if key in MODEL else plan.identity.get(key) != value)
    ]
    # Damaged files may be whole again; and with those that are damaged since no call goes on.
    anew = overwrite and ((plan.finished and plan.left_out) or before.keys() & state.read_failures(target).keys())
    if not settings and not gone and not changed and not (new and plan.finished) and not anew:
        return plan
    if not overwrite:
        differ = [(len(new), "new"), (len(changed), "changed"), (len(gone), "gone or not chosen")]
        files = ", ".join(f"{count} {what}" for count, what in differ if count)
        why = f"was made with {'; '.join(settings)}" if settings else f"is of other published files ({files})"
        raise ConflictError(
            f"the export {target.url} {why}: give another `to` to keep both, or `overwrite=True` to make it anew"
        )
    return None


def _told_apart(key: str, before: Any, value: Any) -> str:
    """What a setting was and is, in a few words: regions of many corners by their boxes."""
    if key != "region":
        return f"{key} {before}, not {value}"
    boxes = [one and ",".join(f"{edge:g}" for edge in shapely.from_wkt(one).bounds) for one in (before, value)]
    if boxes[0] == boxes[1]:
        return f"another region in {boxes[0]}"
    was, now_ = ("none" if one is None else f"in {one}" for one in boxes)
    return f"region {was}, not {now_}"


def _check_empty(target: Storage) -> None:
    """Raise `InputError` if a target without a plan holds files that an export could be mixed up with."""
    there = [*(entry.path for entry in target.entries(recursive=False)), *target.folders()]
    suffixes = (SUFFIX, *(get_format(name).SUFFIX for name in FORMATS))
    # Of a run at work, which has published nothing yet, there is only its state.
    begun = [path for path in target.folders(STATE) if path in (RECEIPTS, RECORDS, CUBES)]
    if strange := [path for path in there if path.endswith(suffixes)] or begun:
        what = "the output of a run" if begun else "no export of daskembed"
        raise InputError(f"{target.url} holds {strange[0]} and is {what}: give a folder of its own as `to`")


def _refuse_local(job: Job, cluster: str) -> None:
    if is_local(job.export.source.url):
        refuse_source(job.export.source, f"of the cluster {cluster!r}")
    if is_local(job.export.target.url):
        refuse_output(job.export.target, f"of the cluster {cluster!r}")


def _run_on(client: Client, *, job: Job, plan: Plan | None, asked: Asked, check: Callable[[], None]) -> ExportResult:
    export, tiles = job.export, job.selection.tiles
    threads = fleet.meet(client, fleet.threads)
    check_source_seen(client, export.source)
    if blind := blind_to_output(client, export.target, None):
        refuse_output(export.target, ", ".join(blind))
    told = Report(
        client,
        "embeddings",
        [*tiles],
        export.target,
        "",
        asked.progress,
        asked.events,
        f"{len(threads)} with {sum(threads)} threads",
        units=("tiles", "rows"),
    )
    looked, seconds = PublishedFiles(export, tiles, _near(job, plan), planned=plan is not None), 0.0
    if to_index := job.to_index(plan):
        passage = _look(client, looked, to_index, told, check)
        seconds = passage.seconds
        if told.failed:
            told.goes_on = False
            told.end("over")
        if told.failed or passage.interrupted:
            return _result(job, plan, 0, told.failed, seconds, interrupted=passage.interrupted)
    plan = plan or _planned(job, looked)
    planned = {file.name: file for file in plan.files}
    missing = job.missing(plan)
    told.turn_to(("files", "rows"), missing, sum(planned[name].rows for name in missing))
    work = ExportedFiles(export, tiles, {name: planned[name] for name in missing})
    passage = Window(client, work, missing, told, check).run()
    seconds += passage.seconds
    if not told.failed and not passage.interrupted:
        there = state.read_written(export.target, planned)
        notes = get_format(export.format).finish(export, [there[file.name] for file in plan.files])
        rows = sum(file.rows for file in there.values())
        plan = replace(plan, finished=now(), rows=rows, notes=[*dict.fromkeys([*plan.notes, *notes])])
        state.clear_index(export.target)
        # At the end: what is finished is not looked at again.
        state.write_plan(export.target, plan)
    return _result(job, plan, len(work.written), told.failed, seconds, interrupted=passage.interrupted)


def _look(
    client: Client, looked: PublishedFiles, to_index: list[str], told: Report, check: Callable[[], None]
) -> Passage:
    """See where the rows of published files go; before that, where neighbours count, what of them is damaged."""
    told.goes_on, before = True, 0.0
    if looked.export.checks_neighbours:
        names = sorted({tile.name for name in to_index for tile in looked.near[name]})
        passage = Window(client, CheckedFiles(looked.export, looked.tiles), names, told, check).run()
        if told.failed or passage.interrupted:
            return passage
        told.turn_to(("tiles", "rows"), to_index, 0, goes_on=True)
        before = passage.seconds
    passage = Window(client, looked, to_index, told, check).run()
    return replace(passage, seconds=before + passage.seconds)


def _near(job: Job, plan: Plan | None) -> dict[str, list[ExportTile]]:
    """Published file -> those that decide with it which of their rows stay, itself as well; none if all do."""
    if job.export.unique != "place":
        return {}
    # For what is not in the plan, as it is new since or was damaged then, no row may leave.
    among = job.selection.tiles.keys() if plan is None else plan.tiles.keys() - plan.left_out.keys()
    named = {tile.tile: tile for name, tile in job.selection.tiles.items() if name in among}
    near = neighbours({name: tile.bbox for name, tile in named.items()})
    return {named[name].name: [named[other] for other in others] for name, others in near.items()}


def _planned(job: Job, looked: PublishedFiles) -> Plan:
    """Make the plan, and remove what an earlier one has made."""
    export, found = job.export, looked.found
    form = get_format(export.format)
    if form.UNIT != "range":
        each = one_a_day if form.UNIT == "day" else one_a_tile
        files = each({name: one.days for name, one in found.items()}, form.SUFFIX)
    else:
        pieces = {name: one.pieces for name, one in found.items()}
        files = cut(pieces, max(1, export.sizes.file // export.row_bytes), form.SUFFIX, form.FOLDER)
    left_out = job.selection.unreadable | looked.damaged
    rows = sum(one.rows for one in found.values())
    if not rows:
        damaged = f"{counted(len(left_out), 'published file')} left out as damaged; " if left_out else ""
        export.confirm()
        state.clear_index(export.target)
        raise InputError(f"no row of {export.source.url} is left: {damaged}check `dates`, `region` and `tiles`")
    unchecked = sum(tile.sha256 is None for tile in job.selection.tiles.values())
    notes = (
        [f"{counted(unchecked, 'published file')} without a receipt: whether the bytes are whole cannot be known"]
        if unchecked
        else []
    )
    old = sum(not one.kept for one in found.values())
    if old and (null := _kept_columns(export)):
        notes.append(
            f"{counted(old, 'published file')} of earlier versions, whose runs kept no {' and no '.join(null)} of "
            "their rows: there is none"
        )
    plan = Plan(export.identity, job.contents, left_out, files, rows, [*job.selection.notes, *notes])
    export.confirm()
    state.clear(export.target)
    state.write_plan(export.target, plan)
    return plan


def _kept_columns(export: Export) -> list[str]:
    """What is asked that only what a run keeps can tell."""
    asked = [*export.columns, *(("datetime",) if export.profile == "majortom" else ())]
    return [name for name in KEPT if name in asked]


def _result(
    job: Job,
    plan: Plan | None,
    written: int,
    failed: dict[str, str],
    seconds: float,
    *,
    interrupted: bool,
) -> ExportResult:
    files = [] if plan is None else plan.files
    there = state.read_written(job.export.target, [file.name for file in files])
    new = 0 if plan is None else len(job.contents.keys() - plan.tiles.keys())
    notes = [] if plan is None else plan.notes
    if new:
        was = "were" if new > 1 else "was"
        notes = [*notes, f"{counted(new, 'published file')} {was} new since it began: `overwrite=True` makes it anew"]
    return ExportResult(
        output=job.export.source.url,
        to=job.export.target.url,
        files=tuple(there[file.name] for file in files if file.name in there),
        written=written,
        unfinished=sum(file.name not in there for file in files),
        tiles=len(job.contents if plan is None else plan.tiles.keys() - plan.left_out.keys()),
        left_out=job.selection.unreadable if plan is None else plan.left_out,
        failed=failed,
        notes=tuple(notes),
        seconds=seconds,
        interrupted=interrupted,
    )


def _conclude(job: Job, plan: Plan, asked: Asked) -> ExportResult:
    """The result of an export that is finished already."""
    workers = "nothing is left to do: no cluster is started"
    told = Report(None, "embeddings", [], job.export.target, "", asked.progress, asked.events, workers)
    told.conclude([])
    return _result(job, plan, 0, {}, 0.0, interrupted=False)
