"""One calibration of all published files of an output: values counted a file at a time on a cluster, then added up."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from daskembed.clusters.connection import check_connection, shares_files
from daskembed.documents import json_digest
from daskembed.errors import InputError, TileError
from daskembed.exports.selection import ExportTile, Selection, check_readable, select
from daskembed.exports.statistics import Statistics
from daskembed.geo.mgrs import tiles_of
from daskembed.histogram import Histogram
from daskembed.kinds import kind_of
from daskembed.output.state import STATE, now
from daskembed.quantization import Calibration, check_percentile, read_calibration
from daskembed.runs import fleet
from daskembed.runs.export_options import Asked, CalibrationOptions
from daskembed.runs.export_results import list_some
from daskembed.runs.export_tasks import Item
from daskembed.runs.options import documented
from daskembed.runs.reporting import Report
from daskembed.runs.results import TileResult
from daskembed.runs.shared_files import blind_to_output, refuse_output
from daskembed.runs.summary import describe_seconds
from daskembed.runs.tasks import Following, Observer, Task
from daskembed.runs.window import Window, on_cluster
from daskembed.storage.stores import Storage, split_url
from daskembed.storage.urls import is_local, local_path, redact
from daskembed.text import counted, visible

if TYPE_CHECKING:
    from distributed import Client

FILE = f"{STATE}/calibration.json"
"""Path of a calibration below the output that it was made of, where it is not said; that of another kind of its files
is beside it."""
COUNTS = f"{STATE}/calibration"
"""Folder of the counts of published files."""


@dataclass(frozen=True, repr=False)
class CalibrationResult:
    """What became of a calibration."""

    output: str
    """Path or URL of the published files."""
    calibration: Calibration | None
    """None if it could not be made: files failed, or are not counted yet."""
    file: str | None
    """Path or URL where it is written."""
    files: int
    """Published files that were chosen."""
    counted: int
    """Of them by this call; the others were counted before."""
    left_out: dict[str, str]
    """Damaged files -> what is wrong with them, where they were to be skipped."""
    failed: dict[str, str]
    """Files that could not be counted -> why."""
    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool

    def __repr__(self) -> str:
        return f"<CalibrationResult>\n{summary(self)}"

    @property
    def exit_status(self) -> int:
        """0 all done, 3 done but for damaged files, 4 some failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 4 if self.failed else 3 if self.left_out else 0


@documented(CalibrationOptions, Asked)
def calibrate(output: str, *, to: str | None = None, **options: Unpack[CalibrationOptions]) -> CalibrationResult:
    """Find out between which values the vectors of an output lie, for `daskembed.export` to make int8 of them.

    The values of each published file are counted once and the counts kept below ``{output}/_daskembed/calibration``:
    again, only files that are new or were written again are read. The result is the same to the last bit whatever was
    counted first.

    Parameters
    ----------
    output
        Folder or URL of the published files.
    to
        Path or URL of the calibration, a JSON file; by default ``{output}/_daskembed/calibration.json``, or beside it
        if that is of another level or encoder: an export of that output finds the one that fits.
    options
        See `daskembed.runs.export_options.Asked`.

    Returns
    -------
    CalibrationResult

    Raises
    ------
    InputError
        If anything is refused before a vector is read.
    ClusterLostError
        If the scheduler or all workers are lost.
    StorageUnusableError
        If a store refuses the credentials, loses its bucket or is full; the same call goes on from there.
    """
    asked = Asked.of(options, CalibrationOptions)
    check_percentile(asked.percentile)
    start: dict[str, Any] = {"cluster_arguments": asked.cluster_arguments, "workers": asked.workers}
    check_connection(asked.cluster, **start)
    source = Storage(output)
    source.check_exists()
    if to is not None and (to.endswith("/") or (is_local(to) and local_path(to).is_dir())):
        file = f"{to.rstrip('/') or '.'}/calibration.json"
        raise InputError(f"{to or 'an empty path'} is a folder: give a file as `to`, such as {file}")
    selection = select(
        source,
        tiles=None if asked.tiles is None else tiles_of(asked.tiles),
        encoder=asked.encoder,
        level=asked.level,
        version=asked.version,
    )
    check_readable(selection, skip_damaged=asked.skip_damaged)
    counts = Statistics(source, COUNTS, Histogram, selection.shape[-1])
    counts.tidy(selection.tiles)
    job = _Job(selection, counts, asked, to)
    if not (missing := counts.missing(selection.tiles.values())):
        _report(None, job, [], "nothing is left to count: no cluster is started").conclude([])
        return _result(job, 0, {}, {}, 0.0, interrupted=False)
    chosen, work = asked.cluster, partial(_run_on, job=job, missing=missing)
    if not isinstance(chosen, str):
        return work(chosen)
    if shares_files(chosen) is False and is_local(source.url):
        refuse_output(source, f"of the cluster {chosen!r}")
    return on_cluster(chosen, work, start)


@dataclass(frozen=True)
class _Job:
    selection: Selection
    counts: Statistics[Histogram]
    asked: Asked
    to: str | None
    """None for the output's own place."""


def _run_on(client: Client, *, job: _Job, missing: list[str]) -> CalibrationResult:
    threads = fleet.meet(client, fleet.threads)
    if blind := blind_to_output(client, job.counts.output, None):
        refuse_output(job.counts.output, ", ".join(blind))
    report = _report(client, job, missing, f"{len(threads)} with {sum(threads)} threads")
    work = CountedFiles(job.counts, job.selection.tiles, skip_damaged=job.asked.skip_damaged)
    passage = Window(client, work, missing, report, lambda: None).run()
    done = len(work.rows)
    return _result(job, done, work.damaged, report.failed, passage.seconds, interrupted=passage.interrupted)


def _report(client: Client | None, job: _Job, names: list[str], workers: str) -> Report:
    told = job.asked.progress, job.asked.events
    return Report(client, "embeddings", names, job.counts.output, "", *told, workers, units=("files", "vectors"))


def _result(
    job: _Job, done: int, damaged: dict[str, str], failed: dict[str, str], seconds: float, *, interrupted: bool
) -> CalibrationResult:
    tiles, asked = job.selection.tiles, job.asked
    left_out = job.selection.unreadable | dict(sorted(damaged.items()))
    made, to, wanted = None, None, [tile for name, tile in tiles.items() if name not in left_out]
    if not failed and not interrupted:
        if not wanted:
            raise InputError(f"no published file of {job.counts.output.url} is left: {next(iter(left_out.values()))}")
        total = job.counts.total(wanted)
        made = Calibration.of(total, asked.percentile, job.selection.made, len({tile.tile for tile in wanted}))
        to = job.to or _own_place(job.counts.output, made)
        storage, name = split_url(to)
        storage.put(name, made.text().encode())
    return CalibrationResult(
        output=job.counts.output.url,
        calibration=made,
        file=to,
        files=len(tiles) + len(job.selection.unreadable),
        counted=done,
        left_out=left_out,
        failed=failed,
        seconds=seconds,
        interrupted=interrupted,
    )


def _own_place(output: Storage, made: Calibration) -> str:
    """Where an output keeps a calibration: that of something else stays."""
    try:
        there = read_calibration(output.url_of(FILE))
    except InputError:  # none, or damaged
        return output.url_of(FILE)
    return output.url_of(FILE if not there.misfit(made.model) else _other(made))


def _other(made: Calibration) -> str:
    level = re.sub(r"[^0-9A-Za-z]+", "-", str(made.level))
    return f"{FILE.removesuffix('.json')}-{level}-{json_digest(kind_of(made.model, n_dims=str(made.n_dims)))[:8]}.json"


def find_calibration(output: Storage, made: Mapping[str, Any], what: str) -> Calibration:
    """The calibration of an output that is for vectors that were `made` so; `what` names them.

    Raises
    ------
    InputError
        If there is none of them.
    """
    stem = FILE.removesuffix(".json")
    there = [entry.path for entry in output.entries(STATE, recursive=False) if entry.path.startswith(stem)]
    found, damaged = [], None
    for path in there:
        try:
            found += [read_calibration(output.url_of(path))] if path.endswith(".json") else []
        except InputError as error:  # of another kind of vectors, perhaps
            damaged = damaged or error
    if fits := next((one for one in found if not one.misfit(made)), None):
        return fits
    if damaged is not None:
        raise damaged
    if not found:
        raise InputError(
            "`dtype='int8'` needs one calibration for all files, and this output has none: make it with "
            f"`daskembed calibrate {shlex.quote(output.url)}`"
        )
    found[0].check(made, what)
    return found[0]


@dataclass(frozen=True)
class CountedFiles:
    """Published files whose values are counted; see `daskembed.runs.tasks.Work`."""

    counts: Statistics[Histogram]
    tiles: Mapping[str, ExportTile]
    skip_damaged: bool
    rows: dict[str, int] = field(default_factory=dict)
    """Vectors counted, by the file's name."""
    damaged: dict[str, str] = field(default_factory=dict)
    """File -> why it was left out."""
    pieces: ClassVar[str] = "file"

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return f"{redact(self.counts.output.url)} calibration"

    def most_tiles(self, threads: int) -> None:
        """No bound: what is counted is soon done."""

    def begin(self, name: str, order: int) -> Task[Any]:
        """Count a file."""
        return _Count(Item(name, order, now()), self)


@dataclass(frozen=True)
class _Count(Task["int | str"]):
    tile: Item
    work: CountedFiles
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., int | str], tuple[Any, ...]]:
        work = self.work
        return count_file, (work.counts, work.tiles[self.tile.name], work.skip_damaged)

    def then(self, found: int | str, observer: Observer) -> Following:
        name = self.tile.name
        if isinstance(found, str):
            self.work.damaged[name] = found
            return TileResult(name, "left out", reason=found, unit="vector")
        self.work.rows[name] = found
        return TileResult(name, "counted", chips=found, unit="vector")


def count_file(counts: Statistics[Histogram], tile: ExportTile, skip_damaged: bool) -> int | str:
    """On a worker: count a file's values; gives its vectors, or why it is left out."""
    try:
        return counts.keep(tile)
    except TileError as error:
        if skip_damaged:
            return str(error)
        raise TileError(f"{error}; have its tile made again, or leave it out with `skip_damaged=True`") from None


def summary(result: CalibrationResult) -> str:
    """The closing lines of a calibration."""
    before = result.files - result.counted - len(result.left_out) - len(result.failed)
    states = ((result.counted, "counted"), (before, "not counted yet" if result.interrupted else "counted before"))
    files = ", ".join(f"{count} {what}" for count, what in states if count) or "none"
    fast = f" in {describe_seconds(result.seconds)}" if result.counted else ""
    made = result.calibration
    lines = [
        f"files        {files}{fast}, of {result.output}",
        *list_some("left out", result.left_out),
        *list_some("failed", result.failed),
    ]
    if made is not None:
        lines += [
            f"vectors      {made.rows:,} of {made.n_dims} dimensions, of {counted(made.tiles, 'tile')}",
            f"clipped      at most {100 - made.percentile:.4g} % of a dimension's values at either end",
            f"calibration  {result.file}",
        ]
    elif result.interrupted:
        lines.append("interrupted: the same command goes on from here")
    else:
        lines.append("no calibration yet: the same command tries again what failed, and leaves what is counted")
    return "\n".join(map(visible, lines))
