"""A loop whose clock jumps to the next timer when nothing else is to be done: hours pass in milliseconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: what it was to wait for is added to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everybody waits for something that never comes")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """No threads and no other processes: nothing else could make anything ready."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(function: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any) -> Result:
    """Run this on such a loop."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": VirtualLoop})
