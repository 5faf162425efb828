"""Exports as GeoTIFFs and Lance, whose files are made on the worker's disk first: that disk is full."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import small_disk
from distributed import Client

from daskembed.errors import StorageUnusableError
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.testing import write_published

ROWS = 36


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, ["33TUL"], side=6, shape=(16, 16, 64))
    return folder


@pytest.mark.parametrize("size", ["64k", "1500k"])
@pytest.mark.parametrize("format", ["cog", "lance"])
def test_a_full_disk_of_a_worker_ends_it_and_it_goes_on(
    output: Path, tmp_path: Path, format: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        asked = Asked(cluster=client, format=format)
        with small_disk(tmp_path / "disk", size) as disk, monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(disk))
            with pytest.raises(
                StorageUnusableError,
                match=r"disk/daskembed-.* cannot be written: (No space left on device|it is full); make room",
            ):
                run_export(str(output), str(tmp_path / "to"), asked)
            assert not [*disk.iterdir()]
        assert not [path for path in (tmp_path / "to").rglob("*") if path.suffix in (".tif", ".lance")]
        result = run_export(str(output), str(tmp_path / "to"), asked)
    assert (result.exit_status, result.written, result.rows) == (0, 1, ROWS)
