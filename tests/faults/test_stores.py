"""Stores that fail: nothing is lost to what passes, a run stops at what stays, and no secret is told."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import dask
import pyarrow.parquet as pq
import pytest
from conftest import HERE, TILES, Command, small_disk, wait_for
from distributed import Client, LocalCluster

import daskembed
from daskembed.errors import InputError, StorageDeniedError, StorageError, StorageUnusableError
from daskembed.runs import window as flow
from daskembed.storage import conditional
from daskembed.storage.stores import Storage
from daskembed.testing import FaultyProxy, write_checkpoint, write_chips

TINY: dict[str, Any] = {"checkpoint": "untrained:tiny", "precision": "fp32"}
FIVE = {"500": 0.05, "503": 0.05, "reset": 0.05, "truncated": 0.05, "stall": 0.05}
DATA = bytes(range(256)) * 400
LARGE = bytes(12 << 20)
"""More than one request of an upload holds."""


def read(storage: Storage) -> bytes:
    with storage.open_reader("there") as file:
        return bytes(file.read())


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "get": lambda storage: storage.get("there") == DATA,
    "get_range": lambda storage: storage.get_range("there", 10, 90_000) == DATA[10:90_000],
    "entries": lambda storage: [entry.path for entry in storage.entries()] == ["there"],
    "entries of a folder": lambda storage: [entry.path for entry in storage.entries(recursive=False)] == ["there"],
    "open_reader": lambda storage: read(storage) == DATA,
    "put": lambda storage: (storage.put("new", DATA), storage.get("new") == DATA)[1],
    "put of much": lambda storage: (storage.put("new", LARGE), storage.get("new") == LARGE)[1],
    "create": lambda storage: (
        conditional.create(storage, "new", DATA) and not conditional.create(storage, "new", b"other")
    ),
    "delete": lambda storage: (storage.delete(["there", "gone"]), storage.entries() == [])[1],
}


@pytest.fixture
def impatient() -> Iterator[None]:
    """Stores are asked again for three seconds, and given up after one of silence."""
    with dask.config.set({"daskembed.retry-timeout": 3}):
        yield


@pytest.fixture
def store(s3: str, s3_server: str) -> Storage:
    """A bucket with one object; the connection to it is not open yet."""
    client(s3_server).put_object(Bucket=s3.removeprefix("s3://"), Key="there", Body=DATA)
    return Storage(s3)


def client(server: str) -> Any:
    return boto3.client("s3", region_name="us-east-1", endpoint_url=server)


@contextlib.contextmanager
def between(server: str, chances: dict[str, float] | None = None, **options: Any) -> Iterator[FaultyProxy]:
    """A proxy in front of the server, which the environment names."""
    with FaultyProxy(server, chances, **options) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


# --- What passes --------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost", "truncated", "stall"])
def test_every_operation_survives_every_fault(store: Storage, s3_server: str, fault: str, operation: str) -> None:
    with between(s3_server, {fault: 1}, stall=60, most=1) as proxy:
        assert OPERATIONS[operation](store)
    assert proxy.counts[fault] == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["500", "reset", "lost", "truncated", "stall"])
def test_an_upload_survives_the_loss_of_its_last_step(store: Storage, s3_server: str, fault: str) -> None:
    with between(s3_server, {fault: 1}, stall=60, most=1, methods=["POST"], matching="uploadId=") as proxy:
        store.put("new", LARGE)
        assert store.get("new") == LARGE
    assert proxy.counts[fault] == 1
    assert "Uploads" not in client(s3_server).list_multipart_uploads(Bucket=store.url.removeprefix("s3://"))


@pytest.mark.parametrize("operation", ["get", "entries", "create"])
@pytest.mark.parametrize("fault", ["reset", "stall"])
def test_what_does_not_pass_is_told_in_the_end(store: Storage, s3_server: str, fault: str, operation: str) -> None:
    with (
        dask.config.set({"daskembed.retry-timeout": 1}),
        between(s3_server, {fault: 1}, stall=60),
        pytest.raises(StorageError) as caught,
    ):
        OPERATIONS[operation](store)
    assert type(caught.value) is StorageError
    assert str(caught.value).startswith(store.url)


# --- What stays ---------------------------------------------------------------------

REFUSALS: dict[str, tuple[int, str, type[StorageError], str]] = {
    "403": (403, "AccessDenied", StorageDeniedError, "access denied"),
    "expired, S3": (400, "ExpiredToken", StorageDeniedError, "access denied"),
    "expired": (403, "ExpiredToken", StorageDeniedError, "access denied"),
    "no bucket": (404, "NoSuchBucket", StorageUnusableError, "no such bucket"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_nothing_else_would_survive_is_told_apart(
    store: Storage, s3_server: str, refusal: str, operation: str
) -> None:
    status, code, kind, said = REFUSALS[refusal]
    with between(s3_server) as proxy:
        proxy.refuse(status, code)
        with pytest.raises(kind, match=said) as caught:
            OPERATIONS[operation](store)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(store.url)
    assert "\n" not in str(caught.value)
    # The answer to a HEAD alone has no code.
    assert code in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (kind, str(caught.value))


def test_a_missing_object_is_no_missing_bucket(store: Storage, s3_server: str) -> None:
    for act in (store.get, store.open_reader, lambda path: store.get_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError, match="/NoSuchBucket does not exist"):
            act("NoSuchBucket")
    gone = Storage(f"s3://gone-{uuid.uuid4().hex}")
    for operation in OPERATIONS.values():
        with pytest.raises(StorageUnusableError, match="no such bucket"):
            operation(gone)


def test_credentials_that_expire_while_a_file_is_read(store: Storage, s3_server: str) -> None:
    with between(s3_server) as proxy, store.open_reader("there") as file:
        file.seek(5)
        proxy.refuse(400, "ExpiredToken")
        with pytest.raises(StorageDeniedError, match="ExpiredToken"):
            file.read(5)


def test_a_missing_folder_is_told_from_a_missing_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "here"))
    storage.put("there", DATA)
    with pytest.raises(FileNotFoundError):
        storage.get("gone")
    shutil.rmtree(tmp_path / "here")
    for read_it in (storage.get, storage.open_reader, lambda path: storage.get_range(path, 0, 1)):
        with pytest.raises(StorageUnusableError, match=f"the folder {tmp_path}/here is gone"):
            read_it("there")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        storage = Storage(str(disk))
        storage.put("kept", b"old")
        create = partial(conditional.create, storage)
        for write, names in ((storage.put, ("kept", "new")), (create, ("new",))):
            for name in names:
                with pytest.raises(StorageUnusableError, match=rf"{disk}/{name} cannot be written: .*No space left"):
                    write(name, DATA)
        assert storage.get("kept") == b"old"
        assert not list(disk.rglob("*.tmp"))


def test_a_full_folder_of_temporary_files(store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with pytest.raises(StorageUnusableError, match=f"{disk} cannot be written: No space left"):
            store.put("new", DATA)
    assert [entry.path for entry in store.entries()] == ["there"]


# --- Runs ---------------------------------------------------------------------------


def upload(folder: Path, server: str, bucket: str) -> None:
    for path in folder.rglob("*.tif"):
        client(server).upload_file(str(path), bucket, f"chips/{path.relative_to(folder).as_posix()}")


def digests(server: str, bucket: str, folder: str) -> dict[str, str]:
    """Name -> SHA-256 of the published files, past any proxy."""
    found = client(server).list_objects_v2(Bucket=bucket, Prefix=f"{folder}/").get("Contents", [])
    return {
        one["Key"].rpartition("/")[2]: hashlib.sha256(
            client(server).get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
        ).hexdigest()
        for one in found
        if one["Key"].endswith(".gpq")
    }


@pytest.fixture(scope="module")
def bucket(s3_server: str, small_tiles: Path) -> str:
    """A bucket with the small tiles under chips/."""
    name = f"test-{uuid.uuid4().hex}"
    client(s3_server).create_bucket(Bucket=name)
    upload(small_tiles, s3_server, name)
    return name


@contextlib.contextmanager
def through(server: str, **options: Any) -> Iterator[tuple[FaultyProxy, Client]]:
    """A proxy and one worker behind it; this process is behind it too."""
    env = {"PYTHONPATH": str(HERE.parent), "DASK_DASKEMBED__TORCH_THREADS": "1", "DASK_DASKEMBED__RETRY_TIMEOUT": "30"}
    with (
        between(server, **options) as proxy,
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, env=env) as cluster,
        Client(cluster) as dask_client,
    ):
        yield proxy, dask_client


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tiles", [3, pytest.param(12, marks=pytest.mark.long)])
def test_a_run_through_faults_is_as_one_without(
    s3_server: str, bucket: str, tmp_path: Path, tiles: int, record_property: Callable[[str, object], None]
) -> None:
    names = [*TILES, "33TUK", "33TUN", "33TVK", "33TVL", "33TVM", "33TVN", "33TWL", "33TWM", "33TWN"][:tiles]
    if extra := names[3:]:
        for seed, name in enumerate(extra):
            write_chips(tmp_path / "chips", tile=name, rows=2, cols=4, seed=seed)
        upload(tmp_path / "chips", s3_server, bucket)
    out = f"out-{tiles}"

    def run(folder: str) -> tuple[daskembed.RunResult, float]:
        start = time.perf_counter()
        result = daskembed.run(
            names, source=f"s3://{bucket}/chips", output=f"s3://{bucket}/{folder}", cluster=dask_client, **TINY
        )
        return result, time.perf_counter() - start

    with through(s3_server, seed=tiles, stall=2 if extra else 0.5) as (proxy, dask_client):
        calm, without = run(f"calm-{tiles}")
        proxy.counts.clear()
        proxy.chances = FIVE
        result, seconds = run(out)
        proxy.chances = {}
    record_property("faults", dict(proxy.counts))
    record_property("seconds", (round(without, 1), round(seconds, 1)))
    assert all(proxy.counts[fault] for fault in FIVE), proxy.counts
    assert (result.exit_status, result.quarantined, result.chips) == (0, {}, calm.chips), result.tiles
    assert len(digests(s3_server, bucket, out)) == tiles
    assert digests(s3_server, bucket, out) == digests(s3_server, bucket, f"calm-{tiles}")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("cases", [slice(1), pytest.param(slice(None), marks=pytest.mark.long)], ids=["one", "all"])
def test_runs_stop_at_what_stays_and_the_same_run_goes_on(s3_server: str, cases: slice, bucket: str) -> None:
    def run(folder: str, **options: Any) -> daskembed.RunResult:
        return daskembed.run(
            list(TILES),
            source=f"s3://{bucket}/chips",
            output=f"s3://{bucket}/{folder}",
            cluster=dask_client,
            **TINY,
            **options,
        )

    with through(s3_server) as (proxy, dask_client):
        assert run("calm").exit_status == 0
        for number, (status, code, kind, matching) in enumerate(
            [
                (404, "NoSuchBucket", StorageUnusableError, r"/chips/.*\.tif"),
                (400, "ExpiredToken", StorageDeniedError, r""),
                (403, "AccessDenied", StorageDeniedError, r"/chips/.*\.tif"),
                (404, "NoSuchBucket", StorageUnusableError, r"/parts/.*\.parquet"),
                (403, "AccessDenied", StorageDeniedError, r"/parts/.*\.parquet"),
            ][cases]
        ):
            folder, done = f"stopped-{number}-{cases.stop}", []

            def stop(state: daskembed.runs.results.Progress) -> None:
                done.append(state.encoded)  # noqa: B023
                if state.encoded:
                    proxy.refuse(status, code, matching=matching)  # noqa: B023

            with pytest.raises(kind, match=code):
                run(folder, progress=stop)
            proxy.recover()
            assert 0 < done[-1] < sum(TILES.values())
            result = run(folder)
            assert (result.exit_status, result.quarantined) == (0, {}), result.tiles
            assert digests(s3_server, bucket, folder) == digests(s3_server, bucket, "calm")


def test_a_part_that_is_listed_and_not_given_fails_its_tile(s3_server: str, bucket: str) -> None:
    """After two new beginnings, where it would go on for ever."""
    events: list[daskembed.runs.results.Event] = []
    with through(s3_server) as (proxy, dask_client):
        proxy.refuse(404, "NoSuchKey", after=1, matching=r"/parts/.*\.parquet")  # it may be written
        result = daskembed.run(
            "22JGS",
            source=f"s3://{bucket}/chips",
            output=f"s3://{bucket}/not-given",
            cluster=dask_client,
            events=events.append,
            **TINY,
        )
    assert result.exit_status == 4
    assert "does not exist, though it was written or listed" in str(result.tiles[0].reason)
    assert [event.stage for event in events if event.event == "retried"] == ["publish"] * flow.RETRIES


@pytest.mark.usefixtures("small_blocks")
def test_chips_that_are_gone_are_set_aside_behind_faults_too(s3_server: str, bucket: str, tmp_path: Path) -> None:
    with through(s3_server, seed=1, stall=0.2) as (proxy, dask_client):
        gone = "claytile_33TUL_20190416_v02_0002.tif"
        proxy.refuse(404, "NoSuchKey", matching=gone)
        proxy.chances = FIVE
        result = daskembed.run(
            "33TUL", source=f"s3://{bucket}/chips", output=f"s3://{bucket}/gone", cluster=dask_client, **TINY
        )
    assert (result.exit_status, result.chips) == (3, TILES["33TUL"] - 1)
    ((url, reason),) = result.quarantined.items()
    assert (url.rpartition("/")[2], reason) == (gone, "is gone: it was listed, but the store no longer has it")


# --- The command --------------------------------------------------------------------


def said_of_a_stop(text: str) -> None:
    assert "run the same command to go on" in text
    assert "Traceback" not in text
    assert "quarantined  " not in text


def test_the_command_says_why_it_stopped_and_no_secret(s3_server: str, bucket: str, tmp_path: Path) -> None:
    secret = "PlantedSecret"
    weights = write_checkpoint(tmp_path / "weights.safetensors")
    client(s3_server).upload_file(str(weights), bucket, "weights.safetensors")
    signed = client(s3_server).generate_presigned_url(
        "get_object", {"Bucket": bucket, "Key": "weights.safetensors"}, ExpiresIn=3600
    )
    secrets = [secret, signed.partition("?")[2], signed.rpartition("Signature=")[2].partition("&")[0], "Signature"]
    out, log = f"s3://{bucket}/told", tmp_path / "log"
    with FaultyProxy(s3_server) as proxy:
        env = {"AWS_ENDPOINT_URL": proxy.url, "COUNTING_SLEEP": "0.2", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        env |= {"AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": f"{secret}Token"}
        command = Command(Path("unused"), Path("unused"), log, env)
        flags = ("--checkpoint", signed, "--source", f"s3://{bucket}/chips", "--output", out)
        process = command.start(*flags)
        wait_for(lambda: command.encoded >= 4 or process.poll() is not None)
        proxy.refuse(400, "ExpiredToken")
        refused, _ = process.communicate(timeout=120)
        assert process.returncode == 1, refused
        said_of_a_stop(refused)
        assert "ExpiredToken" in refused
        proxy.recover()
        keys = client(s3_server).list_objects_v2(Bucket=bucket, Prefix="told/_daskembed/parts/")["Contents"]
        parts = [one["Key"].split("/") for one in keys]
        done = sum(min(2, TILES[part[3][:5]] - 2 * int(part[5][:5])) for part in parts)
        assert 0 < done < sum(TILES.values())
        status, text = command.run(*flags)
        assert status == 0, text
        assert command.encoded == sum(TILES.values()) - done
    told = [refused, text]
    for one in client(s3_server).list_objects_v2(Bucket=bucket, Prefix="told/")["Contents"]:
        body = client(s3_server).get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
        told.append(body.decode(errors="replace"))
        if one["Key"].endswith(".gpq"):
            (tmp_path / "one.gpq").write_bytes(body)
            told.append(str(pq.read_metadata(tmp_path / "one.gpq").metadata))
            told.append(str(pq.read_table(tmp_path / "one.gpq")["source_url"].to_pylist()))
    assert len(told) >= 2 + 3 * len(TILES)
    assert "weights.safetensors" in "".join(told)
    for planted in secrets:
        assert not [text for text in told if planted in text], planted


@pytest.mark.long
def test_the_command_stops_at_a_full_disk(small_tiles: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        command = Command(small_tiles, disk / "out", tmp_path / "log", {"COUNTING_SLEEP": "0.5"})
        process = command.start()
        wait_for(lambda: command.left < sum(TILES.values()) or process.poll() is not None)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 1, text
        said_of_a_stop(text)
        assert "No space left on device; make room" in text
        assert command.files.items() <= undisturbed.items()
        left = command.left
        assert 0 < left < sum(TILES.values())
        (disk / "filler").unlink()
        status, text = command.run()
        assert status == 0, text
        assert command.encoded == left
        assert command.files == undisturbed


@pytest.mark.long
def test_the_command_stops_when_the_source_vanishes(
    small_tiles: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "chips"
    shutil.copytree(small_tiles, source)
    command = Command(source, tmp_path / "out", tmp_path / "log", {"COUNTING_SLEEP": "0.5"})
    process = command.start()
    wait_for(lambda: command.left < sum(TILES.values()) or process.poll() is not None)
    source.rename(tmp_path / "away")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    said_of_a_stop(text)
    assert str(source) in text
    (tmp_path / "away").rename(source)
    left = command.left
    status, text = command.run()
    assert status == 0, text
    assert command.encoded == left
    assert len(command.files) == len(TILES)


# --- Names and secrets --------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("path", ["../out-of-it", "a/../../out-of-it", "..", "a/..", "/absolute"])
def test_no_path_leads_out_of_the_output(where: str, path: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    outside = tmp_path / "out-of-it"
    outside.write_text("kept")
    path = path.replace("/absolute", str(outside))
    root = tmp_path / "out" if where == "local" else request.getfixturevalue("s3")
    storage = Storage(f"{root}" if where == "local" else f"{root}/out")
    storage.put("a/b", b"")
    before = sorted(tmp_path.rglob("*"))
    acts: list[Callable[[], object]] = [
        lambda: storage.put(path, b"changed"),
        lambda: conditional.create(storage, path, b"changed"),
        lambda: storage.delete([path]),
        lambda: storage.delete([f"{path}/deeper"]),
        lambda: storage.get(path),
        lambda: storage.open_reader(path),
        lambda: storage.entries(path),
    ]
    for act in acts:
        with pytest.raises(InputError, match="leads out of its folder"):
            act()
    assert sorted(tmp_path.rglob("*")) == before
    assert outside.read_text() == "kept"


@pytest.mark.parametrize("tile", ["../33TUL", "33TUL/..", "..", "33TUL/../../x"])
def test_no_tile_leads_out_of_the_output(tile: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        daskembed.run([tile], source=str(tmp_path), output=str(tmp_path / "out"), **TINY)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:PlantedSecret@bucket/folder",
        "az://container/folder?sv=2024&sig=PlantedSecret",
        "s3://bucket/folder?X-Amz-Signature=PlantedSecret",
        "gs://bucket/folder?x=1&access_token=PlantedSecret",
    ],
)
def test_urls_of_stores_hold_no_secrets(url: str) -> None:
    with pytest.raises(InputError, match="give credentials in the environment") as caught:
        Storage(url)
    assert "Planted" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "https://me:PlantedSecret@127.0.0.1:1/weights.ckpt",
        "http://127.0.0.1:1/weights.ckpt?X-Amz-Signature=PlantedSecret",
        "https://127.0.0.1:1/weights.ckpt?sig=PlantedSecret&se=2030",
        "ftp://me:PlantedSecret@host/weights.ckpt?Signature=PlantedSecret",
        "s3://me:PlantedSecret@bucket/weights.ckpt",
    ],
)
def test_messages_about_checkpoints_hold_no_secrets(location: str, tmp_path: Path) -> None:
    with dask.config.set({"daskembed.cache": str(tmp_path)}), pytest.raises(InputError) as caught:
        daskembed.load_encoder(location)
    assert "Planted" not in str(caught.value)
    assert "weights.ckpt" in str(caught.value) or "bucket" in str(caught.value)


def test_a_checkpoint_that_is_none_is_told_without_its_signature(bucket: str, s3_server: str, tmp_path: Path) -> None:
    client(s3_server).put_object(Bucket=bucket, Key="none.ckpt", Body=b"hello")
    signed = client(s3_server).generate_presigned_url("get_object", {"Bucket": bucket, "Key": "none.ckpt"})
    with dask.config.set({"daskembed.cache": str(tmp_path)}), pytest.raises(InputError, match=r"none\.ckpt is") as e:
        daskembed.load_encoder(signed)
    assert "Signature" not in str(e.value)


def test_an_encoder_does_not_show_its_url() -> None:
    assert "untrained" not in repr(daskembed.load_encoder(**TINY)).partition("size=")[0]
