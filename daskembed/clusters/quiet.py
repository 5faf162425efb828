"""Dask's log: what matters of it in a line of ours, the rest nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from daskembed.errors import every_error
from daskembed.text import visible

if TYPE_CHECKING:
    from distributed import Worker

LOGGERS = ("distributed", "tornado", "bokeh", "asyncio")
"""Of Dask and of what it stands on, with all below them."""
# What the run tells itself: a scheduler that is gone, a worker that died or that is slow to end, a task that failed.
_TOLD = ("distributed.client", "distributed.comm", "distributed.worker", "tornado", "bokeh", "asyncio")
_TOLD_WORDS = ("Task %s marked as failed", "Removing worker", "Worker process died unexpectedly")

_log = logging.getLogger(__name__)


def quieten() -> Callable[[], None]:
    """Have this process tell Dask's errors in a line each, without tracebacks, and nothing else of Dask's log.

    Whoever configures Dask's logging (``logging`` or ``distributed.logging`` in its configuration) wants to see it:
    then nothing is done.

    Returns
    -------
    Callable
        Makes everything as it was before.
    """
    import dask
    import distributed  # noqa: F401 (it gives its loggers their handlers when it is imported)

    if dask.config.get("logging", None) or dask.config.get("distributed.logging", None):
        return lambda: None
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in LOGGERS]
    loggers = [logging.getLogger(name) for name in {*known, *LOGGERS}]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    handler = _OneLine()
    for logger in loggers:
        top = logger.name in LOGGERS
        logger.handlers, logger.propagate = ([handler] if top else []), not top

    def undo() -> None:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate

    return undo


class _OneLine(logging.Handler):
    """Tells each kind of error once."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._seen = set[tuple[str, str]]()

    def emit(self, record: logging.LogRecord) -> None:
        words = str(record.msg)
        if record.name.startswith(_TOLD) or words.startswith(_TOLD_WORDS) or (record.name, words) in self._seen:
            return
        self._seen.add((record.name, words))
        told = record.getMessage().strip().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        why = f": {type(error).__name__}: {' '.join(str(error).split())}" if error is not None else ""
        _log.warning(visible(f"Dask says ({record.name}): {told}{why}"))


class QuietWorkers(WorkerPlugin):  # type: ignore[misc]
    """`quieten` for workers that write to this terminal."""

    name = "daskembed-quiet"

    def setup(self, worker: Worker) -> None:
        """On a worker."""
        quieten()


class TellOnce(WorkerPlugin):  # type: ignore[misc]
    """Keeps errors of our own, and a scheduler that is gone, out of the workers' logs: the run tells them in a line."""

    name = "daskembed-tell-once"

    def setup(self, worker: Worker) -> None:
        """On a worker."""
        known = {error.__name__ for error in every_error()}

        def tell(record: logging.LogRecord) -> bool:
            if str(record.msg).startswith("Failed to communicate with scheduler"):
                return False
            failed = str(record.msg).startswith("Compute Failed") and isinstance(record.args, tuple)
            return not (failed and {str(text).partition("(")[0] for text in record.args or ()} & known)

        logging.getLogger("distributed.worker").addFilter(tell)
