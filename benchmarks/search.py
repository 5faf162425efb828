"""Search: vectors in memory against a plain read and FAISS, from files against reading their bytes, many queries."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import torch

from benchmarks.common import CORES, Row, median_seconds, product_rate, resident_bytes
from daskembed.explore import search
from daskembed.explore.footers import Rows, open_rows
from daskembed.explore.topk import Best, Least, Metric, Queries

DIMS = 768
K = 50
_GROUP = 40_960
"""Rows of a row group: 126 MB of float32, as in exports."""


def run(*, smallest: bool = False) -> list[Row]:
    """One million vectors, in the types that files have."""
    return measure(1_000, 256) if smallest else measure(1_000_000, 4096)


def measure(count: int, product: int) -> list[Row]:
    """So many vectors, and a product of square matrices of such a side."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder, query = Path(name), _draw(1, seed=1)
        _write(folder, count)
        for dtype in ("float32", "float16", "int8"):
            file = folder / f"{dtype}.parquet"
            rows += _from_disk(file, query, count)
            held = open_rows(str(file))
            over = search._in_threads(held, held_bytes=2**40)
            scan = functools.partial(_scan, over, held)
            scan(_draw(1, seed=1), "dot")  # read and kept
            size = count * DIMS * np.dtype(dtype).itemsize
            if dtype == "float32":
                read = _plain_read(_blocks(over))
                rows.append(_row("memory", "plain read", "float32", read, size, count))
            for metric in ("dot", "cosine"):
                seconds = median_seconds(lambda: scan(query, metric))  # noqa: B023
                rows.append(_row("memory", f"1 query, {metric}", dtype, seconds, size, count))
            many = _draw(100, seed=2)
            seconds = median_seconds(lambda: scan(many, "dot"), 3)  # noqa: B023
            rows.append(_row("memory", "100 queries, dot", dtype, seconds, size, count, products=100))
            if dtype == "float32":
                rows += _faiss(_blocks(over), query, many, scan(query, "dot"))
    rate = product_rate(torch.float32, product)
    told = _row("memory", f"{product} x {product} product", "float32", 1, 0, 0)
    rows.append({**told, "GFLOP/s": rate, "s": 2 * product**3 / rate / 1e9})
    return rows


def _row(where: str, what: str, dtype: str, seconds: float, size: int, count: int, products: int = 1) -> Row:
    return {
        "from": where,
        "what": what,
        "vectors": dtype,
        "s": seconds,
        "GB/s": size / seconds / 1e9,
        "million vectors/s": count / seconds / 1e6,
        "GFLOP/s": 2 * DIMS * count * products / seconds / 1e9,
    }


def _draw(count: int, seed: int) -> np.ndarray[Any, Any]:
    """Vectors around a mean that is longer than their spread, as those of Clay."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(0).standard_normal(DIMS, np.float32)
    found: np.ndarray[Any, Any] = rng.standard_normal((count, DIMS), np.float32)
    found *= 0.3
    found += centre
    return found


def _write(folder: Path, count: int) -> None:
    """The same vectors in three types, a file each."""
    scale = np.full(DIMS, 6 / 254, np.float32)
    offset = np.random.default_rng(0).standard_normal(DIMS, np.float32)
    quantization = {"scale": scale.tolist(), "offset": offset.tolist(), "n_dims": DIMS}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    metadata = {"geo": json.dumps(geo), "quantization": json.dumps(quantization)}
    square = shapely.to_wkb(shapely.box(12, 45, 12.1, 45.1))
    writers = {}
    for dtype in ("float32", "float16", "int8"):
        element = pa.field("element", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
        vectors = pa.field("embeddings", pa.list_(element, DIMS), nullable=False)
        schema = pa.schema([vectors, ("geometry", pa.binary())], metadata)
        values = "embeddings.list.element"
        encoding = {"float32": "BYTE_STREAM_SPLIT", "float16": "PLAIN"}
        writers[dtype] = pq.ParquetWriter(
            folder / f"{dtype}.parquet",
            schema,
            compression="zstd",
            use_dictionary=False if dtype in encoding else [values],
            column_encoding={values: encoding[dtype]} if dtype in encoding else None,
        )
    for start in range(0, count, _GROUP):
        vectors = _draw(min(_GROUP, count - start), seed=100 + start)
        for dtype, writer in writers.items():
            if dtype == "int8":
                stored = np.rint((vectors - offset) / scale).clip(-127, 127).astype(np.int8)
            else:
                stored = vectors.astype(dtype)
            kind = writer.schema.field("embeddings").type
            lists = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), type=kind)
            writer.write_table(pa.table([lists, pa.array([square] * len(vectors))], writer.schema), _GROUP)
    for writer in writers.values():
        writer.close()


def _scan(over: Any, rows: Rows, queries: np.ndarray[Any, Any], metric: Metric) -> Best:
    """What a search does once it knows its queries."""
    centre = None if metric == "dot" else np.random.default_rng(0).standard_normal(DIMS, np.float32).astype(np.float64)
    asked = Queries(queries.astype(np.float64), metric, centre, rows.affine)
    best = Best.none(len(queries))
    for one in over(functools.partial(search.search_piece, queries=asked, k=K, least=Least(len(queries)))):
        best = best.merge(one, K)
    return best


def _blocks(over: Any) -> list[np.ndarray[Any, Any]]:
    """The vectors that are kept."""
    return [
        vectors for found in over(lambda rows, number, blocks: [one.vectors for one in blocks]) for vectors in found
    ]


def _plain_read(blocks: Sequence[np.ndarray[Any, Any]]) -> float:
    """Seconds in which all cores read all of them once: the faster of two ways."""
    with ThreadPoolExecutor(CORES) as pool:
        ways: list[Callable[[Any], Any]] = [np.ndarray.max, np.ndarray.sum]
        return min(median_seconds(lambda: list(pool.map(way, blocks))) for way in ways)  # noqa: B023


def _faiss(blocks: Sequence[np.ndarray[Any, Any]], query: Any, many: Any, ours: Best) -> list[Row]:
    import faiss

    count = sum(map(len, blocks))
    size = count * DIMS * 4
    index = faiss.IndexFlatIP(DIMS)
    for block in blocks:
        index.add(block)
    _, numbers = index.search(query, K)
    places = ours.places[0]
    same = (places[:, 0] * _GROUP + places[:, 1] == numbers[0]).mean()
    one = median_seconds(lambda: index.search(query, K))
    hundred = median_seconds(lambda: index.search(many, K), 3)
    return [
        _row("memory", f"FAISS IndexFlatIP, 1 query ({same:.0%} the same)", "float32", one, size, count),
        _row("memory", "FAISS IndexFlatIP, 100 queries", "float32", hundred, size, count, products=100),
    ]


def _from_disk(file: Path, query: Any, count: int) -> list[Row]:
    """A search of a file that is in no cache, against reading its bytes; and of one that is."""
    size = file.stat().st_size
    rows = open_rows(str(file))
    before = resident_bytes()

    def once() -> None:
        over = search._in_threads(rows, held_bytes=0)
        _scan(over, rows, query, "dot")

    found = []
    for where, forget in (("disk", True), ("page cache", False)):
        read: list[float] = []
        searched: list[float] = []
        for _ in range(3):
            for work, times in ((functools.partial(_read, file), read), (once, searched)):
                if forget:
                    _forget(file)
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
        found.append(_row(where, "bytes of the file", file.stem, sorted(read)[1], size, count))
        found.append(_row(where, "1 query, dot", file.stem, sorted(searched)[1], size, count))
    found[-1]["what"] += f", {(resident_bytes() - before) / 1e6:.0f} MB more"
    return found


def _read(file: Path) -> None:
    """All bytes, on all cores."""
    step, size = 2**24, file.stat().st_size

    def one(start: int) -> None:
        with file.open("rb", buffering=0) as plain:
            plain.seek(start)
            plain.read(step)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, range(0, size, step)))


def _forget(file: Path) -> None:
    """Out of the page cache."""
    with file.open("rb") as plain:
        os.fsync(plain.fileno())
        os.posix_fadvise(plain.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
