"""The only place that awaits gRPC: connection, namespace, time limit, status to kind.

A connection is made at the first call and again at the first call after a loss; nobody has to ask for it. HTTP/2
keep-alive is not used: containerd closes a healthy connection that pings more than every five minutes, and a stopped
containerd is noticed by the time limit of the next call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import anyio
from google.protobuf.message import Message
from grpclib.client import Channel, Stream, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status as Code
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import Connection as Transport
from h2.exceptions import StreamClosedError

from moorage import errors
from moorage.containerd._sending import send_large

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Heard = Callable[[str, float, errors.MoorageError | None], None]

_LARGE = 64 * 1024
"""Bytes of a message that is worth another way than grpclib's."""


class AlreadyExists(errors.Conflict):
    """There is one already: for content, which is named by what it is, that is as good as making it."""


_KINDS: dict[Code, type[errors.MoorageError]] = {
    Code.INVALID_ARGUMENT: errors.Invalid,
    Code.OUT_OF_RANGE: errors.Invalid,
    Code.UNAUTHENTICATED: errors.Unauthorized,
    Code.PERMISSION_DENIED: errors.Denied,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
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

    def __init__(self, address: str, heard: Heard | None = None) -> None:
        self.address = address
        self._heard = heard
        self._channel: Channel | None = None
        self._closed = False

    def close(self) -> None:
        """End the connection; calls under way fail with Unavailable. May be repeated."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def unary(
        self, method: str, request: Message, reply: type[Reply], *, namespace: str, within: float, lease: str = ""
    ) -> Reply:
        """The one answer to one request. What the call makes is held by the lease, where one is named.

        Raises: the kind that the status stands for (``_KINDS``); Unavailable when containerd cannot be reached or
        does not answer ``within`` seconds; MoorageError for a status that says nothing ("unknown").
        """
        call: UnaryUnaryMethod[Any, Reply] = UnaryUnaryMethod(self._open(), method, type(request), reply)
        with self._told(method), self._translated(method, within), anyio.fail_after(within):
            return await call(request, metadata=_metadata(namespace, lease))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        *,
        namespace: str,
        within: float,
        is_endless: bool = False,
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """Many answers to one request, until the block ends. ``within`` bounds the opening, not the stream.

        Raises: as ``unary``, both here and from the iterator; for an endless one also when the server closes it
        without an error, because that is how a restart of containerd may look.
        """
        call: UnaryStreamMethod[Any, Reply] = UnaryStreamMethod(self._open(), method, type(request), reply)
        async with _opened(call.open(metadata=_metadata(namespace))) as stream:
            with self._translated(method, within), anyio.fail_after(within):
                await stream.send_message(request, end=True)
            yield self._messages(method, stream, is_endless)

    @asynccontextmanager
    async def duplex(
        self,
        method: str,
        request: type[Request],
        reply: type[Reply],
        *,
        namespace: str,
        within: float,
        lease: str = "",
    ) -> AsyncIterator["Duplex[Request, Reply]"]:
        """Requests and answers side by side, until the block ends; leaving it early makes containerd stop.

        ``within`` bounds each send and each receive.
        """
        call: StreamStreamMethod[Request, Reply] = StreamStreamMethod(self._open(), method, request, reply)
        async with _opened(call.open(metadata=_metadata(namespace, lease))) as stream:
            yield Duplex(stream, lambda: self._translated(method, within), within)

    async def _messages(self, method: str, stream: Stream[Any, Reply], is_endless: bool) -> AsyncIterator[Reply]:
        with self._translated(method, 0):
            async for message in stream:
                yield message
        if is_endless:
            raise errors.Unavailable(f"containerd at {self.address} ended the stream of {_verb(method)}")

    def _open(self) -> Channel:
        if self._closed:
            raise errors.Unavailable(f"the connection to containerd at {self.address} is closed")
        if self._channel is None:
            self._channel = Channel(path=self.address)
        return self._channel

    @contextmanager
    def _told(self, method: str) -> Iterator[None]:
        """Tell whoever listens of one call; of one that is cancelled nobody can say how long it takes."""
        begun = time.monotonic()

        def tell(failure: errors.MoorageError | None) -> None:
            if self._heard is not None:
                self._heard(_verb(method), time.monotonic() - begun, failure)

        try:
            yield
        except errors.MoorageError as error:
            tell(error)
            raise
        tell(None)

    @contextmanager
    def _translated(self, method: str, within: float) -> Iterator[None]:
        """Turn what gRPC and the socket raise into our kinds."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        verb, where = _verb(method), f"containerd at {self.address}"
        try:
            yield
        except GRPCError as error:
            _take_back(task, cancelling)
            kind = _KINDS.get(error.status, errors.MoorageError)
            text = (error.message or "").removesuffix(": unknown")
            raise kind(text or f"containerd answered {error.status.name} to {verb}") from error
        except (StreamTerminatedError, ProtocolError) as error:
            _take_back(task, cancelling)
            raise errors.Unavailable(f"lost {where} during {verb}: {error}") from error
        except AttributeError as error:
            # grpclib 0.4 hands out a connection that was lost while it was made, and that has let go of its socket
            if not isinstance(error.obj, Transport):
                raise
            raise errors.Unavailable(f"lost {where} before {verb}") from error
        except TimeoutError as error:
            raise errors.Unavailable(f"{where} did not answer {verb} within {within:g} s") from error
        except OSError as error:
            raise errors.Unavailable(f"cannot reach {where}: {error.strerror or error}") from error


def _take_back(task: asyncio.Task[Any] | None, cancelling: int) -> None:
    # grpclib wakes a waiting call with Task.cancel() and turns the CancelledError into its own error, but leaves the
    # task's count of cancellations raised; every scope around us would then take its own for a foreign one.
    if task and task.cancelling() > cancelling:
        task.uncancel()


class Duplex(Generic[Request, Reply]):
    """Both directions of one call. One task may send while another receives."""

    def __init__(
        self,
        stream: Stream[Request, Reply],
        translated: Callable[[], AbstractContextManager[None]],
        within: float,
    ) -> None:
        self._stream = stream
        self._translated = translated
        self._within = within

    async def send(self, message: Request, *, is_last: bool = False) -> None:
        """Send one request; ``is_last`` closes this direction with it. The first one must be a small one."""
        with self._translated(), anyio.fail_after(self._within), self._with_its_status():
            data = message.SerializeToString()  # ByteSize would do the same and throw it away
            if is_last or len(data) < _LARGE:
                await self._stream.send_message(message, end=is_last)
            else:
                await send_large(self._stream._stream, data)

    async def receive(self, within: float | None = None) -> Reply:
        """The next answer, ``within`` other seconds than usual. Raises: Unavailable where containerd ends the call."""
        bound = self._within if within is None else within
        with self._translated(), anyio.fail_after(bound), self._with_its_status():
            answer = await self._stream.recv_message()
            if answer is None:
                # the status stands in the trailers, and is raised from there if it is a failure
                await self._stream.recv_trailing_metadata()
        if answer is None:
            raise errors.Unavailable("containerd ended the call without an answer")
        return answer

    @contextmanager
    def _with_its_status(self) -> Iterator[None]:
        """Raise what the server said last, where it ended the call.

        One that answers while we may still send resets the stream behind its status. grpclib looks at that status only
        when the call is left, which is too late to tell a failure from a lost connection.
        """
        try:
            yield
        except StreamTerminatedError:
            self._stream._maybe_raise()
            raise


@asynccontextmanager
async def _opened(stream: Stream[Request, Reply]) -> AsyncIterator[Stream[Request, Reply]]:
    """A call until the block ends. A block that ends well leaves the call where it is, whatever its end says."""
    has_left = False
    try:
        async with stream:
            yield stream
            has_left = True
            # A reset tells containerd to end its side; a plain exit would wait for trailers that may never come.
            await stream.cancel()
    except (GRPCError, StreamTerminatedError, ProtocolError, StreamClosedError, OSError):
        if not has_left:
            raise


def _metadata(namespace: str, lease: str = "") -> dict[str, str]:
    metadata = {"containerd-namespace": namespace}
    return {**metadata, "containerd-lease": lease} if lease else metadata


def _verb(method: str) -> str:
    service, _, verb = method.rpartition("/")
    return f"{service.rpartition('.')[2]}.{verb}"
