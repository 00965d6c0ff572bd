"""The only place that awaits gRPC: connection, namespace, time limit, status to kind.

A connection is made at the first call and again at the first call after a loss; nobody has to ask for it. HTTP/2
keep-alive is not used: containerd closes a healthy connection that pings more than every five minutes, and a stopped
containerd is noticed by the time limit of the next call.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import anyio
from google.protobuf.message import Message
from grpclib.client import Channel, Stream, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status as Code
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from moorage import errors

Reply = TypeVar("Reply", bound=Message)

_KINDS: dict[Code, type[errors.MoorageError]] = {
    Code.INVALID_ARGUMENT: errors.Invalid,
    Code.OUT_OF_RANGE: errors.Invalid,
    Code.UNAUTHENTICATED: errors.Unauthorized,
    Code.PERMISSION_DENIED: errors.Denied,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.Conflict,
    Code.FAILED_PRECONDITION: errors.Conflict,
    Code.ABORTED: errors.Conflict,
    Code.UNIMPLEMENTED: errors.Unsupported,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DEADLINE_EXCEEDED: errors.Unavailable,
    Code.RESOURCE_EXHAUSTED: errors.Unavailable,
    Code.CANCELLED: errors.Unavailable,
}


class Connection:
    """One HTTP/2 connection to the containerd behind a unix socket.

    Calls may run side by side. ``close`` ends it for good.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: Channel | None = None
        self._closed = False

    def close(self) -> None:
        """End the connection; calls under way fail with Unavailable. May be repeated."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def unary(self, method: str, request: Message, reply: type[Reply], *, namespace: str, within: float) -> Reply:
        """The one answer to one request.

        Raises: the kind that the status stands for (``_KINDS``); Unavailable when containerd cannot be reached or
        does not answer ``within`` seconds; MoorageError for a status that says nothing ("unknown").
        """
        call: UnaryUnaryMethod[Any, Reply] = UnaryUnaryMethod(self._open(), method, type(request), reply)
        with self._translated(method, within), anyio.fail_after(within):
            return await call(request, metadata=_metadata(namespace))

    @asynccontextmanager
    async def stream(
        self, method: str, request: Message, reply: type[Reply], *, namespace: str, within: float
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """Many answers to one request, until the block ends. ``within`` bounds the opening, not the stream.

        Raises: as ``unary``, both here and from the iterator. The iterator never ends by itself: a stream that the
        server closes without an error raises Unavailable, because a restart of containerd looks the same.
        """
        call: UnaryStreamMethod[Any, Reply] = UnaryStreamMethod(self._open(), method, type(request), reply)
        async with call.open(metadata=_metadata(namespace)) as stream:
            with self._translated(method, within), anyio.fail_after(within):
                await stream.send_message(request, end=True)
            yield self._messages(method, stream)
            # A reset tells containerd to end its side at once; a plain exit would wait for trailers that never come.
            with suppress(StreamTerminatedError, ProtocolError, OSError):
                await stream.cancel()

    async def _messages(self, method: str, stream: Stream[Any, Reply]) -> AsyncIterator[Reply]:
        with self._translated(method, 0):
            async for message in stream:
                yield message
        raise errors.Unavailable(f"containerd at {self.address} ended the stream of {_verb(method)}")

    def _open(self) -> Channel:
        if self._closed:
            raise errors.Unavailable(f"the connection to containerd at {self.address} is closed")
        if self._channel is None:
            self._channel = Channel(path=self.address)
        return self._channel

    @contextmanager
    def _translated(self, method: str, within: float) -> Iterator[None]:
        """Turn what gRPC and the socket raise into our kinds."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        verb, where = _verb(method), f"containerd at {self.address}"
        try:
            yield
        except GRPCError as error:
            kind = _KINDS.get(error.status, errors.MoorageError)
            text = (error.message or "").removesuffix(": unknown")
            raise kind(text or f"containerd answered {error.status.name} to {verb}") from error
        except (StreamTerminatedError, ProtocolError) as error:
            # grpclib wakes a waiting call with Task.cancel() and turns the CancelledError into this error, but leaves
            # the task's count of cancellations raised; every scope around us would then take its own for a foreign one.
            if task and task.cancelling() > cancelling:
                task.uncancel()
            raise errors.Unavailable(f"lost {where} during {verb}: {error}") from error
        except TimeoutError as error:
            raise errors.Unavailable(f"{where} did not answer {verb} within {within:g} s") from error
        except OSError as error:
            raise errors.Unavailable(f"cannot reach {where}: {error.strerror or error}") from error


def _metadata(namespace: str) -> dict[str, str]:
    return {"containerd-namespace": namespace}


def _verb(method: str) -> str:
    service, _, verb = method.rpartition("/")
    return f"{service.rpartition('.')[2]}.{verb}"
