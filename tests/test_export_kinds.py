"""Exports of patches, of one row a place, with added columns and for other readers, from published files to files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import shapely
from distributed import Client
from test_export_unique import decide, tile

from daskembed.cli.parser import keywords, make_parser
from daskembed.errors import InputError
from daskembed.exports import index, state
from daskembed.exports.selection import ExportTile
from daskembed.exports.settings import Sizes
from daskembed.exports.validate.check import validate
from daskembed.geo.regions import meets
from daskembed.output.index_rows import rows_path
from daskembed.runs.export_options import Asked, ExportOptions
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.runs.results import Progress
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL")
SHAPE = (2, 2, 3)
SMALL = Sizes(file=900 * 12, group=400 * 12, page=12)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole tiles that overlap, with patches; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, shape=SHAPE)
    return folder


def make(output: Path, to: Path, client: Client, **asked: object) -> ExportResult:
    result = run_export(str(output), str(to), Asked(cluster=client, **asked), SMALL)
    assert result.exit_status in (0, 3)
    return result


def table_of(folder: Path) -> pa.Table:
    return ds.dataset(folder, format="parquet", exclude_invalid_files=True).to_table()


def published(output: Path, name: str) -> pa.Table:
    return pq.read_table(next(output.glob(f"{name}_*.gpq")))


def test_each_patch_is_a_row_with_its_vector_place_and_columns(output: Path, client: Client, tmp_path: Path) -> None:
    result = make(output, tmp_path, client, rows="patch", columns="chip_id,tile,cloud,datetime,epsg")
    assert result.rows == 2 * 441 * 4
    assert result.notes == ()
    found = table_of(tmp_path)
    plain = ["source_url", "date", "row", "col", "embeddings", "geometry"]
    assert found.column_names == [*plain, "datetime", "tile", "cloud", "epsg", "chip_id", "bbox"]
    assert found["embeddings"].type == pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
    places = [*zip(found["source_url"].to_pylist(), found["row"].to_pylist(), found["col"].to_pylist(), strict=True)]
    assert len({*places}) == len(places)
    vectors, ids, shapes = {}, {}, {}
    for name in TILES:
        table = published(output, name)
        for url, vector, wkb in zip(
            table["source_url"].to_pylist(),
            table["embeddings"].combine_chunks().to_numpy_ndarray(),
            table["geometry"].to_pylist(),
            strict=True,
        ):
            vectors[url], ids[url], shapes[url] = vector, name, shapely.from_wkb(wkb)
    expected = np.stack([vectors[url][row, col] for url, row, col in places])
    np.testing.assert_array_equal(np.stack(found["embeddings"].to_numpy()), expected)
    assert found["tile"].to_pylist() == [ids[url] for url, _, _ in places]
    middles = shapely.centroid(shapely.from_wkb(found["geometry"].to_pylist()))
    assert shapely.contains([shapes[url] for url, _, _ in places], middles).all()
    whole = [shapes[url].centroid for url, _, _ in places]
    assert ((shapely.get_y(middles) < shapely.get_y(whole)) == (found["row"].to_numpy() == 1)).all()
    assert ((shapely.get_x(middles) > shapely.get_x(whole)) == (found["col"].to_numpy() == 1)).all()
    assert set(found["epsg"].to_pylist()) == {32633}
    assert found["cloud"].null_count == found["datetime"].null_count == len(found)
    assert found["chip_id"].to_pylist()[0].startswith(f"{found['tile'][0]}_20240601_")
    assert len(set(found["chip_id"].to_pylist())) == 2 * 441
    made = json.loads(pq.read_schema(next(tmp_path.glob("*.parquet"))).metadata[b"daskembed"])
    assert (made["dims"], made["shape"]) == (["embedding"], [3])
    assert [validate(str(path)) for path in tmp_path.glob("*.parquet")] == [[]] * len(result.files)


@pytest.mark.parametrize("rows", ["chip", "patch"])
def test_one_row_a_place_and_date_remains(rows: str, output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, rows=rows, unique="place", columns="tile")
    found = table_of(tmp_path)
    kept = decide(*(tile(name, grid=SHAPE[:2] if rows == "patch" else (1, 1)) for name in TILES))
    for name in TILES:
        there = found.filter(pa.array([one == name for one in found["tile"].to_pylist()]))
        cells = (
            [np.zeros(len(there), int)] * 2 if rows == "chip" else [there["row"].to_numpy(), there["col"].to_numpy()]
        )
        urls = published(output, name)["source_url"].to_pylist()
        # Rows are published in the order of their names, which is row-major.
        a_chip = len(kept[name]) // len(urls)
        numbers = [urls.index(url) * a_chip for url in there["source_url"].to_pylist()] + 2 * cells[0] + cells[1]
        assert sorted(numbers) == np.flatnonzero(kept[name]).tolist()
    assert 0.9 < len(found) / sum(map(len, kept.values())) < 1


def test_region_and_dates_are_of_patches(output: Path, client: Client, tmp_path: Path) -> None:
    area = shapely.box(12.45, 45.9, 12.5, 45.95)
    make(output, tmp_path / "all", client, rows="patch")
    make(output, tmp_path / "some", client, rows="patch", region=area.wkt, dates="2024-06-01/2024-06-30")
    everything, some = table_of(tmp_path / "all"), table_of(tmp_path / "some")
    inside = meets(area.wkt, shapely.from_wkb(everything["geometry"].to_pylist()))
    assert 4 < inside.sum() < 30
    assert some.sort_by("geometry").equals(everything.filter(pa.array(inside)).sort_by("geometry"))


@pytest.fixture
def mine(output: Path, tmp_path: Path) -> Path:
    """The output, to be changed."""
    return Path(shutil.copytree(output, tmp_path / "mine"))


def test_what_a_run_kept_comes_along_and_what_none_kept_is_told_once(
    mine: Path, client: Client, tmp_path: Path
) -> None:
    path = mine / rows_path("33TUL", "001")
    known = pq.read_table(path)
    time = datetime(2024, 6, 1, 10, 20, 31, tzinfo=UTC)
    known = known.set_column(1, "datetime", pa.array([time] * len(known), known.schema.field("datetime").type))
    known = known.set_column(2, "cloud", pa.array(np.arange(len(known)) / 1000, pa.float32()))
    pq.write_table(known, path)
    (mine / rows_path("33TVL", "001")).unlink()
    result = make(mine, tmp_path / "to", client, columns="cloud,datetime")
    assert result.notes == (
        "1 published file of earlier versions, whose runs kept no datetime and no cloud of their rows: there is none",
    )
    found = table_of(tmp_path / "to").to_pylist()
    clouds = dict(zip(known["source_url"].to_pylist(), known["cloud"].to_pylist(), strict=True))
    assert all(
        (row["datetime"], row["cloud"])
        == ((time, clouds[row["source_url"]]) if "/33TUL/" in row["source_url"] else (None, None))
        for row in found
    )
    # What needs none of it says nothing.
    assert make(mine, tmp_path / "other", client, columns="tile,epsg").notes == ()


def test_major_tom_end_to_end(output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, rows="patch", profile="majortom", columns="tile")
    frame = gpd.read_parquet(tmp_path)
    assert len(frame) == 2 * 441 * 4
    assert [*frame.columns] == [
        *("unique_id", "embedding", "timestamp", "product_id", "grid_cell", "grid_row_u", "grid_col_r", "geometry"),
        *("centre_lat", "centre_lon", "utm_footprint", "utm_crs", "pixel_bbox", "tile"),
    ]
    assert frame["unique_id"].is_unique
    assert [validate(str(path)) for path in tmp_path.glob("*.parquet")] == [[]] * 4
    assert set(frame["timestamp"]) == {"20240601"}
    assert frame["embedding"].iloc[0].shape == (3,)
    assert set(map(tuple, frame["pixel_bbox"])) == {
        *((x, y, x + 256, y + 256) for x in (0, 256) for y in (0, 256)),
    }


def test_earth_index_end_to_end(output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, profile="earth-index")
    frame = gpd.read_parquet(tmp_path)
    assert [*frame.columns] == ["geometry", "id", "embedding"]
    assert frame["id"].is_unique
    assert validate(str(next(tmp_path.glob("*.parquet")))) == []
    metadata = pq.read_schema(next(tmp_path.glob("*.parquet"))).metadata
    emb = json.loads(metadata[b"emb"])
    assert emb["embedding"] == {"embeddings_dim": 12, "embeddings_quantization": "None"}
    assert emb["datetime"]["start_datetime"] == "2024-06-01T00:00:00Z"
    assert {b"geo", b"daskembed"} <= {*metadata}


def test_no_row_leaves_for_one_that_is_damaged(mine: Path, client: Client, tmp_path: Path) -> None:
    path = next(mine.glob("33TVL_*.gpq"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = make(mine, tmp_path / "to", client, unique="place", skip_damaged=True)
    assert [*result.left_out] == [path.name]
    assert result.rows == 441


@pytest.mark.parametrize("back", [True, False])
def test_which_rows_leave_is_as_when_it_was_planned(mine: Path, client: Client, tmp_path: Path, back: bool) -> None:
    # Rows of 33TVL leave for those of 33TUL.
    path, to = next(mine.glob("33TUL_*.gpq")), tmp_path / "to"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged if back else whole)
    asked = {"unique": "place", "skip_damaged": True}
    before = make(mine, to, client, **asked)
    lost = next(file.name for file in before.files if file.tiles == [next(mine.glob("33TVL_*.gpq")).name])
    (to / lost).unlink()
    path.write_bytes(whole if back else damaged)
    if back:
        after = make(mine, to, client, **asked)
        assert (after.rows, [*after.left_out]) == (before.rows, [path.name])
    else:
        after = run_export(str(mine), str(to), Asked(cluster=client, **asked), SMALL)
        assert after.exit_status == 4
        assert any(f"{path} is damaged" in why for why in after.failed.values())


def test_each_file_is_hashed_once_whatever_lies_beside_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All beside each other.
    names = write_published(tmp_path / "out", ("33TUL", "33TVL", "33TUM", "33TVM"), side=2, shape=(3,))
    hashed: list[str] = []

    def counting(source: Storage, tile: ExportTile, check: Callable[..., None] = index.check_bytes) -> None:
        hashed.append(tile.name)
        check(source, tile)

    monkeypatch.setattr(index, "check_bytes", counting)
    to, again = tmp_path / "to", []

    def interrupt(state: Progress) -> None:
        if not again and "indexed" in {one.status for one in state.finished}:
            again.append(len(hashed))
            raise KeyboardInterrupt

    asked = {"cluster": client, "unique": "place", "skip_damaged": True}
    assert run_export(str(tmp_path / "out"), str(to), Asked(**asked, progress=interrupt), SMALL).interrupted
    assert sorted(hashed) == sorted(names)
    # What was found is known when it goes on, and whole files are not taken for damaged ones.
    assert run_export(str(tmp_path / "out"), str(to), Asked(**asked), SMALL).exit_status == 0
    assert sorted(hashed) == sorted(names)
    assert Storage(str(to)).entries(state.INDEX) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rows": "pixel"}, "unknown `rows` 'pixel': choose chip or patch"),
        ({"unique": "date"}, "unknown `unique` 'date': choose none or place"),
        ({"columns": "clouds"}, "unknown `columns` 'clouds': choose of datetime, tile, cloud, epsg, chip_id"),
        ({"profile": "tom"}, "unknown `profile` 'tom': choose majortom or earth-index"),
        ({"format": "cog", "columns": "tile"}, "`columns` and `profile` are of formats with rows"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_there_is_not_is_refused(asked: dict[str, str], said: str, output: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run_export(str(output), str(tmp_path / "to"), Asked(cluster="tcp://127.0.0.1:1", **asked), SMALL)


def test_patches_of_a_level_without_them_are_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "mean", ["33TUL"], side=2, shape=(4,))
    with pytest.raises(InputError, match=r"`rows='patch'` needs patches, and level 'mean' has none"):
        run_export(str(tmp_path / "mean"), str(tmp_path / "to"), Asked(rows="patch"), SMALL)


def test_two_files_of_a_tile_are_refused_where_one_row_is_to_remain(mine: Path, tmp_path: Path) -> None:
    write_published(mine, ["33TUL"], side=2, shape=SHAPE, days=("2023-06-01",))
    said = "needs one published file a tile, and 33TUL has 33TUL_20230601.* and 33TUL_20240601"
    with pytest.raises(InputError, match=said):
        run_export(str(mine), str(tmp_path / "to"), Asked(unique="place"), SMALL)


def test_the_command_has_its_flags() -> None:
    flags = ["--rows", "patch", "--unique", "place", "--columns", "tile,cloud", "--profile", "majortom"]
    asked = keywords(make_parser().parse_args(["export", "out", "--to", "copy", *flags]), ExportOptions, Asked)
    wanted = {"rows": "patch", "unique": "place", "columns": "tile,cloud", "profile": "majortom"}
    assert {name: asked[name] for name in wanted} == wanted


def test_no_row_leaves_for_a_tile_that_is_new_since_the_plan(mine: Path, client: Client, tmp_path: Path) -> None:
    new, to = next(mine.glob("33TVL_*.gpq")), tmp_path / "to"
    new.rename(tmp_path / new.name)
    make(mine, to, client, unique="place")
    before = table_of(to)
    storage = Storage(str(to))
    plan = state.read_plan(storage)
    assert plan is not None
    state.write_plan(storage, replace(plan, finished=None))
    (to / plan.files[0].name).unlink()
    (tmp_path / new.name).rename(new)
    assert make(mine, to, client, unique="place").rows == before.num_rows == 441
    assert table_of(to).equals(before)
