"""Virtual rasters: what they may refer to, and what GDAL is told of them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import rasterio
from obstore.store import from_url
from rasterio.transform import Affine

import daskembed
from daskembed.errors import ChipError, TileError
from daskembed.sensors.bands import CLAY_V0
from daskembed.sources.raster import _shown
from daskembed.sources.vrt import MOST_BYTES, MOST_NESTED, MOST_SOURCES, TOP, read_vrt
from daskembed.storage.stores import Storage

TILE = "33TUL"
NAME = f"{TILE}_20190416.vrt"


def source(path: str, *, relative: int = 1, more: str = "", kind: str = "SimpleSource") -> str:
    return (
        f'<{kind}><SourceFilename relativeToVRT="{relative}">{path}</SourceFilename><SourceBand>1</SourceBand>'
        f"{more}</{kind}>"
    )


def vrt(of_band: Callable[[int], str], *, more: str = "", bands: tuple[str, ...] = CLAY_V0.names) -> str:
    inside = "".join(
        f'<VRTRasterBand dataType="Float32" band="{number}"><Description>{name}</Description>{of_band(number)}'
        "</VRTRasterBand>"
        for number, name in enumerate(bands, 1)
    )
    return (
        '<VRTDataset rasterXSize="512" rasterYSize="512"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>300000, 10, 0, 5100000, 0, -10</GeoTransform>{more}{inside}</VRTDataset>"
    )


def read(text: str, **others: str) -> dict[str, str]:
    """What GDAL is told of a virtual raster in a folder, and of the others beside it."""
    files = {f"a/{NAME}": text, **{f"a/{name}.vrt": other for name, other in others.items()}}

    def get(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path].encode()

    found = read_vrt(f"a/{NAME}", get)
    assert {*found.documents} <= {TOP, *(f"{number}.vrt" for number in range(1, 2000))}
    return {name: document.decode() for name, document in found.documents.items()} | found.sources


def write_band(path: Path, value: float) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"crs": "EPSG:32633", "transform": Affine(10, 0, 300_000, 0, -10, 5_100_000)}
    with rasterio.open(path, "w", driver="GTiff", dtype="float32", count=1, height=512, width=512, **profile) as file:
        file.write(np.full((1, 512, 512), value, np.float32))
    return path.read_bytes()


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_sources_below_the_source_are_read(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Beside it, in folders, beyond `..`, and by way of another virtual raster."""
    paths = {1: "a b.tif", 2: "bands/x.TIF", 3: "../elsewhere/./y.tif", 4: "bands/nested.vrt"}
    files = {
        f"{TILE}/a b.tif": write_band(tmp_path / "1.tif", 100),
        f"{TILE}/bands/x.TIF": write_band(tmp_path / "2.tif", 200),
        "elsewhere/y.tif": write_band(tmp_path / "3.tif", 300),
        f"{TILE}/bands/deep/z.tif": write_band(tmp_path / "4.tif", 400),
        f"{TILE}/bands/nested.vrt": vrt(lambda band: source("deep/z.tif"), bands=("one",)).encode(),
        f"{TILE}/{NAME}": vrt(lambda band: source(paths.get(band, "bands/x.TIF"))).encode(),
    }
    url = str(tmp_path / "source") if where == "local" else request.getfixturevalue("s3")
    for path, data in files.items():
        if where == "local":
            (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / path).write_bytes(data)
        else:
            obstore.put(from_url(url), path, data)
    pixels = daskembed.index_tile(TILE, url)["chip"][0].read()
    assert [band.min() for band in pixels[:5]] == [band.max() for band in pixels[:5]] == [100, 200, 300, 400, 200]


REFUSED: dict[str, tuple[str, str]] = {
    "URL": (vrt(lambda band: source("http://host/x.tif")), "refers to http://host/x.tif in .*: expected a path"),
    "/vsi": (vrt(lambda band: source("/vsicurl/http://host/x.tif")), "expected a path relative"),
    "absolute path": (vrt(lambda band: source("/data/x.tif")), "refers to /data/x.tif in .*expected a path relative"),
    "path of the worker's folder": (vrt(lambda band: source("x.tif", relative=0)), "expected a path relative"),
    "prefix of a driver": (vrt(lambda band: source("vrt://x.tif")), "expected a path relative"),
    "backslashes": (vrt(lambda band: source("..\\..\\x.tif")), "expected a path relative"),
    "no name": (vrt(lambda band: source("")), "refers to nothing in"),
    "description of a service": (vrt(lambda band: source("&lt;GDAL_WMS/&gt;")), "expected a path relative"),
    "CDATA": (vrt(lambda band: source("<![CDATA[<VRTDataset/>]]>")), "expected a path relative"),
    "out of the source": (vrt(lambda band: source("../../x.tif")), "lies outside of the source: put it below"),
    "out and in again": (vrt(lambda band: source("b/../../../a/x.tif")), "lies outside of the source"),
    "another format": (vrt(lambda band: source("x.nc")), "expected names that end with .tif, .tiff, .jp2, .vrt"),
    "a subdataset": (vrt(lambda band: source("NETCDF:x.nc:pixels")), "expected names that end with"),
    "options": (vrt(lambda band: source("x.tif", more="<OpenOptions/>")), "has the element OpenOptions in a SimpleS"),
    "finer than itself": (
        vrt(lambda band: source("x.tif", more='<SrcRect xSize="1024" ySize="512"/><DstRect xSize="512" ySize="512"/>')),
        "takes 1024 pixels for 512 of its own",
    ),
    "of no size": (
        vrt(lambda band: source("x.tif", more='<SrcRect xSize="nan" ySize="1"/><DstRect xSize="1" ySize="1"/>')),
        "takes nan pixels for 1 of its own",
    ),
    "warped": (vrt(lambda band: "").replace("<VRTDataset", '<VRTDataset subClass="VRTWarpedDataset"'), "VRTWarpedDat"),
    "raw bytes": (
        vrt(lambda band: "").replace("<VRTRasterBand", '<VRTRasterBand subClass="VRTRawRasterBand"'),
        "is a VRTRawRasterBand in .*: expected bands made of other files'",
    ),
    "code": (
        vrt(lambda band: "").replace("<VRTRasterBand", '<VRTRasterBand subClass="VRTDerivedRasterBand"'),
        "is a VRTDerivedRasterBand",
    ),
    "code without a class": (
        vrt(lambda band: "<PixelFunctionCode>import os</PixelFunctionCode>"),
        "has the element PixelFunctionCode",
    ),
    "bytes without a class": (vrt(lambda band: "<ImageOffset>0</ImageOffset>"), "has the element ImageOffset"),
    "arrays": (vrt(lambda band: "", more="<Group name='/'/>"), "has the element Group in a VRTDataset"),
    "CRS of a URL": (vrt(lambda band: "").replace("EPSG:32633", "http://host/crs"), "has the CRS http://host/crs"),
    "CRS of a file": (vrt(lambda band: "").replace("EPSG:32633", "/etc/passwd"), "has the CRS /etc/passwd"),
    "entities": ('<!DOCTYPE x [<!ENTITY a "b">]><VRTDataset/>', "has a DOCTYPE"),
    "another document": ("<GDAL_WMS><Service name='TMS'/></GDAL_WMS>", "has the element GDAL_WMS"),
    "no XML": ("II*\0", "has a damaged header: .* is no XML"),
    "too long": (" " * (MOST_BYTES + 1), "expected a virtual raster of at most 8,388,608"),
    "too many": (
        vrt(lambda band: "".join(source(f"{band}-{number}.tif") for number in range(MOST_SOURCES // 4))),
        f"refers to more than {MOST_SOURCES} files",
    ),
    "itself": (vrt(lambda band: source(NAME)), f"refers to itself by way of a/{NAME}"),
    "itself by way of another": (vrt(lambda band: source("back.vrt")), "refers to itself by way of a/back.vrt"),
    "a long way round": (vrt(lambda band: source("n1.vrt")), f"by way of {MOST_NESTED} others"),
    "in a mask": (
        vrt(lambda band: "", more=f"<MaskBand><VRTRasterBand>{source('/x.tif')}</VRTRasterBand></MaskBand>"),
        "refers to /x.tif",
    ),
    "deep in another": (vrt(lambda band: source("nested.vrt")), "refers to /etc/x.tif in a/nested.vrt"),
    "what is not there": (vrt(lambda band: source("gone.vrt")), "needs a/gone.vrt, which is not there"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    text, said = REFUSED[name]
    deep = {f"n{number}": vrt(lambda band, on=number + 1: source(f"n{on}.vrt")) for number in range(1, 9)}  # type: ignore[misc]
    with pytest.raises(ChipError, match=said) as error:
        read(text, nested=vrt(lambda band: source("/etc/x.tif")), back=vrt(lambda band: source(NAME)), **deep)
    assert len(str(error.value)) < 300


def test_gdal_is_told_what_was_understood_and_no_names() -> None:
    told = read(
        vrt(
            lambda band: source(f"{band % 2}.tif", more='<SrcRect xOff="0"/><NODATA>0</NODATA>', kind="ComplexSource"),
            more='<!-- x --><Metadata domain="y"><MDI key="a">b</MDI></Metadata><Metadata><MDI key="date">2019</MDI>'
            "</Metadata><OverviewList>2 4</OverviewList>",
        )
    )
    assert {name: path for name, path in told.items() if name != TOP} == {"1.tif": "a/1.tif", "2.tif": "a/0.tif"}
    assert {*re.findall(r"<SourceFilename[^/]*/", told[TOP])} == {
        f'<SourceFilename relativeToVRT="1">{number}.tif</' for number in (1, 2)
    }
    assert "OverviewList" not in told[TOP]
    assert '<MDI key="date">2019</MDI>' in told[TOP]
    assert "domain" not in told[TOP]
    assert told[TOP].count("<NODATA>0</NODATA>") == 13


def test_claims_of_many_chips(tmp_path: Path) -> None:
    """Each would be listed."""
    write_band(tmp_path / "x.tif", 1)
    text = vrt(lambda band: source("x.tif")).replace('"512" rasterY', '"2000000000" rasterY')
    (tmp_path / NAME).write_text(text.replace('rasterYSize="512"', 'rasterYSize="2000000000"'))
    with pytest.raises(
        TileError, match=r"claims 2000000000 x 2000000000 pixels, 15,258,789,062,500 chips: expected a tile"
    ):
        daskembed.index_tile(TILE, str(tmp_path))


@pytest.fixture
def web() -> Iterator[tuple[str, list[str]]]:
    """A web server, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_sources_are_known_by_what_they_begin_with(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    """GDAL goes by content: a name that ends with .tif may hold the description of a service, or of any file."""
    url, asked = web
    write_band(tmp_path / "secret.tif", 777)
    folder = tmp_path / "source"
    sound = write_band(folder / "x.tif", 100)
    (folder / NAME).write_text(vrt(lambda band: source("x.tif")))
    chip = daskembed.index_tile(TILE, str(folder))["chip"][0]
    service = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}-${{x}}-${{y}}</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>300000</UpperLeftX><UpperLeftY>5100000</UpperLeftY><LowerRightX>305120</LowerRightX>"
        "<LowerRightY>5094880</LowerRightY><TileLevel>0</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY>"
        "<YOrigin>top</YOrigin></DataWindow><Projection>EPSG:32633</Projection><BlockSizeX>512</BlockSizeX>"
        "<BlockSizeY>512</BlockSizeY><BandsCount>1</BandsCount></GDAL_WMS>"
    )
    hidden = vrt(lambda band: source(str(tmp_path / "secret.tif"), relative=0), bands=("one",))
    for text in (service, hidden):
        (folder / "x.tif").write_text(text)
        with pytest.raises(TileError, match=r"refers to x.tif, which is neither TIFF nor JPEG 2000: it starts with"):
            daskembed.index_tile(TILE, str(folder))
        # Also where it became that after it was looked at, however often: GDAL would read zeros the third time.
        for _ in range(4):
            with pytest.raises(ChipError, match=r"refers to x\.tif, which is neither TIFF nor JPEG 2000"):
                chip.read()
    (folder / "x.tif").unlink()
    with pytest.raises(TileError, match=r"needs x.tif, which is not there"):
        daskembed.index_tile(TILE, str(folder))
    assert asked == []
    (folder / "x.tif").write_bytes(sound)
    assert (daskembed.index_tile(TILE, str(folder))["chip"][0].read() == 100).all()


def test_one_wrong_answer_in_place_of_a_vrt_condemns_nothing(s3: str, lying: Any, tmp_path: Path) -> None:
    storage = Storage(s3)
    storage.put("x.tif", write_band(tmp_path / "x.tif", 100))
    storage.put(NAME, vrt(lambda band: source("x.tif")).encode())
    proxy = lying({f"/{NAME}": (200, b"<html>busy</html>")})
    assert (daskembed.index_tile(TILE, s3)["chip"][0].read() == 100).all()
    assert proxy.fresh[0], "the second reading passes caches"


def test_the_files_behind_a_vrt_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    write_band(tmp_path / "pixels/a.tif", 1)
    (tmp_path / "pixels/inner.vrt").write_text(vrt(lambda band: source("a.tif"), bands=("one",)))
    (tmp_path / NAME).write_text(vrt(lambda band: source("pixels/inner.vrt")))
    storage = Storage(str(tmp_path))
    entries = storage.entries(recursive=False)
    before = _shown(storage, entries)
    assert [entry.path for entry in before] == ["pixels/a.tif", "pixels/inner.vrt"]
    os.utime(tmp_path / "pixels/a.tif", ns=(1, 1))
    after = _shown(storage, entries)
    assert before[0] != after[0]
    assert before[1] == after[1]


RECT = '<DstRect xOff="{}" yOff="{}" xSize="{}" ySize="{}"/>'


@pytest.mark.parametrize(
    ("rects", "more", "whole"),
    [
        ([], "", True),
        ([(0, 0, 512, 512)], "", True),
        ([(0, 0, 512, 256)], "", False),
        ([(0, 0, 512, 256)], "<NoDataValue>-1</NoDataValue>", True),
        ([(0, 0, 512, 256), (0, 256, 512, 256)], "", True),
        ([(0, 0, 300, 512), (299.6, -5, 300, 600)], "", True),
        ([(0, 0, 256, 512), (257, 0, 255, 512)], "", False),
        ([(0, 0, 256, 256), (256, 256, 256, 256)], "", False),
    ],
)
def test_bands_that_no_source_covers(rects: list[Any], more: str, whole: bool) -> None:
    text = vrt(lambda band: more + "".join(source("x.tif", more=RECT.format(*rect)) for rect in rects or [()] if rect))
    if not rects:
        text = vrt(lambda band: source("x.tif"))
    found = read_vrt(NAME, lambda path: text.encode())
    assert found.uncovered == ({} if whole else {NAME: tuple(range(1, 14))})


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ("cover", r"has places in .*\.vrt that no source of (vh|vv|dem) covers, and no nodata"),
        ("mask", "refers to x.tif, which has a mask, and has none itself"),
        ("block", "refers to x.tif, which has blocks that were never written"),
        ("block with nodata", ""),
        ("none", ""),
    ],
)
def test_gaps_that_gdal_would_hide(gap: str, said: str, tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 300_000, 0, -10, 5_100_000)}
    kind = {"driver": "GTiff", "dtype": "float32", "tiled": True, "blockxsize": 256, "blockysize": 256}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "x.tif", "w", count=1, width=512, height=512, sparse_ok=True, **place, **kind) as file,
    ):
        rows = 256 if gap.startswith("block") else 512
        if gap == "block with nodata":
            file.nodata = -1
        file.write(np.full((1, rows, 512), 100, np.float32), window=rasterio.windows.Window(0, 0, 512, rows))
        if gap == "mask":
            file.write_mask(np.eye(512, dtype=np.uint8) * 255)
    half = RECT.format(0, 0, 512, 256) if gap == "cover" else ""
    tag = "<NoDataValue>-1</NoDataValue>" if gap == "block with nodata" else ""
    (tmp_path / NAME).write_text(vrt(lambda band: tag + source("x.tif", more=half)))
    if said:
        with pytest.raises(TileError, match=said):
            daskembed.index_tile(TILE, str(tmp_path))
    else:
        assert daskembed.index_tile(TILE, str(tmp_path))["quarantined"].isna().all()


def test_overviews_are_no_way_out(tmp_path: Path) -> None:
    """Tags of a GeoTIFF may say that its overviews are in any file."""
    write_band(tmp_path / "secret.tif", 777)
    folder = tmp_path / "source"
    write_band(folder / "x.tif", 5)
    with rasterio.open(folder / "x.tif", "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.tif"))
    (folder / NAME).write_text(vrt(lambda band: source("x.tif")))
    assert (daskembed.index_tile(TILE, str(folder))["chip"][0].read() == 5).all()
    (folder / NAME).unlink()
    path = folder / f"{TILE}_20190416.tif"
    path.write_bytes((folder / "x.tif").read_bytes())
    for end, data, said in (
        (".aux.xml", b'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/x</MDI></Metadata>', "names other files"),
        (".msk", b"<GDAL_WMS></GDAL_WMS>", "is no TIFF"),
    ):
        path.with_name(path.name + end).write_bytes(data)
        with pytest.raises(TileError, match=f"has beside it .*{end}, which .*{said}"):
            daskembed.index_tile(TILE, str(folder))
        path.with_name(path.name + end).unlink()
