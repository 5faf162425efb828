"""What a store's failures mean, put into the package's errors; which are worth another try."""

from __future__ import annotations

import contextlib
import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from daskembed import config
from daskembed.errors import StorageDeniedError, StorageError, StorageUnusableError
from daskembed.storage.urls import is_local, redact

_Result = TypeVar("_Result")


def first_line(error: BaseException) -> str:
    """What an error says, without a server's document, secrets taken out."""
    text = redact(re.split(r"\n|<\?xml|<Error>", str(error))[0]).rstrip(": ")
    code = _CODE.search(str(error))
    return f"{text} ({code[1]})" if code else text


_CODE = re.compile(r"<Code>(\w+)</Code>")

_DENIED = re.compile(
    r"status(?: code)?:? (?:401|403)\b|<Code>(?:AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|"
    r"InvalidToken|TokenRefreshRequired)</Code>"
)

_NO_BUCKET = re.compile(r"<Code>(?:NoSuchBucket|ContainerNotFound)</Code>")

# obstore repeats requests whose answer is an error of the server, and GETs and plain PUTs that break off. It does not
# repeat a listing whose body ends early, nor a deletion, a creation or a step of an upload whose answer is lost. The
# last step of an upload finds no upload any more if it did succeed. Writes on a condition are all repeated here.
_BROKE_OFF = re.compile(
    r"HTTP error: (?:error sending|request or response body)|<Code>(?:RequestTimeout|NoSuchUpload)</Code>"
    r"|status code: (?:429|50[0234])"
)

NO_CONDITIONS = re.compile(r"status code: 501|<Code>NotImplemented</Code>|not (?:yet )?(?:implemented|supported)", re.I)

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}

_UNWRITABLE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "your quota is used up: make room, or ask for more",
    errno.EROFS: "the file system is mounted read-only: give a folder on another one",
}
"""What a disk that takes nothing says -> what to do."""


def persist(act: Callable[[], _Result]) -> _Result:
    """Carry out `act`, again where the connection broke off and obstore leaves it at that."""
    end, pause = time.monotonic() + config.get("retry-timeout"), 0.1
    while True:
        try:
            return act()
        except (BaseError, OSError) as error:
            wait = random.uniform(0.5, 1) * pause
            if not _BROKE_OFF.search(str(error)) or time.monotonic() + wait > end:
                raise
        time.sleep(wait)
        pause = min(15.0, 2 * pause)


def _denied(url: str, root: str, error: BaseException) -> str:
    if is_local(root):
        return (
            f"{url}: access denied ({first_line(error)}); `ls -ld` shows who may read and write it and the folders "
            "above it"
        )
    if root.startswith(("https://", "http://")):
        return (
            f"{url}: access denied ({first_line(error)}); this server wants credentials, or a signature that its "
            "catalogue does not name (`access` in a catalogue's file)"
        )
    return (
        f"{url}: access denied ({first_line(error)}); check the credentials (for S3: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket) and the permissions"
    )


def unwritable(error: BaseException) -> str | None:
    """What to do where a disk takes nothing any more; None for other errors."""
    # obstore tells the number in words.
    told = re.search(r"\(os error (\d+)\)", str(error))
    number: int | None = getattr(error, "errno", None) or (int(told[1]) if told else None)
    return _UNWRITABLE.get(number or 0)


@contextlib.contextmanager
def explained(url: str, root: str) -> Iterator[None]:
    """Raise what the package's errors say of a failure at `url` in the storage `root`."""
    try:
        yield
    except StorageError:
        raise
    except (BaseError, OSError) as error:
        text = str(error)
        if _NO_BUCKET.search(text):
            raise StorageUnusableError(f"{root}: there is no such bucket ({first_line(error)})") from None
        if isinstance(error, (FileNotFoundError, NotFoundError)):
            if is_local(root) and not Path(root).is_dir():
                raise StorageUnusableError(
                    f"the folder {root} is gone, or cannot be seen from here: bring it back"
                ) from None
            raise FileNotFoundError(f"{url} does not exist") from None
        # For listings and writes obstore tells a refusal only by its words.
        if isinstance(error, (PermissionError, PermissionDeniedError, UnauthenticatedError)) or _DENIED.search(text):
            raise StorageDeniedError(_denied(url, root, error)) from None
        if advice := unwritable(error):
            raise StorageUnusableError(f"{url} cannot be written: {first_line(error)}; {advice}") from None
        raise StorageError(f"{url}: {first_line(error)}") from None
