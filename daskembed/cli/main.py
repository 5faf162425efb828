"""The command: what each word does, and its exit status."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskembed import config
from daskembed.cli.parser import cluster_arguments, keywords, make_parser, one_list
from daskembed.cli.text import print_event, say, show_warnings, with_flags
from daskembed.errors import DaskembedError, InputError, StorageError
from daskembed.runs.export_options import CalibrationOptions, ExportOptions, PreviewOptions
from daskembed.runs.options import CubeOptions, RunOptions

if TYPE_CHECKING:
    from daskembed.runs.results import RunResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    if arguments is None:
        # This process is the command's: as it ends, Python would look through all that was loaded, for half a second.
        atexit.register(gc.freeze)
    options = make_parser().parse_args(arguments)
    show_warnings()
    # What ends services and batch jobs, or closes a terminal, is a Ctrl-C to the run: without this, nothing would be
    # closed or published.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup asks for
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        if isinstance(tiles := getattr(options, "tiles", None), list):
            options.tiles = one_list(tiles)
        _check_dask_configuration()
        status = COMMANDS[options.command](options)
        print(end="", flush=True)
        return status
    except BrokenPipeError:
        if not _read_no_more():
            raise  # it is another pipe
        return 128 + signal.SIGPIPE
    except InputError as error:
        print(with_flags(f"daskembed: {error}"), file=sys.stderr)
        return 2
    except DaskembedError as error:
        print(with_flags(f"daskembed: stopped: {error}"), file=sys.stderr)
        print("what is finished stays; run the same command to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("daskembed: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _read_no_more() -> bool:
    """Whether who reads has enough, as `head` has: what Python flushes as it ends is told nobody then."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _check_dask_configuration() -> None:
    try:
        import dask  # noqa: F401 (it reads its files when it is imported)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def _look_first(options: argparse.Namespace) -> None:
    """Refuse mistyped tiles, sources and clusters before anything large is imported: the run looks again."""
    from daskembed.clusters.connection import shares_files
    from daskembed.geo.mgrs import read_tiles
    from daskembed.runs.preflight import check_source
    from daskembed.sources.origin import open_source
    from daskembed.sources.region import check_region
    from daskembed.storage.stores import Storage
    from daskembed.storage.urls import is_local

    try:
        source = open_source(options.source or config.get("source"))
    except StorageError as error:
        raise InputError(str(error)) from None
    if options.region is not None:
        check_region(options.region)
    else:
        tiles = read_tiles(options.tiles)
        if isinstance(source, Storage) and is_local(source.url):
            check_source(source, tiles)
    if options.cluster is not None:
        shares_files(options.cluster)


def _load_for_workers(cluster: str | None) -> None:
    """Have another process load what workers need, while this one looks at what is to be done."""
    from daskembed.clusters.connection import may_fork
    from daskembed.clusters.forks import begin

    if may_fork(cluster or config.get("cluster")):
        begin("daskembed.runs.forked")


def _run(options: argparse.Namespace) -> int:
    _look_first(options)
    _load_for_workers(options.cluster)
    from daskembed.runs.tiles import run

    return _watch(options, run, keywords(options, RunOptions))


def _watch(options: argparse.Namespace, work: Callable[..., RunResult], asked: dict[str, Any]) -> int:
    """Do some work of a run on a cluster, and tell of it while it goes and when it is over."""
    from daskembed.runs.results import left_by
    from daskembed.runs.summary import summary

    return _tell(options, partial(work, options.tiles, **asked), lambda result: summary(result, left_by(result)))


def _tell(options: argparse.Namespace, work: Callable[..., Any], summary: Callable[[Any], str]) -> int:
    """Do some work that takes callbacks, and tell of it while it goes and when it is over."""
    from daskembed.cli.live import show_progress
    from daskembed.clusters.quiet import quieten

    quieten()  # and for good: what is said when everything is closed is no use to anybody
    as_json = options.log_format == "json"
    with contextlib.nullcontext() if as_json else show_progress() as progress:
        result = work(progress=progress, events=print_event if as_json else None)
    if not as_json:
        say(summary(result))
    return int(result.exit_status)


def _plan(options: argparse.Namespace) -> int:
    _look_first(options)
    from daskembed.runs.plan import plan
    from daskembed.runs.summary import describe_plan

    if options.device is None:
        print("measuring this machine, which takes some seconds", file=sys.stderr)
    asked = keywords(options, RunOptions)
    try:
        made = plan(options.tiles, device=options.device, price_per_hour=options.price_per_hour, **asked)
    except StorageError as error:
        raise InputError(str(error)) from None
    say(describe_plan(made))
    return 0


def _scenes(options: argparse.Namespace) -> int:
    _look_first(options)
    from daskembed.cli.scenes import as_json, show
    from daskembed.runs.scenes import find_scenes

    asked = keywords(options, RunOptions)
    try:
        found = find_scenes(options.tiles, **asked)
    except StorageError as error:
        raise InputError(str(error)) from None
    if options.json:
        print(as_json(found))
    else:
        show(found)
    return 0 if all(tile.used for tile in found) else 4


def _cube(options: argparse.Namespace) -> int:
    _look_first(options)
    _load_for_workers(options.cluster)
    from daskembed.runs.cubes import write_cubes

    return _watch(options, write_cubes, keywords(options, CubeOptions) | {"output": options.output})


def _export(options: argparse.Namespace) -> int:
    from daskembed.runs.export_options import Asked

    _load_for_workers(options.cluster)
    from daskembed.runs.export_results import summary
    from daskembed.runs.exports import export

    asked = keywords(options, ExportOptions, Asked)
    return _tell(options, partial(export, options.output, to=options.to, **asked), summary)


def _calibrate(options: argparse.Namespace) -> int:
    from daskembed.runs.export_options import Asked

    _load_for_workers(options.cluster)
    from daskembed.runs.calibration import calibrate, summary

    asked = keywords(options, CalibrationOptions, Asked)
    return _tell(options, partial(calibrate, options.output, to=options.to, **asked), summary)


def _preview(options: argparse.Namespace) -> int:
    from daskembed.cli.preview import check_shown, show
    from daskembed.runs.export_options import Looked
    from daskembed.runs.previews import preview

    if options.serve or options.open:
        check_shown(options.to or options.output)
    asked = keywords(options, PreviewOptions, Looked)
    made = preview(options.output, to=options.to, basis=options.basis, geotiff=options.geotiff, **asked)
    return show(made, serve=options.serve, browse=options.open)


def _tiles(options: argparse.Namespace) -> int:
    from daskembed.sources.region import tiles_of_region

    ids = tiles_of_region(options.region)
    try:
        print("\n".join(ids), flush=True)
    except BrokenPipeError:
        _read_no_more()
    return 0


def _clusters(options: argparse.Namespace) -> int:
    from daskembed.clusters.presets import copy_preset, is_installed, presets, read_preset

    if options.copy:
        name, path = options.copy
        copy_preset(name, path)
        print(f"{path}: edit it, try it with `daskembed clusters --check {path}`, then run with `--cluster {path}`")
        return 0
    if options.check:
        from daskembed.clusters.connection import check
        from daskembed.clusters.quiet import quieten

        quieten()
        print(check(options.check, cluster_arguments=cluster_arguments(options.cluster_arguments)))
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
    if options.source == "stac":
        from daskembed.cli.demo_catalogue import demo_catalogue

        return demo_catalogue(Path(options.folder), options.encoder, main)
    return demo(Path(options.folder), options.encoder)


def _status(options: argparse.Namespace) -> int:
    from daskembed.cli.status import as_csv, as_json, show
    from daskembed.exports.status import status

    try:
        found = status(options.output, options.tiles)
    except StorageError as error:
        raise InputError(str(error)) from None
    if options.quarantined and found.export is not None:
        raise InputError(f"{found.output} is an export and has no chips: ask the output {found.export.source}")
    if options.json:
        print(as_json(found))
    elif options.quarantined:
        print(as_csv(found))
    else:
        show(found)
    return 0 if found.sound else 3


def _search(options: argparse.Namespace) -> int:
    from daskembed.cli.search import search

    return search(options)


def _stac(options: argparse.Namespace) -> int:
    from daskembed.exports.stac import write_stac
    from daskembed.text import counted, visible

    made = write_stac(options.output, options.root)
    say(visible(made.catalog))
    for name, count in made.collections.items():
        say(visible(f"  {name}: {counted(count, 'item')}"))
    say(f"{counted(made.written, 'item')} written, {made.removed} removed")
    for name, reason in made.left_out.items():
        say(visible(with_flags(f"left out: {name}: {reason}")))
    return 3 if made.left_out else 0


def _validate(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from daskembed.exports.validate.check import files_of, validate
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
            print(with_flags(f"daskembed: {error}"), file=sys.stderr)
            lost.append({"argument": given, "reason": with_flags(str(error))})
    if options.json:
        print(json.dumps({"files": looked, "not_looked_at": lost}, indent=1))
    if not looked:
        return 2
    return 0 if not lost and all(file["ok"] for file in looked) else 3


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "scenes": _scenes,
    "cube": _cube,
    "export": _export,
    "calibrate": _calibrate,
    "preview": _preview,
    "tiles": _tiles,
    "clusters": _clusters,
    "doctor": _doctor,
    "demo": _demo,
    "status": _status,
    "search": _search,
    "stac": _stac,
    "validate": _validate,
}
