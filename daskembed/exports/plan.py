"""How the rows of all tiles come into files: ranges of keys that hold about as many bytes each (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from daskembed.errors import InputError
from daskembed.exports.index import Piece
from daskembed.exports.state import PlannedFile
from daskembed.geo.hilbert import ORDER

END = 4**ORDER
"""More than any key."""


def cut(pieces: Mapping[str, Sequence[Piece]], rows_a_file: int, suffix: str, folder: str = "") -> list[PlannedFile]:
    """Ranges of the curve that each hold about `rows_a_file` rows.

    Parameters
    ----------
    pieces
        Published file -> what it has of the curve.
    rows_a_file
        How many rows are wanted in a file.
    suffix, folder
        What the files' names end with, and begin with.

    Returns
    -------
    list of PlannedFile
        Without gaps, in the order of the curve; of one size, but for the pieces that a border goes through. Rows of
        one key are never parted.
    """
    names = sorted(pieces)
    of = [(number, piece) for number, name in enumerate(names) for piece in pieces[name]]
    if not of:
        return []
    tile = np.array([number for number, _ in of])
    first, last = (np.array([getattr(piece, end) for _, piece in of], np.uint64) for end in ("first", "last"))
    rows = np.array([piece.rows for _, piece in of])
    order = np.argsort(first, kind="stable")
    total = int(rows.sum())
    count = max(1, round(total / rows_a_file))
    before = np.cumsum(rows[order]) - rows[order]
    # The piece at which each file but the first begins.
    begins = np.searchsorted(before, total * np.arange(1, count) / count)
    borders = np.unique(first[order][begins[begins < len(order)]])
    borders = borders[borders > first.min()]
    begun, ended = (np.searchsorted(borders, keys, side="right") for keys in (first, last))
    held = np.bincount(begun, rows, len(borders) + 1).astype(int)
    reach = ended - begun + 1
    # Which tile has something of which file; most pieces are in one file.
    step = np.arange(reach.sum()) - np.repeat(np.cumsum(reach) - reach, reach)
    pairs = np.unique(np.stack([np.repeat(begun, reach) + step, np.repeat(tile, reach)]), axis=1)
    per_file = np.split(pairs[1], np.searchsorted(pairs[0], np.arange(1, len(borders) + 1)))
    limits = [0, *map(int, borders), END]
    return [
        PlannedFile(
            f"{folder}embeddings_{number:05d}{suffix}",
            limits[number],
            limits[number + 1],
            int(held[number]),
            [names[one] for one in tiles],
        )
        for number, tiles in enumerate(per_file)
    ]


def one_a_tile(days: Mapping[str, Mapping[str, int]], suffix: str) -> list[PlannedFile]:
    """A file of each published file that has rows.

    Parameters
    ----------
    days
        Published file -> date, ISO 8601 -> how many rows it has.
    suffix
        What the files' names end with, such as ``33TUL_20240601_20240701_v001.zarr``, of the first and the last date.
    """
    return _apart(
        [
            PlannedFile(_name(name, [min(rows), max(rows)], suffix), 0, END, sum(rows.values()), [name])
            for name, rows in sorted(days.items())
            if rows
        ]
    )


def one_a_day(days: Mapping[str, Mapping[str, int]], suffix: str) -> list[PlannedFile]:
    """A file of each date of each published file, such as ``33TUL_20240601_v001.tif``; as `one_a_tile`."""
    return _apart(
        [
            PlannedFile(_name(name, [day], suffix), 0, END, count, [name], day)
            for name, rows in sorted(days.items())
            for day, count in sorted(rows.items())
        ]
    )


def _name(published: str, days: Sequence[str], suffix: str) -> str:
    tile, _, _, version = published.rpartition(".")[0].split("_")
    return "_".join([tile, *(day.replace("-", "") for day in days), f"{version}{suffix}"])


def _apart(files: list[PlannedFile]) -> list[PlannedFile]:
    """Raise `InputError` if two files would have one name, as those of a tile can that have dates in common."""
    named: dict[str, PlannedFile] = {}
    for file in files:
        if (other := named.setdefault(file.name, file)) is not file:
            raise InputError(
                f"{file.name} would be made of {other.tiles[0]} and of {file.tiles[0]}, which have dates in common: "
                "choose by `dates`, or remove one of them"
            )
    return files
