"""Signals to `moorage run`: what they cancel, whenever they come."""

import signal

import anyio
import anyio.lowlevel
import pytest

from moorage.foreground.interruption import interruptible
from support.conditions import eventually

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


def ignore() -> None:
    """Nothing more happens for a signal."""


async def test_i14_a_signal_that_comes_while_a_thread_is_waited_for_keeps_the_inner_block_from_beginning() -> None:
    entered = False
    async with interruptible(ignore, ignore) as interruption:
        with anyio.CancelScope(shield=True):  # as a worker thread that is waited for
            signal.raise_signal(signal.SIGINT)
            await eventually(lambda: interruption.signals)
        async with interruption.inner_block():
            entered = True
    assert not entered
    assert interruption.exit_status == 128 + signal.SIGINT


async def test_i14_a_signal_within_the_inner_block_cancels_only_that() -> None:
    went_on = False
    async with interruptible(ignore, ignore) as interruption:
        async with interruption.inner_block():
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        went_on = True
    assert went_on
    assert interruption.exit_status == 128 + signal.SIGTERM


async def test_m04_each_further_signal_is_reported() -> None:
    calls: list[str] = []
    async with interruptible(lambda: calls.append("first"), lambda: calls.append("further")) as interruption:
        with anyio.CancelScope(shield=True):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
                await eventually(lambda: interruption.signals[-1:] == [number])  # noqa: B023 - waited for here
    assert calls == ["first", "further", "further"]
    assert interruption.exit_status == 128 + signal.SIGINT
