"""What an export holds in memory does not grow with the number of tiles."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pytest

from daskembed.exports import gather
from daskembed.exports.files import write_file
from daskembed.exports.index import index_tile
from daskembed.exports.plan import cut
from daskembed.exports.settings import Sizes
from daskembed.runs.export_job import prepare
from daskembed.runs.export_options import Asked
from daskembed.testing import write_published

T = TypeVar("T")
TILES = tuple(f"33T{column}{row}" for column in "UVWX" for row in "LMN")
SIDE, DIMS = 8, 1024
ROWS = SIDE**2
A_TILE = ROWS * DIMS * 4
"""Bytes of the vectors of a tile."""


class Held(NamedTuple):
    """Bytes."""

    arrow: int
    """The most that pyarrow had in a task,"""
    rest: int
    """and that NumPy and Python had."""
    client: int
    """What the client keeps of each tile and each file."""


def export(folder: Path, tiles: tuple[str, ...]) -> Held:
    """Index, plan and write so many tiles in files of a tile's rows each: one task after another, in this process."""
    write_published(folder / "output", tiles, side=SIDE, shape=(DIMS,))
    (folder / "to").mkdir()
    sizes = Sizes(file=A_TILE, group=A_TILE // 4, page=4096)
    job = prepare(str(folder / "output"), str(folder / "to"), Asked(), sizes)
    peaks = []

    def task(work: Callable[[], T]) -> T:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = work()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return found

    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        looked = [task(lambda tile=tile: index_tile(job.export, tile)) for tile in job.selection.tiles.values()]
        planned = cut({one.name: one.pieces for one in looked}, ROWS, ".parquet")
        written = [task(lambda file=file: write_file(job.export, file, job.selection.tiles)) for file in planned]
        kept = tracemalloc.get_traced_memory()[0] // len(tiles)
        assert pool.bytes_allocated() == 0
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert sum(file.rows for file in written) == ROWS * len(tiles)
    assert len(written) == len(tiles)
    return Held(pool.max_memory(), max(peaks), kept)


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of more it depends on their speed what there is at once."""
    monkeypatch.setattr(gather, "READERS", 1)
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    yield
    pa.set_cpu_count(threads)


@pytest.mark.usefixtures("_one_thread")
def test_memory_is_flat_in_the_number_of_tiles(tmp_path: Path) -> None:
    export(tmp_path / "warm", TILES[:2])
    few, many = export(tmp_path / "few", TILES[:2]), export(tmp_path / "many", TILES)
    assert (len(TILES), A_TILE) == (12, 2**18)
    # A row group of a published file and what is made of it; the vectors of the file that is written, in their places.
    assert A_TILE < few.arrow < 6 * A_TILE
    assert A_TILE < few.rest < 6 * A_TILE
    assert many.arrow < 1.5 * few.arrow
    assert many.rest < 1.5 * few.rest
    assert many.client < A_TILE / 4
