"""What this machine and environment are: torch and its device, credentials by name, the cache, versions."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from daskembed import config
from daskembed.clusters.this_machine import gpus
from daskembed.text import describe_bytes

PACKAGES = (
    *("daskembed", "dask", "distributed", "numpy", "pandas", "geopandas", "pyarrow", "rasterio", "xarray", "zarr"),
    *("obstore", "dask-geopandas", "boto3", "dask-cuda", "dask-jobqueue", "dask-kubernetes", "coiled", "asyncssh"),
)
"""Of those that are not installed nothing is said."""
_MADE = {".sent": "weights that a run sent to workers here", ".encoder.safetensors": "what an encoder reads of weights"}
"""How files of the cache end whose names are digests, and what they are."""
STORES = ("AWS_", "GOOGLE_", "AZURE_", "HF_")
"""What the names of variables begin with that say who one is, or where and how a store is reached."""
SECRETS = (
    "KEY",
    "TOKEN",
    "SECRET",
    "CREDENTIALS",
    "ACCOUNT",
    "PROFILE",
    "ROLE",
    "PASSWORD",
    "SAS",
    "CLIENT",
    "CONNECTION",
)
"""Words of such a name, between its underscores, that make it one of credentials."""
PYTORCH = "https://pytorch.org/get-started/locally/"


def doctor() -> str:
    """The lines of `daskembed doctor`; asks nobody outside this machine, and tells no value of a secret."""
    found = {
        **_torch(),
        "credentials": _credentials(os.environ, Path.home()),
        "settings": ", ".join(_named(os.environ, secret=False)) or "none of stores in the environment",
        "cache": _cache(),
        **_versions(),
        "metrics": _metrics(),
    }
    width = max(map(len, found)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in found.items())


def _torch() -> dict[str, str]:
    import torch

    from daskembed.hardware import hardware, set_torch_threads

    set_torch_threads()
    here = hardware()
    cuda = torch.version.cuda
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        gpu = ", ".join(torch.cuda.get_device_properties(number).name for number in range(count))
    elif seen := gpus():
        gpu = f"{seen} here, and torch uses none: " + (
            "its CUDA and the driver (`nvidia-smi`) do not fit" if cuda else f"it is a build for the CPU; see {PYTORCH}"
        )
    else:
        gpu = "none"
    return {
        "torch": f"{torch.__version__}, {f'for CUDA {cuda}' if cuda else 'for the CPU'}",
        "gpu": gpu,
        "computes with": str(here),
        "bf16": "native" if here.precision == "bf16" else "not native: `auto` precision is fp32",
        "threads": f"{torch.get_num_threads()} of torch, of {here.cores} cores",
    }


def _named(environment: Mapping[str, str], *, secret: bool) -> list[str]:
    """Names of variables of stores that are set: those of credentials, or the others."""
    names = (name for name, value in environment.items() if value and name.startswith(STORES))
    return sorted(name for name in names if secret != set(name.split("_")).isdisjoint(SECRETS))


def _credentials(environment: Mapping[str, str], home: Path) -> str:
    """Where credentials may come from; names, never values."""
    found = _named(environment, secret=True)
    if (home / ".aws" / "credentials").is_file():
        found.append("~/.aws/credentials" + ("" if find_spec("boto3") else " (not read: it needs daskembed[aws])"))
    files = (".config/gcloud/application_default_credentials.json", ".azure", ".cache/huggingface/token")
    found += [f"~/{name} (not read)" for name in files if (home / name).exists()]
    return ", ".join(found) or "none found; the role of a machine in a cloud is not looked for here"


def _cache() -> str:
    folder = config.cache_folder()
    sizes = {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()} if folder.is_dir() else {}
    large = sorted((name for name, size in sizes.items() if size >= 1e6), key=lambda name: -sizes[name])
    listed = "".join(f"; {name}{_meaning(name)} {describe_bytes(sizes[name])}" for name in large[:5])
    return f"{folder}: {len(sizes)} files, {describe_bytes(sum(sizes.values()))}{listed}"


def _meaning(name: str) -> str:
    """What a file of the cache is, where its name is a digest that does not tell."""
    return next((f" ({what})" for suffix, what in _MADE.items() if name.endswith(suffix)), "")


def _metrics() -> str:
    if find_spec("prometheus_client"):
        return "prometheus_client is here: a scheduler that is started here tells the run's at /metrics"
    return "none: without prometheus_client a scheduler's /metrics is empty"


def _versions() -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({sys.executable})"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
