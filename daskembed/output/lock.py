"""One run at a time on one version of an output: a lock that its holder keeps fresh."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from daskembed.documents import parse_object
from daskembed.errors import InputError, LockLostError, StorageError, UnconditionalError
from daskembed.output.state import STATE, mark, probe_path
from daskembed.storage.conditional import create, keeps_conditions, replace
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, local_path

_log = logging.getLogger(__name__)
LEASE = 120
"""Seconds without a sign of life after which a run counts as dead."""
_TRIES = 5
"""Times that a lock is looked at anew because another was quicker."""
_held: set[str] = set()
"""Tokens of the locks that this process holds."""
_lost: set[str] = set()
"""Those of them that another run has by now."""


@dataclass(frozen=True)
class Lock:
    """A lock that a run holds; it pickles, so that workers can see whether it still does."""

    output: Storage
    path: str
    token: str

    def __call__(self) -> None:
        """Raise `LockLostError` if the holder found it lost at its latest sign of life; asks nobody."""
        if self.token in _lost:
            raise LockLostError(
                f"another run took over {self.output.url}, or the lock {self.path} was deleted, as this one gave no "
                f"sign of life for {LEASE} s"
            )

    def confirm(self) -> None:
        """Raise `LockLostError` if the output says that it is lost."""
        if _token(self.output, self.path) != self.token:
            _lost.add(self.token)
        self()


@contextlib.contextmanager
def hold(output: Storage, version: str | None, *, called: str = "output") -> Iterator[Lock]:
    """Hold the lock of a version of an output, or of its cubes.

    Parameters
    ----------
    output
        Where; that it can be written is seen here, too.
    version
        Of embeddings; None for cubes, which have none.
    called
        The keyword that says where.

    Raises
    ------
    InputError
        If another run holds it, or the output cannot be written.
    """
    lock = Lock(output, f"{STATE}/running{mark(version)}.json", uuid.uuid4().hex)
    mine = _Holder.here(lock.token, "embeddings" if version else "cube")
    ended = threading.Event()
    _held.add(lock.token)
    try:
        with _writable(output, called):
            if version is None:
                _respect_earlier(output)
            conditional = _take(lock, mine, version, called)
        beating = threading.Thread(
            target=_beat, args=(lock, mine, conditional, ended), name="daskembed-lock", daemon=True
        )
        beating.start()
        try:
            with _writable(output, called):
                _probe(output, version)
            yield lock
        finally:
            ended.set()
            beating.join()
            # What stopped the run may keep the lock from going, too; nobody takes it for a living run's.
            with contextlib.suppress(StorageError, OSError):
                if _token(output, lock.path) == lock.token:
                    output.delete([lock.path])
    finally:
        _held.discard(lock.token)
        _lost.discard(lock.token)


def check_output(output: Storage, version: str | None) -> None:
    """Raise the `InputError` of `hold` if the output cannot be written; leaves nothing there."""
    path = local_path(output.url) if is_local(output.url) else None
    made = [] if path is None else [folder for folder in (path, *path.parents) if not folder.exists()]
    with _writable(output):
        _probe(output, version)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _probe(output: Storage, version: str | None) -> None:
    output.put(probe := probe_path(version), b"")
    output.delete([probe])


@contextlib.contextmanager
def _writable(output: Storage, called: str = "output") -> Iterator[None]:
    try:
        if is_local(output.url):
            local_path(output.url).mkdir(parents=True, exist_ok=True)
        yield
    except (StorageError, OSError) as error:
        raise InputError(f"the output {output.url} cannot be written: {error}; give another `{called}`") from None


def _take(lock: Lock, mine: _Holder, version: str | None, called: str) -> bool:
    """Take a lock that nobody has, or whose holder is dead; whether the store minds conditions."""
    output, path = lock.output, lock.path
    for _ in range(_TRIES):
        began, there = time.monotonic(), _read(output, path)
        if there is not None:
            if _is_alive(output, path, there, version):
                raise InputError(_at_work(output, _Holder.parse(_read(output, path) or there), called))
            began = time.monotonic()
            if _read(output, path) != there:
                continue
        text = mine.tell()
        try:
            if not (create(output, path, text) if there is None else replace(output, path, there, text)):
                continue  # another was quicker
        except UnconditionalError:
            _write(output, path, text)
        if keeps_conditions(output, path, text):
            return True
        # Whoever else found the lock free at that time has written it before this one looks again, or gives up.
        quick = time.monotonic() - began < LEASE / 12
        if quick:
            time.sleep(LEASE / 6)
        if _read(output, path) == text:
            if quick:
                return False
            output.delete([path])
        break
    raise InputError(f"another run began on {output.url} at this moment: wait for it")


def _at_work(output: Storage, other: _Holder, called: str = "output") -> str:
    another = "`version` or `output`" if called == "output" else f"`{called}`"
    return (
        f"another run is at work on {output.url}: on {other.host} since {other.started} (process {other.process}); "
        f"wait for it, or give another {another}. If it is dead, the output is free {LEASE} s after its "
        "last sign of life"
    )


def _respect_earlier(output: Storage) -> None:
    """Refuse cubes beside those of a release that named their lock as one of a version `cubes`."""
    path = f"{STATE}/running_vcubes.json"
    there = _read(output, path)
    if there is not None and not (other := _Holder.parse(there)).kind:
        if _is_alive(output, path, there, None):
            raise InputError(_at_work(output, other))
        output.delete([path])


def _is_alive(output: Storage, path: str, there: bytes, version: str | None) -> bool:
    other = _Holder.parse(there)
    lives = other.lives()
    if lives is not None:
        return lives
    # By the store's own clock: those of two machines may be minutes apart.
    if _age(output, path, version) >= LEASE:
        return False
    if time.time() - other.seen < LEASE:
        return True
    # It says something else than the store: its clock is wrong, or ours, or the file was copied here.
    _log.warning("warning: %s may be a dead run's: looking for a sign of life", output.url_of(path))
    time.sleep(LEASE / 3)
    return _read(output, path) not in (None, there)


def _age(output: Storage, path: str, version: str | None) -> float:
    """Seconds since an object was written; 0 of one that is replaced at this moment."""
    probe = probe_path(version)
    try:
        output.put(probe, b"")
        return output.written(probe) - output.written(path)
    except FileNotFoundError:
        return 0.0
    finally:
        output.delete([probe])


def _beat(lock: Lock, mine: _Holder, conditional: bool, ended: threading.Event) -> None:
    """Give signs of life, until the run ends or the lock is lost."""
    output, path = lock.output, lock.path
    while not ended.wait(LEASE / 6):
        try:
            if (there := _read(output, path)) is None or _Holder.parse(there).token != lock.token:
                _lost.add(lock.token)
                return
            if conditional:
                replace(output, path, there, mine.tell())  # if that fails, the next look says why
            else:
                _write(output, path, mine.tell())
        except Exception as error:
            # Whatever it is, it may pass; the lease is long enough to wait, and who publishes looks for himself.
            _log.info("no sign of life in %s: %s", output.url_of(path), error)


@dataclass(frozen=True)
class _Holder:
    """What a lock says of its holder; kept as JSON."""

    token: str = ""
    kind: str = ""
    """What it makes, ``embeddings`` or ``cube``; earlier releases do not say."""
    host: str = "a machine unknown"
    machine: str = ""
    """See `_machine`; earlier releases do not say."""
    process: int = 0
    process_started: float = 0.0
    """See `_began`."""
    started: str = "a time unknown"
    """UTC, ISO 8601."""
    seen: float = 0.0
    """Its latest sign of life, in seconds of its own clock."""

    @classmethod
    def here(cls, token: str, kind: str) -> _Holder:
        """What a lock of this process says."""
        now, process = datetime.now(UTC).isoformat(timespec="seconds"), os.getpid()
        return cls(token, kind, socket.gethostname(), _machine(), process, _began(process) or 0.0, now)

    @classmethod
    def parse(cls, text: bytes) -> _Holder:
        """What a lock says, as far as it can be understood."""
        try:
            told = parse_object(text)
        except ValueError:
            told = {}
        known = {field.name: type(field.default) for field in fields(cls)}
        kept: dict[str, Any] = {key: told[key] for key, kind in known.items() if isinstance(told.get(key), kind)}
        return cls(**kept)

    def tell(self) -> bytes:
        """What the lock is to say now."""
        return json.dumps(asdict(self) | {"seen": time.time()}).encode()

    def lives(self) -> bool | None:
        """Whether the process is there; None if that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        if self.process == os.getpid():
            return self.token in _held
        began = _began(self.process)
        return None if began is None else 0 <= began == self.process_started


def _machine() -> str:
    """What no other machine, or container on it, has as long as this one is up: host names may be the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode():x} {psutil.boot_time():.0f}"


def _began(process: int) -> float | None:
    """When a process of this machine began, by a clock of its own; -1 if there is none, None if that cannot be seen."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return -1.0
    except (OSError, OverflowError):
        pass  # it is another user's
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return float(psutil.Process(process).create_time())
        return None
    # Not as psutil tells it: in seconds since 1970 it changes when the clock is set.
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return -1.0 if state in "ZX" else float(rest[18])


def _token(output: Storage, path: str) -> str | None:
    there = _read(output, path)
    return None if there is None else _Holder.parse(there).token


def _read(output: Storage, path: str) -> bytes | None:
    try:
        return output.get(path)
    except FileNotFoundError:
        return None


def _write(output: Storage, path: str, text: bytes) -> None:
    output.put(path, text)
