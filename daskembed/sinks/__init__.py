"""Where embeddings go: one module a format."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daskembed.storage import Storage

SINKS = {"geoparquet": "daskembed.sinks.geoparquet"}
"""Format -> the module that implements `Sink`."""


@dataclass(frozen=True)
class Published:
    """A finished file and what is in it."""

    name: str
    """File name in the output folder."""
    size: int
    """Bytes."""
    sha256: str
    """Of the file."""


class Sink(Protocol):
    """What a format can do; modules implement it with plain functions that run on the workers."""

    SUFFIX: str

    def publish(self, output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
        """Make the file `name` of the parts, in their order, complete or not at all; there is at least one row."""

    def read_provenance(self, output: Storage, name: str) -> dict[str, Any] | None:
        """What a published file says of how it was made; None if it does not."""


def get_sink(name: str) -> Sink:
    """The module of a format."""
    return cast(Sink, importlib.import_module(SINKS[name]))
