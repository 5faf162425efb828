"""The one frame that a tile's chips are listed in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd

from daskembed.errors import exact
from daskembed.geo.cells import EDGES
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import elsewhere, to_lonlat

if TYPE_CHECKING:
    from daskembed.sources.chip import Chip
    from daskembed.sources.listing import Listing

INDEX_COLUMNS = (
    *("source_url", "source", "date", "datetime", "epsg", "lat", "lon", *EDGES),
    *("coverage", "chip", "size", "etag", "quarantined", "geometry"),
)
"""Columns of a tile's index; `index_tile` says what each holds."""


class Placed(NamedTuple):
    """A chip that can be read, with when and where it was taken."""

    chip: Chip
    day: date
    epsg: int
    bounds: tuple[float, float, float, float]
    """West, south, east and north, in `epsg`."""
    time: datetime | None = None
    """When it was taken, UTC, if that is known."""


def frame_of(listing: Listing, found: Sequence[Placed | str], *, outside: str, apart: bool = False) -> gpd.GeoDataFrame:
    """The index of a listing, in the order of its entries.

    Parameters
    ----------
    listing, found
        Its chips, or why they cannot be used.
    outside
        What is said of bounds that are no place in the CRS, with ``{bounds}`` and ``{epsg}``.
    apart
        Whether each chip has to be at the tile by itself.
    """
    lon, lat = np.full((2, len(found)), np.nan)
    footprints = np.full(len(found), None, dtype=object)
    bounds = np.array([one.bounds if isinstance(one, Placed) else (np.nan,) * 4 for one in found]).reshape(-1, 4)
    reasons = [one if isinstance(one, str) else None for one in found]
    for epsg in sorted({one.epsg for one in found if isinstance(one, Placed)}):
        rows = np.array([row for row, one in enumerate(found) if isinstance(one, Placed) and one.epsg == epsg])
        lon[rows], lat[rows], footprints[rows] = to_lonlat(epsg, bounds[rows])
        strays = elsewhere(listing.tile, bounds[rows], epsg) if apart else [None] * len(rows)
        for row, stray in zip(rows, strays, strict=True):
            edges = ", ".join(map(exact, bounds[row]))
            reasons[row] = outside.format(bounds=edges, epsg=epsg) if footprints[row] is None else stray
    good = [one if isinstance(one, Placed) and why is None else None for one, why in zip(found, reasons, strict=True)]
    index = pd.DataFrame(
        {
            "source_url": [listing.url_of(entry) for entry in listing.entries],
            "source": listing.kind,
            "date": pd.Series([one and one.day for one in good], dtype=object),
            "datetime": pd.to_datetime(pd.Series([one and one.time for one in good], dtype=object), utc=True).astype(
                "datetime64[ms, UTC]"
            ),
            "epsg": pd.array([one and one.epsg for one in good], dtype="Int32"),
            "lat": lat,
            "lon": lon,
            **dict(zip(EDGES, bounds.T, strict=True)),
            "coverage": [np.prod(one.chip.inside) / CHIP**2 if one else np.nan for one in good],
            "chip": pd.Series([one and one.chip for one in good], dtype=object),
            "size": [entry.size for entry in listing.entries],
            "etag": [entry.etag for entry in listing.entries],
            "quarantined": pd.Series(reasons, dtype=object),
        }
    )
    return gpd.GeoDataFrame(index, geometry=gpd.GeoSeries(footprints, crs="OGC:CRS84"))[list(INDEX_COLUMNS)]
