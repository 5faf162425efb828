"""Fixtures that several test files share."""

from __future__ import annotations

import os

# Read when torch and Dask are first imported. Tests run beside each other: each has one core, and does not spin on it.
os.environ |= {"OMP_WAIT_POLICY": "passive", "DASK_DASKEMBED__TORCH_THREADS": "1"}

import contextlib
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import dask
import distributed.deploy.local
import duckdb
import least  # noqa: F401 (adds its sizes to the encoders)
import pytest
from duckdb_extensions import import_extension
from hypothesis import settings
from moto.server import ThreadedMotoServer

from daskembed.clusters import forks
from daskembed.encoders import clay_v0, clay_v1_5
from daskembed.storage import stores as storage_module
from daskembed.storage.opening import open_store
from daskembed.testing import FaultyProxy, write_chips

# A busy machine is no reason to fail.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A shell that starts the tests in the background has them ignore it, and with them each command that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _signals() -> Iterator[None]:
    """What a test file does of signals stays in it; the command called in this process changes what two of them do."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Forked(distributed.Nanny):  # type: ignore[misc]
    """Forks of a process have its environment, which is of the beginning: they are given the present one."""

    def __init__(self, *arguments: Any, env: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(*arguments, env=os.environ | (env or {}), **options)


@pytest.fixture(scope="session", autouse=True)
def _workers_are_forked() -> Iterator[None]:
    forks.begin("daskembed.runs.forked")
    forked = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.worker.preload": ["least"],
        # Of workers in this process: where they take a profile, Python 3.11 may halt for ever. `sys._current_frames`
        # holds a lock, for which a thread that begins waits with the GIL, and if the garbage collector runs in it, what
        # Hypothesis has hooked into that waits for the GIL.
        "distributed.worker.profile.enabled": False,
    }
    with dask.config.set(forked), pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.deploy.local, "Nanny", Forked)
        yield


@pytest.fixture(scope="session")
def duckdb_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which DuckDB finds its spatial extension, that of the wheel: it is fetched from nowhere."""
    home = tmp_path_factory.mktemp("duckdb_home")
    with duckdb.connect(config={"extension_directory": str(home / ".duckdb/extensions")}) as connection:
        import_extension("spatial", con=connection)
    return home


@pytest.fixture
def released_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' own size, for messages that name all of them."""
    for module in (clay_v0, clay_v1_5):
        monkeypatch.delitem(module.SIZES, "least")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server on this machine, which the AWS_* variables name too."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        yield url
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """The s3:// URL of an empty bucket; a new one each time, as stores are cached by their URL."""
    bucket = f"test-{uuid.uuid4().hex}"
    boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


class Lying(FaultyProxy):
    """A store that answers something else to the first GETs of each path with one of some ends."""

    def __init__(self, target: str, lies: dict[str, tuple[int, bytes]], times: int) -> None:
        super().__init__(target)
        self.lies = dict(lies)
        self.fresh: list[bool] = []
        """Of each later GET of such a path: whether caches are passed."""
        self._told = Counter[str]()
        self._times = times

    def _forward(self, handler: Any, body: bytes) -> Any:
        status, headers, answer = super()._forward(handler, body)
        path = handler.path.partition("?")[0]
        found = next((lie for end, lie in self.lies.items() if path.endswith(end)), None)
        if handler.command == "GET" and found is not None:
            if self._told[path] == self._times:
                self.fresh.append(handler.headers.get("Cache-Control") == "no-cache")
            else:
                self._told[path] += 1
                status, answer = found
                headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
                headers.append(("Content-Length", str(len(answer))))
        return status, headers, answer


@pytest.fixture
def lying(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lying]]:
    """Puts a `Lying` store before the S3 server."""
    with contextlib.ExitStack() as stack:

        def begin(lies: dict[str, tuple[int, bytes]], times: int = 1) -> Lying:
            proxy = stack.enter_context(Lying(s3_server, lies, times))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            monkeypatch.setattr(storage_module, "open_store", open_store.__wrapped__)
            return proxy

        yield begin


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Blocks of two chips, so that small tiles have several."""
    with dask.config.set({"daskembed.chips-a-block": 2}):
        yield


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 x 2 synthetic chips of tile 33TUL; not to be changed."""
    folder = tmp_path_factory.mktemp("chips")
    write_chips(folder, rows=2, cols=2)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real chips and expected embeddings beside the repository, for tests marked `real`."""
    folder = Path(__file__).parent.parent.parent / "shared"
    if not (folder / "data" / "chips").is_dir():
        pytest.skip(f"needs real chips and expected embeddings, and there are none at {folder}")
    return folder
