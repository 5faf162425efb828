"""What `daskembed plan` says of runs: counts, bytes, hours and prices, and that it leaves the output alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from distributed import Client, LocalCluster
from obstore.store import from_url

import daskembed
from daskembed.cli.main import main
from daskembed.encoders import clay_v0
from daskembed.errors import ConflictError, InputError
from daskembed.runs import plan as planning
from daskembed.runs import summary, throughput
from daskembed.runs.blocks import all_blocks
from daskembed.runs.expected import recall
from daskembed.runs.options import Options, RunOptions
from daskembed.runs.plan import Plan
from daskembed.runs.results import Expected, RunResult, TileResult
from daskembed.runs.summary import describe_plan
from daskembed.runs.throughput import Speed
from daskembed.runs.tiles import resolve
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage
from daskembed.text import describe_bytes

TINY = {"checkpoint": "untrained:least", "precision": "bf16"}
SPEED = Speed(2.0, "device", first_seconds=10.0, start_seconds=90.0, basis="made up")
PLAN = Plan(
    output="/out",
    level="patch",
    done=("33TUL",),
    to_do=("33TUM",),
    missing={"22JGS": "no chips of tile 22JGS"},
    chips=882,
    chips_to_do=441,
    bytes_to_read=3_100_000_000,
    bytes_to_write={"mean": 1_200_000, "patch": 288_000_000, "group": 1_730_000_000},
    chips_a_block=64,
    speed=SPEED,
    workers=1,
    price_per_hour=None,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "daskembed"


@pytest.fixture(scope="module")
def finished(chips, tmp_path_factory) -> tuple[Path, RunResult]:
    """A folder of chips of two tiles and the output of a real run, which was planned, on one of them."""
    folder = tmp_path_factory.mktemp("planned")
    shutil.copytree(chips, folder / "chips")
    shutil.copytree(chips / "33TUL", folder / "chips" / "33TUM")
    for path in (folder / "chips" / "33TUM").rglob("*.tif"):
        path.rename(path.with_name(path.name.replace("33TUL", "33TUM")))
    given = {"source": str(folder / "chips"), "output": str(folder / "out"), **TINY}
    with (
        pytest.MonkeyPatch.context() as patch,
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        daskembed.plan("33TUL", device="cpu", **given)
        return folder, daskembed.run("33TUL", cluster=client, **given)


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A folder with a copy of that output, which a test may change."""
    made, _ = finished
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path


def plan_of(finished, folder: Path, tiles: str = "33TUL,33TUM", **options) -> Plan:
    made, _ = finished
    return daskembed.plan(
        tiles, **{"source": str(made / "chips"), "output": str(folder / "out"), "device": "cpu", **TINY} | options
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is done and what is to do


def test_counts_and_bytes_are_those_of_the_listing(chips, tmp_path) -> None:
    made = daskembed.plan("33TUL,22JGS", source=str(chips), output=str(tmp_path / "out"), device="a10g", **TINY)
    assert (made.done, made.to_do, list(made.missing)) == ((), ("33TUL",), ["22JGS"])
    assert (made.chips, made.chips_to_do) == (4, 4)
    assert made.bytes_to_read == sum(path.stat().st_size for path in chips.rglob("*.tif"))
    assert made.missing["22JGS"].startswith("no chips of tile 22JGS")


def test_finished_tiles_are_done_and_nothing_is_written(finished, folder, cache) -> None:
    before = tree(folder)
    made = plan_of(finished, folder)
    assert (made.done, made.to_do, made.chips, made.chips_to_do) == (("33TUL",), ("33TUM",), 8, 4)
    after = tree(folder)
    (kept,) = set(after) - set(before)
    assert Path(kept).parent == cache / "plans"
    assert {path: after[path] for path in before} == before


def test_a_tile_is_to_do_again_where_a_run_would_do_it_again(finished, folder, tmp_path) -> None:
    assert plan_of(finished, folder, version="2").to_do == ("33TUL", "33TUM")
    assert plan_of(finished, folder, level="patch", overwrite=True).to_do == ("33TUL", "33TUM")
    with pytest.raises(ConflictError, match="level mean, not patch"):
        plan_of(finished, folder, level="patch")
    (file,) = (folder / "out").glob("*.gpq")
    os.truncate(file, file.stat().st_size - 1)
    assert plan_of(finished, folder).to_do == ("33TUL", "33TUM")
    file.unlink()
    assert plan_of(finished, folder).to_do == ("33TUL", "33TUM")


def test_a_chip_that_came_later_makes_its_tile_to_do(finished, folder) -> None:
    receipt = folder / "out" / "_daskembed" / "receipts" / "33TUL_v001.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "listing": "of other chips"}))
    assert plan_of(finished, folder).to_do == ("33TUL", "33TUM")


@pytest.mark.usefixtures("small_blocks")
def test_chips_in_finished_blocks_are_done(chips, tmp_path) -> None:
    given = {"source": str(chips), "output": str(tmp_path / "out"), **TINY}
    first = daskembed.plan("33TUL", device="cpu", **given)
    assert (first.chips_a_block, first.chips_to_do) == (2, 4)
    listing = planning.list_tile("33TUL", Storage(str(chips)), Reading())
    wanted = resolve(Options.of(given, RunOptions))("bf16")
    index = daskembed.index_tile("33TUL", str(chips))
    last = all_blocks(wanted, "33TUL", index, listing.fingerprint)[1]
    wanted.output.put(last.path, b"a part")
    second = daskembed.plan("33TUL", device="cpu", **given)
    assert (second.chips, second.chips_to_do, second.to_do) == (4, 2, ("33TUL",))
    assert second.bytes_to_read == sum(entry.size for entry in listing.entries[:2])
    assert second.bytes_to_write == first.bytes_to_write


def test_a_plan_that_cannot_be_kept_is_made_all_the_same(chips, tmp_path, cache) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    given = {"source": str(chips), "output": str(tmp_path / "out"), "device": "cpu", **TINY}
    assert daskembed.plan("33TUL", **given).chips == 4


def test_dates_leave_chips_out(chips, tmp_path) -> None:
    given = {"source": str(chips), "output": str(tmp_path / "out"), "device": "cpu", **TINY}
    assert daskembed.plan("33TUL", dates="2019-04-16/2019-04-16", **given).chips == 4
    assert daskembed.plan("33TUL", dates="2020-01-01/2020-12-31", **given).chips == 0


def test_buckets(chips, s3) -> None:
    store = from_url(s3)
    for path in chips.rglob("*.tif"):
        obstore.put(store, str(path.relative_to(chips)), path)
    made = daskembed.plan("33TUL", source=s3, output=f"{s3}/out", device="l4", **TINY)
    assert made.chips_to_do == 4
    assert made.bytes_to_read == sum(path.stat().st_size for path in chips.rglob("*.tif"))
    assert not [entry for page in obstore.list(store, "out") for entry in page]


def test_files_are_about_as_large_as_planned(finished) -> None:
    made, result = finished
    (file,) = (made / "out").glob("*.gpq")
    assert result.bytes == file.stat().st_size
    assert planning.file_bytes(4, (256,)) == pytest.approx(file.stat().st_size, rel=0.1)
    assert planning.file_bytes(0, (16, 16, 768)) == planning.FILE_BYTES
    assert planning.file_bytes(441, (16, 16, 768)) == pytest.approx(0.83 * 441 * 786_432, rel=1e-3)


# Hours and prices


def test_hours_and_price() -> None:
    assert PLAN.device_hours == 441 / 2 / 3600
    assert PLAN.seconds == 10 + 441 / 2
    assert PLAN.hours == (90 + 10 + 441 / 2) / 3600
    assert PLAN.price is None
    assert replace(PLAN, workers=3, price_per_hour=2.0).price == pytest.approx(3 * 2.0 * (100 + 3 * 64 / 2) / 3600)


def test_workers_beyond_the_blocks_have_nothing_to_do() -> None:
    assert [replace(PLAN, workers=workers).seconds - 10 for workers in (1, 4, 7, 20)] == [220.5, 64.0, 32.0, 32.0]
    assert replace(PLAN, workers=20).device_hours == PLAN.device_hours


@pytest.mark.parametrize(("workers", "most"), [(1, 1), ("1..20", 20), ("7", 7)])
def test_workers(chips, tmp_path, workers, most) -> None:
    given = {"source": str(chips), "output": str(tmp_path / "out"), "device": "h100", **TINY}
    assert daskembed.plan("33TUL", workers=workers, **given).workers == most


@pytest.mark.parametrize("workers", [0, "many", "1..", "-1"])
def test_refuses_workers(workers) -> None:
    with pytest.raises(InputError, match="expected a number from 1, or the fewest and the most"):
        daskembed.plan("33TUL", workers=workers, device="cpu", **TINY)


def encoder(size: str, precision: str = "bf16"):
    return daskembed.load_encoder(f"untrained:{size}", precision=precision)


def test_the_speed_of_a_device_is_that_of_its_narrowest_part() -> None:
    a10g = throughput.of_device("a10g", encoder("small"), 7e6)
    assert (a10g.limit, a10g.chips_per_second) == ("network", pytest.approx(2.5e9 / 8 / 7e6))
    close = throughput.of_device("a10g", encoder("small"), 1e6)
    assert (close.limit, close.chips_per_second) == (
        "device",
        pytest.approx(0.35 * 70e12 / clay_v0.describe("small").flop),
    )
    assert "assumed, not measured" in close.basis
    h100 = throughput.of_device("h100", encoder("small"), 7e6)
    assert (h100.limit, h100.chips_per_second) == ("decoding", 16 * throughput.DECODED)
    assert throughput.of_device("cpu", encoder("small"), 7e6).chips_per_second == pytest.approx(1.44, rel=0.02)


def test_speed_follows_the_precision(chips, tmp_path) -> None:
    given = {"source": str(chips), "output": str(tmp_path / "out"), "checkpoint": "untrained:large"}
    t4, l4, asked = (
        daskembed.plan("33TUL", device=device, precision=precision, **given).speed.chips_per_second
        for device, precision in (("t4", None), ("l4", None), ("l4", "fp32"))
    )
    flop = clay_v0.describe("large").flop
    assert (t4, l4, asked) == pytest.approx((0.35 * 8.1e12 / flop, 0.35 * 121e12 / flop, 0.35 * 30.3e12 / flop))


def test_auto_precision_is_the_devices_own(chips, tmp_path) -> None:
    given = {"source": str(chips), "output": str(tmp_path / "out"), "checkpoint": "untrained:least"}
    fp32, bf16 = map(resolve(Options.of(given, RunOptions)), ("fp32", "bf16"))
    daskembed.plan("33TUL", device="t4", **given)
    assert recall(fp32) is not None
    assert recall(bf16) is None


def test_refuses_a_device_that_it_does_not_know() -> None:
    with pytest.raises(InputError, match=r"unknown device 'b300': choose one of t4, .*, or leave it out to measure"):
        daskembed.plan("33TUL", device="b300", **TINY)


# This machine


def test_measures_this_machine_with_a_workers_code(chips, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(throughput, "SECONDS", 0.2)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    given = {"source": str(chips), "output": str(tmp_path / "out"), "workers": 4, "precision": "bf16"}
    # Of a size that the process knows in which it is measured.
    made = daskembed.plan("33TUL", checkpoint="untrained:tiny", **given)
    assert made.speed is not None
    assert made.speed.chips_per_second > 0
    assert made.speed.limit in ("device", "reading")
    assert made.speed.first_seconds > 0
    assert made.speed.start_seconds > 0
    assert made.workers == 1, "the workers of the cluster `local` share this machine"
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "out").exists()


def test_a_machine_cannot_be_measured_on_bad_chips(chips, tmp_path) -> None:
    shutil.copytree(chips, tmp_path / "chips")
    for path in (tmp_path / "chips").rglob("*.tif"):
        path.write_bytes(b"[hello], world")
    with pytest.raises(InputError, match=r"chips of 33TUL: none of its first 4 chips .*not a TIFF.*name a `device`"):
        daskembed.plan("33TUL", source=str(tmp_path / "chips"), output=str(tmp_path / "out"), **TINY)


# A run against its plan


def test_a_run_knows_its_plan(finished) -> None:
    _, result = finished
    assert result.expected is not None
    assert (result.expected.chips, result.encoded, result.expected.workers) == (4, 4, 1)
    assert result.expected.bytes == planning.file_bytes(4, (256,))
    assert "plan         4 chips in " in summary.summary(result)


def test_a_plan_is_recalled_for_its_own_settings_only(chips, tmp_path) -> None:
    def settings_of(level: str, version: str = "1"):
        given = {"source": str(chips), "output": str(tmp_path / "out"), "level": level, "version": version, **TINY}
        return resolve(Options.of(given, RunOptions))("bf16")

    assert recall(settings_of("mean")) is None
    daskembed.plan(
        "33TUL", source=str(chips), output=str(tmp_path / "out"), version="1", level="mean", device="cpu", **TINY
    )
    assert recall(settings_of("mean")) is not None
    assert recall(settings_of("patch")) is None
    assert recall(settings_of("mean", "2")) is None
    (kept,) = (tmp_path / "cache" / "daskembed" / "plans").iterdir()
    kept.write_text('{"chips": 4}')
    assert recall(settings_of("mean")) is None


def result_of(encoded: int, seconds: float, **options) -> RunResult:
    tile = TileResult("33TUL", "done", "/out/33TUL.gpq", encoded, size=1_400_000)
    skipped = TileResult("33TUM", "skipped", "/out/33TUM.gpq", 441, size=1_400_000)
    return RunResult("/out", (tile, skipped), 0, encoded, seconds, False, {}, **options)


def test_the_summary_compares() -> None:
    expected = Expected(chips=441, seconds=300.0, bytes=1_200_000, workers=2)
    lines = summary.summary(result_of(441, 330.0, expected=expected)).splitlines()
    wanted = "441 chips in 5 min 00 s on 2 workers, 1.2 MB; actual 441 chips in 5 min 30 s (+10%), 1.4 MB"
    assert f"plan         {wanted}" in lines
    # Of other chips than planned, no percentage.
    assert "actual 100 chips in 2 min 00 s, 1.4 MB" in summary.summary(result_of(100, 120.0, expected=expected))
    assert "plan" not in summary.summary(result_of(0, 1.0, expected=expected))
    assert "plan" not in summary.summary(result_of(441, 330.0))


# The command


def test_describe() -> None:
    assert describe_plan(replace(PLAN, workers=20, price_per_hour=1.5)).splitlines() == [
        "tiles        1 done, 1 to do, 1 without chips",
        "  22JGS  no chips of tile 22JGS",
        "chips        882 listed, 441 done, 441 to do",
        "to do        33TUM",
        "read         3.1 GB",
        "write        patch 288 MB, mean 1.2 MB, group 1.73 GB (estimates; the level chosen comes first)",
        "speed        2 chips/s a worker, the limit is the device",
        "             made up",
        "device       3 min 40 s of encoding",
        "time         42 s on 20 workers, after about 1 min 30 s to start",
        "price        1.10, at 1.5 an hour and worker",
    ]
    nothing = replace(PLAN, to_do=(), missing={}, chips=441, chips_to_do=0, speed=None)
    assert describe_plan(nothing).splitlines() == [
        "tiles        1 done",
        "chips        441 listed, 441 done, 0 to do",
        "nothing is left to encode",
    ]
    assert (nothing.seconds, nothing.hours, nothing.device_hours) == (0, 0, 0)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (512, "512 B"), (1234, "1.23 kB"), (999_800, "1 MB"), (3.1e12, "3.1 TB"), (12.3e15, "12,300 TB")],
)
def test_describe_bytes(number, text) -> None:
    assert describe_bytes(number) == text


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (("--device", "cpu"), "on 1 worker, after about 5 s to start"),
        (("--device", "cpu", "--workers", "2"), "on 2 workers, after about 3 min 00 s to start"),
        (("--device", "cpu", "--cluster", "coiled"), "on 1 worker, after about 3 min 00 s to start"),
        (("--device", "a10g"), "on 1 worker, after about 3 min 00 s to start"),
    ],
)
def test_a_machine_that_is_there_needs_not_boot(flags, start, chips, tmp_path, capsys) -> None:
    asked = ["--tiles", "33TUL", "--source", str(chips), "--output", str(tmp_path / "out")]
    assert main(["plan", *asked, "--checkpoint", "untrained:least", *flags]) == 0
    assert start in capsys.readouterr().out


def test_the_command_takes_the_flags_of_run(chips, tmp_path, capsys) -> None:
    flags = ["--tiles", "33TUL,22JGS", "--source", str(chips), "--output", str(tmp_path / "out"), "--level", "group"]
    flags += ["--checkpoint", "untrained:least", "--cluster", "coiled", "--precision", "bf16", "--batch-size", "8"]
    flags += ["--readers", "4", "--version", "7", "--on-nan", "fill", "--dates", "2019-01-01/2019-12-31", "--overwrite"]
    flags += ["--listen", "0.0.0.0", "--tls"]
    assert main(["plan", *flags, "--device", "a10g", "--workers", "1..20", "--price-per-hour", "1.5"]) == 0
    said, told = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0] == "tiles        1 to do, 1 without chips"
    assert "chips        4 listed, 0 done, 4 to do" in lines
    assert any(line.startswith("write        group 5.2") for line in lines)
    assert "on 20 workers, after about 3 min 00 s to start" in said
    assert lines[-1].startswith("price        1.5")
    assert told == ""
    assert os.listdir(tmp_path) == ["cache"]  # noqa: PTH208


def test_the_command_refuses_what_the_run_would_refuse(finished, folder, capsys) -> None:
    made, _ = finished
    flags = ["plan", "--tiles", "33TUL", "--output", str(folder / "out"), "--checkpoint", "untrained:least"]
    source = ["--source", str(made / "chips"), "--device", "a10g"]
    assert main([*flags, *source, "--level", "patch"]) == 2
    assert "level mean, not patch" in capsys.readouterr().err
    assert main([*flags, "--source", str(folder / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
