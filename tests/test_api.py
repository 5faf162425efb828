"""What the package exports: complete, imported on first use, one word for one idea."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import daskembed
from daskembed.errors import DaskembedError, every_error

TOP = Path(daskembed.__file__).parent
EXPORTED = {name: getattr(daskembed, name) for name in daskembed.__all__ if not name.startswith("__")}
FUNCTIONS = {name: one for name, one in EXPORTED.items() if inspect.isfunction(one)}
CLASSES = {name: one for name, one in EXPORTED.items() if inspect.isclass(one)}
OURS = {
    node.name
    for path in TOP.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
}
WORDS = {
    # what is worked on, and where
    *("tile", "tiles", "region", "source", "output", "file", "version", "dates"),
    # the data between the functions
    *("index", "cube", "embeddings", "columns", "column", "frame"),
    # what embeds
    *("encoder", "checkpoint", "sensor", "window", "level", "precision", "batch_size", "readers", "chips_a_block"),
    # what a chip must be
    *("offset", "edge", "rules", "numbers", "offset_applied", "on_nan", "max_quarantined", "retry_quarantined"),
    # which scenes of a catalogue
    *("max_scene_cloud", "max_scene_nodata", "scenes", "pick", "radar_days", "resampling", "refresh"),
    # what is written
    *("format", "dtype", "calibration", "percentile", "overwrite", "stac", "root", "to", "skip_damaged"),
    *("rows", "unique", "profile", "components"),
    # what is looked at
    *("basis", "geotiff", "preview"),
    # what is searched
    *("like", "like_row", "unlike", "unlike_row", "k", "combine", "metric", "center", "apart"),
    # where it runs
    *("cluster", "cluster_arguments", "workers", "listen", "tls", "device", "price_per_hour"),
    # what is told
    *("progress", "events", "performance_report"),
}
"""The parameters of all public functions; what is new has no word here yet."""


def test_import_is_quick() -> None:
    heavy = {"torch", "dask", "distributed", "geopandas", "rasterio", "pyarrow", "obstore", "pandas", "xarray", "numpy"}
    code = "import sys, daskembed; dir(daskembed); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {*heavy, "rich"}


def test_names_are_found() -> None:
    assert set(daskembed.__all__) == set(dir(daskembed))
    assert None not in EXPORTED.values()
    with pytest.raises(AttributeError, match="has no attribute 'embedd'"):
        daskembed.embedd  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    (checked,) = (node for node in ast.parse((TOP / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: one.__module__ for name, one in EXPORTED.items()}


def words(annotation: Any) -> set[str]:
    return set(re.findall(r"\b[A-Z]\w+", annotation if isinstance(annotation, str) else repr(annotation)))


def named(function: Any) -> set[str]:
    """Classes that a function takes or gives, and errors that it raises."""
    signature = inspect.signature(function)
    annotations = [*(one.annotation for one in signature.parameters.values()), signature.return_annotation]
    raised = inspect.getdoc(function).partition("\nRaises\n")[2]
    return set().union(*map(words, annotations), re.findall(r"^(\w+Error)\b", raised, re.MULTILINE))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_takes_gives_or_raises_is_exported(name: str) -> None:
    assert named(FUNCTIONS[name]) & OURS <= set(EXPORTED)


@pytest.mark.parametrize("name", [name for name, one in CLASSES.items() if is_dataclass(one)])
def test_what_an_exported_class_holds_is_exported(name: str) -> None:
    internal = {"Pace", "TileProgress", "Sensor"}  # within `Progress` and `Description`, not for use by others
    held = set().union(*(words(field.type) for field in fields(CLASSES[name])))
    assert held & OURS - internal <= set(EXPORTED)


def test_errors_that_are_exported() -> None:
    """All but those that never reach a caller: a store's, which `lock` answers, and what another module derives."""
    ours = {error.__name__ for error in every_error() if error.__module__ == DaskembedError.__module__}
    assert ours - set(EXPORTED) == {"UnconditionalError"}


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(daskembed.InputError, ValueError)
    with pytest.raises(ValueError, match="'33TU' is not an MGRS tile id"):
        daskembed.index_tile("33TU", "nowhere")


def keywords(function: Any) -> dict[str, str]:
    """All that a function takes by name, with its annotation."""
    found = {name: str(one.annotation) for name, one in inspect.signature(function).parameters.items()}
    if table := re.search(r"Unpack\[(\w+)\]", found.pop("options", "")):
        known = getattr(daskembed, table[1]).__annotations__
        found |= {name: one.__forward_arg__ for name, one in known.items()}
    return found


def test_one_word_for_one_idea() -> None:
    taken = {name: set(keywords(one)) for name, one in FUNCTIONS.items()}
    assert {name: found - WORDS for name, found in taken.items() if found - WORDS} == {}
    assert set().union(*taken.values()) == WORDS


def test_dates_are_text_everywhere() -> None:
    assert {found["dates"] for found in map(keywords, FUNCTIONS.values()) if "dates" in found} == {"str | None"}
    for dates in ("2022-01-01", ("2022-01-01", "2022-01-02"), "2022-01-02/2022-01-01"):
        with pytest.raises(daskembed.InputError, match="dates"):
            daskembed.index_tile("33TUL", "nowhere", dates=dates)  # type: ignore[arg-type]


def test_the_first_level_is_the_default() -> None:
    encoder = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5", precision="fp32")
    bands = encoder.description.bands
    cube = xr.DataArray(
        np.zeros((1, len(bands), 512, 512), np.float32),
        dims=("chip", "band", "y", "x"),
        coords={"band": list(bands), "date": ("chip", np.array(["2020-01-01"], "datetime64[s]"))}
        | {
            name: ("chip", [value])
            for name, value in {"west": 0.0, "south": 0.0, "east": 5120.0, "north": 5120.0}.items()
        }
        | {"epsg": ("chip", [32633])},
    )
    assert daskembed.embed(cube, encoder).dims == daskembed.embed(cube, encoder, "cls").dims
    assert daskembed.embed(cube, encoder).data.name == daskembed.embed(cube, encoder, "cls").data.name
