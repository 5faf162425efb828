"""Chips as GeoTIFF files, made here by rasterio with every deviation that a folder may hold."""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from rasterio.transform import from_origin
from werkzeug.serving import WSGIRequestHandler, make_server

import daskembed
from daskembed.errors import ChipError, InputError, StorageDeniedError, StorageError, TileError
from daskembed.sources.frame import INDEX_COLUMNS
from daskembed.sources.geotiff import BANDS
from daskembed.sources.geotiff_pixels import read_chip
from daskembed.sources.reading import Reading
from daskembed.sources.registry import list_tile, read_headers
from daskembed.storage.stores import Entry, Storage

TILE, EPSG, DAY = "33TUL", 32633, "2019-04-16"
WEST, NORTH = 299_995, 5_100_005
IN_ORDER = tuple(range(1, 14))


def name_of(number: int, *, tile: str = TILE, day: str = DAY) -> str:
    return f"claytile_{tile}_{day.replace('-', '')}_v02_{number:04d}.tif"


def pixels_of(bands: tuple[str, ...] | list[str] = BANDS, *, height: int = 512, width: int = 512) -> np.ndarray:
    """Whole numbers that tell the band, the row and the column, and fit into every type of pixel."""
    row, col = np.indices((height, width))
    return np.stack([1000 * BANDS.index(band) + row + 3 * col for band in bands]).astype(np.float32)


def write_chip(
    path: Path,
    *,
    pixels: np.ndarray | None = None,
    descriptions: tuple[str | None, ...] | list[str] | None = BANDS,
    crs: Any = EPSG,
    origin: tuple[float, float] | None = (WEST, NORTH),
    tags: dict[str, str] | None = None,
    late: bool = False,
    step: float = 10,
    **profile: Any,
) -> Path:
    """Write a chip that is all right but for what is asked for; `late` puts its directory behind the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels_of() if pixels is None else pixels
    profile = {"blockysize": 1, "interleave": "pixel", "compress": "deflate", "zlevel": 1, **profile}
    if profile.get("tiled"):
        del profile["blockysize"]
    if crs is not None:
        profile["crs"] = f"EPSG:{crs}" if isinstance(crs, int) else crs
    if origin is not None:
        step = 1e-4 if crs == 4326 else step
        profile["transform"] = from_origin(*origin, step, step)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as file:
        if late:
            file.write(pixels)
        if descriptions is not None:
            file.descriptions = descriptions[:count]
        file.update_tags(**({"date": DAY} if tags is None else tags))
        if not late:
            file.write(pixels)
    return path


def directory_offset(data: bytes) -> int:
    """Where a classic little-endian TIFF keeps its directory."""
    return struct.unpack("<I", data[4:8])[0]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a chip that is all right."""
    return write_chip(tmp_path_factory.mktemp("good") / name_of(1)).read_bytes()


@pytest.fixture
def tile(tmp_path: Path, good: bytes) -> Path:
    """The folder of a tile that has one good chip, number 1."""
    folder = tmp_path / "source" / TILE / DAY
    folder.mkdir(parents=True)
    (folder / name_of(1)).write_bytes(good)
    return folder


# What an index holds


def test_index_of_a_good_chip(tile: Path) -> None:
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    path = tile / name_of(1)
    row = index.iloc[0]
    assert tuple(index.columns) == INDEX_COLUMNS
    assert len(index) == 1
    assert row["source_url"] == str(path)
    assert row["source"] == "geotiff"
    assert row["date"] == date(2019, 4, 16)
    assert row["epsg"] == EPSG
    assert row["chip"].numbers == IN_ORDER
    assert row["size"] == path.stat().st_size
    assert row["etag"]
    assert row["quarantined"] is None
    assert index.crs == "OGC:CRS84"


def test_index_has_the_place_that_proj_computes(tile: Path) -> None:
    row = daskembed.index_tile(TILE, str(tile.parent.parent)).iloc[0]
    utm = pyproj.Proj(proj="utm", zone=33, ellps="WGS84")
    lon, lat = utm(WEST + 2560, NORTH - 2560, inverse=True)
    assert row["lon"] == pytest.approx(lon, abs=1e-9)
    assert row["lat"] == pytest.approx(lat, abs=1e-9)
    xmin, ymin, xmax, ymax = WEST, NORTH - 5120, WEST + 5120, NORTH
    ring = [utm(x, y, inverse=True) for x, y in ((xmax, ymin), (xmax, ymax), (xmin, ymax), (xmin, ymin))]
    assert row["geometry"].geom_type == "Polygon"
    np.testing.assert_allclose(shapely.get_coordinates(row["geometry"]), [*ring, ring[0]], rtol=0, atol=1e-9)


def test_rows_are_in_the_order_of_their_urls(tile: Path, good: bytes) -> None:
    for number in (30, 4, 200):
        (tile / name_of(number)).write_bytes(good)
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert [url[-8:-4] for url in index["source_url"]] == ["0001", "0004", "0030", "0200"]
    assert list(index.index) == [0, 1, 2, 3]


@pytest.mark.parametrize("inner", ["", "2019-04-16", "a/b/c/d"])
def test_chips_are_found_at_any_depth(tmp_path: Path, good: bytes, inner: str) -> None:
    folder = tmp_path / TILE / inner
    folder.mkdir(parents=True)
    (folder / name_of(7)).write_bytes(good)
    for other in ("readme.txt", "claytile_notes.md", "other.tif", f"{name_of(7)}.aux.xml"):
        (folder / other).write_text("no chip")
    index = daskembed.index_tile(TILE, str(tmp_path))
    assert list(index["source_url"]) == [str(folder / name_of(7))]
    assert index["quarantined"].isna().all()


def test_chips_are_found_flat_in_the_source(tmp_path: Path, good: bytes) -> None:
    for number, tile in ((1, TILE), (2, TILE), (1, "33TUM")):
        (tmp_path / name_of(number, tile=tile)).write_bytes(good)
    index = daskembed.index_tile(TILE, str(tmp_path))
    assert [Path(url).name for url in index["source_url"]] == [name_of(1), name_of(2)]
    assert index["quarantined"].isna().all()


def test_tile_ids_are_read_in_any_case_and_checked(tile: Path) -> None:
    source = str(tile.parent.parent)
    assert len(daskembed.index_tile("33tul", source)) == 1
    with pytest.raises(InputError, match="is not an MGRS tile id"):
        daskembed.index_tile("33TU", source)


def test_folder_names_may_hold_any_character(tmp_path: Path, good: bytes) -> None:
    folder = tmp_path / "my chips #1 50% ü" / TILE
    folder.mkdir(parents=True)
    (folder / name_of(1)).write_bytes(good)
    index = daskembed.index_tile(TILE, str(folder.parent))
    assert list(index["source_url"]) == [str(folder / name_of(1))]
    np.testing.assert_array_equal(read_chip(index["source_url"][0], IN_ORDER), pixels_of())


def test_folder_names_below_the_tile_may_hold_any_character(tmp_path: Path, good: bytes) -> None:
    folder = tmp_path / TILE / "spring #1 50% ü"
    folder.mkdir(parents=True)
    (folder / name_of(1)).write_bytes(good)
    index = daskembed.index_tile(TILE, str(tmp_path))
    assert list(index["source_url"]) == [str(folder / name_of(1))]
    assert index["quarantined"].isna().all()
    np.testing.assert_array_equal(read_chip(index["source_url"][0], IN_ORDER), pixels_of())


def test_source_may_be_a_file_url(tile: Path) -> None:
    index = daskembed.index_tile(TILE, tile.parent.parent.as_uri())
    assert list(index["source_url"]) == [str(tile / name_of(1))]


def test_chips_of_two_utm_zones(tile: Path) -> None:
    write_chip(tile / name_of(2), crs=32632, origin=(765_000, NORTH))
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert list(index["epsg"]) == [32633, 32632]
    for row, zone, west in zip(index.itertuples(), (33, 32), (WEST, 765_000), strict=True):
        utm = pyproj.Proj(proj="utm", zone=zone, ellps="WGS84")
        assert (row.lon, row.lat) == pytest.approx(utm(west + 2560, NORTH - 2560, inverse=True), abs=1e-9)
        assert row.geometry.contains(shapely.Point(row.lon, row.lat))


@pytest.mark.parametrize(
    ("tile", "epsg", "zone", "origin"),
    [("01KAB", 32701, 1, (179_500, 8_030_000)), ("60WXT", 32660, 60, (640_000, 7_210_000))],
)
def test_footprint_across_the_antimeridian_is_cut_in_two(
    tmp_path: Path, tile: str, epsg: int, zone: int, origin: tuple[int, int]
) -> None:
    write_chip(tmp_path / tile / name_of(1, tile=tile), crs=epsg, origin=origin)
    row = daskembed.index_tile(tile, str(tmp_path)).iloc[0]
    utm = pyproj.Proj(proj="utm", zone=zone, ellps="WGS84", south=epsg > 32700)
    lon, lat = utm(origin[0] + 2560, origin[1] - 2560, inverse=True)
    assert (row["lon"], row["lat"]) == pytest.approx((lon, lat), abs=1e-9)
    assert row["geometry"].geom_type == "MultiPolygon"
    assert row["geometry"].is_valid
    west, east = sorted(row["geometry"].geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert west.bounds[2] < -179.8
    assert east.bounds[0] > 179.8
    corners = [(origin[0] + dx, origin[1] - dy) for dx, dy in ((5120, 5120), (5120, 0), (0, 0), (0, 5120))]
    around = shapely.Polygon([(x % 360, y) for x, y in (utm(*corner, inverse=True) for corner in corners)])
    assert west.area + east.area == pytest.approx(around.area, rel=1e-9)


def test_dates_are_inclusive(tmp_path: Path) -> None:
    days = ("2019-04-01", "2019-04-16", "2019-04-30")
    for day in days:
        write_chip(tmp_path / TILE / day / name_of(1, day=day), tags={"date": day})
    # A name without a date: only the tag can tell.
    write_chip(tmp_path / TILE / "claytile_early.tif", tags={"date": "2018-01-01"})

    def indexed(first: str, last: str) -> list[str]:
        index = daskembed.index_tile(TILE, str(tmp_path), dates=f"{first}/{last}")
        return [str(day) for day in index["date"]]

    assert indexed("2019-04-01", "2019-04-16") == list(days[:2])
    assert indexed("2019-04-02", "2019-04-29") == list(days[1:2])
    assert indexed("2018-01-01", "2018-01-01") == ["2018-01-01"]
    assert indexed("2000-01-01", "2100-01-01") == [*days, "2018-01-01"]
    with pytest.raises(TileError, match="no chips of tile 33TUL from 2020-01-01 to 2020-12-31"):
        indexed("2020-01-01", "2020-12-31")


def test_dates_that_no_name_has_are_an_error_of_the_tile(tile: Path) -> None:
    with pytest.raises(TileError, match="no chips of tile 33TUL from 2020-01-01 to 2020-12-31: check `dates`"):
        daskembed.index_tile(TILE, str(tile.parent.parent), dates="2020-01-01/2020-12-31")


def test_quarantined_chips_stay_in_an_index_of_dates(tile: Path) -> None:
    write_chip(tile / name_of(2), tags={})
    index = daskembed.index_tile(TILE, str(tile.parent.parent), dates="2019-04-16/2019-04-16")
    assert list(index["quarantined"].notna()) == [False, True]


def test_missing_tile(tile: Path) -> None:
    source = tile.parent.parent
    with pytest.raises(TileError) as error:
        daskembed.index_tile("33TUM", str(source))
    assert str(error.value) == (
        f"no chips of tile 33TUM: expected claytile_*.tif under {source}/33TUM/ "
        f"or claytile_33TUM_*.tif in {source}/, 33TUM*.zarr in either, 33TUM*.tif, .vrt or .jp2 in either, or a file a "
        f"band (B02.tif) in a folder below {source}/33TUM/; check the tile id and `source`"
    )


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no folder {tmp_path}/nowhere"):
        daskembed.index_tile(TILE, str(tmp_path / "nowhere"))


def test_listing_changes_with_any_chip(tile: Path, good: bytes) -> None:
    def fingerprint() -> str:
        return list_tile(TILE, Storage(str(tile.parent.parent)), Reading()).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    (tile / name_of(2)).write_bytes(good)
    second = fingerprint()
    (tile / name_of(2)).write_bytes(good + b"\0")
    assert len({first, second, fingerprint()}) == 3


# The order of the bands


def shuffled() -> list[str]:
    return [str(band) for band in np.random.default_rng(5).permutation(BANDS)]


@pytest.mark.parametrize(
    "order",
    [[*BANDS[:10], "vv", "vh", "dem"], shuffled(), list(BANDS[::-1])],
    ids=["vv before vh", "shuffled", "reversed"],
)
@pytest.mark.parametrize("write", [str, str.lower, " {} ".format], ids=["as is", "lower case", "padded"])
def test_bands_are_read_in_the_encoders_order(tmp_path: Path, order: list[str], write: Any) -> None:
    path = tmp_path / TILE / name_of(1)
    write_chip(path, pixels=pixels_of(order), descriptions=[write(band) for band in order])
    row = daskembed.index_tile(TILE, str(tmp_path)).iloc[0]
    assert row["quarantined"] is None
    assert row["chip"].numbers == tuple(order.index(band) + 1 for band in BANDS)
    np.testing.assert_array_equal(read_chip(row["source_url"], row["chip"].numbers), pixels_of())


def test_bands_without_descriptions_go_by_their_position(tmp_path: Path) -> None:
    write_chip(tmp_path / TILE / name_of(1), descriptions=None)
    assert daskembed.index_tile(TILE, str(tmp_path)).iloc[0]["chip"].numbers == IN_ORDER


# Chips that cannot be used


def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>503 Service Unavailable</body></html>" * 100)


def cut(path: Path, length: int) -> None:
    write_chip(path)
    path.write_bytes(path.read_bytes()[:length])


def with_bands(count: int) -> np.ndarray:
    return np.concatenate([pixels_of(), pixels_of()])[:count]


LOCAL_CRS = "+proj=tmerc +lat_0=46 +lon_0=12.3 +k=1 +x_0=1234 +y_0=5678 +ellps=bessel +units=m +no_defs"
BAD: dict[str, tuple[Any, str]] = {
    "1 band": (lambda path: write_chip(path, pixels=with_bands(1)), "has 1 bands?, expected 13: B02 B03"),
    "12 bands": (lambda path: write_chip(path, pixels=with_bands(12)), "has 12 bands, expected 13: B02 B03"),
    "14 bands": (
        lambda path: write_chip(path, pixels=with_bands(14), descriptions=[*BANDS, "scl"]),
        "has 14 bands, expected 13: B02 B03",
    ),
    "256 x 256": (
        lambda path: write_chip(path, pixels=pixels_of(height=256, width=256)),
        "has 256 x 256 pixels, expected 512 x 512",
    ),
    "511 x 512": (
        lambda path: write_chip(path, pixels=pixels_of(height=511)),
        "has 511 x 512 pixels, expected 512 x 512",
    ),
    "complex": (
        lambda path: write_chip(path, pixels=pixels_of().astype(np.complex64)),
        "has complex64 pixels, expected integers or floats",
    ),
    "no CRS": (lambda path: write_chip(path, crs=None), "has no CRS, expected a projected one with an EPSG code"),
    "geographic": (
        lambda path: write_chip(path, crs=4326, origin=(12.4, 46.0)),
        "has the CRS EPSG:4326, expected a projected one with an EPSG code",
    ),
    "CRS without a code": (
        lambda path: write_chip(path, crs=LOCAL_CRS),
        "has the CRS .*, expected a projected one with an EPSG code",
    ),
    "no transform": (lambda path: write_chip(path, origin=None), "has no georeferencing"),
    "20 m": (lambda path: write_chip(path, step=20), "has pixels of 20 x 20 m, expected 10 m: resample it"),
    "10 feet": (lambda path: write_chip(path, crs=2263), "has pixels of 3.0480\\d+ x 3.0480\\d+ m, expected 10 m"),
    "another place": (
        lambda path: write_chip(path, crs=32631, origin=(600_000, 4_000_000)),
        "is not at tile 33TUL: its bounds in EPSG:32631 are 600000, 3994880, 605120, 4000000 .*, expected within 20 km "
        "of easting 300000 to 400000, northing 5000000 to 5100000 of EPSG:32633",
    ),
    "beyond the margin": (
        lambda path: write_chip(path, origin=(420_010, NORTH)),
        "is not at tile 33TUL: its bounds in EPSG:32633 are 420010, ",
    ),
    "no date": (lambda path: write_chip(path, tags={"when": DAY}), "has no `date` tag, expected date=YYYY-MM-DD"),
    "no tags": (lambda path: write_chip(path, tags={}), "has no `date` tag, expected date=YYYY-MM-DD"),
    "year 1019": (lambda path: write_chip(path, tags={"date": "1019-04-16"}), "has the `date` tag '1019-04-16'"),
    "year 2919": (lambda path: write_chip(path, tags={"date": "2919-04-16"}), "has the `date` tag '2919-04-16'"),
    "no such day": (lambda path: write_chip(path, tags={"date": "2019-02-30"}), "has the `date` tag '2019-02-30'"),
    "other way round": (lambda path: write_chip(path, tags={"date": "16/04/2019"}), "has the `date` tag '16/04/2019'"),
    "date in words": (
        lambda path: write_chip(path, tags={"date": "April 2019"}),
        "has the `date` tag 'April 2019', expected YYYY-MM-DD",
    ),
    "other date in the name": (
        lambda path: write_chip(path, tags={"date": "2019-04-17"}),
        "is named after 2019-04-16, but its `date` tag says 2019-04-17",
    ),
    "some descriptions": (
        lambda path: write_chip(path, descriptions=[*BANDS[:12], None]),
        r"has the bands B02 .* vv \(none\): dem is missing; expected B02 .* dem in any order, or no descriptions",
    ),
    "unknown description": (
        lambda path: write_chip(path, descriptions=["B01", *BANDS[1:]]),
        "has the bands B01 B03 .*: B02 is missing",
    ),
    "a band twice": (
        lambda path: write_chip(path, descriptions=[*BANDS[:11], "vh", "dem"]),
        "has the bands .* vh vh dem: vv is missing",
    ),
    "zero bytes": (lambda path: path.write_bytes(b""), "is empty; expected a GeoTIFF"),
    "three bytes": (lambda path: path.write_bytes(b"II*"), r"is not a TIFF: it starts with b'II\*'"),
    "HTML": (html, "is not a TIFF: it starts with b'<!DO'; expected a GeoTIFF"),
    "Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is not a TIFF: it starts with b'vers'",
    ),
    "PNG": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)), "is not a TIFF"),
    "noise behind the signature": (
        lambda path: path.write_bytes(b"II*\0" + np.random.default_rng(0).bytes(4000)),
        "has a damaged header",
    ),
    "cut after 8 bytes": (lambda path: cut(path, 8), "has a damaged header"),
    "cut after 100 bytes": (lambda path: cut(path, 100), "has a damaged header"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bad_chip_is_quarantined_and_its_neighbour_is_not(tile: Path, kind: str) -> None:
    write, reason = BAD[kind]
    source = str(tile.parent.parent)
    alone = daskembed.index_tile(TILE, source)
    write(tile / name_of(2))
    index = daskembed.index_tile(TILE, source)
    assert len(index) == 2
    assert index["source_url"][1] == str(tile / name_of(2))
    found = index["quarantined"][1]
    assert re.match(reason, found), found
    assert "\n" not in found
    # The same chip has the same reason each time: no name that was made up for GDAL.
    assert daskembed.index_tile(TILE, source)["quarantined"][1] == found
    assert index.iloc[0].equals(alone.iloc[0])


def test_chip_named_after_another_tile_is_quarantined(tile: Path, good: bytes) -> None:
    (tile / name_of(2, tile="33TUM")).write_bytes(good)
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert list(index["quarantined"]) == [None, "is named after tile 33TUM, expected 33TUL"]


def test_every_truncation_of_the_header_is_quarantined(tile: Path, good: bytes) -> None:
    """The directory is at the start here, the values that it points to come next, then the strips."""
    assert directory_offset(good) < 32
    with rasterio.open(tile / name_of(1)) as file:
        first_strip = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    lengths = range(0, first_strip, 97)
    for number, length in enumerate(lengths, start=2):
        (tile / name_of(number)).write_bytes(good[:length])
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert list(index["quarantined"].isna()) == [True] + [False] * len(lengths)


def test_truncated_strips_are_found_when_they_are_read(tile: Path, good: bytes) -> None:
    (tile / name_of(2)).write_bytes(good[: len(good) // 2])
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert index["quarantined"].isna().all()
    with pytest.raises(ChipError, match=r"cannot be decoded, it is damaged or truncated: .+") as error:
        read_chip(index["source_url"][1], index["chip"][1].numbers)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(read_chip(index["source_url"][0], IN_ORDER), pixels_of())


def test_damaged_strips_are_found_when_they_are_read(tile: Path, good: bytes) -> None:
    # Zeros over more than one whole strip: at least one has no zlib header left. (The checksum alone does not do: where
    # a damaged strip inflates to too many bytes, libtiff stops before it and reports nothing.)
    half, length = len(good) // 2, 60_000
    (tile / name_of(2)).write_bytes(good[:half] + bytes(length) + good[half + length :])
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    with pytest.raises(ChipError, match=r"cannot be decoded, it is damaged or truncated: .+"):
        read_chip(index["source_url"][1], index["chip"][1].numbers)


@pytest.mark.parametrize("data", [b"", b"<html>", b"II*\0"], ids=["empty", "HTML", "signature"])
def test_chip_that_turned_into_something_else_cannot_be_read(tile: Path, data: bytes) -> None:
    (tile / name_of(1)).write_bytes(data)
    with pytest.raises(ChipError, match="cannot be decoded"):
        read_chip(str(tile / name_of(1)), IN_ORDER)


def test_chip_that_changed_its_size_cannot_be_read(tile: Path) -> None:
    write_chip(tile / name_of(1), pixels=pixels_of(height=256, width=256))
    with pytest.raises(ChipError, match="has 256 x 256 pixels, expected 512 x 512"):
        read_chip(str(tile / name_of(1)), IN_ORDER)


def test_chip_that_is_gone(tile: Path, good: bytes) -> None:
    (tile / name_of(2)).write_bytes(good)
    listing = list_tile(TILE, Storage(str(tile.parent.parent)), Reading())
    (tile / name_of(2)).unlink()
    index = read_headers(listing, Reading(), readers=2)
    assert index["quarantined"][0] is None
    assert index["quarantined"][1].startswith("is gone: it was listed")
    with pytest.raises(ChipError, match="is gone: it was listed, but the store no longer has it"):
        read_chip(str(tile / name_of(2)), IN_ORDER)


# Every way of writing the same pixels


LAYOUTS: dict[str, dict[str, Any]] = {
    "pixel-interleaved rows": {},
    "one strip": {"blockysize": 512},
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "bands apart": {"interleave": "band"},
    "bands apart in tiles": {"interleave": "band", "tiled": True, "blockxsize": 128, "blockysize": 128},
    "LZW": {"compress": "lzw"},
    "ZSTD": {"compress": "zstd"},
    "no compression": {"compress": "none"},
    "horizontal predictor": {"predictor": 2},
    "floating-point predictor": {"predictor": 3},
    "BigTIFF": {"bigtiff": "yes"},
    "big-endian": {"endianness": "big"},
    "directory at the end": {"late": True},
    "BigTIFF, directory at the end": {"bigtiff": "yes", "late": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_to_the_same_pixels(tmp_path: Path, layout: str) -> None:
    path = write_chip(tmp_path / TILE / name_of(1), **LAYOUTS[layout])
    row = daskembed.index_tile(TILE, str(tmp_path)).iloc[0]
    assert row["quarantined"] is None
    pixels = read_chip(str(path), row["chip"].numbers)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, pixels_of())


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "float64"])
@pytest.mark.parametrize("layout", [{}, {"compress": "lzw", "predictor": 2}], ids=["plain", "predictor"])
def test_types_are_read_to_the_same_pixels(tmp_path: Path, dtype: str, layout: dict[str, Any]) -> None:
    path = write_chip(tmp_path / TILE / name_of(1), pixels=pixels_of().astype(dtype), **layout)
    row = daskembed.index_tile(TILE, str(tmp_path)).iloc[0]
    assert row["quarantined"] is None
    pixels = read_chip(str(path), row["chip"].numbers)
    assert pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(pixels, pixels_of())


# Requests, counted by the server


Request = tuple[str, str, str]


@pytest.fixture
def requests(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Request]]:
    """What stores opened from here on ask for: method, path with query, and range."""
    seen: list[Request] = []
    backend = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        seen.append((environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", "")))
        return backend(environ, start_response)

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, counting, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


def upload(url: str, folder: Path) -> None:
    for path in sorted(folder.rglob("*.tif")):
        Storage(url).put(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.mark.parametrize("late", [False, True], ids=["directory first", "directory last"])
def test_requests_of_a_tile(tmp_path: Path, s3: str, requests: list[Request], late: bool) -> None:
    noise = np.random.default_rng(0).random((13, 512, 512), np.float32)
    for number in (1, 2, 3):
        path = write_chip(tmp_path / TILE / DAY / name_of(number), pixels=noise, late=late)
    data = path.read_bytes()
    assert len(data) > 10_000_000
    assert (directory_offset(data) > len(data) // 2) == late
    upload(f"{s3}/02", tmp_path)
    requests.clear()
    index = daskembed.index_tile(TILE, f"{s3}/02")
    assert index["quarantined"].isna().all()
    assert list(index["source_url"]) == [f"{s3}/02/{TILE}/{DAY}/{name_of(number)}" for number in (1, 2, 3)]
    listings = [request for request in requests if "list-type=2" in request[1]]
    assert len(listings) == 1
    for number in (1, 2, 3):
        ranges = [asked for method, path, asked in requests if method == "GET" and name_of(number) in path]
        assert 1 <= len(ranges) <= 2
        assert all(asked.startswith("bytes=") for asked in ranges)
        spans = [[int(end) for end in asked.removeprefix("bytes=").split("-")] for asked in ranges]
        assert sum(last - first + 1 for first, last in spans) < 100_000
    assert len(requests) <= 1 + 2 * 3
    requests.clear()
    np.testing.assert_array_equal(read_chip(index["source_url"][1], IN_ORDER), noise)
    assert [(method, name_of(2) in path, asked) for method, path, asked in requests] == [("GET", True, "")]


def test_source_in_a_bucket(tile: Path, s3: str) -> None:
    write_chip(tile / name_of(2), tags={})
    upload(s3, tile.parent.parent)
    index = daskembed.index_tile(TILE, s3)
    local = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert list(index["source_url"]) == [f"{s3}/{TILE}/{DAY}/{name_of(number)}" for number in (1, 2)]
    same = [column for column in INDEX_COLUMNS if column not in ("source_url", "chip", "etag")]
    assert index[same].equals(local[same])
    assert [chip.url for chip in index["chip"] if chip] == [index["source_url"][0]]
    np.testing.assert_array_equal(read_chip(index["source_url"][0], IN_ORDER), pixels_of())
    with pytest.raises(TileError, match="no chips of tile 33TUM"):
        daskembed.index_tile("33TUM", s3)


def test_flat_source_in_a_bucket(tmp_path: Path, s3: str, good: bytes) -> None:
    (tmp_path / name_of(1)).write_bytes(good)
    upload(f"{s3}/all", tmp_path)
    index = daskembed.index_tile(TILE, f"{s3}/all/")
    assert list(index["source_url"]) == [f"{s3}/all/{name_of(1)}"]


def test_chip_that_is_gone_from_a_bucket(tile: Path, s3: str) -> None:
    upload(s3, tile.parent.parent)
    listing = list_tile(TILE, Storage(s3), Reading())
    url = listing.storage.url_of(listing.entries[0].path)
    listing.storage.delete([listing.entries[0].path])
    index = read_headers(listing, Reading(), readers=2)
    assert index["quarantined"][0].startswith("is gone")
    with pytest.raises(ChipError, match="is gone"):
        read_chip(url, IN_ORDER)


def test_missing_bucket_is_no_missing_tile(s3: str) -> None:
    with pytest.raises((InputError, StorageError), match="no-such-bucket"):
        daskembed.index_tile(TILE, f"{s3}-no-such-bucket")


@pytest.mark.parametrize("error", [StorageError, StorageDeniedError])
@pytest.mark.parametrize("failing", [1, 2], ids=["first request", "second request"])
@pytest.mark.parametrize("where", ["directory", "tags"])
def test_store_that_fails_is_no_fault_of_the_chip(
    tile: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], failing: int, where: str
) -> None:
    """Neither when the directory nor when only the tags behind it cannot be had."""
    path = tile / name_of(1)
    if where == "directory":
        write_chip(path, late=True)
    else:
        write_chip(path, tags={"date": DAY, "note": "x" * 20_000})
        assert directory_offset(path.read_bytes()) < 32
    get_listed, calls = Storage.get_listed, []

    def failing_get_listed(self: Storage, entry: Entry, start: int, end: int, *, fresh: bool) -> bytes:
        calls.append((start, end))
        if len(calls) >= failing:
            raise error("the store does not answer")
        return get_listed(self, entry, start, end, fresh=fresh)

    monkeypatch.setattr(Storage, "get_listed", failing_get_listed)
    with pytest.raises(error, match="the store does not answer"):
        daskembed.index_tile(TILE, str(tile.parent.parent))
    assert len(calls) >= failing


def test_wrong_bytes_once_are_no_fault_of_the_chip(tile: Path, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a header nor in pixels, of the right length and ETag."""
    write_chip(tile / name_of(2), tags={})  # bad in itself
    sound = daskembed.index_tile(TILE, str(tile.parent.parent))["chip"][0].read()
    get_listed, spoilt, asked = Storage.get_listed, set[tuple[str, int]](), list[bool]()

    def spoil(self: Storage, entry: Entry, start: int = 0, end: int | None = None, *, fresh: bool = False) -> bytes:
        data = get_listed(self, entry, start, end, fresh=fresh)
        asked.append(fresh)
        if (entry.path, end or 0) in spoilt:
            return data
        spoilt.add((entry.path, end or 0))
        return data[100:] + data[:100]

    monkeypatch.setattr(Storage, "get_listed", spoil)
    index = daskembed.index_tile(TILE, str(tile.parent.parent))
    assert index["quarantined"].tolist() == [None, "has no `date` tag, expected date=YYYY-MM-DD"]
    np.testing.assert_array_equal(index["chip"][0].read(), sound)
    assert asked[-2:] == [False, True]


def test_sidecar_files_move_no_chip(tile: Path) -> None:
    """GDAL would take another CRS from a sidecar."""
    path = tile / name_of(1)
    with rasterio.Env(GDAL_PAM_ENABLED=True):
        sidecar = path.with_name(f"{path.name}.aux.xml")
        sidecar.write_text('<PAMDataset><SRS dataAxisToSRSAxisMapping="1,2">EPSG:32601</SRS></PAMDataset>')
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() in (EPSG, 32601)
    assert list(daskembed.index_tile(TILE, str(tile.parent.parent))["epsg"]) == [EPSG]


def test_what_lies_beside_a_chip_is_named_and_bounded(tile: Path) -> None:
    """Also where it is replaced after the header was read; a sparse file claims any size."""
    path, source = tile / name_of(1), str(tile.parent.parent)
    storage, beside = Storage(source), path.relative_to(source)
    for end, most, text, said in (
        (".aux.xml", 2**20, "<PAMDataset/>", "which is long or names other files"),
        (".msk", 128 * 2**20, "II*\0", "which is no TIFF"),
    ):
        sidecar = path.with_name(path.name + end)
        sidecar.write_text("<!DOCTYPE x>")
        assert daskembed.index_tile(TILE, source)["quarantined"][0].startswith(f"has beside it {beside}{end}, {said}")
        sidecar.write_text(text)
        with sidecar.open("r+b") as file:
            file.truncate(2**40)
        long = f"{end}, which has more than {most:,} bytes: remove it"
        assert daskembed.index_tile(TILE, source)["quarantined"][0] == f"has beside it {beside}{long}"
        with pytest.raises(ChipError, match=f"has beside it {path.name}{long}"):
            read_chip(storage.url_of(str(beside)), (1,), sidecars=(end,))
        sidecar.unlink()
