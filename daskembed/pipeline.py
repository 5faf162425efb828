"""The flow over many tiles: index, embed, publish, in a window that keeps the scheduler's memory flat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from daskembed import config, stages, timings
from daskembed.clusters import connect
from daskembed.embedding import ON_NAN
from daskembed.encoders import load_encoder, resolve_precision
from daskembed.errors import ConflictError, DaskembedError, InputError, StorageUnusableError, TileError
from daskembed.levels import check_level
from daskembed.receipts import STATE, Receipt, check_version, published_files, read_receipts, receipt_path
from daskembed.results import Progress, RunResult, TileResult
from daskembed.settings import Settings, chips_a_block, parse_dates
from daskembed.sinks import get_sink
from daskembed.storage import Storage
from daskembed.tiles import check_tile, read_tiles

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2
"""How often a task is tried again after an error, on top of the stores' own retries."""
WORKER_TIMEOUT = 600
"""Seconds to wait for the first worker: machines in a cloud take minutes."""


def run(
    tiles: str | Iterable[str],
    *,
    source: str | None = None,
    output: str | None = None,
    checkpoint: str | None = None,
    level: str | None = None,
    cluster: str | Client | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
    dates: str | None = None,
    version: str | None = None,
    on_nan: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Embed tiles: one published file and one receipt each.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids.
    source
        Folder or URL above the tiles.
    output
        Folder or URL of the published files.
    checkpoint, precision, batch_size, readers
        See `daskembed.load_encoder`; here ``auto`` precision is what all workers compute natively.
    level
        ``mean``, ``patch`` or ``group``.
    cluster
        Name of a preset, path of a YAML preset, address of a scheduler, or a connected ``distributed.Client``.
    dates
        ``START/END`` as ISO dates, both inclusive.
    version
        Part of the files' names: other settings need another version.
    on_nan
        ``quarantine`` or ``fill``.
    overwrite
        Replace files that were made with other settings.
    progress
        Called with the run's state after every change.

    None takes the configuration's value.

    Raises
    ------
    InputError
        If anything is refused before a chip is read.
    StorageUnusableError
        If a store refuses the credentials, loses its bucket or is full while the run goes on; what is finished stays,
        and the same run goes on from there.
    """
    names = read_tiles(tiles) if isinstance(tiles, str) else tuple(dict.fromkeys(map(check_tile, tiles)))
    if not names:
        raise InputError("no tiles: give at least one MGRS tile id, such as 27WXN")
    wanted_precision = precision or config.get("precision")
    encoder = load_encoder(
        checkpoint,
        # What `auto` means is for the workers to say, once there are some.
        precision="fp32" if wanted_precision == "auto" else wanted_precision,
        batch_size=batch_size,
        readers=readers,
    )
    level = check_level(level or config.get("level"))
    settings = Settings(
        source=Storage(source or config.get("source")),
        output=Storage(output or config.get("output")),
        encoder=encoder,
        level=level,
        on_nan=on_nan or config.get("on-nan"),
        dates=None if dates is None else parse_dates(dates),
        version=check_version(str(version or config.get("version"))),
        chips_a_block=chips_a_block(encoder, level),
    )
    if settings.on_nan not in ON_NAN:
        raise InputError(f"unknown --on-nan {settings.on_nan!r}: choose one of {', '.join(ON_NAN)}")
    settings.source.check_exists()
    _check_writable(settings.output)
    receipts = read_receipts(settings.output, names, settings.version)

    chosen = cluster if cluster is not None else config.get("cluster")
    if not isinstance(chosen, str):
        return _run_on(chosen, names, settings, wanted_precision, receipts, overwrite, progress)
    with connect(chosen) as client:
        return _run_on(client, names, settings, wanted_precision, receipts, overwrite, progress)


def _run_on(
    client: Client,
    names: tuple[str, ...],
    settings: Settings,
    precision: str,
    receipts: dict[str, Receipt],
    overwrite: bool,
    progress: Callable[[Progress], None] | None,
) -> RunResult:
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError:
        raise InputError(
            f"no worker joined {client.scheduler.address} within {WORKER_TIMEOUT} s: start one with `dask worker`"
        ) from None
    if precision == "auto":
        native = set(client.run(resolve_precision, "auto").values())
        chosen = "bf16" if native == {"bf16"} else "fp32"
        settings = replace(settings, encoder=replace(settings.encoder, precision=chosen))
    published = published_files(settings.output, settings.version, get_sink("geoparquet").SUFFIX)
    if not overwrite:
        _check_conflicts(settings, names, receipts, published)
    return _Flow(client, names, settings, receipts, published, progress).run()


def _check_writable(output: Storage) -> None:
    probe = f"{STATE}/write-test"
    try:
        output.put(probe, b"")
        output.delete([probe])
    except (DaskembedError, OSError) as error:
        raise InputError(f"the output {output.url} cannot be written: {error}; give another --output") from None


def _check_conflicts(
    settings: Settings, names: tuple[str, ...], receipts: dict[str, Receipt], published: dict[str, list[str]]
) -> None:
    for tile in names:
        if receipt := receipts.get(tile):
            made, what = receipt.settings, receipt.file or receipt_path(tile, settings.version)
        elif tile in published:
            # A run that died between file and receipt left this, or somebody else did.
            what = published[tile][0]
            provenance = get_sink("geoparquet").read_provenance(settings.output, what)
            made = (provenance or {}).get("identity", {"daskembed": "unknown: not made by it"})
        else:
            continue
        wanted = settings.identity
        changed = [
            f"{key} {made.get(key) or 'all'}, not {wanted.get(key) or 'all'}"
            for key in (*wanted, *(key for key in made if key not in wanted))
            if made.get(key) != wanted.get(key)
        ]
        if changed:
            raise ConflictError(
                f"{settings.output.url_of(what)} was made with {'; '.join(changed)}: "
                "give another --version to keep both, or --overwrite to replace it"
            )


@dataclass
class _Job:
    """One tile on its way."""

    tile: str
    order: int
    started: str
    indexed: stages.Indexed | None = None
    waiting: dict[Future, stages.Block] = field(default_factory=dict)
    """Blocks that are not done yet."""
    stage: str = "index"


class _Flow:
    """The tiles' way through the cluster, driven by what finishes."""

    def __init__(
        self,
        client: Client,
        names: tuple[str, ...],
        settings: Settings,
        receipts: dict[str, Receipt],
        published: dict[str, list[str]],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        from distributed import as_completed

        self._client, self._settings, self._receipts, self._published = client, settings, receipts, published
        self._todo = iter(enumerate(names))
        self._queue = as_completed(raise_errors=False)
        self._jobs: dict[Future, _Job] = {}
        self._state = Progress(len(names), client.dashboard_link)
        self._tell = progress or (lambda state: None)
        self._room, self._room_until = 1, 0.0

    def run(self) -> RunResult:
        start, before = time.perf_counter(), self._client.run(timings.seconds)
        self._tell(self._state)
        interrupted = False
        try:
            try:
                self._fill()
                self._drain(self._fill)
            except KeyboardInterrupt:
                interrupted = True
                # Blocks are given up, files whose blocks are all done are still published.
                self._cancel([f for f, job in self._jobs.items() if job.stage != "publish"])
                self._drain(lambda: None)
        except KeyboardInterrupt:
            pass  # the second one: stop at once
        finally:
            self._cancel(list(self._jobs))
        seconds = time.perf_counter() - start
        return RunResult(
            output=self._settings.output.url,
            tiles=tuple(self._state.finished),
            unfinished=self._state.tiles - len(self._state.finished),
            encoded=self._state.encoded,
            seconds=seconds,
            interrupted=interrupted,
            stage_seconds={} if interrupted else self._stage_seconds(before),
        )

    def _fill(self) -> None:
        """Start tiles until every thread has blocks waiting: fewer starve it, more only fill the scheduler."""
        if time.monotonic() > self._room_until:
            # Workers come and go, but asking for each block would cost as much as the block.
            self._room = 3 * max(1, sum(self._client.nthreads().values()))
            self._room_until = time.monotonic() + 1
        while len(self._jobs) < self._room and (following := next(self._todo, None)) is not None:
            order, tile = following
            job = _Job(tile, order, stages.now())
            files = self._published.get(tile, [])
            receipt = self._receipts.get(tile)
            if receipt and (receipt.settings != self._settings.identity or receipt.file not in (None, *files)):
                receipt = None
            self._submit(job, stages.index, self._settings, tile, receipt, files)

    def _drain(self, refill: Callable[[], None]) -> None:
        while self._jobs:
            future = next(self._queue)
            job = self._jobs.pop(future, None)
            if job is None:
                continue  # cancelled meanwhile
            error = future.exception() if future.status != "finished" else None
            if isinstance(error, (StorageUnusableError, InputError)):
                # Nothing else would fare better: what is finished stays, and the same command goes on.
                raise error
            if error is not None:
                self._fail(job, error)
            else:
                getattr(self, f"_after_{job.stage}")(job, future)
            self._tell(self._state)
            refill()

    def _submit(self, job: _Job, function: Callable[..., Any], *args: Any) -> None:
        # Ahead of all blocks: a thread that is free indexes or publishes first, both are short.
        future = self._client.submit(
            function, *args, key=f"{job.stage}-{job.tile}-{job.started}", pure=False, priority=10, retries=RETRIES
        )
        self._watch(job, future)

    def _watch(self, job: _Job, future: Future) -> None:
        self._jobs[future] = job
        self._queue.add(future)

    def _after_index(self, job: _Job, future: Future) -> None:
        found: tuple[stages.Indexed, list[stages.Block]] | TileError | None = future.result()
        if isinstance(found, TileError):
            self._fail(job, found)
            return
        self._state.indexed += 1
        if found is None:
            self._finish(job, "skipped", self._receipts[job.tile])
            return
        job.indexed, blocks = found
        self._state.quarantined += len(job.indexed.quarantined)
        self._state.chips += sum(block.chips for block in blocks)
        if not blocks:
            self._publish(job)
            return
        job.stage = "embed"
        futures = self._client.map(
            stages.embed_block,
            blocks,
            key=[f"embed-{job.tile}-{job.indexed.parts.index(block.path)}-{job.started}" for block in blocks],
            pure=False,
            # Earlier tiles first, so that they finish in order and early results can be used early.
            priority=-job.order,
            retries=RETRIES,
            settings=self._settings,
        )
        job.waiting = dict(zip(futures, blocks, strict=True))
        for future in futures:
            self._watch(job, future)

    def _after_embed(self, job: _Job, future: Future) -> None:
        self._state.encoded += job.waiting.pop(future).chips
        if not job.waiting:
            self._publish(job)

    def _publish(self, job: _Job) -> None:
        job.stage = "publish"
        old = self._published.get(job.tile, [])
        self._submit(job, stages.publish, self._settings, job.tile, job.indexed, job.started, old)

    def _after_publish(self, job: _Job, future: Future) -> None:
        receipt: Receipt = future.result()
        assert job.indexed is not None
        self._state.quarantined += len(receipt.quarantined) - len(job.indexed.quarantined)
        self._finish(job, "done", receipt)

    def _finish(self, job: _Job, status: str, receipt: Receipt) -> None:
        file = None if receipt.file is None else self._settings.output.url_of(receipt.file)
        self._state.finished.append(TileResult(job.tile, status, file, receipt.chips, receipt.quarantined))

    def _fail(self, job: _Job, error: BaseException) -> None:
        if job.stage == "index":
            self._state.indexed += 1
        self._cancel([future for future, other in self._jobs.items() if other is job])
        reason = str(error) if isinstance(error, DaskembedError) else f"{type(error).__name__}: {error}"
        self._state.finished.append(TileResult(job.tile, "failed", reason=reason))

    def _cancel(self, futures: list[Future]) -> None:
        for future in futures:
            del self._jobs[future]
        if futures:
            self._client.cancel(futures)

    def _stage_seconds(self, before: dict[str, dict[str, float]]) -> dict[str, float]:
        total = dict.fromkeys(timings.STAGES, 0.0)
        for worker, spent in self._client.run(timings.seconds).items():
            for stage in total:
                total[stage] += spent[stage] - before.get(worker, {}).get(stage, 0.0)
        return total
