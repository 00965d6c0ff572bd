"""Per-key locks that coalesce duplicate work: a task that waited for a lock finds the work done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio

__all__ = ("KeyedLocks",)

Key = TypeVar("Key")


class KeyedLocks(Generic[Key]):
    """Locks that exist only while a task has or awaits them, so unused keys cost nothing."""

    def __init__(self) -> None:
        self._locks: dict[Key, anyio.Lock] = {}
        self._users: dict[Key, int] = {}

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[None]:
        """Lock a key for the block. Waiting for it may be cancelled."""
        lock = self._locks.setdefault(key, anyio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]

    def is_awaited(self, key: Key) -> bool:
        """Whether a task waits for a key that is locked."""
        return self._users.get(key, 0) > 1
