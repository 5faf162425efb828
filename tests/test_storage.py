"""Storage, local and S3: the same behaviour through one fixture."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from daskembed.errors import (
    InputError,
    StorageDeniedError,
    StorageError,
    StorageUnusableError,
    UnconditionalError,
)
from daskembed.storage import conditional
from daskembed.storage import stores as storage_module
from daskembed.storage.failures import explained
from daskembed.storage.opening import open_store
from daskembed.storage.readers import RangedReader, keeping
from daskembed.storage.stores import READINGS, Entry, Storage, split_url
from daskembed.storage.urls import is_local, local_path
from daskembed.testing import FaultyProxy

NAMES = ["plain.txt", "with space.txt", "münchen.txt", "a%20b", "a+b=c&d?e", "deep/er/and deeper"]


@pytest.fixture(params=["local", "file", "s3", "s3 prefix"])
def storage(request, tmp_path) -> Storage:
    """An empty storage of each kind."""
    if request.param.startswith("s3"):
        bucket = request.getfixturevalue("s3")
        return Storage(bucket if request.param == "s3" else f"{bucket}/some/folder/")
    return Storage(f"file://{tmp_path}" if request.param == "file" else str(tmp_path))


def paths(storage: Storage, prefix: str = "", *, recursive: bool = True) -> list[str]:
    return [entry.path for entry in storage.entries(prefix, recursive=recursive)]


def write_and_fail(storage: Storage, path: str, data: bytes, error: BaseException) -> None:
    with storage.open_writer(path) as file:
        file.write(data)
        raise error


# --- Reading and writing ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_put_then_get(storage, name):
    storage.put(name, b"one")
    assert storage.get(name) == b"one"
    assert paths(storage) == [name]
    storage.put(name, b"")
    assert storage.get(name) == b""


def test_a_header_takes_few_requests_and_gives_the_bytes_of_the_object() -> None:
    data, asked = np.random.default_rng(0).bytes(200_000), []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    file = RangedReader(keeping(fetch, len(data)), len(data))
    for start, length in [(0, 4), (0, 100), (150_000, 10), (150_020, 49_990), (8, 16), (199_999, 50), (200_000, 1)]:
        file.seek(start)
        assert file.read(length) == data[start : start + length]
    assert asked == [(0, 16 * 1024), (150_000, 200_000)]


def test_get_range(storage):
    storage.put("numbers", bytes(range(100)))
    assert storage.get_range("numbers", 0, 1) == b"\0"
    assert storage.get_range("numbers", 10, 13) == bytes([10, 11, 12])
    assert storage.get_range("numbers", 98, 100) == bytes([98, 99])


def test_missing_object(storage):
    storage.put("other", b"")
    for read in (storage.get, storage.open_reader, lambda path: storage.get_range(path, 0, 1)):
        for path in ("missing", "folder/missing", "othe"):
            with pytest.raises(FileNotFoundError) as error:
                read(path)
            assert str(error.value) == f"{storage.url_of(path)} does not exist"


def test_open_reader(storage):
    data = bytes(range(256)) * 300
    storage.put("folder/data", data)
    with storage.open_reader("folder/data") as file:
        assert file.read(3) == data[:3]
        file.seek(-10, 2)
        assert file.tell() == len(data) - 10
        assert file.read() == data[-10:]
        file.seek(1000)
        assert file.read(5) == data[1000:1005]


def test_parquet_through_it(storage):
    # Also as large pages, which pyarrow hands on without copying them.
    rng = np.random.default_rng(0)
    table = pa.table({"x": rng.random(300_000), "y": ["text"] * 300_000})
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 1 << 20}
    with storage.open_writer("table.parquet") as file:
        pq.write_table(table, file, **options)
    with pq.ParquetFile(storage.open_reader("table.parquet")) as file:
        assert file.read() == table


def test_arrow_through_it(storage):
    table = pa.table({"x": range(1000)})
    with storage.open_writer("table.arrow") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.open_file(storage.open_reader("table.arrow")) as file:
        assert file.read_all() == table


# --- Listing ------------------------------------------------------------------------


def test_entries(storage):
    # Not in the order of their names.
    for path in ("b/2", "a", "b/10", "b/c/1", "bb/1", "B"):
        storage.put(path, path.encode())
    assert paths(storage) == ["B", "a", "b/10", "b/2", "b/c/1", "bb/1"]
    assert paths(storage, recursive=False) == ["B", "a"]
    assert paths(storage, "b") == paths(storage, "b/") == ["b/10", "b/2", "b/c/1"]
    assert paths(storage, "b", recursive=False) == ["b/10", "b/2"]
    assert paths(storage, "b/c") == ["b/c/1"]
    assert [entry.size for entry in storage.entries("b")] == [4, 3, 5]


def test_entries_of_an_absent_folder(storage):
    storage.put("folder/a", b"")
    for prefix in ("absent", "fold", "folder/absent", "folder/a"):
        assert paths(storage, prefix) == paths(storage, prefix, recursive=False) == []


def test_entries_of_many_objects(storage):
    # obstore lists in chunks of 50.
    expected = [f"many/{i:03}" for i in range(120)]
    for path in reversed(expected):
        storage.put(path, b"x")
    assert paths(storage, "many") == expected


def test_etag_changes_with_the_content(storage):
    storage.put("a", b"one")
    (before,) = storage.entries()
    assert before.etag
    assert storage.entries() == [before]
    storage.put("a", b"two")
    (after,) = storage.entries()
    assert after.etag != before.etag
    assert after.size == before.size


def test_a_content_is_still_the_same_or_another(storage):
    storage.put("a", b"one")
    (listed,) = storage.entries()
    assert storage.entry("a") == listed
    assert storage.entry("a").holds(listed.size, listed.etag)
    storage.put("a", b"two")
    assert not storage.entry("a").holds(listed.size, listed.etag)
    assert not listed.holds(4, listed.etag)
    # Where nothing else is known.
    assert storage.entry("a").holds(3, "")
    with pytest.raises(FileNotFoundError):
        storage.entry("b")


def test_mounts_of_other_machines_may_have_other_inodes():
    assert Entry("a", 3, '"1-5fe-3"').holds(3, '"2-5fe-3"')
    assert not Entry("a", 3, '"1-5fe-3"').holds(3, '"1-5ff-3"')
    assert not Entry("a", 3, '"5fe-3"').holds(3, '"5ff-3"')


# --- Deleting -----------------------------------------------------------------------


def test_delete(storage):
    for path in ("a/b/1", "a/b/2", "a/3", "4"):
        storage.put(path, b"")
    storage.delete(["a/b/1"])
    assert paths(storage) == ["4", "a/3", "a/b/2"]
    storage.delete(["a/b/2", "a/3"])
    assert paths(storage) == ["4"]
    storage.delete([])
    assert paths(storage) == ["4"]


def test_delete_of_what_is_missing(storage):
    storage.put("a/1", b"")
    storage.put("b/1", b"")
    storage.delete(["missing", "a/missing", "no/such/folder", "a/1", "a/1"])
    assert paths(storage) == ["b/1"]


def test_many_objects_of_s3_are_deleted_in_few_requests(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"{s3}/folder")
    names = [f"a/{number} + <&>" for number in range(20)]
    client = boto3.client("s3", endpoint_url=s3_server)
    for name in ("kept", *names):
        client.put_object(Bucket=s3.removeprefix("s3://"), Key=f"folder/{name}", Body=b"")
    with FaultyProxy(s3_server, methods=("POST", "DELETE")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(storage_module, "open_store", open_store.__wrapped__)
        storage.delete([*names, "missing", names[0]])
        assert paths(storage) == ["kept"]
    assert proxy.counts["requests"] == 1


def test_an_object_that_cannot_be_deleted_is_named_among_many(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(s3)
    with FaultyProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(storage_module, "open_store", open_store.__wrapped__)
        proxy.refuse(403, "AccessDenied", matching="delete")
        with pytest.raises(StorageDeniedError) as caught:
            storage.delete(["a", "b"])
    assert str(caught.value).startswith(f"{s3}/a: access denied")


def test_delete_leaves_no_empty_folders(tmp_path):
    storage = Storage(str(tmp_path / "out"))
    for path in ("a/b/c/1", "a/b/2", "x/y/1", "x/z/1"):
        storage.put(path, b"")
    storage.delete(["a/b/c/1", "x/y/1", "x/z/1"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "out",
        "out/a",
        "out/a/b",
        "out/a/b/2",
    ]
    storage.delete(["a/b/2"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


# --- Writing all or nothing ---------------------------------------------------------


def test_object_appears_when_the_block_ends(storage):
    with storage.open_writer("folder/a") as file:
        file.write(b"one")
        file.write(b"two")
        file.flush()
        with pytest.raises(FileNotFoundError):
            storage.get("folder/a")
    assert storage.get("folder/a") == b"onetwo"
    assert paths(storage) == ["folder/a"]


def test_old_object_stays_until_the_block_ends(storage):
    storage.put("a", b"old")
    with storage.open_writer("a") as file:
        file.write(b"new, and longer")
        file.flush()
        assert storage.get("a") == b"old"
    assert storage.get("a") == b"new, and longer"
    assert paths(storage) == ["a"]


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt("stop")], ids=["ValueError", "Interrupt"])
def test_failed_block_leaves_nothing(storage, error):
    storage.put("kept", b"old")
    with pytest.raises(type(error), match=r"^stop$"):
        write_and_fail(storage, "new", b"part", error)
    with pytest.raises(type(error), match=r"^stop$"):
        write_and_fail(storage, "kept", b"part", error)
    assert paths(storage) == ["kept"]
    assert storage.get("kept") == b"old"
    if is_local(storage.url):
        assert [p.name for p in Path(storage.url).rglob("*")] == ["kept"]


def test_failed_block_leaves_no_upload(s3, s3_server):
    # More than fits one request: the parts of an upload that nobody ends are stored, and paid for, unseen.
    storage = Storage(s3)
    with pytest.raises(ValueError, match="stop"):
        write_and_fail(storage, "big", bytes(25 << 20), ValueError("stop"))
    assert paths(storage) == []
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server)
    uploads = client.list_multipart_uploads(Bucket=s3.removeprefix("s3://")).get("Uploads", [])
    assert [upload["Key"] for upload in uploads] == []


def test_big_object(s3):
    storage, data = Storage(s3), bytes(range(256)) * (25 << 12)
    storage.put("big", data)
    assert storage.entries()[0].size == len(data)
    assert storage.get("big") == data


def test_what_fails_in_the_block_is_not_blamed_on_the_object(storage):
    def copy() -> None:
        with storage.open_writer("copy") as file:
            file.write(storage.get("missing"))

    with pytest.raises(FileNotFoundError) as error:
        copy()
    assert str(error.value) == f"{storage.url_of('missing')} does not exist"


def test_two_writers_at_once(storage):
    with storage.open_writer("a") as first:
        first.write(b"first")
        with storage.open_writer("a") as second:
            second.write(b"the second")
        assert storage.get("a") == b"the second"
    assert storage.get("a") == b"first"
    assert paths(storage) == ["a"]


# --- On conditions ------------------------------------------------------------------


def test_create_and_replace(storage):
    assert conditional.create(storage, "folder/a", b"one")
    assert conditional.create(storage, "folder/a", b"one")  # as after a lost answer
    assert not conditional.create(storage, "folder/a", b"other")
    assert not conditional.replace(storage, "folder/a", b"other", b"two")
    assert not conditional.replace(storage, "folder/b", b"", b"two")
    assert storage.get("folder/a") == b"one"
    assert conditional.replace(storage, "folder/a", b"one", b"two")
    assert storage.get("folder/a") == b"two"
    assert conditional.keeps_conditions(storage, "folder/a", b"two")
    assert storage.get("folder/a") == b"two"
    assert paths(storage) == ["folder/a"]


@pytest.mark.parametrize("act", ["create", "replace"])
def test_one_of_many_writes(storage, act):
    storage.put("old", b"old")
    start, done = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        data = str(number).encode()
        if (
            conditional.create(storage, "a", data)
            if act == "create"
            else conditional.replace(storage, "old", b"old", data)
        ):
            done.append(data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [storage.get("a" if act == "create" else "old")]


def test_a_disk_without_links_or_locks(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    storage = Storage(str(tmp_path))
    monkeypatch.setattr(os, "link", refuse)
    assert conditional.create(storage, "a", b"one")
    assert not conditional.create(storage, "a", b"two")
    assert conditional.keeps_conditions(storage, "a", b"one")
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not conditional.keeps_conditions(storage, "a", b"one")
    with pytest.raises(UnconditionalError):
        conditional.replace(storage, "a", b"one", b"two")
    assert storage.get("a") == b"one"


def test_when_it_was_written(storage):
    storage.put("a", b"")
    storage.put("b", b"")
    assert 0 <= storage.written("b") - storage.written("a") < 100
    with pytest.raises(FileNotFoundError):
        storage.written("c")


# --- What dead writers left ---------------------------------------------------------

OF_VERSION = (
    "33TUL_20190416_20190416_v{}.gpq",
    "_daskembed/parts/33TUL_v{}/k/00000.parquet",
    "_daskembed/receipts/33TUL_v{}.json",
    "_daskembed/running_v{}.json",
)


@pytest.mark.parametrize(("swept", "living"), [("a", "ab"), ("ab", "a"), ("001", "0011"), ("0011", "001"), ("a", "ba")])
@pytest.mark.parametrize("name", OF_VERSION)
def test_a_sweep_leaves_what_writers_of_other_versions_write(tmp_path, name, swept, living):
    storage = Storage(str(tmp_path))
    left = tmp_path / name.format(swept)
    left.parent.mkdir(parents=True, exist_ok=True)
    (left := left.with_name(f".{left.name}.0123abcd.tmp")).touch()
    with storage.open_writer(name.format(living)) as file:
        file.write(b"x")
        storage.sweep(f"_v{swept}")
    assert storage.get(name.format(living)) == b"x"
    assert not left.exists()


def test_a_sweep_leaves_what_is_not_of_this_package(tmp_path):
    names = [".x_v001.tmp", "x_v001.ab.tmp", ".x_v001.xyz.tmp", "data/.x_v001.ab.tmp", ".x.ab.tmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Storage(str(tmp_path)).sweep("_v001")
    assert all((tmp_path / name).exists() for name in names)


def test_uploads_that_were_cut_off_are_aborted(s3, s3_server):
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server)
    bucket = s3.removeprefix("s3://")
    names = [name.format(version) for name in OF_VERSION for version in ("001", "0011", "ab")]
    for key in [*(f"some/folder/{name}" for name in names), "33TUL_20190416_20190416_v001.gpq", "some/folder2/x_v001"]:
        client.create_multipart_upload(Bucket=bucket, Key=key)

    def left() -> set[str]:
        return {upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])}

    before = left()
    Storage(f"{s3}/some/folder").sweep("_v001")
    assert before - left() == {f"some/folder/{name.format('001')}" for name in OF_VERSION}
    # The folder above all.
    Storage(s3).sweep("_v001")
    assert left() == {f"some/folder/{name.format(other)}" for name in OF_VERSION for other in ("0011", "ab")}


def test_a_store_that_does_not_tell_its_uploads_stops_nobody(denied):
    denied.sweep("_v001")


# --- Names of storages --------------------------------------------------------------


@pytest.mark.parametrize("url", ["ftp://host/folder", "S4://bucket", "hf://me/repo"])
def test_unknown_scheme(url):
    with pytest.raises(
        InputError, match=r"unknown scheme.*give a folder or a URL in s3://, gs://, az://, file://"
    ) as e:
        Storage(url).entries()
    assert str(e.value).startswith(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///folder"])
def test_no_bucket(url, tmp_path, monkeypatch, s3_server):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        Storage(url).put("a", b"")
    assert str(error.value).startswith(url)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_slash_at_the_end_is_dropped(tmp_path, end):
    assert Storage(f"{tmp_path}{end}") == Storage(f"file://{tmp_path}{end}") == Storage(str(tmp_path))
    assert Storage(f"s3://bucket/folder{end}").url_of("a/b") == "s3://bucket/folder/a/b"


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Storage("folder").url == str(tmp_path / "folder")
    assert Storage("folder/../six").url == Storage(f"file://{tmp_path}/a/../six").url == str(tmp_path / "six")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert Storage("link/../six").url == str((tmp_path / "elsewhere" / "six").resolve())
    assert local_path("~/folder") == tmp_path / "home" / "folder"
    assert local_path("file:///a/b") == Path("/a/b")
    assert [is_local(url) for url in ("a", "/a", "file:///a", "s3://a", "https://a")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("s3:/bucket/a", "s3://bucket/a"),
        ("s3:bucket", "s3://bucket"),
        ("gs:/bucket", "gs://bucket"),
        ("az:/container", "az://container"),
        ("hf:/org/repo@main/a.ckpt", "hf://org/repo@main/a.ckpt"),
        ("https:/host/a", "https://host/a"),
        ("stac+https:/host", "stac+https://host"),
        ("file:/a/b", "file:///a/b"),
        ("S3:/bucket", "S3://bucket"),
        ("s3:/user:secret@bucket", "s3://bucket"),
    ],
)
def test_a_url_that_lacks_a_slash_is_no_folder(url: str, whole: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (Storage, split_url, local_path):
        with pytest.raises(InputError) as caught:
            act(url)
        assert f": without // is no URL: type {whole}; a folder of" in str(caught.value)
    assert Storage(f"./{url}").url == f"{tmp_path}/{url}"
    assert Storage("a:/b").url == f"{tmp_path}/a:/b"


def test_split_url(tmp_path):
    assert split_url("s3://bucket/a/b.tif") == (Storage("s3://bucket/a"), "b.tif")
    assert split_url(f"{tmp_path}/a/b.tif") == (Storage(f"{tmp_path}/a"), "b.tif")
    assert split_url("b.tif") == (Storage("."), "b.tif")


def test_check_exists(tmp_path):
    Storage(str(tmp_path)).check_exists()
    Storage("s3://there-is-no-such-bucket").check_exists()
    (tmp_path / "file").write_text("")
    for name in ("absent", "file"):
        with pytest.raises(InputError, match=f"^no folder {tmp_path / name}$"):
            Storage(str(tmp_path / name)).check_exists()


def test_a_file_where_a_folder_should_be(tmp_path):
    storage = Storage(str(tmp_path))
    storage.put("file", b"")
    for act in (storage.get, lambda path: storage.put(path, b"")):
        with pytest.raises(StorageError, match=str(tmp_path / "file" / "a")):
            act("file/a")


def test_pickling(storage):
    storage.put("a", b"one")  # its connection is open now
    pickled = pickle.dumps(storage)
    assert len(pickled) < 300
    again = pickle.loads(pickled)
    assert again == storage
    assert hash(again) == hash(storage)
    assert again.get("a") == b"one"


# --- Denied -------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """Answers every request of S3 with an error."""

    status, code = 403, "AccessDenied"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f'<?xml version="1.0"?>\n<Error><Code>{self.code}</Code></Error>'.encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


class Failing(Refusing):
    status, code = 400, "MalformedXML"


@pytest.fixture
def denied(s3_server, monkeypatch) -> Iterator[Storage]:
    yield from start_s3(Refusing, monkeypatch)


@pytest.fixture
def failing(s3_server, monkeypatch) -> Iterator[Storage]:
    yield from start_s3(Failing, monkeypatch)


def start_s3(handler: type[Refusing], monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield Storage(f"s3://test-{uuid.uuid4().hex}/folder")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda storage: storage.get("a"), id="get"),
        pytest.param(lambda storage: storage.get_range("a", 0, 1), id="get_range"),
        pytest.param(lambda storage: storage.open_reader("a"), id="open_reader"),
        pytest.param(lambda storage: storage.entries(), id="entries"),
        pytest.param(lambda storage: storage.entries("a", recursive=False), id="entries of one folder"),
        pytest.param(lambda storage: storage.put("a", b"one"), id="put"),
        pytest.param(lambda storage: storage.put("a", bytes(25 << 20)), id="put of much"),
        pytest.param(lambda storage: storage.delete(["a"]), id="delete"),
    ],
)
def test_denied(denied, act):
    with pytest.raises(
        StorageDeniedError, match=r"access denied .* check the credentials \(for S3: AWS_ACCESS_KEY_ID"
    ) as e:
        act(denied)
    assert str(e.value).startswith(denied.url)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("path", ["a", "403/a", "folder 401/b"])
def test_other_errors_are_not_taken_for_a_denial(failing, path):
    # Numbers in names (and in durations, which messages hold too) are no status.
    for act in (failing.get, failing.entries, lambda path: failing.put(path, b"one")):
        with pytest.raises(StorageError) as error:
            act(path)
        assert type(error.value) is StorageError
        assert str(error.value).startswith(failing.url_of(path))
        assert "\n" not in str(error.value)


def test_denied_locally(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    storage = Storage(str(tmp_path))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageDeniedError, match=r"/a: access denied .*Permission denied.*; `ls -ld` shows who"):
        storage.put("a", b"one")


def test_folder_that_is_not_there_has_no_entries(tmp_path):
    assert Storage(str(tmp_path / "nowhere")).entries() == []
    assert Storage(str(tmp_path / "nowhere")).entries("below", recursive=False) == []


# What a listing says


class Lying(FaultyProxy):
    """A store whose first answers to GETs are wrong."""

    def __init__(self, target: str, *lies: tuple[bytes, str | None]) -> None:
        super().__init__(target)
        self.lies = list(lies)
        self.fresh: list[bool] = []

    def _forward(self, handler, body):
        status, headers, answer = super()._forward(handler, body)
        if handler.command == "GET" and "list-type" not in handler.path:
            self.fresh.append(handler.headers.get("Cache-Control") == "no-cache")
            if self.lies:
                answer, etag = self.lies.pop(0)
                kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "etag")]
                etags = (
                    [("ETag", etag)] if etag else [(n, v) for n, v in headers if n.lower() == "etag" and etag is None]
                )
                headers = [*kept, *etags, ("Content-Length", str(len(answer)))]
        return status, headers, answer


SAID = bytes(range(200))
XML = b"<Error><Code>InternalError</Code></Error>"


@pytest.mark.parametrize(
    ("lies", "found"),
    [
        pytest.param([], SAID, id="truth"),
        pytest.param([(SAID[:100], None)], SAID, id="half once"),
        pytest.param([(XML, None), (SAID[:100], None)], SAID, id="two lies"),
        pytest.param([(SAID, '"other"')], SAID, id="other ETag once"),
        pytest.param([(b"replaced", '"new"')] * 2, b"replaced", id="replaced since"),
        pytest.param([(SAID[:100], None)] * READINGS, None, id="half always"),
        pytest.param([(XML, "")] * READINGS, None, id="an error always"),
    ],
)
def test_answers_are_compared_with_the_listing(s3, s3_server, monkeypatch, lies, found):
    Storage(s3).put("there", SAID)
    (entry,) = Storage(s3).entries()
    with Lying(s3_server, *lies) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(storage_module, "open_store", storage_module.open_store.__wrapped__)
        if found is None:
            with pytest.raises(StorageError, match="the store's answers are not what it lists"):
                Storage(s3).get_listed(entry)
        else:
            assert Storage(s3).get_listed(entry) == found
    assert proxy.fresh == [reading > 0 for reading in range(len(proxy.fresh))]


def test_ranges_of_a_listing(storage):
    storage.put("there", SAID)
    (entry,) = storage.entries()
    assert storage.get_listed(entry, 10, 20) == SAID[10:20]
    assert storage.get_listed(entry, 190, 200, fresh=True) == SAID[190:]
    assert storage.get_listed(entry) == SAID


def test_an_object_that_was_replaced_since_its_listing(storage):
    storage.put("there", SAID)
    (entry,) = storage.entries()
    storage.put("there", b"another content")
    assert storage.get_listed(entry) == b"another content"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "your quota is used up: make room, or ask for more"),
        (errno.EROFS, "the file system is mounted read-only: give a folder on another one"),
    ],
)
@pytest.mark.parametrize("by_number", [True, False])
def test_a_disk_that_takes_nothing_says_what_to_do(tmp_path: Path, number: int, advice: str, by_number: bool) -> None:
    words = os.strerror(number)
    error = OSError(number, words) if by_number else OSError(f"Generic error: {words} (os error {number})")
    with pytest.raises(StorageUnusableError) as caught, explained(f"{tmp_path}/a", str(tmp_path)):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}/a cannot be written: ")
    assert str(caught.value).endswith(f"; {advice}")
