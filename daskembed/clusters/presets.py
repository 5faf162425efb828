"""Presets of clusters: YAML files that name a class and its arguments; found, read and checked, not started."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from daskembed.documents import read_yaml
from daskembed.errors import InputError, did_you_mean

SUFFIXES = (".yaml", ".yml")
"""By which a file of the caller's is told from the name of a preset."""
_KEYS = {
    "class": (str, "text"),
    "description": (str, "text"),
    "install": (str, "text"),
    "hint": (str, "text"),
    "requires": (list, "a list of modules"),
    "arguments": (dict, "keys and values"),
    "plugins": (list, "a list of classes"),
    "shares_files": (bool, "true or false"),
}


def preset_folder() -> Any:
    """The folder of YAML presets: inside the installed package, or at the top of a checkout."""
    packaged = files("daskembed").joinpath("presets")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "clusters"


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in preset_folder().iterdir() if p.name.endswith(".yaml")))


def read_preset(cluster: str) -> dict[str, Any]:
    """A preset by its name or path, checked.

    Returns
    -------
    dict
        ``class``, and what else it says: ``description``; ``install`` and ``requires``, what must be installed, in
        words and as modules; ``hint``, for when it does not start; ``arguments`` of the class; ``plugins``, classes of
        Dask plugins; ``shares_files``, whether its workers see this machine's files.

    Raises
    ------
    InputError
        If there is no such preset, or it is not one.
    """
    path = Path(cluster) if cluster.endswith(SUFFIXES) else preset_folder().joinpath(f"{cluster}.yaml")
    if not path.is_file():
        raise InputError(
            f"unknown cluster {cluster!r}: choose one of {', '.join(presets())}, a YAML file like clusters/local.yaml, "
            f"the address of a scheduler such as tcp://10.0.0.1:8786, or a scheduler's .json file"
            f"{did_you_mean(cluster, presets())}"
        )
    try:
        preset = read_yaml(path)
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{path} is refused: {' '.join(str(error).split())}; a cluster file holds plain values only"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("class"), str) or "." not in preset["class"]:
        raise InputError(f"{path} names no cluster class: expected a line such as `class: distributed.LocalCluster`")
    # A key whose lines are all commented out.
    preset = {key: value for key, value in preset.items() if value is not None}
    for key, value in preset.items():
        if key not in _KEYS:
            raise InputError(f"{path} has the key {key!r}, which is none of {', '.join(_KEYS)}")
        kind, words = _KEYS[key]
        if not isinstance(value, kind):
            raise InputError(f"{path} says {key}: {value!r}, which is not {words}")
    return preset


def copy_preset(name: str, path: str) -> None:
    """Copy a preset to a file of the caller's, to be edited and given as `cluster`; replaces none.

    Raises
    ------
    InputError
        If there is no such preset, or the file cannot be written or is there already.
    """
    if name not in presets():
        raise InputError(
            f"no preset {name!r} to copy: choose one of {', '.join(presets())}{did_you_mean(name, presets())}"
        )
    if not path.endswith(SUFFIXES):
        raise InputError(f"{path}: a cluster file's name ends with .yaml, such as my-{name}.yaml")
    text = preset_folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} is there already, and is not replaced: give another name, or delete it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def is_installed(preset: Mapping[str, Any]) -> bool:
    """Whether the modules of a preset's class, and those that it requires, are there; imports none of them."""
    return all(find_spec(name.partition(".")[0]) for name in (preset["class"], *preset.get("requires", [])))


def parse_workers(workers: int | str) -> tuple[int, int]:
    """Fewest and most workers of ``4`` or ``1..20``.

    Raises
    ------
    InputError
        If it is neither, or the fewest are none.
    """
    least, dots, most = str(workers).partition("..")
    try:
        found = int(least), int(most if dots else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise InputError(f"`workers={workers!r}`: expected a number from 1, or the fewest and the most, such as 1..20")
    return found


def find_class(name: str, cluster: str, preset: Mapping[str, Any]) -> Any:
    """What a dotted name of a preset means."""
    module, _, attribute = name.rpartition(".")
    try:
        for required in (*preset.get("requires", []), module):
            found = importlib.import_module(required)
        return getattr(found, attribute)
    except AttributeError:
        raise InputError(f"the cluster {cluster!r} names the class {name}, which {module} does not have") from None
    except (ImportError, ValueError) as error:
        needs = preset.get("install", f"the package of {name}")
        raise InputError(f"the cluster {cluster!r} needs {needs}, which cannot be imported: {error}") from None
