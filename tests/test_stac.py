"""Catalogues from end to end, on synthetic scenes of which every pixel is known."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import affine
import geopandas as gpd
import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
import rasterio.warp
from geopandas.testing import assert_geodataframe_equal
from known import chip_of
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.vrt import WarpedVRT

import daskembed
from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import tile_corner
from daskembed.sensors.bands import CLAY_V0
from daskembed.testing import HeightImage, OpticalImage, RadarImage, write_scenes
from daskembed.testing.items import catalogue_of
from daskembed.testing.scenes import Scenes

OPTICAL = CLAY_V0.names[:10]
WEST, EAST = "2024-06-02T10:20:31Z", "2024-06-02T10:20:45Z"
PERIOD = "2024-06-01/2024-06-30"
COPY = OpticalImage(WEST, part="west", baseline="02.14", processed="2024-06-02T12:00:00Z", listed_only=True)


@dataclass(frozen=True)
class World:
    """Scenes of a tile, and the chips that are in them."""

    scenes: Scenes
    chips: dict[int, tuple[int, int]]
    """Number in the tile, of which chips at the edge are filled up, -> pixel (y, x) where it begins."""

    @property
    def used(self) -> dict[str, list[str]]:
        """Band -> the items that have it, in the order in which they count."""
        names = [item["id"] for item in self.scenes.items]
        # Of two granules first the one that covers more of the tile.
        two = names[1::-1] if self.scenes.tile == "33TUL" else names[:2]
        radar = [name for name in names if name.startswith("S1A")]
        heights = [name for name in names if name.startswith("Copernicus")]
        return dict.fromkeys(OPTICAL, two) | {"vh": radar, "vv": radar, "dem": heights}


PLACES: dict[str, tuple[str, tuple[int, int], int, dict[int, tuple[int, int]]]] = {
    # tile, where the files begin, the zone of some of the radar, chips: the edge of the swath goes through them
    "first corner at 46 N": ("33TUL", (0, 0), 1, {2: (0, 512), 23: (512, 0)}),
    # The second one is filled up at two sides.
    "last corner at 80 N": ("33XWK", (9900, 9900), -1, {461: (10240, 10240), 484: (10752, 10752)}),
    "across 180 degrees in the south": ("01KAB", (0, 7392), 1, {16: (0, 7680)}),
}


@pytest.fixture(scope="module", params=PLACES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two granules and a copy of one, radar of two zones, degrees of elevation; in the middle all of them meet."""
    tile, start, zone, chips = PLACES[request.param]
    images = (
        OpticalImage(WEST, part="west"),
        OpticalImage(EAST, part="east"),
        COPY,
        RadarImage("2024-06-02T05:10:02Z", part="west", zone=0),
        RadarImage("2024-06-01T05:10:27Z", part="east", zone=zone),
        HeightImage(),
    )
    return World(write_scenes(tmp_path_factory.mktemp("world"), tile=tile, images=images, start=start), chips)


def test_each_file_holds_what_is_known_of_it(world: World) -> None:
    for item in world.scenes.items:
        for raster in world.scenes.rasters[item["id"]].values():
            if item["properties"].get("s2:processing_baseline") == COPY.baseline:
                assert not Path(world.scenes.folder, raster.path).exists()
                continue
            with rasterio.open(Path(world.scenes.folder, raster.path)) as file:
                assert file.crs.to_epsg() == raster.epsg
                assert file.xy(0, 0) == pytest.approx(
                    (raster.west + raster.steps[0] / 2, raster.north - raster.steps[1] / 2), abs=1e-9
                )
                rows, cols = np.arange(raster.shape[0])[:, None], np.arange(raster.shape[1])
                np.testing.assert_array_equal(file.read(1), raster.values(rows, cols))


def exactly(source: Any, target: NDArray[Any], **asked: Any) -> None:
    """`rasterio.warp.reproject`, but for places that are a billionth of a pixel near, not an eighth."""
    grid = {"crs": asked["dst_crs"], "transform": asked["dst_transform"], "nodata": asked["dst_nodata"]}
    height, width = target.shape
    nothing = {} if asked["src_nodata"] is None else {"src_nodata": asked["src_nodata"]}
    if grid["nodata"] is None:
        grid["nodata"] = np.nan
    with WarpedVRT(source.ds, height=height, width=width, tolerance=1e-9, **grid, **nothing) as warped:
        target[:] = warped.read(source.bidx)


def by_odc(world: World) -> dict[int, NDArray[np.float32]]:
    """Chips as `odc.stac` reads them, the +1000 taken out."""
    # A link of theirs would be what their hrefs are relative to.
    items = {item["id"]: pystac.Item.from_dict(item | {"links": []}) for item in world.scenes.items}
    epsg, west, north = tile_corner(world.scenes.tile)
    chips = {}
    for number, (y, x) in world.chips.items():
        inside = min(CHIP, 10_980 - y), min(CHIP, 10_980 - x)
        box = GeoBox(inside, affine.Affine(10, 0, west + 10 * x, 0, -10, north - 10 * y), f"EPSG:{epsg}")
        bands = []
        for band, names in world.used.items():
            asset = "data" if band == "dem" else band
            loaded = odc.stac.load(
                [items[name] for name in names],
                bands=[asset],
                geobox=box,
                resampling="nearest",
                groupby=lambda *_: 0,
                preserve_original_order=True,
                fail_on_error=True,
            )
            pixels = loaded[asset].to_numpy()[0]
            if band in OPTICAL:
                pixels = np.where(pixels > 0, np.maximum(pixels.astype(int) - 1000, 1), 0)
            bands.append(np.pad(pixels, [(0, CHIP - side) for side in inside], "edge"))
        chips[number] = np.stack(bands).astype(np.float32)
    return chips


def chips_of(world: World, **asked: Any) -> gpd.GeoDataFrame:
    """The chips that are in the scenes."""
    index = daskembed.index_tile(world.scenes.tile, str(world.scenes.description), dates=PERIOD, edge="pad", **asked)
    number = index["source_url"].str[-4:].astype(int)
    return index[number.isin(world.chips)]


def test_chips_are_the_same_by_another_reading_and_as_is_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    index = chips_of(world)
    assert len(index) == len(world.chips)
    read = daskembed.open_tile(index).compute()
    assert list(read.band.values) == list(world.used)
    monkeypatch.setattr(rasterio.warp, "reproject", exactly)
    others = by_odc(world)
    for url, pixels in zip(index["source_url"], read.to_numpy(), strict=True):
        number = int(url[-4:])
        seen = np.isfinite(others[number])
        # Of elevation that goes on beyond 180 degrees it finds nothing.
        assert seen[:-1].all()
        assert seen.all() or world.scenes.tile == "01KAB"
        np.testing.assert_array_equal(pixels[seen], others[number][seen])
        known = chip_of(world.scenes, world.used, world.chips[number])
        assert np.isfinite(known).all()
        np.testing.assert_array_equal(pixels, known)


def write_chip(folder: Path, world: World, number: int) -> None:
    """A chip of the scenes, as Clay's chips are."""
    tile, (y, x) = world.scenes.tile, world.chips[number]
    epsg, west, north = tile_corner(tile)
    pixels = chip_of(world.scenes, world.used, (y, x))
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(pixels), "crs": f"EPSG:{epsg}"}
    transform = affine.Affine(10, 0, west + 10 * x, 0, -10, north - 10 * y)
    (folder / tile).mkdir(exist_ok=True)
    path = folder / tile / f"claytile_{tile}_20240602_v02_{number:04d}.tif"
    with rasterio.open(path, "w", height=CHIP, width=CHIP, transform=transform, **profile) as file:
        file.write(pixels)
        file.descriptions = tuple(world.used)
        file.update_tags(date="2024-06-02")


@pytest.mark.parametrize("world", ["first corner at 46 N"], indirect=True)
def test_embeddings_are_those_of_the_same_pixels_as_chips(world: World, tmp_path: Path) -> None:
    for number in world.chips:
        write_chip(tmp_path, world, number)
    encoder = daskembed.load_encoder("untrained:least", precision="fp32")

    def embedded(index: gpd.GeoDataFrame) -> NDArray[np.float32]:
        found = daskembed.embed(daskembed.open_tile(index), encoder, level="mean")
        vectors: NDArray[np.float32] = found.compute(scheduler="threads").to_numpy()
        return vectors

    of_chips = embedded(daskembed.index_tile(world.scenes.tile, str(tmp_path)))
    of_scenes = embedded(chips_of(world))
    assert of_chips.shape == of_scenes.shape == (2, 256)
    np.testing.assert_allclose(of_scenes, of_chips, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", ["first corner at 46 N"], indirect=True)
@pytest.mark.parametrize("told", [None, "proj:epsg", "proj:code"])
def test_files_tell_where_they_are_whatever_their_items_say(told: str | None, world: World, tmp_path: Path) -> None:
    items = copy.deepcopy(world.scenes.items)
    for item in items:
        epsg = next(iter(world.scenes.rasters[item["id"]].values())).epsg
        for place in (item["properties"], *item["assets"].values()):
            for name in [name for name in place if name.startswith("proj:")]:
                del place[name]
        if told is not None:
            item["properties"][told] = epsg if told == "proj:epsg" else f"EPSG:{epsg}"
    file, description = tmp_path / "items.json", tmp_path / "catalogue.yaml"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    description.write_text(catalogue_of(world.scenes.style, str(file), world.scenes.root))
    index = daskembed.index_tile(world.scenes.tile, str(description), dates=PERIOD, edge="pad")
    usual = daskembed.index_tile(world.scenes.tile, str(world.scenes.description), dates=PERIOD, edge="pad")
    assert_geodataframe_equal(index, usual)


@pytest.mark.parametrize("style", ["planetary-computer", "earth-search", "cdse"])
def test_what_each_catalogue_does_to_pixels_is_undone(style: str, tmp_path: Path) -> None:
    images = (OpticalImage(EAST, part="east"), OpticalImage(WEST, part="west"))
    scenes = write_scenes(tmp_path, images=images, shape=(516, 516), style=style)
    first = scenes.rasters[scenes.items[0]["id"]]["B02"]
    assert (first.added, Path(first.path).suffix) == {
        "planetary-computer": (1000, ".tif"),
        "earth-search": (0, ".tif"),
        "cdse": (1000, ".jp2"),
    }[style]
    # Tags of scale in some files, and none of nodata: JPEG 2000 has no such tags.
    for raster in (files[band] for files in scenes.rasters.values() for band in ("B02", "B03", "B05")):
        if style != "cdse":
            with rasterio.open(tmp_path / raster.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
                if raster.band != "B03":
                    file.scales, file.offsets = (1e-4,), (-0.1,)
                if raster.band != "B05":
                    file.nodata = None
    encoder = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5")
    index = daskembed.index_tile(scenes.tile, str(scenes.description), encoder=encoder, dates=PERIOD)
    names = [item["id"] for item in scenes.items]
    known = chip_of(scenes, dict.fromkeys(OPTICAL, names), (0, 0))
    assert np.isfinite(known).all()
    np.testing.assert_array_equal(index["chip"].iloc[0].read(), known)


def test_radar_that_is_filled_with_zeros_is_no_radar(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path, images=(RadarImage(WEST, zeros=True),), shape=(516, 516))
    encoder = daskembed.load_encoder("untrained:tiny", encoder="clay-v1.5", sensor="sentinel-1-rtc")
    index = daskembed.index_tile(scenes.tile, str(scenes.description), encoder=encoder, dates=PERIOD)
    with pytest.raises(daskembed.ChipRejectedError, match=r"v[vh] is 0 or less in 100\.0000%"):
        index["chip"].iloc[0].read()
