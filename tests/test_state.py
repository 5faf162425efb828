"""Receipts of finished tiles and the files that they belong to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from daskembed.errors import InputError
from daskembed.output.protocol import Published
from daskembed.output.published import check_version, list_published, published_files
from daskembed.output.state import (
    Receipt,
    TileRecord,
    delete_record,
    parts_folder,
    probe_path,
    read_receipts,
    read_record,
    receipt_path,
    record_path,
    sweep,
    write_receipt,
    write_record,
)
from daskembed.storage.stores import Storage

RECEIPT = Receipt(
    tile="27WXN",
    version="001",
    files=[Published("27WXN_20200101_20200301_v001.gpq", 12345, "ab" * 32)],
    chips=417,
    quarantined={"s3://chips/1.tif": "NaN in vh"},
    rejected={"s3://chips/3.tif": "40 % cloud"},
    filled={"s3://chips/2.tif": 17},
    notes=["s3://chips/3.tif: nodata 0"],
    settings={"level": "mean", "encoder": "clay-v0", "dates": None},
    listing="cd" * 8,
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:01:00+00:00",
    software={"daskembed": "0.1.0"},
)


@pytest.fixture
def output(tmp_path) -> Storage:
    return Storage(str(tmp_path))


def test_round_trip(output):
    empty = replace(RECEIPT, tile="27WXM", files=[], chips=0, software={})
    write_receipt(output, RECEIPT)
    write_receipt(output, empty)
    assert read_receipts(output, ["27WXM", "27WXN"], "001") == {"27WXN": RECEIPT, "27WXM": empty}


def test_round_trip_on_s3(s3):
    output = Storage(f"{s3}/embeddings")
    assert read_receipts(output, ["27WXN"], "001") == {}
    write_receipt(output, RECEIPT)
    assert read_receipts(output, ["27WXN", "27WXM"], "001") == {"27WXN": RECEIPT}


def test_only_the_wanted_tiles_and_version_are_read(output):
    write_receipt(output, RECEIPT)
    write_receipt(output, replace(RECEIPT, version="002", chips=3))
    write_receipt(output, replace(RECEIPT, tile="27WXM"))
    output.put(receipt_path("27WXP", "001"), b"damaged, but nobody asked")
    assert read_receipts(output, ["27WXN", "28WDT"], "002") == {"27WXN": replace(RECEIPT, version="002", chips=3)}
    assert list(read_receipts(output, ["27WXM", "27WXN"], "001")) == ["27WXM", "27WXN"]
    assert read_receipts(output, [], "001") == {}


def test_a_source_that_climbs_is_the_one_that_it_leads_to(tmp_path):
    here = RECEIPT.settings | {"source": str(tmp_path / "six")}
    files = {file.name: file.size for file in RECEIPT.files}
    climbing = replace(RECEIPT, settings=here | {"source": f"{tmp_path}/nb/../six"})
    assert climbing.finishes(here, files)
    assert not climbing.finishes(here | {"source": str(tmp_path / "seven")}, files)


def test_no_receipts_yet(output):
    assert read_receipts(output, ["27WXN"], "001") == {}


def test_a_new_receipt_replaces_the_old_one(output):
    write_receipt(output, RECEIPT)
    write_receipt(output, replace(RECEIPT, chips=5))
    assert read_receipts(output, ["27WXN"], "001")["27WXN"].chips == 5


def test_receipts_are_readable_json(output):
    write_receipt(output, RECEIPT)
    fields = json.loads(output.get("_daskembed/receipts/27WXN_v001.json"))
    assert fields["tile"] == "27WXN"
    assert fields["quarantined"] == {"s3://chips/1.tif": "NaN in vh"}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'"text"', b'{"tile": "27WXN"}', b'{"surprise": 1}', b"\xff\xfe\x00", b"{}"]
)
def test_damaged_receipt(output, data):
    output.put(receipt_path("27WXN", "001"), data)
    with pytest.raises(InputError) as error:
        read_receipts(output, ["27WXN"], "001")
    path = output.url_of("_daskembed/receipts/27WXN_v001.json")
    assert str(error.value).startswith(f"{path} is not a receipt of daskembed: ")
    assert str(error.value).endswith("; delete it")


def test_places_of_receipts_and_parts():
    assert receipt_path("27WXN", "001") == "_daskembed/receipts/27WXN_v001.json"
    assert parts_folder("27WXN", "001") == "_daskembed/parts/27WXN_v001"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1", "001"), ("001", "001"), ("42", "042"), ("2026", "2026"), ("rc1", "rc1"), ("A", "A"), ("x" * 16, "x" * 16)],
)
def test_check_version(version, expected):
    assert check_version(version) == expected


@pytest.mark.parametrize(
    "version", ["", "1.0", "a_b", "a/b", "-1", "x" * 17, "001\n", "é", "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_check_version_refuses_what_is_no_part_of_a_name(version):
    with pytest.raises(InputError) as error:
        check_version(version)
    assert str(error.value) == f"version {version!r}: expected up to 16 letters and digits, such as 001"


def test_published_files(output):
    published = [
        "27WXM_20200101_20200301_v001.gpq",
        "27WXN_20200101_20200301_v001.gpq",
        "27WXN_20200101_20210301_v001.gpq",
    ]
    others = [
        "27WXN_20200101_20200301_v002.gpq",
        "27WXN_20200101_20200301_v0011.gpq",
        "27WXN_20200101_20200301_v001.gpq.bak",
        "27WXN_20200101_20200301_v001.parquet",
        "27WXN_20200101_v001.gpq",
        "x27WXN_20200101_20200301_v001.gpq",
        "27wxn_20200101_20200301_v001.gpq",
        "old/27WXN_20190101_20190301_v001.gpq",
        "_daskembed/parts/27WXN_20200101_20200301_v001.gpq",
    ]
    for name in published + others:
        output.put(name, b"12")
    assert published_files(output, "001") == {"27WXM": {published[0]: 2}, "27WXN": dict.fromkeys(published[1:], 2)}
    assert published_files(output, "002") == {"27WXN": {others[0]: 2}}
    assert published_files(output, "003") == {}


def test_suffix_of_published_files_is_taken_literally(output):
    output.put("27WXN_20200101_20200301_v001xgpq", b"")
    output.put("27WXN_20200101_20200301_v001xzarr/zarr.json", b"")
    assert published_files(output, "001") == {}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_stores_count_once_they_have_a_root(place, request, tmp_path):
    output = Storage(str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3')}/out")
    done, begun = "27WXN_20200101_20200301_v001.zarr", "27WXM_20200101_20200301_v001.zarr"
    for path in (f"{done}/embeddings/c/0/0", f"{begun}/embeddings/c/0/0", "mine.zarr/a", f"{begun[:-7]}2.zarr/a"):
        output.put(path, b"12")
    output.put(f"{done}/zarr.json", b"345")
    output.put("27WXN_20200101_20200301_v001.gpq", b"6")
    assert {found.name: found.size for found in list_published(output, "001")} == {
        begun: None,
        "27WXN_20200101_20200301_v001.gpq": 1,
        done: 5,
    }
    expected = {"27WXN": {"27WXN_20200101_20200301_v001.gpq": 1, done: 5}}
    assert published_files(output, "001") == expected
    assert output.entries(begun)
    assert published_files(output, "001", sweep=True) == expected
    assert [entry.path for entry in output.entries() if not entry.path.startswith(done)] == [
        f"{begun[:-7]}2.zarr/a",
        "27WXN_20200101_20200301_v001.gpq",
        "mine.zarr/a",
    ]


def test_files_of_a_receipt():
    both = replace(RECEIPT, files=[*RECEIPT.files, Published("27WXN_20200101_20200301_v001.zarr", 5, "cd" * 32)])
    assert (both.file, both.size) == ("27WXN_20200101_20200301_v001.gpq", 12350)
    assert both.names == ["27WXN_20200101_20200301_v001.gpq", "27WXN_20200101_20200301_v001.zarr"]
    files = {both.names[0]: 12345, both.names[1]: 5}
    assert both.finishes(RECEIPT.settings, files | {"other": 1})
    assert not both.finishes({**RECEIPT.settings, "level": "patch"}, files)
    assert replace(RECEIPT, files=[]).finishes(RECEIPT.settings, {})
    for damaged, said in (
        ({both.names[0]: 12345}, [f"{both.names[1]} is gone"]),
        (files | {both.names[0]: 12344}, [f"{both.names[0]} has 12344 bytes, its receipt says 12345"]),
        ({}, [f"{both.names[0]} is gone", f"{both.names[1]} is gone"]),
    ):
        assert both.differences(damaged) == said
        assert not both.finishes(RECEIPT.settings, damaged)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_killed_runs_left_is_swept(place, request, tmp_path):
    output = Storage(str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3')}/out")
    ours = ["_daskembed/write-test", "_daskembed/0123.probe", probe_path("001")]
    cubes, others = [probe_path(None)], [probe_path("0011"), probe_path("cube"), "_daskembed/my.probe"]
    kept = [receipt_path("27WXN", "001"), "_daskembed/cubes/27WXN.json", "_daskembed/cubes/0123.probe"]
    if place == "local":
        ours += [
            "_daskembed/.write-test.0123.tmp",
            "_daskembed/.0123.probe.4567.tmp",
            "_daskembed/.45_v001.probe.67.tmp",
        ]
        cubes += ["_daskembed/.running_cube.json.67.tmp", "_daskembed/cubes/.27WXN.json.67.tmp"]
        others += ["_daskembed/.45_v0011.probe.67.tmp", "_daskembed/.running_vcube.json.67.tmp"]
    for name in ours + cubes + others + kept:
        output.put(name, b"")
    sweep(output, "001")
    assert {entry.path for entry in output.entries()} == {*cubes, *others, *kept}
    sweep(output, None)
    assert {entry.path for entry in output.entries()} == {*others, *kept}


RECORD = TileRecord(
    tile="27WXN",
    version="001",
    status="unfinished",
    parts=3,
    parts_folder="_daskembed/parts/27WXN_v001/abc",
    quarantined={"s3://chips/1.tif": "no date tag"},
    reason=None,
    time="2026-01-01T00:00:00.000+00:00",
)


def test_record_is_written_replaced_and_deleted(output):
    write_record(output, RECORD)
    assert read_record(output, record_path("27WXN", "001")) == RECORD
    failed = replace(RECORD, status="failed", parts=0, parts_folder=None, reason="no chips")
    write_record(output, failed)
    assert json.loads(output.get("_daskembed/tiles/27WXN_v001.json"))["reason"] == "no chips"
    assert read_record(output, record_path("27WXN", "001")) == failed
    delete_record(output, "27WXN", "002")
    assert [entry.path for entry in output.entries()] == [record_path("27WXN", "001")]
    delete_record(output, "27WXN", "001")
    delete_record(output, "27WXN", "001")
    assert output.entries() == []


def test_damaged_record(output):
    output.put(record_path("27WXN", "001"), b"{")
    with pytest.raises(InputError, match=r"27WXN_v001\.json is not a record of daskembed: .*; delete it$"):
        read_record(output, record_path("27WXN", "001"))
