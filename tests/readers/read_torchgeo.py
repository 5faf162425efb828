"""TorchGeo's `ClayEmbeddings` on a published file and on a folder: `python3.12 tests/readers/read_torchgeo.py`.

TorchGeo 0.10 needs Python 3.12 or newer, and installs about 6 GB with the build of PyTorch for CUDA.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import environment

environment.enter("torchgeo", "torchgeo==0.10.1", "pyarrow", python=(3, 12))

import known
import numpy as np
import torch
from torchgeo.datasets import ClayEmbeddings, DatasetNotFoundError


def read(root: Path) -> Iterator[known.Row]:
    """The samples, with what a sample does not have from the frame behind it."""
    samples = ClayEmbeddings(str(root))
    for number, (url, place) in enumerate(zip(samples.data["source_url"], samples.data.geometry, strict=True)):
        sample = samples[number]
        west, south, east, north = place.bounds
        assert torch.allclose(sample["x"], torch.tensor((west + east) / 2))
        assert torch.allclose(sample["y"], torch.tensor((south + north) / 2))
        day = datetime.fromtimestamp(sample["t"].item(), UTC).date()
        yield known.Row(url, day, sample["embedding"].numpy(), place.bounds)


folder = known.given()
for name in ("mean", "patch", "windows"):
    known.check(read(known.path(name, folder)), known.rows(name))
    print(f"torchgeo reads the file of {name}")
    if not [*(folder / name).glob("*.zarr")]:
        known.check(read(folder / name), known.rows(name))
        print(f"torchgeo reads the folder of {name}")
try:
    ClayEmbeddings(str(known.PUBLISHED / "patch"))
    raise AssertionError("torchgeo opens a folder that holds a Zarr store, too: docs/reading.md says that it does not")
except DatasetNotFoundError:
    print("torchgeo opens no folder that holds a Zarr store, too")

with tempfile.TemporaryDirectory() as other:
    shutil.copytree(known.PUBLISHED / "mean", other, dirs_exist_ok=True)
    (Path(other) / "_stac").mkdir()
    (Path(other) / "_stac" / "catalog.json").write_text("{}")
    known.check(read(Path(other)), known.rows("mean"))
    print("torchgeo reads a folder with _stac/ in it")

for vector, row in zip(known.run_block("TorchGeo")["vectors"], known.rows("mean"), strict=True):
    assert np.array_equal(vector.numpy(), row.vector)
print("what docs/reading.md says of torchgeo runs")
