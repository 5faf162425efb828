"""What an export is asked for, checked and resolved, with the published files that it copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskembed.errors import InputError
from daskembed.exports import state
from daskembed.exports.cog import parse_components
from daskembed.exports.names import KINDS
from daskembed.exports.profiles import get_profile
from daskembed.exports.protocol import get_format
from daskembed.exports.rows import parse_columns
from daskembed.exports.selection import Selection, check_places, check_readable, select
from daskembed.exports.settings import DEFAULT, Export, Sizes
from daskembed.geo.mgrs import tiles_of
from daskembed.output.state import STATE
from daskembed.quantization import read_calibration
from daskembed.runs.calibration import FILE as CALIBRATION
from daskembed.runs.export_options import DTYPES, UNIQUE, Asked
from daskembed.sources.reading import parse_dates
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    from daskembed.exports.state import Plan
    from daskembed.quantization import Calibration


@dataclass(frozen=True)
class Job:
    """An export, and the published files that it copies."""

    export: Export
    selection: Selection

    @property
    def contents(self) -> dict[str, str]:
        """Of the published files; see `daskembed.exports.state.Plan.tiles`."""
        return {name: tile.content for name, tile in self.selection.tiles.items()}

    def missing(self, plan: Plan) -> list[str]:
        """Files of a plan that are not finished."""
        there = state.read_written(self.export.target, [file.name for file in plan.files])
        return [file.name for file in plan.files if file.name not in there]

    def to_index(self, plan: Plan | None) -> list[str]:
        """Published files of which it has to be known where their rows go.

        Of those that were looked at already it is seen then whether that was for this export.
        """
        if plan is None:
            return [*self.selection.tiles]
        missing = {*self.missing(plan)}
        return sorted({name for file in plan.files if file.name in missing for name in file.tiles})

    def tidy(self) -> None:
        """Remove what killed writers left half written."""
        self.export.target.sweep(rf"^embeddings_|^{state.FOLDER}|^[^/]*{get_format(self.export.format).SUFFIX}")


def prepare(output: str, to: str, asked: Asked, sizes: Sizes = DEFAULT) -> Job:
    """What is to be copied and how, checked as far as that needs no cluster and no lock."""
    form = get_format(asked.format)
    if asked.components is not None and asked.format != "cog":
        raise InputError("`components` become bands of `format='cog'`; other formats have whole vectors")
    source, target = check_places(output, to)
    dates = None if asked.dates is None else parse_dates(asked.dates)
    selection = select(
        source,
        tiles=None if asked.tiles is None else tiles_of(asked.tiles),
        encoder=asked.encoder,
        level=asked.level,
        version=asked.version,
        region=asked.region,
        dates=dates,
    )
    check_readable(selection, skip_damaged=asked.skip_damaged)
    dtype = asked.dtype or selection.dtype
    export = Export(
        source,
        target,
        selection.made,
        selection.shape,
        format=asked.format,
        dtype=dtype,
        calibration=_calibration(asked, dtype, source, selection),
        **_rows(asked, selection),
        components=() if asked.components is None else parse_components(asked.components),
        dates=dates,
        region=asked.region,
        skip_damaged=asked.skip_damaged,
        sizes=sizes,
    )
    form.check(export)
    return Job(export, selection)


def _rows(asked: Asked, selection: Selection) -> dict[str, Any]:
    """What is asked of the rows and columns of an export, if these files and this format can have it."""
    for name, value, known in (("rows", asked.rows, KINDS), ("unique", asked.unique, UNIQUE)):
        if value not in known:
            raise InputError(f"unknown `{name}` {value!r}: choose {' or '.join(known)}")
    dims = selection.made.get("dims", ())
    if asked.rows == "patch" and not {"row", "col"} <= {*dims}:
        raise InputError(
            f"`rows='patch'` needs patches, and level {selection.made.get('level', 'unknown')!r} has none: choose "
            "published files of another `level`, or give `rows='chip'`"
        )
    if get_format(asked.format).UNIT != "range" and (asked.columns or asked.profile):
        raise InputError(f"`columns` and `profile` are of formats with rows; `format='{asked.format}'` has pixels")
    tiles: dict[str, str] = {}
    for name, tile in selection.tiles.items() if asked.unique == "place" else ():
        if tile.tile in tiles:
            raise InputError(
                f"`unique='place'` needs one published file a tile, and {tile.tile} has {tiles[tile.tile]} and {name}: "
                "choose one `version`, or remove one of them"
            )
        tiles[tile.tile] = name
    if asked.profile is not None:
        get_profile(asked.profile)
    columns = () if asked.columns is None else parse_columns(asked.columns)
    return {"rows": asked.rows, "unique": asked.unique, "columns": columns, "profile": asked.profile}


def _calibration(asked: Asked, dtype: str, source: Storage, selection: Selection) -> Calibration | None:
    """With what values of int8 are made: what is given, or what the output has; None of other types."""
    given = asked.calibration
    if dtype not in DTYPES:
        raise InputError(f"unknown `dtype` {dtype!r}: choose one of {', '.join(DTYPES)}")
    if dtype != "int8":
        if given is not None:
            raise InputError(f"a `calibration` is for `dtype='int8'`, and `dtype` is {dtype}: give both, or neither")
        return None
    try:
        found = read_calibration(given or source.url_of(CALIBRATION))
    except InputError:
        if given is not None or any(entry.path == CALIBRATION for entry in source.entries(STATE, recursive=False)):
            raise
        raise InputError(
            "`dtype='int8'` needs one calibration for all files, and this output has none: make it with "
            f"`daskembed calibrate {source.url}`"
        ) from None
    found.check(selection.made | {"shape": list(selection.shape)}, f"what is exported of {source.url}")
    return found
