"""Principal components of an output: summed in this process, or part by part on a cluster, and kept on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from daskembed.clusters.connection import check_connection, shares_files
from daskembed.documents import json_digest
from daskembed.errors import InputError
from daskembed.explore.basis import Basis, Moments
from daskembed.explore.colours import BINS, REACH, with_colours
from daskembed.explore.components import (
    find_components,
    keep_counts,
    keep_moments,
    kept_counts,
    kept_moments,
    named_basis,
)
from daskembed.explore.tiles import choose, dims_of, parts_of
from daskembed.geo.mgrs import tiles_of
from daskembed.kinds import MODEL
from daskembed.output.state import STATE, now
from daskembed.paths import StrPath, as_text
from daskembed.runs import fleet
from daskembed.runs.export_options import Looked, PreviewOptions
from daskembed.runs.export_tasks import Item
from daskembed.runs.options import documented
from daskembed.runs.reporting import Report
from daskembed.runs.results import TileResult
from daskembed.runs.shared_files import blind_to_output, refuse_output
from daskembed.runs.tasks import Following, Observer, Task
from daskembed.runs.window import Window, on_cluster
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, redact

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.exports.selection import Selection

_log = logging.getLogger(__name__)

SUMS = f"{STATE}/components"
"""Folder below the output of what is known of its parts, in a folder for each selection of files."""


@documented(PreviewOptions, Looked)
def principal_components(output: StrPath, **options: Unpack[PreviewOptions]) -> Basis:
    """The first three principal components of all vectors of an output: one basis for all its tiles.

    It is exact: as of a decomposition of all vectors at once, of which no more than a block is in memory. The sums of
    parts are added in the order of their names, so that it is the same whoever finished first. On a cluster they are
    kept below ``{output}/_daskembed/components``: the same call goes on where another ended, and sums up only parts of
    which a file is new or was written again.

    Parameters
    ----------
    output
        Folder or URL of the published files.
    options
        See `daskembed.runs.export_options.Looked`. Without a cluster, it is done in this process.

    Returns
    -------
    Basis
        Its `to_json` is what `daskembed.preview` takes as `basis`.

    Raises
    ------
    InputError
        If there are no such files, they do not go together, or one cannot be read.
    ClusterLostError
        If the scheduler or all workers are lost.
    """
    asked, found, selection = select_asked(output, options)
    return components_of(found, selection, asked)


def select_asked(output: StrPath, options: Mapping[str, Any]) -> tuple[Looked, Storage, Selection]:
    """What is asked, the output, and which of its published files."""
    asked = Looked.of(options, PreviewOptions)
    found = Storage(as_text(output))
    tiles = None if asked.tiles is None else tiles_of(asked.tiles)
    selection = choose(found, tiles=tiles, encoder=asked.encoder, level=asked.level, version=asked.version)
    for note in selection.notes:
        _log.warning(f"warning: {note}")
    return asked, found, selection


def components_of(output: Storage, selection: Selection, asked: Looked) -> Basis:
    """The basis of some published files, on the cluster that is asked for, if one is."""
    if not asked.cluster:
        return find_components(output, selection)
    start: dict[str, Any] = {"cluster_arguments": asked.cluster_arguments, "workers": asked.workers}
    check_connection(asked.cluster, **start)
    work = partial(_find, output=output, selection=selection, asked=asked)
    if not isinstance(asked.cluster, str):
        return work(asked.cluster).found()
    if shares_files(asked.cluster) is False and is_local(output.url):
        refuse_output(output, f"of the cluster {asked.cluster!r}")
    return on_cluster(asked.cluster, work, start).found()


@dataclass(frozen=True)
class Passed:
    """What became of both passes through the cluster."""

    basis: Basis | None
    failed: dict[str, str]
    """Part -> why."""
    interrupted: bool

    def found(self) -> Basis:
        """The basis; raises what there is instead of it."""
        if self.interrupted:
            raise KeyboardInterrupt
        if self.basis is None:
            raise InputError(f"no basis: {next(iter(self.failed.values()))}; the same command tries again")
        return self.basis


def _find(client: Client, *, output: Storage, selection: Selection, asked: Looked) -> Passed:
    threads = fleet.meet(client, fleet.threads)
    if blind := blind_to_output(client, output, None):
        refuse_output(output, ", ".join(blind))
    parts = {_name(names, selection): tuple(names) for names in parts_of(selection.tiles)}
    folder = f"{SUMS}/{_folder(selection, asked)}"
    workers = f"{len(threads)} with {sum(threads)} threads"
    kept: set[str] = set()

    def through(work: Parts) -> Passed:
        """Do what is not done yet."""
        kept.update(map(work.path, parts))
        there = {entry.path for entry in output.entries(folder, recursive=False)}
        missing = [name for name in parts if work.path(name) not in there]
        told = asked.progress, asked.events
        report = Report(client, "embeddings", missing, output, "", *told, workers, units=("parts", "vectors"))
        passage = Window(client, work, missing, report, lambda: None).run()
        return Passed(work.basis, report.failed, passage.interrupted)

    sums = Parts(output, folder, selection.shape, parts)
    passed = through(sums)
    if passed.interrupted or passed.failed:
        return passed
    total = Moments.none(dims_of(selection))
    for name in parts:  # in the order of the files' names, whichever was finished first
        total += kept_moments(output, sums.path(name), dims_of(selection))
    scores = Parts(output, folder, selection.shape, parts, named_basis(selection, total))
    passed = through(scores)
    if passed.interrupted or passed.failed or passed.basis is None:
        return Passed(None, passed.failed, passed.interrupted)
    basis = with_colours(passed.basis, (kept_counts(output, scores.path(name)) for name in parts))
    output.delete([entry.path for entry in output.entries(folder, recursive=False) if entry.path not in kept])
    return Passed(basis, {}, False)


def _folder(selection: Selection, asked: Looked) -> str:
    """Of all that is kept of the files that are chosen, however many there are by now: others' is left alone."""
    made = {name: selection.made.get(name) for name in MODEL}
    tiles = None if asked.tiles is None else sorted(tiles_of(asked.tiles))
    versions = sorted({tile.version for tile in selection.tiles.values()})
    return json_digest([made, selection.shape, selection.dtype, versions, tiles])[:16]


def _name(names: list[str], selection: Selection) -> str:
    """Of a part: another, if one of its files or the form of the sums is."""
    return json_digest([Moments.form, [selection.tiles[name].written for name in names]])[:16]


@dataclass(frozen=True)
class Parts:
    """Parts of the published files of which sums are made; see `daskembed.runs.tasks.Work`."""

    output: Storage
    folder: str
    """Below the output, of what is kept."""
    shape: tuple[int, ...]
    parts: Mapping[str, tuple[str, ...]]
    """Name -> published files."""
    basis: Basis | None = None
    """Of which scores are counted; None as long as vectors are summed."""
    digest: str = field(init=False)
    pieces: ClassVar[str] = "part"

    def __post_init__(self) -> None:
        told = "sums" if self.basis is None else json_digest([BINS, REACH, self.basis.to_json()])[:16]
        object.__setattr__(self, "digest", told)

    @property
    def title(self) -> str:
        """What Dask's dashboard calls all tasks together."""
        return f"{redact(self.output.url)} components"

    def path(self, name: str) -> str:
        """Of what is kept of a part, below the output."""
        return f"{self.folder}/{name}.{self.digest}.npz"

    def most_tiles(self, threads: int) -> int:
        """As many as there are threads, and some that wait."""
        return threads + 2

    def begin(self, name: str, order: int) -> Task[Any]:
        """Sum up a part."""
        return _Sum(Item(name, order, now()), self)


@dataclass(frozen=True)
class _Sum(Task[int]):
    tile: Item
    work: Parts
    stage: ClassVar[str] = "index"

    def call(self) -> tuple[Callable[..., int], tuple[Any, ...]]:
        work, name = self.work, self.tile.name
        what: tuple[Any, ...] = (work.output, work.path(name), work.shape, work.parts[name])
        return (keep_moments, what) if work.basis is None else (keep_counts, (*what, work.basis))

    def then(self, found: int, observer: Observer) -> Following:
        return TileResult(self.tile.name, "counted", chips=found, unit="vector")
