from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr
from distributed import Client

import daskembed
from daskembed.cli.main import main
from daskembed.cli.status import show
from daskembed.errors import InputError, LockLostError, StorageError, TileError
from daskembed.output import lock, state
from daskembed.output.status import status
from daskembed.output.tile_status import OutputStatus, TileStatus
from daskembed.output.validate.check import validate
from daskembed.runs import cube_layout, cube_stages, cube_tasks, window
from daskembed.runs.results import Event, Progress
from daskembed.runs.summary import summary
from daskembed.sensors.bands import MARK
from daskembed.sources import geotiff
from daskembed.sources.reading import Reading
from daskembed.storage.stores import Storage
from daskembed.testing import landscape, write_chips

TILE = "33TUL"
DATES = ("2019-04-16", "2019-05-01")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def coarse_landscape(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A landscape of squares of 8 pixels: drawn, compressed and read in a fraction of the time."""
    return landscape(height // 8, width // 8, seed=seed).repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module", autouse=True)
def _chips_are_coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[write_chips.__module__], "landscape", coarse_landscape)
        yield


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 x 5 chips of one date and 2 x 5 of another, in two shards each; not to be changed."""
    folder = tmp_path_factory.mktemp("chips")
    for seed, date in enumerate(DATES):
        write_chips(folder, date=date, rows=1 + seed, cols=5, seed=seed)
    return folder


@pytest.fixture(scope="module")
def cube(chips: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their cube; not to be changed."""
    output = tmp_path_factory.mktemp("cubes")
    result = daskembed.write_cubes([TILE], source=str(chips), output=str(output), cluster=client)
    assert result.exit_status == 0
    assert (result.chips, result.encoded) == (15, 15)
    return output / f"{TILE}.zarr"


@dataclass
class Copy:
    """Chips that a test may change, and a place for their cube."""

    source: Path
    output: Path
    client: Client

    @property
    def paths(self) -> list[Path]:
        return sorted(self.source.rglob("*.tif"))

    @property
    def receipt(self) -> dict:
        return json.loads((self.output / state.receipt_path(TILE, None)).read_text())

    @property
    def root(self) -> Path:
        return self.output / f"{TILE}.zarr" / "zarr.json"

    def write(self, **options: Any) -> daskembed.RunResult:
        return daskembed.write_cubes(
            [TILE], source=str(self.source), output=str(self.output), cluster=self.client, **options
        )

    def open(self) -> xr.DataArray:
        return xr.open_zarr(self.root.parent)["pixels"]


@pytest.fixture
def copy(chips: Path, tmp_path: Path, client: Client) -> Copy:
    shutil.copytree(chips, tmp_path / "chips")
    return Copy(tmp_path / "chips", tmp_path / "cubes", client)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chips that are read from now on."""
    read, read_chip = [], geotiff.read_chip

    def count(url: str, bands: tuple[int, ...], *listed: Any) -> np.ndarray:
        read.append(Path(url).name)
        return read_chip(url, bands, *listed)

    monkeypatch.setattr(geotiff, "read_chip", count)
    return read


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    """Spoil pixels, so that the header is sound."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)


def assert_holds(pixels: xr.DataArray, paths: list[Path], without: tuple[Path, ...] = ()) -> None:
    """Each chip is where its own georeferencing says, pixel by pixel, and there is nothing else."""
    values = pixels.to_numpy()
    for path in paths:
        if path in without:
            continue
        with rasterio.open(path) as file:
            west, north = file.xy(0, 0)
            y, x = list(pixels["y"].to_numpy()).index(north), list(pixels["x"].to_numpy()).index(west)
            time = list(pixels["time"].to_numpy()).index(np.datetime64(file.tags()["date"]))
            assert list(pixels["band"].to_numpy()) == list(file.descriptions)
            chip = values[time, :, y : y + 512, x : x + 512]
            np.testing.assert_array_equal(chip, file.read())
            chip[...] = np.nan
    assert np.isnan(values).all()


def test_pixels_and_coordinates_come_back(cube: Path, chips: Path) -> None:
    opened = xr.open_zarr(cube)
    assert list(opened.data_vars) == ["pixels"]
    pixels = opened["pixels"]
    assert pixels.dtype == np.float32
    assert pixels.dims == ("time", "band", "y", "x")
    assert pixels.shape == (2, 13, 2 * 512, 5 * 512)
    assert pixels.sel(time=DATES[1], band="B08").shape == (2 * 512, 5 * 512)
    assert_holds(pixels, sorted(chips.rglob("*.tif")))
    np.testing.assert_array_equal(pixels[1], coarse_landscape(2 * 512, 5 * 512, seed=1))


def test_the_place_is_told_to_rioxarray_and_by_geozarr(cube: Path, chips: Path) -> None:
    opened = xr.open_zarr(cube)
    with rasterio.open(min(chips.rglob("*.tif"))) as first:
        assert opened.rio.crs == opened["pixels"].rio.crs == first.crs
        assert opened["pixels"].rio.transform() == first.transform
        west, north = first.bounds.left, first.bounds.top
        bounds = (west, north - 2 * 5120, west + 5 * 5120, north)
        transform = list(first.transform)[:6]
    assert opened["pixels"].rio.bounds() == bounds
    for attributes in (opened.attrs, opened["pixels"].attrs):
        assert attributes["proj:code"] == "EPSG:32633"
        assert attributes["spatial:transform"] == transform
        assert attributes["spatial:dimensions"] == ["y", "x"]
        assert attributes["spatial:shape"] == [2 * 512, 5 * 512]
        assert tuple(attributes["spatial:bbox"]) == bounds
        assert {one["name"]: one["uuid"] for one in attributes["zarr_conventions"]} == {
            "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
            "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        }


def test_it_is_zarr_v3_in_shards_of_chips(cube: Path) -> None:
    import zarr

    array = zarr.open_group(cube, mode="r")["pixels"]
    assert array.metadata.zarr_format == 3
    assert array.chunks == (1, 13, 512, 512)
    assert array.shards == (1, 13, 2048, 2048)
    assert json.loads((cube / "zarr.json").read_text())["consolidated_metadata"]["metadata"].keys() == {
        *("pixels", "time", "band", "y", "x", "spatial_ref")
    }


def test_gdal_reads_it(cube: Path) -> None:
    try:
        file = rasterio.open(f'ZARR:"{cube}":/pixels:0')
    except rasterio.RasterioIOError as error:
        pytest.skip(f"GDAL {rasterio.__gdal_version__} cannot: {error}")
    with file:
        assert file.shape == (2 * 512, 5 * 512)
        assert file.crs.to_epsg() == 32633


def test_it_is_smaller_than_the_chips(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[write_chips.__module__], "landscape", landscape)  # as fine as a real one
    (chip,) = map(Path, write_chips(tmp_path / "chips", rows=1, cols=1))
    result = daskembed.write_cubes(
        [TILE], source=str(tmp_path / "chips"), output=str(tmp_path / "cubes"), cluster=client
    )
    assert 0 < result.tiles[0].size < 0.85 * chip.stat().st_size


def test_nan_stays_and_what_is_missing_becomes_nan(copy: Copy) -> None:
    with rasterio.open(copy.paths[0], "r+") as file:
        pixels = file.read()
        pixels[10, 100:200, 300] = np.nan
        pixels[0, 5, 5] = 0.1  # which uint16 would not hold
        pixels[12, 5, 5] = -0.0
        file.write(pixels)
    copy.paths[7].unlink()
    result = copy.write()
    assert (result.exit_status, result.chips) == (0, 14)
    assert_holds(copy.open(), copy.paths)
    assert np.signbit(copy.open()[0, 12, 5, 5])


def test_a_bad_chip_is_left_out_and_listed(copy: Copy) -> None:
    damaged, headless = copy.paths[1], copy.paths[6]
    damage(damaged)
    headless.write_bytes(b"nothing")
    result = copy.write()
    assert result.exit_status == 3
    assert set(result.quarantined) == {str(damaged), str(headless)} == set(copy.receipt["quarantined"])
    assert result.chips == 13
    assert "damaged" in result.quarantined[str(damaged)]
    assert_holds(copy.open(), copy.paths, without=(damaged, headless))
    again = copy.write()
    assert (again.exit_status, again.encoded, again.quarantined) == (3, 0, result.quarantined)
    assert "quarantined  2" in summary(again)


@pytest.mark.parametrize("spoil", [damage, lambda path: path.write_bytes(b"nothing")], ids=["pixels", "headers"])
def test_there_is_no_cube_of_bad_chips_only(copy: Copy, spoil: Callable[[Path], None]) -> None:
    for path in copy.paths:
        spoil(path)
    result = copy.write(max_quarantined=1)
    assert (result.exit_status, result.chips, result.tiles[0].file) == (3, 0, None)
    assert not copy.root.parent.exists()
    assert copy.write(max_quarantined=1).tiles[0].status == "skipped"


def test_a_finished_tile_is_skipped(copy: Copy, reads: list[str]) -> None:
    first = copy.write()
    assert len(reads) == 15
    before, receipt = contents(copy.output), copy.receipt
    again = copy.write()
    assert len(reads) == 15
    assert contents(copy.output) == before
    assert [tile.status for tile in again.tiles] == ["skipped"]
    assert (again.chips, again.tiles[0].size) == (15, first.tiles[0].size)
    cube = copy.root.parent
    assert receipt["size"] == again.tiles[0].size == sum(map(len, contents(cube).values()))
    assert not list(copy.output.rglob("*.0.0.0.json"))


def test_only_shards_of_changed_chips_are_written_anew(copy: Copy, reads: list[str]) -> None:
    copy.write()
    reads.clear()
    changed = copy.paths[2]
    with rasterio.open(changed, "r+") as file:
        file.write(file.read() + 1)
    assert copy.write().encoded == 4
    assert sorted(reads) == [path.name for path in copy.paths[:4]]
    assert_holds(copy.open(), copy.paths)


def test_there_is_no_cube_while_it_changes(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.write()
    copy.paths[4].unlink()
    seen, read_chip = [], geotiff.read_chip

    def look(url: str, bands: tuple[int, ...], *listed: Any) -> np.ndarray:
        seen.append(copy.root.exists())
        return read_chip(url, bands, *listed)

    monkeypatch.setattr(geotiff, "read_chip", look)
    copy.paths[8].touch()
    copy.write()
    assert seen
    assert not any(seen)
    assert_holds(copy.open(), copy.paths)
    assert not (copy.root.parent / "pixels/c/0/0/0/1").exists()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 3)])
def test_what_a_shard_lacks_is_as_pixels_without_values(rows: int, cols: int) -> None:
    whole = np.full((1, 2, 2048, 2048), np.nan, np.float32)
    some = whole[:, :, : rows * 512, : cols * 512]
    some[...] = np.arange(some.size).reshape(some.shape) % 1000
    some[:, :, :512, 512:1024] = np.nan
    assert cube_stages.encode_shard(some.copy()) == cube_stages.encode_shard(whole)


def test_few_cubes_are_gone_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, source, output = ["33TUL", "33TUM", "33TVL", "33TVM"], tmp_path / "chips", tmp_path / "cubes"
    roots = [output / f"{tile}.zarr" / "zarr.json" for tile in tiles]
    for tile, root in zip(tiles, roots, strict=True):
        write_chips(source, tile=tile, rows=1, cols=1)
        root.parent.mkdir(parents=True)
        root.write_text("{}")  # of an earlier cube
    gone, encode = list[int](), cube_stages.encode_shard

    def count(block: np.ndarray) -> bytes:
        gone.append(sum(not root.exists() for root in roots))
        return encode(block)

    monkeypatch.setattr(cube_stages, "encode_shard", count)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        result = daskembed.write_cubes(tiles, source=str(source), output=str(output), cluster=client)
    assert [tile.status for tile in result.tiles] == ["done"] * 4
    assert len(gone) == 4
    assert max(gone) <= 2


def test_a_shard_that_vanished_is_written_again(copy: Copy, reads: list[str]) -> None:
    copy.write()
    before = contents(copy.root.parent)
    reads.clear()
    (copy.root.parent / "pixels/c/1/0/0/1").unlink()
    assert copy.write().encoded == 2
    assert sorted(reads) == [copy.paths[9].name, copy.paths[14].name]
    assert contents(copy.root.parent) == before


@pytest.mark.parametrize("damaged", ["zarr.json", "pixels/zarr.json", "x/c/0", "time/c/0"])
def test_a_cube_with_a_damaged_object_is_made_sound_again(
    copy: Copy, cube: Path, reads: list[str], damaged: str
) -> None:
    copy.write()
    path = copy.root.parent / damaged
    os.truncate(path, path.stat().st_size - 1)
    reads.clear()
    result = copy.write()
    assert (result.tiles[0].status, result.encoded, reads) == ("done", 0, [])
    assert contents(copy.root.parent) == contents(cube)
    path.unlink()
    assert copy.write().tiles[0].status == "done"
    assert contents(copy.root.parent) == contents(cube)
    assert copy.write().tiles[0].status == "skipped"


def test_what_killed_writers_left_in_a_cube_goes(copy: Copy, cube: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = copy.root.parent / "pixels/c/0/0/0/.1.0123abcd.tmp"
    put = cube_stages.cube_metadata

    def die(*args: object) -> dict[str, bytes]:
        left.touch()  # of a worker that died while it wrote what another has written
        return put(*args)

    monkeypatch.setattr(cube_stages, "cube_metadata", die)
    copy.write()
    assert not left.exists()
    left.touch()  # of an earlier release
    assert copy.write().tiles[0].status == "skipped"
    assert not left.exists()
    assert contents(copy.root.parent) == contents(cube)


def test_a_run_that_lost_its_lock_makes_and_unmakes_no_cube(copy: Copy) -> None:
    copy.write()
    output = Storage(str(copy.output))
    with lock.hold(output, None) as held:
        job = cube_layout.Job(Storage(str(copy.source)), output, lock=held)
        copy.paths[0].unlink()
        plan = cube_stages.plan_tile(job, TILE)
        assert not copy.root.exists()
        output.put(held.path, b'{"token": "another"}')
        before = contents(copy.output)
        for act in (
            lambda: cube_stages.write_shard(job, TILE, len(plan.layout.bands), plan.to_do[0]),
            lambda: cube_stages.finish_tile(job, plan, {}),
            lambda: cube_stages.plan_tile(job, TILE),
        ):
            with pytest.raises(LockLostError):
                act()
        assert contents(copy.output) == before


KILLED = dedent("""\
    import os, signal, sys
    from contextlib import contextmanager
    from distributed import Client
    import daskembed
    from daskembed.storage.stores import Storage

    source, output, word, nth = sys.argv[1:]
    seen, open_writer = [], Storage.open_writer

    @contextmanager
    def watch(self, path):
        with open_writer(self, path) as file:
            yield file
            if word in path and (seen.append(path) or len(seen) == int(nth)):
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    Storage.open_writer = watch
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        daskembed.write_cubes(["33TUL"], source=source, output=output, cluster=client)
""")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("word", "nth", "done"),
    [
        ("/pixels/c/", 3, 2),  # in the middle of the third shard
        (".zarr/x/", 1, 4),  # all shards are there, the coordinates are not
        ("33TUL.zarr/zarr.json", 1, 4),  # only the root is missing
        ("cubes/33TUL.json", 2, 4),  # the cube is complete, its receipt is missing
    ],
)
def test_a_killed_run_leaves_no_cube_and_is_gone_on_with(
    copy: Copy, cube: Path, reads: list[str], word: str, nth: int, done: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(copy.source), str(copy.output), word, str(nth)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert copy.root.exists() == (word == "cubes/33TUL.json")
    assert copy.receipt["status"] == "unfinished"
    if not copy.root.exists():
        with pytest.raises((FileNotFoundError, ValueError)):
            copy.open()
    finished = {path.name for path in copy.output.glob("_daskembed/cubes/33TUL/*.json")}
    assert len(finished) == done
    result = copy.write()
    assert result.exit_status == 0
    chips_of = {"c.0.0.0.0.json": 4, "c.0.0.0.1.json": 1, "c.1.0.0.0.json": 8, "c.1.0.0.1.json": 2}
    assert len(reads) == 15 - sum(chips_of[name] for name in finished)
    assert contents(copy.root.parent) == contents(cube)
    assert not list(copy.output.rglob("*.tmp"))


@pytest.mark.parametrize(("bad", "said"), [(5, "5 of its 15 chips would newly"), (15, "published file would vanish")])
def test_a_cube_stays_where_too_many_headers_are_newly_bad(copy: Copy, cube: Path, bad: int, said: str) -> None:
    shutil.copytree(cube.parent, copy.output)
    sound = [path.read_bytes() for path in copy.paths]
    before, receipt = contents(cube), copy.receipt
    for path in copy.paths[:bad]:
        path.write_bytes(b"hello")
    result = copy.write()
    assert (result.exit_status, result.tiles[0].status) == (4, "failed")
    assert said in str(result.tiles[0].reason)
    assert (contents(copy.root.parent), copy.receipt) == (before, receipt)
    accepted = copy.write(max_quarantined=1)
    assert (accepted.exit_status, len(accepted.quarantined)) == (3, bad)
    # Known by now, and of another listing: they do not count.
    os.utime(copy.paths[-1])
    assert copy.write().exit_status == 3
    for path, data in zip(copy.paths, sound, strict=True):
        path.write_bytes(data)
    assert copy.write().exit_status == 0
    assert copy.root.exists()


def test_an_interrupted_run_says_what_it_gives_up(chips: Path, tmp_path: Path, client: Client) -> None:
    states: list[tuple[str, list[str]]] = []

    def interrupt(state: Progress) -> None:
        states.append((state.how, list(state.said)))
        if state.indexed:
            raise KeyboardInterrupt

    result = daskembed.write_cubes([TILE], source=str(chips), output=str(tmp_path), cluster=client, progress=interrupt)
    assert (result.exit_status, result.unfinished) == (130, 1)
    how, (line,) = states[-1]
    assert how == "interrupted"
    assert line.startswith("interrupted: 4 unfinished shards given up, finished ones are kept; no tile waits")


def test_a_cube_on_an_object_store(s3: str, chips: Path, cube: Path, client: Client) -> None:
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    first = write_to(s3, chips, client)
    assert [tile.file for tile in first.tiles] == [f"{s3}/cubes/{TILE}.zarr"]
    store = from_url(f"{s3}/cubes/{TILE}.zarr", client_options={"allow_http": True})
    xr.testing.assert_identical(xr.open_zarr(ObjectStore(store, read_only=True)).load(), xr.open_zarr(cube).load())
    assert write_to(s3, chips, client).tiles[0].status == "skipped"
    Storage(s3).delete([f"cubes/{TILE}.zarr/zarr.json"])
    assert write_to(s3, chips, client).encoded == 0
    assert Storage(s3).get(f"cubes/{TILE}.zarr/zarr.json") == (cube / "zarr.json").read_bytes()


def write_to(s3: str, chips: Path, client: Client) -> daskembed.RunResult:
    return daskembed.write_cubes([TILE], source=str(chips), output=f"{s3}/cubes", cluster=client)


def test_chips_of_two_grids_are_refused(chips: Path, tmp_path: Path) -> None:
    job = cube_layout.Job(Storage(str(chips)), Storage(str(tmp_path)))
    index = daskembed.index_tile(TILE, str(chips))
    other = index.loc[3, "source_url"]

    def changed(**values: object) -> object:
        made = index.copy()
        for column, value in values.items():
            made.loc[3, column] = value
        return made

    west, east, north = (index.loc[3, edge] for edge in ("west", "east", "north"))
    for values, message in (
        ({"epsg": 32634}, "is in EPSG:32634, .* in EPSG:32633: a cube has one grid"),
        ({"west": west + 10, "east": east + 10}, "lies 1537 pixels east and 0 south of .*, not multiples of 512"),
        ({"north": north + 5120}, "has pixels of 10 x 20"),
        ({"west": index.loc[2, "west"], "east": index.loc[2, "east"]}, "are of one place and date"),
    ):
        with pytest.raises(TileError, match=message) as refused:
            cube_layout.lay_out(job, changed(**values))
        assert str(other) in str(refused.value)


def tag(path: Path, *, scale: float = 1.0, **tags: str) -> None:
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
        if scale != 1:
            file.scales, file.offsets = (scale,) * 10 + (1.0,) * 3, (-1000 * scale,) * 10 + (0.0,) * 3


def test_a_cube_says_of_which_dates_the_offset_is_out(copy: Copy, cube: Path, tmp_path: Path) -> None:
    for path in copy.paths:
        if DATES[1] in str(path):
            tag(path, PROCESSING_BASELINE="04.00")
    result = copy.write()
    notes = ["10 chips: B02 to B12 (10 bands): 1000 taken out (processing baseline 04.00)"]
    assert copy.receipt["notes"] == notes
    assert list(result.tiles[0].notes) == notes
    assert f"note         {notes[0]}" in summary(result)
    assert json.loads(copy.root.read_text())["attributes"][MARK] == [DATES[1]]
    assert MARK not in (cube / "zarr.json").read_text()
    whole = copy.open().to_numpy()
    before = xr.open_zarr(cube)["pixels"].to_numpy()
    np.testing.assert_array_equal(whole[0], before[0])
    taken = np.where(before[1, :10] >= 1, np.maximum(before[1, :10] - 1000, 1), before[1, :10])
    np.testing.assert_array_equal(whole[1, :10], taken)
    for asked in (None, "no", "yes"):
        chips = daskembed.index_tile(TILE, str(copy.output), offset_applied=asked)["chip"]
        assert all(scale.taken_out == 0 for chip in chips for scale in chip.scene.scales)
        last = chips.iloc[-1]
        assert "1000 was taken out when the cube was written" in last.scene.note
        np.testing.assert_array_equal(last.read(), whole[1, :, -512:, -512:])
    job = cube_layout.Job(Storage(str(copy.output)), Storage(str(tmp_path)))
    again, _ = cube_layout.lay_out(job, daskembed.index_tile(TILE, str(copy.output)))
    assert again is not None
    assert [str(day) for day in again.offset_applied] == [DATES[1]]
    # A receipt from before there were notes.
    path = copy.output / state.receipt_path(TILE, None)
    path.write_text(json.dumps({key: value for key, value in copy.receipt.items() if key != "notes"}))
    old = state.read_cube_receipt(job.source, TILE)
    assert old is not None
    assert (old.status, old.notes) == ("done", [])


def test_who_says_that_the_offset_is_out_has_it_said_by_the_cube(chips: Path, tmp_path: Path) -> None:
    index = daskembed.index_tile(TILE, str(chips), offset_applied="yes")
    layout, _ = cube_layout.lay_out(cube_layout.Job(Storage(str(chips)), Storage(str(tmp_path))), index)
    assert layout is not None
    assert [str(day) for day in layout.offset_applied] == list(DATES)


def test_a_date_of_which_the_offset_is_out_of_some_chips_only_is_refused(copy: Copy) -> None:
    first, second = copy.paths[:2]
    tag(first, PROCESSING_BASELINE="04.00")
    tag(second, scale=1e-4)
    job = cube_layout.Job(Storage(str(copy.source)), Storage(str(copy.output)))
    found = rf"nothing tells of {second} whether .* and of {first}, of the same date, it is out: .* `offset_applied`"
    with pytest.raises(TileError, match=found):
        cube_layout.lay_out(job, daskembed.index_tile(TILE, str(copy.source)))
    told = cube_layout.Job(job.source, job.output, Reading(offset_applied="no"))
    layout, _ = cube_layout.lay_out(told, daskembed.index_tile(TILE, str(copy.source), offset_applied="no"))
    assert layout is not None
    assert [str(day) for day in layout.offset_applied] == [DATES[0]]


def test_chips_fall_into_shards_by_their_places(chips: Path, tmp_path: Path) -> None:
    job = cube_layout.Job(Storage(str(chips)), Storage(str(tmp_path)))
    index = daskembed.index_tile(TILE, str(chips))
    for edge, chips_off in (("north", -9), ("south", -9), ("west", 6), ("east", 6)):
        index.loc[14, edge] += chips_off * 5120
    layout, shards = cube_layout.lay_out(job, index)
    assert layout is not None
    assert layout.shape == (2, 13, 11 * 512, 11 * 512)
    assert (layout.grid.west, layout.grid.north) == (index.loc[0, "west"], index.loc[0, "north"])
    assert {shard.key: [chip[:2] for chip in shard.chips] for shard in shards} == {
        "c/0/0/0/0": [(0, 0), (0, 1), (0, 2), (0, 3)],
        "c/0/0/0/1": [(0, 0)],
        "c/1/0/0/0": [(row, col) for row in (0, 1) for col in range(4)],
        "c/1/0/0/1": [(0, 0)],
        "c/1/0/2/2": [(2, 2)],
    }


def test_a_bad_tile_fails_and_the_others_go_on(copy: Copy) -> None:
    result = daskembed.write_cubes(
        ["33TUM", TILE], source=str(copy.source), output=str(copy.output), cluster=copy.client
    )
    assert result.exit_status == 4
    assert {tile.tile: tile.status for tile in result.tiles} == {"33TUM": "failed", TILE: "done"}
    assert "33TUM  no chips of tile 33TUM" in summary(result)


@pytest.mark.parametrize("failures", [2, 3])
def test_what_fails_is_tried_twice_more(copy: Copy, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    encode, left, events = cube_stages.encode_shard, [None] * failures, list[Event]()
    copy.paths[4].unlink()  # which leaves the first date one shard

    def fail(block: np.ndarray) -> bytes:
        if left and np.isnan(block[0, 0, 512:]).all():  # the first date's
            left.pop()
            raise OSError("no answer")
        return encode(block)

    monkeypatch.setattr(cube_stages, "encode_shard", fail)
    result = copy.write(events=events.append)
    retried = [(event.tile, event.stage, event.reason) for event in events if event.event == "retried"]
    assert retried == [(TILE, "write", "OSError: no answer")] * 2
    if failures == 3:
        assert (result.exit_status, result.tiles[0].reason) == (4, "OSError: no answer")
        assert copy.write().exit_status == 0
    assert_holds(copy.open(), copy.paths)


def test_events_and_the_page_tell_of_a_cube(copy: Copy) -> None:
    copy.paths[6].write_bytes(b"nothing")
    events: list[Event] = []
    source, output = str(copy.source), str(copy.output)
    result = daskembed.write_cubes(
        [TILE, "33TUM"], source=source, output=output, cluster=copy.client, events=events.append
    )
    assert (result.exit_status, result.kind, result.stage_seconds["write"] > 0) == (4, "cube", True)
    of_tile = [event for event in events if event.tile == TILE]
    assert [event.event for event in of_tile if event.event != "written"] == [
        *("tile_started", "indexed", "quarantined", "published")
    ]
    assert of_tile[1].counts == {"blocks": 4, "chips": 14}
    written = [event for event in of_tile if event.event == "written"]
    assert {event.block: event.counts["chips"] for event in written} == {0: 4, 1: 1, 2: 7, 3: 2}
    assert all(event.worker for event in written)
    assert (of_tile[-1].file, of_tile[-1].counts["chips"]) == (str(copy.root.parent), 14)
    assert [event.event for event in events if event.tile == "33TUM"] == ["tile_started", "failed"]
    assert events[-1].counts.items() >= {"done": 1, "failed": 1, "encoded": 14, "quarantined": 1}.items()
    page = copy.client.cluster.scheduler.plugins["daskembed-page"]
    for _ in range(600):
        if (told := page.state()["runs"][0])["state"] == "over":
            break
        time.sleep(0.05)  # the client does not wait for it
    assert told.items() >= {"output": output, "state": "over", "done": 1, "failed": 1, "in_files": 14}.items()


def test_where_nothing_is_left_to_do_no_cluster_is_started(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copy.write().exit_status == 0

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(window, "connect", never)
    arguments = ["cube", "--source", str(copy.source), "--output", str(copy.output), "--tiles", TILE]
    left = copy.root.parent / "pixels/c/0/0/0/.1.0123abcd.tmp"
    left.touch()  # of a writer that was killed
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing is left to do: no cluster is started"
    assert lines[1].startswith(f"{TILE}  skipped: 15 chips, ")
    assert lines[2] == "tiles        1 skipped"
    assert not left.exists()
    assert main([*arguments, "33TUM"]) == 4
    assert "33TUM  failed" in capsys.readouterr().out
    assert main([*arguments[:-1], "33TUM", "--log-format", "json"]) == 4
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["run_started", "tile_started", "failed", "run_ended"]
    os.utime(copy.paths[0])
    with pytest.raises(AssertionError, match="a cluster was started"):
        main(arguments)


def test_a_shard_of_which_workers_die_is_examined_and_tried_with_less(copy: Copy) -> None:
    copy.output.mkdir()
    job = cube_layout.Job(Storage(str(copy.source)), Storage(str(copy.output)))
    plan = cube_stages.plan_tile(job, TILE)
    assert isinstance(plan, cube_stages.Plan)
    write: Any = cube_tasks._Write(cube_tasks.CubeTile(TILE, 0, "now", job, plan), plan.to_do[0], 0)
    examine = write.given_back(died=True)
    assert (examine.key, examine.number) == (f"examine-{TILE}-0-now-again1", 0)
    function, arguments = examine.call()
    assert function(*arguments) == {}
    deadly = {str(copy.paths[0]): "ends the process"}
    (again,) = examine.then(deadly, None)
    assert again.key == f"write-{TILE}-0-now-again1"
    function, arguments = again.call()
    note = function(*arguments)
    assert (note.chips, note.quarantined) == (3, deadly)
    # Examined once: what is left is to take less at a time.
    for died in (True, False):
        twice = again.given_back(died=died)
        assert (twice.key, twice.set_aside, twice.call()[1][-1]) == (f"write-{TILE}-0-now-again2", deadly, 2)
    assert examine.given_back(died=True).key == f"examine-{TILE}-0-now-again2"
    assert examine.given_back(died=False).key == f"write-{TILE}-0-now-again2"


def test_what_cannot_work_is_refused(copy: Copy) -> None:
    with pytest.raises(InputError, match="is the source too"):
        daskembed.write_cubes([TILE], source=str(copy.source), output=str(copy.source), cluster=copy.client)
    with pytest.raises(InputError, match="no folder"):
        daskembed.write_cubes([TILE], source="/nowhere", output=str(copy.output), cluster=copy.client)
    with pytest.raises(InputError, match="is not an MGRS tile"):
        daskembed.write_cubes(["33AAA"], source=str(copy.source), output=str(copy.output), cluster=copy.client)
    with pytest.raises(
        InputError, match="`workers` is for a cluster that is started for the run; the client's cluster"
    ):
        copy.write(workers=2)
    with pytest.raises(InputError, match="`cluster_arguments` is for a cluster that is started for the run"):
        copy.write(cluster_arguments={"n_workers": 2})
    copy.output.write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        copy.write()


def test_the_command(copy: Copy, capfd: pytest.CaptureFixture[str]) -> None:
    copy.paths[0].write_bytes(b"nothing")
    arguments = ["cube", "--tiles", TILE, "--source", str(copy.source), "--output", str(copy.output)]
    assert main(arguments) == 3
    printed = capfd.readouterr().out
    assert f"{TILE}  done: 14 chips, 1 quarantined, {copy.root.parent}" in printed
    assert f"  {copy.paths[0]}  is not a TIFF" in printed
    assert_holds(copy.open(), copy.paths, without=(copy.paths[0],))


# What `status` and `validate` say of cubes


@pytest.fixture
def finished(cube: Path, tmp_path: Path) -> Storage:
    """A copy of the finished cube and its receipt, which a test may change."""
    return Storage(str(shutil.copytree(cube.parent, tmp_path / "copied")))


def state_of(output: Storage) -> TileStatus:
    (found,) = status(output.url).tiles
    assert (found.tile, found.kind) == (TILE, "cube")
    return found


def change_receipt(output: Storage, **changes: Any) -> None:
    path = state.receipt_path(TILE, None)
    output.put(path, json.dumps(json.loads(output.get(path)) | changes).encode())


def findings(output: Storage, name: str = f"{TILE}.zarr") -> list[str]:
    return [f"{one.check}: {one}" for one in validate(output.url_of(name))]


def change_metadata(output: Storage, change: Callable[[dict], None], path: str = "zarr.json") -> None:
    """Of the root, where the consolidated ones are too."""
    whole = json.loads(output.get(f"{TILE}.zarr/{path}"))
    change(whole)
    output.put(f"{TILE}.zarr/{path}", json.dumps(whole).encode())


SHARD = "pixels/c/1/0/0/1"


def test_status_of_a_finished_cube(finished: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(finished.url)
    assert found.tiles == (TileStatus(TILE, "", "done", [f"{TILE}.zarr"], 15, kind="cube"),)
    show(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [TILE, "cube", "done", "15", "0", f"{TILE}.zarr"]
    assert lines[2:] == ["cubes        1 done", "quarantined  0"]


def test_what_is_missing_among_cubes_is_a_cube(finished: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    show(status(finished.url, [TILE, "22JGS"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["22JGS", "cube", "missing"]
    assert lines[3:] == ["cubes        1 done, 1 missing", "quarantined  0"]
    assert [tile.kind for tile in status(finished.url, ["22JGS"]).tiles] == ["cube"]


def test_status_of_a_cube_in_work_and_of_one_that_failed(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.paths[6].write_bytes(b"nothing")

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is slow")

    output = Storage(str(copy.output))
    with monkeypatch.context() as patch:
        patch.setattr(cube_stages, "finish_tile", full)
        assert copy.write().exit_status == 4
    found = state_of(output)
    assert (found.status, found.reason, found.files) == ("failed", "the disk is slow", [])
    output.delete([state.record_path(TILE, None)])  # as of a run that was killed
    found = state_of(output)
    assert (found.status, found.parts_done, found.parts) == ("unfinished", 4, 4)
    assert list(found.quarantined) == [str(copy.paths[6])]
    change_receipt(output, shards={}, planned=0)  # of an earlier version
    assert state_of(output).parts is None
    assert copy.write().exit_status == 3
    found = state_of(output)
    assert (found.status, found.chips, list(found.quarantined)) == ("done", 14, [str(copy.paths[6])])


def test_a_failure_is_forgotten_when_the_tile_is_well_again(copy: Copy) -> None:
    copy.write()
    kept = copy.source.rename(copy.source.with_name("kept"))
    copy.source.mkdir()
    assert copy.write().exit_status == 4
    output = Storage(str(copy.output))
    found = state_of(output)
    assert (found.status, found.files, found.chips) == ("failed", [f"{TILE}.zarr"], 15)
    assert found.reason is not None
    assert found.reason.startswith(f"no chips of tile {TILE}")
    copy.source.rmdir()
    kept.rename(copy.source)
    assert copy.write().tiles[0].status == "skipped"
    assert state_of(output).status == "done"


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        (lambda o: o.delete([f"{TILE}.zarr/zarr.json"]), "missing", f"{TILE}.zarr is gone, or its zarr.json is; "),
        (lambda o: shutil.rmtree(f"{o.url}/{TILE}.zarr"), "missing", f"{TILE}.zarr is gone, or its zarr.json is; "),
        (lambda o: o.delete([f"{TILE}.zarr/{SHARD}"]), "changed", ", its receipt says "),
        (lambda o: o.put(f"{TILE}.zarr/{SHARD}", b"x"), "changed", ", its receipt says "),
        (lambda o: o.put(state.receipt_path(TILE, None), b"{"), "damaged", "is not a receipt of daskembed"),
        (lambda o: o.delete([state.receipt_path(TILE, None)]), "unfinished", f"{TILE}.zarr has no receipt: "),
    ],
    ids=["no root", "no cube", "shard gone", "shard changed", "receipt damaged", "no receipt"],
)
def test_status_of_a_cube_that_is_not_as_it_should_be(finished: Storage, change: Any, state: str, said: str) -> None:
    finished.put("_daskembed/cubes/README", b"")
    change(finished)
    found = state_of(finished)
    assert found.status == state
    assert found.reason is not None
    assert said in found.reason


def test_status_tells_cubes_and_embeddings_apart(finished: Storage) -> None:
    finished.put(f"_daskembed/receipts/{TILE}_v001.json", b"{")
    found = status(finished.url)
    assert isinstance(found, OutputStatus)
    assert [(one.kind, one.version, one.status) for one in found.tiles] == [
        ("embeddings", "001", "damaged"),
        ("cube", "", "done"),
    ]


def test_a_finished_cube_is_sound(finished: Storage, cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(finished) == []
    assert main(["validate", finished.url]) == 0
    assert capsys.readouterr().out == f"{finished.url_of(f'{TILE}.zarr')}: ok\n"
    finished.delete([state.receipt_path(TILE, None)])
    (note,) = findings(finished)
    assert note.startswith("receipt: note: no receipt _daskembed/cubes/33TUL.json beside it")


def flip(output: Storage) -> None:
    data = bytearray(output.get(f"{TILE}.zarr/{SHARD}"))
    data[len(data) // 3] ^= 1
    output.put(f"{TILE}.zarr/{SHARD}", bytes(data))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, [f"zarr: {SHARD} cannot be decoded: ", f"receipt: SHA-256 of {SHARD} "]),
        (lambda o: o.delete([f"{TILE}.zarr/{SHARD}"]), [f"receipt: {SHARD} is gone: the same command writes it again"]),
        (
            lambda o: o.put(f"{TILE}.zarr/pixels/c/9/0/0/0", b"x"),
            ["zarr: pixels/c/9/0/0/0 is no shard of pixels", "receipt: pixels/c/9/0/0/0 is not in the receipt"],
        ),
        (lambda o: o.delete([f"{TILE}.zarr/zarr.json"]), ["zarr: no zarr.json: the cube was never finished"]),
        (
            lambda o: change_metadata(o, lambda root: root["attributes"].update(tile="33TUM")),
            ["provenance: the root says that it is of tile 33TUM", "receipt: SHA-256 of all objects "],
        ),
        (lambda o: change_receipt(o, chips=14), ["receipt: pixels of 15 chips, the receipt says 14"]),
        (lambda o: change_receipt(o, status="unfinished"), ["receipt: the receipt _daskembed/cubes/33TUL.json says"]),
        (lambda o: o.put(f"{TILE}.zarr/zarr.json", b"{"), ["zarr: cannot be opened, it is damaged: "]),
        (lambda o: change_receipt(o, shards={"c/0/0/0/0": {}}), ["receipt: "]),
        (lambda o: change_receipt(o, shards={"c/0/0/0/0": 7}), ["receipt: "]),
        (lambda o: change_receipt(o, settings={}), ["schema: the bands are "]),
    ],
    ids=[
        *("bit flipped", "shard gone", "shard more", "no root", "tile", "chips", "unfinished", "root damaged"),
        *("empty note", "no note", "no settings"),
    ],
)
def test_what_is_wrong_with_a_cube_is_told(finished: Storage, change: Any, said: list[str]) -> None:
    change(finished)
    for expected, found in zip(said, findings(finished), strict=False):
        assert found.startswith(expected), findings(finished)
    assert len(findings(finished)) >= len(said)


def test_chips_of_more_bands_than_there_is_room_for_are_not_read(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(str(tmp_path / f"{TILE}.zarr"), mode="w", attributes={"daskembed": "1"})
    count = 1500
    group.create_array(
        "pixels",
        shape=(1, count, 512, 512),
        chunks=(1, count, 512, 512),
        shards=(1, count, 2048, 2048),
        dtype="float32",
        fill_value=np.nan,
        dimension_names=("time", "band", "y", "x"),
    )
    values = {"time": np.zeros(1), "band": np.arange(count), "y": np.zeros(512), "x": np.zeros(512)}
    for name, of in values.items():
        group.create_array(name, data=of, dimension_names=(name,))
    group.create_array("spatial_ref", data=np.array(0), dimension_names=())
    group["pixels"].attrs["grid_mapping"] = group["pixels"].attrs["coordinates"] = "spatial_ref"
    zarr.consolidate_metadata(group.store)
    # Were it decoded, this would be told of instead.
    (tmp_path / f"{TILE}.zarr/pixels/c/0/0/0").mkdir(parents=True)
    (tmp_path / f"{TILE}.zarr/pixels/c/0/0/0/0").write_bytes(b"x")
    told = findings(Storage(str(tmp_path)))
    assert told[-1] == "zarr: 1,572,864,000 bytes in a chip of pixels, expected at most 536,870,912"


def test_a_note_of_nothing_is_as_none(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    note = {"inputs": "a", "size": 7, "sha256": "b", "chips": 1, "quarantined": {}}
    kept = {
        "good": {**note, "shard": "c/0/0/0/0"},
        "no shard": note,
        "no size": {"shard": "c/0/0/0/1"},
        "other types": {**note, "shard": ["c"]},
        "long": {**note, "shard": "c/0/0/0/2", "sha256": "b" * 2**20},
    }
    for name, value in kept.items():
        output.put(f"{name}.json", json.dumps(value).encode())
    output.put("list.json", b"[]")
    output.put("torn.json", b"{")
    found = state.read_notes(output, {entry.path for entry in output.entries()})
    assert found == {"c/0/0/0/0": state.Note(**note)}  # type: ignore[arg-type]


def test_a_receipt_of_something_else_fails_its_tile(copy: Copy) -> None:
    copy.write()
    change_receipt(Storage(str(copy.output)), shards={"c/0/0/0/0": {}})
    (tile,) = copy.write().tiles
    assert tile.status == "failed"
    assert "is not a receipt of daskembed: a value of the field 'shards' has no field 'chips'; delete it" in tile.reason


def move(coordinate: str) -> Callable[[Storage], None]:
    def change(output: Storage) -> None:
        import zarr

        array = zarr.open_group(f"{output.url}/{TILE}.zarr", mode="r+", use_consolidated=False)[coordinate]
        array[...] = array[...][::-1] if coordinate == "time" else array[...] + 5

    return change


@pytest.mark.parametrize(
    ("coordinate", "said"), [("x", "geometry: x[0] is "), ("y", "geometry: y[0] is "), ("time", "dates: the times are")]
)
def test_coordinates_of_a_cube_are_checked(finished: Storage, coordinate: str, said: str) -> None:
    move(coordinate)(finished)
    told = findings(finished)
    assert told[0].startswith(said), told
    assert told[-1].startswith("receipt: SHA-256 of all objects ")


def test_another_zarr_store_is_named_as_such(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    for name, form in ((f"{TILE}.zarr", 3), ("ndvi.zarr", 2)):
        data = xr.Dataset({"ndvi": (("y", "x"), np.zeros((4, 4)))})
        data.to_zarr(tmp_path / name, zarr_format=form, consolidated=False)
        (told,) = findings(output, name)
        assert told.startswith("zarr: is no Zarr store that daskembed made, neither of embeddings nor of chips")
