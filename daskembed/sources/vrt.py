"""What a GDAL VRT refers to: the files whose pixels it shows."""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from daskembed.errors import ChipError
from daskembed.storage import is_local, local_path

_ELEMENTS = ("sourcefilename", "sourcedataset")
"""That name a dataset: the sources of bands, masks and overviews, and that of a warped VRT. GDAL ignores the case."""


@dataclass(frozen=True)
class Reference:
    """One dataset that a VRT names."""

    name: str
    """As it is written there."""
    path: str | None
    """Below the store's URL; None if it is elsewhere, or no path at all."""


def references(text: bytes, path: str, root: str) -> tuple[Reference, ...]:
    """The datasets that a VRT names, each once, in the order in which it does.

    Parameters
    ----------
    text
        Of the VRT.
    path
        Its own path below the store's URL.
    root
        The store's URL.

    Raises
    ------
    ChipError
        If it is no XML, or has entities of its own: these could hide or multiply what it names.
    """
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ChipError("has a document type or entities: expected the plain XML that GDAL writes as a VRT")
    try:
        found = [element for element in ET.fromstring(text).iter() if str(element.tag).lower() in _ELEMENTS]
    except ET.ParseError as error:
        raise ChipError(f"is no VRT, it cannot be parsed as XML: {error}") from None
    named = {}
    for element in found:
        name = (element.text or "").strip()
        relative = {key.lower(): value for key, value in element.items()}.get("relativetovrt", "0") != "0"
        named[name, relative] = Reference(name, _below(name, path, root, relative=relative))
    return tuple(named.values())


def _below(name: str, path: str, root: str, *, relative: bool) -> str | None:
    if not name or name.startswith("/vsi") or "://" in name:
        return None
    if not relative:
        # What is not absolute is looked for where the process happens to run.
        if not (is_local(root) and name.startswith("/")):
            return None
        inside = posixpath.relpath(posixpath.normpath(name), local_path(root).as_posix())
    else:
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    return None if inside.startswith(("/", "../")) or inside in (".", "..") else inside
