"""The whole job on real worker processes, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from distributed import Client, LocalCluster, Status

import daskembed
from daskembed.cli.main import main
from daskembed.errors import ConflictError, InputError, LockLostError, StorageError, TileError
from daskembed.output.status import status
from daskembed.runs import fleet, settings, stages
from daskembed.runs import window as flow
from daskembed.runs.blocks import BlockSuspects
from daskembed.runs.deadly_chips import deadly_chips
from daskembed.runs.quarantine import check_quarantined
from daskembed.runs.results import Event, Progress, left_by
from daskembed.runs.summary import summary
from daskembed.sources import geotiff
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage
from daskembed.testing import refuse_to_compute, write_chips

TINY = {"checkpoint": "untrained:least", "precision": "fp32"}


@pytest.fixture(scope="module")
def client():
    """Two worker processes of two threads."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            dashboard_address=None,
            env={"DASK_DASKEMBED__TORCH_THREADS": "1"},
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def my_chips(chips, tmp_path):
    """A copy of the chips that a test may change."""
    return Path(shutil.copytree(chips, tmp_path / "chips"))


def tile_folder(chips: Path) -> Path:
    return chips / "33TUL" / "2019-04-16"


def rewrite(path: Path, change) -> None:
    """Change a chip's pixels in place."""
    with rasterio.open(path) as dataset:
        profile, pixels, tags, names = dataset.profile, dataset.read(), dataset.tags(), dataset.descriptions
    change(pixels)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(date=tags["date"])
        dataset.descriptions = names


def receipt_of(output: Path, tile: str = "33TUL", version: str = "001") -> dict:
    return json.loads((output / "_daskembed" / "receipts" / f"{tile}_v{version}.json").read_text())


def vectors(file: str | Path) -> np.ndarray:
    return np.stack(gpd.read_parquet(file).embeddings)


def test_rows_order_schema_footer_and_receipt(client, chips, tmp_path, small_blocks):
    write_chips(tmp_path / "chips", tile="22JGS", date="2022-01-31", rows=1, cols=3, seed=5)
    shutil.copytree(chips / "33TUL", tmp_path / "chips" / "33TUL")
    out = tmp_path / "out"
    result = daskembed.run(
        ["33TUL", "22JGS"], source=str(tmp_path / "chips"), output=str(out), level="patch", cluster=client, **TINY
    )
    assert (result.exit_status, result.chips, result.encoded, result.quarantined) == (0, 7, 7, {})
    assert {tile.tile: tile.status for tile in result.tiles} == {"33TUL": "done", "22JGS": "done"}
    assert sorted(path.name for path in out.iterdir()) == [
        "22JGS_20220131_20220131_v001.gpq",
        "33TUL_20190416_20190416_v001.gpq",
        "_daskembed",
    ]
    file = out / "33TUL_20190416_20190416_v001.gpq"
    frame = gpd.read_parquet(file)
    assert list(frame.columns) == ["source_url", "date", "embeddings", "geometry"]
    expected = sorted(str(path) for path in tile_folder(tmp_path / "chips").iterdir())
    assert list(frame.source_url) == expected
    assert {str(day) for day in frame.date} == {"2019-04-16"}
    assert frame.crs.to_string() == "OGC:CRS84"

    index = daskembed.index_tile("33TUL", str(tmp_path / "chips"))
    encoder = daskembed.load_encoder(**TINY)
    direct = daskembed.embed(daskembed.open_tile(index), encoder, "patch").compute(scheduler="threads")
    for row, wanted in zip(frame.embeddings, direct.values, strict=True):
        assert row.reshape(16, 16, 256) == pytest.approx(wanted, abs=1e-5)

    footer = json.loads(pq.read_metadata(file).metadata[b"daskembed"])
    assert footer["untrained"] is True
    assert (footer["level"], footer["precision"], footer["shape"]) == ("patch", "fp32", [16, 16, 256])
    assert (footer["encoder"], footer["checkpoint"], footer["sha256"]) == ("clay-v0", "untrained:least:0", None)
    receipt = receipt_of(out)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert receipt["files"] == [{"name": file.name, "size": file.stat().st_size, "sha256": sha256}]
    assert receipt["chips"] == 4
    assert not (out / "_daskembed" / "parts").exists()


def test_same_bytes_whatever_the_workers(client, chips, tmp_path, small_blocks):
    daskembed.run("33TUL", source=str(chips), output=str(tmp_path / "two"), cluster=client, **TINY)
    env = {"DASK_DASKEMBED__TORCH_THREADS": "1"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, env=env) as one,
        Client(one) as other,
    ):
        daskembed.run("33TUL", source=str(chips), output=str(tmp_path / "one"), cluster=other, **TINY)
    assert receipt_of(tmp_path / "one")["files"] == receipt_of(tmp_path / "two")["files"]


def test_object_store_in_and_out(client, s3, chips, tmp_path, s3_server):
    # Workers that are running do not see the variables of the server: these run in their own processes.
    storage = Storage(f"{s3}/tiles")
    for path in tile_folder(chips).iterdir():
        storage.put(f"33TUL/2019-04-16/{path.name}", path.read_bytes())
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as there:
        result = daskembed.run("33TUL", source=f"{s3}/tiles", output=f"{s3}/out", cluster=there, **TINY)
        again = daskembed.run("33TUL", source=f"{s3}/tiles", output=f"{s3}/out", cluster=there, **TINY)
    assert result.exit_status == 0
    assert result.tiles[0].file == f"{s3}/out/33TUL_20190416_20190416_v001.gpq"
    assert again.tiles[0].status == "skipped"
    assert [entry.path for entry in Storage(f"{s3}/out").entries()] == [
        "33TUL_20190416_20190416_v001.gpq",
        "_daskembed/receipts/33TUL_v001.json",
        "_daskembed/rows/33TUL_v001.parquet",
    ]
    frame = daskembed.open_embeddings(f"{s3}/out").compute(scheduler="threads")
    assert list(frame.source_url) == [
        f"{s3}/tiles/33TUL/2019-04-16/{path.name}" for path in sorted(tile_folder(chips).iterdir())
    ]


def test_a_finished_tile_is_skipped_and_other_settings_are_refused(client, chips, tmp_path):
    def run(**options):
        return daskembed.run("33TUL", source=str(chips), output=str(tmp_path), cluster=client, **{**TINY, **options})

    run()
    file = tmp_path / "33TUL_20190416_20190416_v001.gpq"
    made = file.stat().st_mtime_ns
    again = run()
    assert (again.tiles[0].status, again.encoded, again.chips, again.exit_status) == ("skipped", 0, 4, 0)
    assert file.stat().st_mtime_ns == made
    for options, word in (
        ({"level": "group"}, "level mean, not group"),
        ({"checkpoint": "untrained:least:1"}, "checkpoint untrained:least:0, not untrained:least:1"),
        ({"precision": "bf16"}, "precision fp32, not bf16"),
        ({"dates": "2019-01-01/2019-12-31"}, "dates all, not 2019-01-01/2019-12-31"),
    ):
        with pytest.raises(ConflictError, match=word):
            run(**options)
    assert run(level="patch", version="2").tiles[0].file == str(tmp_path / "33TUL_20190416_20190416_v002.gpq")
    assert run(level="patch", overwrite=True).tiles[0].status == "done"
    assert vectors(file).shape == (4, 16 * 16 * 256)
    assert run(level="patch").tiles[0].status == "skipped"

    file.unlink()
    assert run(level="patch").tiles[0].status == "done"
    assert file.exists()


def test_a_damaged_file_is_made_again(client, chips, tmp_path):
    def run(out: str = "damaged", **options):
        output, formats = str(tmp_path / out), "geoparquet,zarr"
        return daskembed.run(
            "33TUL", source=str(chips), output=output, level="patch", format=formats, cluster=client, **TINY, **options
        )

    def tree(out: str) -> dict[str, bytes]:
        files = (path for path in (tmp_path / out).glob("33TUL*/**/*") if path.is_file())
        return {str(path): path.read_bytes() for path in (*files, *(tmp_path / out).glob("*.gpq"))}

    run()
    sound = tree("damaged")
    (file,) = (tmp_path / "damaged").glob("*.gpq")
    (store,) = (tmp_path / "damaged").glob("*.zarr")
    size = file.stat().st_size
    os.truncate(file, 3000)
    events: list[Event] = []
    result = run(events=events.append)
    assert (result.tiles[0].status, result.encoded) == ("done", 4)
    said = f"{file.name} has 3000 bytes, its receipt says {size}"
    assert f"{said}: made again" in result.tiles[0].notes
    assert [event.reason for event in events if event.event == "tile_started"] == [said]
    assert tree("damaged") == sound
    assert run().tiles[0].status == "skipped"
    next(path for path in (store / "embeddings" / "c").rglob("*") if path.is_file()).write_bytes(b"")
    assert run().tiles[0].status == "done"
    assert tree("damaged") == sound


def test_a_run_that_lost_its_lock_publishes_nothing(client, chips, tmp_path):
    output = Storage(str(tmp_path))

    def lose(state: Progress) -> None:
        if state.indexed and not state.encoded:
            output.put("_daskembed/running_v001.json", b'{"token": "another"}')

    with pytest.raises(LockLostError, match="another run took over"):
        daskembed.run("33TUL", source=str(chips), output=str(tmp_path), cluster=client, progress=lose, **TINY)
    assert not list(tmp_path.glob("*.gpq"))
    assert not list(tmp_path.glob("_daskembed/receipts/*"))
    assert output.get("_daskembed/running_v001.json") == b'{"token": "another"}'
    output.delete(["_daskembed/running_v001.json"])
    result = daskembed.run("33TUL", source=str(chips), output=str(tmp_path), cluster=client, **TINY)
    assert (result.tiles[0].status, result.encoded) == ("done", 0)


def test_a_file_without_receipt_is_finished_if_ours_and_refused_if_not(client, chips, tmp_path):
    def run(**options):
        return daskembed.run("33TUL", source=str(chips), output=str(tmp_path), cluster=client, **{**TINY, **options})

    run()
    first = receipt_of(tmp_path)
    (tmp_path / "_daskembed" / "receipts" / "33TUL_v001.json").unlink()
    with pytest.raises(ConflictError, match="level mean, not patch"):
        run(level="patch")
    assert run().tiles[0].status == "done"
    assert receipt_of(tmp_path)["files"] == first["files"]

    (tmp_path / "_daskembed" / "receipts" / "33TUL_v001.json").unlink()
    file = tmp_path / first["files"][0]["name"]
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(ConflictError, match="not made by it"):
        run()


def test_chips_gained_and_lost_make_the_tile_again(client, my_chips, tmp_path):
    def run():
        return daskembed.run("33TUL", source=str(my_chips), output=str(tmp_path / "out"), cluster=client, **TINY)

    run()
    write_chips(my_chips, date="2019-05-01", rows=1, cols=1)
    assert run().chips == 5
    assert [path.name for path in (tmp_path / "out").glob("*.gpq")] == ["33TUL_20190416_20190501_v001.gpq"]
    shutil.rmtree(my_chips / "33TUL" / "2019-05-01")
    (tile_folder(my_chips) / "claytile_33TUL_20190416_v02_0001.tif").unlink()
    assert run().chips == 3
    assert [path.name for path in (tmp_path / "out").glob("*.gpq")] == ["33TUL_20190416_20190416_v001.gpq"]


def test_bad_chips_are_quarantined_and_leave_the_others_as_they_were(client, my_chips, tmp_path, small_blocks):
    def run(out: str, **options):
        return daskembed.run(
            "33TUL", source=str(my_chips), output=str(tmp_path / out), cluster=client, **TINY, **options
        )

    run("good")
    before = vectors(next((tmp_path / "good").glob("*.gpq")))
    nan, html, broken = (tile_folder(my_chips) / f"claytile_33TUL_20190416_v02_{n:04}.tif" for n in (1, 2, 99))
    rewrite(nan, lambda pixels: pixels[11, :10, :10].fill(np.nan))
    data = html.read_bytes()
    broken.write_bytes(data[:60_000])
    html.write_text("<html>404</html>")

    result = run("bad")
    assert result.exit_status == 3
    assert set(result.quarantined) == {str(nan), str(html), str(broken)}
    assert "100 in vv" in result.quarantined[str(nan)]
    assert "not a TIFF" in result.quarantined[str(html)]
    assert receipt_of(tmp_path / "bad")["quarantined"] == result.quarantined
    assert (vectors(result.tiles[0].file) == before[2:]).all()
    assert run("bad").exit_status == 3

    filled = run("filled", on_nan="fill")
    assert set(filled.quarantined) == {str(html), str(broken)}
    assert receipt_of(tmp_path / "filled")["filled"] == {str(nan): 100}


def test_a_tile_of_bad_chips_alone_has_a_receipt_and_no_file(client, my_chips, tmp_path):
    for path in tile_folder(my_chips).iterdir():
        rewrite(path, lambda pixels: pixels[0, 0].fill(np.inf))
    result = daskembed.run("33TUL", source=str(my_chips), output=str(tmp_path / "out"), cluster=client, **TINY)
    assert (result.exit_status, result.tiles[0].status, result.tiles[0].file) == (3, "done", None)
    assert receipt_of(tmp_path / "out")["files"] == []
    assert list((tmp_path / "out").glob("*.gpq")) == []


def test_relative_paths_are_the_callers_not_the_workers(client, my_chips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = daskembed.run("33TUL", source=my_chips.name, output="out", cluster=client, **TINY)
    assert result.exit_status == 0
    assert (tmp_path / "out" / "33TUL_20190416_20190416_v001.gpq").exists()


def test_a_missing_tile_fails_and_the_others_are_made(client, chips, tmp_path):
    result = daskembed.run(["27WXN", "33TUL"], source=str(chips), output=str(tmp_path), cluster=client, **TINY)
    assert result.exit_status == 4
    failed, done = sorted(result.tiles, key=lambda tile: tile.tile)
    assert (failed.status, done.status) == ("failed", "done")
    assert "no chips of tile 27WXN" in failed.reason


def test_settings_are_refused_before_anything_is_read(client, chips, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "index", None)
    bad = (
        {"level": "pixel"},
        {"precision": "fp8"},
        {"batch_size": 0},
        {"readers": -1},
        {"version": "a/b"},
        {"on_nan": "ignore"},
        {"dates": "2019"},
        {"dates": "2020-01-01/2019-01-01"},
        {"checkpoint": "nowhere.ckpt"},
        {"source": str(tmp_path / "nowhere")},
        {"source": "ftp://host/chips"},
        {"output": str(next(tile_folder(chips).iterdir()))},
    )
    for options in bad:
        with pytest.raises((InputError, StorageError)) as caught:
            daskembed.run(
                "33TUL", **{"source": str(chips), "output": str(tmp_path / "out"), "cluster": client, **TINY, **options}
            )
        assert str(next(iter(options.values()))) in str(caught.value)


def test_an_interrupted_run_goes_on_where_it_was(client, chips, tmp_path, small_blocks):
    def run(out: str, **options):
        return daskembed.run("33TUL", source=str(chips), output=str(tmp_path / out), cluster=client, **TINY, **options)

    run("undisturbed")

    def interrupt(state):
        if state.encoded:
            raise KeyboardInterrupt

    stopped = run("out", progress=interrupt)
    assert (stopped.exit_status, stopped.interrupted, stopped.unfinished) == (130, True, 1)
    assert list((tmp_path / "out").glob("*.gpq")) == []
    parts = list((tmp_path / "out" / "_daskembed" / "parts").rglob("*.parquet"))
    assert parts
    # What its workers had begun may still be finished.
    while any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
        time.sleep(0.1)
    found = status(str(tmp_path / "out"))
    (tile,) = found.tiles
    lines = summary(stopped, left_by(stopped)).splitlines()
    assert "tiles        1 unfinished" in lines
    assert f"blocks       {tile.parts_done} of {tile.parts} of the unfinished tiles are kept" in lines
    assert f"quarantined  {len(found.quarantined)}" in lines
    rest = run("out")
    assert rest.exit_status == 0
    assert rest.encoded <= 4 - stopped.encoded
    assert receipt_of(tmp_path / "out")["files"] == receipt_of(tmp_path / "undisturbed")["files"]
    assert not (tmp_path / "out" / "_daskembed" / "parts").exists()


def test_parts_that_vanish_are_made_again(client, chips, tmp_path, small_blocks):
    def run(out: str, **options):
        return daskembed.run("33TUL", source=str(chips), output=str(tmp_path / out), cluster=client, **TINY, **options)

    def take_away(state):
        if not taken and state.encoded:
            taken.extend((tmp_path / "out" / "_daskembed" / "parts").rglob("*.parquet"))
            for part in taken:
                part.unlink()

    run("undisturbed")
    taken: list[Path] = []
    result = run("out", progress=take_away)
    assert taken
    assert (result.exit_status, result.chips, result.encoded) == (0, 4, 4 + 2 * len(taken))
    assert receipt_of(tmp_path / "out")["files"] == receipt_of(tmp_path / "undisturbed")["files"]


@pytest.mark.faults
def test_a_killed_worker_costs_nothing(chips, tmp_path, small_blocks):
    def kill_once(state):
        if state.chips and not killed:
            killed.append(client.run(os.getpid))
            os.kill(next(iter(killed[0].values())), signal.SIGKILL)

    killed: list[dict[str, int]] = []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        result = daskembed.run(
            "33TUL", source=str(chips), output=str(tmp_path), cluster=client, progress=kill_once, **TINY
        )
    assert killed
    assert (result.exit_status, result.chips) == (0, 4)


def chosen(chips, output, checkpoint=TINY["checkpoint"], **changed):
    return settings.Settings(
        source=Storage(str(chips)),
        output=Storage(str(output)),
        encoder=daskembed.load_encoder(checkpoint, precision="fp32"),
        level="mean",
        on_nan="quarantine",
        reading=Reading(),
        version="001",
        chips_a_block=2,
        **changed,
    )


@pytest.mark.parametrize(
    ("new", "known", "share", "vanishing", "said"),
    [
        pytest.param(0, 60, 0.1, True, None, id="all known"),
        pytest.param(10, 0, 0.1, False, None, id="a tenth"),
        pytest.param(11, 0, 0.1, False, "11 of its 100 chips would newly be quarantined, more than", id="more"),
        pytest.param(11, 50, 0.1, False, "11 of its 100 chips", id="more beside known ones"),
        pytest.param(4, 0, 0.0, False, None, id="few"),
        pytest.param(5, 0, 0.0, False, "`max_quarantined=0` allows", id="more than few"),
        pytest.param(1, 99, 0.1, True, "and its published file would vanish", id="vanishing"),
        pytest.param(100, 0, 1.0, True, None, id="accepted"),
    ],
)
def test_how_many_chips_may_newly_be_quarantined(new, known, share, vanishing, said):
    before = {f"known-{number}": "was bad" for number in range(known)}
    now = {f"new-{number}": "is bad" for number in range(new)} | before
    if said is None:
        check_quarantined(share, now, before, 100, vanishing=vanishing)
    else:
        with pytest.raises(TileError, match=said):
            check_quarantined(share, now, before, 100, vanishing=vanishing)


def test_chips_that_an_earlier_receipt_names_with_flags_are_known():
    said = ("5 in B02 (`on_nan='fill'` puts the means there)", "7 in B02 (--on-nan fill puts the means there)")
    now, before = ({f"chip-{number}": why for number in range(5)} for why in said)
    check_quarantined(0.1, now, before, 5, vanishing=True)


def test_a_chip_that_is_bad_in_another_way_is_newly_so():
    now, before = ({f"chip-{number}": why for number in range(5)} for why in ("is gone", "has no CRS"))
    with pytest.raises(TileError, match=r"chip-0 is gone \(5 such\)"):
        check_quarantined(0.1, now, before, 5, vanishing=False)


def test_a_chip_that_is_bad_in_the_same_way_is_not_newly_so():
    """Reasons hold names that another reading makes anew, and numbers of what was read."""
    now, before = (
        {f"chip-{number}": f"/vsimem/{uuid.uuid4().hex}/x.tif, strip {strip}: is damaged" for number in range(5)}
        for strip in (3, 17)
    )
    check_quarantined(0.1, now, before, 5, vanishing=True)


def test_too_many_chips_that_are_newly_bad_fail_a_tile(client, tmp_path, small_blocks):
    """Its file stays; the same command mends it once they are sound, and a flag accepts them."""
    paths = write_chips(tmp_path / "chips", rows=1, cols=6)
    out, sound = tmp_path / "out", [path.read_bytes() for path in paths]

    def run(**options):
        return daskembed.run(
            "33TUL", source=str(tmp_path / "chips"), output=str(out), cluster=client, **TINY, **options
        )

    first = run()
    assert (first.exit_status, first.chips) == (0, 6)
    made = Path(first.tiles[0].file).read_bytes()
    # Pixels that cannot be decoded, behind sound headers.
    for path, data in zip(paths[1:], sound[1:], strict=True):
        path.write_bytes(data[:-200_000])
    result = run()
    assert result.exit_status == 4
    assert "5 of its 6 chips would newly be quarantined, more than `max_quarantined=0.1`" in result.tiles[0].reason
    assert Path(first.tiles[0].file).read_bytes() == made
    assert receipt_of(out)["chips"] == 6
    accepted = run(max_quarantined=1)
    assert (accepted.exit_status, accepted.chips, len(accepted.quarantined)) == (3, 1, 5)
    # Known by now, and of another listing: they do not count.
    os.utime(paths[0])
    assert (again := run()).exit_status == 3, again.tiles
    for path, data in zip(paths[1:], sound[1:], strict=True):
        path.write_bytes(data)
    mended = run()
    assert (mended.exit_status, mended.chips) == (0, 6)
    assert Path(mended.tiles[0].file).read_bytes() == made


def test_a_file_does_not_vanish_for_chips_that_are_newly_bad(client, tmp_path):
    (path,) = write_chips(tmp_path / "chips", rows=1, cols=1)
    out = tmp_path / "out"

    def run(**options):
        return daskembed.run(
            "33TUL", source=str(tmp_path / "chips"), output=str(out), cluster=client, **TINY, **options
        )

    file = Path(run().tiles[0].file)
    path.write_bytes(b"hello")
    assert "its published file would vanish" in run().tiles[0].reason
    assert file.exists()
    assert run(max_quarantined=1).exit_status == 3
    assert not file.exists()


def test_quarantined_chips_of_finished_tiles_are_tried_again_on_demand(client, my_chips, tmp_path, monkeypatch):
    """What was wrong with them may have been the machine's or the store's fault."""
    run = dict(source=str(my_chips), output=str(tmp_path / "out"), cluster=client, **TINY)
    path = tile_folder(my_chips) / "claytile_33TUL_20190416_v02_0002.tif"
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(data)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert daskembed.run("33TUL", **run).exit_status == 3
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    skipped = daskembed.run("33TUL", **run)
    assert (skipped.exit_status, skipped.tiles[0].status) == (3, "skipped")
    found = daskembed.run("33TUL", retry_quarantined=True, **run)
    assert (found.exit_status, found.tiles[0].status, found.chips) == (0, "done", 4)
    # Nothing is left to be tried.
    assert daskembed.run("33TUL", retry_quarantined=True, **run).tiles[0].status == "skipped"


def test_parts_depend_on_the_chips_whose_headers_are_bad(my_chips, tmp_path):
    """A header that is read well the second time must not meet parts of other chips."""
    chosen_here = chosen(my_chips, tmp_path / "out")
    path = tile_folder(my_chips) / "claytile_33TUL_20190416_v02_0001.tif"
    data, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(data)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    bad, _ = stages.index(chosen_here, "33TUL", None, [])
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    good, _ = stages.index(chosen_here, "33TUL", None, [])
    assert bad.listing == good.listing
    assert not set(bad.parts) & set(good.parts)


def test_what_is_raised_while_a_chip_is_tried_does_not_condemn_it(chips, tmp_path, monkeypatch):
    """Here by a machine without its TIFF driver: it is told where the block is tried again."""
    # The process that tries chips loads the encoder anew, of a size that it knows.
    made = chosen(chips, tmp_path, "untrained:tiny")
    _, blocks = stages.index(made, "33TUL", None, [])
    monkeypatch.setenv("GDAL_SKIP", "GTiff")
    assert deadly_chips(BlockSuspects(blocks[0], made.encoder, made.level)) == {}


def test_paused_workers_are_told_of():
    def pause(name, *, dask_worker):
        dask_worker.status = Status[name]

    # Without a limit of memory: its watch would have the worker run again.
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit=None, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        (address,) = client.nthreads()
        assert client.run_on_scheduler(fleet._workers) == {address: (2, False)}
        client.run(pause, "paused")
        end = time.monotonic() + 30
        while not (found := client.run_on_scheduler(fleet._workers))[address][1]:
            assert time.monotonic() < end
            time.sleep(0.05)
        client.run(pause, "running")
    assert found == {address: (2, True)}
    assert fleet._trouble([address], alone=True) == f"Dask has paused workers that are short of memory: {address}"


def settings_of(chips, output, level):
    return settings.Settings(
        source=Storage(str(chips)),
        output=Storage(str(output)),
        encoder=daskembed.load_encoder(**TINY),
        level=level,
        on_nan="quarantine",
        reading=Reading(),
        version="001",
        chips_a_block=2,
    )


def test_blocks_are_built_without_computing(chips, tmp_path, small_blocks, monkeypatch):
    import dask

    chosen = settings_of(chips, tmp_path, "group")
    monkeypatch.setattr("daskembed.sources.geotiff.read_chip", refuse_to_compute)
    with dask.config.set(scheduler=refuse_to_compute):
        indexed, blocks = stages.index(chosen, "33TUL", None, [])
    assert [block.chips for block in blocks] == [2, 2]
    assert list(indexed.parts) == [block.path for block in blocks]
    assert len(set(indexed.parts)) == 2


def test_chips_that_are_set_aside_are_quarantined_untouched(chips, tmp_path, monkeypatch):
    """Those of which a process died: the others of their block come out as before."""
    chosen = settings_of(chips, tmp_path, "mean")
    _, (block, *_) = stages.index(chosen, "33TUL", None, [])
    whole, read_chip, seen = block.compute(), geotiff.read_chip, []

    def look(url, *how, **more):
        seen.append(url)
        return read_chip(url, *how, **more)

    monkeypatch.setattr(geotiff, "read_chip", look)
    first, second = block.urls
    frame = block.compute({first: "ends the process", "s3://of/another/block.tif": "is not here"})
    assert seen == [second]
    assert list(frame["quarantined"].fillna("")) == ["ends the process", ""]
    assert frame["embeddings"].isna().tolist() == [True, False]
    np.testing.assert_array_equal(frame["embeddings"].iloc[1], whole["embeddings"].iloc[1])


def test_parts_of_other_chips_or_settings_go_with_the_next_run(chips, tmp_path):
    chosen = settings_of(chips, tmp_path, "mean")
    indexed, _ = stages.index(chosen, "33TUL", None, [])
    stale = "_daskembed/parts/33TUL_v001/of-other-settings/00000.parquet"
    elsewhere = "_daskembed/parts/33TUL_v002/of-another-version/00000.parquet"
    for path in (indexed.parts[0], stale, elsewhere):
        chosen.output.put(path, b"part")
    _, blocks = stages.index(chosen, "33TUL", None, [])
    assert [block.path for block in blocks] == [indexed.parts[1]]
    assert not (tmp_path / stale).exists()
    assert (tmp_path / elsewhere).exists()
    assert (tmp_path / indexed.parts[0]).exists()


def test_blocks_get_smaller_as_vectors_get_larger():
    encoder = daskembed.load_encoder("untrained:small", precision="fp32")
    assert [settings.chips_a_block(encoder, level) for level in ("mean", "patch", "group")] == [64, 64, 14]


def test_windows_of_many_tiles_finish_in_order(client, my_chips, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "RETRIES", 0)
    names = ["33TUK", "33TUL", "33TUM", "33TVL", "33TVM"]
    for name in set(names) - {"33TUL"}:
        write_chips(my_chips, tile=name, rows=1, cols=1)
    result = daskembed.run(names, source=str(my_chips), output=str(tmp_path / "out"), cluster=client, **TINY)
    assert sorted(tile.tile for tile in result.tiles) == names
    assert result.exit_status == 0


def test_the_command_tells_what_it_did(chips, tmp_path):
    command = [sys.executable, "-m", "daskembed", "run", "--tiles", "33TUL,27WXN", "--source", str(chips)]
    command += ["--checkpoint", "untrained:tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("dashboard: http://127.0.0.1:")
    assert any(line.startswith("33TUL  done: 4 chips") for line in lines)
    assert any(line.startswith("27WXN  failed: no chips of tile 27WXN") for line in lines)
    assert "Traceback" not in done.stdout + done.stderr
    assert str(tmp_path) in done.stdout


@pytest.mark.faults
def test_ctrl_c_stops_the_command_and_the_same_command_goes_on(tmp_path):
    write_chips(tmp_path / "chips", rows=3, cols=3)
    command = [sys.executable, "-m", "daskembed", "run", "--tiles", "33TUL", "--source", str(tmp_path / "chips")]
    command += ["--checkpoint", "untrained:small", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("dashboard")
    time.sleep(1)
    # As a terminal does: to the command and to its workers at once.
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    assert "interrupted: " in output
    assert not re.search("Traceback|distributed|tornado|asyncio", output), output
    assert not list((tmp_path / "out").glob("*.gpq"))


@pytest.mark.real
@pytest.mark.parametrize("level", ["mean", "patch", "group"])
def test_real_chips_give_the_expected_embeddings(client, shared, tmp_path, level):
    expected = np.load(shared / "golden" / "clay-v0-tiny-seed0.npz")
    names = [str(name) for name in expected["chips" if level == "mean" else f"{level}_chips"]]
    tiles = sorted({Path(name).name.split("_")[1] for name in names})
    source = shared / "data" / "chips"
    result = daskembed.run(
        tiles,
        source=str(source),
        output=str(tmp_path),
        level=level,
        cluster=client,
        **TINY | {"checkpoint": "untrained:tiny"},
    )
    assert result.exit_status == 0
    made = {
        Path(url).name: vector.reshape(-1, 256)
        for tile in result.tiles
        for url, vector in gpd.read_parquet(tile.file)[["source_url", "embeddings"]].itertuples(index=False)
    }
    for name, wanted in zip(names, expected[level].reshape(len(names), -1, 256), strict=True):
        found = made[Path(name).name]
        assert np.linalg.norm(found - wanted) <= 2e-6 * np.linalg.norm(wanted), name


@pytest.mark.real
def test_a_real_chip_with_nan_is_quarantined_with_exit_status_3(shared, tmp_path, capsys):
    command = ["run", "--tiles", "29UNU", "--source", str(shared / "data" / "chips_bad"), "--output", str(tmp_path)]
    assert main([*command, "--checkpoint", "untrained:tiny"]) == 3
    assert "not finite: 108544 in vh, 108544 in vv, 57344 in dem" in capsys.readouterr().out
