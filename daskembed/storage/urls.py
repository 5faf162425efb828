"""URLs and local paths told apart, and what of a URL may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from daskembed.errors import InputError

SCHEMES = ("s3", "gs", "az", "file")

_CUT_SHORT = re.compile(r"(?i)((?:stac\+)?(?:s3|gs|az|hf|file|https?)):(?!//)(.+)", re.DOTALL)
"""A URL that lacks a slash, or both."""


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine (a plain path or a ``file://`` URL)."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The absolute path that a local URL or path names, without ``..``; raises `InputError` for ``s3:/bucket``."""
    check_whole(url)
    path = Path(url.removeprefix("file://")).expanduser().absolute()
    if ".." not in path.parts:
        return path
    # What is above a link's target is not what is above the link.
    plain = os.path.normpath(path)
    return Path(plain if os.path.realpath(plain) == os.path.realpath(path) else os.path.realpath(path))


def check_whole(url: str) -> None:
    """Raise `InputError` for a URL such as ``s3:/bucket``, which would be the path of a folder ``s3:``."""
    if found := _CUT_SHORT.fullmatch(url):
        scheme, rest = found.groups()
        whole = f"{scheme}://{rest if scheme.lower() == 'file' else rest.lstrip('/')}"
        raise InputError(
            f"{scheme}: without // is no URL: type {redact(whole)}; a folder of that name here is ./{scheme}:"
        )


PREFIX = {"s3://": "AWS_", "gs://": "GOOGLE_", "az://": "AZURE_"}

SIGNED = re.compile(r"(?i)[?&](?:X-(?:Amz|Goog)-|sig=|signature=|[^=&]*(?:token|key|secret|password)[^=&]*=)")

USER = re.compile(r"(?<=://)[^/?#\s]*@")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    return host in ("localhost", "127.0.0.1", "::1")


def redact(text: str) -> str:
    """`text` without what its URLs may have of secrets: user names, passwords, and queries."""
    return re.sub(r"(?<=://)([^?\s]*)\?[^\s)]*", r"\1", USER.sub("", text))
