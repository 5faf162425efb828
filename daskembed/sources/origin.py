"""What ``source`` names: a folder or URL above tiles, or a catalogue of scenes."""

from __future__ import annotations

from typing import TypeAlias

from daskembed.sources.stac.catalogue import Catalogue, find_catalogue
from daskembed.storage.stores import Storage

Origin: TypeAlias = Storage | Catalogue


def open_source(source: str) -> Origin:
    """The catalogue of that name, or else the folder or URL; raises `InputError` if it can be neither."""
    return find_catalogue(source) or Storage(source)


def name_of(source: Origin) -> str:
    """A source as receipts tell it."""
    return source.name if isinstance(source, Catalogue) else source.url
