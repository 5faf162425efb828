"""What the latest plan on this machine expected of a run: kept beside the checkpoints, for the run to look back at."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from daskembed import config
from daskembed.documents import parse_as
from daskembed.runs.results import Expected
from daskembed.runs.settings import Settings


def _path(settings: Settings) -> Path:
    """Not in the output: that a run is planned must neither make it nor need the right to write there."""
    key = json.dumps([settings.output.url, settings.version, settings.identity], sort_keys=True)
    return config.cache_folder() / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def keep(settings: Settings, expected: Expected) -> None:
    """Keep it for the next run with these settings."""
    path = _path(settings)
    with contextlib.suppress(OSError):  # the plan is as good without a run that looks back at it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(expected)))


def recall(settings: Settings) -> Expected | None:
    """What the latest plan on this machine expected of a run with these settings; None if there is none."""
    try:
        return parse_as(Expected, _path(settings).read_text())
    except (OSError, ValueError):
        return None
