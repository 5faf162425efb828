"""The command: words and flags into one call, and what came of it in plain lines."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from daskembed import __version__, config
from daskembed.errors import DaskembedError, InputError, StorageError, did_you_mean
from daskembed.geo.mgrs import is_tile
from daskembed.runs.rates import DEVICES

if TYPE_CHECKING:
    from daskembed.runs.results import RunResult
    from daskembed.sources.reading import Rules

EXIT_STATUS = """\
exit status:
  0  all tiles done          3  done, some chips quarantined    4  some tiles failed
  1  stopped by a store      2  refused before starting         130  interrupted

Defaults can be set in Dask's configuration (daskembed.*) or as DASK_DASKEMBED__OUTPUT and so on.
"""


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations, whose meaning the next flag would change, and says what may have been meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    # Here and not at the top, where nothing is known of the sub-command's flags.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self._given = list(args or [])
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = self._option_string_actions
            hints = [did_you_mean(one.partition("=")[0], known) for one in unknown if one[:1] == "-"]
            hints += [f"; did you mean --check {one}?" for one in unknown if one[:1] != "-" and "--check" in known]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in two lines: all flags would hide it."""
        if choice := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", message):
            message += did_you_mean(choice[1], re.findall(r"[^\s',]+", choice[2]))
        if message.endswith("required: --tiles") and (ids := [word for word in self._given if is_tile(word)]):
            message += f"; did you mean --tiles {' '.join(ids)}?"
        self.exit(2, f"usage: {self.prog}: `{self.prog} --help` lists what it takes\n{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    # Python would look through all that was loaded once more as it ends, for half a second.
    atexit.register(gc.freeze)
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    # What ends services and batch jobs, or closes a terminal, is a Ctrl-C to the run: without this, nothing would be
    # closed or published.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup asks for
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        if isinstance(tiles := getattr(options, "tiles", None), list):
            options.tiles = _one_list(tiles)
        _check_dask_configuration()
        return command(options)
    except InputError as error:
        print(f"daskembed: {error}", file=sys.stderr)
        return 2
    except DaskembedError as error:
        print(f"daskembed: stopped: {error}\nwhat is finished stays; run the same command to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("daskembed: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _one_list(words: list[str]) -> str:
    """What follows ``--tiles`` as one text; a folder or URL among several words was meant as the source."""
    for word in words if len(words) > 1 else ():
        if "://" in word or (not is_tile(word) and Path(word).is_dir()):
            raise InputError(f"--tiles {' '.join(words)}: {word} is no tile id; did you mean --source {word}?")
    return " ".join(words)


def _check_dask_configuration() -> None:
    try:
        import dask  # noqa: F401 (it reads its files when it is imported)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="daskembed", description="Clay embeddings of Sentinel chips: tiles of chips in, GeoParquet files out."
    )
    parser.add_argument("--version", action="version", version=f"daskembed {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    default = config.defaults()
    # The flags of `run`, which `plan` takes too.
    run = _Parser(add_help=False)
    run.add_argument(
        "--tiles", required=True, nargs="+", metavar="FILE|IDS", help="file of MGRS tile ids, one a line, or the ids"
    )

    def add(flag: str, help: str, **extra: object) -> None:
        name = flag.removeprefix("--")
        told = "" if default[name] is None else f" (default: {default[name]})"
        run.add_argument(flag, help=f"{help}{told}", **extra)  # type: ignore[arg-type]

    add("--source", "folder or URL above the tiles: a path, s3://, gs://, az:// or file://", metavar="URL")
    add("--output", "folder or URL of the published files", metavar="URL")
    add("--encoder", "clay-v0, clay-v1.5 or a module (default: whose checkpoint it is, else clay-v0)", metavar="NAME")
    add("--checkpoint", "weights: a path or URL, hf://REPO@REVISION/PATH, or untrained:SIZE[:SEED]", metavar="CKPT")
    run.add_argument("--sensor", metavar="NAME|FILE.yaml", help="whose images, for clay-v1.5 (default: sentinel-2-l2a)")
    run.add_argument("--window", type=int, metavar="N", help="pixels of a side that clay-v1.5 sees (default: 256)")
    add("--level", "clay-v0: mean, patch or group; clay-v1.5: cls, mean or patch", metavar="LEVEL")
    add("--cluster", "where it runs: a name, a YAML file, or a scheduler's address", metavar="NAME|FILE|ADDRESS")
    run.add_argument(
        "--cluster-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the cluster's class, over its preset's: n_workers=2, worker_options.nthreads=4",
    )
    run.add_argument("--workers", metavar="N|N..M", help="how many workers; 1..20 is as many as there is work for")
    add("--precision", "auto is bf16 where the device computes it natively", choices=["auto", "bf16", "fp32"])
    add("--batch-size", "chips given to the device at once", type=int, metavar="N")
    add("--readers", "threads of a worker that read chips", type=int, metavar="N")
    add("--version", "part of the files' names; other settings need another version", metavar="V")
    add(
        "--on-nan",
        "chips with NaN or infinity: set aside, or fill by the band's mean",
        choices=["quarantine", "fill"],
    )
    add(
        "--max-quarantined",
        "a tile fails of which a larger share, and more than four chips, would newly be quarantined; 1 accepts all",
        type=float,
        metavar="SHARE",
    )
    run.add_argument(
        "--retry-quarantined", action="store_true", help="make finished tiles with quarantined chips again"
    )
    add("--format", "geoparquet, zarr (levels with a grid of patches), or geoparquet,zarr", metavar="F[,F]")
    add("--dtype", "of the values in the files", choices=["float32", "float16"])
    run.add_argument("--dates", metavar="START/END", help="acquisition dates wanted, inclusive (default: all)")
    whole = run.add_argument_group("whole tiles, and what a chip must be")
    whole.add_argument(
        "--offset", metavar="Y,X", help="pixels from a whole tile's corner to the first chip (default: 0,0)"
    )
    whole.add_argument(
        "--edge",
        choices=["drop", "pad"],
        help="chips that reach beyond a tile: leave out, or repeat its edge (default: drop)",
    )
    whole.add_argument(
        "--reject-zeros",
        action=argparse.BooleanOptionalAction,
        help="leave out chips with a B02 of 0 (default: those cut out of whole tiles)",
    )
    whole.add_argument(
        "--reject-nan",
        action=argparse.BooleanOptionalAction,
        help="leave out chips with pixels that are not there (default: those cut out of whole tiles)",
    )
    whole.add_argument(
        "--max-cloud",
        type=float,
        metavar="SHARE",
        help="leave out chips of which this share is clouds, shadows or nodata, if SCL is there (default: 0.3)",
    )
    whole.add_argument("--keep-all", action="store_true", help="leave out none")
    _add_meaning(run)
    run.add_argument("--overwrite", action="store_true", help="replace files that were made with other settings")
    run.add_argument(
        "--listen",
        metavar="HOST",
        help="let a cluster of this machine listen to others, who can then execute code; 0.0.0.0 is every address",
    )
    run.add_argument(
        "--performance-report",
        metavar="FILE.html",
        help="save Dask's own report of the run; its profiles stay empty, as workers started here are not profiled",
    )
    run.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="json: on stdout one line an event, and nothing else (default: text)",
    )
    run.add_argument("--tls", action="store_true", help="encrypt a cluster of this machine and let nobody else in")
    commands.add_parser(
        "run",
        parents=[run],
        help="embed tiles: one GeoParquet file or Zarr store each",
        description="Embed MGRS tiles of chips: one GeoParquet file a tile, one Zarr store, or both.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).set_defaults(command=_run)

    plan = commands.add_parser(
        "plan",
        parents=[run],
        help="what a run will take: chips, bytes, hours, price",
        description="Say what `run` will take with the same flags. Reads listings, and measures this machine on some "
        "chips unless a device is named. Starts no cluster and leaves the output as it is. The summary of "
        "a run with the same flags on this machine says how the plan did.",
        epilog="exit status: 0, or 2 if the run would be refused or a store does not answer",
    )
    plan.set_defaults(command=_plan)
    plan.add_argument("--device", choices=list(DEVICES), help="plan for such machines (default: measure this one)")
    plan.add_argument("--price-per-hour", type=float, metavar="PRICE", help="of one machine, in any currency")

    cube = commands.add_parser(
        "cube",
        help="tiles of chips as Zarr cubes, one a tile",
        description="Write each tile's chips as one Zarr v3 cube, OUTPUT/TILE.zarr: xarray.open_zarr opens it.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cube.set_defaults(command=_cube)
    cube.add_argument(
        "--tiles", required=True, nargs="+", metavar="FILE|IDS", help="file of MGRS tile ids, one a line, or the ids"
    )
    cube.add_argument("--source", metavar="URL", help=f"folder or URL above the tiles (default: {default['source']})")
    cube.add_argument("--output", required=True, metavar="URL", help="folder or URL of the cubes")
    cube.add_argument(
        "--cluster", metavar="NAME|FILE|ADDRESS", help=f"where it runs, as for `run` (default: {default['cluster']})"
    )
    cube.add_argument("--cluster-arg", action="append", default=[], metavar="KEY=VALUE", help="as for `run`")
    cube.add_argument("--workers", metavar="N|N..M", help="how many workers")
    cube.add_argument("--readers", type=int, metavar="N", help="threads of a task that read chips (default: 8)")
    cube.add_argument("--max-quarantined", type=float, metavar="SHARE", help="as for `run`, of chips with bad headers")
    _add_meaning(cube)

    clusters = commands.add_parser(
        "clusters",
        help="what --cluster can name, and whether it is installed",
        description="List the presets: what each is, what it needs installed, and whether that is.",
        epilog="exit status: 0, or 2 if the cluster does not work or the file cannot be written",
    )
    clusters.set_defaults(command=_clusters)
    asked = clusters.add_mutually_exclusive_group()
    asked.add_argument("--copy", nargs=2, metavar=("NAME", "FILE.yaml"), help="copy a preset to a file to be edited")
    asked.add_argument(
        "--check",
        metavar="NAME|FILE|ADDRESS",
        help="start the cluster with one worker, do one trivial task there, say what it computes with, and close it",
    )
    clusters.add_argument("--cluster-arg", action="append", default=[], metavar="KEY=VALUE", help="as for `run`")

    commands.add_parser(
        "doctor",
        help="what this machine is: torch, GPU, bf16, credentials, settings, cache, versions, metrics",
        description="Say what this machine and environment are. Asks nobody, and tells names of credentials only.",
    ).set_defaults(command=_doctor)

    demo = commands.add_parser(
        "demo",
        help="the main job on synthetic chips, in about a minute",
        description="Write synthetic chips of one tile, embed them on a local cluster and say what to look at.",
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("folder", nargs="?", default="daskembed-demo", help="where (default: daskembed-demo)")
    demo.add_argument("--encoder", default="clay-v0", metavar="NAME", help="clay-v0 or clay-v1.5 (default: clay-v0)")

    status = commands.add_parser(
        "status",
        help="what an output holds: tiles done, unfinished and failed, chips quarantined",
        description="Say what an output holds, tile by tile. Reads listings, receipts and records, not the files.",
        epilog="exit status: 0 all tiles done, 2 OUTPUT is no output of daskembed, 3 some are not done or not sound",
    )
    status.set_defaults(command=_status)
    status.add_argument("output", metavar="OUTPUT", help="folder or URL: the --output of a run")
    status.add_argument("--tiles", metavar="FILE|IDS", help="only these tiles; those never begun are named, too")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything as one JSON document")
    form.add_argument("--quarantined", action="store_true", help="the quarantined chips as CSV")

    validate = commands.add_parser(
        "validate",
        help="check published files: footer, values, places, dates, receipt",
        description="Check published files against what they say of themselves, and against their receipts.",
        epilog="exit status: 0 all sound, 2 nothing could be looked at, 3 problems found",
    )
    validate.set_defaults(command=_validate)
    validate.add_argument("files", nargs="+", metavar="FILE", help="*.gpq, *.zarr, or folders of them: paths or URLs")
    validate.add_argument("--json", action="store_true", help="everything as one JSON document")
    return parser


def _look_first(options: argparse.Namespace) -> None:
    """Refuse mistyped tiles, sources and clusters before anything large is imported: the run looks again."""
    from daskembed.clusters.connection import shares_files
    from daskembed.geo.mgrs import read_tiles
    from daskembed.runs.preflight import check_source
    from daskembed.storage.stores import Storage
    from daskembed.storage.urls import is_local

    tiles, source = read_tiles(options.tiles), Storage(options.source or config.get("source"))
    if is_local(source.url):
        check_source(source, tiles)
    if options.cluster is not None:
        shares_files(options.cluster)


def _load_for_workers(cluster: str | None) -> None:
    """Have another process load what workers need, while this one looks at what is to be done."""
    from daskembed.clusters.connection import may_fork
    from daskembed.clusters.forks import begin

    if may_fork(cluster or config.get("cluster")):
        begin("daskembed.runs.forked")


def _add_meaning(parser: argparse.ArgumentParser) -> None:
    """Flags that say what the files' numbers are."""
    meaning = parser.add_argument_group("what the files' numbers are, where it is not clear")
    meaning.add_argument(
        "--offset-applied",
        choices=["yes", "no"],
        help="whether the 1000 that ESA adds to Sentinel-2 since 2022-01-25 is taken out already; no takes it out of "
        "the images that have it (default: what each file tells, else numbers are taken as they are)",
    )
    meaning.add_argument(
        "--numbers",
        choices=["stored", "values"],
        help="of bands with scale and offset tags, take the stored numbers or the values they stand for (default: what "
        "the encoder was trained on)",
    )


def _run(options: argparse.Namespace) -> int:
    _look_first(options)
    _load_for_workers(options.cluster)
    from daskembed.cli.live import print_event, show_progress
    from daskembed.clusters.presets import parse_arguments
    from daskembed.clusters.quiet import quieten
    from daskembed.runs.tiles import run

    quieten()  # and for good: what is said when everything is closed is no use to anybody
    as_json = options.log_format == "json"
    with contextlib.nullcontext() if as_json else show_progress() as progress:
        result = run(
            options.tiles,
            source=options.source,
            output=options.output,
            encoder=options.encoder,
            checkpoint=options.checkpoint,
            sensor=options.sensor,
            window=options.window,
            level=options.level,
            cluster=options.cluster,
            cluster_arguments=parse_arguments(options.cluster_arg),
            workers=options.workers,
            precision=options.precision,
            batch_size=options.batch_size,
            readers=options.readers,
            dates=options.dates,
            version=options.version,
            on_nan=options.on_nan,
            max_quarantined=options.max_quarantined,
            retry_quarantined=options.retry_quarantined,
            format=options.format,
            dtype=options.dtype,
            offset=_offset(options.offset),
            edge=options.edge,
            rules=_rules(options),
            numbers=options.numbers,
            offset_applied=options.offset_applied,
            overwrite=options.overwrite,
            listen=options.listen,
            tls=options.tls,
            performance_report=options.performance_report,
            progress=progress,
            events=print_event if as_json else None,
        )
    return result.exit_status if as_json else _summary(result)


def _plan(options: argparse.Namespace) -> int:
    _look_first(options)
    from daskembed.runs.plan import plan
    from daskembed.runs.summary import describe_plan

    if options.device is None:
        print("measuring this machine, which takes some seconds", file=sys.stderr)
    try:
        made = plan(
            options.tiles,
            source=options.source,
            output=options.output,
            encoder=options.encoder,
            checkpoint=options.checkpoint,
            sensor=options.sensor,
            window=options.window,
            level=options.level,
            cluster=options.cluster,
            precision=options.precision,
            batch_size=options.batch_size,
            readers=options.readers,
            dates=options.dates,
            version=options.version,
            on_nan=options.on_nan,
            max_quarantined=options.max_quarantined,
            retry_quarantined=options.retry_quarantined,
            format=options.format,
            dtype=options.dtype,
            offset=_offset(options.offset),
            edge=options.edge,
            rules=_rules(options),
            numbers=options.numbers,
            offset_applied=options.offset_applied,
            overwrite=options.overwrite,
            device=options.device,
            workers=options.workers or 1,
            price_per_hour=options.price_per_hour,
        )
    except StorageError as error:
        raise InputError(str(error)) from None
    print(describe_plan(made))
    return 0


def _offset(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        y, x = map(int, text.split(","))
    except ValueError:
        raise InputError(f"--offset {text!r}: expected Y,X in pixels, such as 0,256") from None
    return y, x


def _rules(options: argparse.Namespace) -> Rules | None:
    from daskembed.sources.reading import NO_RULES, Rules

    rules = Rules(options.reject_zeros, options.reject_nan, options.max_cloud, options.keep_all)
    return None if rules == NO_RULES else rules


def _cube(options: argparse.Namespace) -> int:
    _look_first(options)
    _load_for_workers(options.cluster)
    from daskembed.cli.live import show_progress
    from daskembed.clusters.presets import parse_arguments
    from daskembed.clusters.quiet import quieten
    from daskembed.runs.cubes import summary, write_cubes

    quieten()
    with show_progress() as progress:
        result = write_cubes(
            options.tiles,
            source=options.source,
            output=options.output,
            cluster=options.cluster,
            cluster_arguments=parse_arguments(options.cluster_arg),
            workers=options.workers,
            readers=options.readers,
            numbers=options.numbers,
            offset_applied=options.offset_applied,
            max_quarantined=options.max_quarantined,
            progress=progress,
        )
    print(summary(result))
    return result.exit_status


def _clusters(options: argparse.Namespace) -> int:
    from daskembed.clusters.presets import copy_preset, is_installed, parse_arguments, presets, read_preset

    if options.copy:
        name, path = options.copy
        copy_preset(name, path)
        print(f"{path}: edit it, try it with `daskembed clusters --check {path}`, then run with `--cluster {path}`")
        return 0
    if options.check:
        from daskembed.clusters.connection import check
        from daskembed.clusters.quiet import quieten

        quieten()
        print(check(options.check, cluster_arguments=parse_arguments(options.cluster_arg)))
        return 0
    width = max(map(len, presets()))
    for name in presets():
        preset = read_preset(name)
        needs = preset.get("install", "nothing else")
        found = "installed" if is_installed(preset) else "not installed"
        print(f"{name:<{width}}  {preset['description']}; needs {needs}: {found}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from daskembed.cli.doctor import doctor

    print(doctor())
    return 0


def _demo(options: argparse.Namespace) -> int:
    _load_for_workers("local")
    from daskembed.cli.demo import demo
    from daskembed.clusters.quiet import quieten

    quieten()
    return demo(Path(options.folder), options.encoder)


def _status(options: argparse.Namespace) -> int:
    import csv
    import json
    from dataclasses import asdict

    from daskembed.cli.status import show
    from daskembed.output.status import status
    from daskembed.text import all_visible

    try:
        found = status(options.output, options.tiles)
    except StorageError as error:
        raise InputError(str(error)) from None
    if options.json:
        print(json.dumps({**asdict(found), "counts": found.counts}, indent=1))
    elif options.quarantined:
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(("tile", "version", "url", "reason"))
        lines.writerows(all_visible(found.quarantined))
    else:
        show(found)
    return 0 if found.sound else 3


def _validate(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from daskembed.output.validate.check import files_of, validate
    from daskembed.text import visible

    looked: list[dict[str, object]] = []
    lost: list[dict[str, str]] = []
    for given in options.files:
        try:
            for url in files_of(given):
                findings = validate(url)
                sound = not any(finding.severity == "problem" for finding in findings)
                looked.append({"file": url, "ok": sound, "findings": [asdict(finding) for finding in findings]})
                if not options.json:
                    told = [*(["ok"] if sound else []), *findings]
                    print(*(visible(f"{url}: {one}") for one in told), sep="\n")
        except (InputError, StorageError) as error:
            print(f"daskembed: {error}", file=sys.stderr)
            lost.append({"argument": given, "reason": str(error)})
    if options.json:
        print(json.dumps({"files": looked, "not_looked_at": lost}, indent=1))
    if not looked:
        return 2
    return 0 if not lost and all(file["ok"] for file in looked) else 3


def _summary(result: RunResult) -> int:
    from daskembed.runs.results import left_by
    from daskembed.runs.summary import summary

    print(summary(result, left_by(result)))
    return result.exit_status
