"""STAC of published files: what `daskembed stac` writes, keeps and removes; see `published.py` for the folders."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import published
import pystac
import pytest
import referencing
import shapely
from distributed import Client, LocalCluster
from pystac.validation import validate_dict

import daskembed
from daskembed.cli.main import main
from daskembed.energy import Energy
from daskembed.output import stac_documents as documents
from daskembed.output.protocol import Place
from daskembed.output.stac_model import model_item
from daskembed.output.state import read_receipt, receipt_path
from daskembed.runs import stages
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.tiles import resolve
from daskembed.storage.stores import Storage

GPQ, ZARR = (f"33TUL_20190401_20190416_v001.{suffix}" for suffix in ("gpq", "zarr"))
LEVELS = ("mean", "patch", "windows")
COLLECTION = {"type", "dimensions", "chip_layout"}
ITEM = {"runtime_parameters", "quantization", "energy"}
"""Names of the extension that are written, without their ``emb:``."""
USED = Energy(7.2e6, 14400.0, "gpu", "NVIDIA H100")


@pytest.fixture
def out(tmp_path):
    """A published folder of that name, which a test may change."""
    return lambda name: Path(shutil.copytree(published.FOLDER / name, tmp_path / name))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}


def catalog(folder: Path) -> pystac.Catalog:
    return pystac.Catalog.from_file(str(folder / "_stac" / "catalog.json"))


def items(folder: Path) -> dict[str, pystac.Item]:
    return {item.id: item for child in catalog(folder).get_children() for item in child.get_items()}


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def receipt_file(folder: Path) -> Path:
    return folder / receipt_path("33TUL", "001")


@pytest.mark.parametrize("level", LEVELS)
def test_pystac_finds_all_and_finds_it_valid(out, level):
    daskembed.write_stac(str(folder := out(level)))
    root = catalog(folder)
    objects = [root, *root.get_children(), *root.get_items(recursive=True)]
    assert len(objects) == 1 + 2 * len(root.get_child_links()) + 1  # each has an item, and there is one model
    for one in objects:
        validate_dict(one.to_dict() | {"stac_extensions": []})
        for link in one.links:
            if link.rel not in ("self", "emb:source-data"):
                assert Path(link.get_absolute_href()).is_file()
    for item in items(folder).values():
        assert Path(item.assets["embeddings"].get_absolute_href()).exists()
        assert item.get_collection().get_item(item.id) is item
        assert [link.rel for link in item.links].count("emb:model") == 1


def schema(path: Path) -> jsonschema.Draft7Validator:
    """That of the extension; of what it refers to, only what a link is (the core's own is pystac's to judge)."""
    link = {"definitions": {"link": {"type": "object", "required": ["rel", "href"]}}}
    others = {f"https://schemas.stacspec.org/v1.0.0/{kind}-spec/json-schema/{kind}.json": link for kind in KINDS}
    found = [(url, referencing.Resource(some, referencing.jsonschema.DRAFT7)) for url, some in others.items()]
    registry = referencing.Registry().with_resources(found)
    return jsonschema.Draft7Validator(json.loads(path.read_text()), registry=registry)


KINDS = ("item", "collection")


@pytest.mark.parametrize("level", LEVELS)
def test_the_extensions_own_schema(out, shared, level):
    change(receipt_file(folder := out(level)), energy=vars(USED))
    daskembed.write_stac(str(folder))
    path = shared / "spec" / "embeddings-stac-v0.0.1.schema.json"
    if not path.is_file():
        pytest.skip(f"needs the schema of the extension, and there is none at {path}")
    looked = [one for one in map(json.loads, tree(folder / "_stac").values()) if documents.EMBEDDINGS in exts(one)]
    assert len(looked) >= 2
    for one in looked:
        schema(path).validate(one)
    with pytest.raises(jsonschema.ValidationError):
        schema(path).validate({**next(one for one in looked if one["type"] == "Collection"), "emb:chips": 1})
    item = next(one for one in looked if one["type"] == "Feature")
    item["properties"]["emb:energy"]["joules"] = 1
    with pytest.raises(jsonschema.ValidationError):
        schema(path).validate(item)


def exts(document: dict) -> list[str]:
    return document.get("stac_extensions", [])


@pytest.mark.parametrize("level", LEVELS)
def test_versions_and_names_are_those_of_the_extension(out, level):
    daskembed.write_stac(str(folder := out(level)))
    for path, data in tree(folder / "_stac").items():
        found = json.loads(data)
        assert found["stac_version"] == "1.0.0"
        of_item = path.endswith((".gpq.json", ".zarr.json"))
        where = found["properties"] if of_item else found
        allowed = ITEM if of_item else COLLECTION if path.endswith("collection.json") else set()
        named = set(re.findall(r'"emb:([a-z_]+)":', data.decode()))
        assert {name[4:] for name in where if name.startswith("emb:")} == named <= allowed


def test_what_an_item_says(out):
    daskembed.write_stac(str(folder := out("mean")))
    item = items(folder)[GPQ]
    data = (folder / GPQ).read_bytes()
    asset = item.assets["embeddings"].to_dict()
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    assert (asset["file:size"], asset["type"]) == (len(data), "application/vnd.apache.parquet")
    told = item.properties
    period = (told["datetime"], told["start_datetime"], told["end_datetime"])
    assert period == (None, "2019-04-01T00:00:00Z", "2019-04-16T23:59:59Z")
    assert told["grid:code"] == "MGRS-33TUL"
    rows = daskembed.open_embeddings(str(folder)).compute()
    shape = shapely.geometry.shape(item.geometry)
    assert shape.symmetric_difference(rows.geometry.union_all()).area < 1e-7
    np.testing.assert_allclose(item.bbox, rows.total_bounds, atol=1e-6)
    assert told["processing:datetime"] == json.loads(receipt_file(folder).read_text())["finished"]


def test_an_item_says_what_was_used_where_that_was_measured(out):
    daskembed.write_stac(str(folder := out("patch")))
    assert all("emb:energy" not in one.properties for one in items(folder).values())
    receipt = read_receipt(Storage(str(folder)), receipt_path("33TUL", "001"))
    # Items that were written before there was such a field stay as they are.
    told = documents.made_of(receipt, receipt.files[0], None)
    assert told == "f504c117d0e4edffc95d3a46ecac7269a2b126d2edc710d4c1e9eeb47564f5b6"
    change(receipt_file(folder), energy=vars(USED))
    assert daskembed.write_stac(str(folder)).written == 2
    for one in items(folder).values():
        assert one.properties["emb:energy"] == {
            "device_type": "gpu",
            "energy_kwh": 2.0,
            "inference_duration_s": 14400.0,
            "avg_power_w": 500.0,
            "name": "NVIDIA H100",
        }
    assert daskembed.write_stac(str(folder)).written == 0
    assert daskembed.validate(str(folder / "_stac")) == []


def test_a_store_has_its_grid_and_the_digest_of_its_receipt(out):
    daskembed.write_stac(str(folder := out("patch")))
    item = items(folder)[ZARR]
    receipt = read_receipt(Storage(str(folder)), receipt_path("33TUL", "001"))
    (file,) = (file for file in receipt.files if file.name == ZARR)
    asset = item.assets["embeddings"].to_dict()
    assert (asset["file:size"], asset["daskembed:sha256"]) == (file.size, file.sha256)
    assert "file:checksum" not in asset
    root = json.loads((folder / ZARR / "zarr.json").read_text())["attributes"]
    assert item.properties["proj:code"] == root["proj:code"]
    assert item.properties["proj:bbox"] == root["spatial:bbox"]
    # Two chips, one beyond the other's corner: the store's grid is all four.
    assert shapely.geometry.shape(item.geometry).area == pytest.approx(4 * 0.0664 * 0.0459, rel=0.02)


def test_what_a_collection_says(out):
    daskembed.write_stac(str(folder := out("windows")))
    found = {one.id.split("-")[3]: one.to_dict() for one in catalog(folder).get_children()}
    assert {*found} == {"geoparquet", "zarr"}
    for one in found.values():
        assert (one["emb:type"], one["emb:dimensions"], one["data_type"]) == ("chip", 192, "float16")
        # 32 patches along a window of 256 pixels.
        assert one["emb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [8, 8], "stride": [8, 8]}
        sources = [link["href"] for link in one["links"] if link["rel"] == "emb:source-data"]
        assert sources == ["s3://made-up/chips"]
        (interval,) = one["extent"]["temporal"]["interval"]
        assert interval == ["2019-04-01T00:00:00Z", "2019-04-01T23:59:59Z"]


def test_the_model_says_bands_scaling_and_output(out):
    daskembed.write_stac(str(folder := out("patch")))
    (model,) = catalog(folder).get_items()
    told = json.loads(Path(model.get_self_href()).read_text())
    properties, (asset,) = told["properties"], told["assets"].values()
    (given,), (made,) = properties["mlm:input"], properties["mlm:output"]
    assert given["bands"] == [band["name"] for band in asset["eo:bands"]]
    assert (given["bands"][0], given["bands"][-1]) == ("B02", "dem")
    assert given["value_scaling"][0] == {"type": "z-score", "mean": 1369.03, "stddev": 2026.96}
    assert given["input"]["shape"] == [-1, 13, 512, 512]
    assert given["input"]["dim_order"] == ["batch", "bands", "height", "width"]
    assert made["result"]["shape"] == [-1, 16, 16, 256]
    assert made["result"]["dim_order"] == ["batch", "row", "col", "embedding"]
    assert (asset["roles"], asset["mlm:artifact_type"]) == (["mlm:model"], "torch.save")
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])


KIND = {
    "encoder": "my.encoder",
    "level": "cls",
    "checkpoint": "w.safetensors",
    "sensor": "mine 0123456789ab",
    "dims": ["embedding"],
    "shape": [8],
    "dtype": "float32",
    "format": "geoparquet",
    "version": "001",
}


def test_bands_of_a_sensor_of_ones_own_are_not_guessed():
    told = model_item(KIND, None)
    (given,) = told["properties"]["mlm:input"]
    assert given["bands"] == []
    assert "value_scaling" not in given
    assert "bands" not in given["input"]["dim_order"]
    asset = told["assets"]["model"]
    assert (asset["href"], asset["mlm:artifact_type"]) == (
        "urn:daskembed:checkpoint:w.safetensors",
        "safetensors.torch.save_file",
    )


def test_decibels_and_a_checkpoint_of_the_hub():
    told = model_item(KIND | {"sensor": "sentinel-1-rtc", "checkpoint": "hf://a/b@main/w.ckpt", "sha256": "ab"}, None)
    (given,) = told["properties"]["mlm:input"]
    assert given["pre_processing_function"]["expression"] == "10 * numpy.log10(image)"
    asset = told["assets"]["model"]
    assert (asset["href"], asset["file:checksum"]) == ("https://huggingface.co/a/b/resolve/main/w.ckpt", "1220ab")


MADE = {"encoder": "clay-v0", "level": "patch", "checkpoint": "c", "shape": [16, 16, 8]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shape": [16, 0]}, "does not say the shape"),
        ({"shape": "16"}, "does not say the shape"),
        ({"level": 1, "encoder": None}, "does not say its encoder and level"),
        ({"dims": ["row"]}, "does not say what the dimensions"),
        ({"dims": [1, 2, 3]}, "does not say what the dimensions"),
        ({"shape": [4, 8]}, "does not say what the dimensions"),
    ],
)
def test_a_file_that_does_not_say_what_it_must(changed, said):
    with pytest.raises(ValueError, match=said):
        documents.kind_of(MADE | changed, GPQ, "001")


def test_early_files_do_not_name_their_dimensions():
    assert documents.kind_of(MADE, GPQ, "001")["dims"] == ["row", "col", "embedding"]
    assert documents.kind_of(MADE | {"shape": [8]}, ZARR, "001")["dims"] == ["embedding"]


def test_across_180_degrees(out):
    receipt = read_receipt(Storage(str(out("mean"))), receipt_path("33TUL", "001"))
    place = Place(shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)]), {})
    item = documents.item(receipt, receipt.files[0], KIND, place, ("2019-04-01", "2019-04-01"), None)
    assert item["bbox"] == [179.0, 0.0, -179.0, 1.0]
    assert item["geometry"]["type"] == "MultiPolygon"
    made = documents.collection(KIND, [item], ["s3://a"], None)
    assert made["extent"]["spatial"]["bbox"] == [[179.0, 0.0, -179.0, 1.0]]


def test_the_same_bytes_again_and_elsewhere(out, tmp_path):
    folder = out("patch")
    daskembed.write_stac(str(folder))
    first = tree(folder / "_stac")
    assert not any(str(tmp_path) in data.decode() for data in first.values())
    when = {path: path.stat().st_mtime_ns for path in (folder / "_stac").rglob("*.json")}
    again = daskembed.write_stac(str(folder))
    assert (again.written, again.removed) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (folder / "_stac").rglob("*.json")} == when
    shutil.copytree(folder, moved := tmp_path / "moved")
    shutil.rmtree(folder)
    assert {*items(moved)} == {GPQ, ZARR}
    assert all(Path(item.assets["embeddings"].get_absolute_href()).exists() for item in items(moved).values())
    shutil.rmtree(moved / "_stac")
    daskembed.write_stac(str(moved))
    assert tree(moved / "_stac") == first


def test_only_what_changed_is_written_and_what_is_gone_is_removed(out):
    folder = out("patch")
    before = daskembed.write_stac(str(folder))
    (folder / "_stac" / "README.txt").write_text("somebody's own")
    second = folder / receipt_path("33TUL", "002")
    second.write_text(receipt_file(folder).read_text())
    shutil.copy(folder / GPQ, folder / GPQ.replace("v001", "v002"))
    (file,) = (file for file in json.loads(second.read_text())["files"] if file["name"] == GPQ)
    change(second, version="002", files=[file | {"name": GPQ.replace("v001", "v002")}])
    more = daskembed.write_stac(str(folder))
    assert (more.written, more.removed, len(more.collections)) == (1, 0, 3)
    change(second, notes=["made again"])
    assert daskembed.write_stac(str(folder)).written == 1
    second.unlink()
    (folder / GPQ.replace("v001", "v002")).unlink()
    less = daskembed.write_stac(str(folder))
    assert (less.written, less.removed, less.collections) == (0, 1, before.collections)
    assert {*items(folder)} == {GPQ, ZARR}
    assert not [path for path in tree(folder / "_stac") if "v002" in path]
    assert (folder / "_stac" / "README.txt").exists()


@pytest.mark.parametrize("damage", ["[]", '{"properties": []}', "no JSON", None])
def test_an_item_that_is_damaged_is_written_anew(out, damage):
    folder = out("mean")
    daskembed.write_stac(str(folder))
    before = tree(folder / "_stac")
    (path,) = (folder / "_stac").rglob("*.gpq.json")
    found = json.loads(path.read_text())
    del found["bbox"]
    path.write_text(damage or json.dumps(found))
    assert daskembed.write_stac(str(folder)).written == 1
    assert tree(folder / "_stac") == before


def test_a_folder_of_mixed_levels_has_a_collection_each(out):
    folder, other = out("patch"), out("mean")
    name = GPQ.replace("v001", "v002")
    shutil.copy(other / GPQ, folder / name)
    told = json.loads(receipt_file(other).read_text())
    told |= {"version": "002", "files": [told["files"][0] | {"name": name}]}
    (folder / receipt_path("33TUL", "002")).write_text(json.dumps(told))
    made = daskembed.write_stac(str(folder))
    assert sorted(name.rpartition("-")[0] for name in made.collections) == [
        "clay-v0-mean-geoparquet-v002",
        "clay-v0-patch-geoparquet-v001",
        "clay-v0-patch-zarr-v001",
    ]
    assert len(list(catalog(folder).get_items())) == 2  # models, which give something else


def test_absolute_links(out):
    folder = out("mean")
    daskembed.write_stac(str(folder))
    made = daskembed.write_stac(str(folder), root="https://example.org/embeddings/")
    assert made.written == 1
    for data in tree(folder / "_stac").values():
        found = json.loads(data)
        links = {link["rel"]: link["href"] for link in found["links"]}
        assert all(href.startswith(("https://example.org/embeddings/_stac/", "s3://")) for href in links.values())
        assert links["self"].removeprefix("https://example.org/embeddings/_stac/") in tree(folder / "_stac")
    (item,) = (json.loads(data) for path, data in tree(folder / "_stac").items() if path.endswith(".gpq.json"))
    assert item["assets"]["embeddings"]["href"] == f"https://example.org/embeddings/{GPQ}"
    assert daskembed.validate(str(folder / "_stac")) == []


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("embeddings", "`root` 'embeddings': expected the URL under which others find the output"),
        ("https://", "expected the URL"),
        ("https://me:secret@example.org/a", "everybody would read the user, password or signature"),
        ("https://example.org/a?X-Amz-Signature=secret", "everybody would read the user, password or signature"),
    ],
)
def test_a_root_that_is_none(out, root, said):
    folder = out("mean")
    with pytest.raises(daskembed.InputError, match=re.escape(said)) as refused:
        daskembed.write_stac(str(folder), root)
    assert "secret" not in str(refused.value)
    assert not (folder / "_stac").exists()


def test_scenes_of_a_catalogue_are_linked(out):
    folder = out("mean")
    url = "https://example.org/v1/collections/sentinel-2/items/S2A_33TUL"
    scenes = [{"day": "2019-04-01", "items": [{"id": "S2A_33TUL", "url": url}, {"id": "S2A_33TUL", "url": url}]}]
    change(receipt_file(folder), scenes=scenes)
    daskembed.write_stac(str(folder))
    links = [link for link in items(folder)[GPQ].links if link.rel == "emb:source-data"]
    assert [(link.href, link.title) for link in links] == [(url, "S2A_33TUL")]
    (made,) = catalog(folder).get_children()
    source = [link.href for link in made.links if link.rel == "emb:source-data"]
    assert source == ["https://example.org/v1/collections/sentinel-2"]


@pytest.mark.parametrize(
    ("place", "link"),
    [
        ("/data/my chips", "file:///data/my%20chips"),
        ("stac+https://example.org/v1", "https://example.org/v1"),
        ("earth-search", "urn:daskembed:source:earth-search"),
    ],
)
def test_a_source_is_something_that_a_link_can_lead_to(place, link):
    receipt = SimpleNamespace(scenes=[], settings={"source": place})
    assert documents.sources_of(receipt) == [link]


def test_damaged_files_are_named_and_left_out(out, capsys):
    folder = out("patch")
    daskembed.write_stac(str(folder))
    data = (folder / GPQ).read_bytes()
    (folder / GPQ).write_bytes(data[:-1])
    made = daskembed.write_stac(str(folder))
    assert made.left_out == {
        GPQ: f"it has {len(data) - 1} bytes, its receipt says {len(data)}; the next run makes it again"
    }
    assert (made.removed, {*items(folder)}) == (1, {ZARR})
    (folder / GPQ).write_bytes(b"x" * len(data))
    assert "damaged" in daskembed.write_stac(str(folder)).left_out[GPQ]
    (folder / GPQ).unlink()
    shutil.copytree(folder / ZARR, folder / ZARR.replace("v001", "v003"))
    assert main(["stac", str(folder)]) == 3
    told = capsys.readouterr().out
    assert f"left out: {GPQ}: it is gone" in told
    assert f"left out: {ZARR.replace('v001', 'v003')}: it has no receipt" in told
    receipt_file(folder).write_text("{}")
    assert "is not a receipt" in daskembed.write_stac(str(folder)).left_out[receipt_path("33TUL", "001")]
    assert items(folder) == {}


def test_what_is_no_output(tmp_path, capsys):
    for folder, message in ((tmp_path, "is no output of daskembed"), (tmp_path / "none", "^no folder ")):
        with pytest.raises(daskembed.InputError, match=message):
            daskembed.write_stac(str(folder))
    assert main(["stac", str(tmp_path), "--root", "nowhere"]) == 2
    assert "--root 'nowhere'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_status_knows_it(out, capsys):
    folder = out("patch")
    assert daskembed.status(str(folder)).stac is None
    daskembed.write_stac(str(folder))
    assert daskembed.status(str(folder)).stac.items == 2
    assert main(["status", str(folder)]) == 0
    assert "STAC         2 items\n" in capsys.readouterr().out
    (folder / "_stac" / documents.item_path(_kind(folder), GPQ).split("/")[1] / f"{GPQ}.json").unlink()
    found = daskembed.status(str(folder))
    assert (found.stac.items, found.stac.missing, found.sound) == (1, (GPQ,), True)
    assert main(["status", str(folder)]) == 0
    assert "1 file without an item, such as" in capsys.readouterr().out
    receipt_file(folder).unlink()
    assert daskembed.status(str(folder)).stac.stale == (ZARR,)
    with pytest.raises(daskembed.InputError, match=f"it is the STAC of {re.escape(str(folder))}: give that"):
        daskembed.status(str(folder / "_stac"))


def _kind(folder: Path) -> dict:
    return items(folder)[GPQ].properties["daskembed:kind"]


def test_validate_knows_it(out, capsys):
    folder = out("patch")
    daskembed.write_stac(str(folder))
    assert main(["validate", str(folder)]) == 0
    assert f"{folder}/_stac: ok" in capsys.readouterr().out
    path = folder / documents.item_path(_kind(folder), GPQ)
    found = json.loads(path.read_text())
    found["assets"]["embeddings"]["file:checksum"] = "1220" + "0" * 64
    found["links"][0]["href"] = "../nowhere.json"
    path.write_text(json.dumps(found))
    told = [str(one) for one in daskembed.validate(str(folder / "_stac"))]
    assert len(told) == 2
    assert "its link root leads to _stac/nowhere.json, which is not there" in told[0]
    assert f"SHA-256 {'0' * 64}, the receipt says" in told[1]
    path.write_text("[]")
    assert "is no JSON object" in str(daskembed.validate(str(folder / "_stac"))[0])
    path.unlink()
    told = [str(one) for one in daskembed.validate(str(folder / "_stac"))]
    assert "its link item leads to" in told[0]
    assert f"{GPQ} has no item" in told[1]
    (folder / "_stac" / "catalog.json").unlink()
    assert "a run that writes it has not ended" in str(daskembed.validate(str(folder / "_stac"))[0])
    shutil.rmtree(folder / "_stac")
    with pytest.raises(daskembed.InputError, match=r"`daskembed stac .*` writes it"):
        daskembed.validate(str(folder / "_stac"))


def test_frames_are_opened_beside_it(out):
    folder = out("patch")
    daskembed.write_stac(str(folder))
    assert len(daskembed.open_embeddings(str(folder))) == 2
    assert all(path.name[0] in "_." or path.suffix in (".gpq", ".zarr") for path in folder.iterdir())


def test_on_a_store(out, s3):
    folder, store = out("patch"), Storage(f"{s3}/out")
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())
    made = daskembed.write_stac(store.url)
    assert (made.written, made.left_out) == (2, {})
    daskembed.write_stac(str(folder))
    mine = {f"_stac/{path}": data for path, data in tree(folder / "_stac").items()}
    assert {entry.path: store.get(entry.path) for entry in store.entries("_stac")} == mine
    assert daskembed.write_stac(store.url).written == 0
    assert daskembed.validate(f"{store.url}/_stac") == []
    assert daskembed.status(store.url).stac.items == 2


def test_an_item_is_written_as_its_file_is_published(tmp_path):
    case = published.CASES["patch"]
    made = replace(published.settings(case, str(tmp_path)), stac=True)
    assert made.identity == published.settings(case, str(tmp_path)).identity
    assert made.provenance == published.settings(case, str(tmp_path)).provenance
    path = "_daskembed/parts/33TUL_v001/0123456789abcdef/00000.parquet"
    published.write(case, made.output, path)
    indexed = stages.Indexed(listing="as listed", quarantined={}, parts=(path,))
    stages.publish(made, "33TUL", indexed, "2026-11-25T12:00:00.000+00:00", [])
    found = [name for name in tree(tmp_path / "_stac") if name.endswith((".gpq.json", ".zarr.json"))]
    assert len(found) == 2
    # What it wrote is what the command would.
    assert daskembed.write_stac(str(tmp_path)).written == 0
    assert {*items(tmp_path)} == {GPQ, ZARR}


def test_items_are_published_with_the_links_that_the_catalogue_has(out, chips):
    def root_of(**options):
        asked = {"source": str(chips), "output": str(folder), "checkpoint": "untrained:least", **options}
        return resolve(Options.of(asked, RunOptions))("fp32").stac_root

    folder = out("mean")
    daskembed.write_stac(str(folder), "https://example.org/e")
    assert (root_of(stac=True), root_of()) == ("https://example.org/e", None)
    change(folder / documents.CATALOG, links=[{"rel": "self", "href": "nowhere"}])
    assert root_of(stac=True) is None
    daskembed.write_stac(str(folder))
    assert root_of(stac=True) is None


def test_a_run_writes_it_and_keeps_the_root(chips, tmp_path):
    def run(**options):
        return daskembed.run(
            *("33TUL",),
            source=str(chips),
            output=str(tmp_path),
            checkpoint="untrained:least",
            precision="fp32",
            **options,
        )

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        assert run(cluster=client).exit_status == 0
        assert not (tmp_path / "_stac").exists()
        run(cluster=client, stac=True)  # it is finished: it has an item all the same
        assert len(items(tmp_path)) == 1
        daskembed.write_stac(str(tmp_path), "https://example.org/e")
        again = run(cluster=client, stac=True, level="patch", version="2")
    assert again.exit_status == 0
    found = [path for path in tree(tmp_path / "_stac") if path.endswith(".gpq.json")]
    assert len(found) == 2
    for path in found:
        told = json.loads((tmp_path / "_stac" / path).read_text())
        assert told["assets"]["embeddings"]["href"].startswith("https://example.org/e/33TUL_")
    assert daskembed.validate(str(tmp_path / "_stac")) == []
