"""A STAC API and an object store on the loopback address."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import mimetypes
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from daskembed.errors import InputError, StorageError
from daskembed.testing.serving import Served

_RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
_NAMES = ("127.0.0.1", "localhost")
_PORT = re.compile(r":\d+$")
_STARTING = 60
"""Most seconds until the STAC API answers."""


class Request(NamedTuple):
    """What a client asked a `FileServer` for."""

    method: str
    path: str
    range: str | None


class FileServer(Served):
    """The files of a folder by HTTP, as object stores show them: with sizes, entity tags and ranges.

    It answers this machine by its own name only: a web page elsewhere whose name leads here gets nothing to read.

    Use it as a context manager; `url` is where the folder is, `requests` what was asked for.

    Parameters
    ----------
    folder
        What is shown.
    port
        Of the server; 0 for any that is free.

    Raises
    ------
    InputError
        If the port is taken.
    """

    def __init__(self, folder: str | Path, *, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.requests: list[Request] = []
        store = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                # A client that needs no more has closed its end.
                with contextlib.suppress(ConnectionError):
                    store._answer(self)

            do_HEAD = do_GET  # noqa: N815

        try:
            super().__init__(Handler, port)
        except OSError as error:
            raise InputError(f"port {port} of this machine, where {folder} was shown, is taken: {error}") from None

    def _answer(self, handler: _Handler) -> None:
        if _PORT.sub("", handler.headers.get("Host", "")) not in _NAMES:
            handler.answer(421, {}, b"this machine is 127.0.0.1")
            return
        path, ranged = unquote(urlsplit(handler.path).path), handler.headers.get("Range")
        self.requests.append(Request(handler.command, path, ranged))
        try:
            file = (self.folder / path.lstrip("/")).resolve()
            there = file.is_relative_to(self.folder) and file.is_file()
        except (OSError, ValueError):  # what no file can be called
            there = False
        if not there:
            handler.answer(404, {}, b"not found")
            return
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        tags = {"ETag": f'"{_digest(file, changed)}"', "Accept-Ranges": "bytes"}
        tags["Content-Type"] = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        tags["Last-Modified"] = handler.date_time_string(changed // 10**9)
        if (part := _part(ranged, size)) is None:
            handler.answer(200, tags, _read(file, 0, size))
        elif part[0] >= size:
            handler.answer(416, {"Content-Range": f"bytes */{size}"}, b"")
        else:
            tags["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
            handler.answer(206, tags, _read(file, *part))


@cache
def _digest(file: Path, changed: int) -> str:
    """As S3 has it: the same of a file that is written again as it was."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _part(ranged: str | None, size: int) -> tuple[int, int] | None:
    """First byte, and the one after the last, that a header asks for; None for all of them, and if it asks for none."""
    found = _RANGE.fullmatch(ranged or "")
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        return max(0, size - int(found["last"])), size
    first, last = int(found["first"]), int(found["last"] or size)
    return None if last < first else (first, min(size, last + 1))


def _read(file: Path, start: int, stop: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(stop - start)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # As of `FaultyProxy`.
    disable_nagle_algorithm = True

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def find_rustac() -> Path:
    """The program of a STAC API; raises `InputError` if it is not installed."""
    program = Path(sys.executable).with_name("rustac")
    if not program.exists():
        raise InputError(
            "a STAC API on this machine needs rustac, which is not installed: pip install 'daskembed[stac]'"
        )
    return program


@contextlib.contextmanager
def serve_catalogue(items: str | Path, port: int = 0) -> Iterator[str]:
    """A STAC API with the items of an ItemCollection, on a port, or on a free one for 0; gives its URL.

    It is rustac's: one with collections, bounding boxes, times and pages, and without sort, query and filter.

    Raises
    ------
    InputError
        If rustac is not installed.
    StorageError
        If it does not start.
    """
    program = find_rustac()
    chosen = port or _free_port()
    try:
        server = _start(program, items, chosen)
    except StorageError:
        if port:
            raise
        # Somebody else may have taken what was free.
        chosen = _free_port()
        server = _start(program, items, chosen)
    try:
        yield f"http://127.0.0.1:{chosen}"
    finally:
        _end(server)


def _start(program: Path, items: str | Path, port: int) -> subprocess.Popen[bytes]:
    command = [str(program), "serve", str(items), "--create-collections", "-a", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(server, port)
    except BaseException:
        _end(server)
        raise
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _STARTING
    while time.monotonic() < end:
        if server.poll() is not None:
            raise StorageError(f"the STAC API of this machine ended as it began: exit status {server.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            # Somebody else may have the port, and the server end.
            if connection.getresponse().status == 200 and server.poll() is None:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise StorageError(f"the STAC API of this machine does not answer within {_STARTING} s")
