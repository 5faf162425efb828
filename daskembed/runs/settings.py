"""What one run does to each of its tiles, checked before anything is read."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from daskembed import config
from daskembed.cube import CHIPS_A_BLOCK
from daskembed.encoders.protocol import Encoder
from daskembed.errors import InputError
from daskembed.sensors.bands import CLAY_V0, UNSAID, Sensor
from daskembed.sources.origin import Origin, name_of
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, redact

if TYPE_CHECKING:
    from daskembed.output.lock import Lock

SOFTWARE = ("daskembed", "torch", "rasterio", "pyarrow", "zarr", "dask")
"""Packages whose versions a file tells."""
BLOCK_BYTES = 64 * 2**20
"""Most bytes of vectors in a block: levels with large vectors get smaller blocks."""


@dataclass(frozen=True)
class Settings:
    """What one run does to each of its tiles."""

    source: Origin
    output: Storage
    encoder: Encoder
    level: str
    on_nan: str
    reading: Reading
    version: str
    chips_a_block: int
    """Chips of one task."""
    formats: tuple[str, ...] = ("geoparquet",)
    """Keys of `daskembed.output.protocol.FORMATS`: a file of each a tile."""
    dtype: str = "float32"
    """Of the values in the files."""
    max_quarantined: float = 0.1
    """Share of a tile's chips that may newly be quarantined."""
    retry_quarantined: bool = False
    """Whether finished tiles with quarantined chips are made again."""
    refresh: bool = False
    """Whether a catalogue is asked again for the scenes of tiles that are begun or finished."""
    carried: bool = False
    """Whether parts come back through the client, which publishes: the workers do not see the output."""
    stac: bool = False
    """Whether each file gets a STAC item as it is published."""
    stac_root: str | None = None
    """See `daskembed.output.stac.write_stac`."""
    lock: Lock | None = None
    """Held by the run; whoever publishes sees to it that it still is."""

    def confirm(self) -> None:
        """Raise `LockLostError` if another run has the output by now."""
        if self.lock is not None:
            self.lock.confirm()

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a file beside its chips: a file made with another identity is not replaced unasked."""
        return {
            "source": name_of(self.source),
            "encoder": f"{self.encoder.name} {self.encoder.size}",
            "sensor": sensor_id(self.encoder.description.sensor),
            "window": self.encoder.description.window,
            "checkpoint": self.encoder.sha256 or self.encoder.checkpoint,
            "level": self.level,
            "precision": self.encoder.precision,
            "on_nan": self.on_nan,
            "format": ",".join(self.formats),
            "dtype": self.dtype,
            **self.reading.identity,
            "dates": self.reading.period,
            **({} if isinstance(self.source, Storage) else self.reading.scenes),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What a file's footer says of how it was made."""
        checkpoint, description = self.encoder.checkpoint, self.encoder.description
        dims = [name for name in description.levels[self.level] if name != "window"]
        labels = {name: list(description.labels[name]) for name in dims if name in description.labels}
        return {
            "encoder": self.encoder.name,
            "size": self.encoder.size,
            "sensor": self.encoder.description.sensor.name,
            "window": self.encoder.description.window,
            "checkpoint": checkpoint.rpartition("/")[2] if is_local(checkpoint) else redact(checkpoint),
            "sha256": self.encoder.sha256,
            "untrained": self.encoder.untrained,
            "level": self.level,
            "dims": dims,
            "windows": description.levels[self.level].get("window", 1),
            **({"labels": labels} if labels else {}),
            "precision": self.encoder.precision,
            "on_nan": self.on_nan,
            "format": ",".join(self.formats),
            "dtype": self.dtype,
            "software": {name: version_of(name) for name in SOFTWARE},
        }


def sensor_id(sensor: Sensor) -> str:
    """A sensor's name; with a digest of its numbers, where the name alone does not tell them."""
    from daskembed.sensors.table import known_sensors

    said = [band.numbers for band in sensor.bands]
    told = any(numbers != UNSAID for numbers in said)
    for known in (CLAY_V0, known_sensors().get(sensor.name)):
        if sensor == known and (not told or said == [band.numbers for band in known.bands]):
            return sensor.name
    text = repr(sensor) + (repr(said) if told else "")
    return f"{sensor.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def chips_a_block(encoder: Encoder, level: str) -> int:
    """Chips of one task of an encoder: ``chips-a-block`` of the configuration, or fewer where vectors are large."""
    most = config.get("chips-a-block") or CHIPS_A_BLOCK
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InputError(f"daskembed.chips-a-block of Dask's configuration is {most!r}: expected a number from 1")
    vector_bytes = 4 * math.prod(encoder.shape(level))
    return min(most, max(1, BLOCK_BYTES // vector_bytes))
