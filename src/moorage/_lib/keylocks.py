"""One lock a key, for things that many do and each needs done once: whoever waits finds it done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio

__all__ = ("KeyedLocks",)

Key = TypeVar("Key")


class KeyedLocks(Generic[Key]):
    """Locks that are there while somebody holds or awaits them, so keys that are not used cost nothing."""

    def __init__(self) -> None:
        self._locks: dict[Key, anyio.Lock] = {}
        self._users: dict[Key, int] = {}

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """Nobody else holds this key inside the block. Waiting may be cancelled."""
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
        """Whether somebody waits for a key that is held."""
        return self._users.get(key, 0) > 1
