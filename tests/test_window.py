"""What a run says when it is interrupted."""

from __future__ import annotations

from typing import Any

from daskembed.runs.window import _farewell
from daskembed.runs.work import Following, Observer, Task, Tile


class Nowhere(Tile):
    def record_failure(self, reason: str) -> None: ...


class Block(Task[None]):
    stage = "embed"
    number = 0

    def call(self) -> Any: ...

    def then(self, found: None, observer: Observer) -> Following: ...


class Last(Block):
    stage = "publish"
    number = None
    publishes = True


TILE = Nowhere("33TUL", 0, "now")


def test_a_farewell_says_what_another_interrupt_does() -> None:
    tasks = [Block(TILE), Block(TILE)]
    given_up = "interrupted: 2 unfinished blocks given up, finished ones are kept; "
    assert _farewell(tasks, "block") == (
        f"{given_up}no tile waits to be published; a cluster of this run is closed, and two more Ctrl-C do not wait "
        "for it"
    )
    waits = "waiting until 1 tile is published, which a second Ctrl-C drops"
    assert _farewell([*tasks, Last(TILE)], "block") == given_up + waits
