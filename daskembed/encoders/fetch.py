"""Checkpoints brought here: downloaded once, kept, and known by their SHA-256."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from daskembed import __version__, config
from daskembed.encoders.formats import check_kind
from daskembed.errors import CheckpointError, DaskembedError
from daskembed.storage.stores import split_url
from daskembed.storage.urls import SCHEMES, is_local, local_path, redact

_HF = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<path>.+)")
_UNANSWERED = (urllib.error.URLError, http.client.RemoteDisconnected)
_BUSY = (429, 500, 502, 503, 504)
"""Answers of a web server that may be another one soon."""


def fetch(location: str) -> tuple[Path, str]:
    """A local path of the checkpoint and its SHA-256; a remote one is downloaded once and kept.

    Raises
    ------
    CheckpointError
        If it cannot be had.
    """
    if is_local(location):
        path = local_path(location)
        if not path.is_file():
            raise CheckpointError(
                f"no checkpoint {location}: give a .ckpt or .safetensors file or URL, or untrained:tiny to try "
                "things out"
            )
        return path, sha256_of(path)
    name = re.sub(r"[^\w.-]", "_", location.partition("?")[0].rpartition("/")[2])[-100:]
    path = config.cache_folder() / f"{hashlib.sha256(location.encode()).hexdigest()[:16]}-{name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=path.parent) as folder:
            found = _download(location, Path(folder))
            # What is not a checkpoint (an error page, say) must not be kept and believed the next time.
            check_kind(found, redact(location))
            found.replace(path)
    return path, sha256_of(path)


def sha256_of(path: Path, remembered: int = 2**30) -> str:
    """SHA-256 of a file, read once a process; of one of at least so many bytes it is written down beside the others.

    Below that, reading the file again takes less than two seconds.
    """
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size, remembered)


@functools.cache
def _sha256(path: Path, mtime: int, size: int, remembered: int) -> str:
    key = hashlib.sha256(f"{path.absolute()}:{mtime}:{size}".encode()).hexdigest()
    known = config.cache_folder() / f"{key[:16]}.sha256"
    if size >= remembered and known.is_file():
        return known.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= remembered:
        # Without it the file is hashed each time.
        with contextlib.suppress(OSError):
            write_once(known, lambda file: file.write(digest.encode()))
    return digest


def write_once(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file that is complete or absent, also when several processes make it at the same time."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _download(location: str, folder: Path) -> Path:
    """The file of a URL, put somewhere in `folder`."""
    scheme = location.partition("://")[0]
    if scheme == "hf":
        return _from_hub(location, folder)
    path = folder / "checkpoint"
    with path.open("wb") as file:
        if scheme in SCHEMES:
            _from_store(location, file)
        elif scheme in ("http", "https"):
            _from_web(location, file)
        else:
            raise CheckpointError(
                f"{redact(location)}: unknown scheme {scheme}://; expected a path, https://, hf:// or one of "
                f"{', '.join(SCHEMES)}"
            )
    return path


def _from_store(location: str, file: BinaryIO) -> None:
    storage, name = split_url(location)
    try:
        with storage.open_reader(name) as reader:
            # In pieces: as a whole it would be in memory twice.
            while data := reader.read(2**26):
                file.write(data)
    except (FileNotFoundError, DaskembedError) as error:
        raise CheckpointError(f"cannot fetch the checkpoint: {error}") from None


def _from_hub(location: str, folder: Path) -> Path:
    match = _HF.fullmatch(location)
    if match is None:
        raise CheckpointError(
            f"{location} is not of the form hf://OWNER/REPO@REVISION/PATH: a file's page on huggingface.co has all "
            "four; untrained:tiny needs no file"
        )
    import huggingface_hub

    repo, name = match["repo"], match["path"]
    # It reads this variable when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT")
    hub = huggingface_hub.HfApi(endpoint=endpoint, library_name="daskembed", library_version=__version__)
    try:
        url = huggingface_hub.hf_hub_url(repo, name, revision=match["revision"], endpoint=endpoint)
        told = hub.get_hf_file_metadata(url=url)
        revision = told.commit_hash or match["revision"]
        path = Path(hub.hf_hub_download(repo, name, revision=revision, local_dir=folder))
    except Exception as error:
        # Its own errors and those of its HTTP library, which has been another one in each of its versions.
        page = f"https://huggingface.co/{repo}/tree/{match['revision']}/{name.rpartition('/')[0]}"
        denied = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        login = ", or set HF_TOKEN to a token that may read it" if denied else ""
        raise CheckpointError(
            f"cannot fetch {location}: {' '.join(str(error).split())[:300]}; {page} is the page to find it on: "
            f"download it by hand and give its path{login}; untrained:tiny (noise, for trials) needs no file"
        ) from None
    # Of large files the hub's tag is the hash; of what it fetches, its client looks at the size alone.
    if re.fullmatch(r"[0-9a-f]{64}", told.etag or "") and (found := sha256_of(path, sys.maxsize)) != told.etag:
        raise CheckpointError(
            f"{location} arrived damaged: its SHA-256 is {found[:12]}, the hub says {str(told.etag)[:12]}: run the "
            "command again"
        )
    return path


def _from_web(url: str, file: BinaryIO) -> None:
    """Download a URL; what broke off goes on from there, as long as each answer brings more of the file."""
    shown = redact(url)
    if "@" in urllib.parse.urlsplit(url).netloc:
        raise CheckpointError(f"{shown} was given with a user and password, which is not supported: sign the URL")
    patience = config.get("retry-timeout")
    tag, furthest, end, pause = "", 0, time.monotonic() + patience, 0.1
    while True:
        request = urllib.request.Request(url, headers={"User-Agent": f"daskembed/{__version__}"})
        if tag:
            request.add_header("Range", f"bytes={file.tell()}-")
            request.add_header("If-Range", tag)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                if response.status != 206:
                    file.seek(0)
                    file.truncate()
                elif not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                    raise ValueError("it answers with another part of the file than the one asked for")
                tag = _version(response.headers)
                start, length = file.tell(), response.headers.get("Content-Length")
                shutil.copyfileobj(response, file, 1 << 20)
            if length is None or file.tell() == start + int(length):
                return
            failure = f"{shown} broke off after {file.tell()} of {start + int(length)} bytes: run the command again"
            again = False
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            failure = f"cannot fetch {shown}: {error}; download it by hand and give its path"
            code = getattr(error, "code", None)
            # Who answers nothing at first is no server of ours; after some bytes, one that is gone for a while.
            lost = code is None and furthest > 0 and isinstance(error, _UNANSWERED)
            again = (code in _BUSY or lost) and time.monotonic() < end
        if file.tell() > furthest:
            furthest, end = file.tell(), time.monotonic() + patience
        elif not again:
            raise CheckpointError(failure)
        time.sleep(pause)
        pause = min(15.0, 2 * pause)


def _version(headers: Message) -> str:
    """What a server says when it is asked whether it still has the same file; nothing, if that cannot be asked."""
    tag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
