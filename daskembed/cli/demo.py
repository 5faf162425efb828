"""The demo: synthetic chips of one tile, the real run on them, and what to look at next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from daskembed.cli.live import show_progress
from daskembed.encoders.loading import ENCODERS, get_encoder_module
from daskembed.geo.chips import CHIP
from daskembed.runs.results import left_by
from daskembed.runs.summary import summary
from daskembed.runs.tiles import run
from daskembed.testing.landscape import write_chips

TILE = "33TUL"
CHECKPOINT = "untrained:tiny"

_NEXT = """\

Look at what was made:

  {python}
  >>> import geopandas as gpd
  >>> frame = gpd.read_parquet("{file}")
  >>> frame.embeddings[0].shape        # {rows}; --level patch gives one a patch
  >>> frame.explore()                  # the chips on a map (needs folium, mapclassify and matplotlib)

  {daskembed} run --tiles {tile} --source {chips}{flags} --checkpoint {checkpoint} --level patch --output {folder}/patch

Which places are like one of them, and a copy for those who read:

  {daskembed} search {embeddings}{choice} --like 12.45,46.0 -k 5
  {daskembed} export {embeddings}{choice} --to {folder}/export

The weights of this demo are seeded noise: good for trying things out, meaningless for anything else, and the file's
footer says so. For real embeddings of your chips leave --checkpoint out, which fetches the released {title} weights
once ({released}), or point it to your copy:

  {daskembed} run --tiles tiles.txt --source YOUR_CHIPS{flags} --checkpoint YOUR_COPY.ckpt --output embeddings

What was made, on a map: open this, click a field.

  {page}
"""


def demo(folder: Path, encoder: str = "clay-v0") -> int:
    """Write 16 synthetic chips under `folder`, embed them on a local cluster, and print what to do next.

    Parameters
    ----------
    folder
        Gets ``chips/`` and ``embeddings/``.
    encoder
        See `daskembed.load_encoder`.

    Returns
    -------
    The exit status of the run.
    """
    chips = folder / "chips"
    if not (chips / TILE).is_dir():
        print(f"writing 16 synthetic chips of tile {TILE} to {chips}")
        write_chips(chips, tile=TILE)
    embeddings = folder / "embeddings"
    module = get_encoder_module(encoder)
    levels = list(module.describe("tiny").levels)
    # Each encoder has a version of its own, so that both demos can lie in one folder.
    version = f"{list(ENCODERS).index(encoder) + 1:03d}" if encoder in ENCODERS else "001"
    flags = "" if encoder == next(iter(ENCODERS)) else f" --encoder {encoder} --version {version}"
    print(
        f"daskembed run --tiles {TILE} --source {chips}{flags} --checkpoint {CHECKPOINT} --output {embeddings} "
        "--cluster local --preview"
    )
    with show_progress() as progress:
        result = run(
            TILE,
            source=str(chips),
            output=str(embeddings),
            encoder=encoder,
            checkpoint=CHECKPOINT,
            cluster="local",
            level=levels[0],
            version=version,
            preview=True,
            progress=progress,
        )
    print(summary(result, left_by(result)))
    if result.exit_status == 0:
        values = {"file": result.tiles[0].file, "tile": TILE, "chips": chips, "folder": folder}
        values |= {name: as_typed(name) for name in ("python", "daskembed")}
        # Where both demos lie in one folder, its files are of two encoders.
        choice = f" --encoder {encoder}" if flags else ""
        values |= {
            "embeddings": embeddings,
            "choice": choice,
            "flags": flags,
            "title": module.TITLE,
            "released": module.CHECKPOINT,
        }
        values["rows"] = (
            "one vector a chip" if module.describe("tiny").window == CHIP else "one vector a window of a chip"
        )
        values["page"] = Path(result.preview).resolve().as_uri() if result.preview else "no preview: see above"
        print(_NEXT.format(checkpoint=CHECKPOINT, **values))
    return result.exit_status


def as_typed(program: str) -> str:
    """How a program of this environment is typed: by its name if the shell finds it there, else by its path."""
    path = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    if not path.exists() or (found is not None and Path(found).parent == path.parent):
        return program
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
