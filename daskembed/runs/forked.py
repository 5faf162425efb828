"""What workers need, loaded in the process that they are forks of: imports alone, no thread and no device."""

from __future__ import annotations

from daskembed.clusters.forks import loading

with loading():
    import daskembed.compute.device
    import daskembed.encoders.clay_v0_model
    import daskembed.encoders.clay_v1_5_model
    import daskembed.output.geoparquet
    import daskembed.output.zarr
    import daskembed.runs.cubes
    import daskembed.runs.tiles
    import daskembed.sources.geotiff
    import daskembed.sources.raster
    import daskembed.sources.zarr  # noqa: F401
