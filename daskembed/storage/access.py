"""Files by their URLs, wherever they lie: how each is reached, with what signature, which nobody keeps.

What a catalogue says of its files (`access`):

``endpoint``, ``region``
    Of a store that speaks S3, such as ``https://eodata.dataspace.copernicus.eu``.
``anonymous``
    ``true``: requests to S3 are not signed.
``requester_pays``
    ``true``: whoever reads pays for it, with credentials of his own.
``sign``
    ``planetary-computer``: files of Azure's accounts are read with a token of the Planetary Computer, which
    ``PC_SDK_SAS_URL`` names another service for, and ``PC_SDK_SUBSCRIPTION_KEY`` a key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError, UnknownConfigurationKeyError
from obstore.store import AzureStore, HTTPStore, ObjectStore, S3Store

from daskembed.errors import InputError
from daskembed.storage import tokens
from daskembed.storage.failures import explained, first_line, persist
from daskembed.storage.opening import client_options, open_store, retry_config, s3_credentials
from daskembed.storage.urls import is_local, is_loopback, local_path, redact

KEYS = ("endpoint", "region", "anonymous", "requester_pays", "sign")
"""That a catalogue may have in `access`."""
PLANETARY_COMPUTER = "planetary-computer"
_BLOBS = ".blob.core.windows.net"

_BEYOND = re.compile(r"status code: 416|Requested range was invalid")
"""Said of a file that ends before the range begins: by far the most are empty."""

Access = tuple[tuple[str, str], ...]
"""What a catalogue says of its files, as pairs."""


class Answer(NamedTuple):
    """Some bytes of a file, and what the store says of all of it."""

    data: bytes
    size: int
    """Bytes of the file."""
    etag: str


def check_access(access: Access, where: str) -> None:
    """Raise `InputError` for what `access` cannot say; `where` names the catalogue."""
    for key, value in access:
        if key not in KEYS:
            raise InputError(f"{where}: access has {key!r}: expected {', '.join(KEYS)}")
        if key in ("anonymous", "requester_pays") and value not in ("true", "false"):
            raise InputError(f"{where}: access has {key}: {value}: expected true or false")
        if key == "sign" and value != PLANETARY_COMPUTER:
            raise InputError(f"{where}: access has sign: {value}: expected {PLANETARY_COMPUTER}")


def fetch(url: str, access: Access, start: int, end: int, *, fresh: bool = False) -> Answer:
    """Bytes `start` to `end` (exclusive, or to the file's end) of a file, in one request.

    Parameters
    ----------
    url
        ``https://``, ``s3://``, ``gs://`` or ``az://``, or a path; ``http://`` on this machine only.
    access
        How it is reached.
    start, end
        Which bytes.
    fresh
        Whether caches on the way are to be passed.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StorageDeniedError
        If the store, or the service that signs, refuses the credentials.
    StorageError
        If it does not answer.
    InputError
        If no file can be reached by such a URL.
    """
    reached = _reach(url, access)

    def act() -> Answer:
        try:
            found = reached.get(start, end, fresh)
        except BaseError as error:
            if _BEYOND.search(str(error)):
                return Answer(b"", start, "")
            raise
        return Answer(found.bytes().to_bytes(), found.meta["size"], (found.meta["e_tag"] or "").removeprefix("W/"))

    with explained(url, reached.root):
        return persist(act)


@dataclass(frozen=True)
class _Reached:
    """An object of a store."""

    root: str
    path: str
    open: Callable[[bool], ObjectStore]

    def get(self, start: int, end: int, fresh: bool) -> Any:
        return obstore.get(self.open(fresh), self.path, options={"range": (start, end)})


@dataclass(frozen=True)
class _Signed(_Reached):
    """A blob of a container that takes a token."""

    account: str
    container: str

    def get(self, start: int, end: int, fresh: bool) -> Any:
        token = tokens.get(self.account, self.container)
        try:
            return self._get(token, start, end, fresh)
        except (PermissionDeniedError, UnauthenticatedError):
            # It may have expired on the way, or been withdrawn.
            return self._get(tokens.get(self.account, self.container, refused=token), start, end, fresh)

    def _get(self, token: str, start: int, end: int, fresh: bool) -> Any:
        store = _blob_store(self.root, self.account, self.container, token, fresh)
        return obstore.get(store, self.path, options={"range": (start, end)})


def _reach(url: str, access: Access) -> _Reached:
    if is_local(url):
        folder, _, name = local_path(url).as_posix().rpartition("/")
        return _Reached(folder or "/", name, lambda fresh: open_store(folder or "/"))
    if "?" in url or "#" in url:
        raise InputError(f"{redact(url)}: the URL of a file must have no query: a signature is made when it is read")
    said, parts = dict(access), urlsplit(url)
    path = unquote(parts.path).strip("/")
    if not parts.hostname or not path or parts.username or parts.password:
        raise InputError(f"{redact(url)} is no URL of a file: expected one such as https://host/folder/file.tif")
    if parts.scheme in ("https", "http"):
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InputError(f"{redact(url)}: files are read by https:// only, but for those of this machine")
        root = f"{parts.scheme}://{parts.netloc}"
        if said.get("sign") == PLANETARY_COMPUTER and (blob := _blob_of(root, parts.hostname, path)) is not None:
            return blob
        return _Reached(root, path, lambda fresh: _web_store(root, fresh))
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme == "s3" and any(key in said for key in KEYS[:4]):
        return _Reached(root, path, lambda fresh: _bucket_store(root, access, fresh))
    return _Reached(root, path, lambda fresh: open_store(root, fresh=fresh))


def _blob_of(root: str, host: str, path: str) -> _Signed | None:
    """The blob that a URL names; None if it names none."""
    if host.endswith(_BLOBS):
        account = host.removesuffix(_BLOBS)
    elif is_loopback(host):
        # As Azure's emulator has it: the account is the first folder.
        account, _, path = path.partition("/")
        root = f"{root}/{account}"
    else:
        return None
    container, _, name = path.partition("/")
    if not name:
        return None
    return _Signed(root, name, lambda fresh: _web_store(root, fresh), account, container)


@functools.cache
def _web_store(root: str, fresh: bool) -> ObjectStore:
    client = client_options(root, fresh=fresh)
    if root.startswith("http://"):
        client["allow_http"] = True
    return _opened(root, lambda: HTTPStore(root, client_options=client, retry_config=retry_config()))


@functools.cache
def _bucket_store(root: str, access: Access, fresh: bool) -> ObjectStore:
    said = dict(access)
    client = client_options(root, fresh=fresh)
    options: dict[str, Any] = {key: said[key] for key in ("endpoint", "region") if key in said}
    if urlsplit(said.get("endpoint", "")).scheme == "http" and is_loopback(urlsplit(said["endpoint"]).hostname or ""):
        client["allow_http"] = True
    if said.get("anonymous") == "true":
        options["skip_signature"] = True
    else:
        options |= s3_credentials()
    if said.get("requester_pays") == "true":
        options["request_payer"] = True
    bucket = root.removeprefix("s3://")
    return _opened(root, lambda: S3Store(bucket, client_options=client, retry_config=retry_config(), **options))


# By the token, so that a renewed one has a store of its own; those of old ones go.
@functools.lru_cache(16)
def _blob_store(root: str, account: str, container: str, token: str, fresh: bool) -> ObjectStore:
    client = client_options(root, fresh=fresh)
    if root.startswith("http://"):
        client["allow_http"] = True
    return _opened(
        root,
        lambda: AzureStore(
            container,
            account_name=account,
            endpoint=root,
            sas_token=token,
            client_options=client,
            retry_config=retry_config(),
        ),
    )


def _opened(root: str, make: Callable[[], ObjectStore]) -> ObjectStore:
    try:
        return make()
    except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
        raise InputError(f"{root} cannot be opened: {first_line(error)}") from None
