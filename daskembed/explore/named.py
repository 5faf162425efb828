"""Rows that are named by the ends of their URLs, as hits are listed, and what is said of those that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from daskembed.errors import InputError
from daskembed.storage.urls import is_local, local_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from daskembed.explore.queries import Given

_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}$")


def meant_by(given: Given, urls: Iterable[str], where: str) -> Given:
    """A row by its whole URL, where it is given by the end of one: a path here, or a name as hits are listed.

    Raises
    ------
    InputError
        If it is the end of none of the URLs, or of several; `where` has the rows.
    """
    urls, end = list(urls), str(given.url)
    if end in urls:
        return given
    path, mark, fragment = end.partition("#")
    here = [f"/{local_path(path).as_posix()}{mark}{fragment}"] if is_local(path) else []
    ends = (f"/{end}", *here)
    found = [url for url in urls if f"/{url}".endswith(ends) or f"/{without_suffix(url)}".endswith(ends)]
    if not found:
        known = f"they look like {urls[0]}; the end of one will do" if urls else "its rows have no URLs, give a place"
        raise InputError(f"no row of the URL {end} in {where}: {known}")
    if len(found) > 1:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        raise InputError(f"{end} is the end of several rows' URLs in {where}: {', '.join(found[:2])}{more}")
    return replace(given, text=found[0] + given.text.removeprefix(end), url=found[0])


def without_suffix(url: str) -> str:
    """The URL of a file without its suffix, and with its fragment."""
    path, mark, fragment = url.partition("#")
    return _SUFFIX.sub("", path) + mark + fragment


def no_patch(given: Given, cells: NDArray[np.int64] | None) -> str:
    """Why a row does not have the patch that is given; `cells` are those that it has."""
    if cells is None or given.cell is None:
        return f"{given.text}: these files have one vector a row and no patches: give {given.url}"
    (top, left), (bottom, right) = cells.min(axis=0), cells.max(axis=0)
    return f"{given.text}: its patches run from {top},{left} to {bottom},{right}, as ROW,COL"
