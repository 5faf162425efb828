"""What ``source`` names: a folder or URL above tiles, or a catalogue of scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias

from daskembed.errors import InputError
from daskembed.sources.choice import FIRST_CHOICE, Choice
from daskembed.sources.stac.catalogue import Catalogue, find_catalogue, packaged
from daskembed.storage.stores import Storage

Origin: TypeAlias = Storage | Catalogue


def open_source(source: str) -> Origin:
    """The catalogue of that name, or else the folder or URL; raises `InputError` if it can be neither."""
    return find_catalogue(source) or Storage(source)


def name_of(source: Origin) -> str:
    """A source as receipts tell it; of a catalogue that a user describes, with a digest of what decides on pixels."""
    if isinstance(source, Storage):
        return source.url
    if source.name in (source.url, f"stac+{source.url}") or source == packaged().get(source.name):
        return source.name
    told = source.url, source.images, [(one.at, one.offset, one.unclear) for one in source.files]
    return f"{source.name} {hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def choice_for(source: Origin, asked: Mapping[str, Any]) -> Choice:
    """Which scenes of a catalogue are asked for, where None is not asked.

    Parameters
    ----------
    source
        Of which.
    asked
        Fields of `Choice`; what else is said is of catalogues, too.

    Raises
    ------
    InputError
        If something is asked of a source that is no catalogue.
    """
    said = {name: value for name, value in asked.items() if value is not None}
    if said and not isinstance(source, Catalogue):
        raise InputError(
            f"{', '.join(f'`{name}`' for name in said)}: of scenes of a catalogue, and {source.url} is none; leave out "
            "what has no effect"
        )
    return replace(FIRST_CHOICE, **{one.name: said[one.name] for one in fields(Choice) if one.name in said})
