"""A server of files, in a process of its own: each request waits, and all share so many bytes a second."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_PIECE = 2**16
_LATE = 0.2
"""Seconds."""


class Bandwidth:
    """Lets so many bytes a second through, whoever sends them."""

    def __init__(self, rate: float) -> None:
        self._rate, self._lock, self._free = rate, threading.Lock(), 0.0

    def wait(self, count: int) -> None:
        """Until `count` bytes more may be sent."""
        with self._lock:
            now = time.perf_counter()
            # A sleep is late, the more so on a busy machine; that is caught up with.
            self._free = max(self._free, now - _LATE) + count / self._rate
            pause = self._free - now
        if pause > 0:
            time.sleep(pause)


def serve(folder: Path, latency: float, rate: float) -> None:
    """Serve a folder until the process is killed; prints the port first."""
    bandwidth, lock, told = Bandwidth(rate), threading.Lock(), {"requests": 0, "bytes": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            if path == "counts":
                with lock:
                    self.answer(200, json.dumps(told).encode(), {})
                    told.update(requests=0, bytes=0)
                return
            time.sleep(latency)
            file = folder / path
            if not file.is_file():
                with lock:
                    told["requests"] += 1
                self.answer(404, b"", {})
                return
            size = file.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = (int(asked[1]), int(asked[2] or size - 1) + 1) if asked else (0, size)
            with file.open("rb") as opened:
                opened.seek(start)
                data = b"" if self.command == "HEAD" else opened.read(min(end, size) - start)
            with lock:
                told["requests"] += 1
                told["bytes"] += len(data)
            headers = {
                "ETag": f'"{size:x}"',
                "Accept-Ranges": "bytes",
                "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            }
            if asked:
                headers["Content-Range"] = f"bytes {start}-{min(end, size) - 1}/{size}"
            self.answer(206 if asked else 200, data, headers, length=size if self.command == "HEAD" else None)

        do_HEAD = do_GET  # noqa: N815

        def answer(self, status: int, data: bytes, headers: dict[str, str], *, length: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(data) if length is None else length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for first in range(0, len(data), _PIECE):
                piece = data[first : first + _PIECE]
                bandwidth.wait(len(piece))
                self.wfile.write(piece)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: a client that needs no more closes its end."""

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
