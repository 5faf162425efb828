"""Embeddings from Python: index a tile, open it, embed it at patch level, compute the result on a local cluster.

Make chips to try it on, then run it (about half a minute on two cores)::

    daskembed demo
    python examples/make_embeddings.py

or give it your own chips, a folder that holds ``{MGRS}/{date}/claytile_*.tif``, and real weights::

    python examples/make_embeddings.py chips --tile 27WXN --checkpoint clay-v0.ckpt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import daskembed
from daskembed.clusters.connection import connect


def first_tile(folder: Path) -> str:
    """Name of the first tile's folder below `folder`, or an exit that says where chips come from."""
    tiles = sorted(path.name for path in folder.glob("*") if any(path.rglob("claytile_*.tif")))
    if not tiles:
        sys.exit(f"no chips in {folder}: run `daskembed demo` first, or give a folder of {{MGRS}}/{{date}}/*.tif")
    return tiles[0]


def main() -> None:
    """Embed the first chips of a tile and print what came of it."""
    parser = argparse.ArgumentParser(description="Embed a few chips at patch level.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("daskembed-demo/chips"))
    parser.add_argument("--tile", help="MGRS tile id (default: the first folder)")
    parser.add_argument("--checkpoint", default="untrained:tiny")
    parser.add_argument("--chips", type=int, default=8, help="how many chips to embed (default: 8)")
    options = parser.parse_args()
    tile = options.tile or first_tile(options.folder)

    # Headers are read here, pixels are not. The index is a GeoDataFrame: select the chips you want on it.
    index = daskembed.index_tile(tile, str(options.folder))
    print(f"tile {tile}: {len(index)} chips, {index['quarantined'].notna().sum()} of them unusable")
    cube = daskembed.open_tile(index.head(options.chips), chips_a_block=4)
    print(f"cube        {dict(cube.sizes)}, {cube.nbytes / 1e6:.0f} MB if it were read")

    encoder = daskembed.load_encoder(options.checkpoint)
    embeddings = daskembed.embed(cube, encoder, level="patch")
    frame = daskembed.to_geodataframe(embeddings)
    print(f"embeddings  {dict(embeddings.sizes)}; partitions: {frame.npartitions}; nothing is computed yet")

    # A cluster as `daskembed run --cluster local` starts it. Any other Dask client would do. Its client is not Dask's
    # default: without `as_current`, threads of this process would compute.
    with connect("local") as client, client.as_current():
        table = frame.compute()

    # A quarantined chip has no vector. In this frame vectors are flat Arrow lists; the array knows their shape.
    good = table[table["quarantined"].isna()]
    vectors = np.stack(good["embeddings"].to_numpy()).reshape(-1, *embeddings.shape[1:])
    print(f"computed    {vectors.dtype} of shape {vectors.shape}, from {vectors.min():.2f} to {vectors.max():.2f}")
    table["chip"] = [url.rpartition("/")[2] for url in table["source_url"]]
    print(table[["chip", "date", "quarantined", "filled"]].to_string(index=False))


if __name__ == "__main__":
    # The guard is needed: worker processes import this file anew.
    main()
