"""Exports as Zarr: a store a tile, opened by xarray and rioxarray, with what gives the floats of int8 back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import published
import pyarrow.parquet as pq
import pytest
import rioxarray  # noqa: F401 (it gives xarray's objects `.rio`)
import xarray as xr
from distributed import Client
from pystac.validation import validate_dict
from test_stac_out import catalog, exts, schema, tree

import daskembed
from daskembed.cli.main import main
from daskembed.errors import ConflictError, InputError
from daskembed.exports import state
from daskembed.exports.plan import one_a_tile
from daskembed.exports.validate.check import files_of, validate
from daskembed.geo.mgrs import tile_corner
from daskembed.output.index_rows import write_rows
from daskembed.output.state import read_receipt, receipt_path
from daskembed.quantization import Calibration
from daskembed.runs.export_options import Asked
from daskembed.runs.export_results import ExportResult
from daskembed.runs.exports import run_export
from daskembed.sources.region import read_region
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILES, DAYS = ("33TUL", "01JBG"), ("2024-06-01", "2024-07-01")
SIDE, GRID, DIMS = 3, 4, 6
"""Chips along a tile's side, patches along a chip's, components."""
FIRST = "33TUL_20240601_20240701_v001.zarr"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def make(output: Path, to: Path, client: Client, **asked: Any) -> ExportResult:
    result = run_export(str(output), str(to), Asked(cluster=client, **{"format": "zarr", **asked}))
    assert result.exit_status == 0
    return result


@pytest.fixture(scope="module")
def output(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left of two tiles, one of them at 180 degrees, at level `patch`, and its calibration."""
    folder = tmp_path_factory.mktemp("output")
    write_published(folder, TILES, side=SIDE, shape=(GRID, GRID, DIMS), days=DAYS)
    daskembed.calibrate(str(folder), cluster=client)
    return folder


@pytest.fixture(scope="module")
def exported(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    result = make(output, folder, client)
    assert (result.written, result.rows) == (2, len(TILES) * SIDE**2 * len(DAYS))
    return folder


@pytest.fixture(scope="module")
def small(output: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of int8."""
    folder = tmp_path_factory.mktemp("small")
    make(output, folder, client, dtype="int8")
    return folder


def calibration_of(output: Path) -> Calibration:
    return daskembed.quantization.read_calibration(output / "_daskembed" / "calibration.json")


def cells(output: Path, tile: str, side: int = SIDE) -> np.ndarray:
    """What is published of a tile, put together: ``(time, component, y, x)``."""
    (path,) = output.glob(f"{tile}_*.gpq")
    table = pq.read_table(path)
    vectors = table["embeddings"].combine_chunks().to_numpy_ndarray()
    whole = np.full((len(DAYS), side * GRID, side * GRID, DIMS), np.nan, vectors.dtype)
    for url, when, patches in zip(table["source_url"].to_pylist(), table["date"].to_pylist(), vectors, strict=True):
        row, col = divmod(int(url.rpartition("/")[2].split("_")[2]) - 1, side)
        time = DAYS.index(when.isoformat())
        whole[time, row * GRID : (row + 1) * GRID, col * GRID : (col + 1) * GRID] = patches
    return np.moveaxis(whole, -1, 1)


@pytest.mark.parametrize("tile", TILES)
def test_cells_are_the_published_vectors_in_their_place(output: Path, exported: Path, tile: str) -> None:
    epsg, west, north = tile_corner(tile)
    store = xr.open_zarr(exported / f"{tile}_20240601_20240701_v001.zarr")
    assert store.embeddings.dims == ("time", "embedding", "y", "x")
    assert store.embeddings.dtype == np.float32
    np.testing.assert_array_equal(store.embeddings, cells(output, tile))
    np.testing.assert_array_equal(store.time, np.array(DAYS, "datetime64[ns]"))
    assert store.embeddings.rio.crs.to_epsg() == epsg
    step = 5120 / GRID
    np.testing.assert_allclose(store.embeddings.rio.transform()[:6], (step, 0, west, 0, -step, north), atol=1e-3)
    np.testing.assert_allclose(store.x, west + step * (np.arange(SIDE * GRID) + 0.5), atol=1e-3)
    assert np.isnan(store.embeddings.rio.nodata)


def test_a_root_says_what_the_conventions_ask_for(output: Path, exported: Path, small: Path) -> None:
    attributes = xr.open_zarr(exported / FIRST).attrs
    assert {name: value for name, value in attributes.items() if name.startswith("geoemb:")} == {
        "geoemb:type": "chip",
        "geoemb:dimensions": DIMS,
        "geoemb:model": "https://github.com/Clay-foundation/model",
        "geoemb:data_type": "float32",
        "geoemb:source_data": [output.as_uri()],
    }
    assert "61c12cc5-0e28-4056-999a-480cf3fb7e4c" in {one["uuid"] for one in attributes["zarr_conventions"]}
    assert (attributes["proj:code"], attributes["spatial:shape"]) == ("EPSG:32633", [SIDE * GRID, SIDE * GRID])
    made = attributes["daskembed"]
    assert (made["tile"], made["shape"], made["export"]["rows"]) == ("33TUL", [GRID, GRID, DIMS], "chip")
    attributes, how = xr.open_zarr(small / FIRST).attrs, calibration_of(output)
    assert attributes["geoemb:data_type"] == "int8"
    assert attributes["geoemb:quantization"] == {
        "method": "affine",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "link": f"urn:daskembed:calibration:{how.digest}",
    }
    assert attributes["quantization"] == json.loads(how.text())


@pytest.mark.parametrize("tile", TILES)
def test_int8_gives_the_floats_of_the_same_export_in_geoparquet(
    output: Path, small: Path, client: Client, tmp_path: Path, tile: str
) -> None:
    make(output, tmp_path, client, format="geoparquet", dtype="int8", tiles=tile)
    frame = daskembed.dequantize(daskembed.open_embeddings(str(tmp_path)).compute())
    store = xr.open_zarr(small / f"{tile}_20240601_20240701_v001.zarr")
    floats = store.embeddings * store.scale + store.offset
    assert floats.dtype == np.float32
    found = floats.transpose("time", "y", "x", "embedding").to_numpy()
    assert len(frame) == len(DAYS) * SIDE**2
    for url, day, vector in zip(frame["source_url"], frame["date"], frame["embeddings"], strict=True):
        row, col = divmod(int(url.rpartition("/")[2].split("_")[2]) - 1, SIDE)
        here = found[DAYS.index(str(day)[:10]), row * GRID : (row + 1) * GRID, col * GRID : (col + 1) * GRID]
        np.testing.assert_array_equal(here.ravel(), np.asarray(vector))
    raw = xr.open_zarr(small / f"{tile}_20240601_20240701_v001.zarr", mask_and_scale=False).embeddings
    assert (raw.dtype, raw.rio.nodata) == (np.int8, -128)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_region_leaves_nothing_around_its_patches(output: Path, client: Client, tmp_path: Path, dtype: str) -> None:
    region = read_region("12.43,45.97,12.48,46.02")
    make(output, tmp_path, client, region=region, rows="patch", dtype=dtype, dates="2024-07-01/2024-07-31")
    (path,) = tmp_path.glob("*.zarr")
    # It is called after what is in it.
    assert path.name == "33TUL_20240701_20240701_v001.zarr"
    store = xr.open_zarr(path)
    found = store.embeddings if dtype == "float32" else store.embeddings * store.scale + store.offset
    assert found.sizes["time"] == 1
    _, west, north = tile_corner("33TUL")
    transform = store.embeddings.rio.transform()
    x, y = (round(edge) for edge in ((transform.c - west) / 1280, (north - transform.f) / 1280))
    whole = cells(output, "33TUL")[1][:, y : y + found.sizes["y"], x : x + found.sizes["x"]]
    known = np.isfinite(found[0].to_numpy())
    assert (known.all(axis=0) == known.any(axis=0)).all()
    assert 0 < known[0].sum() < known[0].size
    limit = 0 if dtype == "float32" else 2 * max(calibration_of(output).scale)
    assert np.median(np.abs(found[0].to_numpy() - whole)[known]) <= limit
    assert validate(str(path)) == []


def test_groups_are_a_dimension(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=1, shape=(2, GRID, GRID, 3))
    daskembed.calibrate(str(tmp_path / "output"), cluster=client)
    make(tmp_path / "output", tmp_path / "to", client)
    make(tmp_path / "output", tmp_path / "small", client, dtype="int8")
    vectors = pq.read_table(next((tmp_path / "output").glob("*.gpq")))["embeddings"].combine_chunks()
    whole = xr.open_zarr(next((tmp_path / "to").glob("*.zarr"))).embeddings
    assert whole.dims == ("time", "group", "embedding", "y", "x")
    np.testing.assert_array_equal(whole[0], np.moveaxis(vectors.to_numpy_ndarray()[0], -1, 1))
    store = xr.open_zarr(next((tmp_path / "small").glob("*.zarr")))
    difference = np.abs(store.embeddings * store.scale + store.offset - whole)
    assert np.median(difference / store.scale) < 0.5
    assert validate(str(next((tmp_path / "small").glob("*.zarr")))) == []


def test_float16_is_said_to_be_cast(output: Path, client: Client, tmp_path: Path) -> None:
    make(output, tmp_path, client, dtype="float16", tiles="33TUL")
    store = xr.open_zarr(tmp_path / FIRST)
    np.testing.assert_array_equal(store.embeddings, cells(output, "33TUL").astype(np.float16))
    told = {"method": "cast", "original_dtype": "float32", "quantized_dtype": "float16"}
    assert store.attrs["geoemb:quantization"] == told


@pytest.fixture(scope="module")
def of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `published.py` that hold the same rows in both formats, with what a run keeps of these."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("patch", "windows"):
        output = Storage(str(shutil.copytree(published.FOLDER / name, folder / name)))
        published.write(published.CASES[name], output, part := "_daskembed/parts/part.parquet")
        write_rows(output, "33TUL", "001", [part], read_receipt(output, receipt_path("33TUL", "001")).files)
        output.delete([part])
    return folder


@pytest.mark.parametrize("name", ["patch", "windows"])
def test_it_is_the_store_that_a_run_publishes(of_a_run: Path, client: Client, tmp_path: Path, name: str) -> None:
    make(of_a_run / name, tmp_path, client)
    ours, runs = objects(tmp_path), objects(of_a_run / name)
    # All but what says how it came about.
    told = {path for path in runs if path.endswith("zarr.json") and path.count("/") == 1}
    assert len(told) == 1
    assert ours.keys() == runs.keys()
    assert {path for path in runs if ours[path] != runs[path]} == told
    (path,) = (of_a_run / name).glob("*.zarr")
    ran, exported = (xr.open_zarr(one).attrs for one in (path, tmp_path / path.name))
    assert {key for key in exported if ran.get(key) != exported[key]} <= {
        "daskembed",
        "geoemb:source_data",
        "geoemb:quantization",
    }
    assert exported["geoemb:source_data"] == [ran["geoemb:source_data"]] == ["s3://made-up/chips"]
    required = ("type", "dimensions", "model", "source_data", "data_type", "chip_layout")
    assert {f"geoemb:{name}" for name in required} <= exported.keys()


# What is known of them


def objects(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("*.zarr/**/*"))
        if path.is_file()
    }


def test_what_is_finished_is_left_and_what_is_not_is_made(
    output: Path, exported: Path, client: Client, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "to")
    assert make(output, tmp_path / "to", client).written == 0
    # Its writer was killed in the middle: a store without a root, and a temporary file.
    (tmp_path / "to" / FIRST / "zarr.json").unlink()
    (tmp_path / "to" / FIRST / "embeddings" / ".0.ab.tmp").write_bytes(b"half")
    (tmp_path / "to" / state.receipt_of(FIRST)).unlink()
    assert make(output, tmp_path / "to", client).written == 1
    assert objects(tmp_path / "to") == objects(exported)


def test_a_bucket_holds_the_same(output: Path, exported: Path, client: Client, s3: str) -> None:
    target = Storage(f"{s3}/to")
    result = run_export(str(output), target.url, Asked(cluster=client, format="zarr"))
    assert (result.exit_status, result.written) == (0, 2)
    found = {one.path: target.get(one.path) for file in result.files for one in target.entries(file.name)}
    assert found == objects(exported)
    assert [validate(file) for file in files_of(target.url)] == [[], []]
    target.delete([f"{FIRST}/zarr.json"])
    status = daskembed.status(target.url).export
    assert status is not None
    assert status.counts == {"done": 1, "missing": 1}
    run_export(str(output), target.url, Asked(cluster=client, overwrite=True))
    assert not target.entries(FIRST)


def test_another_export_takes_its_place_only_if_that_is_asked(
    output: Path, exported: Path, small: Path, client: Client, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "to")
    with pytest.raises(ConflictError, match="was made with dtype float32, not int8"):
        make(output, tmp_path / "to", client, dtype="int8")
    make(output, tmp_path / "to", client, dtype="int8", overwrite=True)
    assert objects(tmp_path / "to") == objects(small)
    make(output, tmp_path / "to", client, format="geoparquet", overwrite=True)
    assert objects(tmp_path / "to") == {}


def test_sound_ones_are_valid(exported: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (exported, small):
        assert [validate(file) for file in files_of(str(folder))] == [[], []]
        assert main(["status", str(folder)]) == 0
        assert ", zarr, a pixel a patch, " in capsys.readouterr().out
    assert main(["validate", str(small)]) == 0
    assert capsys.readouterr().out.count(": ok\n") == 2


def test_one_by_itself_is_valid_but_for_its_receipt(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / FIRST, tmp_path / FIRST)
    told = validate(str(tmp_path / FIRST))
    assert [one.check for one in told] == ["receipt", "provenance"]
    assert {one.severity for one in told} == {"note"}


def _shard(store: Path) -> None:
    path = next(path for path in sorted((store / "embeddings" / "c").rglob("*")) if path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


def _lost(store: Path) -> None:
    next(path for path in sorted((store / "embeddings" / "c").rglob("*")) if path.is_file()).unlink()


def _root(store: Path) -> None:
    (store / "zarr.json").unlink()


def _said(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        path = store / "zarr.json"
        document = json.loads(path.read_text())
        change(document["attributes"])
        path.write_text(json.dumps(document))

    return damage


def _scale(store: Path) -> None:
    (store / "scale" / "c" / "0").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_shard, "the receipt says"),
        (_lost, "the rows of the receipt have"),
        (_root, "no zarr.json: it was never finished, or is being written"),
        (lambda store: shutil.rmtree(store), "it is not there: the same `daskembed export` makes it"),
        (_said(lambda told: told.pop("quantization")), "nothing says what the values of int8 stand for"),
        (_said(lambda told: told["quantization"].update(scale=[1.0] * DIMS)), "is not a calibration of daskembed"),
        (
            _said(lambda told: told["daskembed"].update(level="mean")),
            "the file says level mean, the export's plan patch",
        ),
        (_scale, "the coordinates scale are not those of `quantization`"),
    ],
)
def test_damage_is_named(small: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    shutil.copytree(small, tmp_path / "to")
    damage(tmp_path / "to" / FIRST)
    assert any(said in one.message for one in validate(str(tmp_path / "to" / FIRST)))


def test_status_names_a_store_that_is_not_as_it_was(
    output: Path, exported: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "to")
    _lost(tmp_path / "to" / FIRST)
    (tmp_path / "to" / "mine.zarr").mkdir()
    found = daskembed.status(str(tmp_path / "to")).export
    assert found is not None
    assert {file.name: file.status for file in found.files} == {FIRST: "changed", found.files[0].name: "done"}
    assert found.others == ("mine.zarr",)
    _root(tmp_path / "to" / FIRST)
    assert main(["status", str(tmp_path / "to")]) == 3
    assert "missing" in capsys.readouterr().out
    assert make(output, tmp_path / "to", client).written == 1
    assert objects(tmp_path / "to") == objects(exported)


def test_items_say_where_it_is_and_how_floats_come_back(
    client: Client, of_a_run: Path, tmp_path: Path, shared: Path
) -> None:
    output = of_a_run / "patch"
    calibration = daskembed.calibrate(str(output), cluster=client).calibration
    assert calibration is not None
    make(output, tmp_path / "to", client, dtype="int8")
    assert main(["stac", str(tmp_path / "to")]) == 0
    folder = tmp_path / "to"
    (item,) = (one for child in catalog(folder).get_children() for one in child.get_items())
    (store,) = folder.glob("*.zarr")
    assert item.id == store.name
    asset = item.assets["embeddings"]
    assert asset.media_type == "application/vnd.zarr; version=3"
    assert Path(asset.get_absolute_href()) == store
    assert asset.extra_fields["file:size"] == sum(map(len, objects(folder).values()))
    assert item.properties["emb:quantization"] == {
        "method": "affine",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": [*calibration.scale],
        "offset": [*calibration.offset],
    }
    assert item.properties["proj:code"] == "EPSG:32633"
    assert item.properties["grid:code"] == "MGRS-33TUL"
    bounds = xr.open_zarr(store).embeddings.rio.transform_bounds("OGC:CRS84")
    np.testing.assert_allclose(item.bbox, bounds, atol=1e-6)
    assert daskembed.validate(str(folder / "_stac")) == []
    assert main(["status", str(folder)]) == 0
    for one in (catalog(folder), *catalog(folder).get_children(), item):
        validate_dict(one.to_dict() | {"stac_extensions": []})
    path = shared / "spec" / "embeddings-stac-v0.0.1.schema.json"
    for one in map(json.loads, tree(folder / "_stac").values()):
        if "embeddings/v" in str(exts(one)):
            schema(path).validate(one)


# What is refused


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"columns": "tile"}, "`columns` and `profile` are of formats with rows; `format='zarr'` has pixels"),
        ({"profile": "majortom"}, "`columns` and `profile` are of formats with rows; `format='zarr'` has pixels"),
        ({"components": "0,1"}, "`components` become bands of `format='cog'`; other formats have whole vectors"),
    ],
)
def test_what_cells_do_not_have_is_refused(asked: dict[str, str], said: str, output: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run_export(str(output), str(tmp_path / "to"), Asked(format="zarr", cluster="tcp://127.0.0.1:1", **asked))


def test_a_level_without_patches_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "output", ["33TUL"], side=1, shape=(DIMS,))
    with pytest.raises(InputError, match="`format='zarr'` has a pixel a patch, and level 'mean' has no patches"):
        run_export(str(tmp_path / "output"), str(tmp_path / "to"), Asked(format="zarr"))


def test_a_folder_with_stores_of_others_is_refused(output: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / FIRST, tmp_path / "to" / FIRST)
    with pytest.raises(InputError, match=f"holds {FIRST} and is no export of daskembed: give a folder of its own"):
        run_export(str(output), str(tmp_path / "to"), Asked(cluster="tcp://127.0.0.1:1", format="zarr"))
    with pytest.raises(InputError, match=f"is an export itself: give the output that it was made of, {output}"):
        run_export(str(exported), str(tmp_path / "other"), Asked(format="zarr"))


def test_two_published_files_never_become_one() -> None:
    days = {
        "33TUL_20240101_20240301_v001.gpq": {"2024-03-01": 4},
        "33TUL_20240301_20240601_v001.gpq": {"2024-03-01": 2},
    }
    with pytest.raises(
        InputError, match=r"33TUL_20240301_20240301_v001\.zarr would be made of 33TUL_20240101_.* and of"
    ):
        one_a_tile(days, ".zarr")
