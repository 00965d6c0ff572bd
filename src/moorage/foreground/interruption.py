"""Signals that stop ``moorage run``: the first one stops the plugin, each further one kills it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from moorage._lib.stop_signals import termination_signals
from moorage._lib.task_groups import background_tasks

__all__ = ("Interruption", "interruptible")


class Interruption:
    """The signals that were received, and the scope that the first one cancels."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.signals: list[int] = []
        self._scope = scope

    def cancel(self) -> None:
        """Cancel the innermost block."""
        self._scope.cancel()

    @asynccontextmanager
    async def inner_block(self) -> AsyncIterator[None]:
        """Within this block only the block is cancelled: what it runs on must live until it has cleaned up.

        After a signal that came before, the block is not entered.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()  # a worker thread that was waited for does not notice a signal
        outer = self._scope
        with anyio.CancelScope() as self._scope:
            try:
                yield
            finally:
                self._scope = outer

    @property
    def exit_status(self) -> int:
        """What a shell expects of a command that the first signal terminated; 0 without a signal."""
        return 128 + self.signals[0] if self.signals else 0


@asynccontextmanager
async def interruptible(first: Callable[[], None], further: Callable[[], None]) -> AsyncIterator[Interruption]:
    """The first signal that terminates calls ``first`` and cancels the block; each further one calls ``further``."""

    async def receive(interruption: Interruption, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*termination_signals()) as received:
            task_status.started()
            async for number in received:
                (further if interruption.signals else first)()
                interruption.signals.append(number)
                interruption.cancel()

    async with background_tasks() as tasks:
        with anyio.CancelScope() as scope:
            interruption = Interruption(scope)
            await tasks.start(receive, interruption)
            yield interruption
