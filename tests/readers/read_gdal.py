"""GDAL with its Parquet driver, by pyogrio and by GDAL's own Python: `python3.13 tests/readers/read_gdal.py`.

Run it by a Python whose GDAL has the driver: of conda-forge (`libgdal-arrow-parquet`), Homebrew, OSGeo4W, or of GDAL's
full container image. By another, it looks at the wheel `gdal-wheel` in an environment of its own: 3.13.3 comes without
the driver, as do the wheels of pyogrio 0.13 and rasterio 1.5.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import environment


def drivers() -> dict[str, bool]:
    """Of the packages that bring GDAL and are installed here: whether it has the driver."""
    found = {}
    if importlib.util.find_spec("pyogrio"):
        import pyogrio

        found[f"pyogrio with GDAL {pyogrio.__gdal_version_string__}"] = "Parquet" in pyogrio.list_drivers()
    if importlib.util.find_spec("osgeo"):
        from osgeo import gdal

        found[f"osgeo with GDAL {gdal.__version__}"] = gdal.GetDriverByName("Parquet") is not None
    return found


if not any(drivers().values()):
    environment.enter("gdal", "gdal-wheel==3.13.3", "numpy", python=(3, 13))
    environment.not_run(f"no Parquet driver in {' and '.join(drivers())}; give a Python whose GDAL has it")

import known
import numpy as np

folder = known.given()


def read_by_pyogrio(name: str, **options: object) -> Iterator[known.Row]:
    """The rows as GeoPandas gets them."""
    import pyogrio

    frame = pyogrio.read_dataframe(known.path(name, folder), use_arrow=True, **options)
    assert frame.crs == "OGC:CRS84"
    for url, day, vector, place in zip(frame.source_url, frame.date, frame.embeddings, frame.geometry, strict=True):
        yield known.Row(url, getattr(day, "date", lambda day=day: day)(), vector, place.bounds)


def read_by_osgeo(name: str, box: tuple[float, ...] = ()) -> Iterator[known.Row]:
    """The rows as OGR's features."""
    from osgeo import gdal

    gdal.UseExceptions()
    dtype = known.rows(name)[0].vector.dtype
    with gdal.OpenEx(str(known.path(name, folder))) as file:
        layer = file.GetLayer()
        assert layer.GetSpatialRef().GetAuthorityCode(None) in ("CRS84", "4326")
        if box:
            layer.SetSpatialFilterRect(*box)
        for feature in layer:
            west, east, south, north = feature.geometry().GetEnvelope()
            vector = np.array(feature.GetField("embeddings"), dtype)
            day = feature.GetFieldAsDateTime("date")
            yield known.Row(feature["source_url"], known.date(*day[:3]), vector, (west, south, east, north))


for reader, there in drivers().items():
    if not there:
        print(f"{reader} has no Parquet driver")
        continue
    for name in ("mean", "patch", "windows"):
        read = read_by_pyogrio if reader.startswith("pyogrio") else read_by_osgeo
        known.check(read(name), known.rows(name))
        first = known.rows(name)[0]
        west, south, east, north = first.box
        middle = ((3 * west + east) / 4, (3 * south + north) / 4, (west + 3 * east) / 4, (south + 3 * north) / 4)
        known.check(read(name, **{"bbox" if read is read_by_pyogrio else "box": middle}), [first])
        print(f"{reader} reads {name}, and of a place only its row")
    if read is read_by_pyogrio:
        assert list(known.run_block("GDAL and pyogrio")["near"].source_url) == [
            row.source_url for row in known.rows("mean")
        ]
        print("what docs/reading.md says of pyogrio runs")
