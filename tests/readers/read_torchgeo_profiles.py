"""TorchGeo on exports with profiles: `python3.12 tests/readers/read_torchgeo_profiles.py`, by a Python with daskembed.

By another, give it a folder with published files in `output`, and exports of them: `--profile majortom` in `majortom`,
`--profile earth-index` in `earth-index`. Of TorchGeo see `read_torchgeo.py`.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import environment


def _exported() -> str:
    """A folder as described above."""
    try:
        import daskembed
        from daskembed.testing import write_published
    except ImportError:
        environment.not_run("this Python has no daskembed to make exports: give a folder of them")
    folder = tempfile.mkdtemp(prefix="daskembed-profiles-")
    write_published(f"{folder}/output", ["33TUL", "33TVL"], side=4, shape=(8,))
    for name in ("majortom", "earth-index"):
        daskembed.export(f"{folder}/output", to=f"{folder}/{name}", profile=name)
    return folder


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append(_exported())
    environment.enter("torchgeo", "torchgeo==0.10.1", "pyarrow", python=(3, 12))

    import geopandas as gpd
    import numpy as np
    import pandas as pd
    from torchgeo.datasets import ClayEmbeddings, EarthIndexEmbeddings, MajorTOMEmbeddings

    folder = Path(sys.argv[1])
    rows = pd.concat(map(gpd.read_parquet, sorted((folder / "output").glob("*.gpq"))))
    expected = {row.embeddings.tobytes(): (row.geometry.centroid, row.date) for row in rows.itertuples()}
    majortom, earth_index = (str(folder / name) for name in ("majortom", "earth-index"))
    for samples in (MajorTOMEmbeddings(majortom), ClayEmbeddings(earth_index)):
        found = [samples[number] for number in range(len(samples))]
        assert {one["embedding"].numpy().tobytes() for one in found} == expected.keys()
        assert len(found) == len(rows)
        for one in found:
            middle, day = expected[one["embedding"].numpy().tobytes()]
            assert np.allclose([one["x"], one["y"]], [middle.x, middle.y], atol=1e-4)
            assert "t" not in one or datetime.fromtimestamp(one["t"].item(), UTC).date() == day
        print(f"torchgeo reads {samples.root} by {type(samples).__name__}")
    try:
        EarthIndexEmbeddings(earth_index)[0]
        raise AssertionError("EarthIndexEmbeddings takes footprints: docs/reading.md says that it does not")
    except AttributeError:
        print("EarthIndexEmbeddings takes points and no footprints")
