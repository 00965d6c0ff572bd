"""Signals that ask a program to stop: the first one starts the shutdown, further ones never cut it off."""

import logging
import signal as signals
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import anyio
from anyio.abc import TaskStatus

from moorage._lib.task_groups import background_tasks

__all__ = (
    "FAULTS",
    "TERMINATING",
    "StopSignals",
    "signal_name",
    "stop_signals",
    "termination_signals",
)

log = logging.getLogger(__name__)

TERMINATING = (
    signals.SIGINT,
    signals.SIGTERM,
    signals.SIGHUP,
    signals.SIGQUIT,
    signals.SIGUSR1,
    signals.SIGUSR2,
    signals.SIGALRM,
    signals.SIGVTALRM,
    signals.SIGPROF,
    signals.SIGIO,
    signals.SIGPWR,
    signals.SIGSTKFLT,
    signals.SIGXCPU,
    *range(signals.SIGRTMIN, signals.SIGRTMAX + 1),
)
"""Every signal that ends a program by default and that it can answer by shutting down. SIGKILL cannot be received;
SIGPIPE and SIGXFSZ are ignored by Python, which raises OSError instead. Source: signal(7)."""

FAULTS = (
    signals.SIGILL,
    signals.SIGTRAP,
    signals.SIGABRT,
    signals.SIGBUS,
    signals.SIGFPE,
    signals.SIGSEGV,
    signals.SIGSYS,
)
"""Signals that report a fault of the program itself, or (SIGABRT) that it hangs: it is killed by them at once."""

_URGENT_COUNT, _URGENT_WITHIN = 3, 10.0  # the third signal within so many seconds of the first


class StopSignals:
    """The signals that came."""

    def __init__(self, purpose: str) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled by the first signal; to be entered by what serves, not by what shuts down."""
        self.urgent = anyio.Event()
        """Set by the third signal within ten seconds of the first: the shutdown stops waiting for plugins."""
        self._purpose = purpose
        self._count = 0
        self._first_at = 0.0

    def receive(self, number: int) -> None:
        """Take a signal into account."""
        self._count += 1
        name, now = signal_name(number), anyio.current_time()
        if self._count == 1:
            self._first_at = now
            log.info("got %s, %s", name, self._purpose)
            self.scope.cancel()
        elif self._count >= _URGENT_COUNT and now - self._first_at <= _URGENT_WITHIN and not self.urgent.is_set():
            log.warning("got %s, signal %d: the shutdown continues without waiting for plugins", name, self._count)
            self.urgent.set()
        else:
            log.info("got %s, signal %d: the shutdown continues", name, self._count)


def termination_signals() -> tuple[signals.Signals, ...]:
    """The ``TERMINATING`` signals, without SIGHUP where the program was started with that ignored (nohup)."""
    has_nohup = signals.getsignal(signals.SIGHUP) is signals.SIG_IGN
    received = (each for each in TERMINATING if not (has_nohup and each == signals.SIGHUP))
    return tuple(cast(signals.Signals, each) for each in received)  # real-time ones too, which are plain numbers


def signal_name(number: int) -> str:
    """The name of a signal, as ``kill -l`` has it: SIGTERM, SIGRTMIN+3."""
    try:
        return signals.Signals(number).name
    except ValueError:  # the enumeration has only the first and the last of the real-time signals
        return f"SIGRTMIN+{number - signals.SIGRTMIN}"


@asynccontextmanager
async def stop_signals(purpose: str) -> AsyncIterator[StopSignals]:
    """Receive the ``TERMINATING`` signals within the block; after it they are ignored, as the program is about to exit.

    ``purpose``: what the program does when it has to stop, for the log.
    """
    stop = StopSignals(purpose)

    async def receive(*, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                stop.receive(number)

    numbers = termination_signals()
    try:
        async with background_tasks() as tasks:
            await tasks.start(receive)
            yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in TERMINATING:
                signals.signal(number, signals.SIG_IGN)
