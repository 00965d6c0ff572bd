"""The body of a blob that is pushed: from a source of ours to the registry, each side bounded and failing as itself."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage.distribution._body import MINIMUM_RATE
from moorage.distribution._conversation import Conversation, RegistryRequest, StreamRedirected
from moorage.distribution._errors import TransportError, TransportErrorKind
from moorage.distribution._retry import TransientError
from moorage.timeouts import Timeouts

__all__ = ("push_stream",)

_PIECE = 16 * 1024  # bytes; small, so that a slow line is seen to move


class _Upload:
    """One PUT whose body comes piece by piece; the request runs beside the source."""

    def __init__(self, conversation: Conversation, put: RegistryRequest, within: float) -> None:
        self._conversation = conversation
        self._put = put
        self._within = within  # from the last byte to the answer, seconds
        self._done = anyio.Event()
        self._failure: errors.MoorageError | TransientError | StreamRedirected | None = None

    async def request(self, pieces: MemoryObjectReceiveStream[bytes]) -> None:
        """Send the request with its body. A failure is stored for ``finish``, and the source stops."""

        async def body() -> AsyncIterator[bytes]:
            async for piece in pieces:
                yield piece

        with pieces:
            try:
                (await self._conversation.attempt(self._put, body(), self._within)).close()
            except (errors.MoorageError, TransientError, StreamRedirected) as error:
                self._failure = error
        self._done.set()

    async def finish(self) -> None:
        """Return when the registry has taken it. Raises: what the request did; TransientError for no answer."""
        with anyio.move_on_after(self._within) as scope:
            await self._done.wait()
        if scope.cancelled_caught:
            error = TransportError("the registry does not answer in time", TransportErrorKind.BROKEN)
            raise self._conversation.failure(self._put, error)
        if self._failure is not None:
            raise self._failure


async def push_stream(
    conversation: Conversation,
    put: RegistryRequest,
    size_bytes: int,
    chunks: Callable[[], AsyncGenerator[bytes, None]],
    timeouts: Timeouts,
) -> None:
    """Send a body of exactly ``size_bytes``; a registry that takes less than ``MINIMUM_RATE`` counts as gone.

    Raises: Invalid for another number of bytes; TransientError where another try may help; StreamRedirected where the
    body is wanted elsewhere; what ``chunks`` raises.
    """
    upload = _Upload(conversation, put, timeouts.registry_commit)
    send, receive = anyio.create_memory_object_stream[bytes](0)
    async with background_tasks() as tasks:
        tasks.start_soon(upload.request, receive)
        with send:
            try:
                await _feed(send, put, size_bytes, chunks, timeouts.registry_stall)
            except anyio.BrokenResourceError:
                pass  # the request has ended, and knows why
            except TransportError as error:
                raise conversation.failure(put, error) from error
        await upload.finish()


async def _feed(
    send: MemoryObjectSendStream[bytes],
    put: RegistryRequest,
    size_bytes: int,
    chunks: Callable[[], AsyncGenerator[bytes, None]],
    stall: float,
) -> None:
    """Every byte of the source. Cut where the line takes nothing for ``stall`` seconds, or less than the least rate."""
    left = size_bytes
    piece_bytes = max(1, min(_PIECE, int(stall * MINIMUM_RATE)))
    async with aclosing(chunks()) as source:
        async for chunk in source:
            if len(chunk) > left:
                raise errors.Invalid(f"cannot {put.what}: its source has more than {size_bytes} bytes")
            left -= len(chunk)
            for start in range(0, len(chunk), piece_bytes):
                with anyio.move_on_after(stall) as scope:
                    await send.send(chunk[start : start + piece_bytes])
                if scope.cancelled_caught:
                    raise TransportError(
                        f"the registry takes less than {MINIMUM_RATE} bytes a second", TransportErrorKind.BROKEN
                    )
    if left:
        raise errors.Invalid(f"cannot {put.what}: its source ends {left} bytes early")
