"""Catalogues from end to end, on synthetic scenes of which every pixel is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from daskembed.testing import write_scenes
from daskembed.testing.scenes import Scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """The first chips of a tile at 46 N, of Planetary Computer."""
    return write_scenes(tmp_path_factory.mktemp("world"))


def test_each_file_holds_what_is_known_of_it(world: Scenes) -> None:
    for files in world.rasters.values():
        for raster in files.values():
            if not Path(world.folder, raster.path).exists():
                continue  # of an item that is not to be chosen
            with rasterio.open(Path(world.folder, raster.path)) as file:
                assert file.crs.to_epsg() == raster.epsg
                assert file.xy(0, 0) == pytest.approx(
                    (raster.west + raster.steps[0] / 2, raster.north - raster.steps[1] / 2), abs=1e-9
                )
                rows, cols = np.arange(raster.shape[0])[:, None], np.arange(raster.shape[1])
                np.testing.assert_array_equal(file.read(1), raster.values(rows, cols))
