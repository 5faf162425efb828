"""Checkpoints are fetched once, resumed where they broke off, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import pytest

from daskembed.encoders import clay_v0
from daskembed.encoders.checkpoint import inspect_checkpoint, load_state
from daskembed.encoders.fetch import _sha256, fetch, sha256_of
from daskembed.encoders.loading import load_encoder
from daskembed.errors import CheckpointError
from daskembed.storage.stores import Storage
from daskembed.testing import write_checkpoint


def refusal(location: str | Path) -> str:
    """What a checkpoint is refused with, in one line that names it."""
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(str(location), clay_v0)
    message = str(error.value)
    assert str(location) in message
    assert "\n" not in message
    return message


def test_hash_of_a_large_file_is_written_down(cache, tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "a.ckpt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path, remembered=1000) == digest
    _sha256.cache_clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *args: pytest.fail("the file was read again"))
        assert sha256_of(path, remembered=1000) == digest
    write_checkpoint(path, seed=1)
    assert sha256_of(path, remembered=1000) == hashlib.sha256(path.read_bytes()).hexdigest() != digest


# --- Downloads ----------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Web(ThreadingHTTPServer):
    """A web server whose pages a test sets; it remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    def serve(
        self,
        path: str,
        data: bytes,
        *,
        status: int = 200,
        length: int | None = None,
        ends: Sequence[int] = (),
        **headers: str,
    ) -> str:
        """Answer requests of `path`, the first ones only up to these places in the data; returns its URL."""
        ends = list(ends)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            # Only of a file with a tag can parts be asked for, and only of that file.
            asked = (
                handler.headers.get("Range") if handler.headers.get("If-Range") in (None, headers.get("ETag")) else None
            )
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and "ETag" in headers else 0
            handler.send_response(206 if start else status)
            if start:
                handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            handler.send_header("Content-Length", str((len(data) if length is None else length) - start))
            for name, value in ({"Connection": "close"} | headers).items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(data[start : ends.pop(0) if ends else None])

        self.answers[path] = answer
        return self.url + path

    def serve_hub(self, path: str, data: bytes, **more: Any) -> None:
        """Answer as the hub does for a large file: of what commit it is, and of what hash."""
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'} | more
        repo, _, rest = path.partition("@")
        for revision in (rest.partition("/")[0], COMMIT):
            self.serve(f"/{repo}/resolve/{revision}/{rest.partition('/')[2]}", data, **headers)

    def gets(self) -> list[tuple[str, str | None]]:
        """Paths that were asked for in earnest, and which part; not what the hub's client asks for itself."""
        asked = [one for one in self.asked if one[0] == "GET" and not one[1].startswith("/api/")]
        return [(path, headers.get("Range")) for _, path, headers in asked]


class _Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, {name.title(): v for name, v in self.headers.items()}))
        self.close_connection = True
        if answer := self.server.answers.get(self.path):
            answer(self)
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


def start_web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def web(monkeypatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with dask.config.set({"daskembed.retry-timeout": 0}):
        yield from start_web()


@pytest.fixture
def other_web(web) -> Iterator[Web]:
    yield from start_web()


@pytest.fixture
def cache(tmp_path) -> Iterator[Path]:
    """The folder that downloads are kept in."""
    folder = tmp_path / "cache" / "of checkpoints"
    with dask.config.set({"daskembed.cache": str(folder)}):
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> bytes:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt").read_bytes()


def test_download_once(web, cache, data):
    url = web.serve("/v0/tiny.ckpt", data)
    encoder = load_encoder(url, precision="fp32")
    assert (encoder.checkpoint, encoder.size) == (url, "tiny")
    assert encoder.sha256 == hashlib.sha256(data).hexdigest()
    assert load_encoder(url, precision="fp32") == encoder
    assert len(load_state(encoder, clay_v0)) == 74
    assert web.gets() == [("/v0/tiny.ckpt", None)]
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == data
    assert kept.name.endswith("-tiny.ckpt")


def test_same_name_elsewhere_is_another_download(web, cache, data, tmp_path):
    other = write_checkpoint(tmp_path / "other.ckpt", seed=1).read_bytes()
    first, second = web.serve("/1/tiny.ckpt", data), web.serve("/2/tiny.ckpt", other)
    assert [fetch(url)[1] for url in (first, second)] == [hashlib.sha256(d).hexdigest() for d in (data, other)]
    assert len(list(cache.iterdir())) == 2


def test_default_cache(web, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with dask.config.set({"daskembed.cache": None}):
        path, _ = fetch(web.serve("/tiny.ckpt", data))
    assert path.parent == tmp_path / "daskembed"
    assert path.read_bytes() == data


def test_downloads_at_once(web, cache, data):
    url = web.serve("/tiny.ckpt", data)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(fetch, [url] * 4))
    assert len(found) == 1
    assert [path.read_bytes() for path in cache.iterdir()] == [data]


def test_redirect(web, other_web, cache, data):
    target = other_web.serve("/blobs/1", data)
    url = web.serve("/tiny.ckpt", b"", status=302, Location=target)
    assert load_encoder(url, precision="fp32").checkpoint == url
    assert web.gets() + other_web.gets() == [("/tiny.ckpt", None), ("/blobs/1", None)]


@pytest.mark.parametrize("missing", [1, 1_000_000])
def test_broken_off(web, cache, data, missing):
    url = web.serve("/tiny.ckpt", data[:-missing], length=len(data))
    expected = f"{url} broke off after {len(data) - missing} of {len(data)} bytes: run the command again"
    assert refusal(url) == expected
    assert list(cache.iterdir()) == []
    web.serve("/tiny.ckpt", data)
    assert inspect_checkpoint(url, clay_v0)[2] == "tiny"


def test_what_broke_off_goes_on_from_there(web, cache, data):
    url = web.serve("/tiny.ckpt", data, ends=[1_000_000, 1_500_000], ETag='"1"')
    assert fetch(url)[0].read_bytes() == data
    parts = [None, "bytes=1000000-", "bytes=1500000-"]
    assert web.gets() == [("/tiny.ckpt", part) for part in parts]


def test_what_broke_off_begins_again_where_parts_may_be_of_another_file(web, cache, data):
    url = web.serve("/tiny.ckpt", data, ends=[1_000_000, 1_500_000])
    assert fetch(url)[0].read_bytes() == data
    assert web.gets() == [("/tiny.ckpt", None)] * 3


def test_file_that_changes_on_the_way_is_fetched_anew(web, cache, data):
    other = bytes(reversed(data))
    url = web.serve("/tiny.ckpt", other, ends=[1_000_000], ETag='"1"')
    first = web.answers["/tiny.ckpt"]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        first(handler)
        web.serve("/tiny.ckpt", data, ETag='"2"')

    web.answers["/tiny.ckpt"] = answer
    assert fetch(url)[0].read_bytes() == data


def test_server_that_is_busy_for_a_moment(web, cache, data):
    url = web.serve("/tiny.ckpt", b"", status=503)
    busy = web.answers["/tiny.ckpt"]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        busy(handler)
        if len(web.asked) == 2:
            web.serve("/tiny.ckpt", data)

    web.answers["/tiny.ckpt"] = answer
    with dask.config.set({"daskembed.retry-timeout": 60}):
        assert fetch(url)[0].read_bytes() == data
    assert len(web.asked) == 3


def test_server_that_is_gone_for_a_moment(web, cache, data):
    url = web.serve("/tiny.ckpt", data, ends=[1_000_000], ETag='"1"')
    given = web.answers["/tiny.ckpt"]
    # It hangs up once, without an answer, after it has given a part.
    web.answers["/tiny.ckpt"] = lambda handler: None if len(web.asked) == 2 else given(handler)
    with dask.config.set({"daskembed.retry-timeout": 60}):
        assert fetch(url)[0].read_bytes() == data
    assert [part for _, part in web.gets()] == [None, "bytes=1000000-", "bytes=1000000-"]


def test_server_that_answers_with_another_part(web, cache, data):
    url = web.serve("/tiny.ckpt", data, ends=[1_000_000], ETag='"1"')
    first = web.answers["/tiny.ckpt"]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "Range" not in handler.headers:
            return first(handler)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    web.answers["/tiny.ckpt"] = answer
    assert "it answers with another part of the file than the one asked for" in refusal(url)
    assert list(cache.iterdir()) == []


def test_broken_off_in_a_chunk(web, cache, data):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n" % len(data) + data[:100_000])

    web.answers["/tiny.ckpt"] = answer
    assert "/tiny.ckpt" in refusal(f"{web.url}/tiny.ckpt")
    assert list(cache.iterdir()) == []


def test_server_that_does_not_speak_http(web, cache):
    web.answers["/tiny.ckpt"] = lambda handler: handler.wfile.write(b"220 mail server")
    assert refusal(f"{web.url}/tiny.ckpt").startswith(f"cannot fetch {web.url}/tiny.ckpt: ")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_error_of_the_server(web, cache, data, status):
    url = web.serve("/tiny.ckpt", data, status=status)
    message = refusal(url)
    assert message.startswith(f"cannot fetch {url}: HTTP Error {status}: ")
    assert message.endswith("; download it by hand and give its path")
    assert list(cache.iterdir()) == []


def test_no_server(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/tiny.ckpt"
        message = refusal(url)
    assert message.startswith(f"cannot fetch {url}: ")
    assert "Connection refused" in message


def test_page_in_place_of_the_file_is_not_kept(web, cache, data):
    url = web.serve("/tiny.ckpt", b"<html>Please sign in</html>")
    assert refusal(url).startswith(f"{url} is an HTML or XML page, not a checkpoint")
    assert list(cache.iterdir()) == []
    web.serve("/tiny.ckpt", data)
    assert inspect_checkpoint(url, clay_v0) == (url, hashlib.sha256(data).hexdigest(), "tiny")
    assert len(list(cache.iterdir())) == 1


def test_long_url(web, cache, data):
    # As those of signed links.
    url = web.serve(f"/tiny.ckpt?X-Amz-Signature={'0123456789abcdef' * 40}", data)
    assert inspect_checkpoint(url, clay_v0)[2] == "tiny"


def test_url_with_a_space(web, cache, data):
    web.serve("/my%20weights.ckpt", data)
    url = f"{web.url}/my weights.ckpt"
    with contextlib.suppress(CheckpointError):  # which is as good an answer
        assert inspect_checkpoint(url, clay_v0)[2] == "tiny"


@pytest.mark.parametrize("location", ["ftp://host/tiny.ckpt", "S3://bucket/tiny.ckpt"])
def test_unknown_scheme(cache, location):
    scheme = location.partition("://")[0]
    message = refusal(location)
    assert message.startswith(f"{location}: unknown scheme {scheme}://; expected a path, https://, hf:// or one of s3,")


# --- Hugging Face and S3 ------------------------------------------------------------


@pytest.fixture
def hub(web, monkeypatch) -> Web:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return web


def test_hugging_face(hub, cache, data):
    hub.serve_hub("made/Clay@2033cf5/v0/tiny.ckpt", data)
    location = "hf://made/Clay@2033cf5/v0/tiny.ckpt"
    for _ in range(2):
        assert inspect_checkpoint(location, clay_v0) == (location, hashlib.sha256(data).hexdigest(), "tiny")
    # Of the commit that the revision was.
    assert hub.gets() == [(f"/made/Clay/resolve/{COMMIT}/v0/tiny.ckpt", None)]
    assert not any("Authorization" in headers for _, _, headers in hub.asked)
    assert all(headers["User-Agent"].startswith("daskembed/") for _, path, headers in hub.asked if "Clay" in path)
    assert [path.name.partition("-")[2] for path in cache.iterdir()] == ["tiny.ckpt"]


def test_hugging_face_breaks_off(hub, cache, data):
    # Its client writes 10 MiB at a time.
    hub.serve_hub("made/Clay@main/tiny.ckpt", data, ends=[12_000_000])
    assert fetch("hf://made/Clay@main/tiny.ckpt")[0].read_bytes() == data
    assert [part for _, part in hub.gets()] == [None, f"bytes={10 * 2**20}-"]


def test_what_is_not_what_the_hub_says_is_not_kept(hub, cache, data):
    damaged = data[:1_000_000] + bytes([data[1_000_000] ^ 1]) + data[1_000_001:]
    expected, found = hashlib.sha256(data).hexdigest(), hashlib.sha256(damaged).hexdigest()
    hub.serve_hub("made/Clay@main/tiny.ckpt", damaged, ETag=f'"{expected}"')
    location = "hf://made/Clay@main/tiny.ckpt"
    assert refusal(location) == (
        f"{location} arrived damaged: its SHA-256 is {found[:12]}, the hub says {expected[:12]}: run the command again"
    )
    assert list(cache.iterdir()) == []
    hub.serve_hub("made/Clay@main/tiny.ckpt", data)
    assert fetch(location)[1] == expected


def test_hugging_face_token(hub, cache, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.serve_hub("made/Clay@main/tiny.ckpt", data)
    inspect_checkpoint("hf://made/Clay@main/tiny.ckpt", clay_v0)
    assert {headers["Authorization"] for _, _, headers in hub.asked} == {"Bearer hf_secret"}


def test_hugging_face_token_goes_nowhere_else(hub, other_web, cache, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # To this machine by another of its names.
    target = other_web.serve("/blobs/1", data).replace("127.0.0.1", "localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    linked = {"X_Linked_Size": str(len(data)), "X_Linked_Etag": hashlib.sha256(data).hexdigest()}
    hub.serve_hub("made/Clay@main/tiny.ckpt", b"", status=302, Location=target, **linked)
    elsewhere = other_web.serve("/tiny.ckpt", data)
    assert [fetch(url)[0].read_bytes() for url in ("hf://made/Clay@main/tiny.ckpt", elsewhere)] == [data, data]
    assert [path for path, _ in other_web.gets()] == ["/blobs/1", "/tiny.ckpt"]
    assert not any("Authorization" in headers for _, _, headers in other_web.asked)


@pytest.mark.parametrize(("status", "login"), [(401, True), (403, True), (404, False)])
def test_hub_that_refuses(hub, cache, data, status, login):
    hub.serve_hub("made/Clay@main/tiny.ckpt", data, status=status)
    message = refusal("hf://made/Clay@main/tiny.ckpt")
    assert str(status) in message
    assert ("set HF_TOKEN to a token that may read it" in message) == login


def test_hugging_face_path_is_quoted(hub, cache, data):
    hub.serve_hub("made/Clay@main/my%20weights%23.ckpt", data)
    assert inspect_checkpoint("hf://made/Clay@main/my weights#.ckpt", clay_v0)[2] == "tiny"


def test_what_a_person_can_do_where_the_hub_gives_nothing(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    message = refusal("hf://made/Clay@2033cf5/v0/tiny.ckpt")
    assert (
        "; https://huggingface.co/made/Clay/tree/2033cf5/v0 is the page to find it on: download it by hand" in message
    )
    assert message.endswith("; untrained:tiny (noise, for trials) needs no file")


@pytest.mark.parametrize("location", ["hf://made/Clay/tiny.ckpt", "hf://Clay@main/tiny.ckpt", "hf://made/Clay@main"])
def test_hugging_face_location_of_another_form(hub, cache, location):
    assert refusal(location).startswith(f"{location} is not of the form hf://OWNER/REPO@REVISION/PATH: a file's page")
    assert hub.asked == []


def test_s3(s3, cache, data):
    Storage(s3).put("v0/tiny.ckpt", data)
    location = f"{s3}/v0/tiny.ckpt"
    expected = (location, hashlib.sha256(data).hexdigest(), "tiny")
    assert inspect_checkpoint(location, clay_v0) == expected
    Storage(s3).delete(["v0/tiny.ckpt"])
    assert inspect_checkpoint(location, clay_v0) == expected


def test_s3_without_the_object(s3, cache):
    assert refusal(f"{s3}/v0/tiny.ckpt") == f"cannot fetch the checkpoint: {s3}/v0/tiny.ckpt does not exist"
    assert list(cache.iterdir()) == []
