"""Ours against the plain way: a DataLoader, eager float32 attention written out, everything written at the end."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import CORES, Row
from benchmarks.job import write_many
from daskembed.clusters.connection import connect
from daskembed.encoders import clay_v0
from daskembed.encoders.checkpoint import untrained_state
from daskembed.encoders.clay_v0_model import ClayV0
from daskembed.encoders.transformer import Block, Transformer
from daskembed.runs.tiles import run as run_tiles

CHIPS, ROUNDS = 8, 3


class _Eager(Transformer):
    """Attention as a textbook writes it: scores and weights of all heads in memory."""

    def _attention(self, x: Tensor, block: Block) -> Tensor:
        chips, tokens, _ = x.shape
        qkv = torch.nn.functional.linear(x, block.qkv).view(chips, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1)
        heads = (weights @ v).transpose(1, 2).reshape(chips, tokens, -1)
        return torch.nn.functional.linear(heads, *block.out)


class _Chips(Dataset[tuple[Tensor, str]]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        with rasterio.open(self.paths[place]) as dataset:
            return torch.from_numpy(dataset.read()), str(self.paths[place])


def run() -> list[Row]:
    """The two in turn, models loaded beforehand; the ratio of each pair of rounds."""
    torch.set_num_threads(CORES)
    model = clay_v0.build(
        untrained_state(clay_v0, "small", 0), clay_v0.describe("tiny"), device=torch.device("cpu"), dtype=torch.float32
    )
    model.transformer.__class__ = _Eager
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as folder, connect("local") as client:
        chips = write_many(Path(folder) / "chips", {"33TUM": 2, "33TUL": CHIPS})
        options = {"source": str(chips), "checkpoint": "untrained:small", "cluster": client}
        run_tiles("33TUM", output=f"{folder}/warm", **options)
        for number in range(ROUNDS):
            start = time.perf_counter()
            result = run_tiles("33TUL", output=f"{folder}/{number}", **options)
            assert result.exit_status == 0
            ours.append(CHIPS / (time.perf_counter() - start))
            start = time.perf_counter()
            _embed_plainly(model, sorted((chips / "33TUL").rglob("*.tif")), Path(folder) / "plain.parquet")
            plain.append(CHIPS / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    named = {"plain, float32, chips/s": plain, "ours, native precision, chips/s": ours, "ratio": ratios}
    return [
        {"what": name, "median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in named.items()
    ]


@torch.inference_mode()
def _embed_plainly(model: ClayV0, paths: list[Path], file: Path) -> None:
    urls, vectors = [], []
    for pixels, names in DataLoader(_Chips(paths), batch_size=4, num_workers=0):
        place = torch.zeros(len(pixels), 2), torch.zeros(len(pixels), 3)
        vectors.append(model(pixels, *place, level="mean"))
        urls += names
    embeddings = list(np.concatenate([batch.numpy() for batch in vectors]))
    frame = gpd.GeoDataFrame({"source_url": urls, "embeddings": embeddings})
    frame.set_geometry([shapely.box(0, 0, 1, 1)] * len(urls), crs="OGC:CRS84").to_parquet(file)
