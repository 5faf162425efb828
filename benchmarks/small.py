"""Small vectors: of the ten nearest neighbours by the exact cosine of float32, how many float16 and int8 find again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row
from daskembed.histogram import Histogram
from daskembed.quantization import Calibration, dequantize, quantize
from daskembed.runs.export_options import PERCENTILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAREST = 10
PERCENTILES = (100.0, PERCENTILE, 99.5, 99.0, 98.0, 95.0)
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "published"


def run(*, smallest: bool = False) -> list[Row]:
    """The real published file beside the repository; at its smallest, made-up vectors."""
    vectors = made_up(200, 32) if smallest else real()
    print(f"{len(vectors)} {'made-up' if smallest else 'real'} vectors of {vectors.shape[1]} dimensions")
    truth = neighbours(vectors)
    half = vectors.astype(np.float16)
    found = [_row("float32", "", vectors, vectors, truth), _row("float16", "", half, half.astype(np.float32), truth)]
    counted = Histogram.of(vectors)
    for percentile in PERCENTILES:
        made = Calibration.of(counted, percentile, {"encoder": "clay-v0", "checkpoint": "", "level": "mean"}, 1)
        whole = quantize(vectors, made)
        found.append(_row("int8", f"{percentile:g}", whole, dequantize(whole, made), truth))
    return found


def real() -> NDArray[np.float32]:
    """The vectors of the published file; ends with words where there is none."""
    names = sorted(REAL.glob("*.gpq"))
    if not names:
        raise SystemExit(f"needs a real published file (*.gpq), and there is none in {REAL}")
    rows = pq.read_table(names[0], columns=["embeddings"])["embeddings"].to_pylist()
    return np.array(rows, np.float32)


def made_up(rows: int, dims: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors like an encoder's: places of some kinds, dimensions of very different spread and not around 0."""
    random = np.random.default_rng(seed)
    kinds, spread = random.standard_normal((40, dims)), np.logspace(-6, 0, dims)
    places = kinds[random.integers(0, len(kinds), rows)] + 0.3 * random.standard_normal((rows, dims))
    return (places * spread + np.linspace(-0.5, 0.5, dims)).astype(np.float32)


def neighbours(vectors: NDArray[Any]) -> NDArray[np.intp]:
    """The nearest of each vector by the cosine, without itself, ``(row, NEAREST)``."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    alike = units @ units.T
    np.fill_diagonal(alike, -2)
    return np.argsort(-alike, axis=1, kind="stable")[:, :NEAREST]


def recall(found: NDArray[np.intp], truth: NDArray[np.intp]) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len({*a} & {*b}) / NEAREST for a, b in zip(found, truth)]))


def _row(dtype: str, percentile: str, stored: NDArray[Any], back: NDArray[np.float32], truth: NDArray[np.intp]) -> Row:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
    file = io.BytesIO()
    # As exports have them.
    split = {"float32": "BYTE_STREAM_SPLIT", "float16": "PLAIN"}.get(dtype)
    how: dict[str, Any] = {"use_dictionary": True}
    if split:
        how = {"use_dictionary": False, "column_encoding": {"v.list.element": split}}
    pq.write_table(pa.table({"v": lists}), file, compression="zstd", **how)
    return {
        "dtype": dtype,
        "percentile": percentile,
        f"recall@{NEAREST}": f"{recall(neighbours(back), truth):.4f}",
        "bytes a vector": round(file.tell() / len(stored)),
    }
