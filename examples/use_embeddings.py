"""Published files in use: the nearest neighbours of a chip, and of a patch within it where the files hold patches.

With one vector a chip, as the demo makes it::

    daskembed demo
    python examples/use_embeddings.py

With 16 x 16 vectors a chip::

    daskembed run --tiles examples/tiles.txt --source daskembed-demo/chips --checkpoint untrained:tiny \
        --level patch --output daskembed-demo/patch
    python examples/use_embeddings.py daskembed-demo/patch

The weights of the demo are seeded noise, so its neighbours mean nothing. The steps are the same with real weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq


def read(folder: Path) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """All files of a folder: their table, and their vectors as (chip, embedding) or (chip, row, col, embedding)."""
    files = sorted(folder.glob("*.gpq"))
    if not files:
        sys.exit(f"no published files in {folder}: run `daskembed demo` first, or give another folder")
    frame = pd.concat([gpd.read_parquet(file) for file in files], ignore_index=True)
    # geopandas gives flat vectors; the file's schema knows their shape.
    shapes = {tuple(pq.read_schema(file).field("embeddings").type.shape) for file in files}
    if len(shapes) > 1:
        sys.exit(f"{folder} holds files of several levels or models: {sorted(shapes)}")
    return frame, np.stack(frame["embeddings"]).reshape(-1, *shapes.pop())


def cosine(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosine of the angle between `query` and each of `vectors`, (n, embedding)."""
    cosines: np.ndarray = vectors @ query / (np.linalg.norm(vectors, axis=-1) * np.linalg.norm(query))
    return cosines


def main() -> None:
    """Print the nearest neighbours of the first chip and, at patch level, of the patch in its middle."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "daskembed-demo/embeddings")
    frame, vectors = read(folder)
    print(f"{len(frame)} chips in {folder}, each {' x '.join(map(str, vectors.shape[1:]))}")

    # One vector a chip. All of them share a large common part: without its mean the differences show.
    chips = vectors.mean(axis=tuple(range(1, vectors.ndim - 1)))
    chips = chips - chips.mean(axis=0)
    frame["cosine"] = cosine(chips, chips[0]).round(3)
    frame["chip"] = frame["source_url"].str.rpartition("/")[2]
    bounds = frame.bounds
    frame["lon"], frame["lat"] = (bounds.minx + bounds.maxx) / 2, (bounds.miny + bounds.maxy) / 2
    print(f"\nnearest neighbours of {frame['chip'][0]}")
    nearest = frame.sort_values("cosine", ascending=False).iloc[1:6]
    print(nearest[["chip", "date", "lon", "lat", "cosine"]].round(4).to_string(index=False))

    if vectors.ndim != 4:
        return
    count, rows, cols, dim = vectors.shape
    patches = vectors.reshape(-1, dim)
    patches = patches - patches.mean(axis=0)
    # Rows run south, columns east, as in the chip: patch (8, 8) is pixels 256 to 287 both ways.
    found = cosine(patches, patches[np.ravel_multi_index((0, rows // 2, cols // 2), (count, rows, cols))])
    print(f"\nnearest patches of patch ({rows // 2}, {cols // 2}) of that chip")
    for place in np.argsort(-found)[1:6]:
        chip, row, col = np.unravel_index(place, (count, rows, cols))
        print(f"  {frame['chip'][chip]}  row {row:2d}  col {col:2d}  cosine {found[place]:.3f}")


if __name__ == "__main__":
    main()
