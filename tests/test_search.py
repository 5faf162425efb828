import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import boto3
import dask
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskembed.errors import InputError, StorageError
from daskembed.sources.stac.catalogue import Catalogue, Images, find_catalogue
from daskembed.sources.stac.search import find_items
from daskembed.testing.loopback import serve_catalogue

S2 = Images("optical", "sentinel-2-l2a", {"b02": ("B02",)})
WORLD = (-180.0, -90.0, 180.0, 90.0)
COUNT = 25


def feature(number, collection="sentinel-2-l2a", bbox=(12.4, 45.0, 13.8, 46.0), time=None, **told):
    west, south, east, north = bbox
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"item-{number:03}",
        "collection": collection,
        "bbox": list(bbox),
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "properties": {
            "datetime": time or f"2024-05-{number % 25 + 1:02}T10:00:00Z",
            "platform": "sentinel-2a",
            **told,
        },
        "links": [],
        "assets": {"B02": {"href": f"https://files.example/{number}/B02.tif"}},
    }


FEATURES = [
    *(feature(number) for number in range(COUNT)),
    feature(100, "sentinel-1-rtc"),
    feature(101, bbox=(20, 45, 21, 46)),
    feature(102, bbox=(179.2, -17.2, 180, -16.2)),
    feature(103, bbox=(-180, -17.2, -179.4, -16.2)),
    feature(104, time="2024-04-30T23:59:59.9Z"),
    feature(105, time="2024-05-31T23:59:59.9Z"),
    feature(106, time="2024-06-01T00:00:00Z"),
]


def items_file(folder: Path, features=FEATURES) -> Path:
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[str]:
    with serve_catalogue(items_file(tmp_path_factory.mktemp("items"))) as url:
        yield url


@pytest.fixture(params=["api", "json", "parquet"])
def catalogue(request, tmp_path) -> Catalogue:
    """The same items, listed in three ways."""
    if request.param == "api":
        return Catalogue("here", request.getfixturevalue("api"), (S2,), page_size=4)
    if request.param == "json":
        return Catalogue("here", str(items_file(tmp_path)), (S2,))
    import rustac

    rustac.write_sync(str(tmp_path / "items.parquet"), FEATURES)
    return Catalogue("here", str(tmp_path / "items.parquet"), (S2,))


def ids(items):
    return sorted(int(item.id.removeprefix("item-")) for item in items)


def test_every_page_is_read_and_only_what_was_asked_for(catalogue):
    found = find_items(catalogue, S2, (12.0, 44.0, 14.0, 47.0), date(2024, 5, 1), date(2024, 5, 31))
    assert ids(found) == [*range(COUNT), 105]
    assert {item.collection for item in found} == {"sentinel-2-l2a"}
    assert found[0].assets["B02"].href.startswith("https://files.example/")


def test_days_are_inclusive(catalogue):
    found = find_items(catalogue, S2, (12.0, 44.0, 14.0, 47.0), date(2024, 4, 30), date(2024, 5, 1))
    assert ids(found) == [0, 104]


def test_without_days_all_times_are_searched(catalogue):
    found = find_items(catalogue, S2, (19.0, 44.0, 22.0, 47.0), None, None)
    assert ids(found) == [101]


def test_a_period_without_an_end(catalogue):
    found = find_items(catalogue, S2, (12.0, 44.0, 14.0, 47.0), date(2024, 5, 30), date.max)
    assert ids(found) == [105, 106]


def test_both_sides_of_180_degrees(catalogue):
    found = find_items(catalogue, S2, (179.0, -18.0, -179.0, -16.0), date(2024, 5, 1), date(2024, 5, 31))
    assert ids(found) == [102, 103]


@pytest.mark.parametrize(("west", "east"), [(179.5, -179.5), (179.5, 180.5), (-180.5, -179.5)])
def test_an_item_that_crosses_180_degrees(west, east, tmp_path):
    path = items_file(tmp_path, [feature(1) | {"bbox": [west, -17, east, -16]}, feature(2)])
    for bounds in ((179.6, -18.0, 180.0, -16.0), (-180.0, -18.0, -179.9, -16.0), (179.0, -18.0, -179.0, -16.0)):
        assert ids(find_items(Catalogue("here", str(path), (S2,)), S2, bounds, None, None)) == [1]


def test_only_items_with_some_property(tmp_path):
    features = [feature(1), feature(2) | {"properties": feature(2)["properties"] | {"platform": "Sentinel-2B"}}]
    features.append({**feature(3), "properties": {"datetime": "2024-05-01T10:00:00Z"}})
    only = replace(S2, only={"platform": ("sentinel-2b", "sentinel-2c")})
    catalogue = Catalogue("here", str(items_file(tmp_path, features)), (only,))
    assert ids(find_items(catalogue, only, WORLD, None, None)) == [2]


def test_a_server_is_a_source(api):
    catalogue = find_catalogue(f"stac+{api}")
    assert catalogue is not None
    assert (catalogue.name, catalogue.url) == (f"stac+{api}", api)
    assert sorted(catalogue.collections) == ["sentinel-1-rtc", "sentinel-2-l2a"]


def test_a_server_with_no_known_collection(tmp_path):
    with serve_catalogue(items_file(tmp_path, [feature(1, "planet")])) as url, pytest.raises(InputError) as caught:
        find_catalogue(f"stac+{url}")
    assert f"stac+{url} has no collection that is known: found planet, expected one of cop-dem-glo-30" in str(
        caught.value
    )
    assert "a .yaml file says which assets of others hold which bands" in str(caught.value)


def test_a_server_that_is_not_there(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with dask.config.set({"daskembed.retry-timeout": 0.5}), pytest.raises(StorageError) as caught:
            find_catalogue(f"stac+{url}")
    assert str(caught.value) == (
        f"{url}: the catalogue does not answer (connection refused, asked again for 0.5 s (`retry-timeout`)); check "
        "its address, the network, and HTTPS_PROXY where there is a proxy"
    )
    # Said once, and at once.
    assert [one.getMessage() for one in caplog.records if "daskembed" in one.name] == [
        f"warning: {url} does not answer (connection refused): trying again for 0.5 s; Ctrl-C stops"
    ]


def test_a_file_of_items_in_a_bucket_and_on_the_web(s3, s3_server):
    data = json.dumps({"type": "FeatureCollection", "features": FEATURES}).encode()
    boto3.client("s3").put_object(Bucket=s3.removeprefix("s3://"), Key="of/items.json", Body=data, ACL="public-read")
    for source in (f"{s3}/of/items.json", f"{s3_server}/{s3.removeprefix('s3://')}/of/items.json"):
        catalogue = find_catalogue(source)
        assert catalogue is not None
        assert sorted(catalogue.collections) == ["sentinel-1-rtc", "sentinel-2-l2a"]
        assert len(find_items(catalogue, S2, WORLD, None, None)) == len(FEATURES) - 1
    with pytest.raises(InputError, match=r"no file s3://.*/of/none.json: expected one of STAC items"):
        find_catalogue(f"{s3}/of/none.json")


def test_a_file_that_was_changed_is_read_again(tmp_path):
    path = items_file(tmp_path)
    catalogue = Catalogue("here", str(path), (S2,))
    assert len(find_items(catalogue, S2, WORLD, None, None)) == len(FEATURES) - 1
    items_file(tmp_path, [feature(1)])
    assert ids(find_items(catalogue, S2, WORLD, None, None)) == [1]


def test_what_is_no_stac_geoparquet(tmp_path):
    path = tmp_path / "items.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"items.parquet is no STAC GeoParquet"):
        find_catalogue(str(path))
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match=r"items.parquet is no STAC GeoParquet"):
        find_catalogue(str(path))


@pytest.mark.parametrize(
    ("module", "source", "told"),
    [
        ("pystac_client", "stac+http://127.0.0.1:9/", "pystac-client, which is not installed: pip install 'daskembed"),
        ("stac_geoparquet", "items.parquet", "stac-geoparquet, which is not installed: pip install 'daskembed[stac]'"),
    ],
)
def test_what_is_not_installed_is_told(tmp_path, monkeypatch, module, source, told):
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError) as caught:
        find_catalogue(source)
    assert told in str(caught.value)
