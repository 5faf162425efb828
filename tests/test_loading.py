"""Encoders by name, and what a module of one's own need not say."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from daskembed.encoders import clay_v0, clay_v1_5
from daskembed.encoders.description import Place
from daskembed.encoders.loading import ENCODERS, get_encoder_module, load_encoder
from daskembed.errors import InputError


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The least that an encoder's module can be."""
    module: Any = ModuleType("mine")
    module.SIZES = {"small": 2, "large": 3}
    module.parameter_shapes = lambda size: {"a.weight": (module.SIZES[size],), "b.weight": (7,)}
    module.describe = lambda size, sensor=None, window=None: clay_v0.describe("tiny")
    module.build = lambda state, description, device, dtype: None
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def test_every_encoder_of_the_table_has_what_its_module_says() -> None:
    for name, module in zip(ENCODERS, (clay_v0, clay_v1_5), strict=True):
        found = get_encoder_module(name)
        for what, value in vars(found).items():
            assert value is getattr(module, what), what


def test_what_a_module_need_not_say(mine: Any) -> None:
    found = get_encoder_module("mine")
    assert (found.TITLE, found.CHECKPOINT, found.PREFIX) == ("mine", None, "")
    assert (found.IGNORED, dict(found.OTHER_MODELS)) == ((), {})
    assert (
        found.metadata(Place(np.zeros((1, 1)), np.zeros((1, 1)), np.array(["2024-01-01"], "M8[s]"), np.ones(1))) == ()
    )
    assert load_encoder("untrained:large", encoder="mine", precision="fp32").size == "large"
    mine.TITLE, mine.PREFIX = "mine too", "net."
    assert (get_encoder_module("mine").TITLE, get_encoder_module("mine").PREFIX) == ("mine too", "net.")


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ({"a.weight": (3,), "b.weight": (7,)}, "large"),
        ({"a.weight": (2,), "b.weight": (8,)}, "small"),  # which the check then compares with what it has
        ({"c.weight": (1,)}, "small"),
    ],
)
def test_size_by_what_the_checkpoint_has_most_of(mine: Any, shapes: dict[str, tuple[int, ...]], size: str) -> None:
    assert get_encoder_module("mine").size_of(shapes) == size


def test_encoder_without_released_weights(mine: Any) -> None:
    with pytest.raises(InputError) as error:
        load_encoder(encoder="mine")
    assert str(error.value) == "mine has no released checkpoint: give one, or untrained:small to try things out"


def test_module_that_is_no_encoder(mine: Any) -> None:
    del mine.build, mine.SIZES
    with pytest.raises(InputError) as error:
        load_encoder(encoder="mine")
    assert str(error.value) == (
        "the module mine is no encoder: it has no SIZES, build; "
        "examples/add_your_own_encoder.md says what an encoder's module has"
    )
