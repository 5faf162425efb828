"""A cluster of a preset, from its start to its close; what refuses to start says why at once."""

from __future__ import annotations

import contextlib
import inspect
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from daskembed.clusters.presets import find_class, parse_workers
from daskembed.clusters.this_machine import DEVICES, gpus, local
from daskembed.errors import InputError
from daskembed.text import visible

if TYPE_CHECKING:
    from types import FrameType

    from distributed.deploy import Cluster
    from distributed.security import Security

START_TIMEOUT = 300
"""Seconds that a cluster of this machine may take to start: Dask sets no limit itself."""
START_TRIES = 3
"""How often one is started of which a process dies as it comes up."""
CLOSE_PATIENCE = 5
"""Seconds for which nothing is said of a cluster that closes."""
CLOSING = "waiting for the cluster to close; Ctrl-C twice does not wait for that, and may leave it running"
CLOSE_TIMEOUT = 120
"""Seconds that a cluster may take to close: Dask's nanny of a worker that was killed as it came up never ends."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def start(
    preset: Mapping[str, Any],
    name: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    listen: str | None = None,
    tls: bool = False,
) -> Iterator[Cluster]:
    """The cluster of a preset, closed at the end; see `daskembed.clusters.connection.connect`.

    Raises
    ------
    InputError
        If it does not start, or none of its workers can be had: with its own words, and the preset's hint.
    """
    import dask

    cluster_class = check_asked(preset, name, workers=workers, listen=listen, tls=tls)
    asked: dict[str, Any] = {}
    if listen is not None:
        host = f"[{listen.strip('[]')}]" if ":" in listen else listen
        asked |= {"host": host, "dashboard_address": f"{host}:8787"}
    if tls:
        asked["security"] = _temporary_certificates()
    least, most = (0, 0) if workers is None else parse_workers(workers)
    if most:
        # Asked for at once: a cluster that is scaled afterwards would first start, and pay, what its preset says.
        asked["n_workers"] = least
        if cluster_class is local:
            asked["at_most"] = most
    chosen = dask.config.merge(preset.get("arguments", {}), arguments or {}) | asked
    hint = f"; {preset['hint']}" if "hint" in preset else ""
    refusals, cluster, told = _Refusals(), None, False
    try:
        with _uninterrupted("the cluster is being started, and closed then"), warnings.catch_warnings():
            # Another run's dashboard may have the port: the address that was found is printed.
            warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
            try:
                if _is_of_this_machine(cluster_class):
                    cluster, refusals = _make_here(cluster_class, chosen)
                else:
                    cluster = _make(cluster_class, chosen, refusals)
                if least < most:
                    cluster.adapt(minimum=least, maximum=most)
            except Exception as error:
                # Each library fails in its own way (no GPU, no account, no quota): say whose words these are.
                raise InputError(f"the cluster {name!r} did not start: {_words(error)}{hint}") from None
            refusals.check(cluster, name, hint)
        try:
            yield cluster
        except KeyboardInterrupt:
            _log.warning(f"interrupted: {CLOSING}")
            told = True
            raise
    finally:
        if cluster is not None:
            with _uninterrupted("the cluster is being closed"):
                try:
                    _close(cluster, told=told)
                except Exception as error:
                    # What the run did stands; but this may cost money until somebody looks.
                    _log.warning(
                        f"warning: the cluster {name!r} was not closed properly: {_words(error)}; look whether "
                        "anything of it still runs"
                    )


def check_asked(
    preset: Mapping[str, Any],
    name: str,
    *,
    workers: int | str | None = None,
    listen: str | None = None,
    tls: bool = False,
) -> Any:
    """The class of a preset, seen to take what is asked of it; starts nothing, arguments are as of `start`.

    Raises
    ------
    InputError
        If this machine has no GPU for it, its package is not installed, or it does not take what is asked.
    """
    if preset["class"].startswith("dask_cuda.") and not gpus():
        needs = f"; on a machine with one it needs {preset['install']}" if "install" in preset else ""
        raise InputError(
            f"the cluster {name!r} has a worker for each GPU, and this machine shows none (no {DEVICES}/nvidia0, or "
            f"CUDA_VISIBLE_DEVICES hides it): use `cluster='local'`{needs}"
        )
    cluster_class = find_class(preset["class"], name, preset)
    if (listen is not None or tls) and not _is_of_this_machine(cluster_class):
        raise InputError(
            f"`{'tls' if listen is None else 'listen'}` is for a cluster that is started on this machine, which "
            f"{preset['class']} of the cluster {name!r} is not; say it in its own arguments or in Dask's "
            "configuration (distributed.comm)"
        )
    if workers is not None and parse_workers(workers) and not takes(cluster_class, "n_workers"):
        raise InputError(
            f"`workers={workers!r}` is for a cluster that takes n_workers, which {preset['class']} of the cluster "
            f"{name!r} does not; say it in its own arguments"
        )
    return cluster_class


def _make(cluster_class: Any, arguments: dict[str, Any], refusals: _Refusals) -> Any:
    if isinstance(cluster_class, type):
        return _construct(cluster_class, arguments, refusals)
    cluster = cluster_class(**arguments)
    refusals.watch(cluster)
    return cluster


def _make_here(cluster_class: Any, arguments: dict[str, Any]) -> tuple[Any, _Refusals]:
    """A cluster of this machine, within `START_TIMEOUT`; again where a process of it died as it came up."""
    import multiprocessing

    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        # Dask would wait for ever for processes that cannot be started.
        raise OSError(f"this machine gives no semaphores ({error.strerror}): /dev/shm must be writable") from None
    for further in reversed(range(START_TRIES)):
        refusals = _Refusals()
        try:
            return _within(START_TIMEOUT, partial(_make, cluster_class, arguments, refusals)), refusals
        except RuntimeError as error:
            if "Nanny failed to start" not in str(error) or not further:
                raise
            _log.warning("warning: a process of the cluster died as it came up: the cluster is started again")
    raise AssertionError


def _within(seconds: float, make: Callable[[], Any]) -> Any:
    """What `make` gives, in another thread; what comes later than in so many seconds is closed."""
    made: Future[Any] = Future()
    late = threading.Event()

    def act() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)
        if late.is_set() and made.exception() is None:
            with contextlib.suppress(Exception):
                made.result().close()

    threading.Thread(target=act, name="daskembed-start", daemon=True).start()
    try:
        if not wait([made], seconds).done:
            raise TimeoutError(
                f"it takes longer than {seconds:g} s; look at this machine's limits (ulimit -a) and memory"
            )
    except BaseException:
        late.set()
        raise
    return made.result()


def _construct(cluster_class: Any, arguments: dict[str, Any], refusals: _Refusals) -> Any:
    """Call a class, but know the cluster from its first moment: one that fails half-way may have started machines."""
    from distributed.core import Status

    cluster: Any = cluster_class.__new__(cluster_class, **arguments)
    refusals.watch(cluster)
    try:
        cluster.__init__(**arguments)
    except BaseException:
        # One that was only created has started nothing, and would wait for ever for its event loop.
        if getattr(cluster, "status", Status.created) != Status.created:
            with contextlib.suppress(Exception):
                _close(cluster)
        raise
    return cluster


class _Refusals:
    """Why workers could not be started, of a cluster that would print tracebacks of it and wait for them."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._at_once = False

    def watch(self, cluster: Any) -> None:
        """Note them from now on, whoever asks for workers: the constructor, or adaptive scaling later."""
        from distributed import SpecCluster
        from distributed.core import Status

        if not isinstance(cluster, SpecCluster):
            return
        start_and_stop = cluster._correct_state

        async def noting() -> None:
            try:
                await start_and_stop()
            except Exception as error:
                if cluster.status in (Status.closing, Status.closed):
                    raise
                # It would not be closed otherwise, as one that is still to come.
                for worker in cluster.workers.values():
                    if worker.status == Status.created:
                        worker.status = Status.failed
                self._note(_words(error))

        cluster._correct_state = noting

    def _note(self, words: str) -> None:
        if words not in self._reasons:
            self._reasons.append(words)
            if self._at_once:
                _log.warning(f"warning: the cluster could not start a worker: {words}")

    def check(self, cluster: Any, name: str, hint: str) -> None:
        """Raise `InputError` if none of the workers that were asked for could be started; warn if some could not."""
        from distributed import SpecCluster
        from distributed.core import Status

        if not isinstance(cluster, SpecCluster):
            return
        # After this, what was asked for is granted or refused; that a granted worker joins may take longer.
        cluster.sync(cluster._correct_state)
        self._at_once = True
        if not self._reasons:
            return
        words = "; ".join(self._reasons)
        granted = sum(worker.status == Status.running for worker in cluster.workers.values())
        if not granted:
            raise InputError(f"the cluster {name!r} did not start, its workers were refused: {words}{hint}")
        _log.warning(
            f"warning: the cluster {name!r} has {granted} of {len(cluster.worker_spec)} workers, the others were "
            f"refused: {words}{hint}"
        )


def _words(error: BaseException) -> str:
    """What an error and its cause say, in one line."""
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cause = " ".join(str(error.__cause__ or "").split())
    return visible(told if cause in told else f"{told} ({cause})")


def _close(cluster: Any, *, told: bool = False) -> None:
    """Close it; that this is waited for is said once it takes long, unless it was told already."""
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
    if not wait([closed], CLOSE_PATIENCE).done and not told:
        _log.warning(CLOSING)
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


def takes(cluster_class: Any, argument: str) -> bool:
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
        raise InputError("`tls` needs cryptography, which is not installed: pip install 'daskembed[tls]'") from None
