"""Sensors by name, from the package's table, or from a file of the user's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from daskembed.documents import parse_yaml, read_yaml
from daskembed.errors import InputError
from daskembed.sensors.bands import KINDS, UNSAID, Band, Numbers, Sensor

MICROMETRES = (0.1, 20.0)
"""Between these a wavelength is taken to be in micrometres; 493 is one in nanometres, and would change every weight."""
_NUMBERS_KEYS = {"numbers", "range"}
_SENSOR_KEYS = {"name", "gsd", "bands", "decibels", *_NUMBERS_KEYS}
_BAND_KEYS = {"name", "mean", "std", "wavelength", "aliases", *_NUMBERS_KEYS}


@functools.cache
def known_sensors() -> Mapping[str, Sensor]:
    """The sensors of the package's table, by name."""
    table = parse_yaml(files("daskembed.sensors").joinpath("sensors.yaml").read_text())
    return {name: _parse({"name": name, **sensor}, f"sensors.yaml: {name}") for name, sensor in table.items()}


def get_sensor(sensor: str) -> Sensor:
    """The sensor of a name, or of a file.

    Parameters
    ----------
    sensor
        A key of `known_sensors`, or the path of a ``.yaml`` or ``.yml`` file with ``name``, ``gsd`` (metres),
        ``bands`` (in their order in the images: ``name``, ``mean``, ``std``, ``wavelength`` in micrometres and, where
        files call the band otherwise, ``aliases``) and, if the encoder is to take decibels of linear power,
        ``decibels: true``. Of all bands or of one: ``numbers``, one of `KINDS`, and ``range``, the least and the
        largest number that a pixel can have.

    Raises
    ------
    InputError
        If there is none of that name, or the file describes none.
    """
    if sensor.lower().endswith((".yaml", ".yml")):
        return _parse(read_described(sensor, "sensor"), sensor)
    if sensor not in known_sensors():
        raise InputError(
            f"unknown sensor {sensor!r}: choose one of {', '.join(known_sensors())}, or give the path of a .yaml file "
            "that describes yours"
        )
    return known_sensors()[sensor]


def read_described(path: str, what: str) -> Any:
    """The value of a YAML file of the user's own that describes a sensor or the like; raises `InputError`."""
    try:
        return read_yaml(Path(path).expanduser())
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"the {what} {path} is no YAML: {' '.join(str(error).split())[:200]}") from None


def _parse(described: Any, where: str) -> Sensor:
    check_keys(described, _SENSOR_KEYS, {"name", "gsd", "bands"}, where)
    if not isinstance(described["bands"], list) or not described["bands"]:
        raise InputError(f"{where} has no bands: expected a list of them under bands")
    decibels = described.get("decibels", False)
    if not isinstance(decibels, bool):
        raise InputError(f"{where}: decibels is {decibels!r}: expected true or false")
    numbers = _parse_numbers(described, UNSAID, where)
    bands = tuple(_parse_band(band, numbers, f"{where}: band {i}") for i, band in enumerate(described["bands"], 1))
    owners: dict[str, str] = {}
    for band in bands:
        for name in {band.name.casefold(), *map(str.casefold, band.aliases)}:
            if name in owners:
                raise InputError(f"{where}: {name} names two bands, {owners[name]} and {band.name}: expected one")
            owners[name] = band.name
    gsd = _positive(described, "gsd", where, "metres")
    return Sensor(name=check_text(described["name"], f"{where}: name"), gsd=gsd, bands=bands, decibels=decibels)


def _parse_numbers(described: Mapping[str, Any], default: Numbers, where: str) -> Numbers:
    kind, limits = described.get("numbers"), described.get("range")
    if kind is not None and not (isinstance(kind, str) and kind in KINDS):
        raise InputError(f"{where}: numbers is {kind!r:.40}: expected one of {', '.join(KINDS)}")
    numbers = default if kind is None else KINDS[kind]
    if limits is None:
        return numbers
    if not isinstance(limits, list) or len(limits) != 2:
        raise InputError(f"{where}: range is {limits!r:.40}: expected the least and the largest number")
    low, high = (_number({"range": limit}, "range", where) for limit in limits)
    if low >= high:
        raise InputError(f"{where}: range is {limits!r:.40}: expected the least number first")
    return replace(numbers, low=low, high=high)


def _parse_band(described: Any, numbers: Numbers, where: str) -> Band:
    check_keys(described, _BAND_KEYS, {"name", "mean", "std", "wavelength"}, where)
    name = check_text(described["name"], f"{where}: name")
    # From here on by its name; the number told apart those that have none.
    where = where.rpartition(" ")[0] + f" {name}"
    wavelength = _number(described, "wavelength", where)
    if not MICROMETRES[0] <= wavelength <= MICROMETRES[1]:
        nanometres = f", such as {wavelength / 1000:g}" if 100 <= wavelength <= 20_000 else ", such as 0.493"
        sensor = where.rpartition(": band ")[0]
        raise InputError(f"{sensor}: wavelength {wavelength:g} of band {name}: expected micrometres{nanometres}")
    aliases = described.get("aliases", [])
    if not isinstance(aliases, list):
        raise InputError(f"{where}: aliases is {aliases!r}: expected a list of names")
    return Band(
        name=name,
        mean=_number(described, "mean", where),
        std=_positive(described, "std", where),
        aliases=tuple(check_text(alias, f"{where}: an alias") for alias in aliases),
        wavelength=wavelength,
        numbers=_parse_numbers(described, numbers, where),
    )


def check_keys(described: Any, known: set[str], needed: set[str], where: str) -> None:
    """Raise `InputError` if a description is no mapping, lacks a key or has an unknown one."""
    if not isinstance(described, dict):
        raise InputError(f"{where} is {described!r:.40}: expected the keys {', '.join(sorted(needed))}")
    if missing := sorted(needed - described.keys()):
        raise InputError(f"{where} has no {', '.join(missing)}: expected the keys {', '.join(sorted(needed))}")
    if odd := [repr(key) for key in described if key not in known]:
        raise InputError(f"{where} has {', '.join(odd)}: expected no keys but {', '.join(sorted(known))}")


def check_text(value: Any, what: str) -> str:
    """A text that a description must have; raises `InputError` if it is none, or empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} is {value!r:.40}: expected text; put it in quotes")
    return value


def _number(described: Mapping[str, Any], key: str, where: str) -> float:
    value = described[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: {key} is {value!r:.40}: expected a number")
    return float(value)


def _positive(described: Mapping[str, Any], key: str, where: str, unit: str = "") -> float:
    value = _number(described, key, where)
    if value <= 0:
        raise InputError(f"{where}: {key} is {value:g}: expected more than 0{f' {unit}' if unit else ''}")
    return value
