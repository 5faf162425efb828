"""Search as it is asked for: places and rows, days, a region, a cluster."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from daskembed.errors import InputError, StorageError, did_you_mean
from daskembed.paths import StrPath, as_text
from daskembed.storage.urls import is_local

if TYPE_CHECKING:
    import geopandas as gpd
    from distributed import Client

    from daskembed.explore.footers import Rows
    from daskembed.storage.stores import Storage

_TILE = re.compile(r"\d\d[A-Z]{3}_")


def search(
    output: StrPath,
    *,
    like: Any = None,
    like_row: str | Iterable[str] | None = None,
    unlike: Any = None,
    unlike_row: str | Iterable[str] | None = None,
    k: int = 50,
    combine: str = "mean",
    metric: str = "cosine",
    center: bool = True,
    apart: float | None = None,
    dates: str | None = None,
    region: StrPath | None = None,
    encoder: str | None = None,
    level: str | None = None,
    version: str | None = None,
    cluster: str | Client | None = None,
) -> gpd.GeoDataFrame:
    """The chips, or patches, whose embeddings are most like those of some examples.

    Every vector of files is compared: the hits are the best there are. Files are read a block at a time; what their
    footers say of places and days spares what cannot be a hit.

    Parameters
    ----------
    output
        Folder or URL of published files or of an export, or of one file of these, or of the Lance table of an export
        (``embeddings.lance``), whose own index is asked then. At levels with a grid of patches, and in exports of
        patches, patches are searched.
    like
        What is alike: ``LON,LAT`` or ``(lon, lat)`` in degrees, a file that GeoPandas reads, a geometry in degrees, a
        GeoDataFrame or GeoSeries, or several of these. A place stands for the mean of all rows that it is in (of all
        dates), an area for those whose middle is in it.
    like_row
        Rows by their ``source_url``, or its end as far as no other ends so (with or without the file's suffix), which
        ``#patch=ROW,COL`` may follow.
    unlike, unlike_row
        What is not alike, likewise.
    k
        How many hits are wanted.
    combine
        ``mean``: several examples are one query, 2 mean(alike) - mean(unlike), or mean(alike) if none is unlike.
        ``each``: every one that is alike is a query of that form, with `k` hits of its own.
    metric
        ``cosine`` and ``dot`` (more is more alike) or ``l2``, a distance (less is more alike).
    center
        Whether the mean of all vectors of the files, whatever `dates` and `region` choose, is taken out of all of them
        and of the query first.
    apart
        Metres that the middles of hits are from each other and from those of the examples, at least.
    dates
        ``START/END``, of rows: the first and the last day wanted.
    region
        Where hits are: what `daskembed.tiles_of_region` takes.
    encoder, level, version
        Of the files, if there are several.
    cluster
        Where it is computed, as for `daskembed.run`; by default in threads of this process.

    Returns
    -------
    geopandas.GeoDataFrame
        Best first, in OGC:CRS84: ``rank`` from 1, ``score`` (the cosine, the dot product or the distance),
        ``source_url``, ``date``, of patches ``row`` and ``col``, ``file``, ``geometry``; with ``combine="each"`` first
        ``query``, the example. The examples' own rows are no hits. ``attrs["search"]`` says what was searched, how many
        vectors were compared and how many were left out as they have NaN or infinity, and the examples; of a Lance
        table also ``index``, whether an index chose the ``candidates`` that were ranked: some of the best may be missed
        then, and what was left out is not known.

    Raises
    ------
    InputError
        If there are no such files, they do not go together, or nothing is where an example is.
    StorageError
        If a store does not answer.
    ClusterLostError
        If the cluster loses what it was given.
    """
    from daskembed.clusters.connection import check_connection
    from daskembed.explore.footers import open_rows
    from daskembed.explore.queries import COMBINE, find_examples, read_given, read_rows_given
    from daskembed.explore.search import Wanted, find_similar
    from daskembed.explore.topk import METRICS
    from daskembed.sources.reading import parse_dates
    from daskembed.sources.region import read_region

    for name, value, known in (("metric", metric, METRICS), ("combine", combine, COMBINE)):
        if value not in known:
            raise InputError(f"`{name}` {value!r}: expected {', '.join(known)}{did_you_mean(value, known)}")
    wanted = Wanted(k=k, metric=metric, center=center, combine=combine, apart=apart)  # type: ignore[arg-type]
    given = [
        *read_given(like, alike=True),
        *read_rows_given(like_row, alike=True),
        *read_given(unlike, alike=False),
        *read_rows_given(unlike_row, alike=False),
    ]
    if isinstance(cluster, str):
        check_connection(cluster)
    if not any(one.alike for one in given):
        raise InputError("what is searched? give `like` or `like_row`")
    days = None if dates is None else parse_dates(dates)
    area = None if region is None else read_region(region)
    output = as_text(output)
    if (table := output.rstrip("/")).endswith(".lance"):
        from daskembed.explore.indexed import find_indexed

        if any(one is not None for one in (cluster, encoder, level, version)):
            raise InputError(f"{table} is one table with an index: leave out `encoder`, `level`, `version`, `cluster`")
        return find_indexed(table, given, wanted, dates=days, region=area)
    rows = open_rows(output, encoder=encoder, level=level, version=version)
    if days is not None and "date" not in rows.names:
        raise InputError(f"`dates` {dates}: the files in {rows.storage.url} say no dates: leave it out")
    examples = find_examples(replace(rows, dates=days), given)
    find = functools.partial(find_similar, rows, examples, wanted, dates=days, region=area)
    return find() if cluster is None else _on_cluster(cluster, rows, find)


def _on_cluster(cluster: str | Client, rows: Rows, find: Callable[..., gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """Search on the workers of Dask, if they see the files."""
    from daskembed.clusters.connection import connect, shares_files
    from daskembed.runs.shared_files import check_files_seen, refuse_output

    with contextlib.ExitStack() as stack:
        if isinstance(cluster, str):
            if shares_files(cluster) is False and is_local(rows.storage.url):
                refuse_output(rows.storage, f"of the cluster {cluster!r}")
            cluster = stack.enter_context(connect(cluster))
        check_files_seen(cluster, rows.storage, rows.pieces[0].file)
        return find(client=cluster)


def write_hits(found: gpd.GeoDataFrame, to: str) -> str:
    """Write what `search` gave, and say where: complete or not at all.

    Parameters
    ----------
    found
        The hits.
    to
        A file, ``.parquet`` (GeoParquet) or ``.geojson``, or a folder that ends with ``/``: of a page that shows the
        tiles with hits, as `daskembed.preview` makes it, the hits and the examples.

    Raises
    ------
    InputError
        If it is neither, it would be searched itself, or a page is asked for of what is no output of runs.
    """
    from daskembed.storage.stores import Storage, split_url

    check_written(to, found.attrs["search"]["output"])
    if to.endswith("/"):
        return _write_page(found, Storage(to))
    storage, name = split_url(to)
    with storage.open_writer(name) as file:
        if name.endswith(".parquet"):
            found.to_parquet(file, write_covering_bbox=True)
        else:
            plain = found.assign(date=[None if day is None else str(day) for day in found["date"]])
            file.write(json.dumps(json.loads(plain.to_json(drop_id=True))).encode())
    return storage.url_of(name)


def check_written(to: str, output: str) -> None:
    """Raise `InputError` if the hits of a search in `output` cannot be written to such a name."""
    from daskembed.explore.footers import SUFFIXES
    from daskembed.storage.stores import Storage, split_url

    if not to.endswith((".parquet", ".geojson", "/")):
        raise InputError(
            f"`to` {to}: expected a file that ends with .parquet or .geojson, or a folder that ends with /"
        )
    searched = split_url(output)[0] if output.endswith(SUFFIXES) else Storage(output)
    if to.endswith("/") and Storage(to).url == searched.url:
        raise InputError(
            f"`to` {to}: {searched.url} holds what is searched: a page of hits goes into a folder of its own"
        )
    if to.endswith(".parquet") and split_url(to)[0].url == searched.url:
        raise InputError(
            f"`to` {to}: what is in {searched.url} is searched, and these hits would be, too: give another folder"
        )


def is_written(to: str) -> bool:
    """Whether there are such hits already, as far as the store says."""
    from daskembed.explore.preview import PAGE
    from daskembed.storage.stores import split_url

    storage, name = split_url(f"{to}{PAGE}" if to.endswith("/") else to)
    try:
        storage.entry(name)
    except (FileNotFoundError, StorageError):
        return False
    return True


def _write_page(found: gpd.GeoDataFrame, page: Storage) -> str:
    import shapely

    from daskembed.explore.hits import add_hits
    from daskembed.explore.preview import write_preview
    from daskembed.geo.footprints import box
    from daskembed.runs.components import components_of, select_asked

    told, names = found.attrs["search"], {*found["file"]}
    if not names:
        raise InputError("no hits to show: a page has the tiles that they are in; ask for others")
    if not all(_TILE.match(name) for name in names):
        raise InputError(
            "`to` a page: it shows tiles as runs publish them, and these files are others; give .parquet or .geojson"
        )
    asked, output, selection = select_asked(
        told["output"], {name: told[name] for name in ("encoder", "level", "version") if told[name] is not None}
    )
    # Colours and the mean are those of all that was searched; of its tiles, those with hits and examples are shown.
    basis = components_of(output, selection, asked)
    places = [shapely.point_on_surface(shapely.from_wkt(one["footprint"])) for one in told["examples"]]
    tiles = {
        name: tile
        for name, tile in selection.tiles.items()
        if name in names or shapely.intersects(box(*tile.bbox), places).any()
    }
    ids = {tile.tile for tile in tiles.values()}
    made = write_preview(output, replace(selection, tiles=tiles), basis, page, own=basis, tiles=ids)
    add_hits(page, found, tuple(told["grid"]))
    return made.page
