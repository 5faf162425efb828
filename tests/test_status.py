"""What `daskembed status` says of outputs: of a real run's, and of what deaths, failures and hands make of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from rich.console import Console

import daskembed
from daskembed.cli.main import main
from daskembed.cli.status import show
from daskembed.errors import InputError
from daskembed.output.protocol import Published
from daskembed.output.state import TileRecord, read_receipt, receipt_path, record_path, write_receipt, write_record
from daskembed.output.status import status
from daskembed.output.tile_status import MOST_LISTED, TileStatus
from daskembed.storage.stores import Storage
from daskembed.testing import write_chips

FILE = "33TUL_20190416_20190416_v001.gpq"
RECORD = TileRecord(
    tile="33TUL",
    version="001",
    status="unfinished",
    parts=3,
    parts_folder="_daskembed/parts/33TUL_v001/abc",
    quarantined={"/chips/1.tif": "no date tag"},
    reason=None,
    time="2100-01-01T00:00:00.000+00:00",
)


@pytest.fixture(scope="module")
def made(chips, tmp_path_factory) -> Path:
    """The output of a real run: 33TUL with a chip that is no TIFF, 22JGS of which no chip is good."""
    folder = tmp_path_factory.mktemp("status")
    shutil.copytree(chips, folder / "chips")
    write_chips(folder / "chips", tile="22JGS", rows=1, cols=1)
    for damaged in ("33TUL/2019-04-16/claytile_33TUL_20190416_v02_0002.tif", "22JGS/2019-04-16/*.tif"):
        for path in (folder / "chips").glob(damaged):
            path.write_bytes(b"[hello], world")
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster, Client(cluster) as client:
        daskembed.run(
            "33TUL,22JGS",
            source=str(folder / "chips"),
            output=str(folder / "out"),
            checkpoint="untrained:least",
            precision="fp32",
            cluster=client,
        )
    return folder / "out"


@pytest.fixture
def output(made, tmp_path) -> Storage:
    """A copy of it that a test may change."""
    return Storage(str(shutil.copytree(made, tmp_path / "out")))


def tile_of(output: Storage, tile: str = "33TUL", version: str = "001") -> TileStatus:
    (found,) = (one for one in status(output.url).tiles if (one.tile, one.version) == (tile, version))
    return found


def change_receipt(output: Storage, **changes) -> None:
    write_receipt(output, replace(read_receipt(output, receipt_path("33TUL", "001")), **changes))


# States


def test_a_real_output(output):
    found = status(output.url)
    assert found.output == output.url
    assert [(tile.tile, tile.status, tile.chips, tile.files) for tile in found.tiles] == [
        ("22JGS", "done", 0, []),
        ("33TUL", "done", 3, [FILE]),
    ]
    assert found.counts == {"done": 2}
    assert [(tile, version, Path(url).name) for tile, version, url, _ in found.quarantined] == [
        ("22JGS", "001", "claytile_22JGS_20190416_v02_0001.tif"),
        ("33TUL", "001", "claytile_33TUL_20190416_v02_0002.tif"),
    ]
    assert all(reason.startswith("is not a TIFF: it starts with b'[hel'") for *_, reason in found.quarantined)
    assert all(tile.reason is None and tile.parts is None for tile in found.tiles)


def test_a_tile_in_work(output):
    output.delete([receipt_path("33TUL", "001"), FILE])
    write_record(output, RECORD)
    assert tile_of(output) == TileStatus(
        "33TUL", "001", "unfinished", parts=3, quarantined={"/chips/1.tif": "no date tag"}
    )
    for path in ("abc/00000.parquet", "abc/00002.parquet", "other/00001.parquet", "abc/.00001.parquet.12ab.tmp"):
        output.put(f"_daskembed/parts/33TUL_v001/{path}", b"")
    assert tile_of(output).parts_done == 2


def test_a_failed_tile(output):
    output.delete([receipt_path("33TUL", "001"), FILE])
    write_record(output, replace(RECORD, status="failed", parts=0, parts_folder=None, reason="no chips"))
    found = tile_of(output)
    assert (found.status, found.reason, found.parts_done, found.parts) == ("failed", "no chips", 0, 0)


def test_a_tile_made_again_that_failed_keeps_its_earlier_file(output):
    write_record(output, replace(RECORD, status="failed", reason="throttled"))
    found = tile_of(output)
    assert (found.status, found.files, found.chips, found.reason) == ("failed", [FILE], 3, "throttled")


def test_a_record_older_than_the_receipt_is_what_a_death_left(output):
    write_record(output, replace(RECORD, status="failed", time="2020-01-01T00:00:00.000+00:00"))
    assert tile_of(output).status == "done"


def test_parts_without_a_record(output):
    output.delete([receipt_path("33TUL", "001"), FILE])
    for path in ("abc/00000.parquet", "abc/00001.parquet", "older/00000.parquet"):
        output.put(f"_daskembed/parts/33TUL_v001/{path}", b"")
    assert tile_of(output) == TileStatus("33TUL", "001", "unfinished", parts_done=2)


def test_a_file_without_a_receipt(output):
    output.delete([receipt_path("33TUL", "001")])
    found = tile_of(output)
    assert (found.status, found.files, found.chips) == ("unfinished", [FILE], None)
    assert found.reason == f"{FILE} has no receipt: its run died, or it was not made by daskembed run"


def test_a_missing_file(output):
    output.delete([FILE])
    found = tile_of(output)
    assert (found.status, found.files) == ("missing", [FILE])
    assert found.reason == f"{FILE} is gone; the next run makes it again"


def test_a_changed_file(output):
    size = len(output.get(FILE))
    output.put(FILE, output.get(FILE)[:-1])
    found = tile_of(output)
    assert found.status == "changed"
    expected = f"{FILE} has {size - 1} bytes, its receipt says {size}; the next run makes it again"
    assert found.reason == expected


def test_a_file_that_was_replaced_and_not_removed(output):
    output.put("33TUL_20180101_20190416_v001.gpq", b"")
    found = tile_of(output)
    assert (found.status, found.files) == ("done", [FILE])
    assert found.reason == "beside it lies 33TUL_20180101_20190416_v001.gpq, replaced by it; the next run removes that"


STORE = FILE.replace(".gpq", ".zarr")


@pytest.fixture
def both(output) -> Storage:
    """With a store beside the file of 33TUL."""
    for path, data in (("zarr.json", b"{}"), ("embeddings/c/0/0/0/0", b"0123456789")):
        output.put(f"{STORE}/{path}", data)
    (file,) = read_receipt(output, receipt_path("33TUL", "001")).files
    change_receipt(output, files=[file, Published(STORE, 12, "ab" * 32)])
    return output


def test_two_formats(both):
    found = tile_of(both)
    assert (found.status, found.files, found.reason) == ("done", [FILE, STORE], None)


def test_a_store_without_its_root_is_missing(both):
    both.delete([f"{STORE}/zarr.json"])
    found = tile_of(both)
    assert (found.status, found.reason) == ("missing", f"{STORE} is gone; the next run makes it again")
    both.delete([receipt_path("33TUL", "001")])
    found = tile_of(both)
    assert (found.status, found.files) == ("unfinished", [FILE])


def test_a_store_that_lost_an_object_is_changed(both):
    both.delete([f"{STORE}/embeddings/c/0/0/0/0"])
    found = tile_of(both)
    assert found.status == "changed"
    assert found.reason == f"{STORE} has 2 bytes, its receipt says 12; the next run makes it again"


def test_a_store_that_was_replaced_and_not_removed(both):
    other = "33TUL_20180101_20190416_v001.zarr"
    both.put(f"{other}/embeddings/c/0", b"")
    assert tile_of(both).reason == f"beside it lies {other}, replaced by it; the next run removes that"


def test_two_formats_without_a_receipt(both):
    both.delete([receipt_path("33TUL", "001")])
    found = tile_of(both)
    assert (found.status, found.files) == ("unfinished", [FILE, STORE])
    assert str(found.reason).startswith(f"{FILE} and {STORE} has no receipt: ")


def test_rejected_chips_are_counted(output, capsys):
    change_receipt(output, rejected={"/chips/3.tif": "40 % cloud", "/chips/4.tif": "B02 is 0 in 3 pixels"})
    assert main(["status", output.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "tile",
        "version",
        "status",
        "chips",
        "blocks",
        "quarantined",
        "rejected",
        "file,",
        "reason",
    ]
    assert lines[2].split()[:6] == ["33TUL", "001", "done", "3", "1", "2"]
    assert "rejected     2" in lines
    assert main(["status", "--json", output.url]) == 0
    tiles = json.loads(capsys.readouterr().out)["tiles"]
    assert tiles[1]["rejected"] == {"/chips/3.tif": "40 % cloud", "/chips/4.tif": "B02 is 0 in 3 pixels"}


def test_reasons_have_flags_and_nothing_else_has(output, capsys):
    said, shown = 'say `source="x"`, not `source=', "say --source x, not `source="
    change_receipt(output, quarantined={"/`tiles`.tif": said, "/`.tif": "is bad"}, rejected={"/2.tif": said})
    write_record(output, replace(RECORD, tile="33TUN", status="failed", reason=said))
    main(["status", "--json", output.url])
    _, done, failed = json.loads(capsys.readouterr().out)["tiles"]
    assert done["quarantined"] == {"/`tiles`.tif": shown, "/`.tif": "is bad"}
    assert (done["rejected"], failed["reason"]) == ({"/2.tif": shown}, shown)
    main(["status", "--quarantined", output.url])
    rows = [row[2:] for row in csv.reader(io.StringIO(capsys.readouterr().out)) if row[0] == "33TUL"]
    assert rows == [["/`.tif", "is bad"], ["/`tiles`.tif", shown]]


@pytest.mark.parametrize("path", [receipt_path("33TUL", "001"), record_path("33TUL", "001")])
def test_a_damaged_receipt_or_record_hides_nothing_else(output, path):
    output.put(path, b'{"tile": ')
    assert status(output.url).counts == {"done": 1, "damaged": 1}
    assert output.url_of(path) in str(tile_of(output).reason)


def test_versions_are_apart(output):
    write_record(output, replace(RECORD, version="rc2"))
    assert tile_of(output, version="rc2").status == "unfinished"
    assert tile_of(output).status == "done"


def test_a_store(output, s3):
    there = Storage(f"{s3}/out")
    for entry in output.entries():
        there.put(entry.path, output.get(entry.path))
    write_record(there, replace(RECORD, tile="33TUM", status="failed", reason="no chips"))
    found = status(there.url)
    assert (found.output, found.counts) == (there.url, {"done": 2, "failed": 1})
    assert len(found.quarantined) == 3


# The command


def test_no_output_of_daskembed(tmp_path, capsys, s3):
    (tmp_path / "notes.txt").touch()
    for url in (str(tmp_path), f"{s3}/nothing"):
        with pytest.raises(InputError, match="is no output of daskembed: it holds neither _daskembed/ nor files such"):
            status(url)
        assert main(["status", url]) == 2
        assert capsys.readouterr().err.startswith(f"daskembed: {url} is no output of daskembed")
    (tmp_path / "embeddings").mkdir()
    for command in ("status", "stac", "search --like 1,2", "preview", "calibrate", "export --to copy"):
        word, *flags = command.split()
        assert main([word, str(tmp_path / "embedings"), *flags]) == 2
        told = f"daskembed: no folder {tmp_path}/embedings; did you mean {tmp_path}/embeddings?\n"
        assert capsys.readouterr().err == told, command


def test_a_bucket_that_does_not_exist(s3_server, capsys):
    assert main(["status", "s3://nobody-made-this-bucket/out"]) == 2
    assert "nobody-made-this-bucket" in capsys.readouterr().err


def test_piped_it_is_plain_lines(output):
    write_record(output, replace(RECORD, tile="33TUM", parts=12))
    write_record(output, replace(RECORD, tile="33TUN", status="failed", reason="no [red]chips[/red]\n" + "x" * 300))
    done = subprocess.run(
        [sys.executable, "-m", "daskembed", "status", output.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "tile   version  status      chips   blocks  quarantined  file, reason",
        "22JGS  001      done            0                     1  no file",
        f"33TUL  001      done            3                     1  {FILE}",
        "33TUM  001      unfinished         0 of 12            1",
        "33TUN  001      failed              0 of 3            1  no [red]chips[/red] " + "x" * 300,
    ]
    assert "tiles        2 done, 1 unfinished, 1 failed" in lines
    assert "quarantined  4" in lines


def test_a_terminal_gets_a_table_as_wide_as_itself(output, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(
        "rich.console.Console", lambda **extra: Console(file=screen, force_terminal=True, width=70, **extra)
    )
    write_record(output, replace(RECORD, tile="33TUN", status="failed", reason="y" * 300))
    show(status(output.url))
    table = screen.getvalue().partition("tiles  ")[0].splitlines()
    assert "33TUN" in screen.getvalue()
    assert screen.getvalue().count("y") >= 300
    assert len(table) > 4 + 300 // 70


def test_many_quarantined_chips_are_counted(output, capsys):
    change_receipt(output, quarantined={f"/chips/{number}.tif": "bad" for number in range(50)})
    assert main(["status", output.url]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len([line for line in shown if line.startswith("  /")]) == MOST_LISTED
    assert shown[-1] == "  and 31 more: --quarantined lists all"


def test_an_audit_of_a_list(output, tmp_path, capsys):
    (tmp_path / "tiles.txt").write_text("33TUN\n33TUL\n33TUM\n")
    write_record(output, replace(RECORD, tile="33TUM", parts=12))
    found = status(output.url, str(tmp_path / "tiles.txt"))
    assert [(tile.tile, tile.status) for tile in found.tiles] == [
        ("33TUL", "done"),
        ("33TUM", "unfinished"),
        ("33TUN", "missing"),
    ]
    assert found.tiles[2].reason == "never begun: nothing of it is here"
    assert found == status(output.url, ["33tum", "33TUN", "33TUL"])
    assert main(["status", output.url, "--tiles", str(tmp_path / "tiles.txt")]) == 3
    shown = capsys.readouterr().out.splitlines()
    assert ["33TUN", "missing", "0", "never", "begun:", "nothing", "of", "it", "is", "here"] in map(str.split, shown)
    assert "tiles        1 done, 1 unfinished, 1 missing" in shown
    assert not any("22JGS" in line for line in shown)
    assert main(["status", output.url, "--tiles", "33TUL,22JGS"]) == 0
    assert main(["status", output.url, "--tiles", "33TUL"]) == 0
    assert main(["status", output.url, "--tiles", "nowhere.txt"]) == 2


def test_the_exit_status_tells_whether_all_is_sound(output, capsys):
    commands = [["status", output.url], ["status", "--json", output.url], ["status", "--quarantined", output.url]]
    assert [main(command) for command in commands] == [0, 0, 0]
    output.put(FILE, output.get(FILE)[:-1])
    assert [main(command) for command in commands] == [3, 3, 3]
    output.delete([FILE])
    assert [main(command) for command in commands] == [3, 3, 3]


def test_json(output, capsys):
    write_record(output, replace(RECORD, tile="33TUN", status="failed", reason="no chips"))
    assert main(["status", "--json", output.url]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["output"], found["counts"]) == (output.url, {"done": 2, "failed": 1})
    assert found["tiles"][2]["reason"] == "no chips"
    assert TileStatus(**found["tiles"][1]) == tile_of(output)


def test_csv(output, capsys):
    change_receipt(output, quarantined={"s3://a/1,2.tif": 'it says "no"'})
    assert main(["status", "--quarantined", output.url]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["tile", "version", "url", "reason"]
    assert rows[2] == ["33TUL", "001", "s3://a/1,2.tif", 'it says "no"']
    assert len(rows) == 3
