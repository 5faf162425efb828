"""QGIS, where its GDAL has the Parquet driver: `python3 tests/readers/read_qgis.py`.

Run it by the Python that QGIS was installed with; without a screen, with QT_QPA_PLATFORM=offscreen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import environment

if importlib.util.find_spec("qgis") is None:
    environment.not_run("this Python has no QGIS: run it by the one that QGIS was installed with")

import known
import numpy as np
from qgis.core import Qgis, QgsApplication, QgsPointXY, QgsRaster, QgsRasterLayer, QgsVectorLayer

application = QgsApplication([], False)
application.initQgis()


def read(name: str, layer: QgsVectorLayer) -> Iterator[known.Row]:
    """The features of a layer."""
    dtype = known.rows(name)[0].vector.dtype
    for feature in layer.getFeatures():
        box = feature.geometry().boundingBox()
        edges = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
        vector = np.array(feature["embeddings"], dtype)
        yield known.Row(feature["source_url"], feature["date"].toPyDate(), vector, edges)


for name in ("mean", "patch", "windows"):
    layer = QgsVectorLayer(str(known.path(name, known.given())), name, "ogr")
    if not layer.isValid():
        environment.not_run(f"QGIS {Qgis.version()} opens no GeoParquet: its GDAL has no Parquet driver")
    assert layer.crs().authid() == "OGC:CRS84"
    known.check(read(name, layer), known.rows(name))
    print(f"QGIS {Qgis.version()} reads {name}")

(store,) = (known.PUBLISHED / "patch").glob("*.zarr")
raster = QgsRasterLayer(str(store), "patch", "gdal")
assert (raster.isValid(), raster.bandCount(), raster.crs().authid()) == (True, 2 * 256, "EPSG:32633")
corner = QgsPointXY(raster.extent().xMinimum() + 1, raster.extent().yMaximum() - 1)
bands = raster.dataProvider().identify(corner, QgsRaster.IdentifyFormatValue).results()
assert [bands[number] for number in range(1, 257)] == known.rows("patch")[0].vector[:256].tolist()
print(f"QGIS {Qgis.version()} reads a Zarr store")
