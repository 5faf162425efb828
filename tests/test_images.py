"""What headers of catalogues' files say, or why they cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from web import Web

from daskembed.documents import parse_as
from daskembed.errors import StorageDeniedError
from daskembed.sources.stac.images import Image, look

NORTH_UP = Affine(20, 0, 300_000, 0, -20, 5_100_000)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def tiff(path: Path, **more: Any) -> bytes:
    profile = {
        "driver": "COG",
        "blocksize": 128,
        "compress": "deflate",
        "width": 300,
        "height": 200,
        "count": 1,
        "dtype": "float32",
        "crs": "EPSG:32633",
        "transform": NORTH_UP,
        "nodata": -32768,
        **more,
    }
    profile = {key: value for key, value in profile.items() if value is not None}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((profile["count"], 200, 300), profile["dtype"]))
    return path.read_bytes()


def test_a_header_takes_one_request(web: Web, tmp_path: Path) -> None:
    web.files["vv.tif"] = tiff(tmp_path / "a.tif")
    image = look(f"{web.url}/vv.tif", "vv", {"anonymous": "true"})
    assert len(web.requests) == 1
    assert image == Image(
        url=f"{web.url}/vv.tif",
        asset="vv",
        access=(("anonymous", "true"),),
        size=len(web.files["vv.tif"]),
        etag=image.etag,
        epsg=32633,
        west=300_000,
        north=5_100_000,
        step_x=20,
        step_y=20,
        height=200,
        width=300,
        block=(128, 128),
        dtype="float32",
        nodata=-32768,
    )
    assert image.etag
    assert parse_as(Image, json.dumps(asdict(image))) == image


def test_a_nodata_of_nan_is_none_in_json(web: Web, tmp_path: Path) -> None:
    web.files["vv.tif"] = tiff(tmp_path / "a.tif", nodata=float("nan"))
    assert look(f"{web.url}/vv.tif", "vv", {}).nodata is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: b"", "is empty"),
        (lambda path: b"<html>sorry</html>", "is neither TIFF nor JPEG 2000: it starts with b'<html>"),
        (lambda path: tiff(path)[:200], "cannot be decoded, it is damaged"),
        (lambda path: tiff(path, crs=None), "has no CRS, expected one with an EPSG code"),
        (
            lambda path: tiff(path, driver="GTiff", blocksize=None, transform=NORTH_UP @ Affine.rotation(10)),
            "expected rows from north to south, not rotated",
        ),
        (lambda path: tiff(path, count=3), "has 3 bands, expected 1"),
        (
            lambda path: tiff(path, dtype="complex64", nodata=None, driver="GTiff", blocksize=None),
            "has complex64 pixels",
        ),
    ],
    ids=["empty", "HTML", "cut off", "no CRS", "rotated", "three bands", "complex"],
)
def test_what_cannot_be_used_is_said_and_no_reason_to_stop(
    make: Callable[[Path], bytes], said: str, web: Web, tmp_path: Path
) -> None:
    web.files["a.tif"] = make(tmp_path / "a.tif")
    image = look(f"{web.url}/a.tif", "blue", {})
    assert said in str(image.failure)
    assert image.asset == "blue"


def test_a_mask_within_is_refused(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        tiff(path, driver="GTiff", blocksize=None, nodata=None)
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.zeros((200, 300), np.uint8))
    web.files["a.tif"] = path.read_bytes()
    assert "has a mask of its own" in str(look(f"{web.url}/a.tif", "blue", {}).failure)


def test_what_is_not_there_is_said_and_what_is_refused_stops(web: Web) -> None:
    assert "is not there" in str(look(f"{web.url}/a.tif", "blue", {}).failure)
    assert "by https:// only" in str(look("http://example.org/a.tif", "blue", {}).failure)
    web.fault = lambda handler: handler.answer(401, b"who are you") is None
    with pytest.raises(StorageDeniedError, match=r"a\.tif: access denied"):
        look(f"{web.url}/a.tif", "blue", {})
