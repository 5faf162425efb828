"""What `daskembed doctor` tells, and what it does not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import dask
import pytest
import torch

from daskembed.cli import demo, doctor
from daskembed.cli.main import main
from daskembed.cli.parser import make_parser
from daskembed.clusters import this_machine


def test_doctor_tells_what_is_here_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-1")
    monkeypatch.setenv("HF_TOKEN", "hush-2")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hush-3")
    for name in ("AWS_CA_BUNDLE", "AWS_REGION", "HF_HOME"):
        monkeypatch.setenv(name, "hush-4")
    (tmp_path / "0123-clay.ckpt").write_bytes(bytes(2_000_000))
    with dask.config.set({"daskembed.cache": str(tmp_path)}):
        assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert {
        "torch",
        "gpu",
        "computes with",
        "bf16",
        "threads",
        "credentials",
        "cache",
        "python",
        "dask",
        "metrics",
    } <= set(lines)
    assert torch.__version__ in lines["torch"]
    assert "AWS_SECRET_ACCESS_KEY" in lines["credentials"]
    assert {"HF_TOKEN", "AWS_ROLE_ARN", "AZURE_STORAGE_ACCOUNT_KEY"} <= set(re.split("[ ,]+", lines["credentials"]))
    assert {"AWS_CA_BUNDLE", "AWS_REGION", "HF_HOME"} <= set(re.split("[ ,]+", lines["settings"]))
    assert not {"AWS_CA_BUNDLE", "AWS_REGION", "HF_HOME"} & set(re.split("[ ,]+", lines["credentials"]))
    assert "hush" not in said
    assert lines["cache"].endswith(f"{tmp_path}: 1 files, 2 MB; 0123-clay.ckpt 2 MB")
    with dask.config.set({"daskembed.cache": str(tmp_path)}):
        (tmp_path / "4567.sent").write_bytes(bytes(3_000_000))
        assert "; 4567.sent (weights that a run sent to workers here) 3 MB; 0123-clay.ckpt 2 MB" in doctor._cache()


def test_the_commands_that_the_demo_ends_with_are_some() -> None:
    values = dict.fromkeys(re.findall(r"{(\w+)}", demo._NEXT), "it") | {
        "daskembed": "daskembed",
        "flags": "",
        "choice": "",
    }
    typed = re.findall("^  daskembed (.*)$", demo._NEXT.format(**values), re.MULTILINE)
    assert [make_parser().parse_args(shlex.split(one)).command for one in typed] == ["run", "search", "export", "run"]


def test_a_gpu_that_torch_does_not_use_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch uses this machine's GPU")
    monkeypatch.setattr(this_machine, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor._torch()["gpu"] == "none"
    (tmp_path / "nvidia0").touch()
    assert doctor._torch()["gpu"].startswith("1 here, and torch uses none: ")


def test_files_of_credentials_are_named(tmp_path: Path) -> None:
    assert doctor._credentials({}, tmp_path).startswith("none found")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = hush\n")
    assert doctor._credentials({"AWS_REGION": "", "GOOGLE_SERVICE_ACCOUNT": "a"}, tmp_path).startswith(
        "GOOGLE_SERVICE_ACCOUNT, ~/.aws/credentials"
    )


def test_programs_are_named_as_they_are_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "daskembed"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert demo.as_typed("daskembed") == ".venv/bin/daskembed"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert demo.as_typed("python") == str(programs / "python")
    # The environment is activated.
    monkeypatch.setenv("PATH", str(programs))
    assert demo.as_typed("python") == "python"


@pytest.mark.parametrize(("here", "said"), [(True, "prometheus_client is here"), (False, "none: without prometheus")])
def test_whether_a_scheduler_has_metrics_is_told(here: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: here or None)
    assert doctor._metrics().startswith(said)
