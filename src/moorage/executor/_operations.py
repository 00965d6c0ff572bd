"""Operations under way, so that a close can cancel them and wait for their undo, which still needs what is closed."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from moorage import errors


class Operations:
    """What is under way."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._one_ended = anyio.Event()

    @contextmanager
    def one(self, id: str) -> Iterator[None]:
        """An operation on this id, for the length of the block. Raises: Conflict where ``end`` has cancelled it."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                self._one_ended.set()
        if scope.cancelled_caught:
            raise errors.Conflict(f"cannot take container {id}: the executor is closed")

    async def end(self) -> None:
        """Cancel every operation; return when each has undone what it did."""
        while self._scopes:
            self._one_ended = anyio.Event()
            for scope in self._scopes:
                scope.cancel()
            await self._one_ended.wait()
