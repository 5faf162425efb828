"""Catalogues: what each calls the images that an encoder takes, and what is known of its files."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from daskembed.documents import parse_yaml
from daskembed.errors import InputError, did_you_mean
from daskembed.sensors.bands import KINDS
from daskembed.sensors.table import check_keys, check_text, read_described
from daskembed.storage.access import check_access
from daskembed.storage.urls import SCHEMES, SIGNED, USER, is_local, local_path, redact

Role = Literal["optical", "radar", "height"]

API = ("stac+https://", "stac+http://")
"""What the URL of a STAC API begins with where it is a source; plain HTTP is for servers on this machine."""
DESCRIPTIONS = (".yaml", ".yml")
FILES_OF_ITEMS = (".json", ".geojson", ".parquet")
# Of what other servers have, the images of the first one are preferred.
_PACKAGED = ("earth-search", "planetary-computer", "cdse")
_KEYS = {"url", "page_size", "images", "files"}
_IMAGES_KEYS = {"role", "collection", "bands", "classes", "sensors", "numbers", "only"}
_FILES_KEYS = {"at", "access", "offset", "unclear"}


@dataclass(frozen=True)
class Images:
    """The images of one collection."""

    role: Role
    collection: str
    bands: Mapping[str, tuple[str, ...]]
    """Band, by any name that a sensor has for it, in small letters -> keys of assets that may hold it, the first that
    an item has counts."""
    classes: tuple[str, ...] = ()
    """Likewise keys of the asset with Sentinel-2's scene classification."""
    sensors: tuple[str, ...] = ()
    """Names of the sensors whose bands these are."""
    numbers: str | None = None
    """One of `KINDS`: of any sensor whose bands have such numbers. Neither: of every sensor."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Property -> values, of which an item must have one."""


@dataclass(frozen=True)
class Files:
    """What is known of files by where they lie."""

    at: tuple[str, ...]
    """What their URLs begin with."""
    access: Mapping[str, str] = field(default_factory=dict)
    """How they are read: see `daskembed.storage.access`."""
    offset: Literal["in", "out"] | None = None
    """Whether the +1000 of Sentinel-2 is ``in`` those of baseline 04.00 and newer, or has been taken ``out``."""
    unclear: tuple[date, date] | None = None
    """First and last day of which nobody can tell."""


@dataclass(frozen=True)
class Catalogue:
    """A STAC API or a file of items, and how to read what it lists."""

    name: str
    """As `source` names it: part of what a file is made with."""
    url: str
    """Of the API, or of the file of items."""
    images: tuple[Images, ...]
    """Of a role's images the first count that have all bands of a sensor."""
    page_size: int = 100
    files: tuple[Files, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it is a file of items."""
        return self.url.lower().endswith(FILES_OF_ITEMS)

    @property
    def collections(self) -> tuple[str, ...]:
        """Those that are known of it."""
        return tuple(dict.fromkeys(images.collection for images in self.images))

    def files_at(self, href: str) -> Files:
        """What is known of a file: by the longest beginning of its URL."""
        known = [(len(begin), one) for one in self.files for begin in one.at if href.startswith(begin)]
        return max(known, key=lambda pair: pair[0])[1] if known else Files(())

    def check_exists(self) -> None:
        """Raise `InputError` if it is a local file that does not exist."""
        if self.is_file and is_local(self.url) and not Path(self.url).is_file():
            raise InputError(f"no file {self.url}: expected one of STAC items")


def find_catalogue(source: str) -> Catalogue | None:
    """The catalogue that a source is; None if it is a store of images.

    Parameters
    ----------
    source
        A name of `packaged`; ``stac+https://HOST/PATH`` of a STAC API; the path or URL of a file of items
        (``.json``, an ItemCollection, or ``.parquet``, STAC GeoParquet); or the path of a ``.yaml`` file that describes
        a catalogue as those of the package do.

    Raises
    ------
    InputError
        If it is meant to be one, but is not there, describes none, or has none of the collections that are known.
    StorageError
        If a server does not answer.
    """
    if source in packaged():
        return packaged()[source]
    lowered = source.lower()
    if lowered.startswith(API):
        return _api(_checked(source).removeprefix("stac+").rstrip("/"), source.rstrip("/"))
    if lowered.startswith("stac+"):
        raise InputError(f"{redact(source)} is no STAC API: expected stac+https://HOST/PATH, with two slashes")
    if lowered.endswith(DESCRIPTIONS):
        return _parse(read_described(source, "catalogue"), Path(source).name, source)
    # What has such a name may be a folder, too.
    if lowered.endswith(FILES_OF_ITEMS) and not (is_local(source) and local_path(source).is_dir()):
        return _file(local_path(source).as_posix() if is_local(source) else _checked(source))
    if (
        is_local(source)
        and "/" not in source
        and not Path(source).exists()
        and (meant := did_you_mean(source, packaged()))
    ):
        raise InputError(f"no folder and no catalogue {source!r}: catalogues are {', '.join(packaged())}{meant}")
    return None


@functools.cache
def packaged() -> Mapping[str, Catalogue]:
    """The catalogues of the package, by name."""
    folder = files("daskembed.sources.stac").joinpath("catalogues")
    return {
        name: _parse(parse_yaml(folder.joinpath(f"{name}.yaml").read_text()), name, f"{name}.yaml")
        for name in _PACKAGED
    }


def _checked(url: str) -> str:
    if USER.search(url) or SIGNED.search(url):
        raise InputError(
            f"{redact(url)}: the URL of a catalogue must not hold a user, password, signature or token: it is written "
            "down with what is made of it"
        )
    return url


@functools.cache
def _api(url: str, name: str) -> Catalogue:
    for catalogue in packaged().values():
        if catalogue.url == url:
            return replace(catalogue, name=name)
    from daskembed.sources.stac.search import collections_of

    return _made_of(collections_of(url), url, name)


def _file(url: str) -> Catalogue:
    from daskembed.sources.stac.itemfiles import read_items

    return _made_of({str(item.get("collection")) for item in read_items(url)}, url, url)


def _made_of(collections: Collection[str], url: str, name: str) -> Catalogue:
    """The catalogue of collections that those of the package have too, under any names that these give to assets."""
    found: dict[tuple[str, str], Images] = {}
    for images in (images for catalogue in packaged().values() for images in catalogue.images):
        if images.collection in collections:
            key = (images.role, images.collection)
            found[key] = _joined(found[key], images) if key in found else images
    if not found:
        known = sorted({name for catalogue in packaged().values() for name in catalogue.collections})
        raise InputError(
            f"{name} has no collection that is known: found {', '.join(sorted(collections)[:8]) or 'none'}, expected "
            f"one of {', '.join(known)}; a .yaml file says which assets of others hold which bands: give its path as "
            "`source`"
        )
    known_files = tuple(files for catalogue in packaged().values() for files in catalogue.files)
    return Catalogue(name, url, tuple(found.values()), files=known_files)


def _joined(first: Images, second: Images) -> Images:
    keys = dict.fromkeys((*first.bands, *second.bands))
    bands = {key: _once(first.bands.get(key, ()), second.bands.get(key, ())) for key in keys}
    return replace(first, bands=bands, classes=_once(first.classes, second.classes))


def _once(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _parse(described: Any, name: str, where: str) -> Catalogue:
    check_keys(described, _KEYS, {"url", "images"}, where)
    url = _checked(check_text(described["url"], f"{where}: url")).rstrip("/")
    if not url.startswith(("https://", "http://")):
        if not url.lower().endswith(FILES_OF_ITEMS) or ("://" in url and url.partition("://")[0] not in SCHEMES):
            raise InputError(
                f"{where}: url is {url!r:.80}: expected https://HOST/PATH of a STAC API, or a file of items "
                f"({', '.join(FILES_OF_ITEMS)})"
            )
        # Of a file beside the description.
        url = local_path(str(Path(where).expanduser().parent / url)).as_posix() if "://" not in url else url
    size = described.get("page_size", 100)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 10_000:
        raise InputError(f"{where}: page_size is {size!r:.40}: expected a number of items from 1 to 10000")
    return Catalogue(
        name,
        url,
        tuple(_parse_images(one, told) for one, told in _each(described, "images", where)),
        size,
        tuple(_parse_files(one, told) for one, told in _each(described, "files", where)),
    )


def _each(described: Mapping[str, Any], key: str, where: str) -> list[tuple[Any, str]]:
    inner = described.get(key, [])
    if not isinstance(inner, list) or (key == "images" and not inner):
        raise InputError(f"{where}: {key} is {inner!r:.40}: expected a list")
    return [(one, f"{where}: {key} {number}") for number, one in enumerate(inner, 1)]


def _parse_images(described: Any, where: str) -> Images:
    check_keys(described, _IMAGES_KEYS, {"role", "collection", "bands"}, where)
    if described["role"] not in get_args(Role):
        raise InputError(f"{where}: role is {described['role']!r:.40}: expected one of {', '.join(get_args(Role))}")
    numbers = described.get("numbers")
    if numbers is not None and not (isinstance(numbers, str) and numbers in KINDS):
        raise InputError(f"{where}: numbers is {numbers!r:.40}: expected one of {', '.join(KINDS)}")
    bands = {key.casefold(): keys for key, keys in _parse_lists(described["bands"], f"{where}: bands").items()}
    if not bands:
        raise InputError(f"{where}: bands is empty: expected a name and its asset for each")
    return Images(
        role=cast(Role, described["role"]),
        collection=check_text(described["collection"], f"{where}: collection"),
        bands=bands,
        classes=_parse_list(described.get("classes", []), f"{where}: classes"),
        sensors=_parse_list(described.get("sensors", []), f"{where}: sensors"),
        numbers=numbers,
        only=_parse_lists(described.get("only", {}), f"{where}: only"),
    )


def _parse_files(described: Any, where: str) -> Files:
    check_keys(described, _FILES_KEYS, {"at"}, where)
    offset = described.get("offset")
    if offset not in (None, "in", "out"):
        raise InputError(f"{where}: offset is {offset!r:.40}: expected in or out")
    access = {key: values[0] for key, values in _parse_lists(described.get("access", {}), f"{where}: access").items()}
    check_access(tuple(access.items()), where)
    unclear = described.get("unclear")
    try:
        days = None if unclear is None else tuple(date.fromisoformat(day) for day in unclear.split("/"))
    except (AttributeError, ValueError):
        days = ()
    if days is not None and (len(days) != 2 or days[0] > days[1]):
        raise InputError(f"{where}: unclear is {unclear!r:.40}: expected two days, such as 2022-01-25/2022-02-27")
    return Files(
        at=_parse_list(described["at"], f"{where}: at"),
        access=access,
        offset=offset,
        unclear=days,
    )


def _parse_lists(described: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(described, dict):
        raise InputError(f"{where} is {described!r:.40}: expected keys, each with a text or a list of texts")
    return {check_text(key, f"{where}: a key"): _parse_list(one, f"{where}: {key}") for key, one in described.items()}


def _parse_list(described: Any, where: str) -> tuple[str, ...]:
    """Texts of a list, or of one alone."""
    return tuple(check_text(one, where) for one in (described if isinstance(described, list) else [described]))
