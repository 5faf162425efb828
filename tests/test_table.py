"""Embeddings as dask-geopandas frames: of a lazy array, and of a folder of published files."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask_geopandas
import duckdb
import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import xarray as xr

import daskembed
from daskembed.encoders.clay_v0 import LEVELS
from daskembed.errors import InputError
from daskembed.output import geoparquet, parts
from daskembed.output import open as opening
from daskembed.output.parts import write_part
from daskembed.storage.stores import Storage
from daskembed.testing import refuse_to_compute, write_chips
from daskembed.vectors import VectorArray, VectorDtype

PLACES = ["epsg", "west", "south", "east", "north"]
SHAPES = {"mean": (8,), "patch": (16, 16, 8), "group": (6, 16, 16, 8)}
COLUMNS = [
    "source_url",
    "chip_url",
    "date",
    "embeddings",
    "quarantined",
    "rejected",
    "filled",
    "noted",
    "cloud",
    *PLACES,
    "geometry",
]


def footprints(count: int, west: float = 12.0) -> np.ndarray:
    boxes = [shapely.box(west + n / 10, 45, west + (n + 1) / 10, 45.1) for n in range(count)]
    return np.array(boxes, dtype=object)


def make_embeddings(
    count: int = 7, level: str = "mean", *, chips: Any = 3, west: float = 12.0, bad: dict[int, str] | None = None
) -> xr.DataArray:
    """Embeddings in the form that `embed` gives them, some of them quarantined; chip n has 10 n filled values."""
    vectors = np.random.default_rng(0).standard_normal((count, *SHAPES[level]), np.float32)
    reasons = np.array([(bad or {}).get(n) for n in range(count)], dtype=object)
    vectors[list(bad or {})] = np.nan
    filled = np.arange(0, 10 * count, 10)
    urls = [f"/chips/33TUL/claytile_33TUL_20190416_v02_{n:04d}.tif" for n in range(count)]
    return xr.DataArray(
        da.from_array(vectors, chunks=(chips, *SHAPES[level])),
        dims=("chip", *LEVELS[level]),
        name="embeddings",
        coords={
            "chip": np.arange(count),
            "source_url": ("chip", np.array(urls, dtype=object)),
            "date": ("chip", np.datetime64("2019-04-16", "s") + np.arange(count).astype("timedelta64[D]")),
            "epsg": ("chip", np.full(count, 32633, np.int32)),
            **{edge: ("chip", np.arange(count) * 5120.0) for edge in PLACES[1:]},
            "rejected": ("chip", da.from_array(np.full(count, None, dtype=object), chunks=(chips,))),
            "lat": ("chip", np.full(count, 45.05)),
            "lon": ("chip", west + np.arange(count) / 10),
            "geometry": ("chip", footprints(count, west)),
            "quarantined": ("chip", da.from_array(reasons, chunks=(chips,))),
            "filled": ("chip", da.from_array(filled, chunks=(chips,))),
            "noted": ("chip", da.from_array(np.full(count, None, object), chunks=(chips,))),
        },
    )


# Of a lazy array


def test_frame_is_lazy_and_its_partitions_are_the_blocks() -> None:
    with dask.config.set(scheduler=refuse_to_compute):
        frame = daskembed.to_geodataframe(make_embeddings())
        assert isinstance(frame, dask_geopandas.GeoDataFrame)
        assert frame.npartitions == 3
        assert list(frame.columns) == COLUMNS
        assert frame.crs == "OGC:CRS84"
        assert len(frame.to_delayed()) == 3
    assert [len(part.compute()) for part in frame.to_delayed()] == [3, 3, 1]


@pytest.mark.parametrize("level", LEVELS)
def test_frame_holds_the_array(level: str) -> None:
    embeddings = make_embeddings(level=level)
    frame = daskembed.to_geodataframe(embeddings).compute()
    assert isinstance(frame, gpd.GeoDataFrame)
    assert list(frame["source_url"]) == list(embeddings.source_url.values)
    assert list(frame["date"]) == [date(2019, 4, 16 + n) for n in range(7)]
    assert list(frame["filled"]) == list(range(0, 70, 10))
    assert frame["quarantined"].isna().all()
    assert list(frame.geometry) == list(footprints(7))
    found = np.stack(frame["embeddings"].to_list()).astype(np.float32)
    np.testing.assert_array_equal(found.reshape(embeddings.shape), embeddings.values)


@pytest.mark.parametrize("level", LEVELS)
def test_types_are_those_promised(level: str) -> None:
    frame = daskembed.to_geodataframe(make_embeddings(level=level, bad={1: "is gone"}))
    computed = frame.compute()
    assert list(frame.dtypes) == list(computed.dtypes)
    assert computed["source_url"].dtype == pd.ArrowDtype(pa.string())
    assert computed["date"].dtype == pd.ArrowDtype(pa.date32())
    assert computed["embeddings"].dtype == VectorDtype(int(np.prod(SHAPES[level])), "float32")
    assert computed["quarantined"].dtype == pd.ArrowDtype(pa.string())
    assert computed["filled"].dtype == np.int64
    assert computed.crs == "OGC:CRS84"
    assert computed.active_geometry_name == "geometry"


def test_quarantined_rows_are_null() -> None:
    bad = {1: "is gone", 6: "has values that are not finite"}
    frame = daskembed.to_geodataframe(make_embeddings(bad=bad)).compute().reset_index(drop=True)
    assert list(np.flatnonzero(frame["embeddings"].isna())) == [1, 6]
    assert list(np.flatnonzero(frame["quarantined"].notna())) == [1, 6]
    assert list(frame["quarantined"].dropna()) == list(bad.values())
    assert list(frame["filled"]) == list(range(0, 70, 10))
    assert frame.geometry.notna().all()


def test_block_of_nothing_but_quarantined_rows() -> None:
    frame = daskembed.to_geodataframe(make_embeddings(bad=dict.fromkeys(range(7), "is gone"))).compute()
    assert frame["embeddings"].isna().all()
    assert list(frame["quarantined"]) == ["is gone"] * 7


def test_spatial_partitions_cover_their_rows() -> None:
    frame = daskembed.to_geodataframe(make_embeddings())
    assert len(frame.spatial_partitions) == 3
    assert frame.spatial_partitions.crs == "OGC:CRS84"
    for area, part in zip(frame.spatial_partitions, frame.to_delayed(), strict=True):
        rows = part.compute().geometry
        assert rows.within(area).all()
        assert area.bounds == tuple(rows.total_bounds)


def test_an_area_selects_partitions() -> None:
    frame = daskembed.to_geodataframe(make_embeddings()).cx[12.35:12.38, 45:46]
    assert frame.npartitions == 1
    assert [url[-8:-4] for url in frame.compute()["source_url"]] == ["0003"]


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        (lambda e: e.chunk(chip=2), [2, 2, 2, 1]),
        (lambda e: e.chunk(embedding=3), [3, 3, 1]),
        (lambda e: e[2:], [1, 3, 1]),
        (lambda e: e[[5, 0]], None),
        (lambda e: e.compute(), [7]),
        (lambda e: e.compute().chunk(chip=4), [4, 3]),
    ],
    ids=["other blocks", "vectors in pieces", "slice", "list", "computed", "computed and chunked"],
)
def test_arrays_changed_by_the_user(change: Any, sizes: list[int] | None) -> None:
    embeddings = change(make_embeddings())
    frame = daskembed.to_geodataframe(embeddings)
    parts = dask.compute(*frame.to_delayed())
    if sizes is not None:
        assert [len(part) for part in parts] == sizes
    rows = pd.concat(parts)
    assert list(rows["source_url"]) == list(embeddings.source_url.values)
    np.testing.assert_array_equal(np.stack(rows["embeddings"].to_list()).astype(np.float32), embeddings.values)
    assert rows["quarantined"].isna().all()
    assert list(rows["filled"]) == list(embeddings.filled.values)


def test_computed_embeddings_keep_what_is_quarantined() -> None:
    """xarray hands out the missing reasons of a computed array in its own way: they are still no reasons."""
    computed = make_embeddings(bad={1: "is gone"}).compute()
    frame = daskembed.to_geodataframe(computed).compute()
    assert list(frame["quarantined"].isna()) == [True, False, True, True, True, True, True]
    assert list(frame["embeddings"].isna()) == [False, True, False, False, False, False, False]


def test_other_embeddings_other_partitions() -> None:
    def keys(embeddings: xr.DataArray) -> list[Any]:
        return [part.key for part in daskembed.to_geodataframe(embeddings).to_delayed()]

    embeddings, elsewhere, bad = make_embeddings(), make_embeddings(west=13.0), make_embeddings(bad={0: "is gone"})
    assert not set(keys(embeddings)) & set(keys(elsewhere))
    assert not set(keys(embeddings)) & set(keys(bad))


@pytest.mark.parametrize("name", ["source_url", "date", "geometry", "quarantined", "rejected", "filled", "noted"])
def test_missing_coordinates_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"the embeddings lack the coordinates {name}: make them with daskembed.embed"):
        daskembed.to_geodataframe(make_embeddings().drop_vars(name))


# Of a folder of published files


TILES = {"32TQS": 11.0, "33TUL": 12.0}
"""Tile -> where its chips begin, degrees east."""


def publish(output: Storage, level: str = "mean") -> dict[str, np.ndarray]:
    """Publish two tiles of seven chips; returns their vectors by tile."""
    for tile, west in TILES.items():
        frame = daskembed.to_geodataframe(make_embeddings(level=level, west=west))
        written = []
        for number, part in enumerate(frame.to_delayed()):
            written.append(f"_daskembed/parts/{tile}_v001/{number:05d}.parquet")
            with output.open_writer(written[-1]) as file:
                write_part(part.compute(), file, SHAPES[level])
        geoparquet.publish(output, f"{tile}_20190416_20190422_v001.gpq", written, {"level": level})
    return {tile: make_embeddings(level=level, west=west).values for tile, west in TILES.items()}


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "output"))


def test_opening_is_lazy(output: Storage) -> None:
    publish(output)
    with dask.config.set(scheduler=refuse_to_compute):
        frame = daskembed.open_embeddings(output.url)
        assert isinstance(frame, dask_geopandas.GeoDataFrame)
        assert frame.npartitions == 2
        assert list(frame.columns) == ["source_url", "date", "embeddings", "geometry"]
        assert frame.crs == "OGC:CRS84"
        assert frame.cx[12:13, 45:46].npartitions == 1


@pytest.mark.parametrize("level", LEVELS)
def test_opened_frame_holds_the_files(output: Storage, level: str) -> None:
    vectors = publish(output, level)
    frame = daskembed.open_embeddings(output.url).compute()
    files = [gpd.read_parquet(path) for path in sorted(Path(output.url).glob("*.gpq"))]
    expected = pd.concat(files)
    assert len(frame) == 14
    assert list(frame.columns) == list(expected.columns)
    assert list(frame["source_url"]) == list(expected["source_url"])
    assert list(frame["date"]) == list(expected["date"])
    assert list(frame.geometry) == list(expected.geometry)
    for found, vector in zip(frame["embeddings"], np.concatenate(list(vectors.values())), strict=True):
        assert type(found) is np.ndarray
        assert found.dtype == np.float32
        assert found.shape == (vector.size,)
        np.testing.assert_array_equal(found.reshape(SHAPES[level]), vector)


def test_opened_types_are_those_promised(output: Storage) -> None:
    publish(output)
    frame = daskembed.open_embeddings(output.url)
    computed = frame.compute()
    assert list(frame.dtypes) == list(computed.dtypes)
    read = gpd.read_parquet(Path(output.url) / "33TUL_20190416_20190422_v001.gpq")
    assert dict(computed.dtypes) == {
        **read.dtypes,
        "date": pd.ArrowDtype(pa.date32()),
        "embeddings": VectorDtype(8, "float32"),
    }


def test_an_area_reads_its_files_alone(output: Storage) -> None:
    publish(output)
    frame = daskembed.open_embeddings(output.url)
    bounds = np.array([area.bounds for area in frame.spatial_partitions])
    np.testing.assert_allclose(bounds, [(11, 45, 11.7, 45.1), (12, 45, 12.7, 45.1)])
    (Path(output.url) / "32TQS_20190416_20190422_v001.gpq").unlink()
    part = frame.cx[12.15:12.35, 45:46]
    assert part.npartitions == 1
    assert [url[-8:-4] for url in part.compute()["source_url"]] == ["0001", "0002", "0003"]


def test_areas_at_the_antimeridian_are_not_all_the_way_around(output: Storage) -> None:
    embeddings = make_embeddings(chips=4)
    west = np.array([179.7, 179.8, 179.9, -180, 179.6, 179.7, 179.8])
    shapes = np.array([shapely.box(edge, 45, edge + 0.1, 45.1) for edge in west], object)
    frame = daskembed.to_geodataframe(embeddings.assign_coords(geometry=("chip", shapes)))
    written = ["part0", "part1"]
    for name, part in zip(written, frame.to_delayed(), strict=True):
        with output.open_writer(name) as file:
            write_part(part.compute(), file, SHAPES["mean"])
    geoparquet.publish(output, "60UXT_20190416_20190422_v001.gpq", written, {})
    opened = daskembed.open_embeddings(output.url)
    for areas in (frame.spatial_partitions, opened.spatial_partitions):
        assert not areas.intersects(shapely.box(-170, 44, 170, 46)).any()
        assert areas.iloc[0].geom_type == "MultiPolygon"
    assert frame.cx[-180:-179.95, 45:46].npartitions == 1
    assert len(opened.cx[-180:-179.95, 45:46].compute()) == 1
    assert len(opened.cx[179.65:179.95, 45:46].compute()) == 6


def test_spatial_join_with_points(output: Storage) -> None:
    publish(output)
    points = gpd.GeoDataFrame(
        {"name": ["a", "b"]}, geometry=gpd.points_from_xy([11.05, 12.65], [45.05, 45.05]), crs="OGC:CRS84"
    )
    joined = daskembed.open_embeddings(output.url).sjoin(points).compute()
    assert sorted(zip(joined["name"], (url[-8:-4] for url in joined["source_url"]), strict=True)) == [
        ("a", "0000"),
        ("b", "0006"),
    ]


@pytest.mark.parametrize("columns", [["source_url", "geometry"], ["geometry"], ["embeddings", "geometry", "date"]])
def test_columns_are_chosen(output: Storage, columns: list[str]) -> None:
    publish(output)
    frame = daskembed.open_embeddings(output.url, columns=columns)
    computed = frame.compute()
    assert set(frame.columns) == set(computed.columns) == set(columns)
    assert list(frame.columns) == list(computed.columns)
    assert len(computed) == 14
    assert computed.crs == "OGC:CRS84"
    assert frame.cx[12:13, 45:46].npartitions == 1


def test_columns_without_geometry(output: Storage) -> None:
    vectors = publish(output)
    computed = daskembed.open_embeddings(output.url, columns=["source_url", "embeddings"]).compute()
    assert sorted(computed.columns) == ["embeddings", "source_url"]
    np.testing.assert_array_equal(np.stack(computed["embeddings"]), np.concatenate(list(vectors.values())))


def test_large_files_become_several_partitions(output: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 2 * 4 * 8)  # two rows
    monkeypatch.setattr(opening, "PARTITION_BYTES", 1)
    publish(output)
    frame = daskembed.open_embeddings(output.url)
    assert [len(part.compute()) for part in frame.to_delayed()] == [2, 2, 2, 1] * 2
    assert [url[-8:-4] for url in frame.compute()["source_url"]] == [f"{n:04d}" for n in range(7)] * 2
    for area, part in zip(frame.spatial_partitions, frame.to_delayed(), strict=True):
        assert part.compute().within(area.buffer(1e-9)).all()


def test_other_files_of_the_folder_are_left_alone(output: Storage) -> None:
    publish(output)
    for name in ("README.md", "old.parquet", "notes.gpq.txt"):
        (Path(output.url) / name).write_text("not a file of embeddings")
    assert len(daskembed.open_embeddings(output.url)) == 14


def test_folder_may_be_a_file_url(output: Storage) -> None:
    publish(output)
    assert len(daskembed.open_embeddings(Path(output.url).as_uri())) == 14


def test_no_published_files(output: Storage) -> None:
    with pytest.raises(InputError, match=output.url):
        daskembed.open_embeddings(output.url)
    Path(output.url).mkdir()
    with pytest.raises(InputError) as error:
        daskembed.open_embeddings(output.url)
    assert str(error.value) == (
        f"no published files (*.gpq) in {output.url}: make them with daskembed.run(..., output={output.url!r})"
    )


def test_files_in_a_bucket(s3: str) -> None:
    output = Storage(f"{s3}/embeddings")
    with pytest.raises(InputError, match=r"no published files \(\*.gpq\) in s3://"):
        daskembed.open_embeddings(output.url)
    vectors = publish(output, "patch")
    frame = daskembed.open_embeddings(output.url)
    assert frame.npartitions == 2
    found = np.stack(frame.compute()["embeddings"])
    np.testing.assert_array_equal(found.reshape(14, 16, 16, 8), np.concatenate(list(vectors.values())))
    assert len(frame.cx[11:11.05, 45:46].compute()) == 1


# Files of the frames, read by others


def lay_index(folder: Path) -> gpd.GeoDataFrame:
    """What `index_tile` gives; how to read a chip is nothing for a file."""
    write_chips(folder, rows=1, cols=2)
    return daskembed.index_tile("33TUL", str(folder)).drop(columns="chip")


READERS: dict[str, Any] = {
    "pandas": lambda path, glob: pd.read_parquet(path)["embeddings"],
    "geopandas": lambda path, glob: gpd.read_parquet(path)["embeddings"],
    "dask-geopandas": lambda path, glob: dask_geopandas.read_parquet(path).compute()["embeddings"],
    "pyarrow": lambda path, glob: pq.read_table(path)["embeddings"].to_pandas(),
    "DuckDB": lambda path, glob: [
        row[0] for row in duckdb.sql(f"SELECT embeddings FROM read_parquet('{glob}')").fetchall()
    ],
    "Polars": lambda path, glob: pl.read_parquet(glob)["embeddings"].to_list(),
}


@pytest.mark.parametrize("level", ["mean", "group"])
@pytest.mark.parametrize("lazily", [True, False], ids=["lazy", "computed"])
@pytest.mark.parametrize("source", ["to_geodataframe", "open_embeddings", "an area", "columns"])
def test_files_of_frames_are_read_by_others(
    output: Storage, tmp_path: Path, source: str, level: str, lazily: bool
) -> None:
    if source == "to_geodataframe":
        embeddings = make_embeddings(level=level, bad={1: "is gone"})
        frame, expected = daskembed.to_geodataframe(embeddings), embeddings.values[[0, *range(2, 7)]]
    else:
        expected = np.concatenate(list(publish(output, level).values()))
        frame = daskembed.open_embeddings(output.url)
    if source == "an area":
        frame, expected = frame.cx[12:13, 45:46], expected[7:]
    if source == "columns":
        frame = daskembed.open_embeddings(output.url, columns=["embeddings", "geometry"])
    path = tmp_path / "frame.parquet"
    (frame if lazily else frame.compute()).to_parquet(path)
    glob = f"{path}/*.parquet" if lazily else str(path)
    for reader, read in READERS.items():
        found = np.array([row for row in read(path, glob) if row is not None], np.float32)
        np.testing.assert_array_equal(found, expected.reshape(len(expected), -1), err_msg=reader)
    for other in (gpd.read_parquet, lambda *args, **options: dask_geopandas.read_parquet(*args, **options).compute()):
        some = other(path, columns=["geometry"])
        assert list(some.columns) == ["geometry"]
        assert list(some.geometry) == list(frame.compute().geometry)
        assert some.crs == "OGC:CRS84"


def test_files_of_an_index_are_read_by_others(tmp_path: Path) -> None:
    index, path = lay_index(tmp_path / "chips"), tmp_path / "index.parquet"
    index.to_parquet(path)
    urls = list(index["source_url"])
    assert list(gpd.read_parquet(path)["source_url"]) == list(pd.read_parquet(path)["source_url"]) == urls
    assert list(dask_geopandas.read_parquet(path).compute()["source_url"]) == urls
    assert pl.read_parquet(path)["source_url"].to_list() == pq.read_table(path)["source_url"].to_pylist() == urls
    assert [row[0] for row in duckdb.sql(f"SELECT source_url FROM read_parquet('{path}')").fetchall()] == urls


@pytest.mark.parametrize("change", [lambda f: f.set_index("source_url"), lambda f: f.spatial_shuffle()])
def test_vectors_stay_with_their_rows(output: Storage, tmp_path: Path, change: Any) -> None:
    """Where Dask sends rows from one partition to another."""
    publish(output)
    frame = daskembed.open_embeddings(output.url)
    expected = frame.compute()
    change(frame).to_parquet(tmp_path / "changed")
    found = gpd.read_parquet(tmp_path / "changed")
    for rows in (found, expected):
        rows["key"] = list(zip(rows.bounds.minx, map(bytes, rows["embeddings"]), strict=True))
    assert sorted(found["key"]) == sorted(expected["key"])


# Files that are no published ones


def damage(path: Path, **changes: Any) -> None:
    """Write a file anew with other entries of its geometry column's metadata; those that are None go."""
    whole = pq.read_table(path)
    footer = dict(whole.schema.metadata)
    geo = json.loads(footer[b"geo"])
    column = geo["columns"]["geometry"] | changes
    geo["columns"]["geometry"] = {key: value for key, value in column.items() if value is not None}
    footer[b"geo"] = json.dumps(geo).encode()
    pq.write_table(whole.replace_schema_metadata(footer), path)


def test_a_box_in_the_footer_is_optional(output: Storage) -> None:
    publish(output)
    damage(Path(output.url) / "33TUL_20190416_20190422_v001.gpq", bbox=None)
    frame = daskembed.open_embeddings(output.url)
    assert len(frame.compute()) == 14
    assert [url[-8:-4] for url in frame.cx[12.35:12.38, 45:46].compute()["source_url"]] == ["0003"]


@pytest.mark.parametrize("bbox", [[179, 40, -179, 50], [179, 40, 0, -179, 50, 9]], ids=["2-d", "3-d"])
def test_a_box_across_the_antimeridian(output: Storage, bbox: list[float]) -> None:
    """RFC 7946: its west edge is then east of its east edge."""
    publish(output)
    damage(Path(output.url) / "33TUL_20190416_20190422_v001.gpq", bbox=bbox)
    (area,) = daskembed.open_embeddings(output.url).spatial_partitions[1:]
    for place, inside in ((179.5, True), (-179.5, True), (0, False), (178, False)):
        assert area.intersects(shapely.Point(place, 45)) == inside


def test_a_file_that_cannot_be_read_is_named(output: Storage) -> None:
    publish(output)
    path = Path(output.url) / "33TUL_20190416_20190422_v001.gpq"
    good = path.read_bytes()
    for bad in (b"", b"PAR1", good[:3000], good[: len(good) // 2] + good[-200:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=f"{path} cannot be read as GeoParquet: .*`daskembed validate`"):
            daskembed.open_embeddings(output.url)
    for change in ({"encoding": "point"}, {"crs": "EPSG:32633"}, {"bbox": [1, 2]}, {"bbox": ["a", 0, 1, 2]}):
        path.write_bytes(good)
        damage(path, **change)
        with pytest.raises(InputError, match=f"{path} cannot be read as GeoParquet: "):
            daskembed.open_embeddings(output.url)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match=f"{path} cannot be read as GeoParquet: ValueError: no `geo` in its footer"):
        daskembed.open_embeddings(output.url)


def test_a_file_that_goes_or_breaks_meanwhile_is_named(output: Storage) -> None:
    publish(output)
    frame = daskembed.open_embeddings(output.url)
    path = Path(output.url) / "33TUL_20190416_20190422_v001.gpq"
    good = path.read_bytes()
    path.write_bytes(good[:4] + b"\xff" * 600 + good[604:])
    with pytest.raises(InputError, match=f"{path} cannot be read as GeoParquet"):
        frame.compute()
    path.unlink()
    with pytest.raises(InputError, match=f"{path} is gone: open the folder again"):
        frame.compute()


# A column of vectors


def test_vectors_are_what_pandas_expects() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pd.Series(VectorArray(rows, np.array([False, True, False, False])), index=list("abcd"))
    assert column.dtype == VectorDtype(3)
    assert column.dtype != VectorDtype(4)
    assert str(column.dtype) == "object"
    assert column["b"] is None
    np.testing.assert_array_equal(column["d"], rows[3])
    np.testing.assert_array_equal(np.stack(column.dropna()), rows[[0, 2, 3]])
    np.testing.assert_array_equal(np.stack(column.iloc[::-1].dropna().to_numpy()), rows[[3, 2, 0]])
    assert column.reindex(["d", "x"]).isna().tolist() == [False, True]
    assert pd.concat([column, column]).dtype == column.dtype
    assert (column == column.copy()).all()
    assert column.dropna().map(np.sum).tolist() == [3, 21, 30]
    assert column.dropna().map(lambda vector: vector.astype(np.float64)).iloc[0].dtype == np.float64
    back = pd.Series(column.to_list(), dtype=column.dtype)
    assert back.isna().tolist() == column.isna().tolist()
    np.testing.assert_array_equal(back[3], rows[3])
    for wrong in ([rows[0], rows[0, :2]], [1.0], ["vector"]):
        with pytest.raises(TypeError, match="expected vectors of"):
            pd.Series(wrong, dtype=column.dtype)


# Of a folder with files of several kinds


KINDS = {"001": {"encoder": "clay-v0", "level": "mean"}, "002": {"encoder": "clay-v0", "level": "patch"}}


def publish_kinds(output: Storage, kinds: dict[str, dict[str, str]]) -> None:
    """One file of tile 33TUL a version."""
    for version, made in kinds.items():
        frame = daskembed.to_geodataframe(make_embeddings(level=made["level"], chips=7)).compute()
        part = f"_daskembed/parts/33TUL_v{version}/00000.parquet"
        with output.open_writer(part) as file:
            write_part(frame, file, SHAPES[made["level"]])
        geoparquet.publish(output, f"33TUL_20190416_20190422_v{version}.gpq", [part], made)


def test_levels_of_one_folder_are_chosen(output: Storage) -> None:
    publish_kinds(output, KINDS)
    with pytest.raises(InputError) as error:
        daskembed.open_embeddings(output.url)
    assert str(error.value) == (
        f"{output.url} mixes embeddings that do not go together: 1 of level mean; 1 of level patch; choose by `level`"
    )
    for chosen in ({"level": "patch"}, {"version": "2"}, {"encoder": "clay-v0", "level": "patch", "version": "002"}):
        frame = daskembed.open_embeddings(output.url, **chosen).compute()
        assert len(frame) == 7
        assert frame.embeddings.iloc[0].size == 16 * 16 * 8
    assert daskembed.open_embeddings(output.url, level="mean").compute().embeddings.iloc[0].size == 8


def test_encoders_of_one_folder_are_chosen(output: Storage) -> None:
    publish_kinds(output, {"001": KINDS["001"], "rc2": {"encoder": "clay-v1.5", "level": "mean"}})
    with pytest.raises(InputError, match=r"1 of encoder clay-v0; 1 of encoder clay-v1.5; choose by `encoder`"):
        daskembed.open_embeddings(output.url)
    assert daskembed.open_embeddings(output.url, encoder="clay-v1.5").npartitions == 1


def test_types_of_one_folder_are_not_mixed(output: Storage) -> None:
    publish_kinds(output, {"001": KINDS["001"] | {"dtype": "float32"}, "002": KINDS["001"] | {"dtype": "float16"}})
    with pytest.raises(InputError, match="1 of dtype float16; 1 of dtype float32; choose by `version`"):
        daskembed.open_embeddings(output.url)
    frame = daskembed.open_embeddings(output.url, version="2")
    assert frame.compute().embeddings.iloc[0].dtype == np.float16


def test_versions_of_one_kind_go_together(output: Storage) -> None:
    publish_kinds(output, {"001": KINDS["001"], "002": KINDS["001"]})
    assert len(daskembed.open_embeddings(output.url)) == 14


@pytest.mark.parametrize("chosen", [{"encoder": "clay"}, {"level": "group"}, {"version": "3"}])
def test_a_choice_that_nothing_fits(output: Storage, chosen: dict[str, str]) -> None:
    publish_kinds(output, KINDS)
    with pytest.raises(InputError, match=r"no files of (`encoder` clay|`level` group|`version` 3) in "):
        daskembed.open_embeddings(output.url, **chosen)


def test_nothing_but_zarr_stores(output: Storage) -> None:
    output.put("33TUL_20190416_20190416_v001.zarr/zarr.json", b"{}")
    with pytest.raises(InputError) as error:
        daskembed.open_embeddings(output.url)
    assert str(error.value) == (
        f"{output.url} holds Zarr stores and no GeoParquet files: open one with "
        f"xarray.open_zarr('{output.url}/33TUL_20190416_20190416_v001.zarr')"
    )
