"""The demo of catalogues: a STAC API and an object store on this machine, and the real commands on them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from daskembed.cli.demo import as_typed
from daskembed.documents import parse_yaml
from daskembed.encoders.loading import ENCODERS
from daskembed.errors import InputError
from daskembed.testing import items
from daskembed.testing.loopback import FileServer, find_rustac, serve_catalogue
from daskembed.testing.scenes import Scenes, write_scenes

TILE = "33TUL"
CHECKPOINT = "untrained:tiny"
PERIOD = "2021-06-01/2024-08-31"
START = (3 * 512, 3 * 512)
"""Pixel of the tile, where a chip begins, with which the scenes begin: two by two chips are in them."""
SHAPE = (1032, 1032)

_NEXT = """\

Both servers are closed. Look at what was made:

  {folder}/scenes/items.json        the items, as that catalogue listed them
  {folder}/scenes/catalogue.yaml    how it was described to daskembed
  {folder}/scenes/local-items.json  the same items, with the paths of their files
  {folder}/scenes/local.yaml        the catalogue that these are: it needs no server
  {folder}/scene-embeddings         the embeddings; _daskembed/receipts says which items they were made of, and how

  {again}

The weights of this demo are seeded noise, and its scenes are drawn. A public catalogue needs a network, and no more:

  {daskembed} scenes --tiles {tile} --source planetary-computer --dates 2024-05-01/2024-09-30 --encoder {encoder}
  {daskembed} run --tiles {tile} --source planetary-computer --dates 2024-05-01/2024-09-30 --encoder {encoder} \\
    --output embeddings
"""


def demo_catalogue(folder: Path, encoder: str, command: Callable[[Sequence[str]], int]) -> int:
    """Write synthetic scenes under `folder`, list and show them on the loopback address, and embed them from there.

    Parameters
    ----------
    folder
        Gets ``scenes/`` and ``scene-embeddings/``.
    encoder
        See `daskembed.load_encoder`.
    command
        Does what is typed after ``daskembed``; returns its exit status.

    Returns
    -------
    The exit status of the first command that fails, or 0.
    """
    # Before anything is written.
    find_rustac()
    if find_spec("pystac_client") is None:
        raise InputError(
            "a STAC API is searched with pystac-client, which is not installed: pip install 'daskembed[stac]'"
        )
    place = folder / "scenes"
    place.mkdir(parents=True, exist_ok=True)
    store_port, api_port = _ports(place)
    with FileServer(place, port=store_port) as store:
        print(f"writing synthetic scenes of tile {TILE} to {place}, which {store.url} shows")
        scenes = write_scenes(place, tile=TILE, start=START, shape=SHAPE, root=store.url)
        with serve_catalogue(scenes.file, api_port) as api:
            print(f"listing them at {api}, a STAC API")
            scenes.describe(api)
            _leave(scenes)
            for words in _commands(folder, scenes, encoder):
                print(f"\n$ daskembed {shlex.join(words)}", flush=True)
                if status := command(words):
                    return status
    program = as_typed("daskembed")
    again = [program, "run", *_asked(scenes, place / "local.yaml")]
    again += ["--encoder", encoder, "--checkpoint", CHECKPOINT, "--version", _version(encoder)]
    again += ["--level", "patch", "--output", str(folder / "scene-patches")]
    print(_NEXT.format(folder=folder, tile=TILE, encoder=encoder, daskembed=program, again=shlex.join(again)))
    return 0


def _leave(scenes: Scenes) -> None:
    """Write the items once more, and their catalogue, so that they can be read when both servers are closed."""
    root = f"file://{scenes.folder}"
    listed = scenes.folder / "local-items.json"
    listed.write_text(scenes.file.read_text().replace(f'"{scenes.root}/', f'"{root}/'))
    (scenes.folder / "local.yaml").write_text(items.catalogue_of(scenes.style, listed.name, root))


def _ports(place: Path) -> tuple[int, int]:
    """Those of store and API when the demo was here before, so that what it began goes on; 0, any, if it was not."""
    listed, described = place / "items.json", place / "catalogue.yaml"
    if not (listed.exists() and described.exists()):
        return 0, 0
    first = json.loads(listed.read_text())["features"][0]
    urls = next(iter(first["assets"].values()))["href"], parse_yaml(described.read_text())["url"]
    store, api = (urlsplit(url).port or 0 for url in urls)
    return store, api


def _commands(folder: Path, scenes: Scenes, encoder: str) -> list[list[str]]:
    asked = _asked(scenes, scenes.description)
    made = ["--encoder", encoder, "--checkpoint", CHECKPOINT, "--version", _version(encoder), "--cluster", "local"]
    output = str(folder / "scene-embeddings")
    return [
        ["scenes", *asked, "--encoder", encoder],
        ["run", *asked, *made, "--output", output],
        ["status", output],
        ["validate", output],
    ]


def _version(encoder: str) -> str:
    """Each encoder has one of its own, so that the files of both lie in one folder."""
    return f"{list(ENCODERS).index(encoder) + 1:03d}" if encoder in ENCODERS else "001"


def _asked(scenes: Scenes, source: Path) -> list[str]:
    """Flags of what is wanted of a catalogue."""
    west, south, east, north = scenes.bounds
    # Well within the scenes: a region of degrees is askew to their grid.
    inset = [
        west + (east - west) / 4,
        south + (north - south) / 4,
        east - (east - west) / 4,
        north - (north - south) / 4,
    ]
    region = ",".join(f"{degrees:.4f}" for degrees in inset)
    return ["--region", region, "--source", str(source), "--dates", PERIOD, "--scenes", "2"]
