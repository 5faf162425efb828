"""From a cluster's name, YAML preset or scheduler address to a Dask client."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskembed.clusters.forks import additions
from daskembed.clusters.presets import find_class, read_preset
from daskembed.clusters.starting import check_asked, start, takes
from daskembed.clusters.this_machine import LOOPBACK
from daskembed.clusters.this_machine import local as local
from daskembed.documents import parse_object
from daskembed.errors import InputError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy import Cluster

    from daskembed.hardware import Hardware

WORKER_TIMEOUT = 600
"""Seconds to wait for a worker, at the start or when all are lost: machines in a cloud take minutes."""
PATIENCE = 15
"""Seconds for which nothing is said of workers that have not joined yet."""

_log = logging.getLogger(__name__)


def shares_files(cluster: str) -> bool | None:
    """Whether the workers of `cluster` (as of `connect`) see this machine's files; None where nobody says."""
    return None if _is_scheduler(cluster) else read_preset(cluster).get("shares_files")


def may_fork(cluster: str) -> bool:
    """Whether workers of `cluster` may be forks: it is the one of this package on this machine's CPU."""
    return not _is_scheduler(cluster) and read_preset(cluster)["class"] == "daskembed.clusters.local"


def check_connection(
    cluster: str | Client,
    *,
    cluster_arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    listen: str | None = None,
    tls: bool = False,
) -> None:
    """Raise the `InputError` of `connect` that can be told without starting or asking anything.

    Of a `Client` nothing can be asked either.
    """
    if not isinstance(cluster, str):
        _check_nothing_asked("the client's cluster", cluster_arguments, workers, listen, tls)
    elif _is_scheduler(cluster):
        _check_nothing_asked(cluster, cluster_arguments, workers, listen, tls)
        _scheduler_address(cluster)
    else:
        check_asked(read_preset(cluster), cluster, workers=workers, listen=listen, tls=tls)


@contextlib.contextmanager
def connect(
    cluster: str,
    *,
    cluster_arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    listen: str | None = None,
    tls: bool = False,
) -> Iterator[Client]:
    """A client of a cluster; a cluster that this starts is closed at the end, however that comes.

    A first Ctrl-C while it starts or closes waits for that; a second one does not.

    Parameters
    ----------
    cluster
        Name of a preset, path of a YAML file like one, address of a running scheduler (``tcp://``, ``tls://``), or
        path of the ``.json`` file that ``dask scheduler --scheduler-file`` writes.
    cluster_arguments
        Of the preset's class: these go over the preset's own, nested mappings key by key.
    workers
        How many: a number, or ``1..20`` for as many within these bounds as there is work for. None means what the
        preset says.
    listen
        Address on which a cluster of this machine listens; None means what its preset says, which is the loopback
        address for those of this package. Who reaches it can execute code.
    tls
        Encrypt a cluster of this machine and let nobody else in, with certificates made for this call.

    Raises
    ------
    InputError
        If there is no such cluster, or what it needs is not installed, or it cannot be had with what is asked.
    """
    from daskembed.clusters import quiet

    with contextlib.ExitStack() as stack:
        stack.callback(quiet.quieten())
        yield stack.enter_context(_connect(cluster, cluster_arguments, workers, listen, tls))


@contextlib.contextmanager
def _connect(
    cluster: str,
    cluster_arguments: Mapping[str, Any] | None,
    workers: int | str | None,
    listen: str | None,
    tls: bool,
) -> Iterator[Client]:
    import dask
    import distributed

    from daskembed.clusters import quiet

    if _is_scheduler(cluster):
        _check_nothing_asked(cluster, cluster_arguments, workers, listen, tls)
        address = _scheduler_address(cluster)
        if address.startswith("tls://"):
            _check_certificates(address)
        otherwise, advice = f"no Dask scheduler answers at {address}", "start one with `dask scheduler`"
        with _client(address, otherwise, advice, timeout="10s") as client:
            yield client
        return
    preset = read_preset(cluster)
    plugins = [find_class(name, cluster, preset)() for name in preset.get("plugins", [])]
    asked = dask.config.merge(preset.get("arguments", {}), cluster_arguments or {}).get("env") or {}
    forked = may_fork(cluster) and additions(asked) is not None
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"} if forked else {}),
        start(preset, cluster, arguments=cluster_arguments, workers=workers, listen=listen, tls=tls) as started,
        _client(
            started, f"the scheduler of the cluster {cluster!r} does not answer", "the cluster is closed"
        ) as client,
    ):
        if isinstance(started, distributed.LocalCluster):
            client.register_plugin(quiet.QuietWorkers())
        for plugin in plugins:
            client.register_plugin(plugin)
        if listen is not None and not client.scheduler.address.partition("://")[2].startswith((LOOPBACK, "[::1]")):
            _warn(client, tls)
        yield client


@contextlib.contextmanager
def _client(target: str | Cluster, otherwise: str, advice: str, **options: Any) -> Iterator[Client]:
    from distributed import Client

    try:
        # No client becomes Dask's default: one that cannot connect would stay it, and the caller's own work would fail.
        client = Client(target, set_as_default=False, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{otherwise}: {error}; {advice}") from None
    with client:
        yield client


def _is_scheduler(cluster: str) -> bool:
    return "://" in cluster or cluster.endswith(".json")


def _scheduler_address(cluster: str) -> str:
    if "://" in cluster:
        return cluster
    writes = f"`dask scheduler --scheduler-file {cluster}` writes it"
    try:
        address = parse_object(Path(cluster).read_text(encoding="utf-8"))["address"]
    except OSError as error:
        raise InputError(f"the scheduler file {cluster} cannot be read: {error.strerror}; {writes}") from None
    except (ValueError, KeyError, TypeError):
        address = None
    if not isinstance(address, str):
        raise InputError(f"{cluster} is not a scheduler file: expected JSON with an address, as {writes}")
    return address


def _check_nothing_asked(
    cluster: str,
    cluster_arguments: Mapping[str, Any] | None,
    workers: int | str | None,
    listen: str | None,
    tls: bool,
) -> None:
    """What is asked of a cluster that is started cannot be asked of one that runs."""
    if listen is not None:
        raise InputError(
            f"`listen` is for a cluster that is started on this machine; {cluster} listens where it was told to"
        )
    if tls:
        raise InputError(
            f"`tls` is for a cluster that is started on this machine; start the scheduler of {cluster} with "
            "certificates, name them in Dask's configuration (distributed.comm.tls) and give its tls:// address"
        )
    for name, asked in (("workers", workers), ("cluster_arguments", cluster_arguments)):
        if asked:
            raise InputError(f"`{name}` is for a cluster that is started for the run; {cluster} runs as it was started")


def await_worker(client: Client, seconds: float) -> None:
    """Wait for a first worker; raises `InputError` if none comes within `seconds`."""
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(1, timeout=min(PATIENCE, seconds))
        return
    _log.warning(f"no worker has joined {client.scheduler.address} yet: waiting up to {seconds:g} s for one")
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        raise InputError(
            f"no worker joined {client.scheduler.address} within {seconds:g} s: "
            + ("start one with `dask worker`" if client.cluster is None else "look at the cluster's queue and logs")
        ) from None


def check_versions(client: Client) -> None:
    """Refuse a cluster whose scheduler or workers have other software than this process, as far as that matters.

    Raises
    ------
    InputError
        If one has another minor version of Python, or another dask, distributed, daskembed or torch, or none.
    """
    found = client.get_versions(packages=["daskembed", "torch"])
    places = {"the scheduler": found["scheduler"]} | found["workers"]
    differences = []
    # Functions are pickled as bytecode of one Python, and Dask promises nothing between its own versions. Another
    # daskembed or torch would make other files under the same settings. Of the rest, files do not depend on any.
    for package in ("python", "dask", "distributed", "daskembed", "torch"):
        wanted = _version(found["client"], package)
        having: dict[str, list[str]] = {}
        for place, versions in places.items():
            having.setdefault(_version(versions, package), []).append(place)
        differences += [
            f"{package} is {version} on {', '.join(where[:3])}"
            + (f" and {len(where) - 3} more" if len(where) > 3 else "")
            + f", {wanted} here"
            for version, where in having.items()
            if version != wanted
        ]
    if differences:
        raise InputError(
            f"the cluster at {client.scheduler.address} has other software: {'; '.join(differences)}; install the same "
            "versions everywhere"
        )


def check(cluster: str, *, cluster_arguments: Mapping[str, Any] | None = None) -> str:
    """Try a cluster: start it with one worker, do one trivial task there, close it, and say what it computes with.

    Parameters
    ----------
    cluster, cluster_arguments
        As of `connect`. A running cluster, and one whose class takes no number of workers, is tried as it is.

    Raises
    ------
    InputError
        If it refuses to start, no worker joins it, or it has other software.
    """
    number = None
    if not _is_scheduler(cluster):
        preset = read_preset(cluster)
        number = 1 if takes(find_class(preset["class"], cluster, preset), "n_workers") else None
    with connect(cluster, cluster_arguments=cluster_arguments, workers=number) as client:
        await_worker(client, WORKER_TIMEOUT)
        check_versions(client)
        found = client.submit(hardware, pure=False).result(timeout=WORKER_TIMEOUT)
    return f"the cluster {cluster!r} works: a worker of it computes with {found}"


def hardware() -> Hardware:
    """On a worker: what it computes with; torch is loaded there only."""
    from daskembed.hardware import hardware

    return hardware()


def _version(versions: Mapping[str, Any], package: str) -> str:
    found = str(versions["packages"].get(package) or "missing")
    # Builds of torch for a CPU and for a GPU (2.13.0+cpu) go together.
    return ".".join(found.split(".")[:2]) if package == "python" else found.partition("+")[0]


def _warn(client: Client, tls: bool) -> None:
    # Without a handler of the caller's own, logging prints this to stderr.
    _log.warning(
        f"warning: who reaches the dashboard, {client.dashboard_link}, sees the run; it is not encrypted"
        if tls
        else f"warning: anyone who reaches {client.scheduler.address} can execute code as you: use `tls=True`, or "
        "leave `listen` out"
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
