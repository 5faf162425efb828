"""Tokens of the Planetary Computer, which its files in Azure are read with: asked for, renewed, never written down.

obstore has a provider of them, too. It does not wait where the service says that it is asked too often, and does not
ask again for a token that arrived expired or that a store refuses.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

import obstore
from obstore.store import HTTPStore

from daskembed.documents import parse_object
from daskembed.errors import StorageError
from daskembed.storage.failures import explained, persist
from daskembed.storage.opening import client_options, retry_config

SERVICE = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
MARGIN = 30
"""Seconds before it expires at which a token is renewed."""
ASKED = 3
"""How often a token is asked for that arrives expired; then it is tried: perhaps this machine's clock is wrong."""
_MOST = 65_536


class _Token(NamedTuple):
    text: str
    until: float
    """Unix time."""


_lock = threading.Lock()
_locks: dict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
_tokens: dict[tuple[str, str], _Token] = {}


def get(account: str, container: str, *, refused: str | None = None) -> str:
    """A token that reads a container of an account of Azure.

    Parameters
    ----------
    account, container
        Names.
    refused
        One that a store did not take, which is not given again.

    Raises
    ------
    StorageDeniedError
        If the service refuses.
    StorageError
        If it does not answer, or not with a token.
    """
    key = (account, container)
    with _lock:
        lock = _locks[key]
    # One asks, the others wait for what it gets.
    with lock:
        found = _tokens.get(key)
        if found is None or found.text == refused or time.time() > found.until:
            found = _tokens[key] = _ask(account, container)
        return found.text


def _ask(account: str, container: str) -> _Token:
    service = os.environ.get("PC_SDK_SAS_URL", SERVICE).rstrip("/")
    key = os.environ.get("PC_SDK_SUBSCRIPTION_KEY")
    client = client_options(service, headers={"Ocp-Apim-Subscription-Key": key} if key else None)
    if service.startswith("http://"):
        client["allow_http"] = True
    url = f"{service}/{account}/{container}"
    with explained(url, service):
        store = HTTPStore(service, client_options=client, retry_config=retry_config())
        for asked in range(ASKED):
            answer = persist(lambda: obstore.get(store, f"{account}/{container}").bytes().to_bytes())
            token, expiry = _parse(answer, url)
            # What the service keeps for all may have little time left: it is used as long as it lasts.
            now = time.time()
            if expiry > now or asked == ASKED - 1:
                break
            time.sleep(2**asked)
    return _Token(token, max(expiry - MARGIN, now + 5))


def _parse(answer: bytes, url: str) -> tuple[str, float]:
    try:
        document = parse_object(answer, most=_MOST)
        token, expiry = document["token"], datetime.fromisoformat(document["msft:expiry"]).timestamp()
    except (ValueError, TypeError, KeyError):
        # Not what it says: that may be a token.
        raise StorageError(f"{url}: expected a document with a token and msft:expiry") from None
    if not isinstance(token, str) or not token:
        raise StorageError(f"{url}: expected a document with a token and msft:expiry")
    return token, expiry
