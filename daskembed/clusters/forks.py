"""Workers of this machine as forks of a process that has loaded what they need, so that they start at once."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from types import FrameType, MappingProxyType
from typing import Any

ENVIRONMENT = {
    # What Dask's nanny sets before it starts a worker: it must be there when the libraries are loaded.
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "6640",
    # Arrow's allocator would start a thread when it is loaded, and a process with threads is not to be forked.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_PARENT = "_DASKEMBED_PARENT"
_begun_in: dict[str, str] | None = None
"""Environment of the process, once there is one."""


def begin(module: str) -> None:
    """Start the process that workers will be forks of, and have it import `module`; returns at once.

    It ends with this process. Nothing is done if there is one, on systems other than Linux, where libraries may not
    survive a fork, and where the environment asks for other threads or memory than Dask's nanny gives a worker.
    """
    global _begun_in
    environment = ENVIRONMENT | os.environ
    if _begun_in is not None or sys.platform != "linux" or environment | ENVIRONMENT != environment:
        return
    from multiprocessing import forkserver, resource_tracker

    own = ENVIRONMENT | {_PARENT: str(os.getpid())}
    added = own.keys() - os.environ.keys()
    os.environ.update(own)
    resource_tracker.ensure_running()  # it would let Ctrl-C through
    allowed = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.set_forkserver_preload([module])
        forkserver.ensure_running()
    except OSError:
        return  # workers are started without it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, allowed)
        for name in added:
            del os.environ[name]
    _begun_in = environment


def additions(asked: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str] | None:
    """What this process's environment has that forks would not; None if workers cannot be forks.

    They cannot if `begin` started nothing, or a variable has changed since: libraries may have read it.

    Parameters
    ----------
    asked
        What the cluster's arguments give its workers as environment. Only Dask's configuration is still read in a fork.
    """
    import dask

    if not all(name.startswith("DASK_") for name in (*asked, *dask.config.get("distributed.nanny.environ"))):
        return None
    given = {name: str(value) for name, value in dask.config.get("distributed.nanny.pre-spawn-environ").items()}
    if _begun_in is None or ENVIRONMENT | given != ENVIRONMENT:
        return None
    if any(os.environ.get(name, ENVIRONMENT.get(name)) != value for name, value in _begun_in.items()):
        return None
    return {name: value for name, value in os.environ.items() if name not in _begun_in}


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """In that process, around its imports: leave Ctrl-C to its parent, and end as soon as that has ended.

    What cannot be imported is for the workers to say. In any other process, such as one that draws a documentation of
    all modules, nothing is changed.
    """
    if _PARENT not in os.environ:
        yield
        return
    parent = int(os.environ.pop(_PARENT))

    def look(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which forks inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    gc.disable()  # what is loaded stays: to look for what does not would be a fifth of the time
    try:
        with contextlib.suppress(Exception):
            yield
    finally:
        gc.freeze()
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
