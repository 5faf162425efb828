"""The demo of catalogues: a STAC API and an object store on this machine, and the real commands on them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from daskembed.encoders.loading import ENCODERS
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

  {folder}/scenes/items.json       the items, as a catalogue lists them
  {folder}/scenes/catalogue.yaml   how that catalogue is described to daskembed
  {folder}/embeddings              the embeddings; _daskembed/receipts says which items they were made of, and how

The weights of this demo are seeded noise, and its scenes are drawn. A public catalogue needs a network, and no more:

  daskembed scenes --tiles {tile} --source planetary-computer --dates 2024-05-01/2024-09-30 --encoder {encoder}
  daskembed run --tiles {tile} --source planetary-computer --dates 2024-05-01/2024-09-30 --encoder {encoder} \\
    --output embeddings
"""


def demo_catalogue(folder: Path, encoder: str, command: Callable[[Sequence[str]], int]) -> int:
    """Write synthetic scenes under `folder`, list and show them on the loopback address, and embed them from there.

    Parameters
    ----------
    folder
        Gets ``scenes/`` and ``embeddings/``.
    encoder
        See `daskembed.load_encoder`.
    command
        Does what is typed after ``daskembed``; returns its exit status.

    Returns
    -------
    The exit status of the first command that fails, or 0.
    """
    find_rustac()  # before anything is written
    place = folder / "scenes"
    place.mkdir(parents=True, exist_ok=True)
    with FileServer(place, port=_port_of(place / "items.json")) as store:
        print(f"writing synthetic scenes of tile {TILE} to {place}, which {store.url} shows")
        scenes = write_scenes(place, tile=TILE, start=START, shape=SHAPE, root=store.url)
        with serve_catalogue(scenes.file) as api:
            print(f"listing them at {api}, a STAC API")
            scenes.describe(api)
            for words in _commands(folder, scenes, encoder):
                print(f"\n$ daskembed {shlex.join(words)}", flush=True)
                if status := command(words):
                    return status
    print(_NEXT.format(folder=folder, tile=TILE, encoder=encoder))
    return 0


def _port_of(items: Path) -> int:
    """That of the store when the demo was here before, so that what it began goes on; 0, any, if it was not."""
    if not items.exists():
        return 0
    first = json.loads(items.read_text())["features"][0]
    return urlsplit(next(iter(first["assets"].values()))["href"]).port or 0


def _commands(folder: Path, scenes: Scenes, encoder: str) -> list[list[str]]:
    version = f"{list(ENCODERS).index(encoder) + 1:03d}" if encoder in ENCODERS else "001"
    west, south, east, north = scenes.bounds
    # Well within the scenes: a region of degrees is askew to their grid.
    inset = [
        west + (east - west) / 4,
        south + (north - south) / 4,
        east - (east - west) / 4,
        north - (north - south) / 4,
    ]
    asked = ["--region", ",".join(f"{degrees:.4f}" for degrees in inset)]
    asked += ["--source", str(scenes.description), "--dates", PERIOD, "--scenes", "2"]
    made = ["--encoder", encoder, "--checkpoint", CHECKPOINT, "--version", version, "--cluster", "local"]
    output = str(folder / "embeddings")
    return [
        ["scenes", *asked, "--encoder", encoder],
        ["run", *asked, *made, "--output", output],
        ["status", output],
        ["validate", output],
    ]
