import json
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest

from daskembed.errors import InputError
from daskembed.sources.origin import name_of, open_source
from daskembed.sources.stac.catalogue import Catalogue, find_catalogue, packaged

MINIMAL = """
url: https://stac.example/v1
images:
  - role: optical
    collection: s2
    numbers: sentinel-2
    bands: {B02: blue}
"""


def described(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def items_file(path: Path, *collections: str) -> str:
    features = [
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"item-{number}",
            "collection": collection,
            "bbox": [15, 45, 16, 46],
            "geometry": None,
            "properties": {"datetime": "2024-05-01T10:00:00Z"},
            "links": [],
            "assets": {},
        }
        for number, collection in enumerate(collections)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def test_the_package_knows_three_catalogues():
    assert list(packaged()) == ["earth-search", "planetary-computer", "cdse"]
    for name, catalogue in packaged().items():
        assert find_catalogue(name) is catalogue
        assert catalogue.name == name
        assert not catalogue.is_file
        assert catalogue.files


def test_earth_search_is_read_in_the_collection_that_is_all_of_one_kind():
    optical = [images for images in packaged()["earth-search"].images if images.role == "optical"]
    assert optical[0].collection == "sentinel-2-c1-l2a"
    assert optical[0].bands["b8a"] == ("nir08",)
    assert optical[0].classes == ("scl",)


def test_pages_are_as_large_as_servers_give_them():
    assert packaged()["earth-search"].page_size == 100
    assert packaged()["planetary-computer"].page_size <= 1000


@pytest.mark.parametrize(
    ("source", "name", "href", "access", "offset"),
    [
        (
            "planetary-computer",
            "sentinel-2",
            "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/47/X/ML/B02.tif",
            {"sign": "planetary-computer"},
            "in",
        ),
        (
            "planetary-computer",
            "radar",
            "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/GRD/vv.tif",
            {"sign": "planetary-computer"},
            None,
        ),
        (
            "earth-search",
            "collection 1",
            "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/13/T/DE/B02.tif",
            {"region": "us-west-2", "anonymous": "true"},
            "in",
        ),
        (
            "earth-search",
            "cogs",
            "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/32/T/PS/B02.tif",
            {"region": "us-west-2", "anonymous": "true"},
            "out",
        ),
        (
            "earth-search",
            "ESA's",
            "s3://sentinel-s2-l2a/tiles/32/T/PS/2023/6/2/0/B02.jp2",
            {"region": "eu-central-1", "requester_pays": "true"},
            "in",
        ),
        (
            "cdse",
            "ESA's",
            "s3://eodata/Sentinel-2/MSI/L2A/2026/05/27/B02_10m.jp2",
            {"endpoint": "https://eodata.dataspace.copernicus.eu", "region": "default"},
            "in",
        ),
        ("cdse", "unknown", "https://elsewhere.example/B02.tif", {}, None),
    ],
)
def test_what_is_known_of_files_by_where_they_lie(source, name, href, access, offset):
    known = packaged()[source].files_at(href)
    assert (dict(known.access), known.offset) == (access, offset)


def test_the_longest_beginning_of_a_url_counts(tmp_path):
    text = MINIMAL + "files:\n  - {at: 's3://b/', offset: in}\n  - {at: 's3://b/corrected/', offset: out}\n"
    catalogue = find_catalogue(described(tmp_path, text))
    assert catalogue is not None
    assert [catalogue.files_at(href).offset for href in ("s3://b/x.tif", "s3://b/corrected/x.tif", "s3://c/x.tif")] == [
        "in",
        "out",
        None,
    ]


def test_a_catalogue_of_ones_own(tmp_path):
    text = """
    url: https://stac.example/v1/
    page_size: 20
    images:
      - role: optical
        collection: s2
        numbers: sentinel-2
        classes: [SCL, scl]
        only: {platform: [sentinel-2a, sentinel-2b]}
        bands: {B02: [B02, blue], b03: B03}
      - {role: radar, collection: rtc, sensors: sentinel-1-rtc, bands: {vv: VV}}
    files:
      - at: [s3://mine/, "https://files.example/"]
        offset: out
        unclear: 2022-01-25/2022-02-01
        access: {endpoint: "https://minio.example", region: here}
    """
    catalogue = find_catalogue(described(tmp_path, text))
    assert catalogue is not None
    assert (catalogue.name, catalogue.url, catalogue.page_size) == ("mine", "https://stac.example/v1", 20)
    optical, radar = catalogue.images
    assert optical.bands == {"b02": ("B02", "blue"), "b03": ("B03",)}
    assert (optical.classes, optical.only) == (("SCL", "scl"), {"platform": ("sentinel-2a", "sentinel-2b")})
    assert (radar.role, radar.sensors, radar.numbers) == ("radar", ("sentinel-1-rtc",), None)
    known = catalogue.files_at("https://files.example/x.tif")
    assert known.access == {"endpoint": "https://minio.example", "region": "here"}
    assert known.unclear == (date(2022, 1, 25), date(2022, 2, 1))


def test_a_description_may_be_of_a_file_beside_it(tmp_path):
    items_file(tmp_path / "items.json", "any-name")
    path = described(tmp_path, MINIMAL.replace("https://stac.example/v1", "items.json"))
    catalogue = find_catalogue(path)
    assert catalogue is not None
    assert catalogue.is_file
    assert catalogue.url == str(tmp_path / "items.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"mine.yaml is None: expected the keys images, url"),
        ("url: https://h.example", r"mine.yaml has no images: expected the keys images, url"),
        (MINIMAL + "pages: 3", r"mine.yaml has 'pages': expected no keys but files, images, page_size, url"),
        (MINIMAL.replace("optical", "thermal"), r"images 1: role is 'thermal': expected one of optical, radar, height"),
        (MINIMAL.replace("sentinel-2", "dn"), r"images 1: numbers is 'dn': expected one of stored, values, sentinel-2"),
        (MINIMAL.replace("{B02: blue}", "{}"), r"images 1: bands is empty: expected a name and its asset for each"),
        (MINIMAL.replace("{B02: blue}", "[B02]"), r"images 1: bands is \['B02'\]: expected keys, each with a text"),
        (MINIMAL.replace("{B02: blue}", "{B02: 2}"), r"images 1: bands: B02 is 2: expected text; put it in quotes"),
        (MINIMAL + "page_size: 0", r"page_size is 0: expected a number of items from 1 to 10000"),
        (MINIMAL + "files: [{at: 's3://b/', offset: on}]", r"files 1: offset is True: expected in or out"),
        (MINIMAL + "files: [{at: 's3://b/', unclear: 2022}]", r"files 1: unclear is 2022: expected two days, such as"),
        (
            MINIMAL + "files: [{at: 's3://b/', access: {sign: me}}]",
            r"files 1: access has sign: me: expected planetary-",
        ),
        (
            MINIMAL + "files: [{at: 's3://b/', access: {anonymous: true}}]",
            r"access: anonymous is True: expected text; put",
        ),
        (MINIMAL + "files: [{offset: in}]", r"files 1 has no at: expected the keys at"),
        (
            MINIMAL.replace("https://stac.example/v1", "data/scenes"),
            r"url is 'data/scenes': expected https://HOST/PATH",
        ),
        (
            MINIMAL.replace("https://", "https://me:secret@"),
            r"https://stac.example/v1: the URL of a catalogue must not",
        ),
        (MINIMAL.replace("/v1", "/v1?token=abc"), r"https://stac.example/v1: the URL of a catalogue must not hold"),
        ("{", r"the catalogue .*mine.yaml is no YAML"),
    ],
)
def test_what_is_wrong_with_a_description_is_told(tmp_path, text, told):
    with pytest.raises(InputError, match=told) as caught:
        find_catalogue(described(tmp_path, text))
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_description_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the catalogue .*none.yaml: No such file"):
        find_catalogue(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("source", ["s3://bucket/chips", "data/chips", "/data/chips", "chips", "az://c/earth-search"])
def test_a_store_is_no_catalogue(source):
    assert find_catalogue(source) is None


def test_a_mistyped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no folder and no catalogue 'earth-serch': .*; did you mean earth-search\?"):
        find_catalogue("earth-serch")
    (tmp_path / "earth-serch").mkdir()
    assert find_catalogue("earth-serch") is None


def test_a_file_of_items(tmp_path):
    source = items_file(tmp_path / "items.json", "sentinel-2-l2a", "sentinel-1-rtc")
    catalogue = find_catalogue(source)
    assert catalogue is not None
    assert catalogue.is_file
    assert catalogue.url == source
    assert set(catalogue.collections) == {"sentinel-2-l2a", "sentinel-1-rtc"}
    # Whoever it is of: its assets have the names of one of them.
    optical = next(images for images in catalogue.images if images.role == "optical")
    assert optical.bands["b02"] == ("blue", "B02", "B02_10m")
    assert optical.classes == ("scl", "SCL", "SCL_20m")
    assert catalogue.files_at("https://sentinel2l2a01.blob.core.windows.net/x").access == {"sign": "planetary-computer"}
    catalogue.check_exists()
    Path(source).unlink()
    with pytest.raises(InputError, match=r"no file .*items.json"):
        catalogue.check_exists()


def test_of_both_sentinel_2_collections_a_file_has_the_better_one_first(tmp_path):
    catalogue = find_catalogue(items_file(tmp_path / "items.json", "sentinel-2-l2a", "sentinel-2-c1-l2a"))
    assert isinstance(catalogue, Catalogue)
    assert catalogue.collections == ("sentinel-2-c1-l2a", "sentinel-2-l2a")


def test_a_file_of_items_that_nobody_knows(tmp_path):
    with pytest.raises(
        InputError, match=r"has no collection that is known: found planet, expected one of cop-dem-.*yaml"
    ):
        find_catalogue(items_file(tmp_path / "items.json", "planet"))


def test_a_file_that_is_none_of_items(tmp_path):
    path = tmp_path / "items.json"
    for text, told in (("{", "is no JSON"), ("[1]", "is no file of STAC items"), ('{"type": "x"}', "is no file of")):
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            find_catalogue(str(path))
    with pytest.raises(InputError, match=r"no file .*other.json: expected one of STAC items"):
        find_catalogue(str(tmp_path / "other.json"))


def test_a_folder_may_have_the_name_of_a_file_of_items(tmp_path):
    (tmp_path / "chips.parquet").mkdir()
    assert find_catalogue(str(tmp_path / "chips.parquet")) is None


def test_the_api_of_a_known_catalogue_is_that_catalogue():
    source = "stac+https://planetarycomputer.microsoft.com/api/stac/v1/"
    catalogue, known = find_catalogue(source), packaged()["planetary-computer"]
    assert catalogue is not None
    assert (catalogue.name, catalogue.url) == (source.rstrip("/"), known.url)
    assert (catalogue.images, catalogue.files) == (known.images, known.files)


def test_the_url_of_a_catalogue_has_no_secrets():
    for source in ("stac+https://me:secret@stac.example/v1", "stac+https://stac.example/v1?subscription-key=secret"):
        with pytest.raises(InputError, match="must not hold a user, password, signature or token") as caught:
            find_catalogue(source)
        assert "secret" not in str(caught.value)


def test_a_described_catalogue_is_another_one_when_what_it_says_of_pixels_changes(tmp_path):
    told = files("daskembed.sources.stac").joinpath("catalogues", "earth-search.yaml").read_text()
    path = tmp_path / "earth-search.yaml"

    def name(text):
        path.write_text(text)
        return name_of(open_source(str(path)))

    assert name_of(open_source("earth-search")) == "earth-search" == name(told)
    first = name(told.replace("B11: swir16", "B11: swir22"))
    assert first != name(told.replace("B11: swir16", "B11: nir09")) != "earth-search"
    assert name(told.replace("offset: in", "offset: out")) != "earth-search"
    # How files are read, and how many items a page has, changes no pixel.
    assert name(told.replace("B11: swir16", "B11: swir22").replace("page_size: 100", "page_size: 50")) == first
    assert name(told.replace("B11: swir16", "B11: swir22").replace("us-west-2", "us-west-1")) != "earth-search"
