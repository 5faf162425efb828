"""Whether the +1000 of Sentinel-2 is to be taken out of a file of a catalogue: by where it lies and its baseline."""

from __future__ import annotations

from daskembed.errors import TileError
from daskembed.sources.baseline import FIRST_BASELINE, FIRST_DAY, parse_baseline
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.sources.stac.items import Item

ADDED = 1000
"""What ESA adds to every number of Sentinel-2 since the processing baseline 04.00."""


def decide(item: Item, href: str, catalogue: Catalogue, asked: str | None) -> tuple[int, str]:
    """What is to be taken out of the numbers of a Sentinel-2 file, and why.

    Flags and tags of catalogues say the same of both kinds of files; places do not. An item's day is no evidence:
    older images that were processed again have the offset, too.

    Parameters
    ----------
    asked
        ``yes``, it is taken out already; ``no``, it is in files of baseline 04.00 and newer; None, not said.

    Returns
    -------
    tuple of int and str
        `ADDED` or 0; and what decided that.

    Raises
    ------
    TileError
        If nothing tells.
    """
    if asked == "yes":
        return 0, "`offset_applied='yes'`"
    known = catalogue.files_at(href)
    baseline = None if item.baseline is None else parse_baseline(item.baseline)
    day = item.time.date()
    if baseline is not None and baseline < FIRST_BASELINE:
        return 0, f"processing baseline {baseline:05.2f}, before {FIRST_BASELINE:05.2f}"
    said = f"processing baseline {'not told' if baseline is None else f'{baseline:05.2f}'}"
    if asked == "no":
        if baseline is None and day < FIRST_DAY:
            return 0, f"{said}, sensed before {FIRST_DAY}; `offset_applied='no'`"
        return ADDED, f"{said}; `offset_applied='no'`"
    unclear = known.unclear is not None and known.unclear[0] <= day <= known.unclear[1]
    if known.offset == "out" and not unclear:
        return 0, "taken out of the files there"
    if known.offset == "in" and not unclear and baseline is not None:
        return ADDED, f"{said}; in the numbers of the files there"
    if unclear:
        why = "some files there of these days have it and some have not"
    elif known.offset is None:
        why = "it is not known of the files there"
    else:
        why = "the item does not tell its processing baseline" + (f" ({item.baseline!r})" if item.baseline else "")
    raise TileError(
        f"{href} of {item.id} ({catalogue.name}, {day}, {said}): nothing tells whether the {ADDED} that ESA adds since "
        f"{FIRST_BASELINE:05.2f} is in its numbers, for {why}: `offset_applied` yes (taken out already) or no (still "
        "in) decides"
    )
