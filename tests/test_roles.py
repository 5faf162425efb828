import pytest

from daskembed.errors import InputError
from daskembed.sensors.bands import CLAY_V0
from daskembed.sensors.table import get_sensor
from daskembed.sources.stac.catalogue import find_catalogue, packaged
from daskembed.sources.stac.items import Asset, parse_item
from daskembed.sources.stac.roles import parts_of

SENTINEL_2 = ["blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22"]
LANDSAT = ["red", "green", "blue", "nir08", "swir16", "swir22"]


def summary(sensor, catalogue):
    return [
        (part.role, part.images.collection, [band.name for band in part.bands]) for part in parts_of(sensor, catalogue)
    ]


def test_clay_v0_has_its_bands_of_three_collections():
    assert summary(CLAY_V0, packaged()["planetary-computer"]) == [
        ("optical", "sentinel-2-l2a", ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]),
        ("radar", "sentinel-1-rtc", ["vh", "vv"]),
        ("height", "cop-dem-glo-30", ["dem"]),
    ]


@pytest.mark.parametrize(
    ("catalogue", "sensor", "expected"),
    [
        ("earth-search", "sentinel-2-l2a", [("optical", "sentinel-2-c1-l2a", SENTINEL_2)]),
        ("planetary-computer", "sentinel-2-l2a", [("optical", "sentinel-2-l2a", SENTINEL_2)]),
        ("cdse", "sentinel-2-l2a", [("optical", "sentinel-2-l2a", SENTINEL_2)]),
        ("planetary-computer", "sentinel-1-rtc", [("radar", "sentinel-1-rtc", ["vv", "vh"])]),
        ("earth-search", "landsat-c2l2-sr", [("optical", "landsat-c2-l2", LANDSAT)]),
        ("planetary-computer", "landsat-c2l2-sr", [("optical", "landsat-c2-l2", LANDSAT)]),
    ],
)
def test_clay_v1_5_has_what_its_sensor_names(catalogue, sensor, expected):
    assert summary(get_sensor(sensor), packaged()[catalogue]) == expected


@pytest.mark.parametrize(
    ("catalogue", "sensor", "told"),
    [
        (
            "earth-search",
            CLAY_V0,
            "earth-search has no images with the bands vh, vv of clay-v0: `source` planetary-comp",
        ),
        ("cdse", CLAY_V0, "cdse has no images with the bands vh, vv of clay-v0: `source` planetary-computer has all"),
        ("cdse", "landsat-c2l2-sr", "of landsat-c2l2-sr: `source` earth-search or planetary-computer has all"),
        # Its bands are called as those of Sentinel-2, and are others.
        ("earth-search", "landsat-c2l1", "of landsat-c2l1: no catalogue of the package has all"),
        ("planetary-computer", "naip", "has no images with the bands red, green, blue, nir of naip"),
    ],
)
def test_what_a_catalogue_lacks_is_refused_and_told_who_has_it(catalogue, sensor, told):
    with pytest.raises(InputError, match=told):
        parts_of(get_sensor(sensor) if isinstance(sensor, str) else sensor, packaged()[catalogue])


def test_a_sensor_of_ones_own_with_numbers_of_sentinel_2(tmp_path):
    path = tmp_path / "three.yaml"
    bands = ", ".join(f"{{name: {name}, mean: 1, std: 1, wavelength: 0.5}}" for name in ("B01", "B8A", "B09"))
    path.write_text(f"name: three\ngsd: 10\nnumbers: sentinel-2\nbands: [{bands}]")
    (part,) = parts_of(get_sensor(str(path)), packaged()["cdse"])
    assert [part.images.bands[name] for name in ("b01", "b8a", "b09")] == [("B01_60m",), ("B8A_20m",), ("B09_60m",)]


def test_bands_of_one_role_are_of_one_collection(tmp_path):
    path = tmp_path / "split.yaml"
    rows = "\n".join(
        f"  - {{role: optical, collection: {name}, numbers: sentinel-2, bands: {{{bands}}}}}"
        for name, bands in (
            ("few", "blue: b, green: g, red: r"),
            ("most", "rededge1: r1, rededge2: r2, rededge3: r3, nir: n, nir08: n8, swir16: s1, swir22: s2"),
        )
    )
    path.write_text(f"url: https://stac.example/v1\nimages:\n{rows}\n")
    catalogue = find_catalogue(str(path))
    assert catalogue is not None
    with pytest.raises(InputError, match=r"split.yaml has no images with the bands blue, green, red of sentinel-2-l2a"):
        parts_of(get_sensor("sentinel-2-l2a"), catalogue)


def test_the_assets_of_an_item():
    catalogue = packaged()["planetary-computer"]
    (part,) = parts_of(get_sensor("sentinel-2-l2a"), catalogue)
    raw = {
        "id": "one",
        "collection": "sentinel-2-l2a",
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2024-05-01T10:00:00Z"},
        "assets": {key: {"href": f"https://files.example/{key}.tif"} for key in ("B02", "B03", "SCL", "visual")},
    }
    item = parse_item(raw, catalogue)
    assert part.assets_of(item) == {
        "blue": ("B02", Asset("https://files.example/B02.tif")),
        "green": ("B03", Asset("https://files.example/B03.tif")),
        "scl": ("SCL", Asset("https://files.example/SCL.tif")),
    }
    assert part.lacking(item) == SENTINEL_2[2:]
