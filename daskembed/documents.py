"""JSON and YAML that others may have written, read within bounds of size, depth and type."""

from __future__ import annotations

import errno
import hashlib
import json
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

MOST_JSON = 32 * 2**20
"""Bytes of a JSON document; a receipt that names 100,000 chips has fewer."""
MOST_YAML = 64 * 2**10
"""Bytes of a YAML document; a sensor of 500 bands has fewer."""
DEEPEST = 32
"""Levels of lists and mappings in each other."""
_LARGEST = 2**63
_Kept = TypeVar("_Kept")


def parse_json(data: str | bytes, *, most: int = MOST_JSON) -> Any:
    """The value of a JSON document; raises `ValueError` if it is none, longer than `most` or deeper than `DEEPEST`."""
    if len(data) > most:
        raise ValueError(f"it has {len(data):,} bytes, expected at most {most:,}")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        inner = (one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer))
        level = [one for one in inner if isinstance(one, (dict, list))]
    if level:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    return value


def parse_object(data: str | bytes, *, most: int = MOST_JSON) -> dict[str, Any]:
    """As `parse_json`, of an object."""
    value = parse_json(data, most=most)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def parse_as(kind: type[_Kept], data: str | bytes) -> _Kept:
    """The dataclass that a JSON document describes.

    Raises
    ------
    ValueError
        If it is no JSON object, or a field is missing, unknown or of another type.
    """
    return cast(_Kept, _convert(kind, parse_object(data), "it"))


def _convert(kind: Any, value: Any, what: str) -> Any:
    """`value` as `kind`: a dataclass, a plain type, or a list, tuple, dict, Literal or union of these."""
    form, inner = get_origin(kind), get_args(kind)
    fits = True
    if is_dataclass(kind) and isinstance(value, dict):
        return _build(cast(type[Any], kind), value, what)
    if form in (Union, types.UnionType):
        kinds = [one for one in inner if one is not types.NoneType]
        return None if value is None and len(kinds) < len(inner) else _convert(kinds[0], value, what)
    if form is list and isinstance(value, list):
        return [_convert(inner[0], one, f"an item of {what}") for one in value]
    if form is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise ValueError(f"{what} has {len(value)} items, expected {len(kinds)}")
        return tuple(_convert(one, item, f"an item of {what}") for one, item in zip(kinds, value, strict=True))
    if form is dict and isinstance(value, dict):
        return {key: _convert(inner[1], one, f"a value of {what}") for key, one in value.items()}
    if form is Literal:
        fits = any(type(value) is type(one) and value == one for one in inner)
    elif kind is float:
        fits = type(value) in (int, float)
    elif kind is not Any:
        fits = type(value) is kind and not (kind is int and abs(value) >= _LARGEST)
    if not fits:
        name = kind.__name__ if isinstance(kind, type) and form is None else str(kind).replace("typing.", "")
        raise ValueError(f"{what} is {_told(value)}, expected {name}")
    return value


def _build(kind: type[Any], value: dict[str, Any], what: str) -> Any:
    known = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(value.keys() - known.keys()):
        raise ValueError(f"{what} has the unknown field {unknown[0][:40]!r}")
    needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{what} has no field {missing[0]!r}")
    return kind(**{name: _convert(known[name], one, f"the field {name!r}") for name, one in value.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _told(value: Any) -> str:
    """`value`, or what it is where it may be long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value[:40] if isinstance(value, str) else value)


class _Loader(yaml.SafeLoader):
    """Plain values only, each where it is written: an alias of aliases stands for gigabytes within a few lines."""

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "it has an alias: write out what it stands for", mark)
        self._level += 1
        if self._level > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"it is nested deeper than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_yaml_int(self, node: Any) -> int:
        # Of millions of digits it would take seconds, and cannot be printed.
        value = super().construct_yaml_int(node) if len(node.value) <= 64 else _LARGEST
        if abs(value) >= _LARGEST:
            raise yaml.constructor.ConstructorError(None, None, "it has a number of too many digits", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; raises `yaml.YAMLError` if it is none, or longer or deeper than expected."""
    if len(text) > MOST_YAML:
        raise yaml.YAMLError(f"it has more than {MOST_YAML:,} characters")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, OverflowError) as error:  # of dates that there are not, and the like
        raise yaml.YAMLError(str(error)) from None


def read_yaml(path: Path) -> Any:
    """As `parse_yaml`, of a file; raises also `OSError`, and `UnicodeDecodeError` if it is no text."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device")
    with path.open("rb") as file:
        data = file.read(4 * MOST_YAML + 1)
    return parse_yaml(data[: 4 * MOST_YAML].decode() if len(data) <= 4 * MOST_YAML else " " * (MOST_YAML + 1))


def json_digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
