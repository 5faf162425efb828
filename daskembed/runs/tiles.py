"""The flow over many tiles: index, embed, publish, in a window that keeps the scheduler's memory flat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask

from daskembed import config
from daskembed.clusters.connection import check_connection, connect, hardware, shares_files
from daskembed.embedding import ON_NAN
from daskembed.encoders.description import Description
from daskembed.encoders.loading import foresee, load_encoder
from daskembed.errors import InputError
from daskembed.geo.mgrs import tiles_of
from daskembed.output import lock
from daskembed.output.protocol import check_dtype, get_sink, parse_formats
from daskembed.output.receipts import (
    Receipt,
    check_version,
    failed_record,
    published_files,
    read_receipts,
    sweep,
    write_record,
)
from daskembed.runs import dashboard, fleet, stages
from daskembed.runs import preflight as ahead
from daskembed.runs.conflicts import check_conflicts
from daskembed.runs.embed_tasks import EmbedTiles
from daskembed.runs.expected import recall
from daskembed.runs.reporting import Report
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.runs.settings import Settings, chips_a_block
from daskembed.runs.visibility import arrange, refuse_source
from daskembed.runs.window import DASK_CONFIG, Window
from daskembed.sources.kinds import no_chips
from daskembed.sources.reading import EDGE, NO_RULES, Reading, Rules, parse_dates, yes_or_no
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from distributed import Client


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
        `daskembed.runs.quarantine.FEW`, or its published file would vanish, the tile fails. 1 accepts everything.
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
        check_connection(chosen, cluster_arguments=cluster_arguments, workers=workers, listen=listen, tls=tls)
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
                connect(chosen, cluster_arguments=cluster_arguments, workers=workers, listen=listen, tls=tls) as client,
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
        chosen = needs.check_level(level or config.get("level"))
        for sink in map(get_sink, formats):
            sink.check_level(needs, chosen)
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
    found = fleet.meet(client, hardware)
    if precision == "auto":
        chosen = "bf16" if {one.precision for one in found} == {"bf16"} else "fp32"
        settings = replace(settings, encoder=replace(settings.encoder, precision=chosen))
    settings = arrange(client, settings, len(names))
    if not overwrite:
        check_conflicts(settings, names, receipts, published)
    workers = fleet.describe(found)
    told = Report(client, "embeddings", names, settings.output, settings.version, progress, events, workers)
    with dashboard.report(client, report):
        passage = Window(client, EmbedTiles(settings, receipts, published), names, told, check).run()
    return replace(told.result(**vars(passage)), expected=recall(settings))


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

    def results() -> Iterator[TileResult]:
        for tile, found in done.items():
            if isinstance(found, str):
                write_record(output, failed_record(tile, version, found))
                yield TileResult(tile, "failed", reason=found)
            else:
                stages.tidy(output, found, sorted((published or {}).get(tile, {})))
                yield stages.result_of(output, found, "skipped")

    some = any(isinstance(found, Receipt) for found in done.values())
    workers = ahead.no_cluster(nothing_left=some)
    return Report(None, "embeddings", tuple(done), output, version, progress, events, workers).conclude(results())
