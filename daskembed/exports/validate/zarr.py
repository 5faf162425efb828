"""Zarr stores of exports checked: as those of runs, against the plan, and what gives the floats of int8 back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from daskembed.documents import MOST_JSON, parse_object
from daskembed.errors import InputError
from daskembed.exports.validate.known import Known, check_calibration, check_made
from daskembed.output.geozarr import ROOT
from daskembed.output.protocol import DTYPES
from daskembed.output.validate.findings import Finding
from daskembed.output.validate.names import check_ends, check_name
from daskembed.output.validate.zarr import check_objects, lengths_along
from daskembed.quantization import KEY

if TYPE_CHECKING:
    from daskembed.output.validate.names import Named
    from daskembed.output.validate.zarr import Content
    from daskembed.storage.stores import Storage


def is_exported(storage: Storage, name: str) -> bool:
    """Whether a store says that it is of an export."""
    try:
        root = parse_object(storage.get(f"{name}/{ROOT}", most=MOST_JSON))
        return "export" in root["attributes"]["daskembed"]
    except (FileNotFoundError, ValueError, LookupError, TypeError, InputError):
        return False


def check_store(storage: Storage, name: str, known: Known) -> Iterator[Finding]:
    """Check a store: each object is read once, the shards one at a time."""
    sizes = {entry.path.removeprefix(f"{name}/"): entry.size for entry in storage.entries(name)}
    if not sizes:
        raise FileNotFoundError(storage.url_of(name))
    named = yield from check_name(name)
    check_rest = partial(_check_rest, named, known)
    yield from check_objects(storage, name, sizes, named, (*DTYPES, "int8"), check_rest, known.receipt)


def _check_rest(named: Named | None, known: Known, content: Content) -> Iterator[Finding]:
    made = content.made
    if named is not None and content.days:
        yield from check_ends(content.days, named, None)
    yield from check_made(made, known.settings)
    lengths = lengths_along(made)
    if known.receipt is not None and known.settings:
        a_row = 1 if known.settings.get("rows") == "patch" else lengths.get("row", 1) * lengths.get("col", 1)
        if content.cells != (expected := known.receipt.rows * a_row):
            yield Finding("vectors", f"{content.cells} cells have values, the rows of the receipt have {expected}")
    elif not content.cells:
        yield Finding("vectors", "no cell has a value")
    told = content.attributes.get(KEY)
    text = None if told is None else json.dumps(told)
    found = yield from check_calibration(text, made, tuple(made.get("shape") or ()), known, "root")
    for name in ("scale", "offset") if found is not None else ():
        numbers = np.array(getattr(found, name), np.float32)
        if name not in content.cube.coords or not np.array_equal(content.cube[name].to_numpy(), numbers):
            yield Finding("quantization", f"the coordinates {name} are not those of `{KEY}`")
