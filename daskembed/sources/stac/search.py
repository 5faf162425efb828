"""Searches for items, in STAC APIs and in files: all that are asked for, whatever breaks off, and no others."""

from __future__ import annotations

import functools
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from daskembed import config
from daskembed.errors import InputError, StorageDeniedError, StorageError
from daskembed.sources.stac.itemfiles import read_items
from daskembed.sources.stac.items import Item, parse_item
from daskembed.storage.urls import redact

if TYPE_CHECKING:
    from pystac_client.stac_api_io import StacApiIO

    from daskembed.sources.stac.catalogue import Catalogue, Images

_log = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]
"""West, south, east and north, degrees; west is more than east across 180 degrees."""
_TOO_LARGE = (413, 502, 504)
"""Answers of servers whose pages grow too large, among other things."""
_SMALLEST = 10
"""Items of a page that is not made smaller any more."""
_IDLE = 5
"""Pages without a new item, one after the other, after which a server is held to go round in circles."""


def find_items(
    catalogue: Catalogue, images: Images, bounds: Bounds, start: date | None, end: date | None
) -> list[Item]:
    """The items of one collection that meet `bounds` and were sensed from `start` to `end`, both inclusive.

    Nothing but collection, bounds and time is asked of a server: one that cannot sort, query or filter ignores that or
    answers with nothing. What it gives is looked through here.

    Raises
    ------
    StorageError
        If it does not answer, or not with all of it; `StorageDeniedError` if it refuses.
    InputError
        If it is no STAC API, or no file of items.
    """
    if catalogue.is_file:
        found = read_items(catalogue.url)
    else:
        found = _Search(catalogue, images.collection, start, end).run(bounds)
    wanted = [raw for raw in found if raw.get("collection") == images.collection and _is_one(raw, images)]
    items = [parse_item(raw, catalogue) for raw in wanted if _meets(raw.get("bbox"), bounds)]
    return [
        item
        for item in items
        if _meets(item.bbox, bounds)
        and (start is None or item.time.date() >= start)
        and (end is None or item.time.date() <= end)
    ]


def collections_of(url: str, *, again: bool = True) -> list[str]:
    """Ids of the collections of a STAC API; raises as `find_items` does.

    Parameters
    ----------
    again
        Whether a server that does not answer is asked again, for `retry-timeout`.
    """
    pages = _server(url, again).pages(f"{url}/collections", "collections", {})
    return [str(one.get("id")) for page in pages for one in page["collections"]]


def _is_one(raw: Mapping[str, Any], images: Images) -> bool:
    told = raw.get("properties")
    return not images.only or (
        isinstance(told, Mapping)
        and all(str(told.get(key)).lower() in map(str.lower, values) for key, values in images.only.items())
    )


def _meets(box: Any, bounds: Bounds) -> bool:
    """Whether a bounding box meets `bounds`; True of what is none, or has heights."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        return True
    return any(
        west <= other_east and other_west <= east and south <= other_north and other_south <= north
        for west, south, east, north in _halves(bounds)
        for other_west, other_south, other_east, other_north in _halves(tuple(box))
    )


def _halves(bounds: tuple[Any, ...]) -> list[Bounds]:
    """What is on each side of 180 degrees, of bounds that cross it, in one way of writing that or in another."""
    west, south, east, north = bounds
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    west, east = (edge - 360 if edge > 180 else edge + 360 if edge < -180 else edge for edge in (west, east))
    return [bounds] if west <= east else [(west, south, 180.0, north), (-180.0, south, east, north)]


@dataclass(frozen=True)
class _Search:
    """A search of one collection."""

    catalogue: Catalogue
    collection: str
    start: date | None
    end: date | None

    def run(self, bounds: Bounds) -> list[dict[str, Any]]:
        # The server is not asked for bounds across 180 degrees: not each one knows what these are.
        found: dict[str, dict[str, Any]] = {}
        for half in _halves(bounds):
            size = self.catalogue.page_size
            while True:
                try:
                    for page in self._pages(half, size):
                        found |= {str(item.get("id")): item for item in page["features"]}
                    break
                except _TooLargeError:
                    # Where it goes on after so many items may be known of pages of that size only: it begins again.
                    size = max(_SMALLEST, size // 2)
        return list(found.values())

    def _pages(self, bounds: Bounds, size: int) -> Iterator[dict[str, Any]]:
        from pystac_client import ItemSearch

        server = _server(self.catalogue.url, True)
        search = ItemSearch(
            server.search,
            method=server.method,
            stac_io=server.io,
            collections=[self.collection],
            bbox=bounds,
            datetime=self._period(),
            limit=size,
        )
        seen: set[str] = set()
        idle = 0
        for page in server.pages(server.search, "features", search.get_parameters(), size):
            ids = {str(item.get("id")) for item in page["features"]}
            idle = 0 if ids - seen else idle + 1
            seen |= ids
            if idle == _IDLE:
                raise StorageError(
                    f"{self.catalogue.name} goes round in circles: the last {_IDLE} pages of {self.collection} have "
                    f"nothing that the {len(seen)} items before do not have"
                )
            yield page

    def _period(self) -> str | None:
        if self.start is None or self.end is None:
            return None
        # Whoever wants what will ever be writes the last day that there is.
        after = min(self.end, date.max - timedelta(days=1)) + timedelta(days=1)
        return f"{self.start}T00:00:00Z/{after}T00:00:00Z"


class _TooLargeError(Exception):
    """A page that a server may be able to give if it were smaller."""


@dataclass(frozen=True)
class _Server:
    """A STAC API, as its landing page describes it."""

    url: str
    io: StacApiIO
    again: bool = True
    """Whether what fails is asked for again."""
    search: str = ""
    method: str = "GET"

    def pages(self, url: str, what: str, parameters: dict[str, Any], size: int = _SMALLEST) -> Iterator[dict[str, Any]]:
        """Pages with `what`, to the last; those of `pystac_client` end at the first that is empty, or that fails."""
        from pystac.link import Link

        link: Any = url
        while link is not None:
            page = self.ask(link, what, parameters, size)
            yield page
            following = next((one for one in page.get("links", []) if one.get("rel") == "next"), None)
            link = None if following is None else Link.from_dict(following)

    def ask(self, source: Any, what: str, parameters: dict[str, Any], size: int = _SMALLEST) -> dict[str, Any]:
        """The answer to one request, which is to have `what`; asked for again until `retry-timeout` where it may help.

        Parameters
        ----------
        source
            A URL, or a link to a further page, which says itself how it is asked for.
        """
        from pystac_client.exceptions import APIError

        patience = config.get("retry-timeout") if self.again else 0
        end, pause = time.monotonic() + patience, 0.2
        options = {"method": self.method if what == "features" else "GET"} if isinstance(source, str) else {}
        while True:
            try:
                answer = self.io.read_json(source, parameters=parameters, **options)
                found = _checked(answer, what)
                _silent.discard(self.url)
                return found
            except (APIError, ValueError) as error:
                status = getattr(error, "status_code", None)
                why = f"{f'{status} ' if status else ''}{_first_line(error)}"
                told = f"{self.url}: {why}"
                if status in (401, 403):
                    raise StorageDeniedError(f"{told}: the catalogue refuses to be searched") from None
                if status in _TOO_LARGE and size > _SMALLEST:
                    raise _TooLargeError from None
                if status is not None and status < 500 and status not in (408, 429):
                    raise StorageError(f"{told}: the catalogue does not answer what it is asked") from None
                if time.monotonic() + pause > end:
                    since = f", asked again for {patience:g} s (`retry-timeout`)" if patience else ""
                    raise StorageError(
                        f"{self.url}: the catalogue does not answer ({why}{since}); check its address, the network, "
                        "and HTTPS_PROXY where there is a proxy"
                    ) from None
                if self.url not in _silent:
                    _silent.add(self.url)
                    _log.warning(
                        f"warning: {self.url} does not answer ({why}): trying again for {patience:g} s; Ctrl-C stops"
                    )
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(15.0, 2 * pause)


def _checked(answer: Any, what: str) -> dict[str, Any]:
    """An answer with a list of `what` and of links; raises `ValueError` if it is none, such as an error sent as 200."""
    if not isinstance(answer, dict):
        raise ValueError("its answer is no JSON object")
    for key in (what, *(["links"] if "links" in answer else [])):
        if not isinstance(answer.get(key), list) or not all(isinstance(one, dict) for one in answer[key]):
            raise ValueError(f"its answer has no {key}")
    if any(
        one.get("rel") in ("next", "search") and not isinstance(one.get("href"), str) for one in answer.get("links", [])
    ):
        raise ValueError("its answer has a link without a href")
    return answer


_silent: set[str] = set()
"""Servers of which is told that they do not answer."""
_IN_WORDS = {
    r"Failed to resolve|Name or service not known|nodename nor servname|getaddrinfo": "its name cannot be resolved",
    "Connection refused": "connection refused",
    "timed out": "timed out",
}
"""Of connections."""


def _first_line(error: Exception) -> str:
    """What a server says, or of a connection the end of it: requests puts all that it was part of before."""
    text = redact(str(error).strip())
    if getattr(error, "status_code", None) is None:
        for words, meaning in _IN_WORDS.items():
            if re.search(words, text):
                return meaning
    if getattr(error, "status_code", None) is None and (parts := text.split(": ")):
        text = parts[-1].rstrip("'\")")
    return text.splitlines()[0][:200] if text else type(error).__name__


@functools.cache
def _server(url: str, again: bool) -> _Server:
    try:
        from pystac_client.stac_api_io import StacApiIO
    except ImportError:
        raise InputError(
            f"{url}: it is searched with pystac-client, which is not installed: pip install 'daskembed[stac]'"
        ) from None
    io = StacApiIO(timeout=(10, config.get("retry-timeout") / 3 or 10), max_retries=None)
    landing = _Server(url, io, again).ask(url, "links", {})
    links = [link for link in landing["links"] if link.get("rel") == "search"]
    if not links:
        raise InputError(f"{url} is no STAC API that can be searched: its first page has no link to a search")
    # By POST where it is said: of long questions, URLs are cut off on the way.
    posted = [link for link in links if str(link.get("method")).upper() == "POST"]
    return _Server(url, io, again, (posted or links)[0]["href"], "POST" if posted else "GET")
