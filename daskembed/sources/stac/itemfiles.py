"""Files of items: ItemCollections in JSON and STAC GeoParquet, on this machine or another."""

from __future__ import annotations

import functools
import io
from typing import Any

from daskembed.documents import parse_json
from daskembed.errors import InputError
from daskembed.storage.access import fetch

MOST = 2**30
"""Bytes; an item of Sentinel-2 has some 20,000."""


def read_items(url: str) -> list[dict[str, Any]]:
    """The items of a file, as they are; read once a process as long as it stays the same.

    Raises
    ------
    InputError
        If there is no such file, or it is none of items.
    StorageError
        If it cannot be read.
    """
    try:
        told = fetch(url, (), 0, 1)
    except FileNotFoundError:
        raise InputError(f"no file {url}: expected one of STAC items") from None
    return _read(url, told.size, told.etag)


@functools.lru_cache(maxsize=4)
def _read(url: str, size: int, etag: str) -> list[dict[str, Any]]:
    if size > MOST:
        raise InputError(f"{url} has {size:,} bytes, expected at most {MOST:,}: split it by region or period")
    data = fetch(url, (), 0, MOST).data
    return _from_parquet(data, url) if url.lower().endswith(".parquet") else _from_json(data, url)


def _from_json(data: bytes, url: str) -> list[dict[str, Any]]:
    try:
        value = parse_json(data, most=MOST)
    except ValueError as error:
        raise InputError(f"{url} is no JSON: {' '.join(str(error).split())[:200]}") from None
    if isinstance(value, dict):
        value = value.get("features") if value.get("type") == "FeatureCollection" else [value]
    if not isinstance(value, list) or not all(isinstance(one, dict) and one.get("type") == "Feature" for one in value):
        raise InputError(f"{url} is no file of STAC items: expected an ItemCollection, a list of items or an item")
    return value


def _from_parquet(data: bytes, url: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        from stac_geoparquet.arrow import stac_table_to_items
    except ImportError:
        raise InputError(
            f"{url} is read with stac-geoparquet, which is not installed: pip install 'daskembed[stac]'"
        ) from None
    try:
        return list(stac_table_to_items(pq.read_table(io.BytesIO(data))))
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{url} is no STAC GeoParquet: {' '.join(str(error).split())[:200]}") from None
