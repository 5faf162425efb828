"""Catalogues of synthetic scenes: what lists them, and its description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from daskembed.testing.items import catalogue_of
from daskembed.testing.scenes import Scenes


def describe(folder: Path, world: Scenes, *, told: bool = True) -> Path:
    """A catalogue of some scenes; unless it is `told`, it does not say whether the +1000 is in the files."""
    path = folder / "mine.yaml"
    path.write_text(catalogue_of(world.style, str(folder / "items.json"), world.root))
    if not told:
        edit(path, files=[])
    lists(folder, world)
    return path


def lists(folder: Path, world: Scenes, wanted: Callable[[dict[str, Any]], bool] = lambda item: True) -> None:
    """Have it list those items that are wanted."""
    features = [item for item in world.items if wanted(item)]
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def of_day(day: str) -> Callable[[dict[str, Any]], bool]:
    """Whether an item is of a day, or of a collection that has none."""
    return lambda item: item["properties"]["datetime"].startswith(day) or item["collection"] == "cop-dem-glo-30"


def edit(described: Path, **changes: Any) -> None:
    """Change what a description says."""
    described.write_text(yaml.safe_dump(yaml.safe_load(described.read_text()) | changes))
