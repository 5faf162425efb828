"""A store of a URL opened, with the credentials that this machine has."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from obstore.exceptions import (
    BaseError,
    UnknownConfigurationKeyError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from daskembed import config
from daskembed.errors import InputError
from daskembed.storage.failures import first_line
from daskembed.storage.urls import PREFIX, is_local, local_path

_CLIENT = (
    *("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_ca_certificate", "proxy_excludes"),
    *("proxy_url", "read_timeout", "timeout", "user_agent"),
)


def client_options(url: str, *, fresh: bool = False, headers: Mapping[str, str] | None = None) -> Any:
    """How obstore's client talks to the store at `url`; `headers` go with each request."""
    seconds = config.get("retry-timeout")
    told = {**({"Cache-Control": "no-cache"} if fresh else {}), **(headers or {})}
    return {
        "connect_timeout": "10s",
        # Of silence, and of a whole request: a checkpoint of 500 MB takes longer than obstore's 30 s.
        "read_timeout": f"{round(seconds * 1000 / 3)}ms",
        "timeout": f"{10 * seconds}s",
        # obstore no longer looks at the environment for these once it is given any.
        **{
            key: os.environ[name]
            for key in _CLIENT
            if url[:5] in PREFIX and (name := f"{PREFIX[url[:5]]}{key.upper()}") in os.environ
        },
        **({"default_headers": told} if told else {}),
    }


def retry_config(retries: int = 1000) -> Any:
    """How obstore repeats what fails."""
    return {
        # Exponential, with jitter, until the time is up; ten retries, obstore's default, may be over within seconds.
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=config.get("retry-timeout")),
    }


@functools.cache
def open_store(url: str, retries: int = 1000, *, fresh: bool = False) -> ObjectStore:
    """The store at `url`; a `fresh` one has connections of its own, and asks caches on the way to let it through."""
    try:
        if is_local(url):
            if not local_path(url).is_dir():
                raise FileNotFoundError(url)
            return LocalStore(local_path(url))
        credentials = s3_credentials() if url.startswith("s3://") else {}
        client, retry = client_options(url, fresh=fresh), retry_config(retries)
        return from_url(url, client_options=client, retry_config=retry, **credentials)
    except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
        raise InputError(f"{url} cannot be opened: {first_line(error)}") from None


def s3_credentials() -> dict[str, Any]:
    """What a store of S3 is given of credentials; nothing where obstore finds them itself."""
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
