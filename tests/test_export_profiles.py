"""Profiles: the columns that other readers of embeddings name."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from test_export_rows import EPSG, TILE, export_rows, known_of, squares, table_of, vectors_of

from daskembed.errors import InputError, TileError
from daskembed.exports.names import PROFILES
from daskembed.exports.profiles import encode_footer, get_profile
from daskembed.exports.profiles import vectors_of as vector_column
from daskembed.exports.rows import TileRows
from daskembed.geo.cells import window_bounds
from daskembed.geo.majortom import cell_names, cells_at
from daskembed.table import window_urls

MAJOR_TOM = {
    "unique_id": pa.string(),
    "embedding": pa.list_(pa.float32(), 3),
    "timestamp": pa.string(),
    "product_id": pa.string(),
    "grid_cell": pa.string(),
    "grid_row_u": pa.int16(),
    "grid_col_r": pa.int16(),
    "geometry": pa.binary(),
    "centre_lat": pa.float32(),
    "centre_lon": pa.float32(),
    "utm_footprint": pa.string(),
    "utm_crs": pa.string(),
    "pixel_bbox": pa.list_(pa.int64()),
}
MADE: dict[str, Any] = {
    "encoder": "clay-v1.5",
    "size": "large",
    "level": "patch",
    "checkpoint": "hf://made-with-clay/Clay@abc/v1.5/clay-v1.5.ckpt",
    "identity": {"source": "s3://chips/02"},
}


def windows_of_a_chip() -> tuple[pa.Table, TileRows]:
    """Four windows of 2 x 2 patches, of a chip of which the time is known."""
    bounds = window_bounds(squares([(2, 3)]), 2)[0]
    table = table_of(bounds, vectors_of(4, 2, 2, 3), urls=window_urls(["s3://chips/0046.tif"], 4))
    table = table.set_column(1, "date", pa.array([date(2019, 4, 16)] * 4, pa.date32()))
    time = pa.array([datetime(2019, 4, 16, 10, 0, 29, 24000, tzinfo=UTC)] * 4, pa.timestamp("ms", "UTC"))
    return table, TileRows(TILE, (2, 2), window=256, known=known_of(table, bounds, datetime=time))


def test_major_tom_has_its_columns_and_types() -> None:
    table, about = windows_of_a_chip()
    found = export_rows(table, about, "patch", ["cloud"], get_profile("majortom").columns)
    assert {name: found.schema.field(name).type for name in found.column_names} == MAJOR_TOM | {"cloud": pa.float32()}
    assert found.column_names == [*MAJOR_TOM, "cloud"]
    # The south-eastern patch of the south-eastern window: the chip's last 1280 m.
    last = found.slice(15).to_pylist()[0]
    _, south, east, _ = squares([(2, 3)])[0]
    assert last["utm_crs"] == f"EPSG:{EPSG}"
    footprint = shapely.from_wkt(last["utm_footprint"])
    assert footprint.bounds == (east - 1280, south, east, south + 1280)
    assert footprint.area == 1280**2
    assert last["pixel_bbox"] == [384, 384, 512, 512]
    assert last["timestamp"] == "20190416T100029"
    assert last["product_id"] == "s3://chips/0046.tif"
    middle = shapely.from_wkb(last["geometry"]).centroid
    assert (last["centre_lon"], last["centre_lat"]) == pytest.approx((middle.x, middle.y), abs=1e-5)
    row, col = cells_at(np.array([middle.x]), np.array([middle.y]))
    assert (last["grid_row_u"], last["grid_col_r"]) == (row[0], col[0])
    assert last["grid_cell"] == cell_names(row, col)[0] == f"{row[0]}U_{col[0]}R"
    assert found.slice(1, 1).to_pylist()[0]["pixel_bbox"] == [128, 0, 256, 128]
    # Of what is the same, the same, and of nothing else.
    ids = found["unique_id"].to_pylist()
    assert len(set(ids)) == 16
    assert all(len(one) == 64 for one in ids)
    again = export_rows(table, about, "patch", [], get_profile("majortom").columns)
    assert again["unique_id"].to_pylist() == ids


def test_where_only_the_day_is_known_a_timestamp_is_the_day() -> None:
    table, _ = windows_of_a_chip()
    found = export_rows(table, TileRows(TILE, window=256), "chip", [], get_profile("majortom").columns)
    assert set(found["timestamp"].to_pylist()) == {"20190416"}
    assert found["pixel_bbox"].to_pylist() == [
        [0, 0, 256, 256],
        [256, 0, 512, 256],
        [0, 256, 256, 512],
        [256, 256, 512, 512],
    ]


def test_earth_index_has_its_columns_and_footer() -> None:
    table, about = windows_of_a_chip()
    profile = get_profile("earth-index")
    found = export_rows(table, about, "patch", [], profile.columns)
    assert found.schema.names == ["geometry", "id", "embedding"]
    assert found.schema.types == [pa.binary(), pa.string(), pa.list_(pa.float32(), 3)]
    west, _, _, north = squares([(2, 3)])[0].astype(int)
    ids = found["id"].to_pylist()
    assert ids[:3] == [f"33TUL_20190416_{west + x}_{north - y}" for x, y in ((0, 0), (1280, 0), (0, 1280))]
    assert len(set(ids)) == 16
    footer = encode_footer(profile.footer(MADE, 3, None, (date(2019, 4, 1), date(2019, 4, 16))))
    assert list(footer) == [b"emb"]
    emb = json.loads(footer[b"emb"])
    assert emb["version"] == "0.0.1"
    assert emb["model"]["id"] == "clay-v1.5-large"
    assert emb["model"]["source"] == "https://huggingface.co/made-with-clay/Clay/resolve/abc/v1.5/clay-v1.5.ckpt"
    assert emb["providers"] == []
    assert emb["licensing"] == {"license": "other"}
    assert emb["embedding"] == {"embeddings_dim": 3, "embeddings_quantization": "None"}
    assert emb["datetime"] == {
        "datetime": None,
        "start_datetime": "2019-04-01T00:00:00Z",
        "end_datetime": "2019-04-16T23:59:59Z",
    }
    assert emb["source_datasets"] == [{"id": "s3://chips/02", "source": "s3://chips/02"}]


@pytest.mark.parametrize("name", list(PROFILES))
def test_what_needs_a_place_is_refused_where_it_is_not_known(name: str) -> None:
    table = table_of(squares([(0, 0)]), vectors_of(1, 2))
    odd = pa.array([shapely.to_wkb(shapely.box(12, 45, 12.1, 45.1))], pa.binary())
    with pytest.raises(TileError, match="no square in EPSG:32633"):
        export_rows(table.set_column(3, "geometry", odd), TileRows(TILE), "chip", [], get_profile(name).columns)


@pytest.mark.parametrize("name", list(PROFILES))
def test_the_vectors_are_where_a_profile_says(name: str) -> None:
    vectors = vectors_of(2, 3)
    profile = get_profile(name)
    found = export_rows(table_of(squares([(0, 0), (0, 1)]), vectors), TileRows(TILE), "chip", [], profile.columns)
    np.testing.assert_array_equal(np.stack(found[vector_column(name)].to_numpy()), vectors)


def test_an_unknown_profile_is_told_of_those_there_are() -> None:
    with pytest.raises(InputError, match="unknown `profile` 'tom': choose majortom or earth-index"):
        get_profile("tom")


# By the grid's own implementation (github.com/ESA-PhiLab/Major-TOM, Grid(10).latlon2rowcol): lat, lon, cell.
CELLS = [
    (40.53, -111.6, "451U_945L"),
    (46.0, 12.45, "512U_96R"),
    (0.01, 0.01, "0U_0R"),
    (-0.01, -0.01, "1D_1L"),
    (65.0, -179.99, "723U_849L"),
    (-16.5, 180.0, "184D_1920R"),
    (-16.5, -179.999, "184D_1921L"),
]


@pytest.mark.parametrize(("lat", "lon", "expected"), CELLS)
def test_cells_are_those_of_major_tom(lat: float, lon: float, expected: str) -> None:
    assert cell_names(*cells_at(np.array([lon]), np.array([lat]))) == [expected]


def test_the_last_column_reaches_across_180_degrees_where_their_number_is_odd() -> None:
    """By the same implementation: in this row there are 1999 columns."""
    row, col = cells_at(np.array([-179.99, 179.99]), np.array([60.09, 60.09]))
    assert (row.tolist(), col.tolist()) == ([669, 669], [999, 999])
