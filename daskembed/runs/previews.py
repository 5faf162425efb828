"""Previews of published files: their basis, found or given, and the page."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from daskembed.errors import InputError, StorageError
from daskembed.explore.basis import Basis
from daskembed.explore.components import check_basis
from daskembed.explore.preview import FOLDER, Preview, write_preview
from daskembed.geo.mgrs import tiles_of
from daskembed.output import geoparquet
from daskembed.paths import StrPath, as_text
from daskembed.runs.components import components_of, select_asked
from daskembed.runs.export_options import Looked, PreviewOptions
from daskembed.runs.options import documented
from daskembed.storage.stores import Storage, split_url

if TYPE_CHECKING:
    from daskembed.runs.results import RunResult

_log = logging.getLogger(__name__)


@documented(PreviewOptions, Looked)
def preview(
    output: StrPath,
    *,
    to: StrPath | None = None,
    basis: Basis | StrPath | None = None,
    geotiff: bool = False,
    **options: Unpack[PreviewOptions],
) -> Preview:
    """Write a page that shows the published files of an output on a map, to be opened straight from disk.

    Tiles, chips and patches have the colours of their first three principal components. The page asks nobody on the
    network, and of up to 100,000 vectors it finds the most similar ones by itself.

    Parameters
    ----------
    output
        Folder or URL of the published files.
    to
        Folder or URL of the page; by default ``{output}/_preview``. What an earlier preview left there is replaced.
    basis
        A basis of vectors of the same encoder and level, or the path or URL of its JSON, such as an earlier preview's
        ``basis.json``: pages of the same basis have the same colours. By default that of these files.
    geotiff
        Whether to write the colours of each tile and date as a cloud-optimised GeoTIFF into ``{to}/geotiff``.
    options
        See `daskembed.runs.export_options.Looked. The cluster computes the basis; the page is written by this process`.

    Returns
    -------
    Preview

    Raises
    ------
    InputError
        If there are no such files, they do not go together, one cannot be read, or the basis is of others.
    """
    asked, found, selection = select_asked(output, options)
    chosen = read_basis(as_text(basis)) if isinstance(basis, str | os.PathLike) else basis
    if chosen is not None:
        check_basis(chosen, selection)
    own = components_of(found, selection, asked)
    tiles = None if asked.tiles is None else tiles_of(asked.tiles)
    page = Storage(as_text(to) if to else found.url_of(FOLDER))
    return write_preview(found, selection, chosen or own, page, own=own, tiles=tiles, geotiff=geotiff)


def read_basis(url: str) -> Basis:
    """The basis of a JSON document at a path or URL; raises `InputError` if there is none."""
    storage, name = split_url(url)
    try:
        return Basis.from_json(storage.get(name))
    except FileNotFoundError:
        raise InputError(f"no `basis` {url}: give the JSON of one, such as the basis.json of a preview") from None
    except InputError as error:
        raise InputError(f"`basis` {url}: {error}") from None


def with_preview(result: RunResult) -> RunResult:
    """The result of a run that ends with a preview of what its output holds of its kind.

    What hinders that is told by a warning: the run itself is over, and its files are there.
    """
    made = next((name for tile in result.tiles for name in tile.files if name.endswith(geoparquet.SUFFIX)), None)
    if result.interrupted or made is None:
        if not result.interrupted:
            _log.warning("warning: no preview: it is made of GeoParquet files, and this run has none")
        return result
    output, name = split_url(made)
    said = geoparquet.read_provenance(output, name) or {}
    encoder, level = said.get("encoder"), said.get("level")
    try:
        page = preview(result.output, encoder=encoder, level=level, version=result.version).page
        return replace(result, preview=page)
    except (InputError, StorageError) as error:
        _log.warning(f"warning: no preview: {error}")
        return result
