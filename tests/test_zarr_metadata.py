"""Zarr stores of others: which codecs and sizes their metadata may name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

import daskembed
from daskembed.errors import ChipError, TileError
from daskembed.output.validate.check import validate
from daskembed.sensors.bands import CLAY_V0
from daskembed.storage.zarr_metadata import CODECS_2, CODECS_3, check_metadata

TILE = "33TUL"


def write(folder: Path, form: int, **encoding: Any) -> Path:
    """A store of one chip."""
    values = np.random.default_rng(0).integers(1, 9, (1, 13, 512, 512)).astype(np.float32)
    array = xr.DataArray(
        values,
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(["2019-04-16"], "datetime64[ns]"),
            "band": np.array(CLAY_V0.names, object),
            "y": 5_100_000 - 5 - 10.0 * np.arange(512),
            "x": 300_000 + 5 + 10.0 * np.arange(512),
        },
        name="pixels",
        attrs={"proj:code": "EPSG:32633"},
    )
    path = folder / f"{TILE}.zarr"
    dataset = array.to_dataset().assign_attrs({"proj:code": "EPSG:32633"})
    encoding = {"pixels": {"chunks": (1, 13, 256, 256), **encoding}}
    dataset.to_zarr(path, zarr_format=form, consolidated=True, encoding=encoding, mode="w")
    return path


def change(path: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    alter(document)
    path.write_text(json.dumps(document))


PICKLE = {"name": "numcodecs.pickle", "configuration": {}}
SHARDS = {"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 13, 64, 64], "codecs": [{"name": "bytes"}]}}
INSIDE = {**SHARDS["configuration"], "codecs": [{"name": "bytes"}, PICKLE]}  # type: ignore[dict-item]
FINE = {**SHARDS["configuration"], "chunk_shape": [1, 1, 1, 1]}  # type: ignore[dict-item]

REFUSED: dict[str, tuple[int, str, Callable[[dict[str, Any]], object], str]] = {
    "pickles": (2, "pixels/.zarray", lambda d: d.update(compressor={"id": "pickle"}), "the codec 'pickle' in pixels"),
    "pickles of names": (2, "band/.zarray", lambda d: d["filters"].append({"id": "pickle"}), "'pickle' in band"),
    "objects": (2, "band/.zarray", lambda d: d.update(filters=None), "has Python objects in band"),
    "JSON": (2, "band/.zarray", lambda d: d.update(filters=[{"id": "json2"}, {"id": "vlen-utf8"}]), "'json2' in band"),
    "consolidated": (
        2,
        ".zmetadata",
        lambda d: d["metadata"]["time/.zarray"].update(filters=[{"id": "msgpack2"}]),
        "'msgpack2' in time",
    ),
    "a codec of Zarr 3": (3, "pixels/zarr.json", lambda d: d["codecs"].append(PICKLE), "'numcodecs.pickle' in pixels"),
    "in shards": (
        3,
        "pixels/zarr.json",
        lambda d: d.update(codecs=[{**SHARDS, "configuration": INSIDE}]),
        "'numcodecs.pickle' in pixels",
    ),
    "of an index": (
        3,
        "pixels/zarr.json",
        lambda d: d.update(codecs=[{**SHARDS, "configuration": {**SHARDS["configuration"], "index_codecs": [PICKLE]}}]),  # type: ignore[dict-item]
        "'numcodecs.pickle' in pixels",
    ),
    "consolidated in Zarr 3": (
        3,
        "zarr.json",
        lambda d: d["consolidated_metadata"]["metadata"]["x"]["codecs"].append({"name": "evil"}),
        "the codec 'evil' in x",
    ),
    "a long coordinate": (3, "x/zarr.json", lambda d: d.update(shape=[10**12]), "claims 1,000,000,000,000 values of 8"),
    "a long name": (
        2,
        "band/.zarray",
        lambda d: d.update(dtype="<U99999999", filters=None),
        "claims 13 values of 399999996 bytes in band",
    ),
    "an index of gigabytes": (
        3,
        "pixels/zarr.json",
        lambda d: d.update(
            chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1, 13, 2**15, 2**15]}},
            codecs=[{**SHARDS, "configuration": FINE}],
        ),
        "has shards of 13,958,643,712 chunks",
    ),
    "codecs of Zarr 3 in Zarr 2": (
        2,
        "pixels/.zarray",
        lambda d: d.update(
            compressor={"id": "pickle"},
            codecs=[{"name": "bytes"}],
            data_type="float32",
            chunk_grid={"configuration": {"chunk_shape": [1]}},
        ),
        "the codec 'pickle' in pixels",
    ),
    "Zarr 3 in Zarr 2": (
        2,
        "pixels/.zarray",
        lambda d: d.update(zarr_format=3),
        r"3 as zarr_format in pixels/\.zarray",
    ),
    "Zarr 3 in consolidated Zarr 2": (
        2,
        ".zmetadata",
        lambda d: d["metadata"]["x/.zarray"].update(zarr_format=3),
        r"3 as zarr_format in x/\.zarray",
    ),
    "Zarr 2 in consolidated Zarr 3": (
        3,
        "zarr.json",
        lambda d: d["consolidated_metadata"]["metadata"]["x"].update(zarr_format=2),
        r"2 as zarr_format in x/zarr\.json",
    ),
    "a group over an array": (
        2,
        ".zmetadata",
        lambda d: d["metadata"].update({"x/.zgroup": {"zarr_format": 2, "compressor": {"id": "pickle"}}}),
        r"has x/\.zgroup and an array of the same place",
    ),
    "a long chunk": (
        3,
        "x/zarr.json",
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[10**12]),
        "claims 1,000,000,000,000 values of 8",
    ),
    "damage": (3, "x/zarr.json", lambda d: d.update(chunk_grid=[]), "has damaged metadata, x/zarr.json: TypeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    form, path, alter, said = REFUSED[name]
    store = write(tmp_path, form)
    if not path.startswith((".z", "zarr")):
        # Consolidated metadata would be read instead.
        (store / ".zmetadata").unlink(missing_ok=True)
        if form == 3:
            change(store / "zarr.json", lambda document: document.pop("consolidated_metadata"))
    change(store / path, alter)
    with pytest.raises(TileError, match=said):
        daskembed.index_tile(TILE, str(tmp_path))


def test_metadata_nested_without_end() -> None:
    with pytest.raises(ChipError, match=r"has damaged metadata, zarr\.json: .*nested deeper than 32 levels"):
        check_metadata("zarr.json", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@pytest.mark.parametrize("name", ["x/zarr.json", "zarr.json", "x/c/0"])
def test_sizes_are_looked_at_before_anything_is_read(name: str, tmp_path: Path) -> None:
    store = write(tmp_path, 3)
    os.truncate(store / name, 2**40)  # more than there is memory for
    with pytest.raises(TileError, match=rf"has 1,099,511,627,776 bytes in {name}, expected at most"):
        daskembed.index_tile(TILE, str(tmp_path))


def test_attributes_may_have_any_name(tmp_path: Path) -> None:
    store = write(tmp_path, 2)
    for path, alter in (
        ("pixels/.zattrs", lambda d: d.update(shape="round", zarr_format=9)),
        (".zmetadata", lambda d: d["metadata"]["pixels/.zattrs"].update(shape="round")),
    ):
        change(store / path, alter)
    assert list(daskembed.index_tile(TILE, str(tmp_path))["quarantined"]) == [None]


@pytest.mark.parametrize(
    ("form", "encoding"),
    [
        (2, {"compressors": numcodecs.LZ4()}),
        (2, {"compressors": numcodecs.Zlib(), "filters": [numcodecs.Shuffle(4)]}),
        (2, {"compressors": numcodecs.BZ2(), "filters": [numcodecs.Delta("<f4")]}),
        (3, {"compressors": [zarr.codecs.GzipCodec(level=1), zarr.codecs.Crc32cCodec()]}),
        (3, {"compressors": [zarr.codecs.BloscCodec(cname="zstd")], "shards": (1, 13, 512, 512)}),
    ],
)
def test_codecs_that_are_taken(form: int, encoding: dict[str, Any], tmp_path: Path) -> None:
    store = write(tmp_path, form, **encoding)
    pixels = daskembed.index_tile(TILE, str(tmp_path))["chip"][0].read()
    np.testing.assert_array_equal(pixels, xr.open_zarr(store)["pixels"].values[0])


def test_no_codec_that_is_taken_runs_or_builds_anything() -> None:
    assert not any(word in name for name in CODECS_2 | CODECS_3 for word in ("pickle", "json", "msgpack", "categor"))


@pytest.mark.timeout(60)
def test_a_pipe_is_no_chunk(tmp_path: Path) -> None:
    store = write(tmp_path, 3)
    chip = daskembed.index_tile(TILE, str(tmp_path))["chip"][0]
    (store / "pixels/c/0/0/0/1").unlink()
    os.mkfifo(store / "pixels/c/0/0/0/1")
    with pytest.raises(ChipError, match=r"holds pixels/c/0/0/0/1, which is no file: a folder, a pipe or a device"):
        chip.read()


def test_validate_takes_no_other_codecs(tmp_path: Path) -> None:
    store = write(tmp_path, 3).rename(tmp_path / f"{TILE}_20190416_20190416_v001.zarr")
    change(
        store / "zarr.json",
        lambda document: document["consolidated_metadata"]["metadata"]["x"]["codecs"].append(PICKLE),
    )
    assert any("uses the codec 'numcodecs.pickle' in x" in str(finding) for finding in validate(str(store)))
