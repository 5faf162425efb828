"""The demo: synthetic chips of one tile, the real run on them, and what to look at next."""

from __future__ import annotations

from pathlib import Path

from daskembed.display import show_progress, summary
from daskembed.landscape import write_chips
from daskembed.pipeline import run

TILE = "33TUL"
CHECKPOINT = "untrained:tiny"

_NEXT = """\

Look at what was made:

  python
  >>> import geopandas as gpd
  >>> frame = gpd.read_parquet("{file}")
  >>> frame.embeddings[0].shape        # one vector a chip; --level patch gives 16 x 16 of them
  >>> frame.explore()                  # the chips on a map (needs folium)

  daskembed run --tiles {tile} --source {chips} --checkpoint {checkpoint} --level patch --output {folder}/patch

The weights of this demo are seeded noise: good for trying things out, meaningless for anything else, and the file's
footer says so. For real embeddings of your chips leave --checkpoint out, which fetches the released Clay v0 weights
once (511 MB), or point it to your copy:

  daskembed run --tiles tiles.txt --source YOUR_CHIPS --checkpoint clay-v0.ckpt --output embeddings
"""


def demo(folder: Path) -> int:
    """Write 16 synthetic chips under `folder`, embed them on a local cluster, and print what to do next.

    Parameters
    ----------
    folder
        Gets ``chips/`` and ``embeddings/``.

    Returns
    -------
    The exit status of the run.
    """
    chips = folder / "chips"
    if not (chips / TILE).is_dir():
        print(f"writing 16 synthetic chips of tile {TILE} to {chips}")
        write_chips(chips, tile=TILE)
    embeddings = folder / "embeddings"
    print(
        f"daskembed run --tiles {TILE} --source {chips} --checkpoint {CHECKPOINT} --output {embeddings} --cluster local"
    )
    with show_progress() as progress:
        result = run(
            TILE,
            source=str(chips),
            output=str(embeddings),
            checkpoint=CHECKPOINT,
            cluster="local",
            level="mean",
            version="001",
            progress=progress,
        )
    print(summary(result))
    if result.exit_status == 0:
        values = {"file": result.tiles[0].file, "tile": TILE, "chips": chips, "folder": folder}
        print(_NEXT.format(checkpoint=CHECKPOINT, **values))
    return result.exit_status
