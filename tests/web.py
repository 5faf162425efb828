"""A server of files on the loopback address, which answers ranges, counts what it is asked and can misbehave."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from daskembed.testing.serving import Served

Fault = Callable[["_Handler"], bool]


class Web(Served):
    """Serves `files` (path -> bytes); a context manager.

    `fault` is called with each request first, and has answered it itself if it returns True.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = files or {}
        self.requests: list[tuple[str, int, int]] = []
        self.fault: Fault = lambda handler: False
        self.latency = 0.0
        web = self

        class Handler(_Handler):
            owner = web

        super().__init__(Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Web

    def do_GET(self) -> None:
        if self.owner.latency:
            time.sleep(self.owner.latency)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if self.owner.fault(self):
            return
        data = self.owner.files.get(path)
        if data is None:
            self.answer(404, b"nothing here")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, data, {"ETag": f'"{hash(data):x}"'})
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        self.owner.requests.append((path, start, end))
        if start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        told = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", "ETag": f'"{hash(data):x}"'}
        self.answer(206, data[start:end], told)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut or self.close_connection

    def log_message(self, format: str, *args: Any) -> None:
        pass
