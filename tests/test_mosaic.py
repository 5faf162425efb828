"""Bands of scenes brought onto a tile's grid from files of other grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

from daskembed.errors import ChipError
from daskembed.geo.mgrs import tile_corner
from daskembed.sensors.bands import CLAY_V0, KINDS, Numbers
from daskembed.sources.reading import Reading
from daskembed.sources.scales import Scale
from daskembed.sources.stac.images import Image, look
from daskembed.sources.stac.mosaic import CLASSES, Mosaic, Part, scale_of_band
from daskembed.storage.access import fetch

TILE = "33TUL"
BANDS = {band.name: band for band in CLAY_V0.bands}


def write(
    path: Path,
    pixels: np.ndarray,
    corner: tuple[float, float],
    step: Any,
    epsg: int,
    *,
    block: int = 64,
    **profile: Any,
) -> Image:
    step_x, step_y = step if isinstance(step, tuple) else (step, step)
    kinds = {"driver": "GTiff", "tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate"}
    with rasterio.open(
        path,
        "w",
        width=pixels.shape[1],
        height=pixels.shape[0],
        count=1,
        dtype=pixels.dtype,
        crs=f"EPSG:{epsg}",
        transform=from_origin(*corner, step_x, step_y),
        **{**kinds, **profile},
    ) as file:
        file.write(pixels, 1)
    image = look(str(path), path.stem, {})
    assert image.failure is None
    return image


def mosaic(
    *parts: Any, numbers: Numbers = KINDS["sentinel-2"], tile: str = TILE, step: float = 10, **more: Any
) -> Mosaic:
    epsg, west, north = tile_corner(tile)
    made = tuple(part if isinstance(part, Part) else Part(part) for part in parts)
    side = round(109_800 / step)
    return Mosaic(
        **{
            "band": "B02",
            "parts": made,
            "epsg": epsg,
            "west": west,
            "north": north,
            "step": step,
            "shape": (side, side),
            "scale": Scale(numbers=numbers),
            **more,
        }
    )


def ramp(height: int, width: int, kind: str = "uint16") -> np.ndarray:
    return (1 + np.arange(height)[:, None] * 131 + np.arange(width)[None, :] * 7).astype(kind)


def test_20_m_is_repeated_at_10(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    pixels = ramp(200, 300)
    image = write(tmp_path / "B05.tif", pixels, (west, north), 20, epsg)
    found = mosaic(image).open()(slice(3, 123), slice(77, 300))
    np.testing.assert_array_equal(found[0], pixels.repeat(2, 0).repeat(2, 1)[3:123, 77:300])
    assert found.dtype == np.uint16
    assert not np.ma.isMaskedArray(found)


def known(epsg: int, source: Image, pixels: np.ndarray, east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """The pixel of a file that holds each place, one by one; -1 where there is none."""
    x, y = pyproj.Transformer.from_crs(epsg, source.epsg, always_xy=True).transform(east, north)
    col = np.floor((np.asarray(x) - source.west) / source.step_x).astype(int)
    row = np.floor((source.north - np.asarray(y)) / source.step_y).astype(int)
    inside = (row >= 0) & (row < source.height) & (col >= 0) & (col < source.width)
    return np.where(inside, pixels[row.clip(0, source.height - 1), col.clip(0, source.width - 1)], -1)


def centres(layer: Mosaic, rows: slice, cols: slice) -> tuple[np.ndarray, np.ndarray]:
    east = layer.west + (np.arange(cols.start, cols.stop) + 0.5) * layer.step
    north = layer.north - (np.arange(rows.start, rows.stop) + 0.5) * layer.step
    return np.meshgrid(east, north)


@pytest.mark.parametrize(("tile", "other"), [("33TUL", 32632), ("33XVJ", 32631), ("33XVJ", 32635), ("60KXF", 32701)])
def test_radar_of_a_neighbouring_zone_is_taken_by_the_pixel_that_holds_each_centre(
    tile: str, other: int, tmp_path: Path
) -> None:
    epsg, west, north = tile_corner(tile)
    rows, cols = slice(300, 812), slice(5000, 5512)
    x, y = pyproj.Transformer.from_crs(epsg, other, always_xy=True).transform(west + 52_500, north - 5_500)
    pixels = np.random.default_rng(0).uniform(0.01, 1, (900, 1000)).astype(np.float32)
    corner = (round(x / 10) * 10 - 4500.0, round(y / 10) * 10 + 4500.0)
    image = write(tmp_path / "vv.tif", pixels, corner, 10, other, block=512, nodata=-32768)
    layer = mosaic(image, numbers=KINDS["power"], tile=tile, band="vv")
    found = layer.open()(rows, cols)
    expected = known(epsg, image, pixels, *centres(layer, rows, cols))
    assert 0.3 < np.mean(expected >= 0) <= 1
    np.testing.assert_array_equal(np.ma.getmaskarray(found)[0], expected < 0)
    np.testing.assert_array_equal(np.ma.getdata(found)[0][expected >= 0], expected[expected >= 0].astype(np.float32))


@pytest.mark.parametrize("tile", ["33TUL", "33XVJ", "60KXF"])
def test_height_in_degrees(tile: str, tmp_path: Path) -> None:
    epsg, west, north = tile_corner(tile)
    lon, lat = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True).transform(west + 30_000, north - 30_000)
    step = (1 / 3600 if lat < 60 else 5 / 3600, 1 / 3600)
    corner = (np.floor(lon / step[0]) * step[0] - 150.5 * step[0], np.floor(lat / step[1]) * step[1] + 150.5 * step[1])
    pixels = np.random.default_rng(0).uniform(-10, 900, (300, 300)).astype(np.float32)
    image = write(tmp_path / "dem.tif", pixels, corner, step, 4326)
    layer = mosaic(image, numbers=KINDS["height"], tile=tile, band="dem")
    rows, cols = slice(2700, 3212), slice(2800, 3312)
    expected = known(epsg, image, pixels, *centres(layer, rows, cols))
    found = layer.open()(rows, cols)
    assert np.mean(expected > -500) > 0.3
    np.testing.assert_array_equal(np.ma.getmaskarray(found)[0], expected == -1)
    np.testing.assert_array_equal(found[0][expected != -1].data, expected[expected != -1].astype(np.float32))


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
@pytest.mark.parametrize("kind", ["same zone", "other zone"])
def test_other_resamplings_are_gdals(resampling: str, kind: str, tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    other = epsg if kind == "same zone" else 32632
    x, y = pyproj.Transformer.from_crs(epsg, other, always_xy=True).transform(west + 20_000, north - 20_000)
    pixels = np.random.default_rng(0).uniform(100, 9000, (700, 700)).astype(np.uint16)
    image = write(tmp_path / "B05.tif", pixels, (round(x / 20) * 20 - 7000.0, round(y / 20) * 20 + 7000.0), 20, other)
    layer = mosaic(image, resampling=resampling)
    rows, cols = slice(1900, 2100), slice(1850, 2150)
    found = layer.open()(rows, cols)[0]
    grid = {"crs": f"EPSG:{epsg}", "transform": from_origin(west + 18_500, north - 19_000, 10, 10)}
    # Of the whole file, in floats, by the exact transformation.
    exact: dict[str, Any] = {
        "tolerance": 1e-9,
        "XSCALE": 1,
        "YSCALE": 1,
        "dtype": "float32",
        "height": 200,
        "width": 300,
    }
    with (
        rasterio.open(tmp_path / "B05.tif") as file,
        WarpedVRT(file, resampling=Resampling[resampling], **grid, **exact) as warped,
    ):
        expected = warped.read(1)
    assert found.dtype == np.uint16
    assert np.abs(found - expected.clip(1)).max() <= 0.51, "no value becomes the 0 of nothing"
    nearest = replace(layer, resampling="nearest").open()(rows, cols)[0]
    assert np.abs(found.astype(int) - nearest).max() > 100


def test_the_first_file_that_has_a_value_counts_and_offsets_go_first(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    first, second = np.zeros((128, 128), np.uint16), np.full((128, 128), 1500, np.uint16)
    first[:, :50] = np.arange(900, 1028)[:, None]
    second[:10] = 0
    parts = [
        Part(write(tmp_path / f"{name}.tif", pixels, (west, north), 10, epsg), offset)
        for name, pixels, offset in (("one", first, 1000), ("two", second, 0))
    ]
    found = mosaic(*parts).open()(slice(0, 128), slice(0, 128))[0]
    np.testing.assert_array_equal(found[:, :50], np.maximum(np.arange(900, 1028) - 1000, 1)[:, None].repeat(50, 1))
    assert (found[:10, 50:] == 0).all(), "0 where neither has a value"
    assert (found[10:, 50:] == 1500).all()
    beyond = mosaic(*parts).open()(slice(1000, 1010), slice(1000, 1010))
    assert beyond.dtype == np.uint16
    assert not beyond.any()


@pytest.mark.parametrize("tag", [-32768, None, float("nan")])
def test_radar_without_a_value_is_masked(tag: Any, tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    pixels = np.full((64, 64), 0.1, np.float32)
    pixels[0, :4] = -32768, np.nan, 0, np.inf
    image = write(tmp_path / "vv.tif", pixels, (west, north), 10, epsg, nodata=tag)
    found = mosaic(image, numbers=KINDS["power"]).open()(slice(0, 64), slice(0, 64))
    assert np.ma.getmaskarray(found)[0].sum() == 4
    assert np.ma.getmaskarray(found)[0, 0, :4].all()
    filled = write(tmp_path / "zero.tif", np.zeros((64, 64), np.float32), (west, north), 10, epsg)
    assert np.ma.getmaskarray(mosaic(filled, numbers=KINDS["power"]).open()(slice(0, 64), slice(0, 64))).all()


def test_a_file_that_is_lacking_matters_where_it_is_needed(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    image = write(tmp_path / "one.tif", np.full((128, 128), 7, np.uint16), (west, north), 10, epsg)
    gone = Part(look(str(tmp_path / "two.tif"), "blue", {}), item="S2_X")
    assert "is not there" in str(gone.image.failure)
    layer = mosaic(image, gone)
    assert (layer.open()(slice(0, 128), slice(0, 128)) == 7).all()
    with pytest.raises(ChipError, match="B02: the asset 'blue' of S2_X is not there"):
        layer.open()(slice(0, 129), slice(0, 128))


def test_tags_of_reflectance_are_no_values_and_those_of_others_are(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    path = tmp_path / "B02.tif"
    write(path, np.full((64, 64), 1234, np.uint16), (west, north), 10, epsg)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,), (-0.1,)
    image = look(f"{path}", "blue", {"anonymous": "true"})
    assert (image.scale, image.offset) == (1e-4, -0.1)
    scale = scale_of_band(BANDS["B02"], CLAY_V0, [image], Reading())
    layer = mosaic(image, scale=scale)
    assert (layer.open()(slice(0, 64), slice(0, 64)) == 1234).all()
    assert not layer.scales[0].changes
    height = replace(image, scale=0.5, offset=10.0)
    scale = scale_of_band(BANDS["dem"], CLAY_V0, [height], Reading())
    layer = mosaic(height, scale=scale)
    assert (layer.open()(slice(0, 64), slice(0, 64)) == 627).all()
    assert not layer.scales[0].changes


def test_classes_of_the_next_granule_where_one_has_none(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    one, two = np.zeros((64, 64), np.uint8), np.full((64, 64), 6, np.uint8)
    one[:8] = 4
    images = [
        write(tmp_path / f"{name}.tif", pixels, (west, north), 20, epsg) for name, pixels in (("a", one), ("b", two))
    ]
    found = mosaic(*images, numbers=CLASSES).open()(slice(0, 128), slice(0, 128))[0]
    assert (found[:16] == 4).all()
    assert (found[16:] == 6).all()


def footprint(left: float, right: float) -> str:
    """Of 9 km from the tile's northern edge, between so many metres from its western one."""
    epsg, west, north = tile_corner(TILE)
    east, up = west + np.array([left, right, right, left, left]), north - np.array([0, 0, 9e3, 9e3, 0])
    lon, lat = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True).transform(east, up)
    return f"POLYGON (({', '.join(f'{x} {y}' for x, y in zip(lon, lat, strict=True))}))"


def test_footprints_say_which_files_a_window_needs(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    near = write(tmp_path / "near.tif", np.full((256, 256), 7, np.uint16), (west, north), 10, epsg)
    gone = Image("https://host/far.tif", "blue", failure="is not there")
    rows, cols = slice(0, 100), slice(200, 300)
    elsewhere = mosaic(Part(near, footprint=footprint(0, 2560)), Part(gone, footprint=footprint(20e3, 30e3)))
    found = elsewhere.open()(rows, cols)[0]
    assert (found[:, :56] == 7).all()
    assert not found[:, 56:].any()
    here = replace(elsewhere, parts=(elsewhere.parts[0], Part(gone, footprint=footprint(1000, 9000), item="S2_Y")))
    with pytest.raises(ChipError, match="the asset 'blue' of S2_Y is not there"):
        here.open()(rows, cols)


def test_a_file_that_turns_out_not_to_be_needed_may_have_gone(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    near = write(tmp_path / "near.tif", np.full((256, 256), 7, np.uint16), (west, north), 10, epsg)
    other = replace(near, url=str(tmp_path / "none.tif"))
    layer = mosaic(Part(near, footprint=footprint(0, 1500)), Part(other), shape=(256, 256))
    assert (layer.open()(slice(0, 256), slice(0, 256)) == 7).all()


def in_degrees(epsg: int, west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    to_degrees = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True)
    corners = ((west, north), (east, north), (east, south), (west, south), (west, north))
    return [to_degrees.transform(*corner) for corner in corners]


@pytest.mark.parametrize("tile", ["01KAB", "01WCM", "60XWP", "33TUL"])
def test_footprints_that_cross_180_degrees_without_a_cut_are_met(tile: str, tmp_path: Path) -> None:
    epsg, west, north = tile_corner(tile)
    footprint = shapely.Polygon(in_degrees(epsg, west, north - 109_800, west + 109_800, north)).wkt
    pixels = ramp(64, 64)
    image = write(tmp_path / "B02.tif", pixels, (west + 55_000, north - 55_000), 10, epsg)
    found = mosaic(Part(image, footprint=footprint), tile=tile).open()(slice(5500, 5564), slice(5500, 5564))
    np.testing.assert_array_equal(found[0], pixels)


def test_a_file_that_another_process_saw_replaced_is_opened_anew(tmp_path: Path) -> None:
    epsg, west, north = tile_corner(TILE)
    image = write(tmp_path / "B02.tif", ramp(64, 64), (west, north), 10, epsg)
    window = slice(0, 10), slice(0, 10)
    before = mosaic(image).open()(*window)
    with rasterio.open(tmp_path / "B02.tif", "r+") as file:
        file.write(ramp(64, 64) + 5, 1)
    answer = fetch(image.url, (), 0, 1)
    np.testing.assert_array_equal(
        mosaic(replace(image, size=answer.size, etag=answer.etag)).open()(*window), before + 5
    )


@pytest.mark.parametrize("half", ["north", "south"])
def test_a_footprint_of_corners_near_the_pole_hides_no_pixels(half: str, tmp_path: Path) -> None:
    """A straight line in degrees between the corners of a tile is up to 1.9 km from its edge."""
    epsg, west, north = tile_corner("33XXM")
    top, bottom = (0, 54_900) if half == "north" else (54_900, 109_800)
    corners = np.array([[0, top], [109_800, top], [109_800, bottom], [0, bottom], [0, top]]) * (1, -1) + (west, north)
    degrees = zip(*pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True).transform(*corners.T), strict=True)
    wkt = f"POLYGON (({', '.join(f'{x} {y}' for x, y in degrees)}))"
    # A sliver of 100 m of the half, in the middle of its inner edge.
    edge, across = 5490, slice(5440, 5540)
    first = edge - 10 if half == "north" else edge
    pixels = np.full((10, 100), 7, np.uint16)
    image = write(tmp_path / "half.tif", pixels, (west + 54_400, north - 10 * first), 10, epsg)
    rows = slice(edge - 10, edge + 500) if half == "north" else slice(edge - 500, edge + 10)
    layer = mosaic(Part(image, footprint=wkt), tile="33XXM", shape=(10_980, 10_980))
    found = layer.open()(rows, across)[0]
    assert ((found[:10] if half == "north" else found[-10:]) == 7).all()


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
@pytest.mark.parametrize(("epsg", "step", "wanted"), [(32634, (10.0, 10.0), 10), (4326, (1 / 1800, 1 / 3600), 30)])
def test_a_smoothed_pixel_is_the_same_in_every_window(
    resampling: str, epsg: int, step: tuple[float, float], wanted: int, tmp_path: Path
) -> None:
    own, west, north = tile_corner(TILE)
    x, y = pyproj.Transformer.from_crs(own, epsg, always_xy=True).transform(west + 20_000, north - 20_000)
    pixels = np.random.default_rng(0).uniform(100, 200, (1200, 1200)).astype(np.float32)
    image = write(tmp_path / "dem.tif", pixels, (x - 600 * step[0], y + 600 * step[1]), step, epsg)
    layer = mosaic(image, resampling=resampling, numbers=KINDS["height"], step=wanted).open()
    start = 20_000 // wanted
    large = layer(slice(start - 200, start + 200), slice(start - 150, start + 200))[0]
    small = layer(slice(start, start + 64), slice(start - 50, start + 100))[0]
    np.testing.assert_allclose(large[200:264, 100:250], small, rtol=0, atol=1e-4)
    if (resampling, wanted) == ("bilinear", 10):
        rows, cols = slice(start, start + 64), slice(start - 50, start + 100)
        places = pyproj.Transformer.from_crs(own, epsg, always_xy=True).transform(
            *centres(mosaic(image, step=wanted), rows, cols)
        )
        across, down = (places[0] - image.west) / step[0] - 0.5, (image.north - places[1]) / step[1] - 0.5
        j, i = across.astype(int), down.astype(int)
        u, v = across - j, down - i
        expected = (pixels[i, j] * (1 - u) + pixels[i, j + 1] * u) * (1 - v)
        expected += (pixels[i + 1, j] * (1 - u) + pixels[i + 1, j + 1] * u) * v
        np.testing.assert_allclose(small, expected, rtol=0, atol=1e-3)
