"""How the process of a plugin is terminated: SIGTERM, SIGKILL after a timeout, and no success before it has exited."""

import logging
import signal as signals
from collections.abc import Awaitable, Callable

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.timeouts import RunTimeouts

__all__ = ("SendSignal", "terminate")

log = logging.getLogger(__name__)

SendSignal = Callable[[int], Awaitable[None]]
"""Sends a signal to the process.

Raises: NotFound for a process that has exited.
Raises: Unavailable while containerd is unavailable.
"""


async def terminate(
    send: SendSignal,
    exited: anyio.Event,
    timeouts: RunTimeouts,
    *,
    stop_timeout: float,
    kill_now: anyio.Event | None = None,
) -> bool:
    """SIGTERM, then SIGKILL after ``stop_timeout`` seconds or when ``kill_now`` is set; whether the process exited.

    ``exited`` is set when the executor has reported the exit. A stop timeout of 0 sends SIGKILL at once. A signal that
    cannot be sent is sent again until its time is over.
    """
    steps = ((signals.SIGTERM, stop_timeout, kill_now), (signals.SIGKILL, timeouts.killed, None))
    for number, timeout, cut_off in steps:
        if not exited.is_set() and timeout > 0 and not (cut_off is not None and cut_off.is_set()):
            with anyio.move_on_after(timeout):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_send_until_sent, send, number, timeouts)
                    if cut_off is not None:
                        tasks.start_soon(_cancel_when_set, cut_off, tasks.cancel_scope)
                    await exited.wait()
                    tasks.cancel_scope.cancel()
    return exited.is_set()


async def _cancel_when_set(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _send_until_sent(send: SendSignal, number: int, timeouts: RunTimeouts) -> None:
    for pause in pauses(timeouts.reconnect_first, timeouts.reconnect_limit):
        try:
            await send(number)
        except errors.NotFound:
            return  # it has just exited, which ``exited`` will report
        except errors.MoorageError as error:
            log.debug("cannot send signal %d: %s", number, error)
            await anyio.sleep(pause)  # containerd is being started again
        else:
            return
