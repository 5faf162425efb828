"""Exports end to end: what is in them, who opens them, and what they refuse."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import shapely
from distributed import Client

import daskembed
from daskembed.cli.main import main
from daskembed.errors import ConflictError, InputError, TileError
from daskembed.exports import state
from daskembed.exports.index import index_tile, open_published
from daskembed.exports.settings import Sizes
from daskembed.geo.hilbert import hilbert_keys
from daskembed.output import lock
from daskembed.output.state import RECORDS
from daskembed.runs.export_job import prepare
from daskembed.runs.export_options import Asked, ExportOptions
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import LOCK, run_export
from daskembed.runs.results import Event, Progress
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "33TUM", "01JBG", "27WXN")
DAYS = ("2024-06-01", "2024-07-01")
SIDE, DIMS = 4, 8
SMALL = Sizes(file=48 * 4 * DIMS, group=10 * 4 * DIMS, page=4 * DIMS)
"""Files of about 48 rows, in groups of 10, a vector a page."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of five tiles, one of them at 180 degrees; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=SIDE, shape=(DIMS,), days=DAYS)
    return folder


def make(output: Path, to: Path, client: Client, sizes: Sizes = SMALL, **asked: object) -> ExportResult:
    return run_export(str(output), str(to), Asked(cluster=client, **asked), sizes)


@pytest.fixture(scope="module")
def exported(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their export; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    result = make(output, folder, client)
    assert (result.exit_status, result.rows, result.tiles) == (0, len(TILES) * SIDE**2 * len(DAYS), len(TILES))
    assert len(result.files) == result.written >= 3
    return folder


def published(output: Path) -> gpd.GeoDataFrame:
    frames = [gpd.read_parquet(path) for path in sorted(output.glob("*.gpq"))]
    return gpd.pd.concat(frames).set_index("source_url").sort_index()


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


def test_all_rows_are_there_once_and_bit_by_bit(output: Path, exported: Path) -> None:
    table = ds.dataset(exported, format="parquet").to_table()
    before = published(output)
    rows = table["source_url"].to_pylist()
    assert sorted(rows) == [*before.index]
    vectors = np.stack(before.loc[rows, "embeddings"].to_numpy())
    assert np.array_equal(np.stack(table["embeddings"].to_numpy()), vectors)
    assert table["date"].to_pylist() == before.loc[rows, "date"].to_list()
    assert (shapely.from_wkb(table["geometry"].to_pylist()) == before.loc[rows].geometry.to_numpy()).all()


def test_rows_are_in_the_order_of_the_curve_and_then_of_their_dates(exported: Path) -> None:
    table = pq.read_table(exported, columns=["date", "geometry", "source_url"])
    shapes = shapely.from_wkb(table["geometry"].to_pylist())
    across = np.array([shape.geom_type == "MultiPolygon" for shape in shapes])
    around = np.where(across, shapely.transform(shapes, lambda xy: np.where(xy < 0, np.add(xy, (360, 0)), xy)), shapes)
    west, south, east, north = shapely.bounds(around).T
    lon = (west + east) / 2
    keys = hilbert_keys(np.where(lon > 180, lon - 360, lon), (south + north) / 2)
    order = [*zip(keys.tolist(), table["date"].to_pylist(), table["source_url"].to_pylist(), strict=True)]
    assert order == sorted(order)
    assert any(a[0] == b[0] and a[1] < b[1] for a, b in itertools.pairwise(order))


def test_geopandas_finds_by_box(output: Path, exported: Path) -> None:
    box = (12.45, 45.95, 12.75, 46.05)
    frame = gpd.read_parquet(exported, columns=["source_url", "geometry"], bbox=box)
    before = published(output)
    assert sorted(frame["source_url"]) == [*before.index[before.intersects(shapely.box(*box))]]
    assert 0 < len(frame) < len(before)
    assert frame.crs == "OGC:CRS84"


def test_what_reaches_across_180_degrees_is_found_on_both_sides(exported: Path) -> None:
    east, west = (
        set(gpd.read_parquet(exported, columns=["source_url", "geometry"], bbox=box)["source_url"])
        for box in ((179.9999, -90, 180, 90), (-180, -90, -179.9999, 90))
    )
    frame = gpd.read_parquet(exported)
    across = set(frame["source_url"][frame.geometry.geom_type == "MultiPolygon"])
    assert across
    assert across <= east & west


def test_a_file_with_rows_across_180_degrees_is_not_around_the_earth(
    output: Path, client: Client, tmp_path: Path
) -> None:
    result = make(output, tmp_path, client, Sizes(), tiles="01JBG")
    rows = gpd.read_parquet(tmp_path)
    around = rows.geometry.transform(lambda xy: np.where(xy[:, :1] < 0, np.add(xy, (360, 0)), xy)).total_bounds
    expected = around - (0, 0, 360, 0)
    assert 179 < expected[0] < 180
    assert -180 < expected[2] < -179
    (file,) = result.files
    geo = json.loads(pq.read_metadata(tmp_path / file.name).metadata[b"geo"])
    assert file.bbox == geo["columns"]["geometry"]["bbox"] == pytest.approx(expected, abs=1e-9)
    assert daskembed.validate(str(tmp_path / file.name)) == []
    lazy = daskembed.open_embeddings(str(tmp_path))
    assert (
        len(lazy.cx[-179.9999:-179.9, -90:90].compute())
        == rows.intersects(shapely.box(-179.9999, -90, -179.9, 90)).sum()
    )


def test_duckdb_reads_vectors_and_boxes(output: Path, exported: Path) -> None:
    rows = duckdb.sql(
        f"SELECT source_url, embeddings FROM '{exported}/*.parquet' WHERE bbox.xmin < 12.5 AND bbox.xmax > 12.4 "
        "AND bbox.ymin < 46 AND bbox.ymax > 45.9"
    ).fetchall()
    before = published(output)
    assert rows
    assert all(np.array_equal(np.float32(vector), before.loc[url, "embeddings"]) for url, vector in rows)


def test_files_say_what_they_are(exported: Path) -> None:
    for path in exported.glob("*.parquet"):
        file = pq.ParquetFile(path)
        geo = json.loads(file.metadata.metadata[b"geo"])
        assert geo["version"] == "1.1.0"
        assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
        made = json.loads(file.metadata.metadata[b"daskembed"])
        assert (made["encoder"], made["level"], made["shape"], made["export"]["rows"]) == (
            "clay-v0",
            "mean",
            [8],
            "chip",
        )
        group = file.metadata.row_group(0)
        assert group.num_rows == 10
        assert group.column(2).has_offset_index
        assert group.column(0).has_column_index


def test_a_second_export_is_the_same_byte_by_byte(output: Path, exported: Path, tmp_path: Path) -> None:
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as other:
        make(output, tmp_path / "again", other)
    assert files(tmp_path / "again") == files(exported)


def test_a_finished_export_is_left_as_it_is_without_a_cluster(output: Path, exported: Path) -> None:
    before = files(exported)
    asked = Asked(cluster="tcp://127.0.0.1:1")
    result = run_export(str(output), str(exported), asked, SMALL)
    assert (result.written, result.exit_status, len(result.files)) == (0, 0, len(before))
    assert files(exported) == before


def test_open_embeddings_opens_it(exported: Path) -> None:
    frame = daskembed.open_embeddings(str(exported)).compute()
    assert len(frame) == len(TILES) * SIDE**2 * len(DAYS)
    assert frame["embeddings"].iloc[0].shape == (DIMS,)
    assert "bbox" not in frame.columns


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small output of two tiles, to be changed."""
    write_published(tmp_path / "small", TILES[:2], side=2, shape=(DIMS,))
    return tmp_path / "small"


def name_of(output: Path, tile: str) -> Path:
    return next(output.glob(f"{tile}_*.gpq"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_file_that_is_published_anew_meanwhile_is_not_read(
    small: Path, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    output = Storage(str(small) if where == "local" else request.getfixturevalue("s3"))
    path, other = (name_of(small, tile) for tile in TILES[:2])
    for one in (path, other):
        output.put(one.name, one.read_bytes())
    job = prepare(output.url, str(tmp_path / "to"), Asked())
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    output.put(path.name, bytes(data))
    with (
        pytest.raises(TileError, match=f"{path.name} was published anew since this export began: it has"),
        open_published(job.export, job.selection.tiles[path.name]),
    ):
        pytest.fail("it was opened")
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_published(job.export, job.selection.tiles[other.name]))
        output.put(other.name, other.read_bytes()[:-8] + bytes(8))
        with pytest.raises(TileError, match=f"{other.name} was published anew since this export began"):
            stack.close()
    output.delete([other.name])
    with pytest.raises(TileError, match="is gone"), open_published(job.export, job.selection.tiles[other.name]):
        pytest.fail("it was opened")


def test_a_damaged_file_is_named_and_nothing_is_written(small: Path, client: Client, tmp_path: Path) -> None:
    damage(bad := name_of(small, "33TVL"))
    result = make(small, tmp_path / "to", client)
    assert result.exit_status == 4
    assert [*result.failed] == [bad.name]
    assert "is damaged: its" in result.failed[bad.name]
    assert "`skip_damaged=True`" in result.failed[bad.name]
    assert not files(tmp_path / "to")
    assert "failed       1" in repr(result)


def test_damaged_files_are_left_out_and_counted_where_that_is_asked(
    small: Path, client: Client, tmp_path: Path
) -> None:
    damage(bad := name_of(small, "33TVL"))
    cut = name_of(small, "33TUL")
    write_published(small, ["33TUM"], side=2, shape=(DIMS,))
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{cut.name} cannot be read.*`skip_damaged=True`"):
        make(small, tmp_path / "to", client)
    result = make(small, tmp_path / "to", client, skip_damaged=True)
    assert (result.exit_status, result.rows, set(result.left_out)) == (3, 4, {bad.name, cut.name})
    again = make(small, tmp_path / "to", client, skip_damaged=True)
    assert (again.exit_status, again.written, set(again.left_out)) == (3, 0, {bad.name, cut.name})


def test_a_file_that_was_made_again_since_is_told_and_exported_by_overwrite(
    small: Path, client: Client, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    make(small, to, client)
    before = files(to)
    write_published(small, ["33TUM"], side=2, shape=(DIMS,))
    with pytest.raises(ConflictError, match=r"is of other published files \(1 new\).*`overwrite=True`"):
        make(small, to, client)
    write_published(small, TILES[:1], side=3, shape=(DIMS,))
    with pytest.raises(ConflictError, match=r"\(1 new, 1 changed\)"):
        make(small, to, client)
    assert files(to) == before
    result = make(small, to, client, overwrite=True)
    assert (result.exit_status, result.rows) == (0, 9 + 4 + 4)
    assert len(ds.dataset(to, format="parquet").to_table()) == 17


def test_other_settings_are_told(small: Path, client: Client, tmp_path: Path) -> None:
    make(small, tmp_path / "to", client)
    with pytest.raises(ConflictError, match=r"was made with dates None, not \['2024-06-01', '2024-06-02'\]"):
        make(small, tmp_path / "to", client, dates="2024-06-01/2024-06-02")


def test_regions_of_many_corners_are_told_apart_in_a_few_words(small: Path, client: Client, tmp_path: Path) -> None:
    around = shapely.Point(12.5, 46).buffer(0.25, quad_segs=500)
    make(small, tmp_path / "to", client, region=around.wkt)
    for region, said in (
        (shapely.Point(12.5, 46).buffer(0.5, quad_segs=500).wkt, "region in 12.25,45.75,12.75,46.25, not in 12,45.5,"),
        (shapely.box(*around.bounds).wkt, "another region in 12.25,45.75,12.75,46.25:"),
        (None, "region in 12.25,45.75,12.75,46.25, not none:"),
    ):
        with pytest.raises(ConflictError) as caught:
            make(small, tmp_path / "to", client, region=region)
        assert f"was made with {said}" in str(caught.value)


def test_dates_region_and_tiles_choose(output: Path, client: Client, tmp_path: Path) -> None:
    before = published(output)
    result = make(output, tmp_path / "dates", client, dates="2024-06-15/2024-07-15", tiles="33TUL,27WXN")
    assert (result.rows, result.tiles) == (2 * SIDE**2, 2)
    box = (12.45, 45.95, 12.75, 46.05)
    region = ",".join(map(str, box))
    result = make(output, tmp_path / "region", client, region=Asked.of({"region": region}, ExportOptions).region)
    assert result.rows == before.intersects(shapely.box(*box)).sum() > 0
    with pytest.raises(InputError, match="of `dates` 2023-01-01/2023-12-31 in"):
        make(output, tmp_path / "none", client, dates="2023-01-01/2023-12-31")
    with pytest.raises(InputError, match="no published file of the tiles 32TQQ"):
        make(output, tmp_path / "none", client, tiles="32TQQ")


def test_a_mixed_folder_is_refused_with_the_choices(small: Path, client: Client, tmp_path: Path) -> None:
    write_published(small, ["33TUM"], side=2, shape=(2, 2, DIMS), version="002")
    with pytest.raises(InputError) as caught:
        make(small, tmp_path / "to", client)
    told = str(caught.value)
    assert "2 of level mean shape 8 version 001; 1 of level patch shape 2x2x8 version 002" in told
    assert told.endswith("choose by `level` or `version`")
    assert make(small, tmp_path / "to", client, level="patch").rows == 4


def test_places_that_are_no_place_for_an_export(small: Path, client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the output itself"):
        make(small, small, client)
    (tmp_path / "begun" / RECORDS).mkdir(parents=True)
    with pytest.raises(InputError, match=r"begun holds _daskembed/tiles and is the output of a run: give a folder of"):
        make(small, tmp_path / "begun", client)
    write_published(tmp_path / "other", TILES[:1], side=1, shape=(DIMS,))
    with pytest.raises(InputError, match="is the output of a run: give a folder of its own as `to`"):
        make(small, tmp_path / "other", client)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "mine.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds mine.parquet and is no export of daskembed"):
        make(small, tmp_path / "others", client)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no published files \(\*.gpq\) in"):
        make(tmp_path / "empty", tmp_path / "to", client)


def test_stores_alone_are_refused_with_words(client: Client, tmp_path: Path) -> None:
    (tmp_path / "zarr" / "33TUL_20240601_20240601_v001.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds Zarr stores.*`format='geoparquet,zarr'`"):
        make(tmp_path / "zarr", tmp_path / "to", client)


def test_files_of_others_are_exported_with_a_note(
    small: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(small / "_daskembed")
    # As the reference writes them: plain lists, and one column more.
    path = name_of(small, "33TUL")
    table = pq.read_table(path)
    lists = pa.array(table["embeddings"].combine_chunks().storage.to_pylist(), pa.list_(pa.float32()))
    table = table.set_column(2, "embeddings", lists).append_column("index", pa.array(range(len(table))))
    pq.write_table(table, path)
    (small / name_of(small, "33TVL")).unlink()
    result = make(small, tmp_path / "to", client)
    assert (result.exit_status, result.rows) == (0, 4)
    table = table.replace_schema_metadata({b"geo": table.schema.metadata[b"geo"]})
    pq.write_table(table, path)
    make(small, tmp_path / "unsaid", client)
    assert main(["status", str(tmp_path / "unsaid")]) == 0
    assert "export       unknown encoder, level unknown, geoparquet, a row a chip, float32\n" in capsys.readouterr().out
    assert result.notes == ("1 published file without a receipt: whether the bytes are whole cannot be known",)
    found = pq.read_table(tmp_path / "to")
    assert sorted(found["embeddings"].to_pylist()) == sorted(lists.to_pylist())


def test_an_export_to_a_store_is_the_same(output: Path, exported: Path, client: Client, s3: str) -> None:
    result = run_export(str(output), f"{s3}/copy", Asked(cluster=client), SMALL)
    assert result.exit_status == 0
    storage = Storage(f"{s3}/copy")
    found = {one.path: hashlib.sha256(storage.get(one.path)).hexdigest() for one in storage.entries(recursive=False)}
    assert found == files(exported)
    assert len(daskembed.open_embeddings(f"{s3}/copy").compute()) == result.rows
    write_published(f"{s3}/output", TILES, side=SIDE, shape=(DIMS,), days=DAYS)
    result = run_export(f"{s3}/output", f"{s3}/from-store", Asked(cluster=client), SMALL)
    assert (result.exit_status, result.notes) == (0, ())
    assert {one.name: one.sha256 for one in result.files} == found


def test_an_unfinished_export_goes_on_with_its_plan(
    output: Path, exported: Path, client: Client, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    shutil.copytree(exported, to)
    plan = state.read_plan(Storage(str(to)))
    assert plan is not None
    gone = sorted(files(to))[1]
    (to / gone).unlink()
    told: list[Event] = []
    result = run_export(str(output), str(to), Asked(cluster=client, events=told.append), SMALL)
    assert (result.exit_status, result.written, files(to)) == (0, 1, files(exported))
    assert [event.tile for event in told if event.event == "published"] == [gone]


def test_the_command_tells_what_it_does(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "threads.yaml"
    preset.write_text(
        "class: distributed.LocalCluster\narguments: {processes: false, n_workers: 1, dashboard_address: null}\n"
    )
    command = ["export", str(small), "--to", str(tmp_path / "to"), "--cluster", str(preset)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "33TUL_20240601_20240601_v001.gpq  indexed: 4 rows\n" in out
    assert f"embeddings_00000.parquet  done: 8 rows, {tmp_path}/to/embeddings_00000.parquet\n" in out
    assert f"tiles        2 published files of {small}\nfiles        1 written in " in out
    assert " s\nrows         8\n" in out
    assert out.endswith(f"export       {tmp_path}/to\n")
    assert main(command) == 0
    assert "nothing is left to do: no cluster is started\n" in (out := capsys.readouterr().out)
    assert "files        1 there already\n" in out
    assert main([*command, "--dates", "2024-01-01/2024-12-31"]) == 2
    assert "give another --to to keep both, or --overwrite to make it anew" in capsys.readouterr().err


def test_the_command_says_once_why_a_file_is_damaged(
    small: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(name_of(small, "33TVL"))
    command = [str(small), "--cluster", client.scheduler.address]
    for words, status, fate in (
        (["export", "--to", str(tmp_path / "to")], 4, "failed"),
        (["export", "--to", str(tmp_path / "to"), "--skip-damaged"], 3, "left out"),
        (["calibrate"], 4, "failed"),
        (["calibrate", "--skip-damaged"], 3, "left out"),
    ):
        assert main([words[0], *command, *words[1:]]) == status
        told = capsys.readouterr().out
        assert told.count("is damaged: its") == 1
        assert f"33TVL_20240601_20240601_v001.gpq  {fate}\n" in told


def test_status_says_why_a_file_could_not_be_read_or_written(
    small: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, path = tmp_path / "to", name_of(small, "33TVL")
    whole = path.read_bytes()
    damage(path)
    assert make(small, to, client).exit_status == 4
    found = daskembed.status(str(to)).export
    assert found is not None
    assert [*found.failed] == [path.name]
    assert "is damaged: its" in found.failed[path.name]
    assert main(["status", str(to)]) == 3
    assert f"failed       {path.name}: {path} is damaged" in capsys.readouterr().out
    path.write_bytes(whole)

    def change(state: Progress) -> None:
        if state.units[0] == "files" and not state.finished:
            output = Storage(str(small))
            output.put(path.name, whole)

    assert make(small, to, client, progress=change).exit_status == 4
    found = daskembed.status(str(to)).export
    assert found is not None
    (file,) = found.files
    assert (file.status, [*found.failed]) == ("failed", [file.name])
    assert f"{path.name} was published anew since this export began" in str(file.reason)
    assert str(file.reason).endswith("; the same `daskembed export` tries it again")
    assert main(["status", str(to)]) == 3
    told = capsys.readouterr().out
    assert "files        1 failed\n" in told
    assert f"failed       {file.name}: {path} was published anew" in told
    assert make(small, to, client).exit_status == 0
    found = daskembed.status(str(to)).export
    assert found is not None
    assert (found.files[0].status, found.failed, found.sound) == ("done", {}, True)
    assert not (to / state.FAILED).exists()


def test_a_file_that_is_damaged_since_the_plan_is_left_out_by_making_it_anew(
    small: Path, client: Client, tmp_path: Path
) -> None:
    to, bad = tmp_path / "to", name_of(small, "33TVL")
    make(small, to, client)
    (to / "embeddings_00000.parquet").unlink()
    damage(bad)
    result = make(small, to, client, skip_damaged=True)
    assert (result.exit_status, result.left_out, [*result.failed]) == (4, {}, [bad.name])
    said = "this export was planned with it: .* anew with `overwrite=True`, and `skip_damaged=True` to leave it out"
    assert re.search(said, result.failed[bad.name])
    result = make(small, to, client, skip_damaged=True, overwrite=True)
    assert (result.exit_status, result.rows, [*result.left_out]) == (3, 4, [bad.name])


def test_two_exports_into_one_folder_do_not_meet(small: Path, client: Client, tmp_path: Path) -> None:
    with (
        lock.hold(Storage(str(tmp_path / "to")), LOCK),
        pytest.raises(
            InputError, match=r"another run is at work on .*wait for it, or give another `to`\. If it is dead"
        ),
    ):
        make(small, tmp_path / "to", client)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"/file is a file: give a folder of its own as `to`"):
        make(small, tmp_path / "file", client)


def test_a_file_that_changes_while_it_is_exported_is_told(small: Path, client: Client, tmp_path: Path) -> None:
    def change(state: Progress) -> None:
        if state.units[0] == "files" and not state.finished:
            write_published(small, TILES[:1], side=3, shape=(DIMS,))

    result = make(small, tmp_path / "to", client, progress=change)
    assert result.exit_status == 4
    assert "bytes, and had" in result.failed["embeddings_00000.parquet"]
    assert not files(tmp_path / "to")


def test_where_an_overwrite_that_was_killed_has_looked_is_forgotten(
    output: Path, exported: Path, client: Client, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    shutil.copytree(exported, to)
    (to / sorted(files(to))[1]).unlink()
    # Killed before its plan was made: what is there is still the first export's.
    job = prepare(str(output), str(to), Asked(dates=f"{DAYS[0]}/{DAYS[0]}", overwrite=True), SMALL)
    for tile in job.selection.tiles.values():
        index_tile(job.export, tile)
    result = make(output, to, client)
    assert (result.exit_status, result.written, files(to)) == (0, 1, files(exported))


def test_overwrite_leaves_nothing_of_what_was_there(
    output: Path, exported: Path, client: Client, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    shutil.copytree(exported, to)
    # Its worker was killed between the two.
    (to / state.receipt_of(max(files(to)))).unlink()
    result = make(output, to, client, Sizes(), overwrite=True)
    assert (result.exit_status, [*files(to)]) == (0, ["embeddings_00000.parquet"])


@pytest.mark.parametrize("calls", [1, 2])
def test_what_is_killed_while_it_removes_an_export_goes_on(
    output: Path, exported: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    to, left = tmp_path / "to", iter(range(calls))
    shutil.copytree(exported, to)
    delete = Storage.delete

    def killed(self: Storage, paths: list[str]) -> None:
        own = [one for one in paths if not {"index", "failed"} & {*one.split("/")}]
        if own and next(left, None) is None:
            raise KeyboardInterrupt
        delete(self, paths)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            make(output, to, client, Sizes(), overwrite=True)
    result = make(output, to, client, Sizes(), overwrite=True)
    assert (result.exit_status, [*files(to)]) == (0, ["embeddings_00000.parquet"])


def test_a_damaged_file_that_is_whole_again_is_exported_by_overwrite(
    small: Path, client: Client, tmp_path: Path
) -> None:
    whole = (bad := name_of(small, "33TVL")).read_bytes()
    damage(bad)
    assert make(small, tmp_path / "to", client, skip_damaged=True).rows == 4
    bad.write_bytes(whole)
    result = make(small, tmp_path / "to", client, skip_damaged=True, overwrite=True)
    assert (result.exit_status, result.rows) == (0, 8)
