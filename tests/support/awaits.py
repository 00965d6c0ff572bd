"""Every point at which an operation waits, one after the other: to cancel it there, or to kill its process."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass
class Awaits:
    """Counts the points at which something waits, and acts at one of them (counted from 0)."""

    at: int
    act: Callable[[], object]
    seen: int = 0
    reached: bool = False

    def __call__(self) -> None:
        if self.seen == self.at:
            self.reached = True
            self.act()
        self.seen += 1


async def drive(coroutine: Coroutine[Any, Any, Result], on_wait: Callable[[], None]) -> Result:
    """The coroutine's result; ``on_wait`` is called each time that it is about to wait."""
    return await _drive(coroutine, on_wait)


@types.coroutine
def _drive(coroutine: Coroutine[Any, Any, Result], on_wait: Callable[[], None]) -> Generator[Any, Any, Result]:
    try:
        waits_for = coroutine.send(None)
        while True:
            on_wait()
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - handed on: it is the coroutine's
                waits_for = coroutine.throw(error)
            else:
                waits_for = coroutine.send(value)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def drive_tasks(name: str, on_wait: Callable[[], None]) -> None:
    """Drive every coroutine of this qualified name that becomes a task of the running loop from now on."""

    def make(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result], **more: Any
    ) -> asyncio.Task[Result]:
        driven = drive(coroutine, on_wait) if getattr(coroutine, "__qualname__", "") == name else coroutine
        return asyncio.Task(driven, loop=loop, **more)

    asyncio.get_running_loop().set_task_factory(make)  # type: ignore[arg-type]  # the stub wants any awaitable
