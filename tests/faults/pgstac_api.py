"""A STAC API on PostgreSQL with pgstac, on this machine: with sort, query and filter."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

NEEDS = (
    "needs PostgreSQL with PostGIS and pgstac: apt-get install postgresql postgresql-postgis; "
    "pip install 'pypgstac[psycopg]' stac-fastapi-pgstac uvicorn"
)
MODULES = ("pypgstac", "psycopg", "stac_fastapi.pgstac", "uvicorn")


def _programs() -> Path | None:
    """The newest PostgreSQL's folder of programs, where PostGIS is beside it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    programs = [path.parent for path in found]
    shared = [Path("/usr/share/postgresql") / path.parent.name / "extension" / "postgis.control" for path in programs]
    return next((path for path, control in reversed([*zip(programs, shared, strict=True)]) if control.exists()), None)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def pgstac_server(items: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The URL of an API that has these items; skips the test where its parts are not installed."""
    programs = _programs()
    if programs is None or not all(map(_is_there, MODULES)):
        pytest.skip(NEEDS)
    # It refuses to run as root, and has no right to folders of tests.
    folder = Path(tempfile.mkdtemp(prefix="daskembed-pgstac-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    port, data = _free_port(), str(folder / "data")

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout

    try:
        run(str(programs / "initdb"), "-D", data, "-U", "pgstac", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c timezone=UTC"
        control = str(programs / "pg_ctl")
        run(control, "-D", data, "-w", "-t", "60", "-l", str(folder / "log"), "-o", options, "start")
        try:
            _load(items, port)
            with _api(port) as url:
                yield url
        finally:
            run(control, "-D", data, "-w", "-t", "60", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load(items: Sequence[dict[str, Any]], port: int) -> None:
    import psycopg
    from pypgstac.db import PgstacDB
    from pypgstac.load import Loader, Methods
    from pypgstac.migrate import Migrate

    address = f"postgresql://pgstac@127.0.0.1:{port}/postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION postgis")
    with PgstacDB(dsn=address) as database:
        Migrate(database).run_migration()
        loader = Loader(db=database)
        names = sorted({item["collection"] for item in items})
        loader.load_collections(iter([_collection(name) for name in names]), insert_mode=Methods.insert)
        loader.load_items(iter([{"stac_version": "1.0.0", **item} for item in items]), insert_mode=Methods.insert)


def _collection(name: str) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": name,
        "license": "other",
        "links": [],
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
    }


@contextlib.contextmanager
def _api(database: int) -> Iterator[str]:
    port = _free_port()
    connection = {
        "PGUSER": "pgstac",
        "PGPASSWORD": "none",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(database),
        "PGDATABASE": "postgres",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "stac_fastapi.pgstac.app:create_app", "--port", str(port)]
    server = subprocess.Popen(
        command, env=os.environ | connection, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{url}/", timeout=10).close()
                break
            except OSError:
                assert server.poll() is None, "the API ended"
                assert time.monotonic() < end, "the API does not answer"
                time.sleep(0.2)
        yield url
    finally:
        server.kill()
        server.wait(30)
