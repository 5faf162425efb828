"""Regions: the tiles that one meets, the files that say one, and the chips of every kind of source."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import mgrs
import numpy as np
import pyproj
import pytest
import rioxarray  # noqa: F401 (the accessor)
import shapely
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError, TileError
from daskembed.geo.footprints import to_lonlat
from daskembed.geo.mgrs import square_of, tile_at, tile_corner
from daskembed.geo.regions import tiles_meeting, tiles_of_places
from daskembed.runs.cube_layout import READING, Job
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.tiles import resolve
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources import region
from daskembed.sources.reading import Reading
from daskembed.sources.region import chips_within, read_region, tiles_of_region
from daskembed.storage.stores import Storage

ORACLE = mgrs.MGRS()
TILE = "33TUL"
WEST, NORTH = 300_000, 5_100_000


def at(lon: float, lat: float) -> tuple[str, ...]:
    return tiles_meeting(shapely.Point(lon, lat))


def in_degrees(shape: shapely.Geometry, epsg: int = 32633) -> shapely.Geometry:
    return gpd.GeoSeries([shape], crs=epsg).to_crs("OGC:CRS84").iloc[0]


# The tiling grid


def test_the_tiles_are_those_of_the_published_grid() -> None:
    """Of ESA's TILPAR file of 2015-12-09, but for what lies south of 82 degrees south."""
    grid = {
        one
        for zone in range(1, 61)
        for column in range(1, 9)
        for row in range(-90, 94)
        if (one := tile_at(zone, column, row))
    }
    assert len(grid) == 56_446
    digest = "a1d0eca6350a4ea04f501b47db3b5bf732b8b8f29badf9aa439070db5f5b402c"
    assert hashlib.sha256("\n".join(sorted(grid)).encode()).hexdigest() == digest
    for zone, column, row in ((33, 3, 50), (32, 6, 52), (13, 6, 35), (35, 5, -1), (60, 7, -30)):
        square = square_of(str(tile_at(zone, column, row)))
        assert (square.west, square.south) == (column * 100_000, row * 100_000 + (0 if row >= 0 else 10_000_000))


LATITUDES = st.one_of(
    st.floats(-79.9, 83.9),
    st.builds(lambda band, more: min(max(8 * band + more, -79.9), 83.9), st.integers(-10, 10), st.floats(-0.5, 0.5)),
)
LONGITUDES = st.one_of(
    st.floats(-180, 180),
    st.builds(lambda zone, more: (6 * zone + more + 180) % 360 - 180, st.integers(-30, 30), st.floats(-1, 1)),
)


@settings(max_examples=150)
@given(lon=LONGITUDES, lat=LATITUDES)
@example(lon=-103.004715, lat=31.96212)  # a square of two latitude bands: MGRS 13RFR, of which there are no products
@example(lon=11.5, lat=47.95)
@example(lon=12.05, lat=47.3)
@example(lon=3.2, lat=60.0)
@example(lon=9.5, lat=78.0)
@example(lon=-179.99, lat=70.0)
def test_each_place_has_one_tile_which_shows_it(lon: float, lat: float) -> None:
    # On the border of zones rounding decides.
    assume(all(abs(one / step - round(one / step)) > 1e-7 for one, step in ((lon, 3), (lat, 8))))
    (tile,) = at(lon, lat)
    said = ORACLE.toMGRS(lat, lon, MGRSPrecision=0).zfill(5)
    square = square_of(said)
    row = square.south // 100_000 - (0 if square.epsg < 32700 else 100)
    kept = tile_at(int(said[:2]), square.west // 100_000, row)
    # The square that has the place, under the name that its tile has; none: the next zone's, which shows it too.
    assert tile == kept if kept else tile[:2] != said[:2]
    assert kept is None or (kept[:2], kept[3:]) == (said[:2], said[3:])
    epsg, west, north = tile_corner(tile)
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    assert west <= x <= west + 109_800
    assert north - 109_800 <= y <= north


@settings(max_examples=20)
@given(
    lon=st.floats(-180, 170),
    lat=st.floats(-79, 75),
    width=st.floats(0.01, 9),
    height=st.floats(0.01, 6),
    data=st.data(),
)
def test_a_region_has_the_tiles_of_its_places(lon: float, lat: float, width: float, height: float, data: Any) -> None:
    area = shapely.box(lon, lat, lon + width, lat + height)
    found = tiles_meeting(area)
    assert found == tuple(sorted(set(found)))
    shares = data.draw(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), min_size=5, max_size=5))
    places = [(lon + x * width, lat + y * height) for x, y in shares]
    assert {tile for place in places for tile in at(*place)} <= set(found)
    for tile in found[:: max(1, len(found) // 10)]:
        epsg, west, north = tile_corner(tile)
        shown = in_degrees(shapely.segmentize(shapely.box(west, north - 109_800, west + 109_800, north), 5_000), epsg)
        # Across 180 degrees the outline of a tile goes around the world, and is of no use.
        assert shown.bounds[2] - shown.bounds[0] > 180 or shown.intersects(area)


def test_the_tiles_of_many_places_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    # At borders of zones, too, where the next zone's tile may reach over.
    lon = np.concatenate([rng.uniform(-180, 180, 200), rng.integers(-30, 31, 100) * 6 + rng.normal(0, 0.3, 100)])
    lon = np.concatenate([(lon + 180) % 360 - 180, [180.0, -180.0, 0.0]])
    lat = np.concatenate([rng.uniform(-80, 84, 300), [0.5, 0.5, 85.0]])
    expected = [next(iter(tiles_meeting(shapely.Point(*place))), None) for place in zip(lon, lat, strict=True)]
    assert tiles_of_places(lon, lat).tolist() == expected
    assert expected[-3:] == ["01NAA", "01NAA", None]


@pytest.mark.parametrize(
    ("edges", "expected"),
    {
        "across 180 degrees": ("179.5,-17,-179.5,-16.8", "01KAB 01KBB 60KYG"),
        "the same in the north": ("179.9,66,-179.9,66.1", "01WCP"),
        "Svalbard": ("8.9,78.2,9.1,78.3", "31XFG"),
        "Norway": ("2.9,60,3.1,60.1", "31VDG 31VEG"),
        "the equator": ("9,-0.1,9.1,0.1", "32MNE 32NNF"),
        "a latitude band in a square": ("11.5,47.9,11.6,48.1", "32UPU"),
        "a zone's edge": ("11.99,47.2,12.01,47.3", "32TQT"),
        "a zone": ("6.0,40.1,6.001,40.2", "32TKK"),
    }.values(),
)
def test_odd_places(edges: str, expected: str) -> None:
    assert " ".join(tiles_of_region(edges)) == expected


def test_what_only_touches_a_square_does_not_meet_it() -> None:
    square = shapely.segmentize(shapely.box(WEST, NORTH - 100_000, WEST + 100_000, NORTH), 1_000)
    assert tiles_meeting(in_degrees(square)) == (TILE,)
    # Points and lines on the border of two are in one of them.
    assert at(9.0, 0.0) == ("32NNF",)
    assert tiles_meeting(shapely.LineString([(9.0, 0.1), (9.0, 0.2)])) == ("32NNF",)
    assert tiles_meeting(shapely.LineString([(8.5, 0.1), (9.5, 0.1)])) == ("32NMF", "32NNF")
    assert tiles_meeting(shapely.Point(9.0, 0.0).buffer(1e-7)) != ()


def test_a_continent() -> None:
    assert (
        len(tiles_meeting(shapely.box(-18, -35, 52, 38)))
        == len(set(tiles_meeting(shapely.box(-18, -35, 52, 38))))
        > 6000
    )


@pytest.mark.parametrize(("edges", "where"), [("0,84.5,10,86", "84 N"), ("0,-90,10,-81", "-80"), ("0,84,9,90", "84 N")])
def test_beyond_utm_there_are_no_tiles(edges: str, where: str) -> None:
    with pytest.raises(InputError, match="MGRS tiles end"):
        tiles_of_region(edges)


def test_what_lies_beyond_utm_is_said_to_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    region._tiles_meeting.cache_clear()
    assert tiles_of_region("15,83.5,16,85") == tiles_of_region("15,83.5,16,84")
    (record,) = caplog.records
    assert record.getMessage() == "warning: what of the `region` lies beyond 84 N is left out: MGRS tiles end there"


def test_west_and_east_that_are_swapped_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert len(tiles_of_region("12.6,45.9,12.4,46")) >= 300
    (record,) = caplog.records
    assert record.getMessage() == (
        "warning: the `region` 12.6,45.9,12.4,46 goes 359.8 degrees around the Earth, for its west is more than its "
        "east: did you mean `region='12.4,45.9,12.6,46'`?"
    )
    caplog.clear()
    for fine in ("179,-17,-179,-16", "-120,10,120,10.1"):
        tiles_of_region(fine)
    assert not caplog.records


# What says a region


@pytest.fixture(scope="module")
def square() -> gpd.GeoDataFrame:
    """Two squares in one tile, in the metres of its zone."""
    shapes = [shapely.box(WEST + 10, NORTH - 2_000, WEST + 2_000, NORTH - 10), shapely.Point(WEST + 9_000, NORTH - 10)]
    return gpd.GeoDataFrame(geometry=shapes, crs=32633)


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.fgb", "a.parquet", "a.gpq"])
def test_any_file_of_geopandas(name: str, square: gpd.GeoDataFrame, tmp_path: Path, s3: str) -> None:
    path = tmp_path / name
    if path.suffix in (".parquet", ".gpq"):
        square.to_parquet(path)
    else:
        square.to_crs(3035).to_file(path)
    found = shapely.from_wkt(read_region(str(path)))
    expected = square.to_crs("OGC:CRS84").union_all()
    assert shapely.hausdorff_distance(found, expected) < 1e-5
    assert tiles_of_region(str(path)) == (TILE,)
    Storage(s3).put(name, path.read_bytes())
    assert read_region(f"{s3}/{name}") == read_region(str(path))


def test_projected_regions_go_across_180_degrees(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(700_000, 8_100_000, 900_000, 8_200_000)], crs=32760).to_file(path)
    area = shapely.from_wkt(read_region(str(path)))
    assert (area.bounds[0], area.bounds[2]) == (-180, 180)
    assert area.area < 2
    assert {tile[:2] for tile in tiles_of_region(str(path))} == {"60", "01"}
    # Degrees from 0 to 360 are understood too.
    gpd.GeoDataFrame(geometry=[shapely.box(179, -17, 181, -16)], crs=4326).to_file(path)
    assert shapely.equals(shapely.from_wkt(read_region(str(path))), shapely.from_wkt(read_region("179,-17,-179,-16")))


def test_edges_are_straight_as_they_are_projected(tmp_path: Path) -> None:
    """The middle of a long edge is where the projection has it, not the straight line in degrees."""
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(4_000_000, 3_000_000, 5_000_000, 3_000_100)], crs=3035).to_file(path)
    middle = pyproj.Transformer.from_crs(3035, 4326, always_xy=True).transform(4_500_000, 3_000_050)
    assert shapely.from_wkt(read_region(str(path))).contains(shapely.Point(middle))


def test_many_corners_are_made_few_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    angle = np.linspace(0, 2 * np.pi, 60_001)[:-1]
    radius = 2 + 5e-5 * np.sin(9_000 * angle)
    shape = shapely.Polygon(np.stack([20 + radius * np.cos(angle), 5 + radius * np.sin(angle)], axis=1))
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[shape], crs=4326).to_file(path)
    found = shapely.from_wkt(read_region(str(path)))
    assert shapely.get_num_coordinates(found) <= region.MOST_CORNERS
    corners = shapely.get_coordinates(found) - [20, 5]
    assert np.allclose(np.hypot(*corners.T), 2, rtol=0, atol=6e-5)
    assert abs(found.area - shape.area) < 1e-3
    (record,) = caplog.records
    assert "has 60,001 corners: its edges are moved by up to 0.0001 degrees" in record.getMessage()


def write(path: Path, shape: shapely.Geometry | None, crs: Any) -> None:
    gpd.GeoDataFrame(geometry=[] if shape is None else [shape], crs=crs).to_file(path)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    {
        "no CRS": ("a.gpkg", lambda path: write(path, shapely.Point(0, 0), None), "says no CRS"),
        "metres as degrees": ("a.gpkg", lambda path: write(path, shapely.Point(3e5, 5e6), 4326), "are not of the CRS"),
        "empty": ("a.gpkg", lambda path: write(path, None, 4326), "has no geometry that is not empty"),
        "around a pole": ("a.gpkg", lambda path: write(path, shapely.Point(0, 0).buffer(3e6), 3413), "around a pole"),
        "no geometry": ("a.csv", lambda path: path.write_text("a,b\n1,2\n"), "has no geometry"),
        "damaged": ("a.geojson", lambda path: path.write_text("{"), "cannot be read by GeoPandas"),
        "not there": ("a.gpkg", lambda path: None, "no file"),
    }.values(),
)
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_files_that_are_no_region(name: str, make: Any, said: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_region(str(tmp_path / name))
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "expected" in str(caught.value) or said in ("are not of the CRS", "around a pole")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2,3", "or W,S,E,N in degrees, such as"),
        ("1,2,3,4,5", "or W,S,E,N in degrees, such as"),
        ((1, 2, 3, 4), "or W,S,E,N in degrees, such as"),
        ("200,2,3,4", "expected a west and an east from -180 to 180"),
        ("5,2,5,4", "expected a west and an east from -180 to 180"),
        ("nan,2,5,4", "expected a west and an east from -180 to 180"),
        ("1,4,3,2", "expected a south below the north"),
        ("1,2,3,99", "expected a south below the north"),
        ("33TUL", "did you mean `tiles='33TUL'`?"),
    ],
)
def test_texts_that_are_no_region(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        daskembed.tiles_of_region(text)
    assert said in str(caught.value)


# Of a tile only its chips there


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, chips: Path) -> dict[str, Path]:
    """The tile's first 2 x 2 chips as files, as a raster and as a Zarr store; pixels do not matter."""
    folder = tmp_path_factory.mktemp("sources")
    side = 1024
    coords = {
        "time": np.array(["2019-04-16"], "datetime64[ns]"),
        "band": list(CLAY_V0.names),
        "y": NORTH + 5 - 5 - 10 * np.arange(side),
        "x": WEST - 5 + 5 + 10 * np.arange(side),
    }
    pixels = np.ones((1, len(CLAY_V0.names), side, side), np.float32)
    array = xr.DataArray(pixels, coords, ("time", "band", "y", "x"), name="pixels")
    (folder / "zarr").mkdir()
    array.to_dataset().rio.write_crs(32633).to_zarr(folder / "zarr" / f"{TILE}.zarr", consolidated=False)
    (folder / "raster").mkdir()
    raster = array[0].assign_attrs(long_name=list(CLAY_V0.names)).rio.write_crs(32633)
    raster.rio.to_raster(folder / "raster" / f"{TILE}_20190416.tif", tiled=True)
    return {"geotiff": chips, "zarr": folder / "zarr", "raster": folder / "raster"}


def region_of(*boxes: tuple[int, int, int, int], path: Path) -> str:
    """A file of rectangles, in metres east and south of the tile's corner."""
    shapes = [shapely.box(WEST + west, NORTH - south, WEST + east, NORTH - north) for west, north, east, south in boxes]
    gpd.GeoDataFrame(geometry=shapes, crs=32633).to_file(path)
    return str(path)


@pytest.mark.parametrize("kind", ["geotiff", "raster", "zarr"])
def test_only_chips_that_meet_the_region(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    source = str(sources[kind])
    everything = daskembed.index_tile(TILE, source)
    assert len(everything) == 4
    assert set(everything["source"]) == {kind}
    west = region_of((100, 100, 4000, 9000), path=tmp_path / "west.gpkg")
    corners = region_of((100, 100, 200, 200), (9000, 9000, 9100, 9100), path=tmp_path / "corners.gpkg")
    for where, rows in ((west, [0, 2]), (corners, [0, 3])):
        found = daskembed.index_tile(TILE, source, region=where)
        assert list(found["source_url"]) == list(everything["source_url"].iloc[rows])
        assert list(found["chip"]) == list(everything["chip"].iloc[rows])
    away = region_of((50_000, 50_000, 60_000, 60_000), path=tmp_path / "away.gpkg")
    with pytest.raises(TileError) as caught:
        daskembed.index_tile(TILE, source, region=away)
    assert str(caught.value) == "no chips of tile 33TUL meet the region: all 4 lie outside; check `region`"


def test_chips_across_180_degrees() -> None:
    """Of three in a row, one on each side and one on both."""
    transform = pyproj.Transformer.from_crs(4326, 32760, always_xy=True).transform
    x, y = transform(180, -16.5)
    bounds = np.array([[x + east, y, x + east + 5120, y + 5120] for east in (-8000, -2560, 3000)])
    _, _, footprints = to_lonlat(32760, bounds)

    def near(degrees: str) -> list[bool]:
        found: list[bool] = chips_within("60KYG", read_region(degrees), footprints).tolist()
        return found

    assert near("179.99,-17,-179.99,-16") == [False, True, False]
    assert near("179.9,-17,180,-16") == [True, True, False]
    assert near("-180,-17,-179.9,-16") == [False, True, True]
    assert near("179.9,-17,-179.9,-16") == [True, True, True]


def test_signatures_are_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        read_region("https://127.0.0.1:9/a.gpkg?sig=secret")
    assert "secret" not in str(caught.value)
    assert "https://127.0.0.1:9/a.gpkg cannot be read" in str(caught.value)


def test_chips_of_unknown_place_are_reported(chips: Path, tmp_path: Path) -> None:
    shutil.copytree(chips, tmp_path / "chips")
    first = sorted((tmp_path / "chips").rglob("*.tif"))[0]
    first.write_bytes(b"no image")
    corner = region_of((9000, 9000, 9100, 9100), path=tmp_path / "corner.gpkg")
    found = daskembed.index_tile(TILE, str(tmp_path / "chips"), region=corner)
    assert list(found["quarantined"].notna()) == [True, False]


def test_a_region_is_part_of_what_a_file_is_made_with(sources: dict[str, Path], tmp_path: Path) -> None:
    given = {"source": str(sources["zarr"]), "output": str(tmp_path), "checkpoint": "untrained:tiny"}

    def identity(**more: Any) -> dict[str, Any]:
        found: dict[str, Any] = resolve(Options.of(given | more, RunOptions))("fp32").identity
        return found

    assert "region" not in identity()
    some = identity(region="12.4,45.9,12.6,46.0")
    assert some["region"].startswith("12.4,45.9,12.6,46 ")
    assert some == identity(region="12.40,45.9,12.6,46")
    assert some != identity(region="12.4,45.9,12.6,46.000001")
    area = read_region("12.4,45.9,12.6,46.0")
    place = Storage(str(tmp_path))
    assert Job(place, place, Reading(region=area)).settings["region"] == some["region"]
    assert "region" not in Job(place, place, READING).settings


@pytest.mark.parametrize("given", [{}, {"tiles": [TILE], "region": "1,2,3,4"}])
@pytest.mark.parametrize("function", [daskembed.run, daskembed.plan, daskembed.write_cubes])
def test_one_of_tiles_and_region(function: Any, given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of `tiles` and `region`: give one of them"):
        function(**given, source=str(tmp_path), output=str(tmp_path / "out"))


def test_a_cube_of_a_region_and_of_some_dates(sources: dict[str, Path], tmp_path: Path) -> None:
    daskembed.testing.write_chips(tmp_path / "chips", rows=1, cols=2, date="2019-04-16")
    daskembed.testing.write_chips(tmp_path / "chips", rows=1, cols=2, date="2020-04-16")
    given: dict[str, Any] = {"source": str(tmp_path / "chips"), "output": str(tmp_path / "cubes")}
    where = region_of((9000, 100, 9100, 200), path=tmp_path / "east.gpkg")
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        result = daskembed.write_cubes(region=where, dates="2020-01-01/2020-12-31", cluster=client, **given)
    assert (result.exit_status, result.chips) == (0, 1)
    cube = xr.open_zarr(tmp_path / "cubes" / f"{TILE}.zarr")
    assert (str(cube.time.values[0])[:10], cube.sizes["time"], cube.sizes["x"]) == ("2020-04-16", 1, 512)
    assert float(cube.x[0]) == WEST + 5120


@pytest.mark.parametrize(("kind", "count"), [("geotiff", 4), ("zarr", 2)])
def test_a_plan_of_a_region(kind: str, count: int, sources: dict[str, Path], tmp_path: Path) -> None:
    """Files tell in their headers where they are, which a plan does not read: it says so."""
    west = region_of((100, 100, 4000, 9000), path=tmp_path / "west.gpkg")
    given: dict[str, Any] = {"source": str(sources[kind]), "output": str(tmp_path / "out"), "device": "cpu"}
    made = daskembed.plan(region=west, checkpoint="untrained:tiny", **given)
    assert (made.to_do, made.chips) == ((TILE,), count)
    assert any("all are planned for" in note for note in made.notes) == (kind == "geotiff")


# The command


def test_the_command_prints_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tiles", "--region", "11.3,47.9,11.9,48.3"]) == 0
    assert capsys.readouterr().out == "32UPU\n32UQU\n"
    # A west that begins with a minus is no flag.
    assert main(["tiles", "--region", "-10,35,-9.9,35.1"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "tiles.txt").write_text(printed)
    assert daskembed.geo.mgrs.read_tiles(str(tmp_path / "tiles.txt")) == tuple(printed.split())
    assert main(["tiles", "--region", "0,85,1,86"]) == 2
    assert capsys.readouterr().err == (
        "daskembed: no tile: the --region lies beyond 84 N, where UTM and with it MGRS tiles end\n"
    )


def test_whoever_reads_the_ids_may_have_enough() -> None:
    line = f"{sys.executable} -m daskembed tiles --region -60,-10,-50,0 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=120)
    assert (done.returncode, len(done.stdout.split()), done.stderr) == (0, 1, "")


@pytest.mark.parametrize("command", ["run", "plan", "cube"])
def test_flags_of_the_region(capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path) -> None:
    given = [command, "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*given, "--tiles", TILE, "--region", "1,2,3,4"])
    assert "argument --region: not allowed with argument --tiles" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(given)
    assert "one of the arguments --tiles --region is required" in capsys.readouterr().err
    assert main([*given, "--region", "33TUL"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean --tiles 33TUL?\n")
