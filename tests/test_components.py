"""Principal components of an output by way of a cluster: as in one process, resumed, and the same to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.explore import components, tiles
from daskembed.exports.selection import ExportTile
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
    """What is kept, as paths below the output -> when it was written."""
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in (output / SUMS).glob("*/*")}


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
        (output / name).unlink()
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


def test_a_new_file_changes_no_more_than_the_part_that_it_comes_into() -> None:
    """Parts of the size that they have: some 64 MB."""

    def files(names: Iterable[str]) -> dict[str, ExportTile]:
        sizes = dict.fromkeys(names, 1500000)
        return {name: ExportTile(name, name[:5], "001", size, None, "", (0, 0, 1, 1)) for name, size in sizes.items()}

    names = [f"{zone:02}T{column}{row}_v001.gpq" for zone in range(10, 50) for column in "UV" for row in "KLMNPQRST"]
    before = tiles.parts_of(files(names))
    assert [name for part in before for name in part] == names
    assert 10 <= len(before) <= 30  # 1,080 MB
    for new in ("01TUK_v001.gpq", "27TUA_v001.gpq", "60TUK_v001.gpq"):
        after = tiles.parts_of(files([*names, new]))
        assert [name for part in after for name in part] == sorted([*names, new])
        assert len([part for part in before if part not in after]) <= 1
    assert all(
        len(part) == 1
        for part in tiles.parts_of({name: replace(one, size=2**26) for name, one in files(names).items()})
    )


def test_a_file_that_is_written_under_an_old_receipt_is_read_again(
    output: Path, client: Client, tmp_path: Path
) -> None:
    before = daskembed.principal_components(str(output), cluster=client)
    write_published(
        tmp_path / "other",
        ["33TUM"],
        side=2,
        shape=(3, 3, 16),
        vectors=lambda tile, rows: np.ones((rows, 3, 3, 16), np.float32),
    )
    (new,) = (tmp_path / "other").glob("*.gpq")
    shutil.copy(new, output / new.name)
    basis = daskembed.principal_components(str(output), cluster=client)
    assert basis.mean != before.mean
    assert basis == daskembed.principal_components(str(output))


def test_sums_of_other_selections_stay(output: Path, client: Client) -> None:
    write_published(output, ["33TUL"], side=2, shape=(16,), version="002")
    chosen: list[dict[str, str]] = [{"level": "patch"}, {"level": "mean"}, {"level": "patch", "tiles": "33TUL,33TVL"}]
    found = [daskembed.principal_components(str(output), cluster=client, **one) for one in chosen]
    there = kept(output)
    assert len(there) == 2 * (4 + 1 + 2)
    # They are found again, also by their version.
    again = [
        daskembed.principal_components(str(output), cluster=client, **one) for one in (*chosen, {"version": "001"})
    ]
    assert again == [*found, found[0]]
    assert kept(output) == there


def test_sums_that_another_call_removed_are_told(output: Path, client: Client) -> None:
    def remove(_: daskembed.Event) -> None:
        for path in (output / SUMS).glob("*/*.sums.npz"):
            path.unlink()

    with pytest.raises(InputError, match=r"\.sums\.npz is gone: the same command makes it again"):
        daskembed.principal_components(str(output), cluster=client, events=remove)
    assert daskembed.principal_components(str(output), cluster=client).count == 4 * 4 * 9


def test_groups_of_no_rows_are_passed_over(output: Path, client: Client, tmp_path: Path) -> None:
    basis = daskembed.principal_components(str(output))
    file = next(output.glob("33TUM*"))
    table = pq.read_table(file)
    with pq.ParquetWriter(file, table.schema) as writer:
        for part in (table[:0], table, table[:0]):
            writer.write_table(part)
    assert pq.read_metadata(file).num_row_groups == 3
    assert daskembed.principal_components(str(output)) == basis
    assert daskembed.principal_components(str(output), cluster=client) == basis
    assert daskembed.preview(str(output), to=str(tmp_path / "page")).rows == 4 * 4


def test_damaged_sums_are_told(output: Path, client: Client) -> None:
    daskembed.principal_components(str(output), cluster=client)
    path = next((output / SUMS).glob("*/*.sums.npz"))
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
