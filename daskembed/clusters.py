"""From a cluster's name, YAML preset or scheduler address to a Dask client."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from daskembed.errors import InputError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy import Cluster

CORES_A_WORKER = 8
"""Cores of one local CPU worker: beyond, its torch threads would wait for each other."""


def preset_folder() -> Any:
    """The folder of YAML presets: inside the installed package, or at the top of a checkout."""
    packaged = files("daskembed").joinpath("presets")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "clusters"


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in preset_folder().iterdir() if p.name.endswith(".yaml")))


@contextlib.contextmanager
def connect(cluster: str) -> Iterator[Client]:
    """A client of a cluster; a cluster that this starts is closed at the end.

    Parameters
    ----------
    cluster
        Name of a preset, path of a YAML file like one, or address of a running scheduler (``tcp://``, ``tls://``).

    Raises
    ------
    InputError
        If there is no such cluster, or what it needs is not installed.
    """
    from distributed import Client

    if "://" in cluster:
        try:
            client = Client(cluster, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {cluster}: {error}; start one with `dask scheduler`"
            ) from None
        with client:
            yield client
        return
    with _start(_read_preset(cluster), cluster) as started, Client(started) as client:
        yield client


def _read_preset(cluster: str) -> dict[str, Any]:
    path = Path(cluster) if cluster.endswith((".yaml", ".yml")) else preset_folder().joinpath(f"{cluster}.yaml")
    if not path.is_file():
        raise InputError(
            f"unknown cluster {cluster!r}: choose one of {', '.join(presets())}, a YAML file like clusters/local.yaml, "
            "or the address of a scheduler such as tcp://10.0.0.1:8786"
        )
    try:
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("class"), str) or "." not in preset["class"]:
        raise InputError(f"{path} names no cluster class: expected a line such as `class: distributed.LocalCluster`")
    return preset


def _start(preset: dict[str, Any], name: str) -> Cluster:
    module, _, attribute = preset["class"].rpartition(".")
    try:
        cluster_class = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise InputError(
            f"the cluster {name!r} names the class {preset['class']}, which {module} does not have"
        ) from None
    except ImportError as error:
        needs = preset.get("install", f"the package of {preset['class']}")
        raise InputError(f"the cluster {name!r} needs {needs}, which cannot be imported: {error}") from None
    try:
        cluster: Cluster = cluster_class(**preset.get("arguments", {}))
    except Exception as error:
        # Each library fails in its own way (no GPU, no account, no quota): say whose words these are.
        hint = f"; {preset['hint']}" if "hint" in preset else ""
        raise InputError(f"the cluster {name!r} did not start: {type(error).__name__}: {error}{hint}") from error
    return cluster


def local(**arguments: Any) -> Cluster:
    """A `distributed.LocalCluster` on this machine's CPU.

    One process for every `CORES_A_WORKER` cores, which share all of them as torch threads; two Dask threads each, so
    that one block is read while another is encoded.
    """
    from distributed import LocalCluster

    cores = len(os.sched_getaffinity(0))
    workers = arguments.get("n_workers", max(1, cores // CORES_A_WORKER))
    env = {"DASK_DASKEMBED__TORCH_THREADS": str(max(1, cores // max(1, workers)))} | arguments.pop("env", {})
    chosen = {
        "n_workers": workers,
        "threads_per_worker": 2,
        "dashboard_address": "127.0.0.1:8787",
        # Ctrl-C in a terminal reaches every process: the workers leave it to the command.
        "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        "env": env,
    }
    with warnings.catch_warnings():
        # Another run's dashboard may have the port: the address that was found is printed.
        warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
        return LocalCluster(**{**chosen, **arguments})
