"""The command's words and flags: those of `run`, `plan` and `cube` from the table of options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from daskembed import __version__
from daskembed.cli.explore_parser import add_preview, add_search
from daskembed.documents import parse_yaml
from daskembed.errors import InputError, did_you_mean
from daskembed.geo.mgrs import is_tile
from daskembed.runs.export_options import Asked, CalibrationOptions, ExportOptions, Looked, PreviewOptions
from daskembed.runs.options import RULES, CubeOptions, RunOptions, Table, Words, default_of, words_of
from daskembed.runs.throughput import DEVICES
from daskembed.sources.rules import NO_RULES, Rules

EXIT_STATUS = """\
exit status:
  0  all tiles done          3  done, some chips quarantined    4  some tiles failed
  1  stopped by a store      2  refused before starting         130  interrupted

A catalogue that does not answer: 2 before a cluster of this machine is started, 4 once workers ask it.

Defaults can be set in Dask's configuration (daskembed.*) or as DASK_DASKEMBED__OUTPUT and so on.
"""
_TILES: dict[str, Any] = {"metavar": "FILE|IDS", "help": "file of MGRS tile ids, one a line, or the ids"}
_LOG_FORMAT: dict[str, Any] = {
    "choices": ["text", "json"],
    "default": "text",
    "help": "json: on stdout one line an event, and nothing else (default: text)",
}
_FLAGS = {"k": "-k", "cluster_arguments": "--cluster-arg", "zeros": "--reject-zeros", "nan": "--reject-nan"}
"""Of keywords that are not the flag's own name."""
_CUBE = {
    "cluster": Words("where it runs, as for `run`", "NAME|FILE|ADDRESS"),
    "cluster_arguments": Words("as for `run`", "KEY=VALUE"),
    "workers": Words("how many workers", "N|N..M"),
    "readers": Words("threads of a task that read chips (default: 8)", "N", type=int),
    "max_quarantined": Words("as for `run`, of chips with bad headers", "SHARE", type=float),
}
"""Options of `cube` that say something else there."""


def flag_of(keyword: str) -> str:
    """How a keyword of the library's functions is typed."""
    return _FLAGS.get(keyword, f"--{keyword.replace('_', '-')}")


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations, whose meaning the next flag would change, and says what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    # Here and not at the top, where nothing is known of the sub-command's flags.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # Of a value that begins with a minus argparse thinks that it is a flag.
        args = self._given = _with_west(sys.argv[1:] if args is None else list(args))
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = self._option_string_actions
            hints = [did_you_mean(one.partition("=")[0], known) for one in unknown if one[:1] == "-"]
            hints += [f"; did you mean --check {one}?" for one in unknown if one[:1] != "-" and "--check" in known]
            if "--region" in known and (degrees := _degrees_apart(args)):
                hints = [f"; did you mean --region {degrees}?"]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in two lines: all flags would hide it."""
        if choice := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", message):
            message += did_you_mean(choice[1], re.findall(r"[^\s',]+", choice[2]))
        ids = [word for word in self._given if is_tile(word)]
        if ids and message.startswith("one of the arguments --tiles"):
            message += f"; did you mean --tiles {' '.join(ids)}?"
        self.exit(2, f"`{self.prog} --help` lists what it takes\n{self.prog}: {message}\n")


def _with_west(args: list[str]) -> list[str]:
    """Arguments with the degrees of a region or an example joined to their flag where they begin with a minus."""
    joined: list[str] = []
    for one in args:
        if joined and joined[-1] in ("--region", "--like", "--unlike") and re.match(r"-[\d.]", one):
            joined[-1] += f"={one}"
        else:
            joined.append(one)
    return joined


def _degrees_apart(args: list[str]) -> str | None:
    """The degrees of a region with commas, where they are typed with spaces between them."""
    text = re.search(r"(?:^|\s)--region[= ]((?:-?[\d.]+,?\s+){3}-?[\d.]+)(?:\s|$)", " ".join(args))
    return text and ",".join(re.split(r"[,\s]+", text[1]))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has the command's name as `command`, options under their keywords."""
    parser = _Parser(
        prog="daskembed", description="Clay embeddings of Sentinel chips: tiles of chips in, GeoParquet files out."
    )
    parser.add_argument("--version", action="version", version=f"daskembed {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    # The flags of `run`, which `plan` takes too.
    run = _Parser(add_help=False)
    _add_where(run)
    _add_options(run, words_of(RunOptions))
    run.add_argument("--log-format", **_LOG_FORMAT)
    commands.add_parser(
        "run",
        parents=[run],
        help="embed tiles: one GeoParquet file or Zarr store each",
        description="Embed MGRS tiles of chips: one GeoParquet file a tile, one Zarr store, or both.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    plan = commands.add_parser(
        "plan",
        parents=[run],
        help="what a run will take: chips, bytes, hours, price",
        description="Say what `run` will take with the same flags. Reads listings, and measures this machine on some "
        "chips unless a device is named. Starts no cluster and leaves the output as it is. The summary of "
        "a run with the same flags on this machine says how the plan did.",
        epilog="exit status: 0, or 2 if the run would be refused, or a store or catalogue does not answer",
    )
    plan.add_argument("--device", choices=list(DEVICES), help="plan for such machines (default: measure this one)")
    plan.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of one machine, in any currency")

    scenes = commands.add_parser(
        "scenes",
        parents=[run],
        help="which scenes of a catalogue a run would use, and which not, and why",
        description="Say which scenes of a catalogue `run` would use with the same flags, a tile at a time, and of "
        "those that it would not, why. Of tiles that are begun or finished it says what their records or receipts do. "
        "Reads no pixels, starts no cluster and leaves the output as it is.",
        epilog="exit status: 0, 2 if the run would be refused or the catalogue does not answer, or 4 if some tiles "
        "have no scene",
    )
    scenes.add_argument("--json", action="store_true", help="everything as one JSON document")

    cube = commands.add_parser(
        "cube",
        help="tiles of chips as Zarr cubes, one a tile",
        description="Write each tile's chips as one Zarr v3 cube, OUTPUT/TILE.zarr: xarray.open_zarr opens it.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_where(cube)
    cube.add_argument("--output", required=True, metavar="URL", help="folder or URL of the cubes")
    _add_options(cube, words_of(CubeOptions) | _CUBE)
    cube.add_argument("--log-format", **_LOG_FORMAT)

    export = commands.add_parser(
        "export",
        help="a serving copy of the published files: rows in spatial order, in large files",
        description="Copy the published files of OUTPUT for those who read them: GeoParquet 1.1 with boxes, rows in "
        "Hilbert order over all tiles, in files of about 512 MB, or another --format. Computes nothing again.",
        epilog="exit status:\n  0  all done    1  stopped by a store    2  refused before starting\n"
        "  3  done, damaged files left out    4  some files failed    130  interrupted\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run")
    export.add_argument("--to", required=True, metavar="URL", help="folder or URL of the copy")
    _add_options(export, words_of(ExportOptions, Asked))
    export.add_argument("--log-format", **_LOG_FORMAT)

    calibrate = commands.add_parser(
        "calibrate",
        help="between which values an output's vectors lie, for exports of int8",
        description="Count the values of the published files of OUTPUT, and write one small JSON with which `export "
        "--dtype int8` makes whole numbers of all of them alike. Again, only files that are new or another are read.",
        epilog="exit status:\n  0  all done    1  stopped by a store    2  refused before starting\n"
        "  3  done, damaged files left out    4  some files failed    130  interrupted\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run")
    calibrate.add_argument(
        "--to", metavar="FILE", help="path or URL of the JSON (default: in OUTPUT, where its exports look for it)"
    )
    _add_options(calibrate, words_of(CalibrationOptions, Asked))
    calibrate.add_argument("--log-format", **_LOG_FORMAT)

    tiles = commands.add_parser(
        "tiles",
        help="the tiles that a region meets, one a line",
        description="Print the ids of the Sentinel-2 tiles that a region meets, one a line: a file for --tiles.",
        epilog="exit status: 0, or 2 if the region cannot be read or lies where there are no tiles",
    )
    tiles.add_argument(
        "--region",
        required=True,
        metavar=words_of(CubeOptions)["region"].metavar,
        help="a file that GeoPandas reads, or degrees (W more than E crosses 180)",
    )

    clusters = commands.add_parser(
        "clusters",
        help="what --cluster can name, and whether it is installed",
        description="List the presets: what each is, what it needs installed, and whether that is.",
        epilog="exit status: 0, or 2 if the cluster does not work or the file cannot be written",
    )
    asked = clusters.add_mutually_exclusive_group()
    asked.add_argument("--copy", nargs=2, metavar=("NAME", "FILE.yaml"), help="copy a preset to a file to be edited")
    asked.add_argument(
        "--check",
        metavar="NAME|FILE|ADDRESS",
        help="start the cluster with one worker, do one trivial task there, say what it computes with, and close it",
    )
    _add_options(clusters, {"cluster_arguments": _CUBE["cluster_arguments"]})

    commands.add_parser(
        "doctor",
        help="what this machine is: torch, GPU, bf16, credentials, settings, cache, versions, metrics",
        description="Say what this machine and environment are. Asks nobody, and tells names of credentials only.",
    )

    demo = commands.add_parser(
        "demo",
        help="the main job on synthetic chips, in about a minute",
        description="Write synthetic chips of one tile, embed them on a local cluster and say what to look at.",
    )
    demo.add_argument("folder", nargs="?", default="daskembed-demo", help="where (default: daskembed-demo)")
    demo.add_argument("--encoder", default="clay-v0", metavar="NAME", help="clay-v0 or clay-v1.5 (default: clay-v0)")
    demo.add_argument(
        "--source",
        choices=("chips", "stac"),
        default="chips",
        help="what is embedded: chips in a folder, or scenes of a STAC catalogue on this machine (default: chips)",
    )

    status = commands.add_parser(
        "status",
        help="what an output holds: tiles done, unfinished and failed, chips quarantined; or an export",
        description="Say what an output holds, tile by tile, or an export, file by file, and whether its source is "
        "another since. Reads listings, receipts and records, not the files.",
        epilog="exit status: 0 all tiles or files done, 2 OUTPUT is neither, 3 some are not done or not sound",
    )
    status.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run, or an export")
    status.add_argument("--tiles", metavar="FILE|IDS", help="only these tiles; those never begun are named, too")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything as one JSON document")
    form.add_argument("--quarantined", action="store_true", help="the quarantined chips as CSV")

    _add_options(add_preview(commands), words_of(PreviewOptions, Looked))
    add_search(commands)

    stac = commands.add_parser(
        "stac",
        help="a STAC catalogue of the published files, for what finds data by place and date",
        description="Write a STAC catalogue into OUTPUT/_stac/: an item a published file, a collection of each "
        "encoder, level, format and version, and an item a model. Again, it writes what has changed, and removes items "
        "of files that are gone.",
        epilog="exit status: 0 all files have an item, 1 stopped by a store, 2 OUTPUT is no output of daskembed, 3 "
        "some files are left out",
    )
    stac.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run, or an export")
    stac.add_argument(
        "--root",
        metavar="URL",
        help="where others find OUTPUT: makes all links absolute (default: relative ones, which can be moved)",
    )

    validate = commands.add_parser(
        "validate",
        help="check published files: footer, values, places, dates, receipt",
        description="Check published files against what they say of themselves, and against their receipts.",
        epilog="exit status: 0 all sound, 2 nothing could be looked at, 3 problems found",
    )
    validate.add_argument(
        "files", nargs="+", metavar="FILE", help="*.gpq, *.zarr, _stac, files of an export, or folders of them"
    )
    validate.add_argument("--json", action="store_true", help="everything as one JSON document")
    return parser


def _add_where(parser: argparse.ArgumentParser) -> None:
    """Add the two ways to say which tiles are meant."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--tiles", nargs="+", **_TILES)
    _add(either, "region", words_of(CubeOptions)["region"], "")


def _add_options(parser: argparse.ArgumentParser, options: dict[str, Words]) -> None:
    """Add flags for options of the table, under the titles that it has for them; callbacks have none.

    That of the region is beside the one of the tiles.
    """
    groups: dict[str | None, Any] = {None: parser}
    for name, words in options.items():
        if words.callback or (name == "region" and words.group is None):
            continue
        if words.group not in groups:
            groups[words.group] = parser.add_argument_group(words.group)
        for keyword, said in (RULES if name == "rules" else {name: words}).items():
            _add(groups[words.group], keyword, said, default_of(name, words) if said is words else "")


def _add(parser: Any, keyword: str, words: Words, default: str) -> None:
    told = {"dest": keyword, "help": words.help + ("" if words.help.startswith("as for") else default)}
    if words.type is bool:
        action = argparse.BooleanOptionalAction if words.may_be_no else "store_true"
        parser.add_argument(flag_of(keyword), action=action, **told)
    elif keyword == "cluster_arguments":
        parser.add_argument(flag_of(keyword), action="append", default=[], metavar=words.metavar, **told)
    else:
        how = {"type": words.type, "choices": words.choices, "metavar": words.metavar}
        parser.add_argument(flag_of(keyword), **how, **told)


def keywords(options: argparse.Namespace, known: type[Any], table: type[Table] | None = None) -> dict[str, Any]:
    """What the flags ask of a function that takes the options of `known`, which are in a table.

    Raises
    ------
    InputError
        If a flag's value is not of its form.
    """
    found = {name: getattr(options, name) for name in words_of(known, table) if hasattr(options, name)}
    if "cluster_arguments" in words_of(known, table):
        found["cluster_arguments"] = cluster_arguments(options.cluster_arguments)
    if "offset" in found:
        rules = Rules(**{name: getattr(options, name) for name in RULES})
        found |= {"offset": _offset(options.offset), "rules": None if rules == NO_RULES else rules}
    return found


def _offset(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        y, x = map(int, text.split(","))
    except ValueError:
        raise InputError(f"--offset {text!r}: expected Y,X in pixels, such as 0,256") from None
    return y, x


def cluster_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Arguments of a cluster class from ``key=value``: values are YAML, dots in a key lead into nested mappings.

    Raises
    ------
    InputError
        If one is not that.
    """
    import dask

    parsed: list[dict[str, Any]] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        names = key.split(".")
        if not equals or not all(name.isidentifier() for name in names):
            raise InputError(f"--cluster-arg {pair!r}: expected KEY=VALUE, such as n_workers=2")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise InputError(f"--cluster-arg {pair!r}: {text!r} is not YAML: {' '.join(str(error).split())}") from None
        for name in reversed(names):
            value = {name: value}
        parsed.append(value)
    return dict(dask.config.merge(*parsed))


def one_list(words: list[str]) -> str:
    """What follows ``--tiles`` as one text; a folder or URL among several words was meant as the source."""
    for word in words if len(words) > 1 else ():
        if "://" in word or (not is_tile(word) and Path(word).is_dir()):
            raise InputError(f"--tiles {' '.join(words)}: {word} is no tile id; did you mean --source {word}?")
    return " ".join(words)
