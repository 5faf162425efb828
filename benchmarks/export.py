"""Exports against `pyarrow.dataset.write_dataset` of the same rows, their memory, and the bytes of a point look-up."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import shapely
from distributed import Client

from benchmarks.common import Row, local_client
from benchmarks.job import peak_memory
from daskembed.exports.settings import DEFAULT, Sizes
from daskembed.geo.mgrs import tile_at
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

SMALL = Sizes(file=32 * 2**20, group=8 * 2**20)
DAYS = tuple(f"2024-{month:02d}-15" for month in range(1, 13))


def tiles(count: int) -> list[str]:
    """Some tiles, side by side."""
    places = itertools.product((32, 33, 34, 35), range(45, 70), (4, 5, 3, 6, 2))
    found = (tile_at(zone, column, row) for zone, row, column in places)
    return [*itertools.islice((tile for tile in found if tile), count)]


def run(*, smallest: bool = False) -> list[Row]:
    """Speed and look-ups at two levels, and memory at 20 and 500 tiles.

    It takes 13 GB of the disk of temporary files: each thread is to have some exported files of the usual size.
    """
    side = 2 if smallest else 21
    rows = []
    with tempfile.TemporaryDirectory() as folder, local_client(smallest=smallest) as client:
        top = Path(folder)
        for name, count, shape, days in (
            ("mean", 2 if smallest else 240, (768,), DAYS),
            ("patch", 2 if smallest else 12, (16, 16, 768), DAYS[:1]),
        ):
            write_published(top / name, tiles(count), side=side, shape=shape, days=days, vectors=_noise(shape))
            rows.append(_speed(client, name, top / name, top / f"{name}-to"))
            rows[-1] |= _look_up(top / name, top / f"{name}-to")
            shutil.rmtree(top / name)
            shutil.rmtree(top / f"{name}-to")
        for count in (2, 4) if smallest else (20, 500):
            write_published(top / "many", tiles(count), side=side, shape=(768,), vectors=_noise((768,)))
            with peak_memory(client) as peaks:
                _, seconds = _export(client, top / "many", top / "many-to", SMALL)
            rows.append(
                dict.fromkeys(rows[0], "")
                | {"rows": f"{count} tiles, files of 32 MB", "export s": seconds, "worker peak MB": _peak(peaks)}
            )
            shutil.rmtree(top / "many-to")
    return rows


def _noise(shape: tuple[int, ...]) -> Callable[[str, int], np.ndarray]:
    """The same vectors again and again, as drawing them would take longer than all else; of 24 bits, as real ones."""
    some = np.random.default_rng(0).standard_normal((441, *shape), np.float32)
    return lambda tile, rows: np.resize(some, (rows, *shape))


def _export(client: Client, source: Path, target: Path, sizes: Sizes) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run_export(str(source), str(target), Asked(cluster=client), sizes)
    assert result.exit_status == 0, result
    return result, time.perf_counter() - start


def _speed(client: Client, name: str, source: Path, target: Path) -> Row:
    """One after the other, twice; the better one of each."""
    ours, theirs = [], []
    for _ in range(2):
        shutil.rmtree(target, ignore_errors=True)
        with peak_memory(client) as peaks, _processor(client) as spent:
            result, seconds = _export(client, source, target, DEFAULT)
        ours.append((seconds, *spent))
        with _processor(client) as spent:
            seconds = _write_dataset(source, target.with_name("theirs"), pq.ParquetFile(_any(target)))
        theirs.append((seconds, *spent))
    file = pq.ParquetFile(_any(target))
    size = result.rows * file.schema_arrow.field("embeddings").type.list_size * 4 / 1e6
    return {
        "rows": f"{result.rows} of {name}",
        "MB": size,
        "files": len(result.files),
        "export s": min(ours)[0],
        "export MB/s": size / min(ours)[0],
        "write_dataset MB/s": size / min(theirs)[0],
        "ratio": min(theirs)[0] / min(ours)[0],
        "of CPU s": min(cpu for _, cpu in theirs) / min(cpu for _, cpu in ours),
        "worker peak MB": _peak(peaks),
    }


@contextlib.contextmanager
def _processor(client: Client) -> Iterator[list[float]]:
    """Seconds that the processors work for the block, here and on the workers, put into the list."""
    before, spent = sum(client.run(time.process_time).values()) + _here(client), list[float]()
    yield spent
    spent.append(sum(client.run(time.process_time).values()) + _here(client) - before)


def _here(client: Client) -> float:
    """Of this process, if no worker is in it."""
    return 0.0 if os.getpid() in client.run(os.getpid).values() else time.process_time()


def _any(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.parquet"))))


def _write_dataset(source: Path, target: Path, like: pq.ParquetFile) -> float:
    """Seconds that it takes for the same rows, in row groups and pages as ours, unsorted."""
    shutil.rmtree(target, ignore_errors=True)
    files = sorted(map(str, source.glob("*.gpq")))
    start = time.perf_counter()
    table = ds.dataset(files, format="parquet", schema=_plain(files[0]))
    group = like.metadata.row_group(0).num_rows
    options = ds.ParquetFileFormat().make_write_options(
        compression="zstd",
        use_dictionary=["source_url", "date"],
        column_encoding={"embeddings.list.element": "BYTE_STREAM_SPLIT"},
        write_page_index=True,
        data_page_size=DEFAULT.page,
    )
    ds.write_dataset(
        table,
        target,
        format="parquet",
        file_options=options,
        min_rows_per_group=group,
        max_rows_per_group=group,
        max_rows_per_file=4 * group,
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def _plain(file: str) -> pa.Schema:
    """A published file's columns, with vectors as plain lists."""
    schema = pq.read_schema(file).remove_metadata()
    number = schema.get_field_index("embeddings")
    return schema.set(number, pa.field("embeddings", schema.field(number).type))


def _peak(peaks: dict[str, int]) -> float:
    return max(peaks.values()) / 1e6


def _look_up(source: Path, target: Path) -> Row:
    """Bytes that are read for the vectors of a place, from each of both."""
    try:
        import datafusion
    except ImportError:
        return {"look-up kB": "needs datafusion", "from tiles kB": "", "times": ""}
    table = pq.read_table(_any(target), columns=["geometry"])
    centre = shapely.from_wkb(table["geometry"][len(table) // 3].as_py()).centroid
    context = datafusion.SessionContext(
        datafusion.SessionConfig({"datafusion.execution.parquet.pushdown_filters": "true"})
    )
    context.register_parquet("export", str(target))
    inside = " and ".join(
        f"export.bbox['{edge}'] {sign} {value}"
        for edge, sign, value in (
            ("xmin", "<=", centre.x),
            ("xmax", ">=", centre.x),
            ("ymin", "<=", centre.y),
            ("ymax", ">=", centre.y),
        )
    )
    query = f"select source_url, embeddings from export where {inside}"
    ours, found = _read(lambda: [url for batch in context.sql(query).collect() for url in batch[0].to_pylist()])
    theirs, expected = _read(lambda: _from_tiles(source, centre))
    assert {*found} == {*expected}, (found, expected)
    return {"look-up kB": ours / 1e3, "from tiles kB": theirs / 1e3, "times": theirs / ours}


def _from_tiles(source: Path, place: shapely.Point) -> list[str]:
    """What is at a place in files of tiles: all footers, the footprints of files around it, row groups with a hit."""
    found = []
    for path in sorted(source.glob("*.gpq")):
        with path.open("rb") as plain, pq.ParquetFile(plain) as file:
            west, south, east, north = json.loads(file.metadata.metadata[b"geo"])["columns"]["geometry"]["bbox"]
            if not (west <= place.x <= east and south <= place.y <= north):
                continue
            for group in range(file.num_row_groups):
                shapes = shapely.from_wkb(file.read_row_group(group, ["geometry"])["geometry"].to_pylist())
                # By boxes, as the export is.
                edges = shapely.bounds(shapes).T
                hits = (edges[0] <= place.x) & (edges[2] >= place.x) & (edges[1] <= place.y) & (edges[3] >= place.y)
                if hits.any():
                    table = file.read_row_group(group, ["source_url", "embeddings"])
                    found += [url for url, hit in zip(table["source_url"].to_pylist(), hits, strict=True) if hit]
    return found


def _read(work: Callable[[], list[str]]) -> tuple[int, list[str]]:
    """Bytes that this process reads for some work, from files that are open or not."""
    before = _bytes()
    found = work()
    return _bytes() - before, found


def _bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
