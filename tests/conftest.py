"""Fixtures that several test files share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

from daskembed.testing import write_chips

# A busy machine is no reason to fail.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


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
