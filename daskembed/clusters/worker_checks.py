"""Workers prove that they can do the work: a sick one that is there is refused, one that joins later leaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from daskembed.errors import InputError
from daskembed.health import complaint

if TYPE_CHECKING:
    from distributed import Client, Worker

SICK = "daskembed-sick"
"""Topic of what workers say that join and cannot do the work."""
RESTART_TIMEOUT = 60
"""Seconds to wait for a worker that is started anew."""
TRIES = 10
"""How often workers are asked of which none answers."""


class _Proof(WorkerPlugin):  # type: ignore[misc]
    """Has each worker that joins prove itself; one that cannot do the work says so and leaves."""

    name = "daskembed-proof"
    idempotent = True

    async def setup(self, worker: Worker) -> None:
        if (said := await asyncio.to_thread(complaint)) is not None:
            worker.log_event(SICK, {"worker": worker.address, "reason": said})
            # Not before it has joined: what it said goes out then.
            worker.loop.call_later(1, worker.close, nanny=True, reason="daskembed: it cannot do the work")


def prove_workers(client: Client) -> bool:
    """Have this process, all workers and those that join later prove that they can do their work.

    Returns
    -------
    bool
        Whether any worker answered: one that dies at this moment does not.

    Raises
    ------
    InputError
        If this process or a worker that is there cannot; names which, and why.
    """
    if (said := complaint(embeds=False)) is not None:
        raise InputError(f"this machine cannot do the work: {said}")
    found = client.run(complaint, on_error="return")
    answers = {worker: one for worker, one in found.items() if not isinstance(one, OSError)}
    if sick := {worker: one for worker, one in answers.items() if one is not None}:
        told = "; ".join(f"{worker}: {one}" for worker, one in list(sick.items())[:3])
        more = f"; and {len(sick) - 3} more" if len(sick) > 3 else ""
        raise InputError(f"workers of the cluster cannot do the work: {told}{more}; mend them or leave them out")
    with contextlib.suppress(OSError):  # of a worker that dies at this moment
        client.register_plugin(_Proof())
    return bool(answers)


def restart_sick(client: Client) -> dict[str, str]:
    """Have workers that cannot do the work any more start anew; those that nobody starts leave.

    Returns
    -------
    dict
        Address -> what they cannot do.
    """
    found = client.run(complaint, on_error="return")
    sick = {worker: str(one) for worker, one in found.items() if one is not None and not isinstance(one, OSError)}
    if sick:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):  # of one that is gone already
            try:
                client.restart_workers(list(sick), timeout=RESTART_TIMEOUT, raise_for_error=False)
            except ValueError:  # it has no nanny
                client.retire_workers(list(sick), close_workers=True, remove=True)
    return sick
