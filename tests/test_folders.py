"""Local folders: listed as obstore lists them, and told what cannot be read in them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore

import daskembed
from daskembed.errors import TileError
from daskembed.storage.stores import Storage

TILE = "33TUL"


def test_what_obstore_lists_is_listed_alike(tmp_path: Path) -> None:
    """Receipts hold fingerprints of such listings."""
    for path in ("a/b/c.tif", "a/.hidden", "z.tif", "a/Žižkov 数.tif", "a/50%20.tif", "x#1", "x#a", "empty/deep/y"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    (tmp_path / "nothing").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "z2.tif").symlink_to(tmp_path / "z.tif")
    store, storage = LocalStore(tmp_path), Storage(str(tmp_path))

    def told(found: object) -> list[tuple[str, int, str]]:
        return sorted((meta["path"], meta["size"], meta["e_tag"]) for meta in found)  # type: ignore[attr-defined]

    for prefix in ("", "a", "link", "empty", "nothing", "gone"):
        every = [meta for chunk in obstore.list(store, prefix or None) for meta in chunk]
        assert [(one.path, one.size, one.etag) for one in storage.entries(prefix)] == told(every)
    for prefix in ("", "a", "empty"):
        near = obstore.list_with_delimiter(store, prefix or None)
        assert [(one.path, one.size, one.etag) for one in storage.entries(prefix, recursive=False)] == told(
            near["objects"]
        )
        assert storage.folders(prefix) == sorted(path.rstrip("/") for path in near["common_prefixes"])
    assert "reason" not in repr(storage.entries())


def bind(path: Path) -> None:
    """A socket; their paths must be short."""
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda folder: os.mkfifo(folder / "claytile_odd.tif"), "claytile_odd.tif"),
    "socket": (lambda folder: bind(folder / "claytile_odd.tif"), "claytile_odd.tif"),
    "device": (lambda folder: (folder / "claytile_odd.tif").symlink_to("/dev/zero"), "claytile_odd.tif"),
    "link to nothing": (lambda folder: (folder / "claytile_odd.tif").symlink_to("/nowhere"), "claytile_odd.tif"),
    "link to itself": (
        lambda folder: (folder / "claytile_odd.tif").symlink_to(folder / "claytile_odd.tif"),
        "claytile_odd.tif",
    ),
    "control character": (
        lambda folder: (folder / "claytile_\x1b[31m\n.tif").write_bytes(b"II*\0"),
        r"claytile_\x1b[31m\n.tif",
    ),
    "no UTF-8": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/claytile_\xff.tif")).write_bytes(b"II*\0"),
        r"claytile_\udcff.tif",
    ),
    "folder with a control character": (
        lambda folder: ((folder / "a\x01").mkdir(), (folder / "a\x01/claytile_x.tif").write_bytes(b"II*\0")),
        r"a\x01/claytile_x.tif",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_read_is_set_aside_and_its_neighbours_are_not(
    kind: str, flat: bool, chips: Path, tmp_path: Path
) -> None:
    if flat and "folder" in kind:
        pytest.skip("there are no folders in a flat source")
    make, name = ODD[kind]
    folder = tmp_path if flat else tmp_path / TILE
    folder.mkdir(exist_ok=True)
    (good,) = list(chips.rglob("*_0001.tif"))[:1]
    (folder / good.name).write_bytes(good.read_bytes())
    make(folder)
    if flat:
        odd = next(path for path in folder.iterdir() if path.name != good.name)
        odd.rename(odd.with_name(odd.name.replace("claytile_", f"claytile_{TILE}_")))
        name = name.replace("claytile_", f"claytile_{TILE}_")
    index = daskembed.index_tile(TILE, str(tmp_path)).set_index("source_url")
    assert index["quarantined"].notna().to_dict() == {str(folder / good.name): False, f"{folder}/{name}": True}
    assert index["quarantined"][f"{folder}/{name}"].startswith(("is no file", "is a link that", "has a name that"))


def test_folders_in_a_circle(chips: Path, tmp_path: Path) -> None:
    (good,) = list(chips.rglob("*_0001.tif"))[:1]
    (tmp_path / TILE / "a").mkdir(parents=True)
    (tmp_path / TILE / good.name).write_bytes(good.read_bytes())
    (tmp_path / TILE / "a/up").symlink_to(tmp_path)
    (tmp_path / TILE / "a/here").symlink_to(tmp_path / TILE / "a")
    (tmp_path / "more").symlink_to(tmp_path / TILE)
    assert list(daskembed.index_tile(TILE, str(tmp_path))["quarantined"]) == [None]


@pytest.mark.timeout(60)
def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    """Of which there are more paths than can ever be listed."""
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "chip.tif").write_bytes(b"II*\0")
        for other in set(names) - {name}:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    found = [entry.path for entry in Storage(str(tmp_path)).entries()]
    assert {f"{name}/chip.tif" for name in names} < set(found)
    assert len(found) == len(set(found)) < 20**3
    assert found == [entry.path for entry in Storage(str(tmp_path)).entries()]


@pytest.mark.timeout(60)
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{TILE}_20190416.tif")
    with pytest.raises(TileError, match=r"33TUL_20190416\.tif is no file: a pipe, a socket or a device"):
        daskembed.index_tile(TILE, str(tmp_path))


def test_folders_of_odd_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a\x1b.zarr").mkdir()
    (tmp_path / "b.zarr").mkdir()
    assert Storage(str(tmp_path)).folders() == ["b.zarr"]
    assert r"a\x1b.zarr is left out: its name is no plain text; rename it" in caplog.text
