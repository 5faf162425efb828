"""From a cluster's name, YAML preset or scheduler address to a Dask client."""

from __future__ import annotations

import contextlib
import importlib
import logging
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
    from distributed.security import Security

LOOPBACK = "127.0.0.1"
"""Where clusters of this machine listen unless asked otherwise: what Dask is sent, it executes."""
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
def connect(cluster: str, *, listen: str | None = None, tls: bool = False) -> Iterator[Client]:
    """A client of a cluster; a cluster that this starts is closed at the end.

    Parameters
    ----------
    cluster
        Name of a preset, path of a YAML file like one, or address of a running scheduler (``tcp://``, ``tls://``).
    listen
        Address on which a cluster of this machine listens; None means what its preset says, which is the loopback
        address for those of this package. Who reaches it can execute code.
    tls
        Encrypt a cluster of this machine and let nobody else in, with certificates made for this call.

    Raises
    ------
    InputError
        If there is no such cluster, or what it needs is not installed, or it cannot be had with `listen` or `tls`.
    """
    from distributed import Client

    # No client becomes Dask's default: one that cannot connect would stay it, and the caller's own work would fail.
    if "://" in cluster:
        if listen is not None:
            raise InputError(
                f"--listen is for a cluster that is started on this machine; {cluster} listens where it was told to"
            )
        if tls:
            raise InputError(
                f"--tls is for a cluster that is started on this machine; start the scheduler of {cluster} with "
                "certificates, name them in Dask's configuration (distributed.comm.tls) and give its tls:// address"
            )
        if cluster.startswith("tls://"):
            _check_certificates(cluster)
        try:
            client = Client(cluster, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {cluster}: {error}; start one with `dask scheduler`"
            ) from None
        with client:
            yield client
        return
    with (
        _start(_read_preset(cluster), cluster, listen=listen, tls=tls) as started,
        Client(started, set_as_default=False) as client,
    ):
        if listen is not None and not client.scheduler.address.partition("://")[2].startswith((LOOPBACK, "[::1]")):
            _warn(client, tls)
        yield client


def _warn(client: Client, tls: bool) -> None:
    # Without a handler of the caller's own, logging prints this to stderr.
    logging.getLogger(__name__).warning(
        f"warning: who reaches the dashboard, {client.dashboard_link}, sees the run; it is not encrypted"
        if tls
        else f"warning: anyone who reaches {client.scheduler.address} can execute code as you: use --tls, or leave "
        "--listen out"
    )


def _check_certificates(cluster: str) -> None:
    """Dask itself would say neither which file is missing nor where it is named."""
    from distributed.security import Security

    certificates = Security().get_tls_config_for_role("client")
    for key, name in (("ca_file", "ca-file"), ("cert", "client.cert")):
        found = certificates[key]
        if not found or not Path(found).is_file():
            raise InputError(
                f"{cluster} asks for certificates, and distributed.comm.tls.{name} "
                + (f"names {found}, which is no file" if found else "is not set in Dask's configuration")
                + ": see https://distributed.dask.org/en/stable/tls.html"
            )


def _read_preset(cluster: str) -> dict[str, Any]:
    path = Path(cluster) if cluster.endswith((".yaml", ".yml")) else preset_folder().joinpath(f"{cluster}.yaml")
    if not path.is_file():
        raise InputError(
            f"unknown cluster {cluster!r}: choose one of {', '.join(presets())}, a YAML file like clusters/local.yaml, "
            "or the address of a scheduler such as tcp://10.0.0.1:8786"
        )
    try:
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{path} is refused: {' '.join(str(error).split())}; a cluster file holds plain values only"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("class"), str) or "." not in preset["class"]:
        raise InputError(f"{path} names no cluster class: expected a line such as `class: distributed.LocalCluster`")
    return preset


def _start(preset: dict[str, Any], name: str, *, listen: str | None = None, tls: bool = False) -> Cluster:
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
    asked: dict[str, Any] = {}
    if (listen is not None or tls) and not _is_of_this_machine(cluster_class):
        raise InputError(
            f"--{'tls' if listen is None else 'listen'} is for a cluster that is started on this machine, which "
            f"{preset['class']} of the cluster {name!r} is not; say it in its own arguments or in Dask's "
            "configuration (distributed.comm)"
        )
    if listen is not None:
        host = f"[{listen.strip('[]')}]" if ":" in listen else listen
        asked |= {"host": host, "dashboard_address": f"{host}:8787"}
    if tls:
        asked["security"] = _temporary_certificates()
    try:
        cluster: Cluster = cluster_class(**{**preset.get("arguments", {}), **asked})
    except Exception as error:
        # Each library fails in its own way (no GPU, no account, no quota): say whose words these are.
        hint = f"; {preset['hint']}" if "hint" in preset else ""
        raise InputError(f"the cluster {name!r} did not start: {type(error).__name__}: {error}{hint}") from error
    return cluster


def _is_of_this_machine(cluster_class: Any) -> bool:
    from distributed import LocalCluster

    return cluster_class is local or (isinstance(cluster_class, type) and issubclass(cluster_class, LocalCluster))


def _temporary_certificates() -> Security:
    from distributed.security import Security

    try:
        return Security.temporary()
    except ImportError:
        raise InputError("--tls needs cryptography, which is not installed: pip install 'daskembed[tls]'") from None


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
        "dashboard_address": f"{LOOPBACK}:8787",
        # Ctrl-C in a terminal reaches every process: the workers leave it to the command.
        "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        "env": env,
    }
    with warnings.catch_warnings():
        # Another run's dashboard may have the port: the address that was found is printed.
        warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
        return LocalCluster(**{**chosen, **arguments})
