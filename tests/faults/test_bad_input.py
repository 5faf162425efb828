"""Bad and odd chips, names and folders: each answered by its own reason, with the rest of the tile intact."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from distributed import Client, LocalCluster
from odd_chips import CASES, Case, write_odd_chips

import daskembed
from daskembed.errors import ChipError, TileError
from daskembed.sources.geotiff_pixels import read_chip
from daskembed.sources.reading import Reading
from daskembed.sources.registry import list_tile
from daskembed.storage.stores import Storage
from daskembed.testing import write_chips

TILE, DAY = "33TUL", "2019-04-16"
IN_ORDER = tuple(range(1, 14))
BY_NAME = {case.name: case for case in CASES}

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[Path]:
    """Two good chips, alone in their source; not to be changed."""
    return write_chips(tmp_path_factory.mktemp("good"), rows=1, cols=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, good) -> tuple[Path, dict[str, Case]]:
    """A source with the two good chips and every kind of the corpus, by URL; not to be changed."""
    source = tmp_path_factory.mktemp("corpus")
    folder = source / TILE / DAY
    folder.mkdir(parents=True)
    for path in good:
        (folder / path.name).hardlink_to(path)
    written = write_odd_chips(folder, good[0])
    yield source, {str(path): case for path, case in written.items()}
    shutil.rmtree(source)


@pytest.fixture(scope="module")
def index(corpus):
    return daskembed.index_tile(TILE, str(corpus[0])).set_index("source_url")


@pytest.fixture
def tile(tmp_path, good) -> Path:
    """The folder of a day with one good chip, for tests to add to."""
    folder = tmp_path / "source" / TILE / DAY
    folder.mkdir(parents=True)
    (folder / good[0].name).hardlink_to(good[0])
    return folder


def source_of(tile: Path) -> str:
    return str(tile.parent.parent)


# The corpus


def test_corpus_has_every_kind_once(corpus):
    assert len(CASES) >= 40
    assert len(BY_NAME) == len(CASES) == len(corpus[1])
    assert all((case.fails is None) == (case.reason == "") for case in CASES)


@pytest.mark.parametrize("name", BY_NAME)
def test_kind(corpus, index, good, name):
    (url,) = [url for url, case in corpus[1].items() if case.name == name]
    case, row = corpus[1][url], index.loc[url]
    if case.fails == "header":
        assert case.explains(row["quarantined"]), row["quarantined"]
        return
    assert row["quarantined"] is None
    if case.fails == "pixels":
        with pytest.raises(ChipError) as error:
            read_chip(url, row["chip"].numbers)
        assert case.explains(str(error.value)), error.value
        return
    # Values that are not finite are judged by the device, as --on-nan says: in the test of a whole run.
    pixels = read_chip(url, row["chip"].numbers)
    assert pixels.shape == (13, 512, 512)
    if case.fails is None and case.same:
        np.testing.assert_array_equal(pixels, read_chip(str(good[0]), IN_ORDER))


def test_run_on_the_corpus(corpus, good, tmp_path):
    source, cases = corpus
    options: dict[str, Any] = {"checkpoint": "untrained:tiny", "precision": "fp32"}
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            dashboard_address=None,
            env={"DASK_DASKEMBED__TORCH_THREADS": "2"},
        ) as cluster,
        Client(cluster) as client,
    ):
        alone = daskembed.run(
            TILE, source=str(good[0].parents[2]), output=str(tmp_path / "alone"), cluster=client, **options
        )
        # So many bad chips are to be accepted.
        options["max_quarantined"] = 1
        result = daskembed.run(TILE, source=str(source), output=str(tmp_path / "out"), cluster=client, **options)
    assert alone.exit_status == 0
    assert (result.exit_status, result.tiles[0].status) == (3, "done")

    receipt = json.loads((tmp_path / "out" / "_daskembed" / "receipts" / f"{TILE}_v001.json").read_text())
    bad = {url for url, case in cases.items() if case.fails is not None}
    assert set(receipt["quarantined"]) == bad
    wrong = {url: reason for url, reason in receipt["quarantined"].items() if not cases[url].explains(reason)}
    assert wrong == {}
    assert result.quarantined == receipt["quarantined"]

    wanted = gpd.read_parquet(alone.tiles[0].file).embeddings
    frame = gpd.read_parquet(result.tiles[0].file)
    vectors = dict(zip(frame.source_url, frame.embeddings, strict=True))
    folder = source / TILE / DAY
    assert set(vectors) == {str(folder / path.name) for path in good} | (set(cases) - bad)
    for path, vector in zip(good, wanted, strict=True):
        np.testing.assert_array_equal(vectors[str(folder / path.name)], vector)
    for url, case in cases.items():
        assert np.isfinite(vectors.get(url, 0)).all()
        if case.fails is None and case.same:
            np.testing.assert_array_equal(vectors[url], wanted[0], case.name)


# Not by getrusage, whose peak a child inherits.
MEMORY = """
import pathlib, re, sys, warnings
warnings.simplefilter("ignore")
import daskembed
from daskembed.errors import ChipError
from daskembed.sources.geotiff_pixels import read_chip

def embedded():
    for row in daskembed.index_tile("33TUL", sys.argv[1]).itertuples():
        if row.quarantined is None:
            try:
                read_chip(row.source_url, row.chip.numbers)
            except ChipError:
                pass

embedded()
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_claims_take_no_memory(tile, good):
    """Peak memory of a process of its own (MB), with chips that claim much and without."""

    def peak() -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, source_of(tile)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    before = peak()
    claims = [
        "100,000 x 100,000",
        "tiles of 100,000 x 100,000",
        "tiles of 4,096 x 8,192",
        "100,000 rows a strip",
        "a strip that inflates to 200 MB",
        "a gigabyte long",
    ]
    for name in claims:
        made = tile / f"claytile_{TILE}_20190416_v02_0009.tif"
        BY_NAME[name].make(good[0], made)
        assert peak() < before + 40, name
        made.unlink()


def test_a_killed_writer_leaves_no_chip(tile, good):
    """GDAL writes the directory first and the places of the strips last."""
    path = tile / f"claytile_{TILE}_20190416_v02_0009.tif"
    code = f"""
import os, rasterio
with rasterio.open({str(good[0])!r}) as file:
    profile, pixels, tags, names = file.profile, file.read(), file.tags(), file.descriptions
file = rasterio.open({str(path)!r}, "w", **profile)
file.update_tags(date=tags["date"])
file.descriptions = names
for row in range(512):
    file.write(pixels[:, row : row + 1], window=((row, row + 1), (0, 512)))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    row = daskembed.index_tile(TILE, source_of(tile)).iloc[1]
    assert (row["source_url"], row["quarantined"]) == (str(path), None)
    with pytest.raises(ChipError, match="lacks 512 of its 512 blocks of pixels: it was not written to its end"):
        read_chip(str(path), row["chip"].numbers)


def test_flipped_bits_of_strips(tmp_path, good):
    """What GDAL does not notice by the checksums of deflate is noticed by the values, but for one in a hundred."""
    data, rng = bytearray(good[0].read_bytes()), np.random.default_rng(7)
    pixels = read_chip(str(good[0]), IN_ORDER)
    silent = 0
    for place, bit in zip(rng.integers(1000, 8_000_000, 100), rng.integers(0, 8, 100), strict=True):
        data[place] ^= 1 << bit
        (tmp_path / "chip.tif").write_bytes(data)
        data[place] ^= 1 << bit
        try:
            found = read_chip(str(tmp_path / "chip.tif"), IN_ORDER)
        except ChipError:
            continue
        silent += bool(np.isfinite(found).all() and not np.array_equal(found, pixels))
    assert silent <= 5


# Copies


def quarantined(tile: Path) -> dict[str, str | None]:
    index = daskembed.index_tile(TILE, source_of(tile))
    root = str(tile.parent)
    return {
        url.removeprefix(f"{root}/"): reason
        for url, reason in zip(index["source_url"], index["quarantined"], strict=True)
    }


def test_later_copies_of_a_name_are_quarantined(tile, good):
    name = good[0].name
    for folder in ("2019-04-15", "copy/of/it", ""):
        (tile.parent / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(good[0], tile.parent / folder / name)
    found = quarantined(tile)
    assert found == quarantined(tile)
    first, *rest = sorted(found)
    assert found.pop(first) is None
    reason = f"is a copy of {tile.parent / first}: a tile may hold a chip's name and date once; remove one of the two"
    assert found == dict.fromkeys(rest, reason)


def test_a_good_copy_replaces_one_with_a_bad_header(tile, good):
    (tile.parent / "2019-01-01").mkdir()
    (tile.parent / "2019-01-01" / good[0].name).write_bytes(b"")
    found = quarantined(tile)
    assert found[f"2019-01-01/{good[0].name}"].startswith("is empty")
    assert found[f"{DAY}/{good[0].name}"] is None


def test_chips_flat_in_the_source_are_no_copies_of_those_in_the_tile(tile, good):
    shutil.copyfile(good[0], tile.parent.parent / good[0].name)
    assert quarantined(tile) == {f"{DAY}/{good[0].name}": None}


def test_a_link_to_a_chip_or_a_folder_is_a_copy(tile, good):
    (tile.parent / "linked").symlink_to(tile)
    (tile / "claytile_other_name.tif").symlink_to(good[1])
    found = quarantined(tile)
    assert found[f"{DAY}/{good[0].name}"] is None
    assert found[f"linked/{good[0].name}"].startswith("is a copy of ")
    assert found[f"{DAY}/claytile_other_name.tif"] is None


# Names and folders


def test_fifos_and_links_to_nothing_are_quarantined_and_folders_are_no_chips(tile, good):
    (tile / "claytile_folder.tif").mkdir()
    (tile / "claytile_nothing.tif").symlink_to("nowhere")
    os.mkfifo(tile / "claytile_fifo.tif")
    found = quarantined(tile)
    assert found.pop(f"{DAY}/{good[0].name}") is None
    assert found[f"{DAY}/claytile_fifo.tif"] == "is no file: a pipe, a socket or a device"
    assert found[f"{DAY}/claytile_nothing.tif"].startswith("is a link that leads nowhere")
    assert len(found) == 2


@pytest.mark.parametrize("kind", ["link to itself", "link to its folder", "not UTF-8", "line feed"])
def test_names_that_cannot_be_listed_fail_no_tile(tile, good, kind):
    if kind == "link to itself":
        (tile / "claytile_self.tif").symlink_to(tile / "claytile_self.tif")
    elif kind == "link to its folder":
        (tile / "loop").symlink_to(tile)
    elif kind == "not UTF-8":
        os.link(good[0], os.fsencode(tile) + b"/claytile_\xff.tif")
    else:
        (tile / "claytile_a\nb.tif").hardlink_to(good[0])
    found = quarantined(tile)
    assert found.pop(f"{DAY}/{good[0].name}") is None
    assert all(found.values())
    assert found or kind == "link to its folder"


def test_empty_folder_refuses_the_tile(tmp_path):
    (tmp_path / TILE / DAY).mkdir(parents=True)
    with pytest.raises(
        TileError, match=f"no chips of tile {TILE}: expected claytile_.*; check the tile id and `source`"
    ):
        daskembed.index_tile(TILE, str(tmp_path))


def many(tile: Path, good: Path) -> int:
    for number in range(20_000):
        (tile / f"claytile_many_{number:05d}.tif").hardlink_to(good)
    return 20_001


def test_20_000_files_are_listed(tile, good):
    count = many(tile, good[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listing = list_tile(TILE, Storage(source_of(tile)), Reading())
    assert len(listing.entries) == len({entry.path for entry in listing.entries}) == count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.long
def test_20_000_files_are_indexed(tile, good):
    count = many(tile, good[0])
    index = daskembed.index_tile(TILE, source_of(tile))
    assert len(index) == count
    assert index["quarantined"].isna().all()
    assert index["source_url"].is_monotonic_increasing
