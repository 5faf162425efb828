"""From a cluster's name, YAML preset or scheduler address to a Dask client."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from daskembed.documents import parse_object, parse_yaml, read_yaml
from daskembed.errors import InputError

if TYPE_CHECKING:
    from types import FrameType

    from distributed import Client
    from distributed.deploy import Cluster
    from distributed.security import Security

LOOPBACK = "127.0.0.1"
"""Where clusters of this machine listen unless asked otherwise: what Dask is sent, it executes."""
CORES_A_WORKER = 8
"""Cores of one local CPU worker: beyond, its torch threads would wait for each other."""
MEMORY_A_WORKER = 2 * 2**30
"""Bytes that one local CPU worker takes with weights of the released model's size."""
CLOSE_TIMEOUT = 120
"""Seconds that a cluster may take to close: Dask's nanny of a worker that was killed as it came up never ends."""
DEVICES = Path("/dev")
"""Where the driver of this machine's GPUs shows them."""

_KEYS = {
    "class": (str, "text"),
    "description": (str, "text"),
    "install": (str, "text"),
    "hint": (str, "text"),
    "requires": (list, "a list of modules"),
    "arguments": (dict, "keys and values"),
    "plugins": (list, "a list of classes"),
    "shares_files": (bool, "true or false"),
}

_log = logging.getLogger(__name__)


def preset_folder() -> Any:
    """The folder of YAML presets: inside the installed package, or at the top of a checkout."""
    packaged = files("daskembed").joinpath("presets")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "clusters"


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in preset_folder().iterdir() if p.name.endswith(".yaml")))


def read_preset(cluster: str) -> dict[str, Any]:
    """A preset by its name or path, checked.

    Returns
    -------
    dict
        ``class``, and what else it says: ``description``; ``install`` and ``requires``, what must be installed, in
        words and as modules; ``hint``, for when it does not start; ``arguments`` of the class; ``plugins``, classes of
        Dask plugins; ``shares_files``, whether its workers see this machine's files.

    Raises
    ------
    InputError
        If there is no such preset, or it is not one.
    """
    path = Path(cluster) if cluster.endswith((".yaml", ".yml")) else preset_folder().joinpath(f"{cluster}.yaml")
    if not path.is_file():
        raise InputError(
            f"unknown cluster {cluster!r}: choose one of {', '.join(presets())}, a YAML file like clusters/local.yaml, "
            "the address of a scheduler such as tcp://10.0.0.1:8786, or a scheduler's .json file"
        )
    try:
        preset = read_yaml(path)
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{path} is refused: {' '.join(str(error).split())}; a cluster file holds plain values only"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("class"), str) or "." not in preset["class"]:
        raise InputError(f"{path} names no cluster class: expected a line such as `class: distributed.LocalCluster`")
    # A key whose lines are all commented out.
    preset = {key: value for key, value in preset.items() if value is not None}
    for key, value in preset.items():
        if key not in _KEYS:
            raise InputError(f"{path} has the key {key!r}, which is none of {', '.join(_KEYS)}")
        kind, words = _KEYS[key]
        if not isinstance(value, kind):
            raise InputError(f"{path} says {key}: {value!r}, which is not {words}")
    return preset


def is_installed(preset: Mapping[str, Any]) -> bool:
    """Whether the modules of a preset's class, and those that it requires, are there; imports none of them."""
    return all(find_spec(name.partition(".")[0]) for name in (preset["class"], *preset.get("requires", [])))


def shares_files(cluster: str) -> bool | None:
    """Whether the workers of `cluster` (as of `connect`) see this machine's files; None where nobody says."""
    return None if _is_scheduler(cluster) else read_preset(cluster).get("shares_files")


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments of a cluster class from ``key=value``: values are YAML, dots in a key lead into nested mappings.

    Raises
    ------
    InputError
        If one is not that.
    """
    import dask

    parsed: list[dict[str, Any]] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        names = key.split(".")
        if not equals or not all(name.isidentifier() for name in names):
            raise InputError(f"--cluster-arg {pair!r}: expected KEY=VALUE, such as n_workers=2")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise InputError(f"--cluster-arg {pair!r}: {text!r} is not YAML: {' '.join(str(error).split())}") from None
        for name in reversed(names):
            value = {name: value}
        parsed.append(value)
    return dict(dask.config.merge(*parsed))


def parse_workers(workers: int | str) -> tuple[int, int]:
    """Fewest and most workers of ``4`` or ``1..20``.

    Raises
    ------
    InputError
        If it is neither, or the fewest are none.
    """
    least, dots, most = str(workers).partition("..")
    try:
        found = int(least), int(most if dots else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise InputError(f"--workers {workers}: expected a number from 1, or the fewest and the most, such as 1..20")
    return found


@contextlib.contextmanager
def connect(
    cluster: str,
    *,
    arguments: Mapping[str, Any] | None = None,
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
    arguments
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
    if _is_scheduler(cluster):
        _check_nothing_asked(cluster, arguments, workers, listen, tls)
        address = _scheduler_address(cluster)
        if address.startswith("tls://"):
            _check_certificates(address)
        otherwise, advice = f"no Dask scheduler answers at {address}", "start one with `dask scheduler`"
        with _client(address, otherwise, advice, timeout="10s") as client:
            yield client
        return
    preset = read_preset(cluster)
    plugins = [_find(name, cluster, preset)() for name in preset.get("plugins", [])]
    with (
        _start(preset, cluster, arguments=arguments, workers=workers, listen=listen, tls=tls) as started,
        _client(
            started, f"the scheduler of the cluster {cluster!r} does not answer", "the cluster is closed"
        ) as client,
    ):
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
    cluster: str, arguments: Mapping[str, Any] | None, workers: int | str | None, listen: str | None, tls: bool
) -> None:
    """What is asked of a cluster that is started cannot be asked of one that runs."""
    if listen is not None:
        raise InputError(
            f"--listen is for a cluster that is started on this machine; {cluster} listens where it was told to"
        )
    if tls:
        raise InputError(
            f"--tls is for a cluster that is started on this machine; start the scheduler of {cluster} with "
            "certificates, name them in Dask's configuration (distributed.comm.tls) and give its tls:// address"
        )
    for flag, asked in (("--workers", workers), ("--cluster-arg", arguments)):
        if asked:
            raise InputError(f"{flag} is for a cluster that is started for the run; {cluster} runs as it was started")


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


def _version(versions: Mapping[str, Any], package: str) -> str:
    found = str(versions["packages"].get(package) or "missing")
    # Builds of torch for a CPU and for a GPU (2.13.0+cpu) go together.
    return ".".join(found.split(".")[:2]) if package == "python" else found.partition("+")[0]


def _warn(client: Client, tls: bool) -> None:
    # Without a handler of the caller's own, logging prints this to stderr.
    _log.warning(
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


def _find(name: str, cluster: str, preset: Mapping[str, Any]) -> Any:
    """What a dotted name of a preset means."""
    module, _, attribute = name.rpartition(".")
    try:
        for required in (*preset.get("requires", []), module):
            found = importlib.import_module(required)
        return getattr(found, attribute)
    except AttributeError:
        raise InputError(f"the cluster {cluster!r} names the class {name}, which {module} does not have") from None
    except (ImportError, ValueError) as error:
        needs = preset.get("install", f"the package of {name}")
        raise InputError(f"the cluster {cluster!r} needs {needs}, which cannot be imported: {error}") from None


@contextlib.contextmanager
def _start(
    preset: Mapping[str, Any],
    name: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    listen: str | None = None,
    tls: bool = False,
) -> Iterator[Cluster]:
    import dask

    cluster_class = _find(preset["class"], name, preset)
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
    least, most = (0, 0) if workers is None else parse_workers(workers)
    if most:
        # Asked for at once: a cluster that is scaled afterwards would first start, and pay, what its preset says.
        if not _takes(cluster_class, "n_workers"):
            raise InputError(
                f"--workers {workers} is for a cluster that takes n_workers, which {preset['class']} of the cluster "
                f"{name!r} does not; say it in its own arguments"
            )
        asked["n_workers"] = least
        if cluster_class is local:
            asked["at_most"] = most
    chosen = dask.config.merge(preset.get("arguments", {}), arguments or {}) | asked
    cluster: Cluster | None = None
    try:
        with _uninterrupted("the cluster is being started, and closed then"):
            try:
                is_class = isinstance(cluster_class, type)
                cluster = _construct(cluster_class, chosen) if is_class else cluster_class(**chosen)
                if least < most:
                    cluster.adapt(minimum=least, maximum=most)
            except Exception as error:
                # Each library fails in its own way (no GPU, no account, no quota): say whose words these are.
                hint = f"; {preset['hint']}" if "hint" in preset else ""
                raise InputError(
                    f"the cluster {name!r} did not start: {type(error).__name__}: {error}{hint}"
                ) from error
        yield cluster
    finally:
        if cluster is not None:
            with _uninterrupted("the cluster is being closed"):
                try:
                    _close(cluster)
                except Exception as error:
                    # What the run did stands; but this may cost money until somebody looks.
                    _log.warning(
                        f"warning: the cluster {name!r} was not closed properly: {type(error).__name__}: {error}; look "
                        "whether anything of it still runs"
                    )


def _construct(cluster_class: Any, arguments: dict[str, Any]) -> Any:
    """Call a class, but know the cluster from its first moment: one that fails half-way may have started machines."""
    from distributed.core import Status

    cluster: Any = cluster_class.__new__(cluster_class, **arguments)
    try:
        cluster.__init__(**arguments)
    except BaseException:
        # One that was only created has started nothing, and would wait for ever for its event loop.
        if getattr(cluster, "status", Status.created) != Status.created:
            with contextlib.suppress(Exception):
                _close(cluster)
        raise
    return cluster


def _close(cluster: Any) -> None:
    closed: Future[None] = Future()

    def close() -> None:
        try:
            cluster.close()
        except BaseException as error:
            closed.set_exception(error)
        else:
            closed.set_result(None)

    # Not by a limit of the cluster's own: not every class has one, and what is cut short can never be closed again.
    threading.Thread(target=close, name="daskembed-close", daemon=True).start()
    if not wait([closed], CLOSE_TIMEOUT).done:
        raise TimeoutError(f"it takes longer than {CLOSE_TIMEOUT} s")
    closed.result()


@contextlib.contextmanager
def _uninterrupted(doing: str) -> Iterator[None]:
    """Keep a first Ctrl-C until the end: what is half started or half closed would be left running."""
    kept = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal kept
        if kept:
            signal.default_int_handler(number, frame)
        kept = True
        _log.warning(f"interrupted: {doing}; a second time does not wait for that, and may leave it running")

    # Only where it would be a KeyboardInterrupt: handlers of the caller's own are left alone.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.default_int_handler
    ]
    for number in numbers:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
        if kept:
            raise KeyboardInterrupt


def _takes(cluster_class: Any, argument: str) -> bool:
    """Whether a class names an argument; what it hands on unnamed to its parents counts too."""
    kinds: list[Any] = cluster_class.mro() if isinstance(cluster_class, type) else []
    calls = [kind.__init__ for kind in kinds] or [cluster_class]
    return any(argument in inspect.signature(call).parameters for call in calls)


def _is_of_this_machine(cluster_class: Any) -> bool:
    from distributed import LocalCluster

    return cluster_class is local or (isinstance(cluster_class, type) and issubclass(cluster_class, LocalCluster))


def _temporary_certificates() -> Security:
    from distributed.security import Security

    try:
        return Security.temporary()
    except ImportError:
        raise InputError("--tls needs cryptography, which is not installed: pip install 'daskembed[tls]'") from None


def local(*, n_workers: int | None = None, at_most: int | None = None, **arguments: Any) -> Cluster:
    """A `distributed.LocalCluster` on this machine's CPU.

    One process for every `CORES_A_WORKER` cores, but no more than have `MEMORY_A_WORKER` each. They share all cores as
    torch threads, and all memory; two Dask threads each, so that one block is read while another is encoded.

    Parameters
    ----------
    n_workers
        Processes, instead.
    at_most
        Processes that there may be later, which are to have as much as the first.
    arguments
        Of `distributed.LocalCluster`.
    """
    from dask.system import cpu_count
    from distributed import LocalCluster
    from distributed.system import memory_limit

    # Both know the limits of a container.
    cores, memory = cpu_count(), memory_limit()
    if n_workers is None:
        n_workers = max(1, min(cores // CORES_A_WORKER, memory // MEMORY_A_WORKER))
    sharing = max(1, at_most or n_workers)
    if memory // sharing < MEMORY_A_WORKER:
        _log.warning(
            f"warning: a worker has {memory / sharing / 2**30:.1f} GiB of this machine's memory and takes about "
            f"{MEMORY_A_WORKER / 2**30:.0f} with the released weights: it may be killed"
        )
    if gpus := _gpus():
        _log.warning(f"this machine has {gpus} GPU{'s' * (gpus > 1)}: --cluster local-cuda has a worker for each")
    env = {"DASK_DASKEMBED__TORCH_THREADS": str(max(1, cores // sharing))} | arguments.pop("env", {})
    chosen = {
        "n_workers": n_workers,
        "threads_per_worker": 2,
        "memory_limit": memory // sharing,
        "dashboard_address": f"{LOOPBACK}:8787",
        # Ctrl-C in a terminal reaches every process: the workers leave it to the command.
        "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
        "env": env,
    }
    with warnings.catch_warnings():
        # Another run's dashboard may have the port: the address that was found is printed.
        warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
        return LocalCluster(**{**chosen, **arguments})


def _gpus() -> int:
    """GPUs of this machine, unless they are hidden; a build of torch for the CPU would not see them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return 0 if hidden else len(list(DEVICES.glob("nvidia[0-9]*")))
