"""What `status` and `validate` say of exports: sound ones, damaged ones, and what is beside them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from distributed import Client

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError
from daskembed.exports import state
from daskembed.exports.settings import Sizes
from daskembed.exports.validate.check import files_of, validate
from daskembed.runs.export_options import Asked
from daskembed.runs.exports import run_export
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

TILES = ("33TUL", "33TVL", "01JBG")
DAYS = ("2024-06-01", "2024-07-01")
DIMS = 8
SMALL = Sizes(file=24 * 4 * DIMS, group=10 * 4 * DIMS, page=4 * DIMS)
"""Files of about 24 rows, in groups of 10."""
FIRST = "embeddings_00000.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output (`out`), its export (`copy`) and one of int8 (`small`); not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_published(folder / "out", TILES, side=3, shape=(DIMS,), days=DAYS)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        run_export(str(folder / "out"), str(folder / "copy"), Asked(cluster=client), SMALL)
        daskembed.calibrate(str(folder / "out"), cluster=client)
        run_export(str(folder / "out"), str(folder / "small"), Asked(cluster=client, dtype="int8"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of all that may be changed; the exports say that they are of its output."""
    shutil.copytree(made, tmp_path / "made")
    for name in ("copy", "small"):
        path = tmp_path / "made" / name / state.PLAN
        path.write_text(path.read_text().replace(str(made), str(tmp_path / "made")))
    # Of a file without a receipt the time counts, which a copy keeps; others are known by their SHA-256.
    return tmp_path / "made"


def export_of(path: Path) -> daskembed.ExportStatus:
    found = daskembed.status(str(path)).export
    assert found is not None
    return found


def test_status_says_what_an_export_is_made_of(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = export_of(made / "copy")
    assert (found.rows, len(found.tiles), found.counts) == (54, 3, {"done": len(found.files)})
    assert len(found.files) > 1
    assert found.size == sum(path.stat().st_size for path in (made / "copy").glob("*.parquet"))
    assert found.sound
    assert main(["status", str(made / "small")]) == 0
    told = capsys.readouterr().out
    assert "export       clay-v0 made-up, level mean, geoparquet, a row a chip, int8" in told
    assert f"tiles        3 published files of {made}/out" in told
    assert "source" not in told
    assert main(["status", str(made / "copy"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["export"]["settings"]["rows"] == "chip"
    assert document["export"]["files"][0]["name"] == FIRST
    assert document["counts"] == {"done": len(found.files)}


def _lose(copy: Path) -> None:
    (copy / FIRST).unlink()


def _cut(copy: Path) -> None:
    (copy / FIRST).write_bytes((copy / FIRST).read_bytes()[:-1])


def _spoil(copy: Path) -> None:
    (copy / state.receipt_of(FIRST)).write_text("{")


def _unwrite(copy: Path) -> None:
    (copy / state.receipt_of(FIRST)).unlink()


@pytest.mark.parametrize(
    ("damage", "status", "reason"),
    [
        (_lose, "missing", "it is gone; the same `daskembed export` makes it again"),
        (_cut, "changed", "its receipt says"),
        (_spoil, "damaged", "is not a receipt of daskembed"),
        (_unwrite, "unfinished", "not written yet: the same"),
    ],
)
def test_status_says_what_is_wrong_with_a_file(
    folder: Path, damage: Callable[[Path], None], status: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / "copy")
    found = export_of(folder / "copy")
    assert found.files[0].status == status
    assert reason in str(found.files[0].reason)
    assert [file.status for file in found.files[1:]] == ["done"] * (len(found.files) - 1)
    assert main(["status", str(folder / "copy")]) == 3
    assert status in capsys.readouterr().out


def test_status_says_whether_the_source_is_another_since(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    assert export_of(folder / "copy").since == daskembed.SourceStatus()
    write_published(out, ["33TUL"], side=2, shape=(DIMS,), days=DAYS)
    write_published(out, ["33TUM"], side=1, shape=(DIMS,), days=DAYS)
    (out / "01JBG_20240601_20240701_v001.gpq").unlink()
    since = export_of(folder / "copy").since
    assert since.changed == ("33TUL_20240601_20240701_v001.gpq",)
    assert since.gone == ("01JBG_20240601_20240701_v001.gpq",)
    assert since.new == ("33TUM_20240601_20240701_v001.gpq",)
    # What was exported is as whole as it was.
    assert main(["status", str(folder / "copy")]) == 0
    told = capsys.readouterr().out
    assert "changed since: 1 file another: 33TUL_20240601_20240701_v001.gpq; 1 file gone" in told
    assert "--overwrite makes the export anew" in told
    assert "has 1 file that the export has not: 33TUM" in told
    shutil.rmtree(out)
    assert main(["status", str(folder / "copy")]) == 0
    assert f"cannot be looked at: no folder {out}" in capsys.readouterr().out


def test_status_names_what_readers_would_take_for_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "copy" / FIRST, folder / "copy" / "again.parquet")
    assert export_of(folder / "copy").others == ("again.parquet",)
    assert main(["status", str(folder / "copy")]) == 3
    assert "beside it    again.parquet: no part of it" in capsys.readouterr().out
    findings = validate(str(folder / "copy" / "again.parquet"))
    assert "it is no part of the export beside it" in findings[0].message


def test_status_of_an_unfinished_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = Storage(str(folder / "copy"))
    plan = state.read_plan(target)
    assert plan is not None
    left_out = {plan.files[0].tiles[0]: "is damaged"}
    state.write_plan(target, replace(plan, finished=None, left_out=left_out))
    # Of before it was left out; and one that is done by now.
    state.write_failure(target, plan.files[0].tiles[0], "was damaged")
    state.write_failure(target, plan.files[0].name, "was not written")
    assert export_of(folder / "copy").failed == {}
    assert main(["status", str(folder / "copy")]) == 3
    told = capsys.readouterr().out
    assert "unfinished   the same `daskembed export` goes on" in told
    assert f"left out     {plan.files[0].tiles[0]}: is damaged" in told
    target.delete([state.PLAN])
    assert main(["status", str(folder / "copy")]) == 3
    assert "not planned yet" in capsys.readouterr().out
    assert main(["validate", str(folder / "copy")]) == 2
    assert "has no files yet" in capsys.readouterr().err


def test_a_damaged_plan_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "copy" / state.PLAN).write_text("[]")
    assert main(["status", str(folder / "copy")]) == 2
    assert "plan.json is not a plan of an export of daskembed" in capsys.readouterr().err
    assert "is not a plan of an export" in validate(str(folder / "copy" / FIRST))[0].message


def test_what_is_of_outputs_is_refused_of_exports(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(made / "copy"), "--tiles", "33TUL"]) == 2
    assert "is an export, whose files hold rows of many tiles: leave out --tiles" in capsys.readouterr().err
    with pytest.raises(InputError, match="leave out `version`"):
        daskembed.status(str(made / "copy"), version="001")
    assert main(["status", str(made / "copy"), "--quarantined"]) == 2
    assert f"has no chips: ask the output {made}/out" in capsys.readouterr().err


def test_a_sound_export_is_valid(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("copy", "small"):
        files = files_of(str(made / name))
        assert len(files) == len(list((made / name).glob("*.parquet")))
        assert [validate(file) for file in files] == [[] for _ in files]
    assert main(["validate", str(made / "copy"), str(made / "small" / FIRST), "--json"]) == 0
    assert all(file["ok"] for file in json.loads(capsys.readouterr().out)["files"])


def test_a_file_by_itself_is_valid_but_for_its_receipt(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "copy" / FIRST, tmp_path / "mine.parquet")
    receipt, model = validate(str(tmp_path / "mine.parquet"))
    assert (receipt.check, receipt.severity) == ("receipt", "note")
    assert str(model) == "note: nothing says of which checkpoint the embeddings are"


def test_an_export_with_stac_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stac = folder / "copy" / "_stac"
    stac.mkdir()
    (stac / "catalog.json").write_text(
        json.dumps({"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "x", "links": []})
    )
    assert files_of(str(folder / "copy"))[-1] == str(stac)
    found = daskembed.status(str(folder / "copy"))
    assert found.stac is not None
    assert set(found.stac.missing) == {file.name for file in export_of(folder / "copy").files}
    assert main(["status", str(folder / "copy")]) == 0
    assert "STAC         0 items; " in capsys.readouterr().out


def test_a_lost_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _lose(folder / "copy")
    assert main(["validate", str(folder / "copy")]) == 3
    told = capsys.readouterr().out
    assert f"{FIRST}: it is not there: the same `daskembed export` makes it" in told
    assert "embeddings_00001.parquet: ok" in told


Footer = dict[bytes, bytes]


def rewrite(path: Path, change: Callable[[pa.Table, Footer], pa.Table], **options: Any) -> None:
    """Write a file anew, in the way of the export but for what is changed."""
    file = pq.ParquetFile(path)
    table, footer = file.read(), dict(file.metadata.metadata)
    footer.pop(b"ARROW:schema", None)
    table = change(table, footer)
    kept = {"row_group_size": 10, "write_page_index": True, "compression": "zstd"} | options
    pq.write_table(table.replace_schema_metadata(footer), path, **kept)


def _set(name: str, make: Callable[[pa.Table], Any]) -> Callable[[pa.Table, Footer], pa.Table]:
    def change(table: pa.Table, footer: Footer) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, make(table))

    return change


def _say(key: str, change: Callable[[Any], Any]) -> Callable[[pa.Table, Footer], pa.Table]:
    def rewritten(table: pa.Table, footer: Footer) -> pa.Table:
        told = json.loads(footer[key.encode()])
        footer[key.encode()] = json.dumps(change(told) or told).encode()
        return table

    return rewritten


def _column(told: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = told["columns"]["geometry"]
    return found


def _boxes(by: float) -> Callable[[pa.Table], Any]:
    def make(table: pa.Table) -> pa.Array:
        box = table["bbox"].combine_chunks()
        edges = [box.field(edge).to_numpy() + step for edge, step in zip(EDGES, (-by, -by, by, by), strict=True)]
        return pa.StructArray.from_arrays([pa.array(edge) for edge in edges], EDGES)

    return make


EDGES = ["xmin", "ymin", "xmax", "ymax"]


def _vector(value: float) -> Callable[[pa.Table], Any]:
    def make(table: pa.Table) -> pa.Array:
        kind = table.schema.field("embeddings").type
        flat = table["embeddings"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
        flat[3] = value
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)

    return make


def _far(table: pa.Table) -> Any:
    values = table["geometry"].to_pylist()
    values[2] = shapely.to_wkb(shapely.box(150, -30, 150.1, -29.9))
    return pa.array(values, pa.binary())


@pytest.mark.parametrize(
    ("export", "change", "check", "what"),
    [
        ("copy", _say("geo", lambda geo: geo | {"version": "1.0.0"}), "geo", "version 1.0.0, expected 1.1.0"),
        ("copy", _say("geo", lambda geo: _column(geo).pop("covering") and geo), "covering", "covering is null"),
        ("copy", lambda table, _: table.drop_columns(["bbox"]), "covering", "column bbox is missing"),
        ("copy", _set("bbox", _boxes(-1e-4)), "covering", "the bbox does not hold the geometry"),
        ("copy", _set("bbox", _boxes(1e-4)), "covering", "the bbox is larger than the geometry"),
        ("copy", _set("geometry", _far), "order", "not in Hilbert order"),
        ("copy", _set("geometry", _far), "order", "not of the range that the plan gives"),
        ("copy", lambda table, _: table.take(np.arange(len(table))[::-1]), "order", "(and "),
        ("copy", lambda table, _: table.take([0, *range(len(table) - 1)]), "duplicates", "the row is there twice"),
        ("copy", _set("embeddings", _vector(np.nan)), "vectors", "NaN or infinity"),
        ("small", _set("embeddings", _vector(-128)), "vectors", "a value below -127"),
        (
            "copy",
            _set("embeddings", lambda table: table["embeddings"].cast(pa.list_(pa.float64(), DIMS))),
            "schema",
            "expected a fixed-size list of 8 float32",
        ),
        ("copy", lambda table, _: table.drop_columns(["date"]), "schema", "no column, or several, of date"),
        ("copy", lambda table, _: table.append_column("mine", table["date"]), "schema", "nobody asked for: mine"),
        (
            "copy",
            _set("date", lambda table: pa.nulls(len(table), pa.date32())),
            "dates",
            "no date",
        ),
        ("copy", _say("daskembed", lambda told: told | {"level": "cls"}), "provenance", "level cls, the export's plan"),
        ("copy", _say("daskembed", lambda told: told | {"encoder": None}), "provenance", "says encoder None"),
        ("copy", _say("daskembed", lambda told: told | {"shape": None}), "provenance", "lacks shape"),
        ("small", lambda table, footer: footer.pop(b"quantization") and table, "quantization", "nothing says what"),
        (
            "small",
            _say("quantization", lambda told: told | {"percentile": 99.0}),
            "quantization",
            "not those that it was written with",
        ),
        ("small", lambda table, footer: footer.pop(b"PANDAS_ATTRS") and table, "quantization", "PANDAS_ATTRS"),
        (
            "copy",
            lambda table, footer: footer.update({b"quantization": b"{}"}) or table,
            "quantization",
            "the values are float32",
        ),
        ("copy", lambda table, _: table.slice(1), "receipt", "rows, the receipt says"),
        ("copy", lambda table, _: table.slice(0, 0), "schema", "no rows"),
        ("copy", lambda table, _: table, "receipt", "bytes, the receipt says"),
    ],
)
def test_validate_finds(
    folder: Path, export: str, change: Callable[[pa.Table, Footer], pa.Table], check: str, what: str
) -> None:
    path = folder / export / FIRST
    rewrite(path, change)
    findings = validate(str(path))
    assert [one for one in findings if one.check == check and what in one.message and one.severity == "problem"]


def test_validate_finds_groups_that_are_too_large_and_pages_without_an_index(folder: Path) -> None:
    path = folder / "copy" / FIRST
    rewrite(path, lambda table, _: table, row_group_size=1000, write_page_index=False, write_statistics=False)
    told = "; ".join(f"{one.check}: {one.message}" for one in validate(str(path)))
    assert re.search(r"pages: row group 0 has \d+ bytes of vectors, expected about 320;", told)
    assert "pages: pages without an index" in told
    assert "covering: row groups do not say between which edges" in told


def test_validate_finds_a_changed_byte(folder: Path) -> None:
    path = folder / "copy" / FIRST
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert any(one.check == "receipt" and one.message.startswith("SHA-256") for one in validate(str(path)))


def test_validate_finds_dates_that_were_not_asked_for(folder: Path) -> None:
    target = Storage(str(folder / "copy"))
    plan = state.read_plan(target)
    assert plan is not None
    state.write_plan(target, replace(plan, identity=plan.identity | {"dates": ["2024-06-01", "2024-06-02"]}))
    table = pq.read_table(folder / "copy" / FIRST)
    outside = pc.sum(pc.greater(table["date"], pa.scalar(date(2024, 6, 2)))).as_py()
    assert outside > 1
    (finding,) = validate(str(folder / "copy" / FIRST))
    assert f"(and {outside - 1} more): the date is outside 2024-06-01 to 2024-06-02" in finding.message


def test_what_is_no_parquet_and_no_export_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" * 10)
    assert main(["validate", str(tmp_path / "x.parquet")]) == 3
    assert "cannot be read as Parquet" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "y.parquet")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "z.tif").write_bytes(b"II*\0")
    assert main(["validate", str(tmp_path / "z.tif")]) == 3
    assert "cannot be read as GeoTIFF" in capsys.readouterr().out


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports as GeoTIFFs (`cog`), as a table of Lance (`lance`), and of patches (`tom`, `more`); not to be changed."""
    folder = tmp_path_factory.mktemp("patches")
    write_published(folder / "out", TILES[:2], side=2, shape=(4, 4, 6), days=DAYS)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        run_export(str(folder / "out"), str(folder / "cog"), Asked(cluster=client, format="cog"))
        run_export(str(folder / "out"), str(folder / "tom"), Asked(cluster=client, rows="patch", profile="majortom"))
        more = Asked(cluster=client, rows="patch", unique="place", columns="tile,epsg", dtype="float16")
        run_export(str(folder / "out"), str(folder / "more"), more)
        run_export(str(folder / "out"), str(folder / "lance"), Asked(cluster=client, format="lance"))
    return folder


@pytest.mark.parametrize(
    ("name", "files", "what"),
    [
        ("cog", 4, ", cog, a pixel a patch, float32"),
        ("lance", 1, ", lance, a row a chip, float32"),
        ("tom", 1, ", geoparquet, a row a patch, float32, profile majortom"),
        ("more", 1, ", a row a patch, float16, one row a place and date, columns tile, epsg"),
    ],
)
def test_exports_of_all_kinds_are_valid(
    patches: Path, name: str, files: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(patches / name)]) == 0
    assert what in capsys.readouterr().out
    assert main(["validate", str(patches / name)]) == 0
    assert capsys.readouterr().out.count(": ok\n") == files


@pytest.mark.parametrize("column", ["grid_cell", "embedding"])
def test_columns_of_a_profile_that_are_missing_are_named(patches: Path, tmp_path: Path, column: str) -> None:
    shutil.copytree(patches / "tom", tmp_path / "tom")
    rewrite(tmp_path / "tom" / FIRST, lambda table, _: table.drop_columns([column]))
    told = [str(one) for one in validate(str(tmp_path / "tom" / FIRST))]
    assert f"no column, or several, of {column}" in told


def test_a_geotiff_that_was_changed_is_no_cog(patches: Path, tmp_path: Path) -> None:
    first, *_ = sorted((patches / "cog").glob("*.tif"))
    whole = tmp_path / first.name
    shutil.copy(first, whole)
    assert [one.severity for one in validate(str(whole))] == ["note", "note"]
    with (
        rasterio.open(first) as file,
        rasterio.open(tmp_path / "plain.tif", "w", **file.profile | {"blockxsize": 16, "blockysize": 16}) as plain,
    ):
        values = file.read()
        values[0, 0, 0] = np.nan
        plain.write(values)
    told = [str(one) for one in validate(str(tmp_path / "plain.tif"))]
    assert any("it is no Cloud Optimized GeoTIFF" in one for one in told)
    assert any("no `daskembed` in its tags" in one for one in told)
    assert any("some components are missing of 1 pixels of block 0, 0" in one for one in told)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    assert any("cannot be read" in str(one) for one in validate(str(whole)))


def test_a_damaged_table_is_named(patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "lance"
    shutil.copytree(patches / "lance", copy)
    (data,) = (copy / "embeddings.lance" / "data").iterdir()
    data.write_bytes(data.read_bytes()[:-9])
    assert export_of(copy).files[0].status == "changed"
    assert main(["validate", str(copy)]) == 3
    assert "bytes, the receipt says" in capsys.readouterr().out
    data.unlink()
    assert export_of(copy).files[0].status == "missing"
    assert main(["validate", str(copy)]) == 3
    told = capsys.readouterr().out
    assert "is not there" in told
    assert "cannot be read as a table of Lance" in told
