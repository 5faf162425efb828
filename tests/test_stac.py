"""Catalogues from end to end, on synthetic scenes of which every pixel is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import affine
import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
import rasterio.warp
from known import chip_of
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.vrt import WarpedVRT

from daskembed.geo.chips import CHIP
from daskembed.geo.mgrs import tile_corner
from daskembed.sensors.bands import CLAY_V0
from daskembed.testing import HeightImage, OpticalImage, RadarImage, write_scenes
from daskembed.testing.scenes import Scenes

OPTICAL = CLAY_V0.names[:10]
WEST, EAST = "2024-06-02T10:20:31Z", "2024-06-02T10:20:45Z"
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
        two = [names[0], names[1]]
        radar = [name for name in names if name.startswith("S1A")]
        heights = [name for name in names if name.startswith("Copernicus")]
        return dict.fromkeys(OPTICAL, two) | {"vh": radar, "vv": radar, "dem": heights}


@pytest.fixture(scope="module", params=["first corner at 46 N", "last corner at 80 N"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two granules and a copy of one, radar of two zones, degrees of elevation; in the middle all of them meet."""
    north = request.param.endswith("80 N")
    images = (
        OpticalImage(WEST, part="west"),
        OpticalImage(EAST, part="east"),
        COPY,
        RadarImage("2024-06-02T05:10:02Z", part="west", zone=0),
        RadarImage("2024-06-01T05:10:27Z", part="east", zone=-1 if north else 1),
        HeightImage(),
    )
    start, first = ((9900, 9900), (10240, 10240)) if north else ((0, 0), (0, 0))
    scenes = write_scenes(
        tmp_path_factory.mktemp("world"), tile="33XWK" if north else "33TUL", images=images, start=start
    )
    across = 22
    chips = {}
    for row in (0, 1):
        for col in (0, 1):
            y, x = first[0] + row * CHIP, first[1] + col * CHIP
            chips[y // CHIP * across + x // CHIP + 1] = (y, x)
    return World(scenes, chips)


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


@pytest.fixture
def by_odc(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[int, NDArray[np.float32]]:
    """Chips as `odc.stac` reads them, the +1000 taken out."""
    monkeypatch.setattr(rasterio.warp, "reproject", exactly)
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


def test_another_reading_gives_what_is_known(world: World, by_odc: dict[int, NDArray[np.float32]]) -> None:
    for number, start in world.chips.items():
        known = chip_of(world.scenes, world.used, start)
        assert np.isfinite(known).all()
        np.testing.assert_array_equal(by_odc[number], known)
