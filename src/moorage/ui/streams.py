"""StreamReader of the engine in the event loop: the synchronous client reads them in threads of their own."""

import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.client import MoorageClient

__all__ = ("Batch", "Followed", "StreamReader")

Item = TypeVar("Item")

_BATCH_SECONDS = 0.1  # between two batches: what comes meanwhile is sent together


class Batch(Generic[Item]):
    """What came since the last batch."""

    def __init__(self, items: Sequence[Item], dropped: int) -> None:
        self.items = items
        self.dropped = dropped
        """How many came before these and were dropped, because the reader was too slow."""


class Followed(Generic[Item]):
    """What a stream yields, between its thread and the task that reads it; the oldest are dropped if it is too slow."""

    def __init__(self, most: int) -> None:
        self._items: deque[Item] = deque()
        self._most = most
        self._dropped = 0
        self._lock = threading.Lock()
        self._some = anyio.Event()
        self._is_over = False
        self._failure: errors.MoorageError | None = None

    def put(self, item: Item) -> None:
        """Add one, from the thread."""
        with self._lock:
            is_first = not self._items
            if len(self._items) >= self._most:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
        if is_first:
            anyio.from_thread.run_sync(self.wake)

    def wake(self) -> None:
        """Let the reader see what there is."""
        self._some.set()

    def end(self, failure: errors.MoorageError | None = None) -> None:
        """Nothing more comes."""
        self._is_over, self._failure = True, failure
        self.wake()

    async def batches(self, beat: float = math.inf) -> AsyncIterator[Batch[Item]]:
        """What comes, until the stream ends; after ``beat`` seconds without anything, an empty batch.

        Raises:
            errors.MoorageError: by kind, what the engine reports, or Unavailable where it exits
        """
        while True:
            with anyio.move_on_after(beat) as silence:
                await self._some.wait()
            self._some = anyio.Event()
            with self._lock:
                batch = Batch(list(self._items), self._dropped)
                self._items.clear()
                self._dropped = 0
            if batch.items or silence.cancelled_caught:
                yield batch
            if self._is_over:
                break
            await anyio.sleep(_BATCH_SECONDS)
        if self._failure is not None:
            raise self._failure


class StreamReader:
    """StreamReader of one engine, at most so many at the same time."""

    def __init__(self, host: str, most: int) -> None:
        self._host = host
        self._most = most
        self._limiter = anyio.CapacityLimiter(most)

    @asynccontextmanager
    async def follow(
        self, call: Callable[[MoorageClient], Iterator[Item]], buffered: int
    ) -> AsyncIterator[Followed[Item]]:
        """What a call yields, until the end of the block; at most ``buffered`` wait for their reader.

        Raises:
            errors.Conflict: there are too many streams already
        """
        if self._limiter.available_tokens < 1:
            raise errors.Conflict(f"cannot follow the engine: {self._most} streams are open; close another page")
        client = MoorageClient(self._host)
        followed: Followed[Item] = Followed(buffered)

        def read() -> None:
            for item in call(client):
                followed.put(item)

        async def run() -> None:
            try:
                await anyio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)
            except errors.MoorageError as error:
                followed.end(error)
            else:
                followed.end()

        async with background_tasks() as tasks:
            tasks.start_soon(run)
            try:
                yield followed
            finally:
                client.abort()
