"""Search in a Lance table: by its index, ranked exactly."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pytest
import shapely
from embedded import DAY, MADE, squares, url_of, write_rows

import daskembed
from daskembed.cli.main import main
from daskembed.errors import InputError

lance = pytest.importorskip("lance", reason="pylance, which writes and reads tables of Lance, is not installed")
DIMS, COUNT = 32, 6000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Around two hundred middles, as land has kinds."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((200, DIMS)) + 1
    return (middles[rng.integers(0, 200, COUNT)] + rng.standard_normal((COUNT, DIMS)) * 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def table(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As exports make it, with an index."""
    return made_table(tmp_path_factory.mktemp("lance") / "embeddings.lance", vectors)


def made_table(path: Path, vectors: np.ndarray) -> Path:
    shapes = np.array(squares(len(vectors), across=100, side=0.01), object)
    edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(pa.array, shapely.bounds(shapes).T), strict=True))
    columns = {
        "source_url": pa.array([url_of(number) for number in range(len(vectors))]),
        "date": pa.array([DAY] * len(vectors), pa.date32()),
        "embeddings": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMS),
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        "bbox": pa.StructArray.from_arrays(list(edges.values()), list(edges)),
    }
    made = lance.write_dataset(pa.table(columns), str(path))
    made.create_index("embeddings", "IVF_PQ", metric="cosine", num_partitions=16, num_sub_vectors=4)
    return path


def middle(number: int) -> tuple[float, float]:
    place = squares(COUNT, across=100, side=0.01)[number].centroid
    return place.x, place.y


def test_the_index_finds_nearly_all(table: Path, vectors: np.ndarray) -> None:
    scores = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    recall = []
    for number in range(0, COUNT, 600):
        hits = daskembed.search(str(table), like=middle(number), center=False, k=20)
        cosines = scores @ scores[number]
        best = [one for one in np.argsort(-cosines, kind="stable") if one != number][:20]
        found = [int(url[-10:-4]) for url in hits["source_url"]]
        recall.append(len(set(found) & set(best)) / 20)
        # Those that it finds have their exact cosines, and these rank them.
        np.testing.assert_allclose(hits["score"], cosines[found], rtol=1e-6)
        assert (np.diff(hits["score"]) <= 0).all()
        assert number not in found
    assert np.mean(recall) >= 0.9
    assert hits.attrs["search"]["index"] is True


def test_regions_rows_and_distance(table: Path) -> None:
    west, south, east, north = shapely.total_bounds(squares(COUNT, across=100, side=0.01)[300:305])
    region = f"{west + 0.001},{south + 0.001},{east - 0.001},{north - 0.001}"
    hits = daskembed.search(str(table), like_row=url_of(7), region=region, center=False, k=20)
    assert sorted(hits["source_url"]) == [url_of(number) for number in range(300, 305)]
    apart = daskembed.search(str(table), like=middle(7), center=False, k=10, apart=3000)
    middles = apart.geometry.to_crs(32633).centroid
    between = np.array([middles.distance(one) for one in middles])
    assert between[~np.eye(len(between), dtype=bool)].min() > 2990
    assert len(daskembed.search(str(table), like=middle(7), center=False, dates="2022-01-01/2022-12-31", k=3)) == 3


def test_as_many_hits_as_there_are(table: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    """However few of the first candidates can be hits."""
    file = write_rows(
        tmp_path / "rows.parquet", vectors, footprints=squares(COUNT, across=100, side=0.01), made=MADE, covering=True
    )
    # A triangle, whose box has thirteen times as many rows.
    region = tmp_path / "region.geojson"
    gpd.GeoSeries([shapely.Polygon([(12.0, 45.0), (12.99, 45.0), (12.99, 44.85)])], crs="OGC:CRS84").to_file(region)
    for asked in ({"apart": 9000, "k": 70}, {"region": str(region), "k": 900}, {"k": COUNT}):
        exact = daskembed.search(str(file), like=middle(7), center=False, **asked)
        hits = daskembed.search(str(table), like=middle(7), center=False, **asked)
        assert len(exact) > 40
        assert list(hits["source_url"]) == list(exact["source_url"])
        assert hits.attrs["search"]["index"] is False  # for all rows were compared
    assert len(daskembed.search(str(table), like=middle(7), center=False, k=10, apart=9000)) == 10


def test_that_it_is_approximate_is_said(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lon, lat = middle(7)
    assert main(["search", str(table), "--like", f"{lon},{lat}", "-k", "5", "--no-center"]) == 0
    told = capsys.readouterr().out
    assert "approximate: the table's index chose 60 candidates" in told
    assert "some of the best may be missed" in told


def test_rows_without_numbers(vectors: np.ndarray, tmp_path: Path) -> None:
    found = vectors[:600].copy()
    found[[7, 30]] = np.nan
    table = str(made_table(tmp_path / "embeddings.lance", found))
    with pytest.raises(InputError, match="vectors there have NaN or infinity: nothing can be like them"):
        daskembed.search(table, like=middle(7), center=False)
    # Of several the others count, as in files.
    both = shapely.union_all([squares(8, across=100, side=0.01)[one].buffer(-0.001) for one in (6, 7)])
    hits = daskembed.search(table, like=both, center=False, k=600)
    alone = daskembed.search(table, like=middle(6), center=False, k=600)
    assert list(hits["score"]) == list(alone["score"])
    assert len(hits) == 597
    assert hits.attrs["search"]["left_out"] is None


def test_what_it_cannot_tell(table: Path, tmp_path: Path) -> None:
    for asked, message in (
        ({}, "index of cosines of whole vectors: give `center=False`"),
        ({"metric": "l2", "center": False}, "and `metric='cosine'`"),
        ({"like": "60,45", "center": False}, r"the nearest is [\d,.]+ km away"),
        ({"like": None, "like_row": "s3://x", "center": False}, "they look like s3://chips/33TUL/chip_000000.tif"),
        (
            {"like": None, "like_row": "chip_000007#patch=0,0", "center": False},
            f"{url_of(7)}#patch=0,0: these files have one vector a row and no patches: give {url_of(7)}",
        ),
        ({"like": None, "center": False}, "give `like` or `like_row`"),
    ):
        with pytest.raises(InputError, match=message):
            daskembed.search(str(table), **({"like": middle(7)} | asked))
    with pytest.raises(InputError, match="cannot be opened as a Lance table"):
        daskembed.search(str(tmp_path / "none.lance"), like="12,45", center=False)
