"""Roles: which images of a catalogue, and which of their assets, hold the bands of a sensor."""

from __future__ import annotations

from dataclasses import dataclass

from daskembed.errors import InputError
from daskembed.sensors.bands import KINDS, Band, Numbers, Sensor
from daskembed.sources.stac.catalogue import Catalogue, Images, packaged
from daskembed.sources.stac.items import Asset, Item

CLASSES = "scl"
"""As Sentinel-2's scene classification is called beside the bands."""


@dataclass(frozen=True)
class Part:
    """The bands of a sensor that come from one collection."""

    images: Images
    bands: tuple[Band, ...]

    @property
    def role(self) -> str:
        """``optical``, ``radar`` or ``height``."""
        return self.images.role

    def assets_of(self, item: Item) -> dict[str, tuple[str, Asset]]:
        """Band, by the sensor's name, or `CLASSES` -> key and file of the asset that holds it, of those there are."""
        wanted = {band.name: keys_of(self.images, band) for band in self.bands}
        if self.images.classes:
            wanted[CLASSES] = self.images.classes
        found = {name: next((key for key in keys if key in item.assets), None) for name, keys in wanted.items()}
        return {name: (key, item.assets[key]) for name, key in found.items() if key is not None}

    def lacking(self, item: Item) -> list[str]:
        """The bands that an item does not have."""
        there = self.assets_of(item)
        return [band.name for band in self.bands if band.name not in there]


def keys_of(images: Images, band: Band) -> tuple[str, ...]:
    """Keys of the assets that may hold a band; none if these images have no such band."""
    names = (band.name, *band.aliases)
    return next((images.bands[name.casefold()] for name in names if name.casefold() in images.bands), ())


def parts_of(sensor: Sensor, catalogue: Catalogue) -> tuple[Part, ...]:
    """The collections whose images hold a sensor's bands, one of each role.

    Raises
    ------
    InputError
        If the catalogue lacks some band; the message names catalogues of the package that have all.
    """
    parts = _find(sensor, catalogue)
    there = {band for part in parts for band in part.bands}
    if missing := [band.name for band in sensor.bands if band not in there]:
        able = [
            name
            for name, other in packaged().items()
            if name != catalogue.name and sum(len(part.bands) for part in _find(sensor, other)) == len(sensor.bands)
        ]
        raise InputError(
            f"{catalogue.name} has no images with the {'band' if len(missing) == 1 else 'bands'} "
            f"{', '.join(missing)} of {sensor.name}: "
            + (f"`source` {' or '.join(able)} has all" if able else "no catalogue of the package has all")
            + "; a .yaml file like those of the package says where others have them"
        )
    return parts


def _find(sensor: Sensor, catalogue: Catalogue) -> tuple[Part, ...]:
    found: dict[str, Part] = {}
    for images in catalogue.images:
        bands = tuple(band for band in sensor.bands if _fits(images, sensor, band) and keys_of(images, band))
        # Those of one role are of one collection: its grid, its times, its numbers.
        if len(bands) > len(found[images.role].bands if images.role in found else ()):
            found[images.role] = Part(images, bands)
    return tuple(found.values())


def _fits(images: Images, sensor: Sensor, band: Band) -> bool:
    if not images.sensors and images.numbers is None:
        return True
    numbers = sensor.numbers_of(band)
    return sensor.name in images.sensors or (
        images.numbers is not None and _kind(numbers) == _kind(KINDS[images.numbers])
    )


def _kind(numbers: Numbers) -> tuple[bool | None, str | None, int]:
    # The range is the sensor's own.
    return numbers.stored, numbers.zero, numbers.added
