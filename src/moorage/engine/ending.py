"""How a plugin's process is made to end: asked first, killed after a while, and never taken for ended before it is."""

import logging
import signal as signals
from collections.abc import Awaitable, Callable

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.timeouts import Timeouts

__all__ = ("end_process",)

log = logging.getLogger(__name__)

Send = Callable[[int], Awaitable[None]]
"""Sends a signal. Raises: NotFound for a process that is gone, Unavailable while containerd is away."""


async def end_process(
    send: Send, ended: anyio.Event, timeouts: Timeouts, *, within: float, hurry: anyio.Event | None = None
) -> bool:
    """TERM, then KILL after ``within`` seconds or when ``hurry`` happens; whether the process ended.

    ``ended`` is the executor's word that it did, and that everything of its run is removed.
    """
    for number, patience, cut in ((signals.SIGTERM, within, hurry), (signals.SIGKILL, timeouts.killed, None)):
        if not ended.is_set() and patience > 0 and not (cut is not None and cut.is_set()):
            with anyio.move_on_after(patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_send, send, number, timeouts)
                    if cut is not None:
                        tasks.start_soon(_cancel_when, cut, tasks.cancel_scope)
                    await ended.wait()
                    tasks.cancel_scope.cancel()
    return ended.is_set()


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _send(send: Send, number: int, timeouts: Timeouts) -> None:
    for pause in pauses(timeouts.reconnect_first, timeouts.reconnect_limit):
        try:
            await send(number)
        except errors.NotFound:
            return  # it ended just now; its exit is on the way
        except errors.MoorageError as error:
            log.debug("cannot send signal %d: %s", number, error)
            await anyio.sleep(pause)  # containerd is being started again
        else:
            return
