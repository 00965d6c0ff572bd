"""Every point at which an operation waits, one after the other: to cancel it there, or to kill its process."""

import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from moorage._lib.inbox import Inboxes

Result = TypeVar("Result")


@dataclass
class Awaits:
    """Counts the points at which something waits, and acts at one of them (counted from 0)."""

    at: int
    act: Callable[[], object]
    begins: Callable[[], object] = lambda: True
    """Points are counted while this is true."""
    seen: int = 0
    reached: bool = False

    def __call__(self) -> None:
        if not self.begins():
            return
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


@contextmanager
def drive_inboxes(on_wait: Callable[[], None]) -> Iterator[None]:
    """Drive whatever inboxes do, which is where exits are handled, inside the block."""
    work = Inboxes._work

    async def driven(self: Inboxes[Any], key: Any) -> None:
        await drive(work(self, key), on_wait)

    Inboxes._work = driven  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        Inboxes._work = work  # type: ignore[method-assign]
