"""What a published file is called, and its receipt."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import date, datetime

from daskembed.errors import InputError
from daskembed.geo.mgrs import check_tile, square_of
from daskembed.output.protocol import FORMATS, Published, get_format
from daskembed.output.state import Receipt, read_receipt, receipt_path
from daskembed.output.validate.findings import Finding
from daskembed.storage.stores import Storage

SUFFIXES = tuple(get_format(name).SUFFIX for name in FORMATS)

EMBEDDINGS = re.compile(r"(?P<tile>\w+)_(?P<first>\d{8})_(?P<last>\d{8})_v(?P<version>[0-9A-Za-z]+)\.\w+")


@dataclass(frozen=True)
class Named:
    """What a file's name says."""

    tile: str
    first: date
    last: date
    version: str


def check_name(name: str) -> Generator[Finding, None, Named | None]:
    """Look at a file's name; gives what it says."""
    match = EMBEDDINGS.fullmatch(name)
    if match is None or not name.endswith(SUFFIXES):
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), SUFFIXES[0])
        yield Finding(
            "name", f"the name {name} is not of the form {{MGRS}}_{{MINDATE}}_{{MAXDATE}}_v{{VERSION}}{suffix}"
        )
        return None
    try:
        tile = check_tile(match["tile"])
        square_of(tile)
        if tile != match["tile"]:
            raise InputError(f"the tile {match['tile']} is not in capitals")
    except InputError as error:
        yield Finding("name", f"the name {name}: {error}")
        return None
    try:
        first, last = (datetime.strptime(match[end], "%Y%m%d").date() for end in ("first", "last"))
    except ValueError:
        yield Finding("name", f"the name {name}: {match['first']}_{match['last']} are not two dates YYYYMMDD")
        return None
    if first > last:
        yield Finding("name", f"the name {name}: the first date {first} is after the last, {last}")
    return Named(tile, first, last, match["version"])


def find_receipt(
    storage: Storage, name: str, named: Named
) -> Generator[Finding, None, tuple[Receipt, Published] | None]:
    """Look for a file's receipt; gives it, and what it says of the file."""
    path = receipt_path(named.tile, named.version)
    try:
        receipt = read_receipt(storage, path)
    except FileNotFoundError:
        yield Finding("receipt", f"no receipt {path} beside it, so that its SHA-256 could not be checked", "note")
        return None
    except InputError as error:
        yield Finding("receipt", str(error))
        return None
    file = next((file for file in receipt.files if file.name == name), None)
    if file is None:
        others = " and ".join(receipt.names) or "none"
        yield Finding("receipt", f"the receipt {path} is of another file, {others}")
        return None
    return receipt, file


def check_ends(days: set[date], named: Named, receipt: Receipt | None) -> Iterator[Finding]:
    """Look whether the dates of the name are among the embeddings'."""
    for day, which in ((named.first, "first"), (named.last, "last")):
        if day in days:
            continue
        message = f"no row is of {day}, the {which} date of its name"
        what = ("quarantined", "rejected") if receipt is not None else ()
        if aside := [
            why for why in what if any(re.search(f"{day:%Y%m%d}|{day}", url) for url in getattr(receipt, why))
        ]:
            yield Finding("dates", f"{message}; its chips are {' or '.join(aside)}", "note")
        else:
            yield Finding("dates", message)


def tile_of_cube(name: str) -> str | None:
    """The tile of a cube, by the store's name; None if it is called like none."""
    try:
        tile = check_tile(name.removesuffix(".zarr"))
    except InputError:
        return None
    return tile if name == f"{tile}.zarr" else None
