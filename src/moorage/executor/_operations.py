"""Operations in progress, so that a close can cancel them and wait for their clean-up, which needs the open client."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from moorage import errors


class Operations:
    """The operations in progress."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._one_done = anyio.Event()

    @contextmanager
    def track(self, id: str) -> Iterator[None]:
        """Track an operation on this id during the block. Raises: Conflict if ``cancel_all`` has cancelled it."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                self._one_done.set()
        if scope.cancelled_caught:
            raise errors.Conflict(f"cannot use container {id}: the executor is closed")

    async def cancel_all(self) -> None:
        """Cancel every operation; return when each has cleaned up."""
        while self._scopes:
            self._one_done = anyio.Event()
            for scope in self._scopes:
                scope.cancel()
            await self._one_done.wait()
