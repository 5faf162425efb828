"""Chips from an S3-compatible server on this machine with latency added to every request, by number of readers."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

from benchmarks.common import Row
from daskembed.index import index_tile
from daskembed.storage.stores import Storage
from daskembed.testing import write_chips

LATENCY = 0.05


def run(*, smallest: bool = False) -> list[Row]:
    """Index 16 chips and read them with 1, 4 and 16 readers; requests are counted by kind."""
    rows, side = [], 1 if smallest else 4
    with tempfile.TemporaryDirectory() as folder, s3_server() as (url, requests):
        storage = Storage(url)
        for path in write_chips(Path(folder), rows=side, cols=side):
            storage.put(f"33TUL/2019-04-16/{path.name}", path.read_bytes())
        for readers in (1, 4, 16)[: 1 if smallest else None]:
            requests.clear()
            start = time.perf_counter()
            index = index_tile("33TUL", url, readers=readers)
            indexed = time.perf_counter() - start
            listed, ranged = requests["list"], requests["range"]
            start = time.perf_counter()
            with ThreadPoolExecutor(readers) as pool:
                list(pool.map(lambda chip: chip.read(), index["chip"]))
            wall = time.perf_counter() - start
            rows.append(
                {
                    "readers": readers,
                    "listings": listed,
                    "ranged GETs a chip": ranged / len(index),
                    "index s": indexed,
                    "GETs a chip": requests["get"] / len(index),
                    "chips/s": len(index) / wall,
                    "MB/s": index["size"].sum() / wall / 1e6,
                }
            )
    return rows


@contextmanager
def s3_server() -> Iterator[tuple[str, Counter[str]]]:
    """An S3 server that waits before each answer: the URL of a bucket in it, and its requests by kind."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    backend, requests = DomainDispatcherApplication(create_backend_app), Counter[str]()

    def delayed(environ: dict[str, Any], respond: Callable[..., Any]) -> Any:
        time.sleep(LATENCY)
        if environ["REQUEST_METHOD"] == "GET":
            listing = "list-type" in environ["QUERY_STRING"]
            requests["list" if listing else "range" if "HTTP_RANGE" in environ else "get"] += 1
        return backend(environ, respond)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, delayed, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
    }
    try:
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
        client.create_bucket(Bucket="bench")
        yield "s3://bench/tiles", requests
    finally:
        server.shutdown()
        os.environ.clear()
        os.environ |= before
