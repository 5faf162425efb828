"""JSON and YAML of others: bounds of size, depth and type."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from daskembed.cli.parser import cluster_arguments
from daskembed.clusters.presets import read_preset
from daskembed.documents import DEEPEST, MOST_YAML, parse_as, parse_json, parse_object, parse_yaml, read_yaml
from daskembed.errors import InputError
from daskembed.sensors.table import get_sensor


@dataclass(frozen=True)
class Inner:
    name: str
    size: int


@dataclass(frozen=True)
class Outer:
    state: Literal["done", "failed"]
    files: list[Inner]
    reasons: dict[str, str]
    seconds: float
    reason: str | None
    more: dict[str, Any] = field(default_factory=dict)


GOOD = {"state": "done", "files": [{"name": "a", "size": 1}], "reasons": {"b": "c"}, "seconds": 2, "reason": None}


def test_a_document_of_its_type() -> None:
    assert parse_as(Outer, json.dumps(GOOD)) == Outer("done", [Inner("a", 1)], {"b": "c"}, 2, None)
    assert parse_as(Outer, json.dumps(GOOD | {"more": {"x": [1]}, "reason": "r"})).reason == "r"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"state": "begun"}, r"the field 'state' is 'begun', expected Literal\['done', 'failed'\]"),
        ({"state": ["done"]}, "the field 'state' is a list"),
        ({"files": {}}, r"the field 'files' is an object, expected list\["),
        ({"files": [1]}, "an item of the field 'files' is 1, expected Inner"),
        ({"files": [{"name": "a"}]}, "an item of the field 'files' has no field 'size'"),
        ({"files": [{"name": "a", "size": True}]}, "the field 'size' is True, expected int"),
        ({"files": [{"name": "a", "size": 2**63}]}, "the field 'size' is 9223372036854775808, expected int"),
        ({"reasons": [1]}, "the field 'reasons' is a list"),
        ({"reasons": {"b": 1}}, "a value of the field 'reasons' is 1, expected str"),
        ({"seconds": "2"}, "the field 'seconds' is '2', expected float"),
        ({"reason": 1}, "the field 'reason' is 1, expected str"),
        ({"more": 1}, "the field 'more' is 1"),
        ({"other": 1}, "it has the unknown field 'other'"),
        ({"state": "x" * 10**6}, "the field 'state' is 'x{40}', expected"),
    ],
)
def test_a_document_of_another_type(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        parse_as(Outer, json.dumps(GOOD | changed))
    assert len(str(error.value)) < 200


def test_json_without_end() -> None:
    for levels in (DEEPEST + 1, 200_000):
        for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
            with pytest.raises(ValueError, match="it is nested deeper than 32 levels"):
                parse_json(text)
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(ValueError, match="it has 11 bytes, expected at most 10"):
        parse_json(b'"12345678 "', most=10)
    for text in ("", "[", "\x00", "nul", "1" * 5000):
        with pytest.raises(ValueError):  # noqa: PT011 (json's own words)
            parse_json(text)
    with pytest.raises(ValueError, match="it is no JSON object"):
        parse_object("[]")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{','.join(f'*{old}' for _ in range(9))}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
DOCUMENTS = {
    "aliases of aliases": (BOMB, "it has an alias: write out what it stands for"),
    "merged aliases": ("a: &a {x: 1}\nb:\n  <<: *a\n", "it has an alias"),
    "itself": ("&a [*a]", "it has an alias"),
    "nested": ("[" * 5000, "it is nested deeper than 32 levels"),
    "nested lines": ("- " * 5000, "it is nested deeper than 32 levels"),
    "long": ("x: " + "y" * MOST_YAML, "it has more than 65,536 characters"),
    "a number of many digits": ("x: " + "9" * 5000, "it has a number of too many digits"),
    "one in hexadecimal": ("x: 0x" + "f" * 5000, "it has a number of too many digits"),
    "one of sixties": ("x: 1" + ":59" * 5000, "it has a number of too many digits"),
    "a day that there is not": ("x: 2020-13-01", "month must be in 1..12"),
    "code": ("!!python/object/apply:os.getcwd []", "python/object"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_yaml_that_would_cost_much(name: str, tmp_path: Path) -> None:
    text, said = DOCUMENTS[name]
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for read in (read_preset, get_sensor):
        with pytest.raises(InputError, match=said) as error:
            read(str(path))
        assert len(str(error.value)) < 1000
    with pytest.raises(InputError):
        cluster_arguments([f"a={text}"])


def test_yaml_of_plain_values() -> None:
    assert parse_yaml("a: [1, 2.5, x, null, true, 0x10]\nb: {c: 2020-01-02}\n")["a"] == [1, 2.5, "x", None, True, 16]


@pytest.mark.timeout(60)
def test_a_pipe_is_no_yaml(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(OSError, match="it is a folder, a pipe or a device"):
        read_yaml(tmp_path / "mine.yaml")
    for read in (read_preset, get_sensor):
        with pytest.raises(InputError):
            read(str(tmp_path / "mine.yaml"))
