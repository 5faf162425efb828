import json
from datetime import UTC, date, datetime

import numpy as np
import pyproj
import pytest
import shapely

from daskembed.errors import StorageError
from daskembed.geo.mgrs import TILE, tile_corner
from daskembed.sources.stac.catalogue import Catalogue, packaged
from daskembed.sources.stac.coverage import Ground
from daskembed.sources.stac.items import parse_item

PC = packaged()["planetary-computer"]


def item_of(raw_properties=None, catalogue=PC, **changes):
    raw = {
        "type": "Feature",
        "id": "S2B_MSIL2A_20240419T095549_R122_T47XML_20240419T123458",
        "collection": "sentinel-2-l2a",
        "bbox": [92.6, 80.9, 97.8, 81.9],
        "geometry": {"type": "Polygon", "coordinates": [[[92, 80], [97, 80], [97, 82], [92, 82], [92, 80]]]},
        "properties": {"datetime": "2024-04-19T09:55:49.024Z", "platform": "Sentinel-2B", **(raw_properties or {})},
        "links": [{"rel": "self", "href": "https://me:secret@stac.example/items/one?token=secret#x"}],
        "assets": {"B02": {"href": "https://me:secret@files.example/B02.tif?sig=secret", "file:size": 7}},
    }
    return parse_item({key: value for key, value in (raw | changes).items() if value is not None}, catalogue)


def test_signatures_of_links_are_dropped():
    item = item_of()
    assert item.url == "https://stac.example/items/one"
    assert item.assets["B02"].href == "https://files.example/B02.tif"
    assert item.assets["B02"].size == 7
    assert "secret" not in repr(item)


def test_an_item_without_a_link_to_itself_has_a_url():
    assert item_of(links=None).url == f"{PC.url}/collections/sentinel-2-l2a/items/{item_of().id}"
    listed = Catalogue("mine", "/data/items.json", PC.images)
    assert item_of(catalogue=listed, links=None).url == f"/data/items.json/sentinel-2-l2a/{item_of().id}"


@pytest.mark.parametrize(
    ("catalogue", "link", "href", "expected"),
    [
        (
            "https://stac.example/v1",
            "https://stac.example/a/b/item.json",
            "./B02.tif",
            "https://stac.example/a/b/B02.tif",
        ),
        (
            "https://stac.example/v1",
            "https://stac.example/a/b/item.json",
            "../c/B02.tif",
            "https://stac.example/a/c/B02.tif",
        ),
        ("https://stac.example/v1", "https://stac.example/a/item.json", "s3://bucket/B02.tif", "s3://bucket/B02.tif"),
        ("s3://bucket/here/items.json", None, "files/B02.tif", "s3://bucket/here/files/B02.tif"),
        ("s3://bucket/here/items.json", "./one/item.json", "B02.tif", "s3://bucket/here/one/B02.tif"),
        ("/data/items.json", None, "files/B02.tif", "/data/files/B02.tif"),
        ("/data/items.json", "https://stac.example/a/item.json", "/files/B02.tif", "/files/B02.tif"),
        ("/data/items.json", "https://stac.example/a/item.json", "B02.tif", "https://stac.example/a/B02.tif"),
    ],
)
def test_links_to_files(catalogue, link, href, expected):
    listed = Catalogue("mine", catalogue, PC.images)
    links = None if link is None else [{"rel": "self", "href": link}]
    assert item_of(catalogue=listed, links=links, assets={"B02": {"href": href}}).assets["B02"].href == expected


def test_a_catalogue_elsewhere_names_no_files_of_this_machine():
    for url in ("https://stac.example/v1", "s3://bucket/items.json"):
        listed = Catalogue("mine", url, PC.images)
        assert item_of(catalogue=listed, assets={"B02": {"href": "file:///etc/secret.tif"}}).assets == {}
        found = item_of(catalogue=listed, links=None, assets={"B02": {"href": "/etc/secret.tif"}}).assets["B02"]
        assert found.href.startswith(("https://stac.example/", "s3://bucket/"))


def test_assets_that_nobody_reads_are_dropped():
    keys = ("B02", "SCL", "visual", "preview", "product-metadata")
    assert set(item_of(assets={key: {"href": f"https://h.example/{key}"} for key in keys}).assets) == {"B02", "SCL"}


@pytest.mark.parametrize(
    ("told", "tile"),
    [
        ({"s2:mgrs_tile": "47XML"}, "47XML"),
        ({"s2:mgrs_tile": "T5QKB"}, "05QKB"),
        ({"grid:code": "MGRS-47XML"}, "47XML"),
        ({"grid:code": "MGRS-5QKB"}, "05QKB"),
        ({"grid:code": "WRS2-105065"}, "47XML"),
        ({}, "47XML"),
    ],
)
def test_the_tile_is_told_in_several_ways(told, tile):
    assert item_of(told).tile == tile


def test_an_image_of_no_tile_has_none():
    item = item_of({"s2:processing_baseline": "05.10", "processing:version": "003.71"}, id="LC08_L2SP_042033_20231015")
    assert (item.tile, item.baseline, item.nodata) == (None, None, None)


@pytest.mark.parametrize(
    ("told", "name", "baseline"),
    [
        ({"s2:processing_baseline": "05.10"}, "x", "05.10"),
        ({"processing:version": "05.12"}, "x", "05.12"),
        ({"s2:product_uri": "S2A_MSIL2A_20200731T080611_N0212_R078_T35MNM_20200818T062751.SAFE"}, "x", "02.12"),
        ({}, "S2C_MSIL2A_20260527T014651_N0512_R017_T55WFR_20260527T042005", "05.12"),
        ({}, "S2A_32TPS_20230602_0_L2A", None),
    ],
)
def test_the_baseline_is_told_in_several_ways(told, name, baseline):
    assert item_of({"grid:code": "MGRS-32TPS", **told}, id=name).baseline == baseline


@pytest.mark.parametrize(
    ("told", "cloud", "nodata"),
    [
        ({"eo:cloud_cover": 12, "s2:nodata_pixel_percentage": 3.5}, 12.0, 3.5),
        ({"eo:cloud_cover": 0.0, "statistics": {"nodata": 0}}, 0.0, 0.0),
        ({"eo:cloud_cover": -1, "statistics": None}, None, None),
        ({"eo:cloud_cover": "12", "s2:nodata_pixel_percentage": True}, None, None),
        ({}, None, None),
    ],
)
def test_percentages(told, cloud, nodata):
    assert (item_of(told).cloud, item_of(told).nodata) == (cloud, nodata)


def test_copies_of_an_acquisition_have_its_name_without_the_baseline():
    first, second, third = (
        item_of({"s2:datatake_id": "GS2A_20200731T080611_026673_N02.12"}),
        item_of({"eopf:datatake_id": "GS2A_20200731T080611_026673_N05.00"}),
        item_of(),
    )
    assert first.acquisition == second.acquisition == "GS2A_20200731T080611_026673"
    assert third.acquisition == "sentinel-2b_20240419T095549"


@pytest.mark.parametrize(
    ("told", "time"),
    [
        ({}, datetime(2024, 4, 19, 9, 55, 49, 24000, UTC)),
        ({"datetime": "2024-04-19T11:55:49+02:00"}, datetime(2024, 4, 19, 9, 55, 49, 0, UTC)),
        ({"datetime": "2024-04-19 09:55:49.123456789"}, datetime(2024, 4, 19, 9, 55, 49, 123456, UTC)),
        ({"datetime": None, "start_datetime": "2024-04-18T23:00:00Z"}, datetime(2024, 4, 18, 23, 0, 0, 0, UTC)),
    ],
)
def test_times_are_in_utc(told, time):
    assert item_of(told).time == time


def test_when_it_was_processed_is_comparable():
    earlier, later = (
        item_of({"s2:generation_time": text}).processed for text in ("2024-04-19T12:00:00Z", "2024-04-19T12:00:00.5Z")
    )
    assert earlier is not None
    assert later is not None
    assert earlier < later


def test_orbits():
    item = item_of({"sat:orbit_state": "Ascending", "sat:relative_orbit": 51})
    assert (item.orbit_state, item.relative_orbit) == ("ascending", 51)
    assert (item_of().orbit_state, item_of().relative_orbit) == (None, 122)


def test_places():
    assert item_of(bbox=[1, 2, 0, 3, 4, 900]).bbox == (1, 2, 3, 4)
    assert item_of(bbox=None).bbox == (92, 80, 97, 82)
    boxed = item_of(geometry=None, bbox=[170, -10, -170, 10])
    assert shapely.from_wkt(boxed.footprint).geom_type == "MultiPolygon"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"properties": {}}, "it has no 'start_datetime'"),
        ({"properties": {"datetime": "yesterday"}}, "Invalid isoformat string: 'yesterday'"),
        ({"properties": None}, "it has no 'properties'"),
        ({"geometry": None, "bbox": None}, "it has neither geometry nor bbox"),
        ({"bbox": [1, 2, 3]}, "its bbox has 3 numbers"),
        ({"assets": {"B02": {}}}, "it has no 'href'"),
        ({"geometry": {"type": "Blob"}}, "is no STAC item"),
    ],
)
def test_what_is_no_item_is_told(changes, told):
    with pytest.raises(
        StorageError, match=r"planetary-computer: the item S2B_MSIL2A_20240419T\w+ is no STAC item"
    ) as caught:
        item_of(**changes)
    assert told in str(caught.value)


@pytest.mark.parametrize("tile", ["33TUL", "47XML", "33XVM", "01KAB", "60KZF", "31NAA"])
def test_the_ground_of_a_tile(tile):
    epsg, west, north = tile_corner(tile)
    ground = Ground.of(tile)
    assert ground.epsg == epsg
    west_edge, south_edge, east_edge, north_edge = ground.bounds
    assert south_edge < north_edge
    # Its own outline in degrees covers it, on whichever side of 180 degrees it is written.
    corners = [(west, north), (west + TILE, north), (west + TILE, north - TILE), (west, north - TILE)]
    degrees = [pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y) for x, y in corners]
    assert ground.share([ground.part(shapely.Polygon(degrees).wkt)]) == pytest.approx(1, abs=1e-6)
    wrapped = [(x + 360 if x < 0 else x, y) for x, y in degrees]
    assert ground.share([ground.part(shapely.Polygon(wrapped).wkt)]) == pytest.approx(1, abs=1e-6)
    if west_edge < east_edge:
        side = np.linspace(0, TILE, 101)
        for y in (north, north - TILE):
            _, latitudes = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(west + side, side * 0 + y)
            assert south_edge < latitudes.min() <= latitudes.max() < north_edge < south_edge + 1.1
    crossing = west_edge > east_edge
    assert crossing == (max(x for x, _ in degrees) - min(x for x, _ in degrees) > 180)


def test_half_of_a_tile_and_what_is_far_away():
    ground = Ground.of("33TUL")
    west, south, east, north = ground.bounds
    half = shapely.box(west - 1, south - 1, (west + east) / 2, north + 1)
    assert ground.share([ground.part(half.wkt)]) == pytest.approx(0.5, abs=0.01)
    assert ground.share([ground.part(half.wkt)] * 2) == pytest.approx(0.5, abs=0.01)
    assert ground.share([ground.part(shapely.box(-80, 45, -79, 46).wkt)]) == 0
    assert ground.share([ground.part(shapely.box(-180, -90, 180, 90).wkt)]) == pytest.approx(1)
    assert ground.share([]) == 0


@pytest.fixture(scope="module")
def real_items(shared):
    """Real items of a catalogue, by its file's name."""
    folder = shared / "data" / "stac"
    if not folder.is_dir():
        pytest.skip(f"needs real items of catalogues, and there are none at {folder}")

    def read(name):
        value = json.loads((folder / f"{name}.json").read_text())
        listed = value if isinstance(value, list) else value.get("features", [value])
        catalogue = next(known for key, known in packaged().items() if name.startswith(key))
        return [parse_item(raw, catalogue) for raw in listed]

    return read


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        (
            "planetary-computer-s2",
            ("47XML", "05.10", 0.219774, 27.370414, "GS2B_20240419T095549_037185", "ascending", 122, date(2024, 4, 19)),
            4,
        ),
        (
            "planetary-computer-s2-35MNM",
            ("35MNM", "02.12", 0.004742, 0.013444, "GS2A_20200731T080611_026673", "descending", 78, date(2020, 7, 31)),
            13,
        ),
        (
            "earth-search-c1-13TDE",
            ("13TDE", "05.10", 81.344962, 73.465753, "GS2A_20240422T173911_046141", None, 98, date(2024, 4, 22)),
            10,
        ),
        (
            "earth-search-v1-s2-32TPS",
            ("32TPS", "05.09", 31.735489, 0.0, "GS2A_20230602T100601_041489", None, 22, date(2023, 6, 2)),
            1,
        ),
        (
            "cdse-s2-55WFR",
            ("55WFR", "05.12", 36.08, 0.0, "GS2C_20260527T014651_008996", "descending", 17, date(2026, 5, 27)),
            1,
        ),
    ],
)
def test_real_items_of_sentinel_2(real_items, name, first, count):
    items = real_items(name)
    assert len(items) == count
    item = items[0]
    assert (
        *(item.tile, item.baseline, item.cloud, item.nodata, item.acquisition),
        *(item.orbit_state, item.relative_orbit, item.time.date()),
    ) == first
    assert len(item.assets) == 13
    for item in items:
        # What they say of empty pixels is what their footprints leave out, at 82 N as at the equator.
        ground = Ground.of(item.tile)
        assert 100 * (1 - ground.share([ground.part(item.footprint)])) == pytest.approx(item.nodata, abs=0.5)


@pytest.mark.real
def test_real_items_of_radar_and_elevation(real_items):
    radar = real_items("planetary-computer-s1-rtc")
    assert [item.orbit_state for item in radar] == ["descending"] * 4
    assert [item.relative_orbit for item in radar] == [51] * 4
    assert len({item.acquisition for item in radar}) == 4
    assert all(item.tile is None and set(item.assets) == {"vv", "vh"} for item in radar)
    assert radar[0].assets["vv"].size == 840640984
    heights = real_items("planetary-computer-cop-dem")
    assert [item.bbox[0] for item in heights] == pytest.approx(
        [-180.00139, -179.00139, -178.00139, -177.00139], abs=1e-4
    )
    assert all(set(item.assets) == {"data"} for item in heights)
