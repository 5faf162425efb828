"""Runs over tiles to embed: what is asked, resolved, started and concluded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from daskembed.clusters.connection import check_connection, hardware, shares_files
from daskembed.embedding import ON_NAN
from daskembed.encoders.description import Description
from daskembed.encoders.loading import check_precision, find_encoder, foresee
from daskembed.errors import InputError
from daskembed.output import lock
from daskembed.output.protocol import check_dtype, get_format, parse_formats
from daskembed.output.published import check_version, published_files
from daskembed.output.stac import complete, kept_root
from daskembed.output.state import Receipt, TileRecord, read_receipts, sweep, write_failure
from daskembed.paths import StrPath
from daskembed.runs import dashboard, fleet, preflight, stages
from daskembed.runs.conflicts import check_conflicts
from daskembed.runs.embed_tasks import EmbedTiles
from daskembed.runs.expected import recall
from daskembed.runs.kept import chosen_by, keepers
from daskembed.runs.options import Options, RunOptions, choice_of, documented
from daskembed.runs.previews import with_preview
from daskembed.runs.reporting import Report
from daskembed.runs.results import Event, Progress, RunResult, TileResult
from daskembed.runs.settings import Settings, chips_a_block
from daskembed.runs.shared_files import arrange, refuse_source
from daskembed.runs.window import Window, on_cluster
from daskembed.sources.origin import Origin, open_source
from daskembed.sources.reading import Reading, parse_dates
from daskembed.sources.region import asked_tiles
from daskembed.sources.registry import no_chips
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from distributed import Client


@documented(RunOptions)
def run(tiles: StrPath | Iterable[str] | None = None, **options: Unpack[RunOptions]) -> RunResult:
    """Embed tiles: one published file and one receipt each. None takes the configuration's value.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids; None if a `region` is given.
    options
        See `daskembed.runs.options.Options`.

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
    asked = Options.of(options, RunOptions)
    result = _run(tiles, asked)
    if asked.stac:
        output = Storage(asked.output)
        complete(output, kept_root(output))
    return with_preview(result) if asked.preview else result


def _run(tiles: StrPath | Iterable[str] | None, asked: Options) -> RunResult:
    chosen = asked.cluster
    start: dict[str, Any] = {
        "cluster_arguments": asked.cluster_arguments,
        "workers": asked.workers,
        "listen": asked.listen,
        "tls": asked.tls,
    }
    check_connection(chosen, **start)
    shared = shares_files(chosen) if isinstance(chosen, str) else None
    names, source = asked_tiles(tiles, asked.region), open_source(asked.source)
    conclude = partial(_conclude, progress=asked.progress, events=asked.events)
    output, version = Storage(asked.output), check_version(asked.version)
    if not (isinstance(source, Catalogue) or preflight.check_source(source, names)):
        # Nothing is fetched for that, weights least of all.
        with lock.hold(output, version):
            return conclude({tile: no_chips(tile, source) for tile in names}, output, version)
    lock.check_output(output, version)
    if asked.performance_report is not None:
        dashboard.check_report(asked.performance_report)
    decide = resolve(asked, partial(ask_catalogue, asked=asked, source=source, names=names, here=bool(shared)))
    with lock.hold(output, version) as held:
        sweep(output, version)
        receipts = read_receipts(output, names, version)
        published = published_files(output, version, sweep=True)
        auto = asked.precision == "auto"
        # As long as no worker has said what `auto` is: what all that is there already was made with.
        likely = decide(preflight.precision_of(receipts) if auto else asked.precision)
        kept = keepers(chosen_by(source, likely.reading), output, version, names, receipts)
        on_client = partial(
            _run_on,
            names=names,
            asked=asked,
            decide=lambda precision: replace(decide(precision), lock=held),
            receipts=receipts,
            published=published,
            kept=kept,
            check=held,
        )
        if isinstance(chosen, str):
            done = preflight.settled(likely, names, receipts, published, kept)
            if done is not None:
                return conclude(done, output, version, published)
            if not asked.overwrite:
                check_conflicts(likely, names, receipts, published, leave=("precision",) if auto else ())
            if is_local(source.url) and shared is False:
                refuse_source(source, f"of the cluster {chosen!r}")
        return on_cluster(chosen, on_client, start) if isinstance(chosen, str) else on_client(chosen)


def resolve(asked: Options, ask: Callable[[Reading], None] = lambda reading: None) -> Callable[[str], Settings]:
    """What to do with each tile, checked as far as that needs no cluster or output: once the precision is said.

    Of ``auto`` only the workers can say it; what it is until then is nowhere written.

    Parameters
    ----------
    ask
        Checks the source for what is to be read of it: before weights are fetched, unless only these tell what.
    """
    source, output = open_source(asked.source), Storage(asked.output)
    reading = reading_of(asked, source)
    version = check_version(asked.version)
    formats, dtype = parse_formats(asked.format), check_dtype(asked.dtype)
    share = check_share(asked.max_quarantined)
    if asked.on_nan not in ON_NAN:
        raise InputError(f"unknown `on_nan` {asked.on_nan!r}: choose one of {', '.join(ON_NAN)}")
    check_precision(asked.precision)

    def check_needs(needs: Description) -> str:
        preflight.check_bands(source, replace(reading, sensor=needs.sensor))
        chosen = needs.check_level(asked.level)
        for form in map(get_format, formats):
            form.check_level(needs, chosen)
        return chosen

    which: dict[str, Any] = {"encoder": asked.encoder, "sensor": asked.sensor, "window": asked.window}
    # All that can be said without the checkpoint is said before it is fetched.
    if (foreseen := foresee(asked.checkpoint, **which)) is not None:
        check_needs(foreseen)
        ask(replace(reading, sensor=foreseen.sensor))
    encoder_of = find_encoder(asked.checkpoint, **which, batch_size=asked.batch_size, readers=asked.readers)
    if foreseen is None:
        found = encoder_of("fp32").description
        check_needs(found)
        ask(replace(reading, sensor=found.sensor))

    def decide(precision: str) -> Settings:
        encoder = encoder_of(precision)
        needs = encoder.description
        level = check_needs(needs)
        return Settings(
            source=source,
            output=output,
            encoder=encoder,
            level=level,
            on_nan=asked.on_nan,
            max_quarantined=share,
            retry_quarantined=asked.retry_quarantined,
            refresh=asked.refresh,
            reading=replace(reading, sensor=needs.sensor, resolution=needs.resolution),
            version=version,
            chips_a_block=chips_a_block(encoder, level),
            formats=formats,
            dtype=dtype,
            stac=asked.stac,
            stac_root=kept_root(output) if asked.stac else None,
        )

    return decide


def ask_catalogue(reading: Reading, *, asked: Options, source: Origin, names: tuple[str, ...], here: bool) -> None:
    """Refuse a catalogue that has not what is wanted of it, unless all tiles keep their scenes.

    Parameters
    ----------
    here
        Whether it is read from this machine: workers elsewhere may reach what this one does not.
    """
    if not isinstance(source, Catalogue):
        return
    output, version = Storage(asked.output), check_version(asked.version)
    kept = keepers(chosen_by(source, reading), output, version, names, read_receipts(output, names, version))
    if asked.refresh or {*names} - {*kept}:
        preflight.check_catalogue(source, reading, needed=here and not kept)


def reading_of(asked: Options, source: Origin) -> Reading:
    """How chips are to be found, cut and judged, but for the sensor, which the encoder says."""
    reading = Reading(
        dates=None if asked.dates is None else parse_dates(asked.dates),
        offset=asked.offset,
        edge=asked.edge,
        rules=asked.rules,
        numbers=asked.numbers,
        offset_applied=asked.offset_applied,
        region=asked.region,
        choice=choice_of(asked, source),
    )
    reading.check()
    return reading


def check_share(share: object) -> float:
    """Return a share of chips; raise `InputError` if it is none."""
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise InputError(f"`max_quarantined={share!r}`: expected a share from 0 to 1, such as 0.1")
    return float(share)


def _run_on(
    client: Client,
    *,
    names: tuple[str, ...],
    asked: Options,
    decide: Callable[[str], Settings],
    receipts: dict[str, Receipt],
    published: dict[str, dict[str, int]],
    kept: Mapping[str, Receipt | TileRecord],
    check: Callable[[], None],
) -> RunResult:
    found = fleet.meet(client, hardware)
    native = "bf16" if {one.precision for one in found} == {"bf16"} else "fp32"
    settings = arrange(client, decide(native if asked.precision == "auto" else asked.precision), len(names))
    if not asked.overwrite:
        check_conflicts(settings, names, receipts, published)
    workers = fleet.describe(found)
    told = Report(client, "embeddings", names, settings.output, settings.version, asked.progress, asked.events, workers)
    told.state.asks = settings.source.name if isinstance(settings.source, Catalogue) else ""
    with dashboard.report(client, asked.performance_report):
        passage = Window(client, EmbedTiles(settings, receipts, published, kept), names, told, check).run()
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
                write_failure(output, tile, version, found)
                yield TileResult(tile, "failed", reason=found)
            else:
                stages.tidy(output, found, sorted((published or {}).get(tile, {})))
                yield stages.result_of(output, found, "skipped")

    some = any(isinstance(found, Receipt) for found in done.values())
    workers = preflight.no_cluster(nothing_left=some)
    return Report(None, "embeddings", tuple(done), output, version, progress, events, workers).conclude(results())
