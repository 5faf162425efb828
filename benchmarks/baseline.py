"""Ours against the plain way: a DataLoader, attention written out, everything written at the end.

The plain way is that of the model's own repository, whose command for embeddings computes in ``bf16-mixed``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import CORES, Row, local_client
from benchmarks.job import write_many
from daskembed.encoders import clay_v0
from daskembed.encoders.clay_v0_model import ClayV0
from daskembed.encoders.loading import get_encoder_module
from daskembed.encoders.transformer import Block, Transformer
from daskembed.encoders.untrained import untrained_state
from daskembed.runs.tiles import run as run_tiles

CHIPS, ROUNDS = 8, 3
PRECISIONS = {"bf16-mixed": "bf16", "float32": "fp32"}
"""What the plain way calls it, and what we do."""


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


def run(*, smallest: bool = False) -> list[Row]:
    """The two in turn, in each precision, models loaded beforehand; the ratio of each pair of rounds."""
    torch.set_num_threads(CORES)
    size, count, rounds = ("tiny", 1, 1) if smallest else ("small", CHIPS, ROUNDS)
    state = untrained_state(get_encoder_module("clay-v0"), size, 0)
    model = clay_v0.build(state, clay_v0.describe(size), device=torch.device("cpu"), dtype=torch.float32)
    model.transformer.__class__ = _Eager
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, local_client(smallest=smallest) as client:
        chips = write_many(Path(folder) / "chips", {"33TUM": 1, "33TUL": count})
        paths = sorted((chips / "33TUL").rglob("*.tif"))
        for name, precision in PRECISIONS.items():
            embed = partial(
                run_tiles, source=str(chips), checkpoint=f"untrained:{size}", precision=precision, cluster=client
            )
            embed("33TUM", output=f"{folder}/{precision}-warm")
            plain, ours = [], []
            for number in range(rounds):
                start = time.perf_counter()
                result = embed("33TUL", output=f"{folder}/{precision}-{number}")
                assert result.exit_status == 0, result
                ours.append(count / (time.perf_counter() - start))
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    _embed_plainly(model, paths, Path(folder) / "plain.parquet")
                plain.append(count / (time.perf_counter() - start))
            ratios = [a / b for a, b in zip(ours, plain, strict=True)]
            for what, values in {"plain, chips/s": plain, "ours, chips/s": ours, "ratio": ratios}.items():
                middle = statistics.median(values)
                rows.append({"precision": name, "what": what, "median": middle, "min": min(values), "max": max(values)})
    return rows


@torch.inference_mode()
def _embed_plainly(model: ClayV0, paths: list[Path], file: Path) -> None:
    urls, vectors = [], []
    for pixels, names in DataLoader(_Chips(paths), batch_size=4, num_workers=0):
        place = torch.zeros(len(pixels), 2), torch.zeros(len(pixels), 3)
        vectors.append(model(pixels, *place, level="mean").float())
        urls += names
    embeddings = list(np.concatenate([batch.numpy() for batch in vectors]))
    frame = gpd.GeoDataFrame({"source_url": urls, "embeddings": embeddings})
    frame.set_geometry([shapely.box(0, 0, 1, 1)] * len(urls), crs="OGC:CRS84").to_parquet(file)
