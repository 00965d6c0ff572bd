"""What happened to plugins, for whoever listens, and the newest of it for whoever asks later."""

import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio

from moorage.engine.values import Happened

__all__ = ("EventLog",)

_KEPT = 256
_BEHIND = 1024
"""A listener that is this many events behind is let go: it must not hold the memory of all that happened."""


class EventLog:
    """The events of one engine. They are gone with it."""

    def __init__(self) -> None:
        self._kept: deque[Happened] = deque(maxlen=_KEPT)
        self._listeners: set[_Listener] = set()

    @property
    def listeners(self) -> int:
        """How many receive events now."""
        return len(self._listeners)

    def tell(self, action: str, id: str, name: str, **attributes: str) -> None:
        """Note an event and wake the listeners. Never waits."""
        nanoseconds = time.time_ns()
        whole, rest = divmod(nanoseconds, 10**9)
        at = datetime.fromtimestamp(whole, UTC) + timedelta(microseconds=rest // 1000)
        happened = Happened(action, id, name, at, attributes, nanoseconds)
        self._kept.append(happened)
        for listener in list(self._listeners):
            listener.put(happened)

    @asynccontextmanager
    async def listen(self, since: int | None, until: int | None = None) -> AsyncIterator[AsyncIterator[Happened]]:
        """Events from now on; before them, where one of both is given, the buffered ones from ``since``; to ``until``.

        Both are nanoseconds since 1970. Source: moby daemon/events/events.go, loadBufferedEvents.
        """
        buffered = [] if since is None and until is None else self._kept
        listener = _Listener([each for each in buffered if each.nanoseconds >= (since or 0)], until)
        self._listeners.add(listener)
        try:
            yield listener.events()
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self, waiting: list[Happened], until: int | None) -> None:
        self._waiting = deque(waiting)
        self._until = until
        self._more = anyio.Event()
        self._lost = False

    def put(self, happened: Happened) -> None:
        if len(self._waiting) >= _BEHIND:
            self._lost = True
        else:
            self._waiting.append(happened)
        self._more.set()

    async def events(self) -> AsyncIterator[Happened]:
        while True:
            while self._waiting:
                happened = self._waiting.popleft()
                if self._until is not None and happened.nanoseconds > self._until:
                    return
                yield happened
            left = math.inf if self._until is None else (self._until - time.time_ns()) / 10**9
            if self._lost or left <= 0:
                return
            self._more = anyio.Event()
            with anyio.move_on_after(left):
                await self._more.wait()
