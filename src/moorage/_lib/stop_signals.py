"""Signals that ask a program to stop: the first one starts the shutdown, further ones never cut it off."""

import logging
import signal as signals
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from moorage._lib.groups import background_tasks

__all__ = ("StopSignals", "stop_signals")

log = logging.getLogger(__name__)

_NUMBERS = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)
_HURRY_AT, _HURRY_WITHIN = 3, 10.0  # the third signal within so many seconds of the first


class StopSignals:
    """The signals that came."""

    def __init__(self, purpose: str) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled by the first signal; to be entered by what serves, not by what shuts down."""
        self.hurry = anyio.Event()
        """Set when whoever sends the signals has no patience any more."""
        self._purpose = purpose
        self._count = 0
        self._first_at = 0.0

    def receive(self, number: int) -> None:
        """Take a signal into account."""
        self._count += 1
        name, now = signals.Signals(number).name, anyio.current_time()
        if self._count == 1:
            self._first_at = now
            log.info("got %s, %s", name, self._purpose)
            self.scope.cancel()
        elif self._count >= _HURRY_AT and now - self._first_at <= _HURRY_WITHIN and not self.hurry.is_set():
            log.warning("got %s, signal %d: the shutdown goes on, and waits no longer for plugins", name, self._count)
            self.hurry.set()
        else:
            log.info("got %s, signal %d: the shutdown goes on", name, self._count)


@asynccontextmanager
async def stop_signals(purpose: str) -> AsyncIterator[StopSignals]:
    """Receive SIGINT, SIGTERM and SIGHUP within the block; after it they are ignored, for the program is at its end.

    ``purpose``: what the program does when it is asked to stop, for the log.
    """
    stop = StopSignals(purpose)

    async def receive(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                stop.receive(number)

    # under nohup a terminal that goes away is nothing to us
    has_nohup = signals.getsignal(signals.SIGHUP) is signals.SIG_IGN
    numbers = [each for each in _NUMBERS if not (has_nohup and each is signals.SIGHUP)]
    try:
        async with background_tasks() as tasks:
            await tasks.start(receive)
            yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                signals.signal(number, signals.SIG_IGN)
