"""A URL or a local path into a store: list, get, ranged get and atomic writes, local and cloud alike."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import obstore
import pyarrow as pa
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from daskembed.errors import InputError, StorageDeniedError, StorageError

SCHEMES = ("s3", "gs", "az", "file")


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    """Path below the storage's URL."""
    size: int
    """Bytes."""
    etag: str
    """The store's tag of this content (for local files made of inode, time and size)."""


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine (a plain path or a ``file://`` URL)."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The absolute path that a local URL or path names."""
    return Path(url.removeprefix("file://")).expanduser().absolute()


@functools.cache
def _open_store(url: str) -> ObjectStore:
    try:
        if is_local(url):
            return LocalStore(local_path(url))
        if url.startswith("s3://"):
            return from_url(url, **_s3_credentials())
        return from_url(url)
    except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
        raise InputError(f"{url} cannot be opened: {_first_line(error)}") from None


def _s3_credentials() -> dict[str, Any]:
    # obstore reads the AWS_* variables and the machine's role; profiles of ~/.aws need boto3, where it is installed.
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ:
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    import boto3

    session = boto3.Session()
    return {} if session.get_credentials() is None else {"credential_provider": Boto3CredentialProvider(session)}


def _first_line(error: BaseException) -> str:
    return re.split(r"\n|<\?xml", str(error))[0].rstrip(": ")


_REFUSED = re.compile(
    r"status(?: code)?:? (?:401|403)\b|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
)


def _denied(url: str, error: BaseException) -> str:
    return (
        f"{url}: access denied ({_first_line(error)}); check the credentials (for S3: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket) and the permissions"
    )


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotFoundError):
        raise FileNotFoundError(f"{url} does not exist") from None
    except (PermissionError, PermissionDeniedError, UnauthenticatedError) as error:
        raise StorageDeniedError(_denied(url, error)) from None
    except (BaseError, OSError) as error:
        # For listings and writes obstore tells a refusal only by its words.
        if _REFUSED.search(str(error)):
            raise StorageDeniedError(_denied(url, error)) from None
        raise StorageError(f"{url}: {_first_line(error)}") from None


@dataclass(frozen=True)
class Storage:
    """A folder or a URL prefix. It pickles as its URL: workers open their own connections."""

    url: str
    """A local path, or a ``file://``, ``s3://``, ``gs://`` or ``az://`` URL, without a trailing slash."""

    def __post_init__(self) -> None:
        root = local_path(self.url).as_posix() if is_local(self.url) else self.url
        if root.rstrip("/").endswith(":"):
            raise InputError(f"{self.url} names no bucket: expected a URL such as s3://bucket/folder")
        object.__setattr__(self, "url", root.rstrip("/") or "/")
        if not is_local(root) and root.partition("://")[0] not in SCHEMES:
            raise InputError(f"{self.url}: unknown scheme; give a folder or a URL in {'://, '.join(SCHEMES)}://")

    @property
    def _store(self) -> ObjectStore:
        return _open_store(self.url)

    def url_of(self, path: str) -> str:
        """The full URL (or absolute local path) of `path`."""
        return f"{self.url}/{path}"

    def check_exists(self) -> None:
        """Raise `InputError` if this is a local folder that does not exist."""
        if is_local(self.url) and not Path(self.url).is_dir():
            raise InputError(f"no folder {self.url}")

    def entries(self, prefix: str = "", *, recursive: bool = True) -> list[Entry]:
        """The objects under the folder `prefix`, sorted by path; none if the folder does not exist."""
        if is_local(self.url) and not Path(self.url).is_dir():
            return []
        with _explained(self.url_of(prefix)):
            try:
                found: list[Any]
                if recursive:
                    found = [meta for chunk in obstore.list(self._store, prefix or None) for meta in chunk]
                else:
                    found = list(obstore.list_with_delimiter(self._store, prefix or None)["objects"])
            except (FileNotFoundError, NotFoundError):
                return []
        return sorted((Entry(m["path"], m["size"], m["e_tag"] or "") for m in found), key=lambda entry: entry.path)

    def get(self, path: str) -> bytes:
        """The whole object, in one request.

        Raises
        ------
        FileNotFoundError, StorageDeniedError, StorageError
        """
        with _explained(self.url_of(path)):
            return obstore.get(self._store, path).bytes().to_bytes()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of the object, in one request."""
        with _explained(self.url_of(path)):
            return obstore.get_range(self._store, path, start=start, end=end).to_bytes()

    def put(self, path: str, data: bytes) -> None:
        """Write a whole object: a reader sees the old one or the new one, never a part."""
        with self.open_writer(path) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a whole object unless there is one already; whether it was written. Of several writers one wins."""
        with _explained(self.url_of(path)):
            try:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def sweep(self, marker: str) -> None:
        """Remove what dead local writers left, of files whose path holds `marker` and that nobody writes now."""
        if is_local(self.url):
            for pattern in (".*.tmp", "_*/**/.*.tmp"):
                for left in Path(self.url).glob(pattern):
                    if marker in str(left.relative_to(self.url)):
                        left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_writer(self, path: str) -> Iterator[BinaryIO]:
        """A file to write `path` through; the object appears when the block ends well, and not at all otherwise."""
        if is_local(self.url):
            with _local_writer(Path(self.url) / PurePosixPath(path)) as file:
                yield file
            return
        # By way of a temporary file: an upload in parts that a failed block left behind would be there, and paid
        # for, until somebody removes it.
        with tempfile.TemporaryFile(prefix="daskembed-") as file:
            yield cast(BinaryIO, file)
            file.seek(0)
            with _explained(self.url_of(path)):
                obstore.put(self._store, path, cast(BinaryIO, file))

    def open_reader(self, path: str) -> Any:
        """A seekable file of `path` that fetches what is read from it, for `pyarrow`."""
        with _explained(self.url_of(path)):
            if is_local(self.url):
                return pa.memory_map(self.url_of(path))
            return pa.PythonFile(_RemoteReader(obstore.open_reader(self._store, path)), mode="r")

    def delete(self, paths: list[str]) -> None:
        """Delete objects, and the local folders that this leaves empty; one that is gone already is no error."""
        for path in paths:
            with _explained(self.url_of(path)), contextlib.suppress(FileNotFoundError, NotFoundError):
                obstore.delete(self._store, path)
        if is_local(self.url):
            for folder in {parent for path in paths for parent in PurePosixPath(path).parents if parent.name}:
                _remove_if_empty(Path(self.url) / folder, Path(self.url))


def _remove_if_empty(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


class _RemoteReader(io.RawIOBase):
    """A file to read an object through: obstore's own has methods where `pyarrow` expects attributes."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read(self, size: int = -1) -> bytes:
        return bytes(self._reader.read(None if size < 0 else size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


@contextlib.contextmanager
def _local_writer(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    try:
        with file:
            yield file
            with _explained(str(path)):
                file.flush()
                os.fsync(file.fileno())
        with _explained(str(path)):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is only durable once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def split_url(url: str) -> tuple[Storage, str]:
    """The storage of an object's folder and the object's name in it."""
    folder, _, name = url.rpartition("/")
    return Storage(folder or "."), name
