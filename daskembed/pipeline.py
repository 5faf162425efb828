"""The flow over many tiles: index, embed, publish, in a window that keeps the scheduler's memory flat."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from daskembed import __version__, config, timings
from daskembed.clusters import connect
from daskembed.cube import CHIPS_A_BLOCK, open_tile
from daskembed.embedding import ON_NAN, embed
from daskembed.encoders import Encoder, load_encoder, resolve_precision
from daskembed.errors import ConflictError, DaskembedError, InputError, StorageDeniedError
from daskembed.levels import check_level
from daskembed.receipts import (
    STATE,
    Receipt,
    check_version,
    parts_folder,
    published_files,
    read_receipts,
    write_receipt,
)
from daskembed.sinks import get_sink
from daskembed.sources import get_source
from daskembed.storage import Storage, is_local
from daskembed.table import to_geodataframe
from daskembed.tiles import check_tile, read_tiles

if TYPE_CHECKING:
    import geopandas as gpd
    from dask.delayed import Delayed
    from distributed import Client, Future

BLOCK_BYTES = 160 * 2**20
"""Most bytes of vectors in a block: levels with large vectors get smaller blocks."""
RETRIES = 2
"""How often a task is tried again after an error, on top of the stores' own retries."""


@dataclass(frozen=True)
class Settings:
    """What one run does to each of its tiles."""

    source: str
    output: Storage
    encoder: Encoder
    level: str
    on_nan: str
    dates: tuple[date, date] | None
    version: str

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a file beside its chips: a file made with another identity is not replaced unasked."""
        return {
            "encoder": f"{self.encoder.name} {self.encoder.size}",
            "checkpoint": self.encoder.sha256 or self.encoder.checkpoint,
            "level": self.level,
            "precision": self.encoder.precision,
            "on_nan": self.on_nan,
            "dates": None if self.dates is None else "/".join(map(str, self.dates)),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What a file's footer says of how it was made."""
        checkpoint = self.encoder.checkpoint.partition("?")[0]
        return {
            "encoder": self.encoder.name,
            "size": self.encoder.size,
            "checkpoint": checkpoint.rpartition("/")[2] if is_local(checkpoint) else checkpoint,
            "sha256": self.encoder.sha256,
            "untrained": self.encoder.untrained,
            "level": self.level,
            "precision": self.encoder.precision,
            "on_nan": self.on_nan,
            "software": {name: version_of(name) for name in ("daskembed", "torch", "rasterio", "pyarrow", "dask")},
        }

    @property
    def chips_a_block(self) -> int:
        """Chips of one task."""
        vector_bytes = 4
        for length in self.encoder.shape(self.level):
            vector_bytes *= length
        return min(CHIPS_A_BLOCK, max(1, BLOCK_BYTES // vector_bytes))


@dataclass(frozen=True)
class TileResult:
    """What became of one tile."""

    tile: str
    status: str
    """``done``, ``skipped`` (finished by an earlier run) or ``failed``."""
    file: str | None = None
    """Path or URL of the published file."""
    chips: int = 0
    """Chips in the file."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """URL -> reason."""
    reason: str | None = None
    """Why the tile failed."""


@dataclass(frozen=True)
class RunResult:
    """What became of a run."""

    output: str
    tiles: tuple[TileResult, ...]
    """In the order in which they finished."""
    unfinished: int
    """Tiles that an interrupted run did not come to."""
    encoded: int
    """Chips encoded by this run."""
    seconds: float
    """Wall time from the first task to the last."""
    interrupted: bool
    stage_seconds: dict[str, float]
    """Seconds by stage, summed over the workers' threads; see `daskembed.timings.STAGES`."""

    @property
    def chips(self) -> int:
        """Chips in the files of all tiles."""
        return sum(tile.chips for tile in self.tiles)

    @property
    def quarantined(self) -> dict[str, str]:
        """URL -> reason, of all tiles."""
        return {url: reason for tile in self.tiles for url, reason in tile.quarantined.items()}

    @property
    def chips_per_second(self) -> float:
        """Chips encoded by this run over its wall time."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def exit_status(self) -> int:
        """0 all done, 3 done with quarantined chips, 4 some tiles failed, 130 interrupted."""
        if self.interrupted:
            return 130
        if any(tile.status == "failed" for tile in self.tiles):
            return 4
        return 3 if self.quarantined else 0


@dataclass
class Progress:
    """Where a run stands; handed to `run`'s callback after every change."""

    tiles: int
    """Tiles asked for."""
    dashboard: str
    """Address of the Dask dashboard."""
    finished: list[TileResult] = field(default_factory=list)
    indexed: int = 0
    """Tiles whose chips are known."""
    chips: int = 0
    """Chips to encode, of those tiles."""
    encoded: int = 0
    """Chips encoded."""
    quarantined: int = 0
    """Chips known to be bad."""


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
    StorageDeniedError
        If a store refuses the credentials while the run goes on; what is finished stays, and the same run goes on
        from there.
    """
    names = read_tiles(tiles) if isinstance(tiles, str) else tuple(dict.fromkeys(map(check_tile, tiles)))
    if not names:
        raise InputError("no tiles: give at least one MGRS tile id, such as 27WXN")
    wanted_precision = precision or config.get("precision")
    settings = Settings(
        source=source or config.get("source"),
        output=Storage(output or config.get("output")),
        encoder=load_encoder(
            checkpoint,
            # What `auto` means is for the workers to say, once there are some.
            precision="fp32" if wanted_precision == "auto" else wanted_precision,
            batch_size=batch_size,
            readers=readers,
        ),
        level=check_level(level or config.get("level")),
        on_nan=on_nan or config.get("on-nan"),
        dates=None if dates is None else _parse_dates(dates),
        version=check_version(str(version or config.get("version"))),
    )
    if settings.on_nan not in ON_NAN:
        raise InputError(f"unknown --on-nan {settings.on_nan!r}: choose one of {', '.join(ON_NAN)}")
    Storage(settings.source).check_exists()
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
    client.wait_for_workers(1)
    if precision == "auto":
        native = client.run(resolve_precision, "auto").values()
        settings = replace(settings, encoder=replace(settings.encoder, precision=min(native)))
    published = published_files(settings.output, settings.version, get_sink("geoparquet").SUFFIX)
    if not overwrite:
        _check_conflicts(settings, names, receipts, published)
    return _Flow(client, names, settings, receipts, published, progress).run()


def _parse_dates(text: str) -> tuple[date, date]:
    try:
        start, end = (date.fromisoformat(part) for part in text.split("/"))
    except ValueError:
        raise InputError(f"--dates {text!r}: expected START/END, such as 2022-01-01/2022-12-31") from None
    if start > end:
        raise InputError(f"--dates {text!r}: the start is after the end")
    return start, end


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
            made, what = receipt.settings, receipt.file
        elif tile in published:
            # A run that died between file and receipt left this, or somebody else did.
            what = published[tile][0]
            provenance = get_sink("geoparquet").read_provenance(settings.output, what)
            made = (provenance or {}).get("identity", {"daskembed": "not made by it"})
        else:
            continue
        wanted = settings.identity
        changed = [
            f"{key} {made.get(key)}, not {wanted.get(key)}"
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
    index: gpd.GeoDataFrame | None = None
    listing: str = ""
    parts: list[str] = field(default_factory=list)
    waiting: dict[Future, int] = field(default_factory=dict)
    """Block tasks -> their chips."""
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
        room = 3 * max(1, sum(self._client.nthreads().values()))
        while len(self._jobs) < room and (following := next(self._todo, None)) is not None:
            order, tile = following
            job = _Job(tile, order, _now())
            known = self._receipts.get(tile)
            reusable = known if known is not None and known.settings == self._settings.identity else None
            self._submit(job, _index, self._settings, tile, reusable and reusable.listing)

    def _drain(self, refill: Callable[[], None]) -> None:
        while self._jobs:
            future = next(self._queue)
            job = self._jobs.pop(future, None)
            if job is None:
                continue  # cancelled meanwhile
            error = future.exception() if future.status != "finished" else None
            if isinstance(error, StorageDeniedError):
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
        indexed: _Indexed | None = future.result()
        self._state.indexed += 1
        if indexed is None:
            receipt = self._receipts[job.tile]
            self._finish(job, "skipped", receipt)
            return
        job.index, job.listing = indexed.index, indexed.listing
        job.stage = "embed"
        blocks = list(_blocks(self._settings, job, indexed.present))
        self._state.quarantined += int(indexed.index["quarantined"].notna().sum())
        self._state.chips += sum(chips for _, chips in blocks)
        futures = self._client.compute([task for task, _ in blocks], priority=-job.order, retries=RETRIES)
        for future, (_, chips) in zip(futures, blocks, strict=True):
            job.waiting[future] = chips
            self._watch(job, future)
        if not blocks:
            self._publish(job)

    def _after_embed(self, job: _Job, future: Future) -> None:
        self._state.encoded += job.waiting.pop(future)
        self._state.quarantined += future.result()
        if not job.waiting:
            self._publish(job)

    def _publish(self, job: _Job) -> None:
        job.stage = "publish"
        old = self._published.get(job.tile, [])
        self._submit(job, _publish, self._settings, job.tile, job.index, job.listing, job.parts, job.started, old)

    def _after_publish(self, job: _Job, future: Future) -> None:
        self._finish(job, "done", future.result())

    def _finish(self, job: _Job, status: str, receipt: Receipt) -> None:
        file = self._settings.output.url_of(receipt.file)
        self._state.finished.append(TileResult(job.tile, status, file, receipt.chips, receipt.quarantined))

    def _fail(self, job: _Job, error: BaseException) -> None:
        if job.stage == "index":
            self._state.indexed += 1
        self._cancel([f for f in job.waiting if f in self._jobs])
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


@dataclass(frozen=True)
class _Indexed:
    """What the index task of a tile brings back."""

    index: gpd.GeoDataFrame
    listing: str
    present: frozenset[str]
    """Parts that an earlier run left."""


def _index(settings: Settings, tile: str, known: str | None) -> _Indexed | None:
    """On a worker: index a tile, unless its chips are still those of the listing `known` (then None)."""
    source = get_source("geotiff")
    listing = source.list_chips(tile, settings.source, dates=settings.dates)
    if listing.fingerprint == known:
        return None
    index = source.read_headers(listing, dates=settings.dates, readers=settings.encoder.readers)
    present = settings.output.entries(parts_folder(tile, settings.version))
    return _Indexed(index, listing.fingerprint, frozenset(entry.path for entry in present))


def _blocks(settings: Settings, job: _Job, present: frozenset[str]) -> Iterator[tuple[Delayed, int]]:
    """The tasks that write a tile's missing parts, each with its number of chips; names the parts in `job`."""
    import dask

    index = job.index
    assert index is not None
    if not index["quarantined"].isna().any():
        return
    cube = open_tile(index, chips_a_block=settings.chips_a_block)
    frame = to_geodataframe(embed(cube, settings.encoder, settings.level, on_nan=settings.on_nan))
    key = _digest(settings.identity, settings.version, job.listing, settings.chips_a_block, __version__)
    folder = f"{parts_folder(job.tile, settings.version)}/{key}"
    write = dask.delayed(_write_part)
    for number, (partition, chips) in enumerate(zip(frame.to_delayed(), cube.chunks[0], strict=True)):
        path = f"{folder}/{number:05d}.parquet"
        job.parts.append(path)
        if path not in present:
            yield write(partition, settings, path, dask_key_name=f"write-{job.tile}-{number}-{key}"), chips


def _write_part(frame: gpd.GeoDataFrame, settings: Settings, path: str) -> int:
    """On a worker: write a block's part; returns how many of its chips are quarantined."""
    get_sink("geoparquet").write_part(frame, settings.output, path, settings.encoder.shape(settings.level))
    return int(frame["quarantined"].notna().sum())


def _publish(
    settings: Settings,
    tile: str,
    index: gpd.GeoDataFrame,
    listing: str,
    parts: list[str],
    started: str,
    old: list[str],
) -> Receipt:
    """On a worker: file, receipt, then the removal of what they replace, in the order that a death leaves sound."""
    sink, output = get_sink("geoparquet"), settings.output
    bad = index[index["quarantined"].notna()]
    quarantined = dict(zip(bad["source_url"], bad["quarantined"], strict=True))
    if not parts:
        url, reason = next(iter(quarantined.items()))
        from daskembed.errors import TileError

        raise TileError(f"all {len(quarantined)} chips are quarantined; the first, {url}, {reason}")
    days = index["date"].dropna()
    name = f"{tile}_{min(days):%Y%m%d}_{max(days):%Y%m%d}_v{settings.version}{sink.SUFFIX}"
    provenance = {**settings.provenance, "tile": tile, "identity": settings.identity}
    published = sink.publish(output, name, parts, provenance)
    receipt = Receipt(
        tile=tile,
        version=settings.version,
        file=name,
        size=published.size,
        sha256=published.sha256,
        chips=published.chips,
        quarantined=quarantined | published.quarantined,
        filled=published.filled,
        settings=settings.identity,
        listing=listing,
        started=started,
        finished=_now(),
        software=settings.provenance["software"],
    )
    write_receipt(output, receipt)
    leftovers = [entry.path for entry in output.entries(parts_folder(tile, settings.version))]
    output.delete([path for path in old if path != name] + leftovers)
    return receipt


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
