"""A tile's chips listed, and their headers read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from daskembed.geo.mgrs import check_tile
from daskembed.paths import StrPath, as_text
from daskembed.sources.origin import choice_for, open_source
from daskembed.sources.reading import Reading, parse_dates
from daskembed.sources.region import read_region
from daskembed.sources.registry import list_tile, read_headers
from daskembed.sources.rules import NO_RULES, Rules

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.encoders.protocol import Encoder


def index_tile(
    tile: str,
    source: StrPath,
    *,
    encoder: Encoder | None = None,
    dates: str | None = None,
    region: StrPath | None = None,
    offset: tuple[int, int] = (0, 0),
    edge: str = "drop",
    rules: Rules = NO_RULES,
    numbers: str | None = None,
    offset_applied: str | None = None,
    scenes: int | None = None,
    pick: str | None = None,
    max_scene_cloud: float | None = None,
    max_scene_nodata: float | None = None,
    radar_days: int | None = None,
    resampling: str | None = None,
    readers: int = 16,
) -> gpd.GeoDataFrame:
    """List a tile's chips and read their headers, no pixels.

    Parameters
    ----------
    tile
        MGRS tile id, such as ``27WXN``.
    source
        Folder or URL above the tiles. The chips are all ``claytile_*.tif`` under ``{source}/{tile}/`` at any depth,
        or, where that folder is empty, ``{source}/claytile_{tile}_*.tif``. Or a catalogue of scenes: ``earth-search``,
        ``planetary-computer``, ``cdse``, ``stac+https://HOST/PATH``, a file of items (``.json``, ``.parquet``), or one
        that describes a catalogue (``.yaml``).
    encoder
        Whose bands are read; by default the 13 of Clay v0.
    dates
        ``START/END``, the first and the last acquisition date wanted, such as ``2022-01-01/2022-12-31``.
    region
        A region that the chips must meet; see `daskembed.tiles_of_region`.
    offset
        Pixels (y, x) from a whole tile's north-west corner to that of its first chip.
    edge
        Of chips that reach beyond a whole tile: ``drop`` or ``pad``, with the pixels at its edge.
    rules
        What a chip must be to be embedded; what they leave open is for the kind of source to say.
    numbers
        Of bands with a scale and an offset: ``stored`` takes the numbers as they are in the files, ``values`` what they
        stand for. By default what the encoder was trained on, and a file is refused where that cannot be told.
    offset_applied
        Whether the 1000 that ESA adds to Sentinel-2's numbers since 2022-01-25 is taken out of the files already:
        ``no`` takes it out of images that have it. By default what the files tell, else numbers are left; of a
        catalogue's scenes it is taken out, or the tile refused where that cannot be told.
    scenes, pick
        Of a catalogue: how many dates (default: 1), the ``clear`` ones (default) or the clearest of each of as many
        parts of the period, ``spread``.
    max_scene_cloud, max_scene_nodata
        Of a catalogue: percent of clouds (default: 50) and of nodata (default: 20) beyond which scenes are left out.
    radar_days
        Of a catalogue: most whole days from a scene to its radar, before or after it (default: 3).
    resampling
        Of what has another grid than the tile: ``nearest`` (default), ``bilinear`` or ``cubic``.
    readers
        How many headers are read at a time.

    Returns
    -------
    geopandas.GeoDataFrame
        One row a chip in the order of ``source_url``, in OGC:CRS84: ``source_url`` (full URL, or absolute path of
        a local file), ``source`` (kind), ``date``, ``datetime`` (UTC; NaT where only the day is known), ``epsg``,
        ``lat`` and ``lon`` of the centre (degrees),
        ``west``, ``south``, ``east`` and ``north`` (bounds in the chip's own CRS), ``coverage`` (share of its pixels
        that are in the image: less than 1 where ``pad`` filled it up), ``chip`` (a `Chip`, which reads it; files hold
        an index without it: ``index.drop(columns="chip").to_parquet(...)``), ``size`` (bytes), ``etag``,
        ``quarantined`` (why the chip cannot be used; None if it can) and ``geometry`` (footprint). A row with a reason
        may lack the rest.

    Raises
    ------
    InputError
        If the tile id is bad or the source does not exist; if scenes are to be chosen of a source that is no
        catalogue, or no dates are given for one.
    TileError
        If the tile has no chips, or none that meets the region.
    StorageError
        If the source does not answer.
    """
    origin = open_source(as_text(source))
    asked = {"scenes": scenes, "pick": pick, "max_scene_cloud": max_scene_cloud, "max_scene_nodata": max_scene_nodata}
    asked |= {"radar_days": radar_days, "resampling": resampling}
    reading = Reading(
        dates=None if dates is None else parse_dates(dates),
        region=None if region is None else read_region(region),
        offset=offset,
        edge=edge,
        rules=rules,
        numbers=numbers,
        offset_applied=offset_applied,
        choice=choice_for(origin, asked),
    )
    if encoder is not None:
        reading = replace(reading, sensor=encoder.description.sensor, resolution=encoder.description.resolution)
    reading.check()
    return read_headers(list_tile(check_tile(tile), origin, reading), reading, readers=readers)
