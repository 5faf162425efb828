"""The kinds of sources, and which of them has a tile."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from daskembed.errors import InputError, TileError
from daskembed.geo.mgrs import square_of
from daskembed.sources.listing import Listing
from daskembed.sources.origin import Origin
from daskembed.sources.protocol import Source
from daskembed.sources.reading import Reading
from daskembed.sources.stac.catalogue import Catalogue
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    import geopandas as gpd

    from daskembed.sources import geotiff, raster, zarr

    # That each is a `Source` is for the type checker to say: they are imported when they are needed.
    _ALL: tuple[Source, ...] = (geotiff, zarr, raster)

SOURCES = {
    "geotiff": "daskembed.sources.geotiff",
    "zarr": "daskembed.sources.zarr",
    "raster": "daskembed.sources.raster",
}
"""Kind of source in folders -> the module that implements `Source`."""


def list_tile(
    tile: str,
    source: Origin,
    reading: Reading,
    kept: Sequence[Mapping[str, Any]] = (),
    *,
    again: bool = False,
) -> Listing:
    """List a tile's chips, of the first of `SOURCES` that has some.

    Parameters
    ----------
    tile, source, reading
        Which tile of what, and how its chips are found.
    kept
        Of a catalogue: scenes as `Listing.kept` has them, of an earlier listing. They are taken, and nobody is asked.
    again
        Whether the headers of their files are read again: one may be there by now, or be another.

    Raises
    ------
    InputError
        If the source does not exist.
    TileError
        If there are none, or no such tile.
    StorageError
        If the source does not answer.
    """
    source.check_exists()
    try:
        square_of(tile)
    except InputError as error:
        raise TileError(str(error)) from None
    if isinstance(source, Catalogue):
        from daskembed.sources.stac import scenes

        return scenes.list_scenes(tile, source, reading, kept, again=again)
    for kind in SOURCES:
        if (listing := _module(kind).list_chips(tile, source, reading)) is not None:
            return listing
    raise TileError(no_chips(tile, source))


def no_chips(tile: str, source: Storage) -> str:
    """What is said of a tile of which no kind of source finds chips."""
    places = ", ".join(_module(kind).describe(tile, source) for kind in SOURCES)
    return f"no chips of tile {tile}: expected {places}; check the tile id and `source`"


def read_headers(listing: Listing, reading: Reading, *, readers: int = 16) -> gpd.GeoDataFrame:
    """The chips of a listing, one row each; see `index_tile`."""
    return _module(listing.kind).read_headers(listing, reading, readers=readers)


def _module(kind: str) -> Source:
    return cast(Source, importlib.import_module(SOURCES.get(kind, "daskembed.sources.stac.scenes")))
