"""One row a place and date where tiles overlap, by where the rows are and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from daskembed.exports.rows import Exported, Squares, TileRows
from daskembed.exports.unique import Box, TilePlaces, neighbours, places_of, stays
from daskembed.geo.footprints import bounding_box, to_lonlat
from daskembed.geo.mgrs import tile_corner

SIDE = 5120.0
DAY = "2020-06-01"


def tile(
    name: str, cells: Sequence[tuple[int, int]] | None = None, grid: tuple[int, int] = (1, 1), **more: object
) -> TilePlaces:
    """Chips of a whole tile, or those at some rows and columns."""
    epsg, west, north = tile_corner(name)
    row, col = np.divmod(np.arange(441), 21) if cells is None else np.array(cells, int).reshape(-1, 2).T
    bounds = np.stack([west + col * SIDE, north - (row + 1) * SIDE, west + (col + 1) * SIDE, north - row * SIDE], 1)
    days = more.get("days", np.full(len(row), np.datetime64(DAY)))
    return TilePlaces(name, days, Squares(np.full(len(row), epsg, np.int32), bounds), grid, more.get("wanted"))  # type: ignore[arg-type]


def areas_of(tiles: Mapping[str, TilePlaces]) -> dict[str, Box]:
    return {
        name: bounding_box(to_lonlat(int(one.squares.epsg[0]), one.squares.bounds)[2]) for name, one in tiles.items()
    }


def decide(*tiles: TilePlaces) -> dict[str, np.ndarray]:
    """Which rows of each tile stay."""
    named = {one.tile: one for one in tiles}
    areas = areas_of(named)
    near = {name: {other: areas[other] for other in others} for name, others in neighbours(areas).items()}
    return {name: stays(name, near[name], named.__getitem__) for name in named}


def every(one: TilePlaces) -> np.ndarray:
    return one.points_of(np.arange(len(one)), (0.001, 0.5, 0.999)).reshape(-1, 2)


def held(tiles: Sequence[TilePlaces], kept: Mapping[str, np.ndarray], lonlat: np.ndarray, day: str = DAY) -> np.ndarray:
    """How many rows that stay each of some places is in."""
    count = np.zeros(len(lonlat), int)
    for one in tiles:
        places, rows = one.holding(lonlat, np.full(len(lonlat), np.datetime64(day)))
        np.add.at(count, places[kept[one.tile][rows]], 1)
    return count


BESIDE = {
    "in a zone": ("33TUL", "33TVL", "33TUK", "33TVK"),
    "of two zones": ("32TQR", "33TUL", "32TQQ", "33TUK", "32TPR"),
    "at 180 degrees": ("60WWT", "60WXT", "01WCN", "01WCM"),
    "at the equator": ("33NUA", "33MUV", "33NVA", "33MVV"),
}


@pytest.mark.parametrize("names", BESIDE.values(), ids=list(BESIDE))
def test_each_place_of_whole_tiles_has_a_row_and_seldom_two(names: tuple[str, ...]) -> None:
    tiles = [tile(name) for name in names]
    kept = decide(*tiles)
    everything = {one.tile: np.ones(len(one), bool) for one in tiles}
    # The middles of sixteenths of all chips.
    quarters = [TilePlaces(one.tile, one.days, one.squares, (4, 4)) for one in tiles]
    places = np.concatenate([one.points_of(np.arange(len(one)), [0.5])[:, 0] for one in quarters])
    before, after = held(tiles, everything, places), held(tiles, kept, places)
    assert before.min() >= 1
    assert after.min() >= 1
    # Along the borders of squares chips of both sides reach over.
    assert (before > 1).mean() > 0.1
    assert (after > 1).mean() < 0.4 * (before > 1).mean()


@pytest.mark.parametrize("names", BESIDE.values(), ids=list(BESIDE))
def test_of_patches_fewer_are_on_both_sides_of_a_border(names: tuple[str, ...]) -> None:
    tiles = [tile(name, grid=(4, 4)) for name in names]
    kept = decide(*tiles)
    places = np.concatenate([one.points_of(np.arange(len(one)), [0.5])[:, 0] for one in tiles])
    count = held(tiles, kept, places)
    assert count.min() >= 1
    assert (count > 1).mean() < 0.03


def test_a_row_in_its_own_square_stays_and_another_leaves_for_it() -> None:
    # Column 20 of 33TUL is at 102.4 to 107.5 km of its square: the first two of 33TVL.
    left, right = tile("33TUL", [(5, 19), (5, 20)]), tile("33TVL", [(5, 0), (5, 1)])
    kept = decide(left, right)
    assert kept["33TUL"].tolist() == [True, False]
    assert kept["33TVL"].tolist() == [True, True]


def test_a_row_stays_where_the_tile_of_the_place_has_none() -> None:
    kept = decide(tile("33TUL", [(5, 20)]), tile("33TVL", [(9, 9)]))
    assert kept["33TUL"].tolist() == [True]


def test_a_row_stays_where_the_other_is_of_another_date() -> None:
    later = np.array(["2020-06-02"] * 2, "datetime64[D]")
    kept = decide(tile("33TUL", [(5, 20)]), tile("33TVL", [(5, 0), (5, 1)], days=later))
    assert kept["33TUL"].tolist() == [True]


def test_a_row_stays_where_the_other_is_not_in_the_export() -> None:
    kept = decide(tile("33TUL", [(5, 20)]), tile("33TVL", [(5, 0), (5, 1)], wanted=np.zeros(2, bool)))
    assert kept["33TUL"].tolist() == [True]


def test_where_both_are_elsewhere_the_first_in_the_alphabet_stays() -> None:
    # South of both squares, in the overlap of the two: 33TUK and 33TVK are not there.
    left, right = tile("33TUL", [(20, 19), (20, 20)]), tile("33TVL", [(20, 0), (20, 1)])
    assert not left.at_home(np.arange(2)).any()
    assert not right.at_home(np.arange(2)).any()
    kept = decide(left, right)
    assert kept["33TUL"].tolist() == [True, True]
    # The second reaches beyond them.
    assert kept["33TVL"].tolist() == [False, True]


def test_a_row_does_not_leave_for_one_that_leaves_itself() -> None:
    """Between the points that are looked at there may be a gap, which only the row that left has filled."""
    epsg, west, north = tile_corner("33TUL")

    def at(name: str, *shifts: tuple[float, float]) -> TilePlaces:
        # Far south of all squares; shifts in sides, eastwards and southwards.
        corners = [(west + x * SIDE, north - 150_000 - y * SIDE) for x, y in shifts]
        bounds = np.array([[x, y - SIDE, x + SIDE, y] for x, y in corners])
        squares = Squares(np.full(len(bounds), epsg, np.int32), bounds)
        return TilePlaces(name, np.full(len(bounds), np.datetime64(DAY)), squares)

    first = at("33TUL", *((x, y) for x in (-0.8, 0.3) for y in (-0.5, 0.5)))
    # All nine points of it are in the first tile's, and none is between 0.2 and 0.3 of its width.
    second = at("33TUM", (0, 0))
    # This one's western points are there, and the others in rows of the first tile.
    third = at("33TVL", (0.25, 0))
    assert [bool(one[0]) for one in list(decide(first, second, third).values())[1:]] == [False, True]


cells = st.lists(st.tuples(st.integers(16, 20), st.sampled_from([0, 1, 17, 18, 19, 20])), max_size=12, unique=True)
corner = st.fixed_dictionaries(dict.fromkeys(("32TQR", "32TQQ", "33TUL", "33TVL", "33TUK", "33TVK"), cells))


@settings(max_examples=25)
@given(corner, st.sampled_from([(1, 1), (2, 2)]), st.randoms())
def test_whatever_rows_there_are(
    chosen: dict[str, list[tuple[int, int]]], grid: tuple[int, int], shuffle: object
) -> None:
    """No place is lost, no order matters, and the rule has done all it does at once."""
    tiles = [tile(name, where, grid) for name, where in chosen.items() if where]
    kept = decide(*tiles)
    shuffle.shuffle(tiles)  # type: ignore[attr-defined]
    again = decide(*tiles)
    for name, mask in kept.items():
        np.testing.assert_array_equal(again[name], mask)
    if tiles:
        assert held(tiles, kept, np.concatenate([every(one) for one in tiles])).min() >= 1
    left = [TilePlaces(one.tile, one.days, one.squares, grid, kept[one.tile]) for one in tiles]
    for name, mask in decide(*left).items():
        assert mask[kept[name]].all()


def test_neighbours_are_those_near_by_also_across_180_degrees() -> None:
    names = ("60WWT", "60WXT", "01WCN", "01WDN", "33TUL", "33TVL", "33TXL", "32TQR")
    areas = areas_of({name: tile(name) for name in names})
    found = neighbours(areas)
    assert found["60WXT"] == ["01WCN", "01WDN", "60WWT", "60WXT"]
    assert found["33TUL"] == ["32TQR", "33TUL", "33TVL"]
    assert neighbours({"33TUL": (-180, -90, 180, 90)}) == {"33TUL": ["33TUL"]}


def test_places_are_those_of_a_published_table() -> None:
    one = tile("33TUL", [(0, 0), (0, 1)])
    table = pa.table(
        {
            "source_url": ["a", "b"],
            "date": pa.array([date(2020, 6, 1)] * 2, pa.date32()),
            "geometry": pa.array(shapely.to_wkb(to_lonlat(32633, one.squares.bounds)[2]), pa.binary()),
        }
    )
    found = places_of(Exported(table, TileRows("33TUL", (4, 4)), "patch"))
    assert (found.tile, found.grid, len(found)) == ("33TUL", (4, 4), 32)
    np.testing.assert_allclose(found.squares.bounds, one.squares.bounds, atol=1e-3)
    np.testing.assert_array_equal(found.days, one.days)
    assert places_of(Exported(table, TileRows("33TUL", (4, 4)), "chip")).grid == (1, 1)
    # The first patch's middle.
    middle = found.points_of(np.array([0]), [0.5])[0, 0]
    back = pyproj.Transformer.from_crs("OGC:CRS84", 32633, always_xy=True).transform(*middle)
    west, _, _, north = one.squares.bounds[0]
    np.testing.assert_allclose(back, [west + 640, north - 640], atol=1e-3)
