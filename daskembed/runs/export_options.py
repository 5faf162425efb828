"""What can be asked of an export: its table of keywords, with what they mean and what a command shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from daskembed.exports.names import ADDED, KINDS, PROFILES
from daskembed.exports.protocol import FORMATS
from daskembed.paths import StrPath
from daskembed.runs.options import ARGUMENTS, CLUSTER, EVENTS, WORKERS, Table, option

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.quantization import Calibration
    from daskembed.runs.results import Event, Progress

DTYPES = ("float32", "float16", "int8")
"""Types of the values that can be exported."""
UNIQUE = ("none", "place")
PERCENTILE = 99.9
"""What a calibration clips by default; docs/files.md has the measurements."""
WHICH = "which published files, and what of them"


@dataclass(frozen=True, kw_only=True)
class Asked(Table):
    """What is asked of an export."""

    format: str = option(
        "of the copy; cog and zarr are of levels with a grid, such as patch (default: geoparquet)",
        choices=tuple(FORMATS),
        default="geoparquet",
        own=True,
    )
    dtype: str | None = option(
        "of the values (default: as published); int8 needs a calibration",
        choices=DTYPES,
        own=True,
    )
    calibration: str | Calibration | None = option(
        "with what int8 is made: a file that `calibrate` wrote (default: the one in OUTPUT)",
        "FILE",
        keyword="with what int8 is made: a `Calibration`, or a file of one (default: the one in the output)",
    )
    rows: str = option(
        "what a row is: chip, or patch with a footprint of its own, at levels with a grid (default: chip)",
        choices=KINDS,
        default="chip",
    )
    unique: str = option(
        "place: where tiles overlap, one row a place and date remains (default: none)",
        choices=UNIQUE,
        default="none",
    )
    columns: str | None = option(f"added columns, of {', '.join(ADDED)}", "NAME,...")
    profile: str | None = option("columns and footers as other readers ask for them", choices=tuple(PROFILES))
    components: str | None = option(
        "numbers of the vectors' components that become bands, with cog, such as 0,1,2 or 0-15 (default: all)", "LIST"
    )
    tiles: str | None = option("file of MGRS tile ids, one a line, or the ids (default: all)", "FILE|IDS", group=WHICH)
    region: str | None = option(
        "only chips that a region meets; a file that GeoPandas reads, or degrees (W more than E crosses 180)",
        "FILE|W,S,E,N",
        group=WHICH,
    )
    dates: str | None = option("acquisition dates wanted, inclusive (default: all)", "START/END", group=WHICH)
    encoder: str | None = option("only files of this encoder, such as clay-v0", "NAME", group=WHICH, own=True)
    level: str | None = option("only files of this level", "LEVEL", group=WHICH, own=True)
    version: str | None = option("only files with this version in their names", "V", group=WHICH, own=True)
    percentile: float = option(
        "at most so many per cent less than 100 of a dimension's values are clipped at either end; 100 clips none "
        f"(default: {PERCENTILE:g})",
        "P",
        type=float,
        default=PERCENTILE,
    )
    skip_damaged: bool = option(
        "leave out files that are not as their receipts say, and count them", default=False, type=bool
    )
    overwrite: bool = option("replace an export of other files or settings", default=False, type=bool)
    cluster: str | Client = option(CLUSTER)
    cluster_arguments: Mapping[str, Any] | None = option(ARGUMENTS)
    workers: int | str | None = option(WORKERS)
    progress: Callable[[Progress], None] | None = option(
        "called with the export's state after every change", callback=True
    )
    events: Callable[[Event], None] | None = option(EVENTS)


class ExportOptions(TypedDict, total=False):
    """Keywords of `daskembed.export`; see `Asked`."""

    format: str | None
    dtype: str | None
    calibration: StrPath | Calibration | None
    rows: str
    unique: str
    columns: str | None
    profile: str | None
    components: str | None
    tiles: StrPath | None
    region: StrPath | None
    dates: str | None
    encoder: str | None
    level: str | None
    version: str | None
    skip_damaged: bool
    overwrite: bool
    cluster: str | Client | None
    cluster_arguments: Mapping[str, Any] | None
    workers: int | str | None
    progress: Callable[[Progress], None] | None
    events: Callable[[Event], None] | None


class CalibrationOptions(TypedDict, total=False):
    """Keywords of `daskembed.calibrate`; see `Asked`."""

    tiles: StrPath | None
    encoder: str | None
    level: str | None
    version: str | None
    percentile: float | None
    skip_damaged: bool
    cluster: str | Client | None
    cluster_arguments: Mapping[str, Any] | None
    workers: int | str | None
    progress: Callable[[Progress], None] | None
    events: Callable[[Event], None] | None


@dataclass(frozen=True, kw_only=True)
class Looked(Asked):
    """What is asked of a look at published files: nothing of a cluster, if none is named."""

    cluster: str | Client = option(
        "where the components are computed: a name, a YAML file, or a scheduler's address (default: in this process)",
        "NAME|FILE|ADDRESS",
        default="",
        own=True,
        keyword="where the components are computed: a name, a YAML file, a scheduler's address, or a connected "
        "``distributed.Client`` (default: in this process)",
    )


class PreviewOptions(TypedDict, total=False):
    """Keywords of `daskembed.preview` and `daskembed.principal_components`; see `Looked`."""

    tiles: StrPath | None
    encoder: str | None
    level: str | None
    version: str | None
    cluster: str | Client | None
    cluster_arguments: Mapping[str, Any] | None
    workers: int | str | None
    progress: Callable[[Progress], None] | None
    events: Callable[[Event], None] | None
