"""Principal components of an output by way of a cluster: as in one process, resumed, and the same to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.explore import components, tiles
from daskembed.testing import write_published

TILES = ("33TUL", "33TUM", "33TVL", "33TVM")
SUMS = "_daskembed/components"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of four tiles at level patch; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, TILES, side=2, shape=(3, 3, 16))
    return folder


@pytest.fixture
def output(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another one like it, which may be changed; each file is a part."""
    monkeypatch.setattr(tiles, "_PART_BYTES", 1)
    shutil.copytree(published, tmp_path / "output")
    return tmp_path / "output"


def kept(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / SUMS).iterdir()}


def test_as_of_all_vectors_at_once(output: Path, client: Client) -> None:
    basis = daskembed.principal_components(str(output), cluster=client)
    rows = np.concatenate(
        [
            pq.read_table(file)["embeddings"].combine_chunks().to_numpy_ndarray().reshape(-1, 16)
            for file in sorted(output.glob("*.gpq"))
        ]
    ).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(basis.variance, singular[:3] ** 2 / len(rows), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(np.array(basis.axes) * right[:3], axis=1)), 1, rtol=1e-9)
    low = np.percentile(centred @ np.array(basis.axes).T, 2, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(basis.low, low, atol=0.002)
    # In this process, and whichever part was finished first: the same to the last bit.
    assert daskembed.principal_components(str(output)) == basis
    shutil.rmtree(output / SUMS)
    assert daskembed.principal_components(str(output), cluster=client) == basis


def test_goes_on_with_the_parts_that_are_kept(output: Path, client: Client) -> None:
    basis = daskembed.principal_components(str(output), cluster=client)
    before = kept(output)
    assert len(before) == 2 * len(TILES)
    # As if it had been killed: one part's sums are not there, one's scores are not counted.
    sums = sorted(name for name in before if ".sums." in name)
    scores = sorted(before.keys() - set(sums))
    for name in (sums[1], scores[2]):
        (output / SUMS / name).unlink()
    assert daskembed.principal_components(str(output), cluster=client) == basis
    after = kept(output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {sums[1], scores[2]}


def test_only_what_is_new_is_summed(output: Path, client: Client) -> None:
    daskembed.principal_components(str(output), cluster=client)
    before = kept(output)
    write_published(output, ["33TWL"], side=2, shape=(3, 3, 16))
    next(output.glob("33TUL*")).unlink()
    basis = daskembed.principal_components(str(output), cluster=client)
    after = kept(output)
    assert len([name for name in after if after[name] == before.get(name) and ".sums." in name]) == 3
    assert len(after) == 2 * len(TILES)  # those of the tile that is gone are gone, too
    assert basis == daskembed.principal_components(str(output))


def test_damaged_sums_are_told(output: Path, client: Client) -> None:
    daskembed.principal_components(str(output), cluster=client)
    path = next((output / SUMS).glob("*.sums.npz"))
    path.write_bytes(b"no sums")
    with pytest.raises(InputError, match=rf"{path} is not what was kept of some vectors: .*; delete it"):
        daskembed.principal_components(str(output), cluster=client)


def test_damaged_file_is_told(output: Path, client: Client) -> None:
    file = next(output.glob("33TVL*"))
    data = bytearray(file.read_bytes())
    data[100:2000] = bytes(1900)
    file.write_bytes(data)
    for cluster in ({}, {"cluster": client}):
        with pytest.raises(InputError, match=rf"{file} cannot be read: .*daskembed validate"):
            daskembed.principal_components(str(output), **cluster)


def test_preview_by_way_of_a_cluster(output: Path, client: Client, tmp_path: Path) -> None:
    words = ["--cluster", client.scheduler.address]
    assert main(["preview", str(output), "--to", str(tmp_path / "there"), *words]) == 0
    assert main(["preview", str(output), "--to", str(tmp_path / "here")]) == 0
    there, here = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "there", tmp_path / "here")
    )
    assert there == here


def test_results_of_threads_come_in_order() -> None:
    """Some ahead, and no more."""
    begun: list[int] = []
    found = components.in_order(lambda one: begun.append(one) or one, range(100))
    assert next(found) == 0
    assert len(begun) <= 9
    assert list(found) == list(range(1, 100))
