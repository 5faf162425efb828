"""Serving copies of an output's published files: what is asked, resolved, sent through the window and concluded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from daskembed.clusters.connection import check_connection, shares_files
from daskembed.errors import ConflictError, InputError
from daskembed.exports import state
from daskembed.exports.cog import parse_components
from daskembed.exports.names import KINDS
from daskembed.exports.plan import cut, one_a_day
from daskembed.exports.profiles import get_profile
from daskembed.exports.protocol import FORMATS, get_format
from daskembed.exports.rows import KEPT, parse_columns
from daskembed.exports.selection import Selection, check_places, check_readable, select
from daskembed.exports.settings import DEFAULT, Export, Sizes
from daskembed.exports.state import Plan
from daskembed.exports.unique import neighbours
from daskembed.geo.mgrs import tiles_of
from daskembed.output import lock
from daskembed.output.geoparquet import SUFFIX
from daskembed.output.state import RECEIPTS, STATE, now
from daskembed.quantization import read_calibration
from daskembed.runs import fleet
from daskembed.runs.calibration import FILE as CALIBRATION
from daskembed.runs.export_options import DTYPES, UNIQUE, Asked, ExportOptions
from daskembed.runs.export_results import ExportResult
from daskembed.runs.export_tasks import ExportedFiles, PublishedFiles
from daskembed.runs.options import documented
from daskembed.runs.reporting import Report
from daskembed.runs.shared_files import blind_to_output, check_source_seen, refuse_output, refuse_source
from daskembed.runs.window import Window, on_cluster
from daskembed.sources.reading import parse_dates
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local
from daskembed.text import counted

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.exports.selection import ExportTile
    from daskembed.quantization import Calibration

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


@dataclass(frozen=True)
class Job:
    """An export, and the published files that it copies."""

    export: Export
    selection: Selection

    @property
    def contents(self) -> dict[str, str]:
        """Of the published files; see `daskembed.exports.state.Plan.tiles`."""
        return {name: tile.content for name, tile in self.selection.tiles.items()}

    def missing(self, plan: Plan) -> list[str]:
        """Files of a plan that are not finished."""
        there = state.read_written(self.export.target, [file.name for file in plan.files])
        return [file.name for file in plan.files if file.name not in there]

    def to_index(self, plan: Plan | None) -> list[str]:
        """Published files of which it has to be known where their rows go.

        Of those that were looked at already it is seen then whether that was for this export.
        """
        if plan is None:
            return [*self.selection.tiles]
        missing = {*self.missing(plan)}
        return sorted({name for file in plan.files if file.name in missing for name in file.tiles})

    def tidy(self) -> None:
        """Remove what killed writers left half written."""
        self.export.target.sweep(rf"^embeddings_|^{state.FOLDER}|^[^/]*{get_format(self.export.format).SUFFIX}$")


def prepare(output: str, to: str, asked: Asked, sizes: Sizes = DEFAULT) -> Job:
    """What is to be copied and how, checked as far as that needs no cluster and no lock."""
    form = get_format(asked.format)
    if asked.components is not None and asked.format != "cog":
        raise InputError("`components` become bands of `format='cog'`; other formats have whole vectors")
    source, target = check_places(output, to)
    dates = None if asked.dates is None else parse_dates(asked.dates)
    selection = select(
        source,
        tiles=None if asked.tiles is None else tiles_of(asked.tiles),
        encoder=asked.encoder,
        level=asked.level,
        version=asked.version,
        region=asked.region,
        dates=dates,
    )
    check_readable(selection, skip_damaged=asked.skip_damaged)
    dtype = asked.dtype or selection.dtype
    export = Export(
        source,
        target,
        selection.made,
        selection.shape,
        format=asked.format,
        dtype=dtype,
        calibration=_calibration(asked, dtype, source, selection),
        **_rows(asked, selection),
        components=() if asked.components is None else parse_components(asked.components),
        dates=dates,
        region=asked.region,
        skip_damaged=asked.skip_damaged,
        sizes=sizes,
    )
    form.check(export)
    return Job(export, selection)


def _rows(asked: Asked, selection: Selection) -> dict[str, Any]:
    """What is asked of the rows and columns of an export, if these files and this format can have it."""
    for name, value, known in (("rows", asked.rows, KINDS), ("unique", asked.unique, UNIQUE)):
        if value not in known:
            raise InputError(f"unknown `{name}` {value!r}: choose {' or '.join(known)}")
    dims = selection.made.get("dims", ())
    if asked.rows == "patch" and not {"row", "col"} <= {*dims}:
        raise InputError(
            f"`rows='patch'` needs patches, and level {selection.made.get('level', 'unknown')!r} has none: choose "
            "published files of another `level`, or give `rows='chip'`"
        )
    if asked.format == "cog" and (asked.columns or asked.profile):
        raise InputError("`columns` and `profile` are of formats with rows; `format='cog'` has pixels")
    tiles: dict[str, str] = {}
    for name, tile in selection.tiles.items() if asked.unique == "place" else ():
        if tile.tile in tiles:
            raise InputError(
                f"`unique='place'` needs one published file a tile, and {tile.tile} has {tiles[tile.tile]} and {name}: "
                "choose one `version`, or remove one of them"
            )
        tiles[tile.tile] = name
    if asked.profile is not None:
        get_profile(asked.profile)
    columns = () if asked.columns is None else parse_columns(asked.columns)
    return {"rows": asked.rows, "unique": asked.unique, "columns": columns, "profile": asked.profile}


def _calibration(asked: Asked, dtype: str, source: Storage, selection: Selection) -> Calibration | None:
    """With what values of int8 are made: what is given, or what the output has; None of other types."""
    given = asked.calibration
    if dtype not in DTYPES:
        raise InputError(f"unknown `dtype` {dtype!r}: choose one of {', '.join(DTYPES)}")
    if dtype != "int8":
        if given is not None:
            raise InputError(f"a `calibration` is for `dtype='int8'`, and `dtype` is {dtype}: give both, or neither")
        return None
    try:
        found = read_calibration(given or source.url_of(CALIBRATION))
    except InputError:
        if given is not None or any(entry.path == CALIBRATION for entry in source.entries(STATE, recursive=False)):
            raise
        raise InputError(
            "`dtype='int8'` needs one calibration for all files, and this output has none: make it with "
            f"`daskembed calibrate {source.url}`"
        ) from None
    found.check(selection.made | {"shape": list(selection.shape)}, f"what is exported of {source.url}")
    return found


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
    settings = [
        f"{key} {plan.identity.get(key)}, not {value}"
        for key, value in job.export.identity.items()
        if plan.identity.get(key) != value
    ]
    # Damaged files may be whole again.
    anew = overwrite and plan.finished and plan.left_out
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


def _check_empty(target: Storage) -> None:
    """Raise `InputError` if a target without a plan holds files that an export could be mixed up with."""
    there = [entry.path for entry in target.entries(recursive=False)]
    suffixes = (SUFFIX, *(get_format(name).SUFFIX for name in FORMATS))
    if strange := [path for path in there if path.endswith(suffixes)]:
        what = "the output of a run" if target.entries(RECEIPTS, recursive=False) else "no export of daskembed"
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
    looked, seconds = PublishedFiles(export, tiles, _near(job, plan)), 0.0
    if to_index := job.to_index(plan):
        told.goes_on = True
        passage = Window(client, looked, to_index, told, check).run()
        seconds = passage.seconds
        if failed := told.failed | (looked.damaged if plan else {}):
            told.goes_on = False
            told.end("over")
        if failed or passage.interrupted:
            return _result(job, plan, 0, failed, seconds, interrupted=passage.interrupted)
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


def _near(job: Job, plan: Plan | None) -> dict[str, list[ExportTile]]:
    """Published file -> those that decide with it which of their rows stay, itself as well; none if all do."""
    if job.export.unique != "place":
        return {}
    # For what is new since the plan was made, and is not in it, no row may leave.
    among = job.selection.tiles.keys() if plan is None else plan.tiles.keys()
    named = {tile.tile: tile for name, tile in job.selection.tiles.items() if name in among}
    near = neighbours({name: tile.bbox for name, tile in named.items()})
    return {named[name].name: [named[other] for other in others] for name, others in near.items()}


def _planned(job: Job, looked: PublishedFiles) -> Plan:
    """Make the plan, and remove what an earlier one has made."""
    export, found = job.export, looked.found
    form = get_format(export.format)
    if form.UNIT == "tile":
        files = one_a_day({name: one.days for name, one in found.items()}, form.SUFFIX)
    else:
        pieces = {name: one.pieces for name, one in found.items()}
        files = cut(pieces, max(1, export.sizes.file // export.row_bytes), form.SUFFIX, form.FOLDER)
    left_out = job.selection.unreadable | looked.damaged
    rows = sum(one.rows for one in found.values())
    if not rows:
        damaged = f"{counted(len(left_out), 'published file')} left out as damaged; " if left_out else ""
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
