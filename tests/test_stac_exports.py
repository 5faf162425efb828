"""STAC of exports: what `daskembed stac` writes below one; see `published.py` for what is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import published
import pystac
import pytest
import shapely
from distributed import Client
from pystac.validation import validate_dict
from test_stac_out import catalog, exts, schema, tree

import daskembed
from daskembed.cli.main import main
from daskembed.exports import stac
from daskembed.exports.state import read_plan, receipt_of
from daskembed.quantization import Calibration
from daskembed.storage.stores import Storage
from daskembed.testing import write_published


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.fixture(scope="module")
def calibration(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    to = tmp_path_factory.mktemp("calibration") / "calibration.json"
    folder = tmp_path_factory.mktemp("output") / "patch"
    shutil.copytree(published.FOLDER / "patch", folder)
    made = daskembed.calibrate(str(folder), to=str(to), cluster=client).calibration
    assert made is not None
    return made


@pytest.fixture
def exported(client: Client, calibration: Calibration, tmp_path: Path) -> Path:
    daskembed.export(
        str(published.FOLDER / "patch"), to=str(tmp_path / "to"), dtype="int8", calibration=calibration, cluster=client
    )
    return tmp_path / "to"


def the_item(folder: Path) -> pystac.Item:
    (item,) = (item for child in catalog(folder).get_children() for item in child.get_items())
    return item


def test_an_item_says_how_int8_becomes_floats(exported: Path, calibration: Calibration) -> None:
    result = daskembed.write_stac(str(exported))
    assert (result.written, result.removed, result.left_out) == (1, 0, {})
    item = the_item(exported)
    assert item.properties["emb:quantization"] == {
        "method": "affine",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": [*calibration.scale],
        "offset": [*calibration.offset],
    }
    assert item.properties["start_datetime"] == "2019-04-01T00:00:00Z"
    assert item.properties["end_datetime"] == "2019-04-16T23:59:59Z"
    assert item.id == "embeddings_00000.parquet"
    assert Path(item.assets["embeddings"].get_absolute_href()).is_file()
    collection = item.get_collection()
    assert collection.extra_fields["data_type"] == "int8"
    assert {link.rel for link in collection.links} >= {"emb:model", "emb:source-data"}


def test_an_item_across_180_degrees_is_in_two_parts(exported: Path) -> None:
    receipt = exported / receipt_of("embeddings_00000.parquet")
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"bbox": [179.5, -20.0, -179.25, -19.0]}))
    daskembed.write_stac(str(exported))
    item = the_item(exported)
    assert item.bbox == [179.5, -20, -179.25, -19]
    assert item.geometry is not None
    parts = shapely.get_parts(shapely.geometry.shape(item.geometry))
    assert [part.bounds for part in parts] == [(179.5, -20, 180, -19), (-180, -20, -179.25, -19)]
    assert item.get_collection().extent.spatial.bboxes == [[179.5, -20, -179.25, -19]]
    validate_dict(item.to_dict() | {"stac_extensions": []})
    assert daskembed.validate(str(exported / "_stac")) == []


def test_rows_have_the_pixels_of_a_patch(exported: Path) -> None:
    daskembed.write_stac(str(exported))
    found = json.loads(next((exported / "_stac").glob("*/collection.json")).read_text())
    assert found["emb:chip_layout"]["chip_size"] == [32, 32]
    assert found["emb:dimensions"] == 256
    # So it is where a row is of a patch, and its shape tells no grid.
    item = the_item(exported).to_dict()
    kind = item["properties"]["daskembed:kind"] | {"shape": [256], "dims": ["embedding"]}
    plan = read_plan(Storage(str(exported)))
    assert plan is not None
    of_patches = replace(plan, identity=plan.identity | {"rows": "patch"})
    (collection,) = (one for one in stac._above(kind, {"a": item}, of_patches, None).values() if "extent" in one)
    assert collection["emb:chip_layout"]["chip_size"] == [32, 32]


def test_tiles_are_counted_that_have_rows(exported: Path) -> None:
    daskembed.write_stac(str(exported))
    item = the_item(exported)
    assert item.assets["embeddings"].title == "Embeddings of 1 tile"
    assert str(item.get_collection().description).endswith(": rows of 1 tile, in spatial order.")
    kind, plan = item.properties["daskembed:kind"], read_plan(Storage(str(exported)))
    assert plan is not None
    # Two files of one tile, one of another, and one that was left out as damaged.
    names = [
        f"{one}_v001.gpq" for one in ("33TUL_20240601_20240601", "33TVL_20240601_20240601", "33TUM_20240601_20240601")
    ]
    of_more = replace(plan, tiles=dict.fromkeys([*plan.tiles, *names], ""), left_out={names[-1]: "damaged"})
    (collection,) = (one for one in stac._above(kind, {"a": item.to_dict()}, of_more, None).values() if "extent" in one)
    assert collection["description"].endswith(": rows of 2 tiles, in spatial order.")


def test_what_is_written_is_valid_and_leads_somewhere(exported: Path, shared: Path) -> None:
    daskembed.write_stac(str(exported))
    root = catalog(exported)
    for one in (root, *root.get_children(), *root.get_items(recursive=True)):
        validate_dict(one.to_dict() | {"stac_extensions": []})
    assert daskembed.validate(str(exported / "_stac")) == []
    path = shared / "spec" / "embeddings-stac-v0.0.1.schema.json"
    looked = [one for one in map(json.loads, tree(exported / "_stac").values()) if "embeddings/v" in str(exts(one))]
    assert len(looked) == 2
    for one in looked:
        schema(path).validate(one)


def test_again_nothing_is_written_and_a_lost_file_is_told(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stac", str(exported)]) == 0
    before = tree(exported / "_stac")
    assert main(["stac", str(exported)]) == 0
    assert "0 items written, 0 removed" in capsys.readouterr().out
    assert tree(exported / "_stac") == before
    (exported / "embeddings_00000.parquet").unlink()
    assert main(["stac", str(exported)]) == 2
    assert "no file of the export" in capsys.readouterr().err


def test_an_export_that_is_not_finished_is_refused(exported: Path) -> None:
    path = exported / "_daskembed" / "export" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": None}))
    with pytest.raises(daskembed.InputError, match=r"is not finished: first run the same `daskembed export` again"):
        daskembed.write_stac(str(exported))


def test_files_that_do_not_say_their_model_are_refused(client: Client, tmp_path: Path) -> None:
    write_published(tmp_path / "out", ["33TUL"], side=2, shape=(4,))
    daskembed.export(str(tmp_path / "out"), to=str(tmp_path / "to"), cluster=client)
    with pytest.raises(daskembed.InputError, match="can have no item: it does not say its checkpoint"):
        daskembed.write_stac(str(tmp_path / "to"))


def test_it_goes_with_the_files_that_it_is_of(exported: Path, client: Client) -> None:
    daskembed.write_stac(str(exported))
    (mine := exported / "_stac" / "notes.json").write_text("{}")
    daskembed.export(str(published.FOLDER / "patch"), to=str(exported), dtype="float16", cluster=client, overwrite=True)
    assert [*tree(exported / "_stac")] == [mine.name]
    daskembed.write_stac(str(exported))
    assert the_item(exported).get_collection().extra_fields["data_type"] == "float16"
