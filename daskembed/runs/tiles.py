"""The flow over many tiles: index, embed, publish, in a window that keeps the scheduler's memory flat."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask

from daskembed import config
from daskembed.clusters.connection import (
    WORKER_TIMEOUT,
    await_worker,
    check_connection,
    check_versions,
    connect,
    hardware,
    shares_files,
)
from daskembed.clusters.proof import TRIES, prove_workers
from daskembed.embedding import ON_NAN
from daskembed.encoders.description import Description
from daskembed.encoders.loading import foresee, load_encoder
from daskembed.errors import ConflictError, InputError
from daskembed.geo.mgrs import tiles_of
from daskembed.output import lock
from daskembed.output.protocol import check_dtype, format_of, get_format, parse_formats
from daskembed.output.published import check_version, published_files
from daskembed.output.state import (
    Receipt,
    read_receipts,
    receipt_path,
    sweep,
    with_plain_source,
    write_failure,
)
from daskembed.runs import dashboard, stages
from daskembed.runs import preflight as ahead
from daskembed.runs.reporting import Report
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.runs.settings import Settings, chips_a_block, parse_dates
from daskembed.runs.visibility import arrange, refuse_source
from daskembed.runs.window import DASK_CONFIG, Flow
from daskembed.sources.kinds import no_chips
from daskembed.sources.reading import EDGE, NO_RULES, Reading, Rules, yes_or_no
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.hardware import Hardware


def run(
    tiles: str | Iterable[str],
    *,
    source: str | None = None,
    output: str | None = None,
    encoder: str | None = None,
    checkpoint: str | None = None,
    sensor: str | None = None,
    window: int | None = None,
    level: str | None = None,
    cluster: str | Client | None = None,
    cluster_arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
    dates: str | None = None,
    version: str | None = None,
    on_nan: str | None = None,
    max_quarantined: float | None = None,
    retry_quarantined: bool = False,
    format: str | None = None,
    dtype: str | None = None,
    offset: tuple[int, int] | None = None,
    edge: str | None = None,
    rules: Rules | None = None,
    numbers: str | None = None,
    offset_applied: str | None = None,
    overwrite: bool = False,
    listen: str | None = None,
    tls: bool = False,
    performance_report: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    events: Callable[[Event], None] | None = None,
) -> RunResult:
    """Embed tiles: one published file and one receipt each. None takes the configuration's value.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids.
    source
        Folder or URL above the tiles.
    output
        Folder or URL of the published files.
    encoder, checkpoint, sensor, window, precision, batch_size, readers
        See `daskembed.load_encoder`; here ``auto`` precision is what all workers compute natively.
    level
        One of the encoder's, such as ``mean`` or ``patch``.
    cluster
        Name of a preset, path of a YAML preset, address or ``.json`` file of a scheduler, or a connected
        ``distributed.Client``.
    cluster_arguments, workers
        See `daskembed.clusters.connection.connect`, which has them as `arguments` and `workers`.
    dates
        ``START/END`` as ISO dates, both inclusive.
    version
        Part of the files' names: other settings need another version.
    on_nan
        ``quarantine`` or ``fill``.
    max_quarantined
        Share of a tile's chips that may newly be quarantined; if more are, and more than
        `daskembed.runs.stages.FEW`, or its published file would vanish, the tile fails. 1 accepts everything.
    retry_quarantined
        Make finished tiles again that have quarantined chips.
    format
        ``geoparquet``, ``zarr`` or ``geoparquet,zarr``.
    dtype
        Of the values in the files: ``float32`` or ``float16``.
    offset, edge, rules, numbers, offset_applied
        See `daskembed.index_tile`.
    overwrite
        Replace files that were made with other settings.
    listen, tls
        See `daskembed.clusters.connection.connect`.
    performance_report
        Path of a file on this machine for Dask's report of the run (HTML).
    progress
        Called with the run's state after every change.
    events
        Called with what happens, one `daskembed.runs.results.Event` at a time.

    Raises
    ------
    InputError
        If anything is refused before a chip is read.
    ClusterLostError
        If the scheduler or all workers are lost while the run goes on.
    StorageUnusableError
        If a store refuses the credentials, loses its bucket or is full while the run goes on; what is finished stays,
        and the same run goes on from there.
    """
    wanted_precision = precision or config.get("precision")
    chosen = cluster if cluster is not None else config.get("cluster")
    if not isinstance(chosen, str) and (cluster_arguments or workers):
        raise InputError(
            "cluster_arguments and workers are for a cluster that is started for the run, not for a client"
        )
    shared = None
    if isinstance(chosen, str):
        check_connection(chosen, arguments=cluster_arguments, workers=workers, listen=listen, tls=tls)
        shared = shares_files(chosen)
    names, place = tiles_of(tiles), Storage(source or config.get("source"))
    conclude = partial(_conclude, progress=progress, events=events)
    made, named = Storage(output or config.get("output")), check_version(str(version or config.get("version")))
    if not ahead.check_source(place, names):
        # Nothing is fetched for that, weights least of all.
        with lock.hold(made, named):
            return conclude({tile: no_chips(tile, place) for tile in names}, made, named)
    lock.check_output(made, named)
    if performance_report is not None:
        dashboard.check_report(performance_report)
    names, settings = resolve(
        names,
        source=source,
        output=output,
        encoder=encoder,
        checkpoint=checkpoint,
        sensor=sensor,
        window=window,
        level=level,
        precision=wanted_precision,
        batch_size=batch_size,
        readers=readers,
        dates=dates,
        version=version,
        on_nan=on_nan,
        max_quarantined=max_quarantined,
        retry_quarantined=retry_quarantined,
        format=format,
        dtype=dtype,
        offset=offset,
        edge=edge,
        rules=rules,
        numbers=numbers,
        offset_applied=offset_applied,
    )
    with lock.hold(settings.output, settings.version) as held:
        settings = replace(settings, lock=held)
        sweep(settings.output, settings.version)
        receipts = read_receipts(settings.output, names, settings.version)
        published = published_files(settings.output, settings.version, sweep=True)
        on_client = partial(
            _run_on,
            names=names,
            settings=settings,
            precision=wanted_precision,
            receipts=receipts,
            published=published,
            overwrite=overwrite,
            check=held,
            report=performance_report,
            progress=progress,
            events=events,
        )
        if not isinstance(chosen, str):
            return on_client(chosen)
        auto = wanted_precision == "auto"
        done = ahead.settled(settings, names, receipts, published, any_precision=auto)
        if done is not None:
            return conclude(done, settings.output, settings.version, published)
        if not overwrite:
            # Of `auto` the workers have to say what it is.
            check_conflicts(settings, names, receipts, published, leave=("precision",) if auto else ())
        if is_local(settings.source.url) and shared is False:
            refuse_source(settings.source.url, f"of the cluster {chosen!r}")
        result: RunResult | None = None
        try:
            with (
                dask.config.set(DASK_CONFIG),
                connect(chosen, arguments=cluster_arguments, workers=workers, listen=listen, tls=tls) as client,
            ):
                result = on_client(client)
        except KeyboardInterrupt:
            if result is None:
                raise
            # While the cluster closed: what the run did is told all the same.
            return replace(result, interrupted=True)
        return result


def resolve(
    tiles: str | Iterable[str],
    *,
    source: str | None,
    output: str | None,
    encoder: str | None = None,
    checkpoint: str | None,
    sensor: str | None = None,
    window: int | None = None,
    level: str | None,
    precision: str,
    batch_size: int | None,
    readers: int | None,
    dates: str | None,
    version: str | None,
    on_nan: str | None,
    max_quarantined: float | None = None,
    retry_quarantined: bool = False,
    format: str | None = None,
    dtype: str | None = None,
    offset: tuple[int, int] | None = None,
    edge: str | None = None,
    rules: Rules | None = None,
    numbers: str | None = None,
    offset_applied: str | None = None,
) -> tuple[tuple[str, ...], Settings]:
    """The tiles and what to do with each, checked as far as that needs no cluster, source or output; see `run`."""
    names = tiles_of(tiles)
    read_from, write_to = Storage(source or config.get("source")), Storage(output or config.get("output"))
    read_as = Reading(
        dates=None if dates is None else parse_dates(dates),
        offset=offset or (0, 0),
        edge=edge or EDGE[0],
        rules=rules or NO_RULES,
        numbers=numbers or config.get("numbers"),
        offset_applied=offset_applied or yes_or_no(config.get("offset-applied")),
    )
    read_as.check()
    named = check_version(str(version or config.get("version")))
    formats, kind = parse_formats(format or config.get("format")), check_dtype(dtype or config.get("dtype"))
    share = check_share(config.get("max-quarantined") if max_quarantined is None else max_quarantined)
    missing = on_nan or config.get("on-nan")
    if missing not in ON_NAN:
        raise InputError(f"unknown --on-nan {missing!r}: choose one of {', '.join(ON_NAN)}")

    def check_level(needs: Description) -> str:
        chosen = needs.check_level(level or config.get("level") or next(iter(needs.levels)))
        for kind in map(get_format, formats):
            kind.check_level(needs, chosen)
        return chosen

    # All that can be said without the checkpoint is said before it is fetched.
    if (foreseen := foresee(checkpoint, encoder=encoder, sensor=sensor, window=window)) is not None:
        check_level(foreseen)
    described = load_encoder(
        checkpoint,
        encoder=encoder,
        sensor=sensor,
        window=window,
        # What `auto` means is for the workers to say, once there are some.
        precision="fp32" if precision == "auto" else precision,
        batch_size=batch_size,
        readers=readers,
    )
    needs = described.description
    level = check_level(needs)
    settings = Settings(
        source=read_from,
        output=write_to,
        encoder=described,
        level=level,
        on_nan=missing,
        max_quarantined=share,
        retry_quarantined=retry_quarantined,
        reading=replace(read_as, sensor=needs.sensor, resolution=needs.resolution),
        version=named,
        chips_a_block=chips_a_block(described, level),
        formats=formats,
        dtype=kind,
    )
    return names, settings


def check_share(share: object) -> float:
    """Return a share of chips; raise `InputError` if it is none."""
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise InputError(f"--max-quarantined {share}: expected a share from 0 to 1, such as 0.1")
    return float(share)


def _run_on(
    client: Client,
    *,
    names: tuple[str, ...],
    settings: Settings,
    precision: str,
    receipts: dict[str, Receipt],
    published: dict[str, dict[str, int]],
    overwrite: bool,
    check: Callable[[], None],
    report: str | None,
    progress: Callable[[Progress], None] | None,
    events: Callable[[Event], None] | None,
) -> RunResult:
    found: list[Hardware] = []
    for _ in range(TRIES):
        await_worker(client, WORKER_TIMEOUT)
        check_versions(client)
        # A worker that dies at this moment does not answer, and may have been the only one.
        if prove_workers(client) and (found := list(client.run(hardware, on_error="ignore").values())):
            break
        time.sleep(1)
    else:
        raise InputError(f"no worker of {client.scheduler.address} answers: look at their logs")
    if precision == "auto":
        chosen = "bf16" if {one.precision for one in found} == {"bf16"} else "fp32"
        settings = replace(settings, encoder=replace(settings.encoder, precision=chosen))
    settings = arrange(client, settings, len(names))
    if not overwrite:
        check_conflicts(settings, names, receipts, published)
    from daskembed.runs.plan import recall  # which is made of parts of this module

    flow = Flow(client, names, settings, receipts, published, check, progress, events, _describe(found))
    with dashboard.report(client, report):
        return replace(flow.run(), expected=recall(settings))


def _conclude(
    done: Mapping[str, Receipt | str],
    output: Storage,
    version: str,
    published: Mapping[str, Mapping[str, int]] | None = None,
    *,
    progress: Callable[[Progress], None] | None,
    events: Callable[[Event], None] | None,
) -> RunResult:
    """The result of a run for which no cluster is needed: tiles that are finished (their receipts) or have no chips."""
    some = any(isinstance(found, Receipt) for found in done.values())
    why = "nothing is left to do" if some else "no chips of any tile"
    report = Report(None, len(done), output, version, progress, events, f"{why}: no cluster is started")
    report.begin()
    for tile, found in done.items():
        report.tile_started(tile)
        report.state.indexed += 1
        if isinstance(found, str):
            write_failure(output, tile, version, found)
            report.finished(TileResult(tile, "failed", reason=found), {})
        else:
            stages.tidy(output, found, sorted((published or {}).get(tile, {})))
            report.finished(stages.result_of(output, found, "skipped"), {})
    report.end("over")
    return RunResult(output.url, tuple(report.state.finished), 0, 0, 0.0, interrupted=False, stage_seconds={})


def _describe(workers: list[Hardware]) -> str:
    """What the workers are, in a line; says so where they do not all compute with the same kind of device."""
    kinds = Counter(map(str, workers))
    line = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    devices = {worker.device for worker in workers}
    return line + (" (a mixed fleet: each block goes to whoever is free)" if len(devices) > 1 else "")


def check_conflicts(
    settings: Settings,
    names: tuple[str, ...],
    receipts: dict[str, Receipt],
    published: dict[str, dict[str, int]],
    *,
    leave: Collection[str] = (),
) -> None:
    """Raise `ConflictError` if a tile's file was made with other settings; those of `leave` are not compared."""
    for tile in names:
        if receipt := receipts.get(tile):
            made, what = receipt.settings, receipt.file or receipt_path(tile, settings.version)
        elif tile in published:
            # A run that died between file and receipt left this, or somebody else did.
            what = next(iter(published[tile]))
            provenance = format_of(what).read_provenance(settings.output, what)
            made = (provenance or {}).get("identity", {"daskembed": "unknown: not made by it"})
        else:
            continue
        made, wanted = with_plain_source(made), settings.identity
        changed = [
            f"{key} {made.get(key) or 'all'}, not {wanted.get(key) or 'all'}"
            for key in (*wanted, *(key for key in made if key not in wanted))
            if made.get(key) != wanted.get(key) and key not in leave
        ]
        if changed:
            raise ConflictError(
                f"{settings.output.url_of(what)} was made with {'; '.join(changed)}: "
                "give another --version to keep both, or --overwrite to replace it"
            )
