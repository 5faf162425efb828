"""How many chips of a tile may newly be quarantined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from daskembed.errors import TileError
from daskembed.health import kind_of

FEW = 4
"""Chips of a tile that may newly be quarantined whatever share of it they are."""


def check_quarantined(
    allowed: float, quarantined: Mapping[str, str], known: Mapping[str, str], chips: int, *, vanishing: bool
) -> None:
    """Raise `TileError` if so many chips would newly be quarantined that the machine or the store may be at fault.

    Parameters
    ----------
    allowed
        Share of a tile's chips that may be; `FEW` may in any case, and with 1 all.
    quarantined, known
        URL -> reason, of the chips that would be, and of those that an earlier run quarantined.
    chips
        How many the tile has.
    vanishing
        Whether there is a published file now and would be none.
    """
    new = {url: why for url, why in quarantined.items() if url not in known or kind_of(known[url]) != kind_of(why)}
    if not new or allowed == 1 or not (vanishing or len(new) > max(FEW, allowed * chips)):
        return
    kinds = {url: kind_of(why) for url, why in new.items()}
    (commonest, count), *others = Counter(kinds.values()).most_common()
    url = next(url for url, kind in kinds.items() if kind == commonest)
    raise TileError(
        f"{len(new)} of its {chips} chips would newly be quarantined"
        + (
            ", and its published file would vanish"
            if vanishing
            else f", more than `max_quarantined={allowed:g}` allows"
        )
        + f": {url} {new[url]} ({count} such{f', {len(new) - count} of other kinds' if others else ''}); look at the "
        "store and at the machines, and run the same command again; if the chips are as bad as that, "
        "`max_quarantined=1` accepts it"
    )
