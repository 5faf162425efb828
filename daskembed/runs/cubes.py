"""Tiles of chips as Zarr v3 cubes, one a tile: complete or absent, and gone on with where a run stopped.

The objects of a cube are written in this order: shards, coordinates, the array's metadata, the root's. Without the last
one there is no cube to open, and it is the first to go when chips have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from daskembed.clusters.connection import check_connection, shares_files
from daskembed.errors import InputError
from daskembed.output import lock
from daskembed.output.state import CUBES, receipt_path, sweep, write_failure
from daskembed.paths import StrPath, as_text
from daskembed.runs import cube_stages as stages
from daskembed.runs import fleet, preflight
from daskembed.runs.cube_layout import READERS, READING, Job
from daskembed.runs.cube_stages import Before
from daskembed.runs.cube_tasks import CubeTiles, result_of
from daskembed.runs.options import CubeOptions, Options, choice_of, documented
from daskembed.runs.reporting import Report
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.runs.shared_files import blind_to_output, check_source_seen, refuse_output, refuse_source
from daskembed.runs.tiles import check_share
from daskembed.runs.window import Window, on_cluster
from daskembed.sources.origin import open_source
from daskembed.sources.reading import parse_dates
from daskembed.sources.region import asked_tiles
from daskembed.sources.registry import no_chips
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from distributed import Client


@documented(CubeOptions)
def write_cubes(
    tiles: StrPath | Iterable[str] | None = None, *, output: StrPath, **options: Unpack[CubeOptions]
) -> RunResult:
    """Write the chips of tiles as Zarr v3 cubes, ``{output}/{tile}.zarr``, which `xarray.open_zarr` opens.

    A cube has the variable ``pixels``, float32 of ``(time, band, y, x)``: every date, and the smallest rectangle that
    holds all chips. Where there is no chip, or it is quarantined, pixels are NaN. Of `max_quarantined` only chips with
    bad headers count, and a tile that fails keeps its earlier cube; `readers` are a task's, 8 by default.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids; None if a `region` is given.
    output
        Folder or URL of the cubes.
    options
        See `daskembed.runs.options.Options`.

    Returns
    -------
    RunResult
        ``encoded`` are the chips that this run wrote.

    Raises
    ------
    InputError
        If anything is refused before a chip is read.
    ClusterLostError
        If the scheduler or all workers are lost.
    StorageUnusableError
        If a store refuses the credentials, loses its bucket or is full; the same call goes on from there.
    """
    output = as_text(output)
    asked, readers = Options.of(options, CubeOptions), options.get("readers")
    names = asked_tiles(tiles, asked.region)
    if readers is not None and readers < 1:
        raise InputError(f"readers {readers}: expected a number from 1")
    source = open_source(asked.source)
    reading = replace(
        READING,
        dates=None if asked.dates is None else parse_dates(asked.dates),
        numbers=asked.numbers,
        offset_applied=asked.offset_applied,
        region=asked.region,
        choice=choice_of(asked, source),
    )
    reading.check()
    job = Job(
        source,
        Storage(output),
        reading,
        readers=readers or READERS,
        max_quarantined=check_share(asked.max_quarantined),
        refresh=asked.refresh,
    )
    if job.source == job.output:
        raise InputError(f"{output} is the source too: cubes beside the chips would be taken for chips; give another")
    chosen = asked.cluster
    start: dict[str, Any] = {"cluster_arguments": asked.cluster_arguments, "workers": asked.workers}
    check_connection(chosen, **start)
    preflight.check_bands(source, reading, embeds=False)
    nothing: dict[str, Before | str] = {}
    if not (isinstance(source, Catalogue) or preflight.check_source(source, names)):
        nothing = {tile: no_chips(tile, source) for tile in names}
    with lock.hold(job.output, None) as check:
        told = partial(_report, output=job.output, progress=asked.progress, events=asked.events)
        if nothing:
            return _conclude(nothing, job, told)
        job = replace(job, lock=check)
        sweep(job.output, None)
        on_client = partial(_run_on, job=job, names=names, check=check, told=told)
        if isinstance(chosen, str):
            if (done := _settled(job, names)) is not None:
                return _conclude(done, job, told)
            if shares_files(chosen) is False:
                if is_local(source.url):
                    refuse_source(source, f"of the cluster {chosen!r}")
                if is_local(job.output.url):
                    refuse_output(job.output, f"of the cluster {chosen!r}")
        begun = any(True for _ in job.output.entries(CUBES, recursive=False))
        here = isinstance(chosen, str) and bool(shares_files(chosen))
        preflight.check_catalogue(source, reading, needed=here and not begun)
        return on_cluster(chosen, on_client, start) if isinstance(chosen, str) else on_client(chosen)


def _report(
    client: Client | None,
    tiles: Sequence[str],
    workers: str,
    *,
    output: Storage,
    progress: Callable[[Progress], None] | None,
    events: Callable[[Event], None] | None,
) -> Report:
    return Report(client, "cube", tiles, output, "", progress, events, workers)


def _settled(job: Job, names: Sequence[str]) -> dict[str, Before | str] | None:
    """What there is of all tiles, if nothing is left to do; see `daskembed.runs.preflight.settle`."""

    def look(tile: str) -> Before | None:
        found = stages.look(job, tile, asks=False)
        return None if found is None or found.finished(job) is None else found

    likely = {entry.path for entry in job.output.entries(CUBES, recursive=False)}
    return preflight.settle(names, look, [tile for tile in names if receipt_path(tile, None) in likely])


def _conclude(done: Mapping[str, Before | str], job: Job, told: Callable[..., Report]) -> RunResult:
    """The result of a run for which no cluster is needed: tiles that are finished or have no chips."""

    def results() -> Iterator[TileResult]:
        for tile, found in done.items():
            if isinstance(found, str):
                write_failure(job.output, tile, None, found)
                yield TileResult(tile, "failed", reason=found)
            else:
                stages.tidy(job, tile, found)
                assert found.receipt is not None
                yield result_of(job.output, found.receipt, "skipped")

    some = not all(isinstance(found, str) for found in done.values())
    return told(None, tuple(done), preflight.no_cluster(nothing_left=some)).conclude(results())


def _run_on(
    client: Client, *, job: Job, names: tuple[str, ...], check: Callable[[], None], told: Callable[..., Report]
) -> RunResult:
    threads = fleet.meet(client, fleet.threads)
    check_source_seen(client, job.source)
    if blind := blind_to_output(client, job.output, None):
        refuse_output(job.output, ", ".join(blind))
    report = told(client, names, f"{len(threads)} with {sum(threads)} threads")
    report.state.asks = job.source.name if isinstance(job.source, Catalogue) else ""
    return report.result(**vars(Window(client, CubeTiles(job), names, report, check).run()))
