"""MGRS: tile ids, the squares that they name, and lists of them."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from daskembed.errors import InputError
from daskembed.paths import StrPath, as_text

_TILE = re.compile(r"(?P<zone>0[1-9]|[1-5][0-9]|60)(?P<band>[C-HJ-NP-X])(?P<column>[A-HJ-NP-Z])(?P<row>[A-HJ-NP-V])")
_NAMED = re.compile(r"(?:CLAYTILE_|T)?(?P<tile>[0-9]{2}[A-Z]{3})(?![A-Z0-9])")
# The letters of a 100 km square's column repeat every three zones (NGA.STND.0037, MGRS, Table B-1).
_COLUMNS = {1: "ABCDEFGH", 2: "JKLMNPQR", 0: "STUVWXYZ"}
_EXPECTED = "expected zone (01-60), latitude band (C-X) and two letters of the 100 km square, such as 27WXN"


def check_tile(text: str) -> str:
    """Return `text` as an MGRS 100 km tile id in capitals; the T that Sentinel-2 products put before it is dropped.

    Raises
    ------
    InputError
        If `text` is not such an id; the message says what is wrong with it.

    Examples
    --------
    >>> check_tile("27wxn")
    '27WXN'
    """
    tile = text.strip().upper() if text.isascii() else text
    if tile.startswith("T") and _TILE.fullmatch(tile[1:]):
        tile = tile[1:]
    if problem := _problem(tile):
        padded = tile.zfill(5)
        hint = f"; did you mean {padded}?" if padded != tile and not _problem(padded) else ""
        raise InputError(f"{text!r} is not an MGRS tile id: {problem}{hint}")
    return tile


def is_tile(text: str) -> bool:
    """Whether `check_tile` takes a text."""
    try:
        check_tile(text)
    except InputError:
        return False
    return True


def _problem(tile: str) -> str | None:
    match = _TILE.fullmatch(tile)
    if match is None:
        return _EXPECTED
    columns = _COLUMNS[int(match["zone"]) % 3]
    if match["column"] not in columns:
        return f"zone {match['zone']} has the columns {columns[0]}-{columns[-1]}, not {match['column']}"
    return None


def parse_tiles(lines: Iterable[str], *, name: str = "tiles") -> tuple[str, ...]:
    """Read tile ids, one a line or several with spaces or commas between; comments (``#``) and blank lines allowed.

    Duplicates are dropped.

    Parameters
    ----------
    lines
        The lines of a tile list.
    name
        What the list is called in messages, e.g. its file's path.

    Raises
    ------
    InputError
        For the first bad line, with its number; or if there is no tile at all.
    """
    tiles: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        try:
            tiles |= dict.fromkeys(map(check_tile, _split(line.partition("#")[0])))
        except InputError as error:
            raise InputError(f"{name}, line {number}: {error}") from None
    if not tiles:
        raise InputError(f"{name} names no tile: put one MGRS tile id on each line, such as 27WXN")
    return tuple(tiles)


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def read_tiles(value: str) -> tuple[str, ...]:
    """Tile ids from a file (see `parse_tiles`), or given directly with commas or spaces between.

    Raises
    ------
    InputError
        If the file does not exist or cannot be read as text, or an id is bad.
    """
    path = Path(value)
    if "," not in value:
        try:
            if path.is_file():
                return parse_tiles(path.read_text(encoding="utf-8-sig").splitlines(), name=value)
            is_path = bool(path.suffix) or "/" in value or path.exists()
        except UnicodeDecodeError:
            raise InputError(f"{value} is not a text file: expected one MGRS tile id a line, such as 27WXN") from None
        except OSError as error:
            # Of many ids the system says that no file can have so long a name.
            if len(_split(value)) == 1:
                raise InputError(
                    f"{value[:100]} cannot be read: {error.strerror}; give a text file or tile ids"
                ) from None
            is_path = False
        if is_path:
            raise InputError(
                f"no file {value}: give a text file with one MGRS tile id a line, or ids such as 27WXN,27WXM"
            )
    return tuple(dict.fromkeys(map(check_tile, _split(value) or [value])))


def tiles_of(tiles: StrPath | Iterable[str]) -> tuple[str, ...]:
    """Tile ids of what `read_tiles` takes, or of an iterable of ids, each once.

    Raises
    ------
    InputError
        If an id is bad, or there is none.
    """
    if isinstance(tiles, str | os.PathLike):
        names = read_tiles(as_text(tiles))
    else:
        names = tuple(dict.fromkeys(map(check_tile, tiles)))
    if not names:
        raise InputError("no tiles: give at least one MGRS tile id, such as 27WXN")
    return names


def tile_in(name: str) -> str | None:
    """The tile after which a file or folder is named, such as ``33TUL`` or ``T33TUL_2019.tif``."""
    match = _NAMED.match(name.upper())
    return match["tile"] if match and not _problem(match["tile"]) else None


SIDE = 100_000
"""Metres of a square's side."""


_ROWS = "ABCDEFGHJKLMNPQRSTUV"

_BANDS = "CDEFGHJKLMNPQRSTUVWX"

_DEGREE = 111_086
"""Metres of a degree of latitude in UTM, near enough to tell squares 2,000 km apart."""


@dataclass(frozen=True)
class Square:
    """The 100 km square that gives a tile its name; a Sentinel-2 tile reaches 9.8 km beyond it, east and south."""

    epsg: int
    """Code of the UTM zone."""
    west: int
    """Least easting, metres."""
    south: int
    """Least northing, metres."""


def square_of(tile: str) -> Square:
    """The 100 km square of an MGRS tile id as `check_tile` gives it.

    Raises
    ------
    InputError
        If the latitude band of that zone has no such square.

    Examples
    --------
    >>> square_of("33TUL")
    Square(epsg=32633, west=300000, south=5000000)
    """
    zone, letter = int(tile[:2]), tile[2]
    band = _BANDS.index(letter)
    # Row letters repeat every 2,000 km, and in even zones they begin with F.
    column = _COLUMNS[zone % 3].index(tile[3])
    row = _ROWS.index(tile[4]) - 5 * (zone % 2 == 0)
    # A band is 8 degrees high, X 12; of the squares of that letter, the one nearest to the band's middle is meant.
    half = (6 if letter == "X" else 4) * _DEGREE
    middle = (8 * band - 80) * _DEGREE + half
    centre = SIDE * row + SIDE // 2
    centre += round((middle - centre) / (20 * SIDE)) * 20 * SIDE
    if abs(middle - centre) > half + SIDE:
        raise InputError(f"{tile} is not an MGRS tile: zone {tile[:2]}, band {letter} has no square {tile[3:]}")
    northern = letter >= "N"
    south = centre - SIDE // 2 + (0 if northern else 10_000_000)
    return Square((32600 if northern else 32700) + zone, SIDE * (column + 1), south)


_FIRST_ROWS = (9, 18, 27, 35, 44, 53, 62, 71, 80)
"""First row of squares, from the equator, whose middles are in the second latitude band, the third and so on."""
# Rows of squares counted from the equator, up to which a zone has tiles in these columns, first and last. Zones taper
# towards the poles. In the west a square that reaches less than half into its zone is left to the next one's tile.
_COLUMNS_KEPT = ((28, 2, 8), (46, 2, 7), (59, 3, 7), (70, 3, 6), (80, 4, 6), (90, 4, 5), (93, 5, 5))
# Where zones have other widths, or are none: rows, zone -> columns.
_ODD_ZONES = (
    (63, 69, {31: (3, 5)}),
    (63, 70, {32: (2, 6)}),
    (79, 79, {31: (4, 7), 32: (5, 6), 33: (3, 7), 34: (5, 6), 35: (3, 7), 36: (5, 6), 37: (3, 6)}),
    (80, 80, {31: (4, 7), 33: (3, 7), 35: (3, 7), 37: (3, 6)}),
    (81, 85, {31: (4, 6), 33: (3, 6), 35: (3, 6), 37: (3, 5)}),
    (86, 90, {31: (4, 6), 33: (4, 6), 35: (4, 6)}),
    (91, 93, {33: (4, 5), 35: (4, 5), 37: (4, 5)}),
    (80, 93, {32: (), 34: (), 36: ()}),
    (91, 93, {60: ()}),
)


def tile_at(zone: int, column: int, row: int) -> str | None:
    """The Sentinel-2 tile of a square, None if there is none: others reach over it.

    Squares that two latitude bands share are one tile, of the band that has their middle. The rules give the tiling
    grid that ESA publishes, between 80 degrees south and 84 north.

    Parameters
    ----------
    zone
        Of UTM.
    column, row
        Eastings and northings of the square in units of its side, northings negative south of the equator.

    Examples
    --------
    >>> tile_at(33, 3, 50), tile_at(32, 6, 52), tile_at(33, 1, 0)
    ('33TUL', '32TPT', None)
    """
    if not -90 <= row <= 93:
        return None
    distance = row if row >= 0 else -1 - row
    first, last = next(columns for most, *columns in _COLUMNS_KEPT if distance <= most)
    # At 180 degrees no tile of zone 60 is needed across, and zone 1 begins with its own.
    kept: tuple[int, ...] = (9 - last, last) if zone == 1 else (first, 9 - first) if zone == 60 else (first, last)
    for south, north, zones in _ODD_ZONES:
        if south <= row <= north:
            kept = zones.get(zone, kept)
    if not kept or not kept[0] <= column <= kept[1]:
        return None
    bands = _BANDS[10:] if row >= 0 else _BANDS[9::-1]
    band = bands[bisect.bisect(_FIRST_ROWS, distance)]
    return f"{zone:02d}{band}{_COLUMNS[zone % 3][column - 1]}{_ROWS[(row + 5 * (zone % 2 == 0)) % len(_ROWS)]}"


TILE = 109_800
"""Metres of a side of a Sentinel-2 tile: its square, and what it has in common with the next ones."""
_COARSEST = 60
"""Metres of Sentinel-2's coarsest pixels, on whose grid tiles begin."""


def tile_corner(tile: str) -> tuple[int, int, int]:
    """EPSG code, and easting and northing of the north-western corner, of a Sentinel-2 tile.

    Whole pixels of 60 m from the equator and from the false easting hold the square: westwards and northwards, as the
    products' metadata have it.

    Raises
    ------
    InputError
        If there is no such square.

    Examples
    --------
    >>> tile_corner("46XES"), tile_corner("35MNM")
    ((32646, 499980, 9200040), (32735, 499980, 9200020))
    """
    square = square_of(tile)
    equator = 0 if square.epsg < 32700 else 10_000_000
    north = equator - (equator - square.south - SIDE) // _COARSEST * _COARSEST
    return square.epsg, square.west // _COARSEST * _COARSEST, north
