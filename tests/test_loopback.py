"""What stands in for a public catalogue on this machine."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import obstore
import pytest
from obstore.store import HTTPStore

from daskembed.cli.demo_catalogue import demo_catalogue
from daskembed.errors import InputError, StorageError
from daskembed.testing import loopback
from daskembed.testing.loopback import FileServer, Request, serve_catalogue

ITEM = {
    "type": "Feature",
    "stac_version": "1.0.0",
    "id": "one",
    "collection": "sentinel-2-l2a",
    "bbox": [12.0, 45.0, 13.0, 46.0],
    "geometry": {"type": "Polygon", "coordinates": [[[12, 45], [13, 45], [13, 46], [12, 46], [12, 45]]]},
    "properties": {"datetime": "2024-06-02T10:20:31Z"},
    "links": [],
    "assets": {},
}


@pytest.fixture
def items(tmp_path: Path) -> Path:
    file = tmp_path / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [ITEM]}))
    return file


def test_a_store_answers_ranges_as_object_stores_do(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/file.tif").write_bytes(bytes(range(256)))
    with FileServer(tmp_path) as server:
        store = HTTPStore.from_url(server.url, client_options={"allow_http": True})
        assert store.head("a b/file.tif")["size"] == 256
        assert bytes(store.get_range("a b/file.tif", start=3, end=9)) == bytes(range(3, 9))
        found = obstore.get(store, "a b/file.tif", options={"range": {"suffix": 2}})
        assert bytes(found.bytes()) == b"\xfe\xff"
        assert bytes(obstore.get(store, "a b/file.tif").bytes()) == bytes(range(256))
        with pytest.raises(FileNotFoundError):
            store.head("a b/other.tif")
        assert Request("GET", "/a b/file.tif", "bytes=3-8") in server.requests


def test_a_store_shows_nothing_beside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    (tmp_path / "shown").mkdir()
    with FileServer(tmp_path / "shown") as server:
        for path in ("../secret", "%2e%2e/secret", ""):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{server.url}/{path}")


def asked(server: FileServer, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of what is asked for as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_store_answers_this_machine_by_its_own_name_only(tmp_path: Path) -> None:
    """Of others, a name may lead here that a web page elsewhere has: it would read what is shown."""
    (tmp_path / "file").write_bytes(b"shown")
    with FileServer(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        for host in ("127.0.0.1", f"127.0.0.1:{port}", f"localhost:{port}"):
            assert asked(server, "/file", Host=host) == (200, b"shown")
        for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "", "localhost@evil.example"):
            assert asked(server, "/file", Host=host)[0] == 421


def test_odd_requests_of_a_store_have_an_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(bytes(range(10)))
    with FileServer(tmp_path) as server:
        for path in ("/%00", "/file%00.js", f"/{'a' * 5000}"):
            assert asked(server, path)[0] == 404
        # A range that ends before it begins is none, one that begins at the end has nothing.
        assert asked(server, "/file", Range="bytes=5-3") == (200, bytes(range(10)))
        assert asked(server, "/file", Range="bytes=5-5") == (206, bytes([5]))
        assert asked(server, "/file", Range="bytes=8-") == (206, bytes([8, 9]))
        assert asked(server, "/file", Range="bytes=10-")[0] == 416
    assert "Traceback" not in capfd.readouterr().err


def test_a_catalogue_is_there_and_gone(items: Path) -> None:
    path = "collections/sentinel-2-l2a/items/one"
    with serve_catalogue(items) as url, urllib.request.urlopen(f"{url}/{path}") as answer:
        assert json.load(answer)["id"] == "one"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_a_catalogue_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ended as it began"), serve_catalogue(tmp_path / "none.json"):
        pass


def test_a_port_that_somebody_else_took_is_left_to_him(
    items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = loopback._free_port
    with FileServer(tmp_path) as other:
        taken = int(other.url.rpartition(":")[2])
        ports = iter([taken, free()])
        monkeypatch.setattr(loopback, "_free_port", lambda: next(ports))
        with serve_catalogue(items) as url, urllib.request.urlopen(f"{url}/collections") as answer:
            assert json.load(answer)["collections"]
        with pytest.raises(StorageError, match="ended as it began"), serve_catalogue(items, taken):
            pass


def test_without_the_extra_it_is_said_what_to_install(
    items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match=r"pip install 'daskembed\[stac\]'"), serve_catalogue(items):
        pass
    with pytest.raises(InputError, match=r"pip install 'daskembed\[stac\]'"):
        demo_catalogue(tmp_path / "demo", "clay-v0", lambda words: 0)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(InputError, match=r"pystac-client, which is not installed: pip install 'daskembed\[stac\]'"):
        demo_catalogue(tmp_path / "demo", "clay-v0", lambda words: 0)
    assert not (tmp_path / "demo").exists()


def test_a_catalogue_ends_with_what_began_it(items: Path) -> None:
    begun = (
        "from daskembed.testing.loopback import serve_catalogue\n"
        f"with serve_catalogue({str(items)!r}) as url:\n    print(url, flush=True)\n    raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", begun], capture_output=True, text=True, timeout=120)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(done.stdout.strip())
