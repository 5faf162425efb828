"""The encoder of the page "add your own encoder", run as the page says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from daskembed.cli.main import main
from daskembed.encoders.protocol import CompleteModule, EncoderModule

EXAMPLES = Path(__file__).parent.parent / "examples"


def statistics(path: str) -> np.ndarray:
    """Mean and spread of each band on a 16 x 16 grid, (row, col, 26), by NumPy."""
    with rasterio.open(path) as file:
        pixels = file.read().astype(np.float64)
    patches = pixels.reshape(13, 16, 32, 16, 32)
    return np.concatenate([patches.mean((2, 4)), patches.std((2, 4), ddof=1)]).transpose(1, 2, 0)


FLAGS = ["run", "--tiles", "33TUL", "--checkpoint", "untrained:only", "--encoder", "toy_encoder", "--precision", "fp32"]


def check(output: Path, shape: tuple[int, ...], *, patches: bool) -> None:
    frame = gpd.read_parquet(output / "33TUL_20190416_20190416_v001.gpq")
    expected = statistics(frame["source_url"][2])
    expected = expected if patches else expected.mean((0, 1))
    found = frame["embeddings"][2].reshape(shape)
    # Spreads stand beside the means; the seeded scale of these is close to 1, and the sine of the latitude is added.
    north = np.sin(np.radians(frame.geometry[2].centroid.y))
    np.testing.assert_allclose(found[..., 13:], expected[..., 13:] + north, rtol=1e-3, atol=1e-3)
    scale = (found[..., :13] - north) / expected[..., :13]
    assert (np.abs(scale - 1) < 0.5).all()


def test_the_toy_encoder(chips: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daskembed", *FLAGS, "--source", str(chips), "--output", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path, (26,), patches=False)


def test_the_toy_encoders_patches(chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    assert main([*FLAGS, "--source", str(chips), "--output", str(tmp_path), "--level", "patch"]) == 0
    check(tmp_path, (16, 16, 26), patches=True)


def test_the_page_tells_of_all_that_a_module_has() -> None:
    page = (EXAMPLES / "add_your_own_encoder.md").read_text()
    needed, more = ([name for name in vars(one) if name[0] != "_"] for one in (EncoderModule, CompleteModule))
    assert len(needed) == 4
    assert [name for name in (*needed, *more) if f"`{name}" not in page] == []
    module = (EXAMPLES / "toy_encoder.py").read_text()
    assert [name for name in (*needed, "metadata") if name not in module] == []
    assert len(module.splitlines()) <= 50
