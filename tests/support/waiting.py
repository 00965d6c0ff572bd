"""Waiting in tests: for a condition, never for a time."""

import inspect
from collections.abc import Awaitable, Callable

import anyio

PATIENCE_SECONDS = 40.0
"""Longer than anything here takes; only a fault runs into it."""

_LOOK_AGAIN_SECONDS = 0.002, 0.025
"""First pause between two looks, and the longest: many look at all of /proc, and share the processors with what they
wait for.
"""


async def eventually(condition: Callable[[], Awaitable[object] | object], within: float = PATIENCE_SECONDS) -> None:
    """Return as soon as the condition holds. Raises: AssertionError that names it when it does not in time."""
    try:
        pause, longest = _LOOK_AGAIN_SECONDS
        with anyio.fail_after(within):
            while True:
                holds = condition()
                if inspect.isawaitable(holds):
                    holds = await holds
                if holds:
                    return
                await anyio.sleep(pause)
                pause = min(1.5 * pause, longest)
    except TimeoutError:
        raise AssertionError(f"does not come true within {within:g} s: {inspect.getsource(condition)}") from None


async def settled() -> None:
    """Return when every task of this loop waits for something: then what was to follow has followed."""
    await anyio.wait_all_tasks_blocked()
