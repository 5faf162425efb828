from __future__ import annotations

import numpy as np
import pytest

from daskembed.errors import TileError
from daskembed.geo.cells import MOST_OFF, Grid, cell_bounds, common_grid, find_overlap, window_bounds

NAMES = ("a", "b", "c")
EPSG = np.full(3, 32633)
CHIPS = np.array([[0.0, 0, 160, 160], [160, 0, 320, 160], [-160, -160, 0, 0]])
"""Of 16 pixels of 10 m."""


def moved(row: int, *by: float) -> np.ndarray:
    bounds = CHIPS.copy()
    bounds[row] += by
    return bounds


@pytest.mark.parametrize("cells", [16, 4])
def test_squares_lie_on_the_grid_of_the_first(cells: int) -> None:
    grid, y, x = common_grid(NAMES, EPSG, CHIPS, (cells, cells), pixels=16, why="why")
    assert grid == Grid(32633, -160, 160, 160 / cells, 160 / cells, 2 * cells, 3 * cells)
    assert (y // cells).tolist() == [0, 0, 1]
    assert (x // cells).tolist() == [1, 2, 0]
    assert grid.bounds.tolist() == [-160, -160, 320, 160]
    np.testing.assert_array_equal(
        cell_bounds(grid.west, grid.north, (grid.step_y, grid.step_x), y, x, (cells, cells)), CHIPS
    )


@pytest.mark.parametrize("cells", [16, 4])
@pytest.mark.parametrize("row", [0, 1])
def test_what_is_off_by_less_than_a_thirty_second_of_a_pixel_is_on_the_grid(cells: int, row: int) -> None:
    near = 10 * MOST_OFF * 0.99
    for by in ((near, near, near, near), (0, -near, 0, -near), (0, 0, near, 0), (0, near, 0, 0)):
        _, y, x = common_grid(NAMES, EPSG, moved(row, *by), (cells, cells), pixels=16, why="why")
        assert ((y // cells).tolist(), (x // cells).tolist()) == ([0, 0, 1], [1, 2, 0])
    far = 10 * MOST_OFF * 1.01
    for by in ((far, 0, far, 0), (0, -far, 0, -far), (0, 0, far, 0), (0, far, 0, 0)):
        with pytest.raises(TileError):
            common_grid(NAMES, EPSG, moved(row, *by), (cells, cells), pixels=16, why="why")


@pytest.mark.parametrize(
    ("changed", "cells", "every", "message"),
    [
        ({"epsg": np.array([32633, 32634, 32633])}, 16, 1, "b is in EPSG:32634, a in EPSG:32633: why"),
        ({"bounds": moved(1, 0, 0, 80, 0)}, 16, 1, "b has pixels of 15 x 10, a of 10 x 10: why"),
        ({"bounds": moved(2, 0, 0, 0, 160)}, 4, 1, "c has cells of 40 x 80, a of 40 x 40: why"),
        (
            {"bounds": moved(1, 5, 0, 5, 0)},
            16,
            1,
            "b lies 16.5 pixels east and 0 south of a, not a whole number: why",
        ),
        ({"bounds": moved(2, 0, 5, 0, 5)}, 4, 1, "c lies -4 cells east and 3.875 south of a, not a whole number: why"),
        (
            {"bounds": moved(1, 10, 0, 10, 0)},
            16,
            16,
            "b lies 17 pixels east and 0 south of a, not multiples of 16: why",
        ),
    ],
)
def test_squares_of_two_grids_are_refused(changed: dict, cells: int, every: int, message: str) -> None:
    given = {"epsg": EPSG, "bounds": CHIPS} | changed
    with pytest.raises(TileError) as refused:
        common_grid(NAMES, given["epsg"], given["bounds"], (cells, cells), pixels=16, every=every, why="why")
    assert str(refused.value) == message


def test_squares_that_overlap_on_a_day_are_found() -> None:
    y, x = np.array([0, 1, 2, 0]), np.array([0, 1, 0, 0])
    assert find_overlap(y, x, (2, 2), np.array([1, 2, 1, 3])) is None
    assert find_overlap(y, x, (2, 2), np.array([1, 1, 1, 3])) == (1, 0)
    assert find_overlap(y, x, (2, 2), np.array([1, 2, 2, 3])) == (2, 1)
    assert find_overlap(y, x, (1, 1), np.array([1, 1, 1, 1])) == (3, 0)


def test_windows_are_row_major_from_the_north_west() -> None:
    found = window_bounds(CHIPS, 2)
    assert found.shape == (3, 4, 4)
    assert found[1].tolist() == [[160, 80, 240, 160], [240, 80, 320, 160], [160, 0, 240, 80], [240, 0, 320, 80]]
    np.testing.assert_array_equal(window_bounds(CHIPS, 1)[:, 0], CHIPS)
