"""Waiting in tests: for a condition, never for a time."""

import inspect
from collections.abc import Awaitable, Callable

import anyio

from support.limits import limit

TIMEOUT_SECONDS = limit(40.0)
"""Longer than anything here takes; only a fault runs into it."""

_POLL_SECONDS = 0.002, 0.025
"""First polling interval, and the longest: many conditions read all of /proc, and share the processors with what they
wait for.
"""


async def eventually(condition: Callable[[], Awaitable[object] | object], within: float = TIMEOUT_SECONDS) -> None:
    """Return as soon as the condition is true. Raises: AssertionError that names it when it is not in time."""
    try:
        began, (pause, longest) = anyio.current_time(), _POLL_SECONDS
        with anyio.fail_after(within):
            while True:
                result = condition()
                if inspect.isawaitable(result):
                    result = await result
                if result:
                    return
                await anyio.sleep(pause)
                pause = min(1.5 * pause, max(longest, (anyio.current_time() - began) / 20))
    except TimeoutError:
        raise AssertionError(f"does not come true within {within:g} s: {inspect.getsource(condition)}") from None


async def settled() -> None:
    """Return when every task of this loop waits for something: then what was to follow has followed."""
    await anyio.wait_all_tasks_blocked()
