"""Files of images, opened once a process: their blocks fetched once, many at a time, decoded once."""

from __future__ import annotations

import atexit
import itertools
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from daskembed.errors import ChipError
from daskembed.health import fault_of
from daskembed.sources.gdal import TIFF_SIGNATURES
from daskembed.sources.keeping import Keeping
from daskembed.sources.stac.view import View
from daskembed.storage.access import Access, fetch
from daskembed.storage.readers import keeping
from daskembed.timings import timed

if TYPE_CHECKING:
    from numpy.typing import NDArray

REQUESTS = 64
"""In the air at once, of a process."""
GAP = 16 * 2**10
"""Bytes between two blocks that are fetched along with them: another request costs more."""
MOST_REQUEST = 8 * 2**20
"""Bytes of a request for several blocks."""
MOST_FILES = 256
"""That a process keeps open: bytes of headers, and no connections."""
MOST_FETCHED = 256 * 2**20
"""Bytes of blocks that wait to be decoded; those beyond are fetched again."""
PAGE = 2**20
"""Bytes that are fetched together of a file of which it is not known where its blocks lie."""
MOST_BLOCK = 256 * 2**20
"""Bytes of a decoded block."""

JPEG_2000 = b"\0\0\0\x0cjP  "
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 16, "GDAL_NUM_THREADS": 1}

_HEADER = 32 * 2**10
"""Bytes that are fetched first: all of the header of a cloud-optimised file of a tile."""

_Key = tuple[int, int, int]
"""Number of a file, row and column of a block."""

_pool = ThreadPoolExecutor(REQUESTS, "daskembed-fetch")
_ahead = ThreadPoolExecutor(8, "daskembed-decode")
_decoded = Keeping["NDArray[np.generic]"](lambda block: block.nbytes)
_pages = Keeping[bytes](len, 128 * PAGE)
_numbers = itertools.count()
_arriving = threading.Lock()
_coming: OrderedDict[_Key, Future[bytes]] = OrderedDict()
"""Blocks that are on their way, or wait to be decoded."""
_registry = threading.Lock()
_files: OrderedDict[tuple[str, Access], Future[File]] = OrderedDict()


def start(url: str, access: Access) -> Future[File]:
    """The file of a URL, opened once a process, meanwhile; one that cannot be opened is tried again the next time."""
    key = (url, access)
    with _registry:
        found = _files.get(key)
        if found is None or (found.done() and found.exception() is not None):
            found = _files[key] = _pool.submit(File, url, access)
        _files.move_to_end(key)
        old = [_files.popitem(last=False)[1] for _ in range(len(_files) - MOST_FILES)]
    for future in old:
        _close(future)
    return found


def _close(future: Future[File]) -> None:
    """Close a file, as soon as it is open: where datasets are left to the garbage collector, GDAL crashes."""
    future.add_done_callback(lambda done: None if done.exception() else done.result().close())


# GDAL would call Python's files when there is no Python any more.
@atexit.register
def forget() -> None:
    """Close all files, and give up what is kept of them."""
    with _registry:
        files = [*_files.values()]
        _files.clear()
    for future in files:
        _close(future)
    with _arriving:
        _coming.clear()
    for kept in (_decoded, _pages):
        kept.drop(lambda key: True)


class _Coming(NamedTuple):
    """A block on its way."""

    start: int
    """Its first byte in the file; `end` is exclusive."""
    end: int
    future: Future[bytes]


def _is_here(key: _Key) -> bool:
    """Whether a block is kept or on its way; one whose request failed is not."""
    future = _coming.get(key)
    return _decoded.has(key) or (future is not None and not (future.done() and future.exception() is not None))


def _drop_oldest() -> None:
    """Give up what was fetched and is not asked for, beyond `MOST_FETCHED`."""
    waiting = sum(len(one.result()) for one in _coming.values() if one.done() and one.exception() is None)
    while waiting > MOST_FETCHED and (oldest := next(iter(_coming.values()))).done():
        _coming.popitem(last=False)
        waiting -= 0 if oldest.exception() else len(oldest.result())


def open_anew(url: str, access: Access) -> File:
    """The file of a URL as it is now; what was opened before goes on being read if it is still the same."""
    file, key, old = File(url, access), (url, access), None
    with _registry:
        known = _files.get(key)
        if known is not None and not known.done():
            _close(known)
        elif known is not None and known.exception() is None:
            old = known.result()
            if old.is_like(file):
                old, file = file, old
        _files[key] = Future()
        _files[key].set_result(file)
    if old is not None:
        old.close()
    return start(url, access).result()


class File:
    """A file of one band.

    Raises `ChipError` if it is none, of the file; `FileNotFoundError`, `StorageError` of the store.
    """

    def __init__(self, url: str, access: Access = ()) -> None:
        self.url, self._access = url, access
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._fresh = False
        answer = fetch(url, access, 0, _HEADER)
        self.size, self.etag = answer.size, answer.etag
        self._header = keeping(self._fetch, self.size, (0, answer.data))
        if not answer.data:
            raise ChipError("is empty")
        if answer.data.startswith(TIFF_SIGNATURES):
            self._driver = "GTiff"
        elif answer.data.startswith(JPEG_2000):
            self._driver = "JP2OpenJPEG"
        else:
            raise ChipError(f"is neither TIFF nor JPEG 2000: it starts with {answer.data[:8]!r}")
        self._name = f"{uuid.uuid4().hex}.{'tif' if self._driver == 'GTiff' else 'jp2'}"
        self._free: list[_Handle] = []
        self._closed = False
        self._places: dict[_Key, tuple[int, int] | None] = {}
        with self._opened() as (dataset, _, _):
            self.shape: tuple[int, int] = dataset.shape
            self.block: tuple[int, int] = dataset.block_shapes[0]
            self.dtype = np.dtype(dataset.dtypes[0])

    def is_like(self, other: File) -> bool:
        """Whether its store says the same of it as of another."""
        return (self.size, self.etag) == (other.size, other.etag)

    def look(self, say: Callable[[Any], Any]) -> Any:
        """What `say` says of the open dataset."""
        with self._opened() as (dataset, _, _):
            return say(dataset)

    def begin(self, rows: slice, cols: slice) -> None:
        """Have the blocks of a window fetched that are neither here nor on their way, neighbours in one request."""
        wanted = [key for key in self._keys(rows, cols) if not _is_here(key)]
        if self._driver != "GTiff":
            # Nobody knows where its blocks lie before it is decoded.
            for key in wanted:
                _ahead.submit(self._block, key)
            return
        if not wanted:
            return
        places = self._places_of(wanted)
        with _arriving:
            # Others may have begun meanwhile.
            found = sorted((*place, key) for key, place in places.items() if place and not _is_here(key))
            runs: list[list[_Coming]] = []
            for start, size, key in found:
                _coming[key] = Future()
                one = _Coming(start, start + size, _coming[key])
                if runs and start - runs[-1][-1].end <= GAP and one.end - runs[-1][0].start <= MOST_REQUEST:
                    runs[-1].append(one)
                else:
                    runs.append([one])
            _drop_oldest()
        for run in runs:
            _pool.submit(self._bring, run)

    def read(self, rows: slice, cols: slice) -> NDArray[np.generic]:
        """Stored pixels of a window ``(y, x)``."""
        self.begin(rows, cols)
        tall, wide = self.block
        found = np.empty((rows.stop - rows.start, cols.stop - cols.start), self.dtype)
        for key in self._keys(rows, cols):
            top, left = key[1] * tall, key[2] * wide
            part = self._block(key)
            y0, y1 = max(rows.start, top), min(rows.stop, top + part.shape[0])
            x0, x1 = max(cols.start, left), min(cols.stop, left + part.shape[1])
            into = (slice(y0 - rows.start, y1 - rows.start), slice(x0 - cols.start, x1 - cols.start))
            found[into] = part[y0 - top : y1 - top, x0 - left : x1 - left]
        return found

    def _keys(self, rows: slice, cols: slice) -> list[_Key]:
        tall, wide = self.block
        return [
            (self._number, row, col)
            for row in range(rows.start // tall, (rows.stop - 1) // tall + 1)
            for col in range(cols.start // wide, (cols.stop - 1) // wide + 1)
        ]

    def _places_of(self, keys: Sequence[_Key]) -> dict[_Key, tuple[int, int] | None]:
        """First byte and number of bytes of blocks; None of those that the file has not."""
        if unknown := [key for key in keys if key not in self._places]:
            with self._opened() as (dataset, _, _):
                self._places |= {key: self._place(dataset, key) for key in unknown}
        return {key: self._places[key] for key in keys}

    def _place(self, dataset: Any, key: _Key) -> tuple[int, int] | None:
        items = [dataset.get_tag_item(f"BLOCK_{what}_{key[2]}_{key[1]}", "TIFF", 1) for what in ("OFFSET", "SIZE")]
        if None in items:
            return None
        start, size = map(int, items)
        if not 0 < size <= self.size - start:
            raise ChipError(f"says that a block lies at byte {start:,}, {size:,} long: it has {self.size:,} bytes")
        return start, size

    def _bring(self, run: Sequence[_Coming]) -> None:
        try:
            first = run[0].start
            data = self._fetch(first, run[-1].end)
            for start, end, future in run:
                future.set_result(data[start - first : end - first])
        except BaseException as error:
            for _, _, future in run:
                if not future.done():
                    future.set_exception(error)

    def _fetch(self, start: int, end: int) -> bytes:
        answer = fetch(self.url, self._access, start, end, fresh=self._fresh)
        if answer.size != self.size or (self.etag and answer.etag and answer.etag != self.etag):
            raise ChipError("was replaced since its header was read")
        if len(answer.data) != end - start:
            raise ChipError(f"gave {len(answer.data):,} of the {end - start:,} bytes asked for")
        return answer.data

    def _block(self, key: _Key) -> NDArray[np.generic]:
        size = self.block[0] * self.block[1] * self.dtype.itemsize
        return _decoded.get(key, size, partial(self._decode, key))

    def _decode(self, key: _Key) -> NDArray[np.generic]:
        tall, wide = self.block
        top, left = key[1] * tall, key[2] * wide
        window = Window(left, top, min(wide, self.shape[1] - left), min(tall, self.shape[0] - top))
        try:
            held = 0, b""
            if self._driver == "GTiff" and (place := self._places_of([key])[key]) is not None:
                held = place[0], self._bytes_of(key, place)
            with self._opened() as (dataset, view, _):
                view.held = held
                pixels: NDArray[np.generic] = dataset.read(1, window=window)
                if view.failed is not None:
                    raise view.failed
                view.held = 0, b""
                return pixels
        except (ChipError, FileNotFoundError):
            self._fresh = True
            raise

    def _bytes_of(self, key: _Key, place: tuple[int, int]) -> bytes:
        with _arriving:
            future = _coming.pop(key, None)
        with timed("source"):
            return self._fetch(place[0], sum(place)) if future is None else future.result()

    @contextmanager
    def _opened(self) -> Iterator[_Handle]:
        """An open dataset for this thread alone, which others get later."""
        with self._lock:
            handle = self._free.pop() if self._free else None
        view = View(self._name, self.size, self.bytes_of) if handle is None else handle.view
        sound = False
        with rasterio.Env(**_GDAL):
            try:
                if handle is None:
                    context = Context()
                    dataset = context.run(rasterio.open, self._name, driver=self._driver, opener=view.open)
                    handle = _Handle(dataset, view, context)
                yield handle
                sound = True
            except (RasterioError, ValueError) as error:
                if view.failed is not None:
                    raise view.failed from None
                text = " ".join(str(error.__cause__ or error).split()).replace(self._name, "the file")
                raise fault_of(error, f"cannot be decoded, it is damaged: {text[:200]}") from None
            finally:
                # One that failed is not used again.
                if handle is not None and not sound:
                    handle.close()
        with self._lock:
            if not self._closed:
                self._free.append(handle)
                return
        handle.close()

    def close(self) -> None:
        """Give up what is open; what is being read is read to its end."""
        with self._lock:
            self._closed, handles = True, self._free
            self._free = []
        for handle in handles:
            handle.close()

    def bytes_of(self, start: int, end: int) -> bytes:
        """Bytes of the header, and of what is not known to be a block."""
        if self._driver != "GTiff":
            pages = [
                _pages.get((self._number, page), PAGE, partial(self._page, page))
                for page in range(start // PAGE, (end - 1) // PAGE + 1)
            ]
            first = start // PAGE * PAGE
            return b"".join(pages)[start - first : end - first]
        with self._lock:
            return self._header(start, end)

    def _page(self, number: int) -> bytes:
        with timed("source"):
            return self._fetch(number * PAGE, min(self.size, (number + 1) * PAGE))


class _Handle(NamedTuple):
    """A dataset that one thread has at a time."""

    dataset: Any
    view: View
    context: Context
    """rasterio keeps files in the context that they were opened in, and finds them in no other."""

    def close(self) -> None:
        self.context.run(self.dataset.close)
