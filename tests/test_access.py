"""Files by their URLs, with the signatures that they take."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from web import Web

from daskembed.errors import InputError, StorageDeniedError
from daskembed.storage import tokens
from daskembed.storage.access import check_access, fetch
from daskembed.storage.stores import Storage

DATA = bytes(range(256)) * 40
SIGNED = (("sign", "planetary-computer"),)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web({"a b/ü.tif": DATA, "account/container/folder/blob.tif": DATA}) as server:
        yield server


@pytest.fixture
def service(web: Web, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A service of tokens and a store that wants the newest of them."""

    class Service:
        def __init__(self) -> None:
            self.given: list[str] = []
            self.refusals: list[int] = []
            self.lasting = timedelta(minutes=45)
            self.taken: str | None = None

        def fault(self, handler: Any) -> bool:
            path, _, query = handler.path.partition("?")
            if path == "/token/account/container":
                if self.refusals:
                    handler.answer(self.refusals.pop(0), b"not now")
                    return True
                self.given.append(f"sv=1&sig=HIDDEN{len(self.given)}")
                self.taken = self.given[-1]
                until = datetime.now(UTC) + self.lasting
                handler.answer(200, json.dumps({"token": self.taken, "msft:expiry": until.isoformat()}).encode())
                return True
            if path.startswith("/account/") and query != self.taken:
                code = b"<Error><Code>AuthenticationFailed</Code></Error>"
                handler.answer(403, code)
                return True
            return False

    made = Service()
    web.fault = made.fault
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{web.url}/token")
    monkeypatch.setattr(tokens, "_tokens", {})
    return made


def test_a_part_of_a_file_by_https(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMEOUT", "of something else")
    answer = fetch(f"{web.url}/a%20b/%C3%BC.tif", (), 10, 20)
    assert answer.data == DATA[10:20]
    assert answer.size == len(DATA)
    assert answer.etag
    assert web.requests == [("a b/ü.tif", 10, 20)]
    with pytest.raises(FileNotFoundError, match=r"none\.tif does not exist"):
        fetch(f"{web.url}/none.tif", (), 0, 10)


def test_a_file_of_a_bucket_by_its_own_endpoint(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    Storage(s3).put("scenes/one.tif", DATA)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    assert fetch(f"{s3}/scenes/one.tif", (), 0, 4).data == DATA[:4]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # of the store of the output
    access = (("endpoint", endpoint), ("region", "us-east-1"), ("requester_pays", "true"))
    assert fetch(f"{s3}/scenes/one.tif", access, 0, 4).data == DATA[:4]


def test_files_are_signed_and_nobody_sees_it(web: Web, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{web.url}/account/container/folder/blob.tif"
    for start in range(3):
        assert fetch(url, SIGNED, start, 10).data == DATA[start:10]
    assert len(service.given) == 1
    service.fault = None
    web.fault = lambda handler: handler.answer(403, b"<Error><Code>AuthorizationFailure</Code></Error>") or True
    with pytest.raises(StorageDeniedError) as refused:
        fetch(url, SIGNED, 0, 10)
    for text in (str(refused.value), caplog.text, repr(pickle.dumps(refused.value))):
        assert "HIDDEN" not in text
        assert "sig=" not in text


def test_a_token_that_expired_is_renewed(web: Web, service: Any) -> None:
    url = f"{web.url}/account/container/folder/blob.tif"
    fetch(url, SIGNED, 0, 10)
    service.taken = "another"  # withdrawn: the store refuses what was given
    assert fetch(url, SIGNED, 0, 10).data == DATA[:10]
    assert len(service.given) == 2


def test_a_service_of_tokens_that_is_asked_too_often_is_waited_for(web: Web, service: Any) -> None:
    service.refusals = [429, 503]
    assert fetch(f"{web.url}/account/container/folder/blob.tif", SIGNED, 0, 10).data == DATA[:10]
    service.refusals = [401]
    tokens._tokens.clear()
    with pytest.raises(StorageDeniedError, match="/token/account/container"):
        fetch(f"{web.url}/account/container/folder/blob.tif", SIGNED, 0, 10)


def test_a_token_that_arrives_expired_is_asked_for_again(web: Web, service: Any, monkeypatch: Any) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        service.lasting = timedelta(minutes=45)

    monkeypatch.setattr(tokens.time, "sleep", sleep)
    service.lasting = timedelta(minutes=-1)
    assert fetch(f"{web.url}/account/container/folder/blob.tif", SIGNED, 0, 10).data == DATA[:10]
    assert len(service.given) == 2
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/file.tif?sig=abc", "https://host/file.tif: the URL of a file must have no query"),
        ("http://example.org/file.tif", "by https:// only"),
        ("https://me:secret@host/file.tif", "https://host/file.tif is no URL of a file"),
        ("https://host/", "is no URL of a file"),
        ("ftp://host/file.tif", "cannot be opened"),
    ],
)
def test_urls_that_are_no_files(url: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        fetch(url, (), 0, 10)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_a_catalogue_cannot_say_of_its_files() -> None:
    check_access((("anonymous", "true"), ("endpoint", "https://host")), "my.yaml")
    for access in ({"key": "x"}, {"anonymous": "yes"}, {"sign": "magic"}):
        with pytest.raises(InputError, match=r"my\.yaml: access has"):
            check_access(tuple(access.items()), "my.yaml")


def test_a_folder_of_the_web_cannot_be_listed() -> None:
    with pytest.raises(InputError, match=r"https://host/folder: a folder.*stac\+https://"):
        Storage("https://host/folder")
