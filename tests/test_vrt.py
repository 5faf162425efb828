"""What VRTs name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import rasterio.shutil

from daskembed.errors import ChipError
from daskembed.sources.raster import _shown
from daskembed.sources.vrt import Reference, references
from daskembed.storage import Storage


def vrt(name: str, *, relative: str | None = "1", element: str = "SourceFilename") -> bytes:
    attribute = "" if relative is None else f' relativeToVRT="{relative}"'
    return (
        f'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand><SimpleSource>'
        f"<{element}{attribute}>{name}</{element}></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (vrt("a.tif"), "tile/a.tif"),
        (vrt("sub/a.tif"), "tile/sub/a.tif"),
        (vrt("../other/a.tif"), "other/a.tif"),
        (vrt("a &amp; b.tif"), "tile/a & b.tif"),
        (vrt("a.tif", element="SourceDataset"), "tile/a.tif"),
        (vrt("a.tif", element="sourcefilename"), "tile/a.tif"),
        (vrt("/data/tile/a.tif", relative="0"), "tile/a.tif"),
        (vrt("/data/tile/../b.tif", relative=None), "b.tif"),
        (vrt("../../outside.tif"), None),
        (vrt("/outside/a.tif", relative="0"), None),
        (vrt("/database/a.tif", relative="0"), None),
        (vrt("a.tif", relative="0"), None),
        (vrt("/vsicurl/http://host/a.tif", relative="0"), None),
        (vrt("http://host/a.tif"), None),
        (vrt(""), None),
    ],
)
def test_what_is_named_lies_in_the_store_or_not(text: bytes, path: str | None) -> None:
    (found,) = references(text, "tile/33TUL.vrt", "/data")
    assert found.path == path


def test_absolute_paths_are_in_no_bucket() -> None:
    assert references(vrt("/b/a.tif", relative="0"), "33TUL.vrt", "s3://b") == (Reference("/b/a.tif", None),)


def test_each_is_named_once() -> None:
    text = vrt("a.tif").replace(b"</VRTDataset>", vrt("a.tif").partition(b">")[2])
    assert references(text, "33TUL.vrt", "/data") == (Reference("a.tif", "a.tif"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"<VRTDataset>", "is no VRT, it cannot be parsed as XML: no element found"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><VRTDataset/>', "has a document type or entities: expected the plain XML"),
    ],
)
def test_what_is_no_vrt(text: bytes, said: str) -> None:
    with pytest.raises(ChipError, match=said):
        references(text, "33TUL.vrt", "/data")


def test_the_files_behind_a_vrt_are_found_through_others(chips: Path, tmp_path: Path) -> None:
    source = next(chips.rglob("*.tif"))
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels/a.tif").write_bytes(source.read_bytes())
    rasterio.shutil.copy(tmp_path / "pixels/a.tif", tmp_path / "pixels/inner.vrt", driver="VRT")
    (tmp_path / "outer.vrt").write_bytes(vrt("pixels/inner.vrt"))
    storage = Storage(str(tmp_path))
    entries = [entry for entry in storage.entries(recursive=False) if entry.path == "outer.vrt"]
    before = _shown(storage, entries)
    assert [entry.path for entry in before] == ["pixels/a.tif", "pixels/inner.vrt"]
    os.utime(tmp_path / "pixels/a.tif", ns=(1, 1))
    after = _shown(storage, entries)
    assert before[0] != after[0]
    assert before[1] == after[1]
