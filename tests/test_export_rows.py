"""Rows of exports: patches on the ground, boxes, vectors in the right order, added columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
import xarray as xr

from daskembed.errors import InputError, TileError
from daskembed.exports.rows import Exported, TileRows, columns_of, parse_columns
from daskembed.geo.cells import EDGES, window_bounds
from daskembed.geo.footprints import to_lonlat
from daskembed.output import geoparquet
from daskembed.output import zarr as sink
from daskembed.output.parts import write_part
from daskembed.storage.stores import Storage
from daskembed.table import block_frame, window_urls

TILE, EPSG, SIDE = "33TUL", 32633, 5120.0
WEST, NORTH = 299_995.0, 5_100_005.0
DAYS = (date(2019, 4, 1), date(2019, 4, 16))


def squares(cells: Sequence[tuple[int, int]], west: float = WEST, north: float = NORTH) -> np.ndarray:
    """Bounds of chips at rows and columns."""
    row, col = np.array(cells).T
    return np.stack([west + col * SIDE, north - (row + 1) * SIDE, west + (col + 1) * SIDE, north - row * SIDE], axis=1)


def table_of(bounds: np.ndarray, vectors: np.ndarray, epsg: int = EPSG, urls: list[str] | None = None) -> pa.Table:
    """A published table of rows at `bounds`."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1:])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors[0].size)
    return pa.table(
        {
            "source_url": urls or [f"s3://chips/{number:04d}.tif" for number in range(len(bounds))],
            "date": pa.array([DAYS[number % 2] for number in range(len(bounds))], pa.date32()),
            "embeddings": pa.ExtensionArray.from_storage(kind, lists),
            "geometry": pa.array(shapely.to_wkb(to_lonlat(epsg, bounds)[2]), pa.binary()),
        }
    )


def known_of(table: pa.Table, bounds: np.ndarray, epsg: int = EPSG, **columns: Any) -> pa.Table:
    """What is kept of its rows."""
    count = len(table)
    return pa.table(
        {
            "source_url": table["source_url"],
            "datetime": pa.array([None] * count, pa.timestamp("ms", "UTC")),
            "cloud": pa.array([None] * count, pa.float32()),
            "epsg": pa.array([epsg] * count, pa.int32()),
            **{edge: bounds[:, number] for number, edge in enumerate(EDGES)},
        }
        | columns
    )


def export_rows(
    table: pa.Table, about: TileRows, rows: Any, columns: Sequence[str] = (), profile: Any = None
) -> pa.Table:
    """Rows of an export of a table."""
    exported = Exported(table, about, rows)
    vectors = exported.vectors
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    made = columns_of(rows, columns, profile)
    return pa.table({name: lists if make is None else make(exported) for name, make in made.items()})


def vectors_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "of the footprints"])
def test_patches_lie_where_their_chip_is_cut_to_a_centimetre(kept: bool) -> None:
    bounds = squares([(0, 0), (3, 20)])
    table = table_of(bounds, vectors_of(2, 16, 16, 4))
    about = TileRows(TILE, (16, 16), known=known_of(table, bounds) if kept else None)
    found = export_rows(table, about, "patch")
    assert found.column_names == ["source_url", "date", "row", "col", "embeddings", "geometry"]
    shapes = shapely.from_wkb(found["geometry"].to_pylist())
    back = pyproj.Transformer.from_crs("OGC:CRS84", EPSG, always_xy=True)
    x, y = back.transform(*shapely.get_coordinates(shapes).T)
    corners = np.stack([x, y], axis=1).reshape(-1, 5, 2)
    for number, (row, col) in enumerate(zip(found["row"].to_pylist(), found["col"].to_pylist(), strict=True)):
        west, south, _, north = bounds[number // 256]
        expected = west + col * 320, north - (row + 1) * 320, west + (col + 1) * 320, north - row * 320
        ring = [(expected[i], expected[j]) for i, j in ((2, 1), (2, 3), (0, 3), (0, 1), (2, 1))]
        assert np.abs(corners[number] - ring).max() < 0.01
        assert south <= expected[1]
    assert found["row"].type == found["col"].type == pa.int32()


def test_patches_that_meet_have_the_same_corners() -> None:
    table = table_of(squares([(0, 0)]), vectors_of(1, 8, 8, 2))
    rings = Exported(table, TileRows(TILE, (8, 8)), "patch").corners.reshape(8, 8, 5, 2)
    # South-east, north-east, north-west, south-west.
    np.testing.assert_array_equal(rings[:, :-1, 0], rings[:, 1:, 3])
    np.testing.assert_array_equal(rings[:-1, :, 0], rings[1:, :, 1])


@pytest.mark.parametrize("level", ["patch", "group", "windows"])
def test_each_vector_is_on_the_ground_where_the_zarr_store_has_it(tmp_path: Path, level: str) -> None:
    """The store lays patches on one grid by itself."""
    output, cells = Storage(str(tmp_path)), [(0, 0), (0, 1), (1, 1)]
    shape = {"patch": (16, 16, 4), "group": (3, 16, 16, 4), "windows": (8, 8, 4)}[level]
    dims = ["group", "row", "col", "embedding"][-len(shape) :]
    windows = 4 if level == "windows" else 1
    bounds = squares(cells)
    urls = [f"s3://chips/{number:04d}.tif" for number in range(len(cells))]
    rows = window_bounds(bounds, 2).reshape(-1, 4) if windows > 1 else bounds
    frame = part_of(rows, vectors_of(len(cells), *((4,) if windows > 1 else ()), *shape), urls, windows)
    with output.open_writer("part.parquet") as file:
        write_part(frame, file, shape)
    made = {"dims": dims, "window": 512 // int(windows**0.5), "windows": windows, "tile": TILE}
    file = geoparquet.publish(output, "a.gpq", ["part.parquet"], made).name
    store = sink.publish(output, "a.zarr", ["part.parquet"], made).name

    about = TileRows(TILE, shape[-3:-1], made["window"])
    found = export_rows(pq.read_table(tmp_path / file), about, "patch", ["epsg"])
    assert len(found) == len(cells) * windows * shape[-3] * shape[-2]
    with xr.open_zarr(tmp_path / store) as cube:
        lon, lat = np.array([shape.centroid.coords[0] for shape in shapely.from_wkb(found["geometry"].to_pylist())]).T
        x, y = pyproj.Transformer.from_crs("OGC:CRS84", EPSG, always_xy=True).transform(lon, lat)
        there = {"x": xr.DataArray(x, dims="place"), "y": xr.DataArray(y, dims="place")}
        expected = cube.embeddings.isel(time=0).sel(there, method="nearest", tolerance=1).to_numpy()
    # (group, embedding, place) or (embedding, place)
    got = np.stack(found["embeddings"].to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(got, np.moveaxis(expected, -1, 0).reshape(len(found), -1))


def part_of(bounds: np.ndarray, vectors: np.ndarray, urls: list[str], windows: int) -> Any:
    import geopandas as gpd

    rows = gpd.GeoDataFrame(
        {
            "source_url": window_urls(urls, windows) if windows > 1 else urls,
            "chip_url": np.repeat(urls, windows),
            "date": [DAYS[0]] * len(bounds),
            "epsg": EPSG,
            **{edge: bounds[:, number] for number, edge in enumerate(EDGES)},
        },
        geometry=list(to_lonlat(EPSG, bounds)[2]),
        crs="OGC:CRS84",
    )
    none = np.full(len(urls), None, object)
    fates = none, none, np.zeros(len(urls), np.int64), none, np.full(len(urls), np.nan)
    return block_frame(vectors, *fates, rows=rows, windows=windows)


def test_a_chip_is_one_row_with_all_its_patches() -> None:
    vectors = vectors_of(2, 4, 4, 3).astype(np.float16)
    table = table_of(squares([(0, 0), (0, 1)]), vectors)
    found = export_rows(table, TileRows(TILE, (4, 4)), "chip")
    assert found.column_names == ["source_url", "date", "embeddings", "geometry"]
    assert found["embeddings"].type == pa.list_(pa.float16(), 48)
    np.testing.assert_array_equal(np.stack(found["embeddings"].to_numpy()), vectors.reshape(2, -1))
    assert found["geometry"].to_pylist() == table["geometry"].to_pylist()


def test_lists_of_other_writers_do_too_if_all_are_as_long() -> None:
    table = table_of(squares([(0, 0), (0, 1)]), vectors_of(2, 3))
    lists = pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    found = export_rows(table.set_column(2, "embeddings", lists), TileRows(TILE), "chip")
    assert found["embeddings"].type == pa.list_(pa.float32(), 3)
    assert found["embeddings"].to_pylist() == lists.to_pylist()
    with pytest.raises(TileError, match="several lengths"):
        export_rows(
            table.set_column(2, "embeddings", pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32()))),
            TileRows(TILE),
            "chip",
        )


def test_patches_of_a_level_without_them_are_refused() -> None:
    with pytest.raises(TileError, match=r"shape \(6,\), expected patches of 2 x 3"):
        export_rows(table_of(squares([(0, 0)]), vectors_of(1, 6)), TileRows(TILE, (2, 3)), "patch")


def test_a_footprint_that_is_no_square_of_the_tile_has_no_patches_and_no_code() -> None:
    table = table_of(squares([(0, 0), (0, 1)]), vectors_of(2, 2, 2, 1))
    shapes = table["geometry"].to_pylist()
    shapes[1] = shapely.to_wkb(shapely.box(12.4, 46, 12.5, 46.1))
    table = table.set_column(3, "geometry", pa.array(shapes, pa.binary()))
    with pytest.raises(TileError, match=r"s3://chips/0001.tif: its footprint is no square in EPSG:32633"):
        export_rows(table, TileRows(TILE, (2, 2)), "patch")
    found = export_rows(table, TileRows(TILE, (2, 2)), "chip", ["epsg", "chip_id"])
    assert found["epsg"].to_pylist() == [32633, None]
    assert found["chip_id"].to_pylist() == ["33TUL_20190401_299995_5100005", None]


def test_a_triangle_is_no_square() -> None:
    (bounds,) = squares([(0, 0)])
    west, south, east, north = bounds
    lon, lat = pyproj.Transformer.from_crs(EPSG, "OGC:CRS84", always_xy=True).transform(
        [west, east, east], [south, south, north]
    )
    table = table_of(squares([(0, 0)]), vectors_of(1, 2))
    triangle = shapely.to_wkb(shapely.Polygon(zip(lon, lat, strict=True)))
    table = table.set_column(3, "geometry", pa.array([triangle], pa.binary()))
    assert export_rows(table, TileRows(TILE), "chip", ["epsg"])["epsg"].to_pylist() == [None]


def test_chips_of_another_zone_lie_where_is_kept_of_them() -> None:
    bounds = squares([(0, 0)], west=770_000)
    table = table_of(bounds, vectors_of(1, 2, 2, 1), epsg=32632)
    about = TileRows(TILE, (2, 2), known=known_of(table, bounds, 32632))
    found = Exported(table, about, "patch")
    assert found.squares.epsg.tolist() == [32632] * 4
    np.testing.assert_array_equal(found.squares.bounds, window_bounds(bounds, 2)[0])


ADDED = ["datetime", "tile", "cloud", "epsg", "chip_id"]


def test_added_columns_say_what_is_kept() -> None:
    bounds = squares([(0, 0), (0, 1)])
    table = table_of(bounds, vectors_of(2, 2, 2, 1))
    times = [datetime(2019, 4, 1, 10, 0, 29, 24000, tzinfo=UTC), None]
    known = known_of(
        table.take([1, 0]),
        bounds[::-1],
        datetime=pa.array(times[::-1], pa.timestamp("ms", "UTC")),
        cloud=pa.array([0.25, None], pa.float32()),
    )
    found = export_rows(table, TileRows(TILE, (2, 2), known=known), "chip", ADDED)
    assert found.select(ADDED).to_pylist() == [
        {"datetime": times[0], "tile": TILE, "cloud": None, "epsg": 32633, "chip_id": "33TUL_20190401_299995_5100005"},
        {"datetime": None, "tile": TILE, "cloud": 0.25, "epsg": 32633, "chip_id": "33TUL_20190416_305115_5100005"},
    ]
    kinds = [pa.timestamp("ms", "UTC"), pa.string(), pa.float32(), pa.int32(), pa.string()]
    assert found.select(ADDED).schema.types == kinds
    # Each patch has its chip's.
    patches = export_rows(table, TileRows(TILE, (2, 2), known=known), "patch", ADDED)
    assert patches.select(ADDED).to_pylist() == [one for one in found.select(ADDED).to_pylist() for _ in range(4)]


def test_nothing_kept_is_null_but_what_footprints_tell() -> None:
    table = table_of(squares([(0, 0)]), vectors_of(1, 2))
    found = export_rows(table, TileRows(TILE), "chip", ADDED)
    assert found.select(ADDED).to_pylist() == [
        {"datetime": None, "tile": TILE, "cloud": None, "epsg": 32633, "chip_id": "33TUL_20190401_299995_5100005"}
    ]


def test_windows_of_a_chip_have_its_identifier() -> None:
    windows = window_bounds(squares([(2, 3)]), 2)[0]
    table = table_of(windows, vectors_of(4, 2), urls=window_urls(["s3://chips/0001.tif"], 4))
    found = export_rows(table, TileRows(TILE, window=256), "chip", ["chip_id"])
    west, _, _, north = squares([(2, 3)])[0].astype(int)
    days = ["20190401", "20190416", "20190401", "20190416"]
    assert found["chip_id"].to_pylist() == [f"33TUL_{day}_{west}_{north}" for day in days]


def test_boxes_hold_the_footprints_and_need_no_vectors() -> None:
    table = table_of(squares([(0, 0), (5, 7)]), vectors_of(2, 4, 4, 1))
    about = TileRows(TILE, (4, 4))
    for rows in ("chip", "patch"):
        boxes = Exported(table.select(["source_url", "geometry"]), about, rows).boxes
        shapes = shapely.from_wkb(export_rows(table, about, rows)["geometry"].to_pylist())
        np.testing.assert_array_equal(boxes, shapely.bounds(shapes))


def test_across_180_degrees_west_is_more_than_east() -> None:
    bounds = squares([(0, 0)], west=638_800, north=7_230_000)
    table = table_of(bounds, vectors_of(1, 8, 8, 1), epsg=32660)
    about = TileRows("60WXT", (8, 8))
    (chip,) = Exported(table, about, "chip").boxes
    assert 179 < chip[0] < 180
    assert -180 < chip[2] < -179
    exported = Exported(table, about, "patch")
    shapes = shapely.from_wkb(exported.geometry.to_pylist())
    crossing = exported.boxes[:, 0] > exported.boxes[:, 2]
    # The line at 180 degrees leans by 2.7 degrees there, so it is in few columns.
    assert 8 <= crossing.sum() <= 16
    np.testing.assert_array_equal(crossing, shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON)
    assert (np.ptp(shapely.get_coordinates(shapes[~crossing]).reshape(-1, 5, 2)[..., 0], axis=1) < 0.1).all()
    # All of it, and nothing twice: squares of a degree are small enough to be flat here.
    whole = shapely.from_wkb(table["geometry"][0].as_py())
    assert shapely.area(shapes).sum() == pytest.approx(whole.area, rel=1e-3)


def test_unknown_columns_are_named_with_those_there_are() -> None:
    assert parse_columns("cloud, datetime,cloud") == ("datetime", "cloud")
    with pytest.raises(InputError, match="unknown `columns` 'clouds': choose of datetime, tile, cloud, epsg, chip_id"):
        parse_columns("clouds,tile")
    with pytest.raises(InputError, match=r"`columns` \['tile'\]: expected one text of names, such as datetime,cloud"):
        parse_columns(["tile"])  # type: ignore[arg-type]
