"""What a run says when it is interrupted."""

from __future__ import annotations

from daskembed.runs import stages
from daskembed.runs import window as flow


def test_a_farewell_says_what_another_interrupt_does() -> None:
    job = flow._Job("33TUL", 0, "now", None, [])
    block = stages.Block(0, "part", (), b"", None)
    tasks = [flow._Task(job, "embed", block), flow._Task(job, "embed", block)]
    given_up = "interrupted: 2 unfinished blocks given up, finished ones are kept; "
    assert flow._farewell(tasks) == (
        f"{given_up}no tile waits to be published; a cluster of this run is closed, and two more Ctrl-C do not wait "
        "for it"
    )
    waits = "waiting until 1 tile is published, which a second Ctrl-C drops"
    assert flow._farewell([*tasks, flow._Task(job, "publish")]) == given_up + waits
