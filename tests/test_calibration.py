"""One calibration of an output, and exports of int8: what is counted, kept and refused, and how floats come back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client

import daskembed
from benchmarks.small import made_up
from daskembed.cli.main import main
from daskembed.histogram import Histogram
from daskembed.quantization import Calibration, dequantize, parse_calibration, quantize, read_calibration
from daskembed.runs.calibration import COUNTS, FILE, CalibrationResult
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "33TUM")
SHAPE = (2, 2, 16)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def vectors(tile: str, rows: int) -> np.ndarray:
    patches = made_up(rows * 4, 16, seed=int.from_bytes(tile.encode(), "big"))
    return patches.reshape(rows, *SHAPE) * (1 + TILES.index(tile))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of three tiles at level patch; not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder, TILES, side=3, shape=SHAPE, vectors=vectors)
    return folder


@pytest.fixture
def output(published: Path, tmp_path: Path) -> Path:
    """Another one like it, which may be changed."""
    shutil.copytree(published, tmp_path / "output")
    return tmp_path / "output"


def calibrate(output: Path, client: Client, **options: Any) -> CalibrationResult:
    return daskembed.calibrate(str(output), cluster=client, **options)


def all_vectors() -> np.ndarray:
    return np.concatenate([vectors(tile, 9).reshape(-1, 16) for tile in TILES])


def counts(output: Path) -> dict[str, int]:
    """File of counts -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (output / COUNTS).iterdir()}


def spoil(path: Path, place: int) -> None:
    """Another byte in a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_a_calibration_is_that_of_all_vectors_at_once(output: Path, client: Client) -> None:
    result = calibrate(output, client, percentile=99)
    assert (result.exit_status, result.files, result.counted) == (0, 3, 3)
    made = result.calibration
    assert made is not None
    assert (made.rows, made.tiles, made.n_dims, made.level) == (3 * 9 * 4, 3, 16, "patch")
    assert parse_calibration((output / FILE).read_bytes(), "it") == made
    truth = Calibration.of(Histogram.of(all_vectors()), 99, {"encoder": "clay-v0"}, 3)
    assert (made.scale, made.offset) == (truth.scale, truth.offset)
    assert "108 of 16 dimensions, of 3 tiles" in repr(result)


def test_only_files_that_are_new_or_another_are_read_again(output: Path, client: Client) -> None:
    first = calibrate(output, client).calibration
    before = counts(output)
    assert len(before) == 3
    # Counts are enough, whatever is asked of them.
    again = calibrate(output, client, percentile=95)
    assert (again.counted, counts(output)) == (0, before)
    assert "3 counted before" in repr(again)
    write_published(output, ["33TVL"], side=2, shape=SHAPE, vectors=vectors)
    later = calibrate(output, client)
    assert later.counted == 1
    after = counts(output)
    assert len(after) == 3
    assert len(after.items() & before.items()) == 2
    assert later.calibration != first
    write_published(output, ["33TVL"], side=3, shape=SHAPE, vectors=vectors)
    assert calibrate(output, client).calibration == first


def test_a_file_that_is_written_under_an_old_receipt_is_read_again(
    output: Path, client: Client, tmp_path: Path
) -> None:
    first = calibrate(output, client).calibration
    write_published(tmp_path / "other", ["33TVL"], side=2, shape=SHAPE, vectors=vectors)
    (other,) = (tmp_path / "other").glob("*.gpq")
    good = (output / other.name).read_bytes()
    shutil.copy(other, output / other.name)
    result = calibrate(output, client)
    assert (result.exit_status, result.calibration, [*result.failed]) == (4, None, [other.name])
    assert "its receipt" in result.failed[other.name]
    (output / other.name).write_bytes(good)
    assert calibrate(output, client).calibration == first


def test_counts_of_other_files_stay(output: Path, client: Client, tmp_path: Path) -> None:
    calibrate(output, client)
    there = counts(output)
    assert calibrate(output, client, tiles="33TUL", to=str(tmp_path / "one.json")).counted == 0
    assert counts(output) == there


def test_counts_that_another_call_removed_are_told(output: Path, client: Client) -> None:
    def remove(_: daskembed.Event) -> None:
        for path in (output / COUNTS).glob("*.npz"):
            path.unlink()

    with pytest.raises(daskembed.InputError, match=r"\.npz is gone: the same command makes it again"):
        calibrate(output, client, events=remove)
    assert calibrate(output, client).exit_status == 0


def test_some_files_can_be_chosen(output: Path, client: Client, tmp_path: Path) -> None:
    result = calibrate(output, client, tiles="33TUL,33TUM", to=str(tmp_path / "two.json"))
    assert result.calibration is not None
    assert result.calibration.rows == 2 * 9 * 4
    assert parse_calibration((tmp_path / "two.json").read_bytes(), "it") == result.calibration
    assert not (output / FILE).exists()
    write_published(output, ["33TUL"], side=2, shape=(16,), version="002")
    with pytest.raises(daskembed.InputError, match=r"mixes embeddings .*choose by `level` or `version`"):
        calibrate(output, client)
    assert calibrate(output, client, version="002").calibration != result.calibration


def test_a_damaged_file_is_named_and_may_be_left_out(output: Path, client: Client) -> None:
    name = "33TVL_20240601_20240601_v001.gpq"
    spoil(output / name, 300)  # of its vectors
    result = calibrate(output, client)
    assert (result.exit_status, result.calibration, [*result.failed]) == (4, None, [name])
    assert "is damaged: its " in result.failed[name]
    assert "`skip_damaged=True`" in result.failed[name]
    assert not (output / FILE).exists()
    # What is sound is counted by now.
    result = calibrate(output, client, skip_damaged=True)
    assert (result.exit_status, result.counted, [*result.left_out]) == (3, 0, [name])
    assert result.calibration is not None
    assert (result.calibration.rows, result.calibration.tiles) == (2 * 9 * 4, 2)
    assert "left out     1" in repr(result)
    spoil(output / name, -2)
    with pytest.raises(daskembed.InputError, match=rf"{name} cannot be read .*`skip_damaged=True`"):
        calibrate(output, client)
    assert calibrate(output, client, skip_damaged=True).calibration == result.calibration


def test_vectors_that_are_none_stop_it(output: Path, client: Client) -> None:
    def bad(tile: str, rows: int) -> np.ndarray:
        made = vectors(tile, rows)
        made[1, 0, 1, 3] = np.nan
        return made

    write_published(output, ["33TUM"], side=3, shape=SHAPE, vectors=bad)
    assert "33TUM" in str(failed := calibrate(output, client).failed)
    assert "NaN or infinite" in str(failed)


@pytest.mark.parametrize("form", ["geoparquet", "cog"])
def test_a_row_that_int8_has_no_numbers_for_is_named(output: Path, client: Client, tmp_path: Path, form: str) -> None:
    def bad(tile: str, rows: int) -> np.ndarray:
        made = vectors(tile, rows)
        made[1, 0, 1, 3] = np.nan
        return made

    calibrate(output, client)
    write_published(output, ["33TUM"], side=3, shape=SHAPE, vectors=bad)
    (failed,) = export(output, tmp_path / "to", client, dtype="int8", format=form, tiles="33TUM").failed.values()
    assert re.search(r"the embedding of s3://\S+_33TUM_0002_\S+\.tif has a value that is NaN or infinite", failed)
    assert failed.endswith("have its tile made again, or give `dtype='float32'`")


@pytest.mark.parametrize("name", [".", "new/"])
def test_a_folder_is_refused_before_anything_is_counted(output: Path, name: str) -> None:
    with pytest.raises(daskembed.InputError, match=r" is a folder: give a file as `to`, such as .*/calibration\.json"):
        daskembed.calibrate(str(output), to=f"{output}/{name}", cluster="tcp://127.0.0.1:1")
    assert not (output / COUNTS).exists()


def test_damaged_counts_are_named(output: Path, client: Client) -> None:
    calibrate(output, client)
    path = next((output / COUNTS).iterdir())
    path.write_bytes(b"no counts")
    with pytest.raises(
        daskembed.InputError, match=r"is not what was kept of .*; delete it, and the same command makes"
    ):
        calibrate(output, client)
    path.unlink()
    assert calibrate(output, client).counted == 1


def test_what_is_interrupted_goes_on(output: Path, client: Client) -> None:
    def stop(state: daskembed.Progress) -> None:
        if len(state.finished) == 1 and state.how == "running":
            raise KeyboardInterrupt

    result = calibrate(output, client, progress=stop)
    assert (result.exit_status, result.calibration) == (130, None)
    assert 1 <= result.counted < 3
    assert "the same command goes on from here" in repr(result)
    again = calibrate(output, client)
    assert again.exit_status == 0
    assert again.counted <= 3 - result.counted  # a worker may have counted on for a moment
    assert again.calibration == Calibration.of(
        Histogram.of(all_vectors()), 99.9, {"encoder": "clay-v0", "size": "made-up", "level": "patch"}, 3
    )


def test_on_a_store(s3: str, client: Client) -> None:
    output = f"{s3}/output"
    write_published(output, ["33TUL"], side=2, shape=SHAPE, vectors=vectors)
    made = daskembed.calibrate(output, cluster=client)
    assert made.file == f"{output}/_daskembed/calibration.json"
    assert read_calibration(made.file) == made.calibration
    daskembed.export(output, to=f"{s3}/copy", dtype="int8", cluster=client)
    frame = daskembed.dequantize(daskembed.open_embeddings(f"{s3}/copy"))
    assert len(frame) == 4


@pytest.mark.parametrize("percentile", [89.9, 100.1, float("nan")])
def test_a_percentile_that_makes_no_sense_is_refused(output: Path, client: Client, percentile: float) -> None:
    with pytest.raises(daskembed.InputError, match=r"`percentile` .*: expected a number from 90 to 100"):
        calibrate(output, client, percentile=percentile)


def test_the_command(output: Path, client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--percentile", "99", "--cluster", client.scheduler.address]
    assert main(["calibrate", str(output), *words]) == 0
    assert "clipped      at most 1 % of a dimension's values at either end" in capsys.readouterr().out
    assert main(["export", str(output), "--to", str(tmp_path / "to"), "--dtype", "int8", *words[2:]]) == 0
    frame = daskembed.dequantize(daskembed.open_embeddings(str(tmp_path / "to"))).compute(scheduler="sync")
    assert len(frame) == 27
    (output / FILE).unlink()
    assert main(["export", str(output), "--to", str(tmp_path / "no"), "--dtype", "int8", *words[2:]]) == 2
    told = capsys.readouterr().err
    assert (
        "--dtype int8 needs one calibration for all files, and this output has none: make it with "
        f"`daskembed calibrate {output}`" in told
    )


def export(output: Path, to: Path, client: Client, **options: Any) -> Any:
    return daskembed.export(str(output), to=str(to), cluster=client, **options)


def stacked(frame: pd.DataFrame) -> np.ndarray:
    return np.stack(frame.set_index("source_url").sort_index()["embeddings"])


def originals() -> np.ndarray:
    """In the order of their chips' names."""
    return np.concatenate([vectors(tile, 9).reshape(9, -1) for tile in sorted(TILES)])


def test_an_export_of_int8_says_how_its_floats_come_back(output: Path, client: Client, tmp_path: Path) -> None:
    made = calibrate(output, client).calibration
    assert made is not None
    assert export(output, tmp_path / "to", client, dtype="int8").exit_status == 0
    (file,) = (tmp_path / "to").glob("*.parquet")
    footer = pq.read_metadata(file).metadata
    told = json.loads(footer[b"quantization"])
    assert {"method", "scale", "zero_point", "n_dims"} <= told.keys()
    assert parse_calibration(footer[b"quantization"], "it") == made
    assert json.loads(footer[b"daskembed"])["dtype"] == "int8"
    whole = gpd.read_parquet(file)
    np.testing.assert_array_equal(stacked(whole), quantize(originals(), made))
    truth = daskembed.dequantize(quantize(originals(), made), made)
    np.testing.assert_array_equal(stacked(daskembed.dequantize(whole)), truth)
    lazy = daskembed.open_embeddings(str(tmp_path / "to"))
    np.testing.assert_array_equal(stacked(daskembed.dequantize(lazy[lazy.source_url > ""]).compute()), truth)
    np.testing.assert_array_equal(stacked(daskembed.dequantize(lazy.compute(scheduler="sync"))), truth)


@pytest.mark.parametrize("profile", [None, "earth-index"])
def test_rows_of_patches(output: Path, client: Client, tmp_path: Path, profile: str | None) -> None:
    made = calibrate(output, client).calibration
    assert made is not None
    result = export(output, tmp_path / "to", client, dtype="int8", rows="patch", profile=profile)
    assert (result.exit_status, result.rows) == (0, 108)
    (file,) = (tmp_path / "to").glob("*.parquet")
    name = "embeddings" if profile is None else "embedding"
    encodings = {column.path_in_schema: column.encodings for column in columns(file)}
    assert "RLE_DICTIONARY" in encodings[f"{name}.list.element"]
    found = np.stack(daskembed.dequantize(gpd.read_parquet(file))[name])
    truth = dequantize(quantize(all_vectors(), made), made)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(truth, axis=0))


def columns(file: Path) -> list[Any]:
    group = pq.read_metadata(file).row_group(0)
    return [group.column(number) for number in range(group.num_columns)]


def test_a_table_of_lance_says_how_its_floats_come_back(output: Path, client: Client, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    made = calibrate(output, client).calibration
    assert export(output, tmp_path / "to", client, dtype="int8", format="lance").exit_status == 0
    table = lance.dataset(str(tmp_path / "to" / "embeddings.lance"))
    assert parse_calibration(table.schema.metadata[b"quantization"], "it") == made
    floats = dequantize(table.to_table().to_pandas(), made)
    np.testing.assert_array_equal(stacked(floats), dequantize(quantize(originals(), made), made))


def test_an_export_of_float16(output: Path, client: Client, tmp_path: Path) -> None:
    assert export(output, tmp_path / "to", client, dtype="float16").exit_status == 0
    (file,) = (tmp_path / "to").glob("*.parquet")
    assert b"quantization" not in pq.read_metadata(file).metadata
    np.testing.assert_array_equal(stacked(gpd.read_parquet(file)), originals().astype(np.float16))


def test_values_too_large_for_float16_fail(client: Client, tmp_path: Path) -> None:
    write_published(
        tmp_path / "output", ["33TUL"], side=2, vectors=lambda tile, rows: np.full((rows, 768), 7e4, np.float32)
    )
    result = export(tmp_path / "output", tmp_path / "to", client, dtype="float16")
    assert result.exit_status == 4
    assert "has the value 70000, and float16 ends at 65504: give `dtype='float32'`" in str(result.failed)
    assert not [*(tmp_path / "to").glob("*.parquet")]


def test_the_command_that_is_named_can_be_pasted(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "my tiles", ["33TUL"], side=1, shape=(4,))
    with pytest.raises(daskembed.InputError, match=r"make it with `daskembed calibrate '/.*/my tiles'`"):
        export(tmp_path / "my tiles", tmp_path / "to", client, dtype="int8")


def test_int8_without_a_calibration_is_refused(output: Path, client: Client, tmp_path: Path) -> None:
    with pytest.raises(daskembed.InputError, match=r"needs one calibration for all files, .*daskembed calibrate "):
        export(output, tmp_path / "to", client, dtype="int8")
    with pytest.raises(daskembed.InputError, match=r"no calibration .*none\.json"):
        export(output, tmp_path / "to", client, dtype="int8", calibration=str(tmp_path / "none.json"))
    (output / FILE).write_text("{}")
    with pytest.raises(daskembed.InputError, match=r"is not a calibration of daskembed: .*; make one with"):
        export(output, tmp_path / "to", client, dtype="int8")
    assert not (tmp_path / "to").exists()


def test_a_calibration_of_something_else_is_refused(output: Path, client: Client, tmp_path: Path) -> None:
    made = calibrate(output, client).calibration
    write_published(tmp_path / "mean", ["33TUL"], side=2, shape=(16,))
    with pytest.raises(daskembed.InputError, match=r"is for level patch, and what is exported of .*mean has mean"):
        export(tmp_path / "mean", tmp_path / "to", client, dtype="int8", calibration=made)
    write_published(tmp_path / "wide", ["33TUL"], side=2, shape=(2, 2, 32))
    with pytest.raises(daskembed.InputError, match=r"is for dimensions: 16, and what is exported of .*wide has 32"):
        export(tmp_path / "wide", tmp_path / "to", client, dtype="int8", calibration=made)
    with pytest.raises(daskembed.InputError, match=r"a `calibration` is for `dtype='int8'`, and `dtype` is float32"):
        export(output, tmp_path / "to", client, calibration=made)


def test_each_level_of_an_output_has_its_own(client: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_published(out, ["33TUL"], side=2, shape=(8,))
    write_published(out, ["33TVL"], side=1, shape=(2, 2, 8), version="002")
    mean = calibrate(out, client, level="mean")
    patch = calibrate(out, client, level="patch")
    assert mean.file == str(out / FILE)
    assert patch.file is not None
    assert patch.file.startswith(str(out / "_daskembed" / "calibration-patch-"))
    # Of the same kind the old one makes room, wherever it is.
    again = calibrate(out, client, level="patch", percentile=99.0)
    assert (again.file, calibrate(out, client, level="mean").file) == (patch.file, mean.file)
    for made in (mean, again):
        assert made.calibration is not None
        level = str(made.calibration.level)
        assert export(out, tmp_path / level, client, dtype="int8", level=level).exit_status == 0
        (file,) = (tmp_path / level).glob("*.parquet")
        assert parse_calibration(pq.read_metadata(file).metadata[b"quantization"], "it") == made.calibration
    # What is damaged of another kind is in nobody's way.
    (out / FILE).write_text("{}")
    assert export(out, tmp_path / "patches", client, dtype="int8", level="patch").exit_status == 0
    with pytest.raises(daskembed.InputError, match=r"calibration\.json is not a calibration of daskembed"):
        export(out, tmp_path / "no", client, dtype="int8", level="mean")
    (out / FILE).unlink()
    with pytest.raises(daskembed.InputError, match=r"is for level patch, and what is exported of .* has mean: make"):
        export(out, tmp_path / "no", client, dtype="int8", level="mean")


def test_another_calibration_makes_another_export(output: Path, client: Client, tmp_path: Path) -> None:
    calibrate(output, client)
    export(output, tmp_path / "to", client, dtype="int8")
    calibrate(output, client, percentile=90)
    with pytest.raises(daskembed.ConflictError, match=r"was made with calibration .*`overwrite=True`"):
        export(output, tmp_path / "to", client, dtype="int8")
    export(output, tmp_path / "other", client, dtype="int8")
    (file,) = (tmp_path / "other").glob("*.parquet")
    shutil.copy(file, tmp_path / "to" / "b.parquet")
    with pytest.raises(daskembed.InputError, match=r"mixes embeddings .*calibration "):
        daskembed.open_embeddings(str(tmp_path / "to"))


DOCS = Path(__file__).parent.parent / "docs" / "files.md"


def documented() -> list[str]:
    """The blocks of Python under "Small vectors"."""
    section = DOCS.read_text().partition("## Small vectors\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_lines_of_the_documentation_give_the_same_floats(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_published("out", TILES, side=4, shape=(16,), vectors=lambda tile, rows: vectors(tile, rows)[:, 0, 0])
    daskembed.calibrate("out", cluster=client)
    daskembed.export("out", to="daskembed-demo/small", dtype="int8", cluster=client)
    urls = pq.read_table("daskembed-demo/small")["source_url"].to_pylist()
    made = read_calibration("out/_daskembed/calibration.json")
    given = {path.name[:5]: np.stack(gpd.read_parquet(path).embeddings) for path in Path("out").glob("*.gpq")}
    order = np.argsort(urls)
    truth = dequantize(quantize(np.concatenate([given[tile] for tile in sorted(TILES)]), made), made)
    names, found = {}, []
    for block in documented():
        exec(block, names)
        floats = names["floats"]
        if hasattr(floats, "fetchall"):
            rows = dict(floats.fetchall())
            floats = np.array([rows[url] for url in urls], np.float32)
        elif not isinstance(floats, np.ndarray):
            column = floats["embeddings"]
            floats = np.stack(column) if isinstance(floats, pd.DataFrame) else column.to_numpy()
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats[order], truth)
        found.append(block)
    assert len(found) == 4
    np.testing.assert_array_equal(stacked(names["lazy"].compute(scheduler="sync")), truth)
