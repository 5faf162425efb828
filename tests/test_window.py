"""What a run says when it is interrupted."""

from __future__ import annotations

from typing import Any

import pytest

from daskembed.errors import TileError
from daskembed.runs.tasks import Following, Observer, Task, Tile
from daskembed.runs.window import Window, _farewell


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


class Here(Task[str]):
    """On the client; says what it did."""

    stage = "publish"
    on_client = True
    fails = False

    def call(self) -> Any:
        def do() -> str:
            if self.fails:
                raise TileError("hopeless")
            return "did"

        return do, ()

    def then(self, found: str, observer: Observer) -> Following:
        observer.say(found)
        return []


class Failing(Here):
    fails = True


class Listener:
    """An observer; has what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, line: str) -> None:
        self.told.append(line)

    def finished(self, result: Any, *_: Any) -> None:
        self.told.append(result.status)


@pytest.mark.parametrize(
    ("tasks", "told"),
    [([Here, Here, Here], ["did"] * 3), ([Here, Failing, Here], ["did", "failed"])],
    ids=["all", "until one fails"],
)
def test_the_client_does_all_tasks_that_are_its_own(tasks: list[type[Here]], told: list[str]) -> None:
    listener: Any = Listener()
    nobody: Any = None
    window = Window(nobody, nobody, [], listener, lambda: None)
    window._at_work.add(TILE.name)
    window._send([task(TILE) for task in tasks])
    assert listener.told == told
