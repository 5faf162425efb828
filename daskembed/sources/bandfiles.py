"""Files of one band each, told by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from daskembed.errors import ChipError
from daskembed.sources.pixel_rules import CLASSES
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Entry

_BAND_FILE = re.compile(
    r"(?:(?P<scene>T?(?P<tile>\d\d[A-Z]{3})(?:_\d{8}(?:T\d{6})?)?|\d{8}(?:T\d{6})?)_)?(?P<band>.+?)(?:_(?P<metres>\d+)m)?",
    re.IGNORECASE,
)

_METRES = re.compile(r"R\d+m", re.IGNORECASE)


@dataclass(frozen=True)
class BandFile:
    """A file of one band, by its name: ``B02.tif``, ``blue.tif``, ``T33TUL_20190416T100031_B02_10m.jp2``."""

    entry: Entry
    band: str
    """Name of the sensor's band, or of the classification."""
    scene: str
    """What the name says before the band: ``T33TUL_20190416T100031``; empty if nothing."""
    tile: str | None
    """In capitals, where it says one."""
    metres: int
    """Of a pixel, where it says so; else 0."""

    @property
    def folder(self) -> str:
        """Of its scene: ESA puts bands into a folder for each size of pixels."""
        above = PurePosixPath(self.entry.path).parent
        path = above.parent if _METRES.fullmatch(above.name) else above
        return "" if path == PurePosixPath(".") else path.as_posix()


def band_file(entry: Entry, reading: Reading) -> BandFile | None:
    """A file by its name, if that tells one of the sensor's bands."""
    bands = reading.sensor.bands
    names = {name.lower(): band.name for band in bands for name in (band.name, *band.aliases)} | {CLASSES: CLASSES}
    found = _BAND_FILE.fullmatch(PurePosixPath(entry.path).stem)
    if found is None or (band := names.get(found["band"].lower())) is None:
        return None
    if found["scene"] and len(bands) == 1:
        return None  # the whole raster
    tile = found["tile"]
    return BandFile(entry, band, found["scene"] or "", tile and tile.upper(), int(found["metres"] or 0))


def by_scene(folder: str, files: Sequence[BandFile]) -> dict[str, list[BandFile]]:
    """The scenes of a folder by their paths: one, or those that the files' names tell apart."""
    named = sorted({file.scene for file in files if file.scene})
    if len(named) <= 1 and folder:
        return {folder: list(files)}
    groups: dict[str, list[BandFile]] = {}
    for file in files:
        path = "/".join(filter(None, (folder, file.scene)))
        groups.setdefault(path, []).append(file)
    return groups


def finest_of(group: Sequence[BandFile], band: str) -> BandFile:
    """The file of a band, of several the one whose name says the smallest pixels."""
    first, *others = sorted((file for file in group if file.band == band), key=lambda file: file.metres)
    if others and first.metres in (0, others[0].metres):
        files = ", ".join(file.entry.path for file in (first, *others))
        raise ChipError(f"holds several files of one band: {files}")
    return first
