"""A URL or a local path into a store: list, get, ranged get and atomic writes, local and cloud alike."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

import obstore
import pyarrow as pa
from obstore.exceptions import (
    BaseError,
)
from obstore.store import ObjectStore

from daskembed.errors import InputError, StorageError
from daskembed.storage import folders, local_files, uploads
from daskembed.storage.failures import explained, persist
from daskembed.storage.local_files import local_writer, meant_beside, remove_if_empty, room_for
from daskembed.storage.opening import open_store
from daskembed.storage.readers import open_ranged
from daskembed.storage.urls import SCHEMES, SIGNED, USER, check_whole, is_local, local_path, redact
from daskembed.text import visible

_log = logging.getLogger(__name__)
READINGS = 4
"""How often an object is asked for whose answers are not what the listing says, before its store is blamed."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    """Path below the storage's URL."""
    size: int
    """Bytes."""
    etag: str
    """The store's tag of this content (for local files made of inode, time and size)."""
    reason: str | None = field(default=None, repr=False)
    """Why it cannot be read; None if it can. Without part in the `repr`, of which fingerprints are made."""

    def holds(self, size: int, etag: str) -> bool:
        """Whether its content is still that of this size and tag."""
        # Machines that see one file by mounts of their own may see other inodes, with which tags of local files begin.
        ours, theirs = (_LOCAL.sub("", _bare(one)) for one in (self.etag, etag))
        return self.size == size and (ours == theirs or not ours or not theirs)


_LOCAL = re.compile(r"^[0-9a-f]+(?=-[0-9a-f]+-[0-9a-f]+$)")


def _bare(etag: str) -> str:
    """An ETag without what stores write around it in their answers, but not in their listings."""
    return etag.removeprefix("W/").strip('"')


@dataclass(frozen=True)
class Storage:
    """A folder or a URL prefix. It pickles as its URL: workers open their own connections."""

    url: str
    """A local path, or a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL, without a trailing slash."""
    fresh: bool = field(default=False, compare=False, repr=False)
    """Whether caches on the way are passed, by connections of its own."""

    def __post_init__(self) -> None:
        root = local_path(self.url).as_posix() if is_local(self.url) else self.url
        if root.rstrip("/").endswith(":"):
            raise InputError(f"{self.url} names no bucket: expected a URL such as s3://bucket/folder")
        if not is_local(root) and (USER.search(root) or SIGNED.search(root)):
            raise InputError(
                f"{redact(root)}: the URL of a store must not hold a user, password or signature; give credentials in "
                "the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN)"
            )
        object.__setattr__(self, "url", root.rstrip("/") or "/")
        if root.startswith(("https://", "http://")):
            raise InputError(
                f"{self.url}: a folder of the web cannot be listed; if it is a STAC API, type stac+{self.url}; else "
                "give the one that lists its files, as stac+https://HOST/PATH, or a store in s3://, gs:// or az://"
            )
        if not is_local(root) and root.partition("://")[0] not in SCHEMES:
            raise InputError(f"{self.url}: unknown scheme; give a folder or a URL in {'://, '.join(SCHEMES)}://")

    @property
    def _store(self) -> ObjectStore:
        return open_store(self.url, fresh=self.fresh)

    def url_of(self, path: str) -> str:
        """The full URL (or absolute local path) of `path`."""
        return f"{self.url}/{path}"

    def check_exists(self) -> None:
        """Raise `InputError` if this is a local folder that does not exist."""
        if is_local(self.url) and not (path := Path(self.url)).is_dir():
            raise InputError(f"no folder {path}{meant_beside(path, Path.is_dir)}")

    def entries(self, prefix: str = "", *, recursive: bool = True, broken: bool = False) -> list[Entry]:
        """The objects under the folder `prefix`, sorted by path; none if the folder does not exist.

        Parameters
        ----------
        prefix, recursive
            Which folder, and whether those in it are looked into.
        broken
            Whether to give also what cannot be read, such as pipes; their `Entry.reason` says why.
        """

        def look() -> list[Entry]:
            if is_local(self.url):
                if not (Path(self.url) / prefix).is_dir():
                    return []
                found = folders.files(Path(self.url), prefix.rstrip("/"), recursive=recursive)
                return [Entry(visible(one.path), one.size, one.etag, one.reason) for one in found]
            if recursive:
                objects = [meta for chunk in obstore.list(self._store, prefix or None) for meta in chunk]
            else:
                objects = list(obstore.list_with_delimiter(self._store, prefix or None)["objects"])
            return [Entry(meta["path"], meta["size"], meta["e_tag"] or "") for meta in objects]

        try:
            entries = self.carry_out(prefix, look)
        except FileNotFoundError:
            return []
        return sorted((one for one in entries if broken or one.reason is None), key=lambda entry: entry.path)

    def folders(self, prefix: str = "") -> list[str]:
        """Paths of the folders right below the folder `prefix`, sorted; none if it does not exist."""

        def look() -> list[str]:
            if not is_local(self.url):
                return list(obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"])
            if not (Path(self.url) / prefix).is_dir():
                return []
            found = folders.folders(Path(self.url), prefix)
            for path in filter(folders.unnameable, found):
                _log.warning(f"warning: {visible(self.url_of(path))} is left out: its name is no plain text; rename it")
            return [path for path in found if not folders.unnameable(path)]

        try:
            found = self.carry_out(prefix, look)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/") for path in found)

    def carry_out(self, path: str, act: Callable[[], _Result]) -> _Result:
        """Every request goes through here: repeated where it broke off, its failure put into the package's errors."""
        _check_path(path)
        with explained(self.url_of(path), self.url):
            return persist(act)

    def get(self, path: str, *, most: int | None = None) -> bytes:
        """The whole object, in one request.

        Raises
        ------
        FileNotFoundError, StorageUnusableError, StorageError
        InputError
            If it has more than `most` bytes; they are not read.
        """

        def fetch() -> bytes:
            found = obstore.get(self._store, path)
            if most is not None and (size := found.meta["size"]) > most:
                raise InputError(f"{self.url_of(path)} has {size:,} bytes, expected at most {most:,}")
            return found.bytes().to_bytes()

        return self.carry_out(path, fetch)

    def get_listed(self, entry: Entry, start: int = 0, end: int | None = None, *, fresh: bool = False) -> bytes:
        """Bytes `start` to `end` (exclusive; all by default) of an object, of the length and ETag that a listing says.

        An answer that is another is asked for again, past caches. One that comes twice alike, whole and with an ETag of
        its own, is that of an object which was replaced since the listing, and is given.

        Parameters
        ----------
        entry
            Of the listing.
        start, end
            Which bytes.
        fresh
            Whether caches are to be passed from the first request on.

        Raises
        ------
        FileNotFoundError, StorageUnusableError
        StorageError
            If the answers stay wrong: that is no fault of the object's.
        """
        options: Any = {} if end is None else {"options": {"range": (start, end)}}

        def ask(again: bool) -> tuple[bytes, int, str]:
            result = obstore.get(open_store(self.url, fresh=again), entry.path, **options)
            return result.bytes().to_bytes(), result.meta["size"], result.meta["e_tag"] or ""

        before = None
        for reading in range(READINGS):
            if reading > 1:
                time.sleep(0.1 * 2**reading * random.uniform(0.5, 1))
            answer = data, size, etag = self.carry_out(entry.path, functools.partial(ask, fresh or reading > 0))
            whole = len(data) == (size if end is None else min(end, size)) - start
            known = not entry.etag or _bare(etag) == _bare(entry.etag)
            if whole and known and size == entry.size:
                return data
            if whole and not known and etag and answer == before:
                return data
            before = answer
        raise StorageError(
            f"{self.url_of(entry.path)}: the store's answers are not what it lists: at last {len(data):,} of {size:,} "
            f"bytes with the ETag {etag or '(none)'}, where its listing has {entry.size:,} with {entry.etag}; look at "
            "the store, and at what caches its answers"
        )

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of the object, in one request."""
        return self.carry_out(path, lambda: obstore.get_range(self._store, path, start=start, end=end).to_bytes())

    def put(self, path: str, data: bytes) -> None:
        """Write a whole object: a reader sees the old one or the new one, never a part."""
        with self.open_writer(path) as file:
            file.write(data)

    def written(self, path: str) -> float:
        """When an object was written, in seconds of the store's own clock."""
        when = self.carry_out(path, lambda: obstore.head(self._store, path)["last_modified"])
        return float(when.timestamp())

    def sweep(self, mark: str) -> None:
        """Remove what dead writers left of objects that nobody writes now: temporary files, unfinished uploads.

        Parameters
        ----------
        mark
            Regular expression that is found in the paths of these objects, and that neither letter nor digit follows
            there: ``_v001`` is not in ``33TUL_v0011.json``.
        """
        owned = re.compile(f"(?:{mark})(?![0-9A-Za-z])")
        if is_local(self.url):
            local_files.sweep(Path(self.url), owned)
        elif self.url.startswith("s3://"):
            uploads.abort(self.url, owned)

    @contextlib.contextmanager
    def open_writer(self, path: str) -> Iterator[BinaryIO]:
        """A file to write `path` through; the object appears when the block ends well, and not at all otherwise."""
        _check_path(path)
        if is_local(self.url):
            with local_writer(Path(self.url), path) as file:
                yield file
            return
        # By way of a temporary file: an upload in parts that a failed block left behind would be there, and paid
        # for, until somebody removes it.
        with room_for(tempfile.gettempdir()), tempfile.TemporaryFile(prefix="daskembed-") as plain:
            file = cast(BinaryIO, plain)
            yield file

            def upload() -> None:
                file.seek(0)
                obstore.put(self._store, path, file)

            self.carry_out(path, upload)

    def open_reader(self, path: str) -> Any:
        """A seekable file of `path` that fetches what is read from it, for `pyarrow`."""
        if is_local(self.url):
            return self.carry_out(path, lambda: pa.memory_map(self.url_of(path)))
        return pa.PythonFile(open_ranged(self, path), mode="r")

    def size(self, path: str) -> int:
        """Bytes of an object."""
        return self.entry(path).size

    def entry(self, path: str) -> Entry:
        """An object as a listing would have it."""

        def ask() -> Entry:
            try:
                about = obstore.head(self._store, path)
            except (BaseError, OSError):
                # The answer to a HEAD has no body that would say why, that to a GET has one.
                obstore.get_range(self._store, path, start=0, end=1)
                raise
            return Entry(path, about["size"], about["e_tag"] or "")

        return self.carry_out(path, ask)

    def delete(self, paths: list[str]) -> None:
        """Delete objects, and the local folders that this leaves empty; one that is gone already is no error."""
        for path in paths:
            _check_path(path)
        if not _deleted_together(self, paths):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self.carry_out(path, functools.partial(obstore.delete, self._store, path))
        if is_local(self.url):
            for folder in {parent for path in paths for parent in PurePosixPath(path).parents if parent.name}:
                remove_if_empty(Path(self.url) / folder, Path(self.url))


def _check_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"{path!r} leads out of its folder: expected a path below it")


def _deleted_together(storage: Storage, paths: list[str]) -> bool:
    """Delete objects of a store, of S3 a thousand in a request; False where one by one tells better what fails."""
    if len(paths) < 2 or is_local(storage.url):
        return False
    try:
        storage.carry_out(paths[0], functools.partial(obstore.delete, storage._store, paths))
    except (FileNotFoundError, StorageError):
        return False
    return True


def zarr_store(storage: Storage) -> Any:
    """The folder as a store for Zarr to read from; its errors are for `explained` to tell."""
    from zarr.storage import ObjectStore

    return ObjectStore(storage._store, read_only=True)


def is_stray(path: str) -> bool:
    """Whether a file is one that systems and tools leave anywhere, or in a folder of that kind."""
    names = PurePosixPath(path).parts
    hidden = any(name.startswith(".") and not name.startswith(".z") for name in names)
    return hidden or not {"Thumbs.db", "desktop.ini", "__MACOSX"}.isdisjoint(names)


def split_url(url: str) -> tuple[Storage, str]:
    """The storage of an object's folder and the object's name in it."""
    check_whole(url)
    folder, _, name = url.rpartition("/")
    return Storage(folder or "."), name
