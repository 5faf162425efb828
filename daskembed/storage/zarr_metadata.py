"""Zarr stores of others: what their metadata may ask for, checked before Zarr sees it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import ChipError
from daskembed.storage.stores import Storage, is_stray
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    from zarr.abc.store import Store

_NUMCODECS = (
    *("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "quantize"),
    *("bitround", "packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "vlen-utf8"),
)
CODECS_2 = frozenset(_NUMCODECS)
"""Codecs that a store of Zarr 2 may name: of numbers, and of strings for coordinates. Others run what they decode
(pickle), build objects of it (JSON, MessagePack), or are code of whatever package is installed."""
CODECS_3 = frozenset(
    {"bytes", "transpose", "sharding_indexed", "blosc", "zstd", "gzip", "crc32c", "vlen-utf8"}
    | {f"numcodecs.{name}" for name in _NUMCODECS}
)
"""Those of Zarr 3."""
MOST_LINE_BYTES = 2**27
"""Of an array of one dimension: a coordinate is read as a whole when a store is opened."""
MOST_SHARD = 2**22
"""Chunks of a shard: room for its index is made before it is read."""
_COORDINATES = ("time", "band", "y", "x")
_METADATA = ("zarr.json", ".zarray", ".zmetadata", ".zgroup", ".zattrs")


def checked(store: Store, storage: Storage | None = None) -> Any:
    """A store to read from which gives only metadata that `check_metadata` accepts, and no pipes for chunks.

    Parameters
    ----------
    store
        The store.
    storage
        Where it is; None if it is in memory.
    """
    from zarr.storage import WrapperStore

    lines: set[str] = set()

    class Checked(WrapperStore[Any]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            if storage is not None and is_local(storage.url):
                path = Path(storage.url_of(key))
                if path.exists() and not path.is_file():
                    raise ChipError(f"holds {key}, which is no file: a folder, a pipe or a device")
            folder, _, name = key.rpartition("/")
            most = MOST_JSON if name in _METADATA else None
            if most is None and folder.removesuffix("/c") in lines:
                most = MOST_LINE_BYTES
            if storage is None or most is None:
                found = await self._store.get(key, prototype, byte_range)
            else:
                found = await _get_whole(storage, key, prototype, most)
            if found is not None and name in _METADATA:
                lines.update(check_metadata(key, found.to_bytes()))
            return found

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            if storage is None:
                async for name in self._store.list_dir(prefix):
                    yield name
            else:
                # What is in a group is a folder; tools leave others there, too.
                for path in storage.folders(prefix):
                    if not is_stray(path):
                        yield path.rpartition("/")[2]

    return Checked(store)


async def _get_whole(storage: Storage, key: str, prototype: Any, most: int) -> Any:
    """An object, whose size is in the head of the answer, before the body; None if there is none."""
    try:
        found = await obstore.get_async(storage._store, key)
        if (size := found.meta["size"]) > most:
            raise ChipError(f"has {size:,} bytes in {key}, expected at most {most:,}")
        return prototype.buffer.from_bytes(await found.bytes_async())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def check_metadata(key: str, data: bytes) -> list[str]:
    """Check a document of metadata; gives the paths of its coordinates.

    Raises
    ------
    ChipError
        If it is none, asks for a codec that is not listed, or claims sizes that would have to be made room for.
    """
    try:
        document = parse_object(data, most=MOST_JSON)
        arrays = _arrays(key, document)
        return [name for name, array, form in arrays if _check_array(name or "the array", array, form)]
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ChipError(f"has damaged metadata, {key}: {type(error).__name__} {str(error)[:200]}") from None


def _arrays(key: str, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Path, metadata and form (2 or 3) of each array of a document, those in consolidated metadata too."""
    path, _, name = key.rpartition("/")
    if name == ".zattrs":
        return
    form = 3 if name == "zarr.json" else 2
    if name != ".zmetadata" and document["zarr_format"] != form:
        raise ChipError(f"has {repr(document['zarr_format'])[:40]} as zarr_format in {key}, expected {form}")
    # Zarr takes what has a shape for an array, whatever its key.
    if "shape" in document:
        yield path, document, form
    if name == ".zmetadata":
        inner = dict(document["metadata"])
        if both := [key for key in inner if key.endswith("/.zgroup") and key.removesuffix("group") + "array" in inner]:
            raise ChipError(f"has {both[0]} and an array of the same place in {name}")
    else:
        within = (document.get("consolidated_metadata") or {}).get("metadata") or {}
        inner = {f"{one}/{'zarr.json' if form == 3 else '.zarray'}": found for one, found in within.items()}
    for one, found in inner.items():
        yield from _arrays(f"{path}/{one}".lstrip("/"), found)


def _check_array(name: str, array: dict[str, Any], form: int) -> bool:
    """Check an array; whether it is a coordinate, which is read as a whole."""
    kind = array["dtype" if form == 2 else "data_type"]
    chunk = array["chunks"] if form == 2 else array["chunk_grid"]["configuration"]["chunk_shape"]
    if form == 2:
        asked = [one["id"] for one in (array.get("compressor"), *(array.get("filters") or ())) if one is not None]
        known, size = CODECS_2, np.dtype(kind).itemsize if isinstance(kind, str) else 8
        if kind == "|O" and "vlen-utf8" not in asked:
            raise ChipError(f"has Python objects in {name}: expected numbers, or strings (vlen-utf8)")
    else:
        asked = list(_codecs(array["codecs"], chunk))
        known, size = CODECS_3, 8
        if isinstance(kind, dict):
            size = kind.get("configuration", {}).get("length_bytes", size)
    if unknown := [codec for codec in asked if codec not in known]:
        raise ChipError(
            f"uses the codec {str(unknown[0])[:40]!r} in {name}, which is not taken from stores of others: write it "
            f"with one of {', '.join(sorted(known))}"
        )
    shape = array["shape"]
    is_line = len(shape) == 1 or name.rpartition("/")[2] in _COORDINATES
    # Of a chunk, too, room is made for the whole.
    if is_line and (count := max(math.prod(shape), math.prod(chunk))) * size > MOST_LINE_BYTES:
        raise ChipError(f"claims {count:,} values of {size} bytes in {name}: expected coordinates of an image")
    return is_line


def _codecs(codecs: list[Any], chunk: list[int]) -> Iterator[str]:
    """Names of codecs, and of those inside of shards of the shape `chunk`."""
    for codec in codecs:
        name, options = (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration") or {})
        yield name
        if name == "sharding_indexed":
            inner = options["chunk_shape"]
            if (count := math.prod(-(-long // short) for long, short in zip(chunk, inner, strict=True))) > MOST_SHARD:
                raise ChipError(f"has shards of {count:,} chunks, expected at most {MOST_SHARD:,}")
            yield from _codecs([*options["codecs"], *options.get("index_codecs", ())], inner)
