import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from daskembed.errors import TileError
from daskembed.sources.stac.catalogue import packaged
from daskembed.sources.stac.items import Item, parse_item
from daskembed.sources.stac.offsets import decide

ITEM = Item(
    "sentinel-2-l2a",
    "one",
    "https://h.example/one",
    datetime(2024, 5, 1, 10, tzinfo=UTC),
    (0, 0, 1, 1),
    "",
    {},
    "33TUL",
)
PC = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/B02.tif"
COLLECTION_1 = "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/B02.tif"
COGS = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/B02.tif"
JP2 = "s3://sentinel-s2-l2a/tiles/B02.jp2"
EODATA = "s3://eodata/Sentinel-2/B02_10m.jp2"
ELSEWHERE = "https://elsewhere.example/B02.tif"


def decided(catalogue, href, baseline, asked=None, day=datetime(2024, 5, 1, tzinfo=UTC)):
    return decide(replace(ITEM, baseline=baseline, time=day), href, packaged()[catalogue], asked)


@pytest.mark.parametrize(
    ("catalogue", "href", "baseline", "taken", "why"),
    [
        ("planetary-computer", PC, "04.00", 1000, "processing baseline 04.00; in the numbers of the files there"),
        ("planetary-computer", PC, "05.10", 1000, "processing baseline 05.10; in the numbers of the files there"),
        ("planetary-computer", PC, "03.01", 0, "processing baseline 03.01, before 04.00"),
        ("earth-search", COLLECTION_1, "05.10", 1000, "processing baseline 05.10; in the numbers of the files there"),
        ("earth-search", COGS, "05.09", 0, "taken out of the files there"),
        ("earth-search", COGS, "03.01", 0, "processing baseline 03.01, before 04.00"),
        ("earth-search", COGS, None, 0, "taken out of the files there"),
        (
            "earth-search",
            COGS.replace("https://", "s3://").replace(".s3.us-west-2.amazonaws.com", ""),
            "05.09",
            0,
            "taken",
        ),
        # Of the same collection: near 180 degrees its items have ESA's own files.
        ("earth-search", JP2, "05.09", 1000, "processing baseline 05.09; in the numbers of the files there"),
        ("cdse", EODATA, "05.12", 1000, "processing baseline 05.12; in the numbers of the files there"),
        ("cdse", ELSEWHERE, "02.12", 0, "processing baseline 02.12, before 04.00"),
    ],
)
def test_where_a_file_lies_and_its_baseline_decide(catalogue, href, baseline, taken, why):
    found, told = decided(catalogue, href, baseline)
    assert found == taken
    assert told.startswith(why)


@pytest.mark.parametrize(
    ("catalogue", "href", "baseline", "told"),
    [
        ("planetary-computer", ELSEWHERE, "05.10", "it is not known of the files there"),
        ("planetary-computer", ELSEWHERE, None, "it is not known of the files there"),
        ("planetary-computer", PC, None, "the item does not tell its processing baseline: "),
        ("planetary-computer", PC, "99.99", r"does not tell its processing baseline \('99.99'\)"),
    ],
)
def test_what_nothing_tells_is_refused(catalogue, href, baseline, told):
    with pytest.raises(TileError, match=told) as caught:
        decided(catalogue, href, baseline)
    assert "`offset_applied` yes (taken out already) or no (still in) decides" in str(caught.value)
    assert href in str(caught.value)


def test_days_of_which_some_files_have_it_and_some_not():
    with pytest.raises(TileError, match="some files there of these days have it and some have not"):
        decided("earth-search", COGS, "04.00", day=datetime(2022, 1, 26, tzinfo=UTC))
    assert decided("earth-search", COGS, "03.01", day=datetime(2022, 1, 26, tzinfo=UTC))[0] == 0
    assert decided("earth-search", COGS, "04.00", day=datetime(2022, 3, 1, tzinfo=UTC))[0] == 0


@pytest.mark.parametrize("href", [PC, ELSEWHERE, COGS])
def test_who_asks_decides(href):
    assert decided("planetary-computer", href, "05.10", "yes") == (0, "`offset_applied='yes'`")
    assert decided("planetary-computer", href, "05.10", "no")[0] == 1000
    assert decided("planetary-computer", href, "02.12", "no")[0] == 0
    # An item that tells no baseline: of these days there is no other.
    assert decided("planetary-computer", href, None, "no")[0] == 1000
    assert decided("planetary-computer", href, None, "no", datetime(2021, 5, 1, tzinfo=UTC))[0] == 0


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "key", "taken"),
    [
        ("planetary-computer-s2", "B02", 1000),
        ("planetary-computer-s2-35MNM", "B02", 0),
        ("earth-search-c1-13TDE", "blue", 1000),
        # Its flag says that it is applied, its tags that there is an offset of -0.1: neither is asked.
        ("earth-search-v1-s2-32TPS", "blue", 0),
        ("cdse-s2-55WFR", "B02_10m", 1000),
    ],
)
def test_real_items(shared, name, key, taken):
    path = shared / "data" / "stac" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"needs real items of catalogues, and there are none at {path}")
    value = json.loads(path.read_text())
    catalogue = next(known for known in packaged().values() if name.startswith(known.name))
    for raw in value if isinstance(value, list) else value.get("features", [value]):
        item = parse_item(raw, catalogue)
        assert decide(item, item.assets[key].href, catalogue, None)[0] == taken
    if name == "earth-search-v1-s2-32TPS":
        assert decide(item, raw["assets"]["blue-jp2"]["href"], catalogue, None)[0] == 1000
