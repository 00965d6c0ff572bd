"""System calls that may block (unlink trees, mount, fsync) go to worker threads, so that they never stop the loop."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

__all__ = ("run_abandonable", "run_blocking")

Result = TypeVar("Result")


async def run_blocking(function: Callable[[], Result]) -> Result:
    """The function's result, from a worker thread. Waits for it even when cancelled: it may be changing files."""
    return await anyio.to_thread.run_sync(function)


async def run_abandonable(function: Callable[[], Result]) -> Result:
    """As ``run_blocking``, for a function that only reads and is bounded itself: a cancelled caller does not wait."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
