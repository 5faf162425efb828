"""Catalogues of synthetic scenes: what lists them, and its description."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from daskembed.testing.scenes import Scenes


def describe(folder: Path, world: Scenes, *, name: str = "planetary-computer", offset: str | None = "in") -> Path:
    """A catalogue of some scenes, as a user of his own files describes one: ``offset`` is what is known of them."""
    described = yaml.safe_load(files("daskembed.sources.stac").joinpath("catalogues", f"{name}.yaml").read_text())
    known = {} if offset is None else {"offset": offset}
    described |= {"url": str(folder / "items.json"), "files": [{"at": f"file://{world.folder}/", **known}]}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(described))
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
