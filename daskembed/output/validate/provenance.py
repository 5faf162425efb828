"""What a published file says of how it was made."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from daskembed.output.state import Receipt
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import Named

_TYPES: dict[str, tuple[type, str, type]] = {
    **dict.fromkeys(("tile", "encoder", "checkpoint", "level", "dtype"), (str, "text", object)),
    **dict.fromkeys(("chips", "windows", "window"), (int, "number", object)),
    "shape": (list, "list of lengths", int),
    "dims": (list, "list of names", str),
    "identity": (dict, "object", object),
}
"""Field of what a file says of how it was made -> its type, in words, and that of its items."""


def typed(made: dict[str, Any], where: str) -> Generator[Finding, None, dict[str, Any]]:
    """What a file says of how it was made; None for what is not of the type that it should be."""
    kept: dict[str, Any] = {}
    for key, value in made.items():
        kind, words, of_items = _TYPES.get(key, (object, "", object))
        items = value if isinstance(value, list) else []
        # A truth value counts as a number.
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if fits and all(isinstance(one, of_items) for one in items):
            kept[key] = value
        else:
            kept[key] = None
            yield Finding("provenance", f"the {where}'s {key} {value} is no {words}")
    return kept


def windows_of(made: dict[str, Any] | None) -> int:
    """Rows of a chip."""
    windows = (made or {}).get("windows", 1)
    return windows if type(windows) is int and windows > 0 else 1


def check_provenance(
    made: dict[str, Any], rows: int, named: Named | None, receipt: Receipt | None, where: str = "footer"
) -> Generator[Finding, None, tuple[int, ...] | None]:
    """Look at what a file says of how it was made; gives the shape of one embedding, where it is known.

    Parameters
    ----------
    made
        What it says.
    rows
        Rows that it has.
    named, receipt
        What its name and its receipt say.
    where
        Where it says it, in words.
    """
    wanted = ("tile", "chips", "encoder", "checkpoint", "level", "shape", "identity")
    if missing := [key for key in wanted if key not in made]:
        yield Finding("provenance", f"`daskembed` in the {where} lacks {', '.join(missing)}")
    if named is not None and made.get("tile") not in (None, named.tile):
        yield Finding("provenance", f"the {where} says that it is of tile {made['tile']}, its name says {named.tile}")
    chips = made.get("chips")
    if isinstance(chips, int) and chips * windows_of(made) != rows:
        yield Finding("provenance", f"{rows} rows, the {where} says {chips} chips")
    if receipt is not None and made.get("identity") not in (None, receipt.settings):
        yield Finding("provenance", f"the {where} says that it was made with other settings than the receipt says")
    return (yield from lengths_of(made, where))


def lengths_of(made: dict[str, Any], where: str) -> Generator[Finding, None, tuple[int, ...] | None]:
    """The shape of one embedding, where it is known."""
    shape = made.get("shape")
    if isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape):
        return tuple(shape)
    if shape is not None:
        yield Finding("provenance", f"the {where}'s shape {shape} is no list of lengths")
    return None
