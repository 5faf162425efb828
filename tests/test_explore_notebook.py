"""The notebook, run cell by cell in this process: a kernel would bring thirty packages and a process that may hang."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest

from daskembed.testing import COVERS, land_cover, landscape

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "explore.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the cells' names are in the end."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        patch.syspath_prepend(EXAMPLES)
        try:
            for number, cell in enumerate(cells()):
                if cell["cell_type"] == "code":
                    run_cell("".join(cell["source"]), f"{NOTEBOOK.name} {number}", names)
            yield names
        finally:
            if "client" in names:
                names["client"].close()


def run_cell(source: str, name: str, names: dict[str, Any]) -> None:
    """Run a cell, and show what its last line is as a notebook does: lazily made tables are made."""
    body = ast.parse(source).body
    shown = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    if isinstance(shown, ast.Expr):
        repr(eval(compile(ast.Expression(shown.value), name, "eval"), names))


def test_fields_are_found(ran: dict[str, Any]) -> None:
    assert len(ran["found"]) == 20
    assert ran["precision"] >= 0.9 > 1.5 * ran["chance"]


def test_twenty_points_tell_the_kinds(ran: dict[str, Any]) -> None:
    """By chance it is 0.25; docs/searching.md says 0.97."""
    assert len(ran["labelled"]) == 20
    assert len(ran["unseen"]) == 4 * 256 - 20
    assert ran["accuracy"] > 0.95


def test_what_it_says_of_files_is_there(ran: dict[str, Any]) -> None:
    assert Path(ran["page"].page).is_file()
    assert ran["made"].exit_status == 0
    assert sum(ran["page"].explained) > 0.9
    map_of = gpd.read_file(ran["folder"] / "probe.gpkg")
    assert set(map_of["probe"]) == {"field", "wood", "water", "built"}


def test_it_is_kept_without_outputs() -> None:
    """Which nobody checks: they could be of other cells."""
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert max(len(cell["source"]) for cell in code) < 20


def test_covers_are_those_of_the_landscape() -> None:
    """Odd sizes too: water is dark in the near infrared, and woods are not."""
    cover, pixels = land_cover(255, 257, seed=3), landscape(255, 257, seed=3)
    assert cover.shape == pixels.shape[1:]
    near_infrared = {name: pixels[6][cover == COVERS.index(name)] for name in ("water", "broadleaf")}
    assert near_infrared["water"].size > 500
    assert near_infrared["water"].mean() < 600
    assert near_infrared["broadleaf"].mean() > 1500
