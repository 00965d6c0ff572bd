"""Uploads of blobs: from a source to the registry; each side has its own timeouts and errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.registry._body import MINIMUM_RATE
from moorage.registry._connections import TransportError, TransportErrorKind
from moorage.registry._retry import TransientError
from moorage.registry._session import RegistryRequest, RegistrySession, StreamRedirected
from moorage.timeouts import RegistryTimeouts

__all__ = ("upload",)

_CHUNK_BYTES = 16 * 1024  # bytes; small, so that progress of a slow connection is seen


class _Upload:
    """One PUT with a streamed body; the request runs concurrently with the source."""

    def __init__(self, session: RegistrySession, put: RegistryRequest, within: float) -> None:
        self._session = session
        self._put = put
        self._within = within  # from the last byte to the answer, seconds
        self._done = anyio.Event()
        self._failure: errors.MoorageError | TransientError | StreamRedirected | None = None

    async def request(self, chunks: MemoryObjectReceiveStream[bytes]) -> None:
        """Send the request with its body. A failure is stored for ``finish``, and the source stops."""

        async def body() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk

        with chunks:
            try:
                (await self._session.attempt(self._put, body(), self._within)).close()
            except (errors.MoorageError, TransientError, StreamRedirected) as error:
                self._failure = error
        self._done.set()

    async def finish(self) -> None:
        """Return when the registry has accepted the blob.

        Raises: the failure of the request; TransientError for no response.
        """
        with anyio.move_on_after(self._within) as scope:
            await self._done.wait()
        if scope.cancelled_caught:
            error = TransportError("the registry does not answer in time", TransportErrorKind.BROKEN)
            raise self._session.failure(self._put, error)
        if self._failure is not None:
            raise self._failure


async def upload(
    session: RegistrySession,
    put: RegistryRequest,
    size_bytes: int,
    chunks: Callable[[], AsyncGenerator[bytes, None]],
    timeouts: RegistryTimeouts,
) -> None:
    """Send a body of exactly ``size_bytes``; a registry that accepts less than ``MINIMUM_RATE`` counts as unavailable.

    Raises: Invalid for another number of bytes.
    Raises: TransientError if a retry may help.
    Raises: StreamRedirected for a redirect.
    Raises: what ``chunks`` raises.
    """
    upload = _Upload(session, put, timeouts.registry_commit)
    send, receive = anyio.create_memory_object_stream[bytes](0)
    async with background_tasks() as tasks:
        tasks.start_soon(upload.request, receive)
        with send:
            try:
                await _send_body(send, put, size_bytes, chunks, timeouts.registry_stall)
            except anyio.BrokenResourceError:
                pass  # the request has failed; ``finish`` raises its error
            except TransportError as error:
                raise session.failure(put, error) from error
        await upload.finish()


async def _send_body(
    send: MemoryObjectSendStream[bytes],
    put: RegistryRequest,
    size_bytes: int,
    chunks: Callable[[], AsyncGenerator[bytes, None]],
    stall: float,
) -> None:
    """Send every byte of the source.

    Raises: TransportError if nothing, or too little, is sent within ``stall`` seconds.
    """
    left = size_bytes
    chunk_bytes = max(1, min(_CHUNK_BYTES, int(stall * MINIMUM_RATE)))
    async with aclosing(chunks()) as source:
        async for chunk in source:
            if len(chunk) > left:
                raise errors.Invalid(f"cannot {put.action}: its source has more than {size_bytes} bytes")
            left -= len(chunk)
            for start in range(0, len(chunk), chunk_bytes):
                with anyio.move_on_after(stall) as scope:
                    await send.send(chunk[start : start + chunk_bytes])
                if scope.cancelled_caught:
                    raise TransportError(
                        f"the registry takes less than {MINIMUM_RATE} bytes a second", TransportErrorKind.BROKEN
                    )
    if left:
        raise errors.Invalid(f"cannot {put.action}: its source ends {left} bytes early")
