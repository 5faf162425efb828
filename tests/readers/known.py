"""What `tests/data/published` holds, told without reading it: neither pyarrow nor daskembed has a part in it."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PUBLISHED = Path(__file__).parent.parent / "data" / "published"
_WEST, _NORTH, _LON, _LAT = 12.41796875, 46.025390625, 0.06640625, 0.0458984375


@dataclass(frozen=True)
class Row:
    """A row of a published file."""

    source_url: str
    date: date
    vector: NDArray[Any]
    """Flat, row-major."""
    box: tuple[float, float, float, float]
    """West, south, east and north in degrees."""


def given() -> Path:
    """The folder that a script was given, with exports of `mean`, `patch` and `windows`; else the published ones."""
    return Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PUBLISHED


def path(name: str, folder: Path = PUBLISHED) -> Path:
    """The one GeoParquet file of `mean`, `patch` or `windows` there."""
    (found,) = [path for path in (folder / name).iterdir() if path.suffix in (".gpq", ".parquet")]
    return found


def rows(name: str) -> list[Row]:
    """The rows of that file, in order: of `mean`, `patch` or `windows`."""
    if name == "windows":
        urls = [f"{_url(2)}#window={y},{x}" for y in (0, 256) for x in (0, 256)]
        corners = [(0, 1), (0, 1.5), (0.5, 1), (0.5, 1.5)]
        return _rows(urls, [1] * 4, corners, 0.5, (32, 32, 192), "float16")
    if name == "patch":
        return _rows([_url(1), _url(23)], [1, 16], [(0, 0), (1, 1)], 1, (16, 16, 256), "float32")
    return _rows([_url(1), _url(2)], [1, 16], [(0, 0), (0, 1)], 1, (256,), "float32")


def _url(number: int) -> str:
    return f"s3://made-up/chips/33TUL/claytile_33TUL_{number:04d}.tif"


def _rows(
    urls: list[str],
    days: list[int],
    corners: list[tuple[float, float]],
    side: float,
    shape: tuple[int, ...],
    dtype: str,
) -> list[Row]:
    numbers = np.arange(len(urls) * math.prod(shape)).reshape(len(urls), -1)
    vectors = (numbers * 17 % 251 / 64 - 2).astype(dtype)
    boxes = [
        (_WEST + x * _LON, _NORTH - (y + side) * _LAT, _WEST + (x + side) * _LON, _NORTH - y * _LAT) for y, x in corners
    ]
    dates = [date(2019, 4, day) for day in days]
    return [Row(*row) for row in zip(urls, dates, vectors, boxes, strict=True)]


def check(found: Iterable[Row], expected: Iterable[Row]) -> None:
    """See that two lists of rows are the same, in whatever order they were read.

    Raises
    ------
    AssertionError
        With what differs.
    """
    here, there = ({row.source_url: row for row in each} for each in (found, expected))
    assert sorted(here) == sorted(there), f"rows {sorted(here)}, expected {sorted(there)}"
    for url, row in there.items():
        assert here[url].date == row.date, f"{url}: {here[url].date}, expected {row.date}"
        assert tuple(here[url].box) == row.box, f"{url}: {here[url].box}, expected {row.box}"
        vector = np.asarray(here[url].vector)
        assert vector.dtype == row.vector.dtype, f"{url}: {vector.dtype}, expected {row.vector.dtype}"
        assert np.array_equal(vector, row.vector), f"{url}: other values in its vector"


def run_block(heading: str) -> dict[str, Any]:
    """Run the last Python block below a heading of docs/reading.md on the file of `mean`, and give its variables."""
    page = (PUBLISHED.parent.parent.parent / "docs" / "reading.md").read_text()
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].rpartition("```python\n")[2].partition("```")[0]
    variables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("daskembed-demo/embeddings").mkdir(parents=True)
        shutil.copy(path("mean"), "daskembed-demo/embeddings/33TUL_20190416_20190416_v001.gpq")
        exec(compile(text, heading, "exec"), variables)
    return variables
