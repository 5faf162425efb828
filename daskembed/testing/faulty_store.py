"""A proxy in front of an S3 server that fails as networks and stores do, by chance or from a request on."""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from daskembed.testing.serving import Served

FAULTS = ("500", "503", "reset", "lost", "truncated", "stall")
"""Kinds of faults.

``500`` and ``503``: InternalError and SlowDown instead of an answer. ``reset``: the connection ends before the request
is carried out. ``lost``: it ends after that. ``truncated``: half of the body that Content-Length promises. ``stall``: a
pause in the middle of the body, or before an answer that has none.
"""
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass(frozen=True)
class _Refusal:
    status: int
    code: str
    after: int
    matching: re.Pattern[str]


class FaultyProxy(Served):
    """An HTTP proxy on the loopback address: name its `url` as ``AWS_ENDPOINT_URL``.

    Use it as a context manager. `counts` says how many requests there were and what they met.

    Parameters
    ----------
    target
        URL of the S3 server.
    chances
        Fault -> probability for each request; see `FAULTS`.
    seed
        The n-th request meets the same fault whenever the seed is the same.
    stall
        Seconds of a stall.
    most
        After so many faults there are no more.
    methods, matching
        Only requests with one of these methods, and with a path (and query) in which this regular expression is found,
        meet faults. Counts tell of these requests alone.
    """

    def __init__(
        self,
        target: str,
        chances: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        stall: float = 2.0,
        most: float = math.inf,
        methods: Collection[str] = ("GET", "HEAD", "PUT", "POST", "DELETE"),
        matching: str = "",
    ) -> None:
        self.chances = dict(chances or {})
        if unknown := self.chances.keys() - set(FAULTS):
            raise ValueError(f"unknown faults {', '.join(sorted(unknown))}: expected some of {', '.join(FAULTS)}")
        self.counts: Counter[str] = Counter()
        self.methods, self.matching, self.stall = methods, re.compile(matching), stall
        self.most = most
        self._target = urlsplit(target).netloc
        self._chance, self._lock, self._closed = random.Random(seed), threading.Lock(), threading.Event()
        self._refusal: _Refusal | None = None
        proxy = self

        class Handler(_Handler):
            def carry_out(self) -> None:
                # A client that gave up has closed its end.
                with contextlib.suppress(ConnectionError):
                    proxy._carry_out(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = carry_out  # noqa: N815

        super().__init__(Handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        super().__exit__(kind, error, trace)

    def refuse(self, status: int, code: str, *, after: int = 0, matching: str = "") -> None:
        """Answer every request whose path matches with an error of S3, from the one after the next `after` on."""
        with self._lock:
            self._refusal = _Refusal(status, code, after, re.compile(matching))

    def recover(self) -> None:
        """Refuse no more."""
        with self._lock:
            self._refusal = None

    def _draw(self, method: str, path: str) -> str | _Refusal:
        with self._lock:
            if self._refusal and self._refusal.matching.search(path):
                if self._refusal.after <= 0:
                    self.counts[self._refusal.code] += 1
                    return self._refusal
                self._refusal = _Refusal(
                    self._refusal.status, self._refusal.code, self._refusal.after - 1, self._refusal.matching
                )
            if method not in self.methods or not self.matching.search(path):
                return ""
            self.counts["requests"] += 1
            drawn = self._chance.random()
            for fault, chance in self.chances.items():
                drawn -= chance
                if drawn < 0 and self.most > 0:
                    self.most -= 1
                    self.counts[fault] += 1
                    return fault
            return ""

    def _carry_out(self, handler: _Handler) -> None:
        # Read in any case, or the next request on this connection would begin in its middle.
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = self._draw(handler.command, handler.path)
        if isinstance(fault, _Refusal):
            handler.refuse(fault.status, fault.code)
        elif fault == "500":
            handler.refuse(500, "InternalError")
        elif fault == "503":
            handler.refuse(503, "SlowDown")
        elif fault == "reset":
            handler.reset()
        else:
            status, headers, answer = self._forward(handler, body)
            if fault == "lost":
                handler.reset()
            elif fault == "stall":
                handler.answer(status, headers, answer, pause=lambda: self._closed.wait(self.stall))
            else:
                handler.answer(status, headers, answer, truncated=fault == "truncated")

    def _forward(self, handler: _Handler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            # The signature covers the Host header, so the server must see the one that the client sent.
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            if body or handler.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
            length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(answer))
            return response.status, [*headers, ("Content-Length", length or "0")], answer
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers are written in two steps: Nagle's algorithm would hold the second back for the client's acknowledgement.
    disable_nagle_algorithm = True

    def refuse(self, status: int, code: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        self.answer(status, headers, body.encode())

    def answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        truncated: bool = False,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        half = 0 if self.command == "HEAD" else len(body) // 2
        if not half:
            pause()
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:half])
        if half:
            pause()
        if truncated:
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body[half:])

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # By its number: an orderly close would wait for the files made of it, and say goodbye first.
        socket.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:
        pass
