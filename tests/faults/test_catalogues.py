"""Searches of servers that misbehave: every item is found, or an error says why not."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import dask
import geopandas as gpd
import pytest
from geopandas.testing import assert_geodataframe_equal
from pgstac_api import pgstac_server

from daskembed.errors import InputError, StorageDeniedError, StorageError, StorageUnusableError
from daskembed.sources.stac.catalogue import Catalogue, Images, find_catalogue
from daskembed.sources.stac.search import find_items
from daskembed.testing import write_scenes
from daskembed.testing.loopback import FileServer

S2 = Images("optical", "sentinel-2-l2a", {"b02": ("B02",)})
EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)
COUNT = 50
FEATURES = [
    {
        "type": "Feature",
        "id": f"item-{number:03}",
        "collection": "sentinel-2-l2a",
        "bbox": [12, 45, 13, 46],
        "geometry": None,
        "properties": {"datetime": "2024-05-01T10:00:00Z"},
        "assets": {"B02": {"href": f"https://files.example/{number}.tif"}},
    }
    for number in range(COUNT)
]


class Server:
    """A STAC API of `FEATURES` on this machine, whose answers a test changes."""

    def __init__(self, *, post: bool = True) -> None:
        self.asked: list[dict[str, object]] = []
        """Of each search."""
        self.change: Callable[[int, dict[str, object]], object] = lambda number, asked: None
        """Number of a search from 1 and what it asks -> a status, a text instead of the answer, ``reset``, ``half`` of
        it, or None for the true one."""
        self.post = post
        self.links = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                split = urlsplit(self.path)
                if split.path == "/search":
                    server._search(self, dict(parse_qsl(split.query)))
                else:
                    server._answer(self, server._landing())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.post:
                    server._search(self, asked)
                else:
                    server._answer(self, {}, status=405)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._closed = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _landing(self) -> dict[str, object]:
        methods = ["GET", "POST"] if self.post else ["GET"]
        links = [{"rel": "search", "href": f"{self.url}/search", "method": method} for method in methods]
        return {"type": "Catalog", "id": "here", "links": links if self.links else []}

    def _search(self, handler: BaseHTTPRequestHandler, asked: dict[str, object]) -> None:
        self.asked.append(asked)
        change = self.change(len(self.asked), asked)
        if change == "silent":
            self._closed.wait(30)
            change = "reset"
        if change == "reset":
            handler.close_connection = True
            return
        if isinstance(change, int):
            self._answer(handler, {"code": change, "description": f"told {change}"}, status=change)
            return
        answer = change if isinstance(change, dict) else self.page(asked)
        self._answer(handler, change if isinstance(change, str) and change != "half" else answer, half=change == "half")

    def page(self, asked: dict[str, object]) -> dict[str, object]:
        limit, start = int(str(asked["limit"])), int(str(asked.get("token", 0)))
        links = []
        if start + limit < COUNT:
            following = asked | {"token": start + limit}
            if self.post:
                links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": following}]
            else:
                query = "&".join(f"{key}={value}" for key, value in following.items())
                links = [{"rel": "next", "href": f"{self.url}/search?{query}"}]
        return {"type": "FeatureCollection", "features": FEATURES[start : start + limit], "links": links}

    def _answer(self, handler: BaseHTTPRequestHandler, value: object, status: int = 200, half: bool = False) -> None:
        body = (value if isinstance(value, str) else json.dumps(value)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if half else body)
        handler.close_connection = half


@contextmanager
def serving(**options: bool) -> Iterator[Server]:
    server = Server(**options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one, dask.config.set({"daskembed.retry-timeout": 5}):
        yield one


def search(server: Server, size: int = 10) -> list[str]:
    found = find_items(Catalogue("here", server.url, (S2,), size), S2, EVERYWHERE, None, None)
    return sorted(item.id for item in found)


ALL = [str(feature["id"]) for feature in FEATURES]


def test_nothing_is_asked_that_a_server_may_not_know(server):
    assert search(server) == ALL
    assert {key for asked in server.asked for key in asked} == {"collections", "bbox", "limit", "token"}


def test_a_server_that_takes_no_post():
    with serving(post=False) as server:
        assert search(server) == ALL
        assert len(server.asked) == 5


def test_a_server_whose_large_pages_are_a_502(server):
    server.change = lambda number, asked: 502 if int(str(asked["limit"])) > 20 else None
    assert search(server, 100) == ALL
    assert [asked["limit"] for asked in server.asked] == [100, 50, 25, 12, 12, 12, 12, 12]


def test_a_server_whose_later_pages_are_too_large(server):
    server.change = lambda number, asked: 502 if int(str(asked["limit"])) > 15 and "token" in asked else None
    assert search(server, 20) == ALL


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_error_of_the_server_in_the_middle_of_paging(server, status):
    server.change = lambda number, asked: status if number in (1, 3, 4) else None
    assert search(server) == ALL
    # Each page once, and again what failed.
    assert len(server.asked) == 8


@pytest.mark.parametrize(
    "fault",
    ["reset", "half", '{"type": "FeatureColl', "<html>busy</html>", "[]", '{"code": "busy"}', '{"features": 1}'],
)
def test_a_search_that_breaks_off_in_the_middle_goes_on(server, fault):
    server.change = lambda number, asked: fault if number in (2, 5) else None
    assert search(server) == ALL


def test_a_server_that_falls_silent():
    with serving() as server, dask.config.set({"daskembed.retry-timeout": 6}):
        server.change = lambda number, asked: "silent" if number == 2 else None
        assert search(server) == ALL


@pytest.mark.parametrize("fault", ["reset", "half", 503, "<html>busy</html>"])
def test_a_search_that_ends_for_good_in_the_middle_gives_nothing(server, fault):
    server.change = lambda number, asked: fault if "token" in asked else None
    with (
        dask.config.set({"daskembed.retry-timeout": 0.5}),
        pytest.raises(StorageError, match="does not answer") as told,
    ):
        search(server)
    assert not isinstance(told.value, StorageUnusableError)
    assert server.url in str(told.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_stops_the_run(server, status):
    server.change = lambda number, asked: status
    with pytest.raises(StorageDeniedError, match=rf"{status} .*told {status}.*the catalogue refuses to be searched"):
        search(server)
    assert len(server.asked) == 1


def test_a_question_that_a_server_does_not_understand_is_not_repeated(server):
    server.change = lambda number, asked: 400
    with pytest.raises(StorageError, match=r"400 .*told 400.*does not answer what it is asked"):
        search(server)
    assert len(server.asked) == 1


def test_an_empty_page_is_not_the_end(server):
    def change(number, asked):
        if number != 2:
            return None
        following = {"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": asked}
        return {"type": "FeatureCollection", "features": [], "links": [following]}

    server.change = change
    assert search(server) == ALL


def test_pages_that_overlap_give_each_item_once(server):
    def change(number, asked):
        page = server.page(asked)
        return page | {"features": [*FEATURES[:7], *page["features"]]}

    server.change = change
    assert search(server) == ALL


def test_pages_that_go_round_in_circles_end(server):
    server.change = lambda number, asked: server.page(asked | {"token": 10 * (number % 3)})
    with pytest.raises(
        StorageError, match="here goes round in circles: the last 5 pages of sentinel-2-l2a have nothing"
    ):
        search(server)
    assert len(server.asked) == 8


def test_items_that_were_not_asked_for_are_dropped(server):
    odd = {**FEATURES[0], "id": "odd", "collection": "another"}
    server.change = lambda number, asked: server.page(asked) | {"features": [*server.page(asked)["features"], odd]}
    assert search(server) == ALL


def test_an_item_that_is_none_is_told(server):
    broken = {**FEATURES[0], "id": "broken", "properties": {}}
    server.change = lambda number, asked: {"features": [broken], "links": []}
    with pytest.raises(StorageError, match="here: the item broken is no STAC item: it has no 'start_datetime'"):
        search(server)


def test_what_is_no_api(server):
    server.links = False
    with pytest.raises(
        InputError, match=r"is no STAC API that can be searched: its first page has no link to a search"
    ):
        find_catalogue(f"stac+{server.url}")


def test_a_catalogue_on_postgresql():
    features = [
        {
            **feature,
            "geometry": {"type": "Polygon", "coordinates": [[[12, 45], [13, 45], [13, 46], [12, 46], [12, 45]]]},
            "properties": {"datetime": f"2024-05-{number % 25 + 1:02}T10:00:00Z", "eo:cloud_cover": number},
            "links": [],
        }
        for number, feature in enumerate(FEATURES)
    ]
    with pgstac_server(features) as url:
        catalogue = find_catalogue(f"stac+{url}")
        assert catalogue is not None
        assert catalogue.collections == ("sentinel-2-l2a",)
        small = replace(catalogue, page_size=7)
        found = find_items(small, S2, (11.0, 44.0, 14.0, 47.0), date(2024, 5, 2), date(2024, 5, 25))
        assert sorted(item.id for item in found) == [name for number, name in enumerate(ALL) if number % 25]
        assert {item.cloud for item in found} == {float(number) for number in range(COUNT) if number % 25}
        assert found[0].url.startswith(f"{url}/collections/sentinel-2-l2a/items/")
        assert find_items(small, S2, (20.0, 44.0, 21.0, 47.0), date(2024, 5, 2), date(2024, 5, 25)) == []


def type_(*words: str) -> None:
    command = [sys.executable, "-m", "daskembed", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    assert done.returncode == 0, done.stdout


def test_a_run_from_a_catalogue_on_postgresql(tmp_path):
    """All of it: choice, pixels, files; as from a file of the same items."""
    period = ("--dates", "2021-06-01/2024-06-30", "--scenes", "2")
    with FileServer(tmp_path) as files:
        scenes = write_scenes(tmp_path / "scenes", shape=(516, 516), root=f"{files.url}/scenes")
        found = {}
        with pgstac_server(scenes.items) as url:
            for name, place in (("postgresql", url), ("file", str(scenes.file))):
                scenes.describe(place)
                output = str(tmp_path / name)
                words = ["--tiles", scenes.tile, "--source", str(scenes.description), "--output", output, *period]
                type_("run", *words, "--checkpoint", "untrained:tiny", "--precision", "fp32", "--workers", "1")
                type_("validate", output)
                found[name] = gpd.read_parquet(next((tmp_path / name).glob("*.gpq"))).sort_values(["date", "geometry"])
    assert len(found["file"]) > 0
    assert set(found["file"]["date"].astype(str)) == {"2021-06-03", "2024-06-02"}
    assert_geodataframe_equal(
        *(frame.drop(columns="source_url").reset_index(drop=True) for frame in (found["postgresql"], found["file"]))
    )
    assert all(one.startswith(f"{url}/collections/") for one in found["postgresql"]["source_url"])
