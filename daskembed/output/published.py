"""The published embeddings of an output, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from daskembed.errors import InputError
from daskembed.output.protocol import FORMATS, format_of, get_format
from daskembed.storage.stores import Storage

_VERSION = re.compile(r"[0-9A-Za-z]{1,16}")
_OF_GEOPARQUET = re.compile(rf"_v({_VERSION.pattern})\.gpq$")


def check_version(version: str) -> str:
    """Return `version` if it can be part of a file name; a number is padded to three digits."""
    if not _VERSION.fullmatch(version):
        raise InputError(f"version {version!r}: expected up to 16 letters and digits, such as 001")
    return version.zfill(3) if version.isdigit() else version


def version_of(name: str) -> str | None:
    """The version that the name of a published GeoParquet file says; None if it is another's."""
    found = _OF_GEOPARQUET.search(name)
    return found and found[1]


def of_version(names: Iterable[str], version: str, where: str) -> list[str]:
    """Those of some files, which are in `where`, whose names say a version.

    Raises
    ------
    InputError
        If there is none: it says which versions there are.
    """
    wanted, known = check_version(version), {name: version_of(name) for name in names}
    if found := [name for name, one in known.items() if one == wanted]:
        return found
    versions = sorted({one for one in known.values() if one is not None})
    choices = f"choose {' or '.join(versions)}" if versions else "their names say none: leave it out"
    raise InputError(f"no files of `version` {version} in {where}: {choices}")


@dataclass(frozen=True)
class Found:
    """A published file in a listing of an output."""

    name: str
    tile: str
    version: str
    size: int | None
    """Bytes; None of a store that is not complete."""


def list_published(output: Storage, version: str | None = None) -> list[Found]:
    """The published files of an output, of one version or all, by name: two listings, and one of each store."""
    wanted = _VERSION.pattern if version is None else re.escape(version)
    suffixes = "|".join(re.escape(get_format(name).SUFFIX) for name in FORMATS)
    pattern = re.compile(rf"(?P<tile>\d\d[A-Z]{{3}})_\d{{8}}_\d{{8}}_v(?P<version>{wanted})(?:{suffixes})")
    files = {entry.path: entry.size for entry in output.entries(recursive=False) if pattern.fullmatch(entry.path)}
    stores = [name for name in output.folders() if pattern.fullmatch(name)]
    with ThreadPoolExecutor(16) as pool:
        sizes = files | dict(
            zip(stores, pool.map(lambda name: format_of(name).size(output, name), stores), strict=True)
        )
    matches = {name: match for name in sorted(sizes) if (match := pattern.fullmatch(name))}
    return [Found(name, match["tile"], match["version"], sizes[name]) for name, match in matches.items()]


def published_files(output: Storage, version: str, *, sweep: bool = False) -> dict[str, dict[str, int]]:
    """Tile -> name -> bytes of its published files of a version, of all formats; incomplete stores do not count.

    Parameters
    ----------
    output, version
        Where, and of which version.
    sweep
        Remove incomplete stores, which killed writers left.
    """
    found: dict[str, dict[str, int]] = {}
    for one in list_published(output, version):
        if one.size is not None:
            found.setdefault(one.tile, {})[one.name] = one.size
        elif sweep:
            format_of(one.name).remove(output, one.name)
    return found
