"""What exports refuse before anything is read or written, and what they say: what was found, what to give instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from distributed import Client

import daskembed
from daskembed.cli.text import with_flags
from daskembed.errors import ConflictError, InputError
from daskembed.exports import state
from daskembed.exports.validate.check import validate
from daskembed.storage.stores import Storage
from daskembed.testing import write_published

FILE = "33TUL_20240601_20240601_v001.gpq"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of chips (`out`) and of patches (`grid`, with a calibration), and an export (`copy`)."""
    folder = tmp_path_factory.mktemp("folder")
    write_published(folder / "out", ["33TUL", "33TVL"], side=2, shape=(8,))
    write_published(folder / "grid", ["33TUL"], side=1, shape=(4, 4, 8))
    (folder / "empty").mkdir()
    (folder / "cubes" / "33TUL.zarr").mkdir(parents=True)
    (folder / "cubes" / "_daskembed" / "cubes").mkdir(parents=True)
    (folder / "cubes" / "_daskembed" / "cubes" / "33TUL.json").write_text("{}")
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        daskembed.export(str(folder / "out"), to=str(folder / "copy"), cluster=client)
        daskembed.calibrate(str(folder / "grid"), cluster=client)
    return folder


CALIBRATION = "{folder}/grid/_daskembed/calibration.json"


@pytest.mark.parametrize(
    ("output", "to", "options", "message"),
    [
        ("", "new", {}, "the output has no path or URL: give a folder, such as ./copy"),
        ("out", "", {}, "the copy has no path or URL: give a folder, such as ./copy"),
        ("none", "new", {}, "no folder {folder}/none"),
        ("empty", "new", {}, "no published files (*.gpq) in {folder}/empty: give the --output of a run"),
        ("copy", "new", {}, "{folder}/copy is an export itself: give the output that it was made of, {folder}/out"),
        ("cubes", "new", {}, "{folder}/cubes holds cubes of chips and no embeddings: give the --output of a run"),
        (f"out/{FILE}", "new", {}, "{folder}/out/" + FILE + " is a file: give the folder that it is in"),
        ("out", "out/", {}, "{folder}/out is the output itself: give another folder or URL as --to"),
        ("out", "out/copy", {}, "{folder}/out/copy is inside the output {folder}/out: who opens all of one would read"),
        ("out", ".", {}, "{folder} is above the output {folder}/out: who opens all of one would read both"),
        ("out", f"grid/{FILE}", {}, FILE + " is a file: give a folder of its own as --to"),
        ("out", "new", {"format": "parquet"}, "unknown --format 'parquet': choose one of geoparquet, cog, zarr, lance"),
        ("out", "new", {"dtype": "int4"}, "unknown --dtype 'int4': choose one of float32, float16, int8"),
        ("out", "new", {"tiles": "33TUM"}, "{folder}/out holds no published file of the tiles 33TUM: check --tiles"),
        ("out", "new", {"dates": "2023-01-01/2023-02-01"}, "no published file of --dates 2023-01-01/2023-02-01 in"),
        ("out", "new", {"dates": "yesterday"}, "--dates 'yesterday': expected START/END"),
        ("out", "new", {"region": "0,0,1,1"}, "no published file of the --region in {folder}/out: it holds 2 of"),
        ("out", "new", {"region": "0,0,1,1", "level": "mean"}, "of --level mean and the --region in"),
        ("out", "new", {"region": "1,2"}, "--region '1,2': expected a file that GeoPandas reads"),
        ("out", "new", {"encoder": "clay"}, "of --encoder clay in {folder}/out: it holds 2 of encoder clay-v0"),
        ("out", "new", {"level": "patch"}, "no published file of --level patch in"),
        ("out", "new", {"version": "2"}, "no published file of --version 002 in {folder}/out: choose 001"),
        ("out", "new", {"components": "0,1"}, "--components become bands of --format cog"),
        ("out", "new", {"format": "cog"}, "level 'mean' has no patches: choose published files of another --level"),
        ("grid", "new", {"format": "cog", "components": "9"}, "--components has 9, and vectors have components 0 to 7"),
        ("out", "new", {"dtype": "int8"}, "this output has none: make it with `daskembed calibrate {folder}/out`"),
        ("out", "new", {"calibration": CALIBRATION}, "a --calibration is for --dtype int8, and --dtype is float32"),
        (
            "out",
            "new",
            {"dtype": "int8", "calibration": CALIBRATION},
            "the --calibration is for level patch, and what is exported of {folder}/out has mean",
        ),
        ("grid", "copy", {}, "the export {folder}/copy was made with source {folder}/out, not {folder}/grid"),
        ("out", "grid", {}, "{folder}/grid holds " + FILE + " and is the output of a run: give a folder of its own"),
    ],
)
def test_it_is_refused_with_what_to_give_instead(
    folder: Path, output: str, to: str, options: dict[str, Any], message: str
) -> None:
    kept = {name: value.format(folder=folder) for name, value in options.items()}
    source, target = (f"{folder}/{name}" if name else "" for name in (output, to))
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        # No cluster is started: it is refused before.
        daskembed.export(source, to=target, cluster="local", **kept)
    assert message.format(folder=folder) in with_flags(str(caught.value))
    assert [path for path in sorted(folder.rglob("*")) if path not in before and path.is_file()] == []


def test_wanted_tiles_without_a_file_are_told(folder: Path, tmp_path: Path) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        result = daskembed.export(str(folder / "out"), to=str(tmp_path / "to"), tiles="33TUL,33TUM", cluster=client)
    assert result.notes == ("no published file of 1 tile of `tiles`: 33TUM",)
    assert (result.tiles, result.exit_status) == (1, 0)


def write_named(output: Path, tile: str, **made: str) -> None:
    """A published file that says of its model what is given."""
    (name,) = write_published(output, [tile], side=1, shape=(8,))
    table = pq.read_table(output / name)
    said = json.loads(table.schema.metadata[b"daskembed"]) | made
    pq.write_table(
        table.replace_schema_metadata(table.schema.metadata | {b"daskembed": json.dumps(said)}), output / name
    )
    (output / "_daskembed" / "receipts" / f"{tile}_v001.json").unlink()


def test_the_same_weights_by_other_names_go_together(tmp_path: Path) -> None:
    """For exports, calibrations and searches alike."""
    out, to = tmp_path / "out", tmp_path / "to"
    write_named(out, "33TUL", checkpoint="b.ckpt", sha256="ab" * 32)
    write_named(out, "33TVL", checkpoint="a.ckpt", sha256="ab" * 32)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        made = daskembed.calibrate(str(out), cluster=client)
        assert made.calibration is not None
        assert made.calibration.tiles == 2
        result = daskembed.export(str(out), to=str(to), dtype="int8", cluster=client)
        assert (result.exit_status, result.rows) == (0, 2)
        assert validate(str(to / "embeddings_00000.parquet")) == []
        assert daskembed.write_stac(str(to)).written == 1
        # Named anew, they are still the same.
        write_named(out, "33TVL", checkpoint="c.ckpt", sha256="ab" * 32)
        plan = state.read_plan(Storage(str(to)))
        assert plan is not None
        assert plan.identity["checkpoint"] == "a.ckpt"
        with pytest.raises(ConflictError, match=r"is of other published files \(1 changed\)"):
            daskembed.export(str(out), to=str(to), dtype="int8", cluster=client)
        write_named(out, "33TVL", checkpoint="a.ckpt", sha256="cd" * 32)
        for act in (
            lambda: daskembed.export(str(out), to=str(to), cluster=client),
            lambda: daskembed.calibrate(str(out), cluster=client),
            lambda: daskembed.search(str(out), like="12.45,46"),
            lambda: daskembed.preview(str(out)),
        ):
            with pytest.raises(InputError) as caught:
                act()
            assert str(caught.value) == (
                f"{out} mixes embeddings that do not go together: 1 of sha256 {'ab' * 8}; 1 of sha256 {'cd' * 8}; put "
                "them into folders of their own"
            )
        # Without a SHA-256 a name is all that tells weights apart.
        write_named(out, "33TUL", checkpoint="untrained:tiny:0")
        write_named(out, "33TVL", checkpoint="untrained:tiny:1")
        with pytest.raises(InputError, match="1 of checkpoint untrained:tiny:0; 1 of checkpoint untrained:tiny:1"):
            daskembed.calibrate(str(out), cluster=client)


def test_dates_between_those_of_a_file_are_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "out", ["33TUL"], side=1, shape=(8,), days=("2024-06-01", "2024-07-01"))
    with (
        Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client,
        pytest.raises(InputError, match="is left: check `dates`, `region` and `tiles`"),
    ):
        daskembed.export(str(tmp_path / "out"), to=str(tmp_path / "to"), dates="2024-06-10/2024-06-20", cluster=client)
    # Nothing is begun that the same command would go on with.
    assert not state.is_export(Storage(str(tmp_path / "to")))
