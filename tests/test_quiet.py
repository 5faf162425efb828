"""Dask's log: one line of ours for an error, nothing for the rest."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import dask
import pytest

from daskembed.clusters import quiet


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """In a test's own body: before it, pytest takes hold of loggers that do not propagate."""
    undo = quiet.quieten()
    try:
        yield
    finally:
        undo()


def fail(name: str, words: str, *args: object) -> None:
    try:
        raise ImportError("no module named spam:\nis it installed?")
    except ImportError:
        logging.getLogger(name).exception(words, *args)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("distributed.nanny", "Worker process still alive after %s seconds, killing"),
        ("distributed.nanny", "Worker tcp://127.0.0.1:1 (pid=7) exceeded 95%% memory budget. Restarting... %s"),
        ("distributed.nanny", "Restarting worker (status=%s)"),
        ("distributed.worker.memory", "Worker is at %s memory usage. Pausing worker."),
        ("distributed.worker.state_machine", "Async instruction for %s ended with CancelledError"),
        ("distributed.core", "Event loop was unresponsive in Nanny for %s."),
        ("distributed.utils_perf", "full garbage collections took %s CPU time recently"),
    ],
)
def test_what_is_no_error_is_kept_from_the_terminal(caplog, capsys, name, words):
    with quietly():
        logging.getLogger(name).warning(words, 4.0)
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tornado.application", "Uncaught exception GET /status/ws"),
        ("tornado.application", "Exception in callback"),
        ("asyncio", "Task exception was never retrieved"),
        ("bokeh.server.views.ws", "Failed sending message as connection was closed"),
        ("distributed.client", "Failed to reconnect to scheduler"),
        ("distributed.comm.tcp", "Connection reset"),
        ("distributed.worker", "Compute Failed"),
    ],
)
def test_what_the_run_tells_itself_is_told_once(caplog, capsys, name, words):
    with quietly():
        fail(name, words)
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


def test_an_error_is_a_line_without_a_traceback_and_told_once(caplog):
    with quietly():
        for _ in range(3):
            fail("distributed.nanny", "Failed to start process %s", 7)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "Dask says (distributed.nanny): Failed to start process 7: ImportError: no module named spam: is it installed?"
    )


def test_a_logger_that_comes_later_is_quiet_too(caplog):
    with quietly():
        logging.getLogger("distributed.made_up.just_now").warning("careful")
    assert caplog.records == []


def test_afterwards_everything_is_as_it_was():
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado.application")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    undo = quiet.quieten()
    assert [(logger.handlers, logger.propagate) for logger in loggers] != before
    inner = quiet.quieten()
    inner()
    undo()
    assert [(logger.handlers, logger.propagate) for logger in loggers] == before


@pytest.mark.parametrize("key", ["logging", "distributed.logging"])
def test_whoever_configures_dasks_log_sees_it(key):
    logger = logging.getLogger("distributed")
    before = logger.handlers
    with dask.config.set({key: {"distributed": "info"}}):
        quiet.quieten()
    assert logger.handlers is before
