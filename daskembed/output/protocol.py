"""Where embeddings go: one module a format."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from daskembed.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd
    import shapely

    from daskembed.encoders.description import Description
    from daskembed.output import geoparquet, zarr
    from daskembed.storage.stores import Storage

FORMATS = {"geoparquet": "daskembed.output.geoparquet", "zarr": "daskembed.output.zarr"}
"""Format -> the module that implements `Format`."""
DTYPES = ("float32", "float16")
"""Types of the values that can be published."""


@dataclass(frozen=True)
class Published:
    """A finished file, or a store of many objects."""

    name: str
    """Its name in the output folder."""
    size: int
    """Bytes; of all its objects."""
    sha256: str
    """Of the file; of a store as `daskembed.output.geozarr.digest` makes it of its objects'."""


class Written(Protocol):
    """What is known of a finished file, of a run or an export, as `Published` says it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Place:
    """Where the embeddings of a file are."""

    footprint: shapely.Geometry
    """In degrees, OGC:CRS84; in two parts where it crosses 180 degrees."""
    projection: dict[str, Any]
    """The grid that they lie on, in the fields of STAC's extension ``proj``; empty if there is none."""


class Format(Protocol):
    """What a format can do; modules implement it with plain functions that run on the workers."""

    SUFFIX: str
    """What its files' names end with."""

    def check_level(self, description: Description, level: str) -> None:
        """Raise `InputError` if it cannot hold the embeddings of a level."""

    def check_chips(self, index: gpd.GeoDataFrame, description: Description, level: str) -> None:
        """Raise `TileError`, before anything is computed, if it cannot hold those of a tile's usable chips."""

    def publish(self, output: Storage, name: str, parts: Sequence[str], provenance: dict[str, Any]) -> Published:
        """Make the file `name` of the parts, in their order, complete or not at all; there is at least one row.

        `provenance` is what the file says of how it was made, and has the `dtype` of its values.

        Raises
        ------
        TileError
            If the embeddings do not go into the file.
        StorageError
            If the output does not take it.
        """

    def size(self, output: Storage, name: str) -> int | None:
        """Bytes of a published file; None if it is not complete."""

    def read_provenance(self, output: Storage, name: str) -> dict[str, Any] | None:
        """What a published file says of how it was made; None if it does not."""

    def read_place(self, output: Storage, name: str) -> Place:
        """Where the embeddings of a published file are; raises `ValueError` if it does not say that."""

    def remove(self, output: Storage, name: str) -> None:
        """Remove a file, whether it is complete or not."""


if TYPE_CHECKING:
    _CHECKED: tuple[Format, ...] = (geoparquet, zarr)


def get_format(name: str) -> Format:
    """The module of a format."""
    return cast(Format, importlib.import_module(FORMATS[name]))


def format_of(file: str) -> Format:
    """The module of the format of a published file, by its name."""
    return next(kind for kind in map(get_format, FORMATS) if file.endswith(kind.SUFFIX))


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of a list such as ``geoparquet,zarr``, each once, in the order of `FORMATS`."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in FORMATS]:
        raise InputError(
            f"unknown `format` {', '.join(map(repr, unknown))}: choose {' or '.join(FORMATS)}, or both as "
            f"{','.join(FORMATS)}"
        )
    return tuple(name for name in FORMATS if name in names)


def check_dtype(name: str) -> str:
    """Return `name` if values can be published as that."""
    if name not in DTYPES:
        raise InputError(f"unknown `dtype` {name!r}: choose one of {', '.join(DTYPES)}")
    return name
