"""Tiles of chips as Zarr v3 cubes, one a tile: complete or absent, and gone on with where a run stopped.

The objects of a cube are written in this order: shards, coordinates, the array's metadata, the root's. Without the last
one there is no cube to open, and it is the first to go when chips have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed import __version__, config
from daskembed.clusters.connection import WORKER_TIMEOUT
from daskembed.documents import json_digest
from daskembed.errors import (
    ChipError,
    ClusterLostError,
    DaskembedError,
    InputError,
    LockLostError,
    StorageError,
    StorageUnusableError,
    TileError,
)
from daskembed.geo.cells import EDGES, common_grid, find_overlap
from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import tiles_of
from daskembed.output.cube import CHIPS_A_SHARD, COMPRESSION, PIXELS, Layout, cube_metadata, encode_shard, intact
from daskembed.output.geozarr import ROOT, cube_digest
from daskembed.output.state import (
    CUBES,
    CubeReceipt,
    Note,
    delete_record,
    now,
    probe_path,
    read_cube_receipt,
    read_notes,
    sweep,
    write_failure,
    write_note,
    write_receipt,
)
from daskembed.runs import preflight as ahead
from daskembed.runs.quarantine import check_quarantined
from daskembed.runs.results import Progress, RunResult, TileResult
from daskembed.runs.stages import numbers_notes
from daskembed.runs.summary import MOST_LISTED, describe_bytes, describe_seconds
from daskembed.runs.tiles import check_share
from daskembed.runs.window import DASK_CONFIG
from daskembed.sources.chip import Chip
from daskembed.sources.kinds import list_tile, no_chips, read_headers
from daskembed.sources.reading import Reading, Rules, yes_or_no
from daskembed.storage.local_files import target
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, local_path
from daskembed.text import visible

if TYPE_CHECKING:
    import geopandas as gpd
    from distributed import Client, Future
    from numpy.typing import NDArray

    from daskembed.output.lock import Lock

READERS = 8
"""Threads of a task that read chips."""
# Everything of a tile belongs in its cube, and what is drawn from it later has rules of its own.
READING = Reading(edge="pad", rules=Rules(keep_all=True))
_LAYOUT = 1
"""Of the cube: shards of another number are written anew."""


@dataclass(frozen=True)
class Job:
    """What to do with each tile."""

    source: Storage
    output: Storage
    reading: Reading = field(default_factory=lambda: READING)
    readers: int = READERS
    """Threads of a task that read chips."""
    max_quarantined: float = 0.1
    """Share of a tile's chips whose headers may newly be bad; `daskembed.runs.quarantine.FEW` may in any case."""
    lock: Lock | None = None
    """Held by the run; whoever makes or unmakes a cube sees to it that it still is."""

    def confirm(self) -> None:
        """Raise `LockLostError` if another run has the output by now."""
        if self.lock is not None:
            self.lock.confirm()

    @property
    def settings(self) -> dict[str, Any]:
        """What determines a cube beside its chips."""
        bands = list(self.reading.sensor.names)
        made = {"layout": _LAYOUT, "bands": bands, "compression": COMPRESSION, "chips_a_shard": CHIPS_A_SHARD}
        return made | self.reading.meaning


@dataclass(frozen=True)
class Shard:
    """Neighbouring chips of one date, which become one object."""

    key: str
    """Its object's path below the array."""
    chips: tuple[tuple[int, int, Chip], ...]
    """Row and column in the shard, and how to read the chip."""
    inputs: str
    """Digest of what it is made from: chips, their places, and settings."""


@dataclass(frozen=True)
class Plan:
    """What is left to do of a tile."""

    layout: Layout | None
    """None if all chips are quarantined."""
    to_do: tuple[Shard, ...]
    begun: CubeReceipt
    """With the shards that need not be written again."""


def write_cubes(
    tiles: str | Iterable[str],
    *,
    source: str | None = None,
    output: str,
    cluster: str | Client | None = None,
    cluster_arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    readers: int | None = None,
    numbers: str | None = None,
    offset_applied: str | None = None,
    max_quarantined: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Write the chips of tiles as Zarr v3 cubes, ``{output}/{tile}.zarr``, which `xarray.open_zarr` opens.

    A cube has the variable ``pixels``, float32 of ``(time, band, y, x)``: every date, and the smallest rectangle that
    holds all chips. Where there is no chip, or it is quarantined, pixels are NaN.

    Parameters
    ----------
    tiles
        A file of tile ids, ids separated by commas, or an iterable of ids.
    source
        Folder or URL above the tiles; None takes the configuration's.
    output
        Folder or URL of the cubes.
    cluster, cluster_arguments, workers
        As for `daskembed.run`.
    readers
        Threads of a task that read chips.
    numbers, offset_applied
        See `daskembed.index_tile`.
    max_quarantined
        Share of a tile's chips whose headers may newly be bad, beside the first four; the tile fails otherwise, and its
        earlier cube stays. 1 accepts all.
    progress
        Called with the run's state after every change; ``encoded`` counts the chips that were written.

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
    import dask

    from daskembed.clusters.connection import check_connection, connect, shares_files
    from daskembed.output import lock

    names = tiles_of(tiles)
    if readers is not None and readers < 1:
        raise InputError(f"readers {readers}: expected a number from 1")
    reading = replace(
        READING,
        numbers=numbers or config.get("numbers"),
        offset_applied=offset_applied or yes_or_no(config.get("offset-applied")),
    )
    reading.check()
    share = check_share(config.get("max-quarantined") if max_quarantined is None else max_quarantined)
    job = Job(
        Storage(source or config.get("source")),
        Storage(output),
        reading,
        readers=readers or READERS,
        max_quarantined=share,
    )
    if job.source == job.output:
        raise InputError(f"{output} is the source too: cubes beside the chips would be taken for chips; give another")
    chosen = cluster if cluster is not None else config.get("cluster")
    if isinstance(chosen, str):
        check_connection(chosen, cluster_arguments=cluster_arguments, workers=workers)
    there = ahead.check_source(job.source, names)
    with lock.hold(job.output, None) as check:
        if not there:
            failed = tuple(TileResult(tile, "failed", reason=no_chips(tile, job.source)) for tile in names)
            for result in failed:
                _keep_failure(job.output, result.tile, str(result.reason))
            return RunResult(job.output.url, failed, 0, 0, 0.0, interrupted=False, stage_seconds={})
        job = replace(job, lock=check)
        sweep(job.output, None)
        if not isinstance(chosen, str):
            return _run_on(chosen, job, names, check, progress)
        if shares_files(chosen) is False:
            _refuse_local(job, f"of the cluster {chosen!r}")
        with (
            dask.config.set(DASK_CONFIG),
            connect(chosen, cluster_arguments=cluster_arguments, workers=workers) as client,
        ):
            return _run_on(client, job, names, check, progress)


def summary(result: RunResult) -> str:
    """The closing lines of a run."""
    counts = {status: sum(tile.status == status for tile in result.tiles) for status in ("done", "skipped", "failed")}
    tiles = [f"{count} {status}" for status, count in counts.items() if count]
    tiles += [f"{result.unfinished} not finished"] if result.unfinished else []
    rate = f" in {describe_seconds(result.seconds)} ({result.chips_per_second:.2f} chips/s)" if result.encoded else ""
    size = sum(tile.size for tile in result.tiles)
    lines = [
        f"tiles        {', '.join(tiles)}",
        f"chips        {result.chips} in the cubes, {result.encoded} written now{rate}",
        f"size         {describe_bytes(size)}"
        + (f", {describe_bytes(size / result.chips)} a chip" if result.chips else ""),
        f"quarantined  {len(result.quarantined)}",
        *_some([f"  {url}  {reason}" for url, reason in result.quarantined.items()], f"the receipts in {CUBES}/"),
        *_some(
            [f"note         {note}" for tile in result.tiles if tile.status == "done" for note in tile.notes],
            f"the receipts in {CUBES}/",
        ),
        *([f"failed       {counts['failed']}"] if counts["failed"] else []),
        *(f"  {tile.tile}  {tile.reason}" for tile in result.tiles if tile.status == "failed"),
        f"cubes        {result.output}",
    ]
    if result.interrupted:
        lines.append("interrupted: the same command goes on from here")
    elif counts["failed"]:
        lines.append("the same command tries the failed tiles again")
    return "\n".join(map(visible, lines))


def _some(lines: list[str], where: str) -> list[str]:
    more = [f"  and {len(lines) - MOST_LISTED} more: see {where}"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more


# On the workers: a tile's plan, its shards, and what completes it.


def plan_tile(job: Job, tile: str) -> Plan | CubeReceipt:
    """List a tile's chips and read their headers; a receipt, if its cube is finished and the chips are the same.

    Shards that are there already and would come out the same are not written again; whatever else is there is removed.

    Raises
    ------
    TileError
        If the tile has no chips, they are not of one grid, or too many of their headers would newly be bad.
    """
    try:
        job.source.check_exists()
    except InputError as error:
        # It was there when the run began.
        raise StorageUnusableError(f"{error} any more, or it cannot be seen from this worker") from None
    cube = f"{tile}.zarr"
    delete_record(job.output, tile, None)
    listing = list_tile(tile, job.source, job.reading)
    before = read_cube_receipt(job.output, tile)
    present = {entry.path.removeprefix(f"{cube}/"): entry.size for entry in job.output.entries(cube)}
    litter = {path for path in present if target(path) is not None}
    known = intact({} if before is None else before.shards, present)
    if (
        before is not None
        and before.status == "done"
        and (before.listing, before.settings) == (listing.fingerprint, job.settings)
        and len(known) == len(before.shards)
        and sum(size for path, size in present.items() if path not in litter) == before.size
    ):
        job.output.delete([f"{cube}/{path}" for path in sorted(litter)])
        return before
    index = read_headers(listing, job.reading, readers=16)
    bad = index[index["quarantined"].notna()]
    quarantined = dict(zip(bad["source_url"], bad["quarantined"], strict=True))
    there = before is not None and before.file is not None
    check_quarantined(
        job.max_quarantined,
        quarantined,
        {} if before is None else before.quarantined,
        len(index),
        vanishing=there and len(bad) == len(index),
    )
    layout, shards = lay_out(job, index)
    notes = {entry.path for entry in job.output.entries(f"{CUBES}/{tile}")}
    known |= intact(read_notes(job.output, notes), present)
    kept = {
        shard.key: note
        for shard in shards
        if (note := known.get(shard.key)) is not None and note.inputs == shard.inputs
    }
    job.confirm()
    # First the cube goes, then what is known of shards that will be replaced, then those themselves: a run may die
    # between any two of these, and chips may come back that were replaced.
    job.output.delete([f"{cube}/{ROOT}"])
    begun = CubeReceipt(
        tile=tile,
        status="unfinished",
        file=None,
        chips=0,
        size=0,
        sha256="",
        quarantined=quarantined,
        settings=job.settings,
        listing=listing.fingerprint,
        started=now(),
        finished=None,
        shards=kept,
        planned=len(shards),
        notes=numbers_notes(listing, index),
    )
    write_receipt(job.output, begun)
    stale = [path for path in present if path.removeprefix(f"{PIXELS}/") not in kept and path != ROOT]
    job.output.delete(sorted(notes))
    job.output.delete([f"{cube}/{path}" for path in sorted(stale)])
    return Plan(layout, tuple(shard for shard in shards if shard.key not in kept), begun)


def lay_out(job: Job, index: gpd.GeoDataFrame) -> tuple[Layout | None, list[Shard]]:
    """The grid of a tile's chips, and the shards that they fall into; no grid if all chips are quarantined.

    Raises
    ------
    TileError
        If the chips are not of one grid, or two are of the same place and date.
    """
    good = index[index["quarantined"].isna()]
    if good.empty:
        return None, []
    urls = list(good["source_url"])
    why = "a cube has one grid; remove what does not belong to the tile"
    bounds = good[list(EDGES)].to_numpy(np.float64)
    epsg = good["epsg"].to_numpy()
    grid, y, x = common_grid(urls, epsg, bounds, (CHIP, CHIP), pixels=CHIP, every=CHIP, why=why)
    rows, cols = y // CHIP, x // CHIP
    if overlap := find_overlap(rows, cols, (1, 1), good["date"].to_numpy()):
        one, other = (urls[number] for number in overlap)
        raise TileError(f"{one} and {other} are of one place and date: a cube has room for one; remove one")
    dates = tuple(sorted(set(good["date"])))
    bands = good["chip"].iloc[0].bands
    inside = np.array([chip.inside for chip in good["chip"]])
    height, width = (CHIP * np.stack([rows, cols], axis=1) + inside).max(axis=0).tolist()
    layout = Layout(replace(grid, height=height, width=width), dates, bands, _without_offset(job, good))
    shards: dict[str, list[tuple[int, int, Any]]] = {}
    for row, y, x in zip(good.itertuples(), rows.tolist(), cols.tolist(), strict=True):
        time = dates.index(row.date)
        key = f"c/{time}/0/{y // CHIPS_A_SHARD}/{x // CHIPS_A_SHARD}"
        shards.setdefault(key, []).append((y % CHIPS_A_SHARD, x % CHIPS_A_SHARD, row))
    return layout, [_shard(job, key, rows) for key, rows in sorted(shards.items())]


def _without_offset(job: Job, good: gpd.GeoDataFrame) -> tuple[date, ...]:
    """Dates of whose images Sentinel-2's offset was there and is out; raises `TileError` if nobody knows of others."""
    scales = [chip.scales for chip in good["chip"]]
    out = np.array([any(scale.taken_out or scale.offset_applied for scale in bands) for bands in scales], np.bool_)
    if job.reading.offset_applied is None:
        said = np.array([any(scale.numbers.added and scale.remark for scale in bands) for bands in scales], np.bool_)
        for day, url in zip(good["date"][said & ~out], good["source_url"][said & ~out], strict=True):
            if others := good["source_url"][out & (good["date"] == day)].tolist():
                raise TileError(
                    f"nothing tells of {url} whether the 1000 that ESA adds to Sentinel-2 is still in its numbers, and "
                    f"of {others[0]}, of the same date, it is out: a cube says it of a date; `offset_applied` yes or "
                    "no decides"
                )
    return tuple(sorted(set(good["date"][out])))


def _shard(job: Job, key: str, rows: list[tuple[int, int, Any]]) -> Shard:
    made_of = [job.settings, [(y, x, row.source_url, int(row.size), row.etag) for y, x, row in rows]]
    return Shard(key, tuple((y, x, row.chip) for y, x, row in rows), json_digest(made_of))


def write_shard(job: Job, tile: str, bands: int, shard: Shard) -> Note:
    """Read a shard's chips and write its object, then the note of it."""
    block, quarantined = _read(job, bands, shard)
    data = encode_shard(block)
    job.confirm()
    if data:
        with job.output.open_writer(f"{tile}.zarr/{PIXELS}/{shard.key}") as file:
            file.write(data)
    note = Note(
        inputs=shard.inputs,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chips=len(shard.chips) - len(quarantined),
        quarantined=quarantined,
    )
    write_note(job.output, tile, shard.key, note)
    return note


def _read(job: Job, bands: int, shard: Shard) -> tuple[NDArray[np.float32], dict[str, str]]:
    """A shard's pixels, and its chips that are quarantined."""
    side = CHIPS_A_SHARD * CHIP
    block = np.full((1, bands, side, side), np.nan, np.float32)

    def read(place: tuple[int, int, Chip]) -> tuple[str, str] | None:
        row, col, chip = place
        try:
            pixels = chip.read()
        except ChipError as error:
            return chip.url, str(error)
        (height, width), top, left = chip.inside, row * CHIP, col * CHIP
        block[0, :, top : top + height, left : left + width] = pixels[:, :height, :width]
        return None

    with ThreadPoolExecutor(job.readers) as pool:
        bad = dict(found for found in pool.map(read, shard.chips) if found is not None)
    return block, bad


def finish_tile(job: Job, plan: Plan, notes: Mapping[str, Note]) -> CubeReceipt:
    """Write what makes a cube of a tile's shards, its root last, then the receipt.

    Parameters
    ----------
    job, plan
        What was to be done.
    notes
        Of the shards that were written for it.
    """
    job.confirm()
    begun, output = plan.begun, job.output
    shards = dict(sorted({**begun.shards, **notes}.items()))
    quarantined = begun.quarantined | {url: why for note in shards.values() for url, why in note.quarantined.items()}
    chips = sum(note.chips for note in shards.values())
    objects = {f"{PIXELS}/{key}": (note.size, note.sha256) for key, note in shards.items() if note.size}
    if plan.layout is not None and chips:
        for path, data in cube_metadata(begun.tile, plan.layout).items():
            output.put(f"{begun.tile}.zarr/{path}", data)
            objects[path] = (len(data), hashlib.sha256(data).hexdigest())
    receipt = replace(
        begun,
        status="done",
        file=f"{begun.tile}.zarr" if chips else None,
        chips=chips,
        size=sum(size for size, _ in objects.values()),
        sha256=cube_digest({path: sha256 for path, (_, sha256) in objects.items()}),
        quarantined=quarantined,
        finished=now(),
        shards=shards,
        software=_software(),
    )
    write_receipt(output, receipt)
    output.delete([entry.path for entry in output.entries(f"{CUBES}/{begun.tile}")])
    # Of workers that died while they wrote a shard, which another has written.
    output.delete([entry.path for entry in output.entries(f"{begun.tile}.zarr") if target(entry.path) is not None])
    return receipt


def _keep_failure(output: Storage, tile: str, reason: str) -> None:
    # Of a store that fails just now, the other tiles need not hear.
    with contextlib.suppress(StorageError):
        write_failure(output, tile, None, reason)


def _software() -> dict[str, str]:
    from importlib.metadata import version

    return {"daskembed": __version__} | {name: version(name) for name in ("zarr", "numcodecs", "numpy", "rasterio")}


# On the client.


@dataclass
class _Tile:
    """One tile on its way."""

    name: str
    order: int
    plan: Plan | None = None
    waiting: dict[Future, Shard] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)


class _Flow:
    """The tiles' way through the cluster: some at a time, one task a shard."""

    def __init__(
        self, client: Client, job: Job, names: tuple[str, ...], progress: Callable[[Progress], None] | None
    ) -> None:
        self._client, self._job, self._names = client, job, names
        threads = client.nthreads()
        self._state = Progress(
            len(names), client.dashboard_link, f"{len(threads)} with {sum(threads.values())} threads"
        )
        self._window = 2 + sum(threads.values()) // 8
        self._tell = progress or (lambda state: None)
        self._waiting = [_Tile(name, order) for order, name in enumerate(names)]
        self._tasks: dict[Future, tuple[_Tile, Callable[[_Tile, Future, Any], None]]] = {}
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._active = 0

    def run(self, check: Callable[[], None]) -> RunResult:
        """All tiles, or as many as there is time for before a Ctrl-C."""
        start, interrupted = monotonic(), False
        try:
            self._tell(self._state)
            self._begin()
            while self._tasks:
                check()
                self._take(self._next())
                self._begin()
                self._tell(self._state)
        except KeyboardInterrupt:
            interrupted = True
            self._state.how = "interrupted"
            self._state.say("interrupted: what is not finished is given up, finished shards are kept")
            with contextlib.suppress(KeyboardInterrupt):
                self._tell(self._state)
        finally:
            self._client.cancel(list(self._tasks))
        return RunResult(
            output=self._job.output.url,
            tiles=tuple(self._state.finished),
            unfinished=len(self._names) - len(self._state.finished),
            encoded=self._state.encoded,
            seconds=monotonic() - start,
            interrupted=interrupted,
            stage_seconds={},
        )

    def _next(self) -> Future:
        """A task that has ended; waits for one."""
        alone_since = monotonic()
        while True:
            try:
                future = self._ended.get(timeout=1)
            except queue.Empty:
                self._tell(self._state)
                if self._threads():
                    alone_since = monotonic()
                elif monotonic() - alone_since > WORKER_TIMEOUT:
                    raise ClusterLostError(
                        f"no worker is left at {self._client.scheduler.address}, and none came within "
                        f"{WORKER_TIMEOUT} s: start workers again"
                    ) from None
                continue
            if future in self._tasks:  # else cancelled
                return future

    def _threads(self) -> int:
        try:
            return sum(self._client.nthreads().values())
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterLostError(f"the Dask scheduler does not answer any more: {error}") from None

    def _begin(self) -> None:
        while self._waiting and self._active < self._window:
            self._active += 1
            tile = self._waiting.pop(0)
            self._submit(tile, self._planned, plan_tile, self._job, tile.name)

    def _submit(self, tile: _Tile, then: Callable[[_Tile, Future, Any], None], *task: Any) -> Future:
        future = self._client.submit(*task, priority=-tile.order, pure=False)
        self._tasks[future] = (tile, then)
        future.add_done_callback(self._ended.put)
        return future

    def _take(self, future: Future) -> None:
        tile, then = self._tasks.pop(future)
        try:
            result = future.result(timeout=WORKER_TIMEOUT)
        except CancelledError:
            raise ClusterLostError("the Dask scheduler is gone, and what it knew with it") from None
        except (StorageUnusableError, LockLostError):
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, DaskembedError) else f"{type(error).__name__}: {error}"
            # Tiles are failed by what their own tasks raise, whatever that is: the others go on.
            others = [other for other, (owner, _) in self._tasks.items() if owner is tile]
            for other in others:
                del self._tasks[other]
            self._client.cancel(others)
            _keep_failure(self._job.output, tile.name, reason)
            self._end(TileResult(tile.name, "failed", reason=reason))
            return
        then(tile, future, result)

    def _planned(self, tile: _Tile, future: Future, plan: Plan | CubeReceipt) -> None:
        self._state.indexed += 1
        if isinstance(plan, CubeReceipt):
            self._finished(tile, future, plan)
            return
        tile.plan = plan
        self._state.chips += sum(len(shard.chips) for shard in plan.to_do)
        if plan.layout is not None:
            write = partial(write_shard, self._job, tile.name, len(plan.layout.bands))
            for shard in plan.to_do:
                tile.waiting[self._submit(tile, self._written, write, shard)] = shard
        self._finish(tile)

    def _written(self, tile: _Tile, future: Future, note: Note) -> None:
        tile.notes[tile.waiting.pop(future).key] = note
        self._state.encoded += note.chips
        self._state.quarantined += len(note.quarantined)
        self._finish(tile)

    def _finish(self, tile: _Tile) -> None:
        if not tile.waiting:
            self._submit(tile, self._finished, finish_tile, self._job, tile.plan, tile.notes)

    def _finished(self, tile: _Tile, future: Future, receipt: CubeReceipt) -> None:
        cube = self._job.output.url_of(receipt.file) if receipt.file else None
        status = "skipped" if tile.plan is None else "done"
        self._end(
            TileResult(
                tile.name,
                status,
                cube,
                receipt.chips,
                receipt.quarantined,
                size=receipt.size if cube else 0,
                notes=tuple(receipt.notes),
            )
        )

    def _end(self, result: TileResult) -> None:
        self._active -= 1
        self._state.finished.append(result)


def _run_on(
    client: Client,
    job: Job,
    names: tuple[str, ...],
    check: Callable[[], None],
    progress: Callable[[Progress], None] | None,
) -> RunResult:
    from daskembed.clusters.connection import await_worker, check_versions
    from daskembed.clusters.proof import prove_workers

    await_worker(client, WORKER_TIMEOUT)
    check_versions(client)
    prove_workers(client)
    _check_seen(client, job)
    return _Flow(client, job, names, progress).run(check)


def _check_seen(client: Client, job: Job) -> None:
    """Raise `InputError` if workers do not see a local source or output."""
    probe = probe_path(None)
    job.output.put(probe, b"")
    try:
        for storage, sees, path in ((job.source, Path.is_dir, ""), (job.output, Path.is_file, probe)):
            if is_local(storage.url):
                seen = client.run(sees, local_path(storage.url) / path, on_error="ignore")
                if blind := sorted(address for address, found in seen.items() if not found):
                    _refuse_local(job, ", ".join(blind))
    finally:
        job.output.delete([probe])


def _refuse_local(job: Job, workers: str) -> None:
    if local := [storage.url for storage in (job.source, job.output) if is_local(storage.url)]:
        raise InputError(
            f"{' and '.join(local)} {'is a folder' if len(local) == 1 else 'are folders'} of this machine, and workers "
            f"do not see all of that ({workers}): give an object store or a file system that all of them have, or use "
            "`cluster='local'`"
        )
