"""What workers elsewhere do not see of this machine's files: refused, sent to them, or carried back."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from daskembed.encoders.checkpoint import is_here, keep, to_send
from daskembed.encoders.loading import get_encoder_module
from daskembed.encoders.protocol import Encoder
from daskembed.errors import InputError
from daskembed.geo.chips import CHIPS_A_TILE
from daskembed.output.state import probe_path
from daskembed.runs.settings import Settings
from daskembed.sources.origin import Origin
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage
from daskembed.storage.urls import is_local, local_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client, Worker

MOST_SENT = 2**31 - 2**20
"""Bytes of the largest checkpoint that is sent to workers: Dask's messages hold no more."""
MUCH = 0.1
"""Megabytes a chip that are worth a warning when they come back through the client."""


class _Weights(WorkerPlugin):  # type: ignore[misc]
    """Gives each worker, and those that come later, a checkpoint's bytes once: in the graph they would go each time."""

    def __init__(self, weights: bytes, sha256: str, *, whole: bool) -> None:
        self.name = f"daskembed-weights-{sha256[:16]}"
        self._weights, self._sha256, self._whole = weights, sha256, whole

    def setup(self, worker: Worker) -> None:
        keep(self._weights, self._sha256, whole=self._whole)


def arrange(client: Client, settings: Settings, tiles: int) -> Settings:
    """See which files of this machine the workers see, and make up for the others.

    Parameters
    ----------
    client
        Of a cluster that has workers.
    settings
        What the run wants.
    tiles
        How many tiles there are.

    Returns
    -------
    Settings
        `carried`, if some worker does not see the output.

    Raises
    ------
    InputError
        If a worker does not see the source, or the checkpoint is too large to be sent.
    """
    output, encoder = settings.output, settings.encoder
    check_source_seen(client, settings.source)
    if blind := _blind(client, is_here, encoder):
        _send(client, encoder, blind)
    blind = blind_to_output(client, output, settings.version)
    size = 4 * math.prod(encoder.shape(settings.level)) / 1e6
    if blind and size > MUCH:
        logging.getLogger(__name__).warning(
            f"warning: the workers do not see {output.url}, so {size:.1f} MB a chip come back through this machine, "
            f"{tiles * CHIPS_A_TILE * size / 1e3:.0f} GB for {tiles} full tiles: an `output` on an object store "
            "spares that"
        )
    return replace(settings, carried=bool(blind))


def check_source_seen(client: Client, source: Origin) -> None:
    """Raise `InputError` if a worker does not see a local source."""
    sees = Path.is_file if isinstance(source, Catalogue) else Path.is_dir
    if is_local(source.url) and (blind := _blind(client, sees, local_path(source.url))):
        refuse_source(source, ", ".join(blind))


def blind_to_output(client: Client, output: Storage, version: str | None) -> list[str]:
    """Addresses of the workers that do not see a local output."""
    if not is_local(output.url):
        return []
    probe = probe_path(version)
    output.put(probe, b"")
    try:
        return _blind(client, Path.is_file, local_path(output.url) / probe)
    finally:
        output.delete([probe])


def check_files_seen(client: Client, storage: Storage, name: str) -> None:
    """Raise `InputError` if a worker does not see a local file, nor with it, so it is taken, its folder."""
    if is_local(storage.url) and (blind := _blind(client, Path.is_file, local_path(storage.url_of(name)))):
        refuse_output(storage, ", ".join(blind))


def refuse_source(source: Origin, workers: str) -> None:
    """Raise because workers do not see a local source; `workers` says which."""
    what, those = ("file", "it") if isinstance(source, Catalogue) else ("folder", "the chips")
    raise InputError(
        f"the source {source.url} is a {what} of this machine, which the workers do not see ({workers}): put {those} "
        "on an object store or a file system that all of them have, or use `cluster='local'`"
    )


def refuse_output(output: Storage, workers: str) -> None:
    """Raise because workers do not see a local output and what they make of it cannot be carried back."""
    raise InputError(
        f"the output {output.url} is a folder of this machine, which the workers do not see ({workers}): give an "
        "object store or a file system that all of them have, or use `cluster='local'`"
    )


def _blind(client: Client, sees: Callable[..., bool], *what: object) -> list[str]:
    """Addresses of workers for which `sees` is false; one that dies meanwhile does not count."""
    return sorted(address for address, seen in client.run(sees, *what, on_error="ignore").items() if not seen)


def _send(client: Client, encoder: Encoder, blind: list[str]) -> None:
    path = to_send(encoder, get_encoder_module(encoder.name), MOST_SENT)
    if (size := path.stat().st_size) > MOST_SENT:
        raise InputError(
            f"the checkpoint {encoder.checkpoint} is {size / 1e9:.1f} GB, and workers do not see it "
            f"({', '.join(blind)}): more than 2 GB cannot be sent to them; give its URL"
        )
    weights, whole = path.read_bytes(), path == local_path(encoder.checkpoint)
    if whole and hashlib.sha256(weights).hexdigest() != encoder.sha256:
        raise InputError(f"the checkpoint {encoder.checkpoint} changed while the run began: run the command again")
    client.register_plugin(_Weights(weights, str(encoder.sha256), whole=whole))
