"""What can be asked of a run: one table of keywords, with what they mean, their defaults, and what a command shows.

`Options` is the table, and what a run gets of it; `RunOptions` and `CubeOptions` say which of its keywords a function
takes. Of the precision ``auto`` nothing is decided here: the workers say what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict, TypeVar

from daskembed import config
from daskembed.errors import did_you_mean
from daskembed.paths import StrPath, as_text
from daskembed.sources.choice import FIRST_CHOICE, PICK, RESAMPLING, Choice
from daskembed.sources.reading import EDGE, yes_or_no
from daskembed.sources.region import read_region
from daskembed.sources.rules import NO_RULES, Rules

if TYPE_CHECKING:
    from distributed import Client

    from daskembed.runs.results import Event, Progress
    from daskembed.sources.origin import Origin

_Function = TypeVar("_Function", bound=Callable[..., Any])
WHOLE = "whole tiles, and what a chip must be"
MEANING = "what the files' numbers are, where it is not clear"
SCENES = "scenes of a catalogue"


class Words(NamedTuple):
    """What a command shows of an option."""

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    type: type[Any] = str
    """Of the value; ``bool`` takes none."""
    group: str | None = None
    """Title above it in the help."""
    keyword: str | None = None
    """What it is in Python, where that is something else than the command takes."""
    may_be_no: bool = False
    """Whether it can be said not to be wanted, too."""
    callback: bool = False
    """Whether it is a function, which no command can be given."""
    own: bool = False
    """Whether what the configuration has under its name is another's."""


def option(help: str | Words, metavar: str | None = None, *, default: Any = None, **words: Any) -> Any:
    """A row of a `Table`: its default, and its `Words`, which several tables may have."""
    told = Words(help, metavar, **words) if isinstance(help, str) else help
    return field(default=default, metadata={"words": told})


CLUSTER = Words(
    "where it runs: a name, a YAML file, or a scheduler's address",
    "NAME|FILE|ADDRESS",
    keyword="where it runs: a name, a YAML file, a scheduler's address, or a connected ``distributed.Client``",
)
ARGUMENTS = Words(
    "an argument of the cluster's class, over its preset's: n_workers=2, worker_options.nthreads=4",
    "KEY=VALUE",
    keyword="arguments of the cluster's class, over its preset's, nested mappings key by key",
)
WORKERS = Words("how many workers; 1..20 is as many as there is work for", "N|N..M")
EVENTS = Words("called with what happens, one `Event` at a time", callback=True)


_READ: Mapping[str, Callable[[Any], str]] = {
    "source": as_text,
    "output": as_text,
    "version": str,
    "offset_applied": yes_or_no,
    "region": read_region,
}
"""Option -> what makes text of it: YAML has numbers and truth values; a region is read once, whoever looks at it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is asked by keywords; each field is a row, made by `option`."""

    @classmethod
    def of(cls, given: Mapping[str, Any], known: type[Any]) -> Self:
        """What is asked by keywords, of which None (for those of the configuration no text, too) takes the default.

        Parameters
        ----------
        given
            Keyword -> value.
        known
            The `TypedDict` which says what keywords there are.

        Raises
        ------
        TypeError
            If there is no such keyword.
        """
        names = known.__annotations__
        if unknown := [name for name in given if name not in names]:
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}{did_you_mean(unknown[0], names)}")
        own = {name for name, words in words_of(known, cls).items() if words.own}
        configured = {name: config.get(key) for name in names if (key := key_of(name)) in config.defaults()}
        configured = {name: value for name, value in configured.items() if name not in own}
        chosen = {
            name: as_text(value) if isinstance(value, os.PathLike) else value
            for name, value in given.items()
            if value is not None and (value != "" or name not in configured)
        }
        found = {name: value for name, value in (configured | chosen).items() if value is not None}
        for name, read in _READ.items():
            if name in found:
                found[name] = read(found[name])
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class Options(Table):
    """What is asked of a run. The defaults of those in ``daskembed.yaml`` are the configuration's."""

    source: str = option(
        "folder or URL above the tiles: a path, s3://, gs://, az:// or file://; or a catalogue of scenes: "
        "earth-search, planetary-computer, cdse, stac+https://HOST/PATH, a file of items (.json, .parquet) or of a "
        "catalogue of your own (.yaml)",
        "URL|CATALOGUE",
    )
    region: str | None = option(
        "in place of tiles: the tiles that a region meets, and of these only the chips that it meets; a file that "
        "GeoPandas reads, or degrees (W more than E crosses 180)",
        "FILE|W,S,E,N",
    )
    output: str = option("folder or URL of the published files", "URL")
    encoder: str | None = option(
        "clay-v0, clay-v1.5 or a module (default: whose checkpoint it is, else clay-v0)", "NAME"
    )
    checkpoint: str | None = option("weights: a path or URL, hf://REPO@REVISION/PATH, or untrained:SIZE[:SEED]", "CKPT")
    sensor: str | None = option("whose images, for clay-v1.5 (default: sentinel-2-l2a)", "NAME|FILE.yaml")
    window: int | None = option("pixels of a side that clay-v1.5 sees (default: 256)", "N", type=int)
    level: str | None = option("clay-v0: mean, patch or group; clay-v1.5: cls, mean or patch", "LEVEL")
    cluster: str | Client = option(CLUSTER)
    cluster_arguments: Mapping[str, Any] | None = option(ARGUMENTS)
    workers: int | str | None = option(WORKERS)
    precision: str = option("auto is bf16 where the device computes it natively", choices=("auto", "bf16", "fp32"))
    batch_size: int = option("chips given to the device at once", "N", type=int)
    readers: int | None = option("threads of a worker that read chips", "N", type=int)
    version: str = option("part of the files' names; other settings need another version", "V")
    on_nan: str = option(
        "chips with NaN or infinity: set aside, or fill by the band's mean", choices=("quarantine", "fill")
    )
    max_quarantined: float = option(
        "a tile fails of which a larger share, and more than four chips, would newly be quarantined; 1 accepts all",
        "SHARE",
        type=float,
    )
    retry_quarantined: bool = option("make finished tiles with quarantined chips again", default=False, type=bool)
    format: str = option("geoparquet, zarr (levels with a grid of patches), or geoparquet,zarr", "F[,F]")
    dtype: str = option("of the values in the files", choices=("float32", "float16"))
    stac: bool = option(
        "write a STAC catalogue of the output into its folder _stac, item by item as files are published",
        default=False,
        type=bool,
    )
    preview: bool = option(
        "write a page that shows the output on a map into its folder _preview, when the run is over",
        default=False,
        type=bool,
    )
    dates: str | None = option("acquisition dates wanted, inclusive (default: all)", "START/END")
    offset: tuple[int, int] = option(
        "pixels from a whole tile's corner to the first chip (default: 0,0)",
        "Y,X",
        default=(0, 0),
        group=WHOLE,
        keyword="pixels (y, x) from a whole tile's corner to the first chip",
    )
    edge: str = option(
        "chips that reach beyond a tile: leave out, or repeat its edge (default: drop)",
        choices=EDGE,
        default=EDGE[0],
        group=WHOLE,
    )
    rules: Rules = option("what a chip must be to be embedded, a `Rules`", default=NO_RULES, group=WHOLE)
    offset_applied: str | None = option(
        "whether the 1000 that ESA adds to Sentinel-2 since 2022-01-25 is taken out already; no takes it out of "
        "the images that have it (default: what each file tells, else numbers are taken as they are)",
        choices=("yes", "no"),
        group=MEANING,
    )
    numbers: str | None = option(
        "of bands with scale and offset tags, take the stored numbers or the values they stand for (default: what "
        "the encoder was trained on)",
        choices=("stored", "values"),
        group=MEANING,
    )
    max_scene_cloud: float | None = option(
        f"leave out scenes of more clouds than this (default: {FIRST_CHOICE.max_scene_cloud:g})",
        "PERCENT",
        type=float,
        group=SCENES,
    )
    max_scene_nodata: float | None = option(
        f"leave out scenes of which more than this is nodata (default: {FIRST_CHOICE.max_scene_nodata:g})",
        "PERCENT",
        type=float,
        group=SCENES,
    )
    scenes: int | None = option(
        f"how many dates a tile has (default: {FIRST_CHOICE.scenes})", "N", type=int, group=SCENES
    )
    pick: str | None = option(
        "of the scenes of the dates wanted the clearest ones, or the clearest of each of as many parts of the period "
        f"(default: {FIRST_CHOICE.pick})",
        choices=PICK,
        group=SCENES,
    )
    radar_days: int | None = option(
        f"most days from a scene to its radar, before or after it (default: {FIRST_CHOICE.radar_days})",
        "N",
        type=int,
        group=SCENES,
    )
    resampling: str | None = option(
        f"of what has another grid than the tile (default: {FIRST_CHOICE.resampling})",
        choices=RESAMPLING,
        group=SCENES,
    )
    refresh: bool = option(
        "ask the catalogue again for the scenes of tiles that were begun or finished",
        default=False,
        type=bool,
        group=SCENES,
    )
    overwrite: bool = option("replace files that were made with other settings", default=False, type=bool)
    listen: str | None = option(
        "let a cluster of this machine listen to others, who can then execute code; 0.0.0.0 is every address", "HOST"
    )
    tls: bool = option("encrypt a cluster of this machine and let nobody else in", default=False, type=bool)
    performance_report: str | None = option(
        "save Dask's own report of the run; its profiles stay empty, as workers started here are not profiled",
        "FILE.html",
    )
    progress: Callable[[Progress], None] | None = option(
        "called with the run's state after every change", callback=True
    )
    events: Callable[[Event], None] | None = option(EVENTS)


RULES = {
    "zeros": Words(
        "leave out chips with a B02 of 0 (default: those cut out of whole tiles)", type=bool, may_be_no=True
    ),
    "nan": Words(
        "leave out chips with pixels that are not there (default: those cut out of whole tiles)",
        type=bool,
        may_be_no=True,
    ),
    "max_cloud": Words(
        "leave out chips of which this share is clouds, shadows or nodata, if SCL is there (default: 0.3)",
        "SHARE",
        type=float,
    ),
    "keep_all": Words("leave out none", type=bool),
}
"""Field of `Rules` -> its words."""


class CubeOptions(TypedDict, total=False):
    """Keywords of `daskembed.write_cubes`; see `Options`."""

    source: StrPath | None
    region: StrPath | None
    cluster: str | Client | None
    cluster_arguments: Mapping[str, Any] | None
    workers: int | str | None
    readers: int | None
    max_quarantined: float | None
    dates: str | None
    offset_applied: str | None
    numbers: str | None
    max_scene_cloud: float | None
    max_scene_nodata: float | None
    scenes: int | None
    pick: str | None
    radar_days: int | None
    resampling: str | None
    refresh: bool
    progress: Callable[[Progress], None] | None
    events: Callable[[Event], None] | None


class RunOptions(CubeOptions, total=False):
    """Keywords of `daskembed.run` and `daskembed.plan`; see `Options`."""

    output: StrPath | None
    encoder: str | None
    checkpoint: StrPath | None
    sensor: StrPath | None
    window: int | None
    level: str | None
    precision: str | None
    batch_size: int | None
    version: str | None
    on_nan: str | None
    retry_quarantined: bool
    format: str | None
    dtype: str | None
    stac: bool
    preview: bool
    offset: tuple[int, int] | None
    edge: str | None
    rules: Rules | None
    overwrite: bool
    listen: str | None
    tls: bool
    performance_report: str | None


def choice_of(asked: Options, source: Origin) -> Choice:
    """Which scenes of a catalogue are asked for; raises `InputError` if that is said of another kind of source."""
    from daskembed.sources.origin import choice_for  # it loads what help does without

    said = {name: getattr(asked, name) for name in asdict(FIRST_CHOICE)}
    return choice_for(source, said | {"refresh": asked.refresh or None})


def key_of(name: str) -> str:
    """An option's name in the configuration, whether it is there or not."""
    return name.replace("_", "-")


def words_of(known: type[Any], table: type[Table] | None = None) -> dict[str, Words]:
    """Options that a function takes, in the order of their table: `Options`, if none is given."""
    return {one.name: one.metadata["words"] for one in fields(table or Options) if one.name in known.__annotations__}


def default_of(name: str, words: Words) -> str:
    """What the packaged configuration has for an option, as the end of its description."""
    default = None if words.own else config.defaults().get(key_of(name))
    return "" if default is None else f" (default: {default})"


def documented(known: type[Any], table: type[Table] | None = None) -> Callable[[_Function], _Function]:
    """Put what the table says into a docstring, in the place of its parameter `options`."""

    def document(function: _Function) -> _Function:
        head, parameter, rest = (function.__doc__ or "").partition("    options\n")
        told = [
            f"    {name}\n        {words.keyword or words.help}{default_of(name, words)}\n"
            for name, words in words_of(known, table).items()
        ]
        if parameter:
            function.__doc__ = head + "".join(told) + rest.partition("\n")[2]
        return function

    return document
