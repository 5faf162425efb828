"""Catalogues: what each calls the images that an encoder takes, and what is known of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["optical", "radar", "height"]


@dataclass(frozen=True)
class Images:
    """The images of one collection."""

    role: Role
    collection: str
    bands: Mapping[str, tuple[str, ...]]
    """Band, by any name that a sensor has for it, in small letters -> keys of assets that may hold it, the first that
    an item has counts."""
    classes: str | None = None
    """Key of the asset with Sentinel-2's scene classification."""
    sensors: tuple[str, ...] = ()
    """Names of the sensors whose bands these are; none: of every sensor whose bands all have a name here."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Property -> values, of which an item must have one."""


@dataclass(frozen=True)
class Catalogue:
    """A STAC API or a file of items, and how to read what it lists."""

    name: str
    """As `source` names it: part of what a file is made with."""
    url: str
    """Of the API, or of the file of items."""
    images: tuple[Images, ...]
    page_size: int = 100
    access: Mapping[str, str] = field(default_factory=dict)
    """How its files are read: see `daskembed.storage.access`."""
    offset_out: tuple[str, ...] = ()
    """What the URLs of files begin with of which the +1000 has been taken out."""
    offset_in: tuple[str, ...] = ()
    """Likewise, of files that have it from the processing baseline 04.00 on."""
