"""Where embeddings go: one module a format."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd

    from daskembed.storage import Storage

SINKS = {"geoparquet": "daskembed.sinks.geoparquet"}
"""Format -> the module that implements `Sink`."""


@dataclass(frozen=True)
class Published:
    """A finished file and what is in it."""

    name: str | None
    """File name in the output folder; None if no chip could be embedded, and so there is no file."""
    size: int
    """Bytes."""
    sha256: str | None
    """Of the file."""
    chips: int
    """Rows."""
    quarantined: dict[str, str]
    """URL -> reason, of chips that were found bad while they were embedded."""
    filled: dict[str, int]
    """URL -> number of values that were filled with their band's mean."""


class Sink(Protocol):
    """What a format can do; modules implement it with plain functions that run on the workers."""

    SUFFIX: str

    def write_part(self, frame: gpd.GeoDataFrame, file: BinaryIO, shape: tuple[int, ...]) -> None:
        """Write one partition of `daskembed.to_geodataframe` to the file of its part."""

    def publish(self, output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
        """Make the file `name` of the parts, in their order, complete or not at all."""

    def read_provenance(self, output: Storage, name: str) -> dict[str, Any] | None:
        """What a published file says of how it was made; None if it does not."""


def get_sink(name: str) -> Sink:
    """The module of a format."""
    return cast(Sink, importlib.import_module(SINKS[name]))
