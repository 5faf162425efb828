"""What is kept of the rows of published tiles, beside their receipts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import CASES, FOLDER, TILE, part, settings

from daskembed.encoders.loading import load_encoder
from daskembed.errors import InputError
from daskembed.geo.cells import EDGES
from daskembed.output.index_rows import SCHEMA, read_rows, rows_path, write_rows
from daskembed.output.parts import write_part
from daskembed.output.protocol import Published
from daskembed.output.state import Receipt
from daskembed.runs import stages
from daskembed.storage.stores import Storage

PART = "_daskembed/parts/33TUL_v001/0123456789abcdef/00000.parquet"
TIME = datetime(2019, 4, 1, 10, 0, 29, 24000, tzinfo=UTC)


def published(folder: Path, case: str, *, bad: bool = False) -> Receipt:
    """A tile published of a part whose first chip was taken at a known time and is cloudy."""
    made = settings(CASES[case], str(folder))
    frame = part(CASES[case])
    windows = frame["chip_url"].duplicated().sum() // frame["chip_url"].nunique() + 1
    first = np.arange(len(frame)) < windows
    frame["datetime"] = pd.Series(np.where(first, pd.Timestamp(TIME).tz_localize(None), pd.NaT)).dt.tz_localize("UTC")
    frame["cloud"] = np.where(first, 0.25, np.nan)
    if bad:
        frame["rejected"] = "too cloudy"
    shape = load_encoder("untrained:tiny", encoder=CASES[case].encoder).description.row_shape(CASES[case].level)
    with made.output.open_writer(PART) as file:
        write_part(frame, file, shape)
    indexed = stages.Indexed(listing="as listed", quarantined={}, parts=(PART,))
    return stages.publish(made, TILE, indexed, "2026-11-25T12:00:00.000+00:00", [])


@pytest.mark.parametrize("case", CASES)
def test_each_row_has_what_the_index_knew(case: str, tmp_path: Path) -> None:
    receipt = published(tmp_path, case)
    for file in receipt.files:
        known = read_rows(Storage(str(tmp_path)), TILE, "001", file.sha256)
        assert known is not None
        assert known.schema.equals(SCHEMA)
        table = pq.read_table(tmp_path / receipt.names[0])
        assert known["source_url"].to_pylist() == table["source_url"].to_pylist()
        windows = 4 if case == "windows" else 1
        rest = [None] * (len(table) - windows)
        assert known["datetime"].to_pylist() == [TIME] * windows + rest
        assert known["cloud"].to_pylist() == [0.25] * windows + rest
        assert set(known["epsg"].to_pylist()) == {32633}
        expected = part(CASES[case]).head(len(table))
        np.testing.assert_array_equal(np.stack([known[edge] for edge in EDGES], 1), expected[list(EDGES)])


def test_published_bytes_are_the_same_with_it(tmp_path: Path) -> None:
    """The columns of the files are what they were."""
    receipt = published(tmp_path, "mean")
    found = pq.ParquetFile(tmp_path / receipt.names[0]).schema_arrow
    assert found.names == ["source_url", "date", "embeddings", "geometry"]
    assert found.equals(pq.ParquetFile(FOLDER / "mean" / receipt.names[0]).schema_arrow)


def test_a_tile_that_lost_its_rows_keeps_nothing(tmp_path: Path) -> None:
    published(tmp_path, "mean")
    assert (tmp_path / rows_path(TILE, "001")).exists()
    assert published(tmp_path, "mean", bad=True).files == []
    assert not (tmp_path / rows_path(TILE, "001")).exists()


def test_what_is_kept_of_another_file_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """An earlier version may have published the tile again, and has left what was kept."""
    published(tmp_path, "mean")
    assert read_rows(Storage(str(tmp_path)), TILE, "001", "0" * 64) is None


def test_of_what_earlier_versions_published_nothing_is_kept() -> None:
    assert read_rows(Storage(str(FOLDER / "mean")), TILE, "001", "0" * 64) is None


def test_parts_of_an_earlier_version_lack_some_of_it(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    old = pq.read_table(FOLDER / "mean/_daskembed/parts/33TVL_v001/0123456789abcdef/00001.parquet")
    assert "cloud" not in old.column_names
    for number in range(2):
        pq.write_table(old, tmp_path / f"{number}.parquet")
    write_rows(output, TILE, "001", ["0.parquet", "1.parquet"], [Published("a.gpq", 1, "f" * 64)])
    known = read_rows(output, TILE, "001", "f" * 64)
    assert known is not None
    assert known["source_url"].to_pylist() == 2 * old["source_url"].to_pylist()
    assert known["cloud"].null_count == known["datetime"].null_count == len(known)
    assert known["epsg"].null_count == 0


@pytest.mark.parametrize("content", [b"nothing", pa.table({"a": [1]})], ids=["no Parquet", "other columns"])
def test_something_else_in_its_place_is_named(content: bytes | pa.Table, tmp_path: Path) -> None:
    path = tmp_path / rows_path(TILE, "001")
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    with pytest.raises(InputError, match=r"33TUL_v001.parquet is not what daskembed keeps of rows: .*; delete it"):
        read_rows(Storage(str(tmp_path)), TILE, "001", "0" * 64)
