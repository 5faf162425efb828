"""What earlier versions published stays valid, and comes out the same, byte for byte: see `published.py`."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from published import (
    CASES,
    FOLDER,
    TILE,
    WHY,
    anew,
    embeddings,
    pixels,
    settings,
    software,
    write,
    write_chips,
    write_cube,
)

import daskembed
from daskembed.output import published as names
from daskembed.output import state
from daskembed.output.protocol import format_of, get_format
from daskembed.output.status import status
from daskembed.output.validate.check import files_of, validate
from daskembed.runs import cube_layout, cube_stages
from daskembed.sources.registry import list_tile
from daskembed.storage.stores import Storage

MADE_WITH = json.loads((FOLDER / "made_with.json").read_text())


@pytest.fixture
def same_versions() -> None:
    """Skips the rest of a test where other versions of what makes the bytes are installed."""
    if other := {name: found for name, found in software().items() if MADE_WITH[name] != found}:
        made = {name: MADE_WITH[name] for name in other}
        pytest.skip(f"the bytes are those that {made} make, and here are {other}")


def sums(store: Path) -> dict[str, str]:
    """Path below a store, or of a file, -> SHA-256."""
    files = [store] if store.is_file() else [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def receipt_of(name: str) -> state.Receipt:
    return state.read_receipt(Storage(str(FOLDER / name)), state.receipt_path(TILE, "001"))


def test_status_says_what_they_hold() -> None:
    found = {name: status(str(FOLDER / name)).tiles for name in (*CASES, "cube")}
    assert [(tile.tile, tile.version, tile.status, tile.kind) for tiles in found.values() for tile in tiles] == [
        (TILE, "001", "done", "embeddings"),
        ("33TUM", "001", "failed", "embeddings"),
        ("33TVL", "001", "unfinished", "embeddings"),
        (TILE, "001", "done", "embeddings"),
        (TILE, "001", "done", "embeddings"),
        (TILE, "", "done", "cube"),
    ]
    done, failed, unfinished = found["mean"]
    assert [done.chips, *done.quarantined.values(), *done.rejected.values()] == [2, *WHY.values()]
    assert (failed.reason, unfinished.parts_done) == ("no chips of tile 33TUM", 1)
    (cube,) = found["cube"]
    assert cube.chips == 2
    chip = "/made-up/chips/33TUL/2019-04-16/claytile_33TUL_20190416_v02_0002.tif"
    assert cube.quarantined == {chip: "is not a TIFF: it starts with b'no c'; expected a GeoTIFF of 13 bands"}


@pytest.mark.parametrize("name", [*CASES, "cube"])
def test_validate_finds_nothing(name: str) -> None:
    files = files_of(str(FOLDER / name))
    assert len(files) == (1 if name == "cube" else len(CASES[name].formats))
    assert [validate(file) for file in files] == [[] for _ in files]


@pytest.mark.parametrize("name", CASES)
def test_the_same_settings_skip_them(name: str) -> None:
    made, receipt = settings(CASES[name], str(FOLDER / name)), receipt_of(name)
    files = names.published_files(made.output, "001")[TILE]
    assert sorted(files) == sorted(receipt.names)
    assert receipt.finishes(made.identity, files)
    assert receipt.holds("as listed", retry_quarantined=False)
    assert not receipt.finishes(replace(made, dtype="float64").identity, files)
    for file in receipt.names:
        said = format_of(file).read_provenance(made.output, file)
        assert said is not None
        assert {**said, "software": None} == {
            **made.provenance,
            "software": None,
            "tile": TILE,
            "identity": made.identity,
            "shape": list(made.encoder.description.row_shape(made.level)),
            "chips": receipt.chips,
        }


@pytest.mark.parametrize("name", CASES)
def test_the_same_values_are_read(name: str) -> None:
    case = CASES[name]
    made = embeddings(case).isel(chip=slice(len(case.places) - len(case.bad)))
    frame = daskembed.open_embeddings(str(FOLDER / name)).compute(scheduler="sync")
    expected = made.to_numpy().reshape(len(frame), -1).astype(case.dtype)
    np.testing.assert_array_equal(np.stack(list(frame["embeddings"])), expected)
    footprints = made.coords["footprint" if "footprint" in made.coords else "geometry"].to_numpy().reshape(-1)
    assert list(frame.geometry) == list(footprints)
    for file in receipt_of(name).names[1:]:
        store = xr.open_zarr(FOLDER / name / file)
        squares = made.sizes.get("window", 1) * made.sizes["chip"]
        patches = made.to_numpy().reshape(squares, *made.shape[-3:])
        xs, ys = store["x"].to_numpy(), store["y"].to_numpy()
        step = xs[1] - xs[0]
        for number, square in enumerate(patches):
            chip, window = divmod(number, made.sizes.get("window", 1))
            half = np.array(np.divmod(window, 2)) * 2560.0
            top, left = float(made["north"][chip]) - half[0], float(made["west"][chip]) + half[1]
            rows, cols = (
                (ys < top) & (ys > top - square.shape[0] * step),
                (xs > left) & (xs < left + square.shape[1] * step),
            )
            there = store["embeddings"].sel(time=made["date"][chip].to_numpy()).to_numpy()[:, rows][:, :, cols]
            np.testing.assert_array_equal(np.moveaxis(there, 0, -1), square)
        full = np.isfinite(store["embeddings"].to_numpy()).all(axis=1)
        assert full.sum() == len(patches) * np.prod(patches.shape[1:3])


def test_the_same_pixels_are_read() -> None:
    cube = xr.open_zarr(FOLDER / "cube" / f"{TILE}.zarr")
    assert (cube["pixels"].shape, cube["spatial_ref"].attrs["crs_wkt"][:6]) == ((1, 13, 1024, 1024), "PROJCR")
    north_west, south_east = pixels().values()
    found = cube["pixels"].to_numpy()[0]
    np.testing.assert_array_equal(found[:, :512, :512], north_west)
    np.testing.assert_array_equal(found[:, 512:, 512:], south_east)
    assert np.isnan(found[:, :512, 512:]).all()
    assert np.isnan(found[:, 512:, :512]).all()


@pytest.mark.usefixtures("same_versions")
@pytest.mark.parametrize("name", CASES)
def test_the_same_parts_make_the_same_bytes(name: str, tmp_path: Path) -> None:
    output, receipt = Storage(str(tmp_path)), receipt_of(name)
    write(CASES[name], output, "part")
    for file, kind in zip(receipt.files, CASES[name].formats, strict=True):
        provenance = get_format(kind).read_provenance(Storage(str(FOLDER / name)), file.name)
        assert provenance is not None
        assert anew(get_format(kind).publish, output, file.name, ["part"], provenance) == file
        assert sums(tmp_path / file.name) == sums(FOLDER / name / file.name)


@pytest.fixture
def job(tmp_path: Path) -> cube_layout.Job:
    write_chips(tmp_path / "chips")
    (tmp_path / "cube").mkdir()
    return cube_layout.Job(Storage(str(tmp_path / "chips")), Storage(str(tmp_path / "cube")))


def test_the_same_chips_skip_a_cube(job: cube_layout.Job, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "cube", tmp_path / "cube", dirs_exist_ok=True)
    receipt = state.read_cube_receipt(job.output, TILE)
    assert receipt is not None
    # Where they were, when they were written and on which disk is of the listing, too.
    receipt = replace(receipt, listing=list_tile(TILE, job.source, job.reading).fingerprint)
    state.write_receipt(job.output, receipt)
    assert cube_stages.plan_tile(job, TILE) == receipt


@pytest.mark.usefixtures("same_versions")
def test_the_same_chips_make_the_same_bytes(job: cube_layout.Job, tmp_path: Path) -> None:
    anew(write_cube, job)
    assert sums(tmp_path / "cube" / f"{TILE}.zarr") == sums(FOLDER / "cube" / f"{TILE}.zarr")
    made, stored = (state.read_cube_receipt(output, TILE) for output in (job.output, Storage(str(FOLDER / "cube"))))
    assert made is not None
    assert stored is not None
    assert (made.size, made.sha256, made.settings) == (stored.size, stored.sha256, stored.settings)
