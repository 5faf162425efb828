"""Sensors: the package's table, and files of the user's own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from daskembed.errors import InputError
from daskembed.sensors.bands import Band, Sensor
from daskembed.sensors.table import get_sensor, known_sensors

OWN: dict[str, Any] = {
    "name": "my-drone",
    "gsd": 0.6,
    "bands": [
        {"name": "green", "mean": 100, "std": 40.5, "wavelength": 0.56},
        {"name": "red", "mean": 110.0, "std": 45.0, "wavelength": 0.65, "aliases": ["R", "B04"]},
    ],
}


def refusal(path: Path, described: Any) -> str:
    path.write_text(described if isinstance(described, str) else yaml.safe_dump(described))
    with pytest.raises(InputError) as error:
        get_sensor(str(path))
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def test_the_table():
    assert {name: (sensor.gsd, len(sensor.bands)) for name, sensor in known_sensors().items()} == {
        "sentinel-2-l2a": (10, 10),
        "planetscope-sr": (5, 8),
        "landsat-c2l1": (30, 6),
        "landsat-c2l2-sr": (30, 6),
        "naip": (1, 4),
        "linz": (0.5, 3),
        "sentinel-1-rtc": (10, 2),
        "modis": (500, 7),
        "satellogic-MSI-L1D": (1, 4),
    }
    assert [name for name, sensor in known_sensors().items() if sensor.decibels] == ["sentinel-1-rtc"]
    assert all(sensor.name == name for name, sensor in known_sensors().items())


def test_sentinel_2():
    bands = get_sensor("sentinel-2-l2a").bands
    names = "blue green red rededge1 rededge2 rededge3 nir nir08 swir16 swir22"
    assert " ".join(band.name for band in bands) == names
    aliases = "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12"
    assert " ".join(*zip(*(band.aliases for band in bands), strict=True)) == aliases
    assert bands[8] == Band("swir16", 2388.0, 1470.0, ("B11",), 1.61)


def test_sentinel_1():
    bands = get_sensor("sentinel-1-rtc").bands
    assert bands == (Band("vv", -12.113, 8.314, (), 3.5), Band("vh", -18.673, 8.017, (), 4.0))


@pytest.mark.real
def test_numbers_of_the_table_are_the_published_ones(shared):
    published = json.loads((shared / "spec" / "clay-v1.5-sensors.json").read_text())
    assert published.keys() == known_sensors().keys()
    for name, sensor in known_sensors().items():
        expected = [(b["name"], b["mean"], b["std"], b["wavelength_um"]) for b in published[name]["bands"]]
        assert [(band.name, band.mean, band.std, band.wavelength) for band in sensor.bands] == expected
        assert sensor.gsd == published[name]["gsd_m"]


def test_unknown_sensor():
    with pytest.raises(InputError) as error:
        get_sensor("sentinel-2")
    assert str(error.value) == (
        "unknown sensor 'sentinel-2': choose one of sentinel-2-l2a, planetscope-sr, landsat-c2l1, landsat-c2l2-sr, "
        "naip, linz, sentinel-1-rtc, modis, satellogic-MSI-L1D, or give the path of a .yaml file that describes yours"
    )


@pytest.mark.parametrize("suffix", ["yaml", "yml", "YAML"])
def test_sensor_of_a_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text(yaml.safe_dump(OWN))
    bands = (Band("green", 100.0, 40.5, (), 0.56), Band("red", 110.0, 45.0, ("R", "B04"), 0.65))
    assert get_sensor(str(path)) == Sensor("my-drone", 0.6, bands)
    path.write_text(yaml.safe_dump(OWN | {"decibels": True}))
    assert get_sensor(str(path)) == Sensor("my-drone", 0.6, bands, decibels=True)


def test_sensor_of_a_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(OWN))
    assert get_sensor("~/a.yaml").name == "my-drone"


@pytest.mark.parametrize(
    ("wavelength", "such_as"),
    [(493, "0.493"), (1610, "1.61"), (21, "0.493"), (0, "0.493"), (-0.5, "0.493"), (4.93e-7, "0.493")],
)
def test_wavelength_in_another_unit(tmp_path, wavelength, such_as):
    own = copy.deepcopy(OWN)
    own["bands"][0] |= {"name": "blue", "wavelength": wavelength}
    expected = f"FILE: wavelength {wavelength:g} of band blue: expected micrometres, such as {such_as}"
    assert refusal(tmp_path / "a.yaml", own) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gsd": 0}, "FILE: gsd is 0: expected more than 0 metres"),
        ({"gsd": "10 m"}, "FILE: gsd is '10 m': expected a number"),
        ({"gsd": True}, "FILE: gsd is True: expected a number"),
        ({"gsd": float("nan")}, "FILE: gsd is nan: expected a number"),
        ({"name": 7}, "FILE: name is 7: expected text; put it in quotes"),
        ({"name": " "}, "FILE: name is ' ': expected text; put it in quotes"),
        ({"bands": []}, "FILE has no bands: expected a list of them under bands"),
        ({"bands": {"red": 1}}, "FILE has no bands: expected a list of them under bands"),
        ({"bands": ["red"]}, "FILE: band 1 is 'red': expected the keys mean, name, std, wavelength"),
        ({"decibels": "yes"}, "FILE: decibels is 'yes': expected true or false"),
        ({"resolution": 3}, "FILE has 'resolution': expected no keys but bands, decibels, gsd, name, numbers, range"),
    ],
)
def test_bad_sensor(tmp_path, change, message):
    assert refusal(tmp_path / "a.yaml", OWN | change) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": 0}, "FILE: band red: std is 0: expected more than 0"),
        ({"std": -1.5}, "FILE: band red: std is -1.5: expected more than 0"),
        ({"mean": "high"}, "FILE: band red: mean is 'high': expected a number"),
        ({"mean": None}, "FILE: band red: mean is None: expected a number"),
        ({"wavelength": float("inf")}, "FILE: band red: wavelength is inf: expected a number"),
        ({"aliases": "R"}, "FILE: band red: aliases is 'R': expected a list of names"),
        ({"aliases": [4]}, "FILE: band red: an alias is 4: expected text; put it in quotes"),
        (
            {"alias": ["R"]},
            "FILE: band 2 has 'alias': expected no keys but aliases, mean, name, numbers, range, std, wavelength",
        ),
        ({"name": "Green"}, "FILE: green names two bands, green and Green: expected one"),
        ({"aliases": ["GREEN"]}, "FILE: green names two bands, green and red: expected one"),
    ],
)
def test_bad_band(tmp_path, change, message):
    own = copy.deepcopy(OWN)
    own["bands"][1] |= change
    assert refusal(tmp_path / "a.yaml", own) == message


def test_missing_keys(tmp_path):
    own = copy.deepcopy(OWN)
    del own["bands"][1]["std"], own["bands"][1]["mean"]
    expected = "FILE: band 2 has no mean, std: expected the keys mean, name, std, wavelength"
    assert refusal(tmp_path / "a.yaml", own) == expected
    del own["gsd"]
    assert refusal(tmp_path / "a.yaml", own) == "FILE has no gsd: expected the keys bands, gsd, name"


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "sensor"])
def test_file_of_something_else(tmp_path, text):
    assert refusal(tmp_path / "a.yaml", text).endswith("expected the keys bands, gsd, name")


@pytest.mark.parametrize("text", ["a: [1", "a: !!python/object:os.system {}"])
def test_file_that_is_no_yaml(tmp_path, text):
    assert refusal(tmp_path / "a.yaml", text).startswith("the sensor FILE is no YAML: ")


def test_binary_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="is no YAML"):
        get_sensor(str(tmp_path / "a.yaml"))


def test_missing_file(tmp_path):
    with pytest.raises(InputError) as error:
        get_sensor(str(tmp_path / "a.yaml"))
    assert str(error.value) == f"cannot read the sensor {tmp_path}/a.yaml: No such file or directory"
