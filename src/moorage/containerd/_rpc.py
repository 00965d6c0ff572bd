"""The only module that awaits gRPC: connection, namespace, time limit, status to kind of error, large messages.

A connection is made at the first call and again at the first call after a loss; no caller has to reconnect. HTTP/2
keep-alive is not used: containerd closes a healthy connection that pings more than every five minutes, and a stopped
containerd is noticed by the time limit of the next call.

Large messages are framed here, with less work for each frame than grpclib and h2 do. containerd takes frames of 16 KiB
at most. grpclib writes each of them by itself, and h2 asks two state machines and copies the bytes five times for each:
0.2 s of processor time for 50 MB, half of it saved here. As many frames as the peer's windows admit go out in one
write, without a copy; h2 makes the first of them, which also checks whether the stream may send at all, and the others
are subtracted from its two windows. Nothing is awaited in between, so the state of h2 is always consistent.

Source: RFC 9113, sections 4.1 and 6.1 (frames, DATA) and 5.2 (flow control); gRPC over HTTP/2, Length-Prefixed-Message;
grpclib 0.4, ``protocol.Stream.send_data``, which ``send_large`` replaces.
"""

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from grpclib.client import Channel, Stream, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status as Code
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import Connection as Transport
from grpclib.protocol import Stream as TransportStream
from h2.exceptions import StreamClosedError

from moorage import errors
from moorage.containerd.types import AlreadyExists, CallObserver

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = (
    "Duplex",
    "GrpcConnection",
    "Reply",
    "Request",
    "send_large",
)

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound="Message")
Reply = TypeVar("Reply", bound="Message")

_LARGE = 64 * 1024
"""Bytes of a message from which on ``send_large`` is faster than grpclib."""


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
    Code.UNAVAILABLE: errors.Busy,
    Code.DEADLINE_EXCEEDED: errors.Busy,
    Code.RESOURCE_EXHAUSTED: errors.Busy,
    Code.CANCELLED: errors.Unavailable,
}


class GrpcConnection:
    """One HTTP/2 connection to the containerd behind a unix socket.

    Calls may run concurrently. After ``close`` it cannot be used again.
    """

    def __init__(self, address: str, observer: CallObserver | None = None) -> None:
        self.address = address
        self._observer = observer
        self._channel: Channel | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End the connection; calls under way fail with Unavailable. May be repeated."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def unary(
        self, method: str, request: "Message", reply: type[Reply], *, namespace: str, within: float, lease: str = ""
    ) -> Reply:
        """The one answer to one request. A lease, if given, references what the call creates.

        Raises: the kind that the status stands for (``_KINDS``); Unavailable when containerd cannot be reached or
        does not answer ``within`` seconds; MoorageError for a status that says nothing ("unknown").
        """
        call: UnaryUnaryMethod[Any, Reply] = UnaryUnaryMethod(self._open(), method, type(request), reply)
        with self._observed(method), self._translated(method, within), anyio.fail_after(within):
            return await call(request, metadata=_metadata(namespace, lease))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        request: "Message",
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
        """Concurrent requests and answers, until the block ends; leaving it early makes containerd stop.

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
            raise errors.Unavailable(f"containerd at {self.address} closed the stream of {_verb(method)}")

    def _open(self) -> Channel:
        self._check_loop()
        if self._closed:
            raise errors.Unavailable(f"the connection to containerd at {self.address} is closed")
        if self._channel is None:
            self._channel = Channel(path=self.address)
        return self._channel

    def _check_loop(self) -> None:
        """Refuse a call from another event loop or thread, which would damage the state of the connection."""
        try:
            is_own = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_own = False
        if not is_own:
            raise errors.Invalid(
                f"cannot call containerd at {self.address} from here: its client belongs to another event loop; "
                "make a client in each loop, or use moorage.containerd.sync_client"
            )

    @contextmanager
    def _observed(self, method: str) -> Iterator[None]:
        """Report one call to the observer. A cancelled one is not reported: its duration means nothing."""
        started_at = time.monotonic()

        def report(failure: errors.MoorageError | None) -> None:
            seconds, outcome = time.monotonic() - started_at, type(failure).__name__ if failure else "OK"
            log.debug("%s of containerd: %s after %.3f s", _verb(method), outcome, seconds)
            if self._observer is not None:
                self._observer(_verb(method), seconds, failure)

        try:
            yield
        except errors.MoorageError as error:
            report(error)
            raise
        report(None)

    @contextmanager
    def _translated(self, method: str, within: float) -> Iterator[None]:
        """Translate exceptions of gRPC and the socket into moorage.errors."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        verb, where = _verb(method), f"containerd at {self.address}"
        try:
            yield
        except GRPCError as error:
            _uncount_cancellation(task, cancelling)
            kind = _KINDS.get(error.status, errors.MoorageError)
            text = (error.message or "").removesuffix(": unknown")
            raise kind(text or f"containerd answered {error.status.name} to {verb}") from error
        except (StreamTerminatedError, ProtocolError) as error:
            _uncount_cancellation(task, cancelling)
            raise errors.Unavailable(f"lost {where} during {verb}: {error}") from error
        except AttributeError as error:
            # grpclib 0.4 hands out a connection that was lost while it was made, and that has no socket any more
            if not isinstance(error.obj, Transport):
                raise
            raise errors.Unavailable(f"lost {where} before {verb}") from error
        except TimeoutError as error:
            raise errors.Unavailable(f"{where} did not answer {verb} within {within:g} s") from error
        except OSError as error:
            raise errors.Unavailable(f"cannot reach {where}: {error.strerror or error}") from error


def _uncount_cancellation(task: asyncio.Task[Any] | None, cancelling: int) -> None:
    # grpclib wakes a waiting call with Task.cancel() and turns the CancelledError into its own error, but leaves the
    # task's count of cancellations raised; every enclosing scope would then take its own for a foreign one.
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
        with self._translated(), anyio.fail_after(self._within), self._raising_status():
            data = message.SerializeToString()  # ByteSize would do the same and discard it
            if is_last or len(data) < _LARGE:
                await self._stream.send_message(message, end=is_last)
            else:
                await send_large(self._stream._stream, data)

    async def receive(self, within: float | None = None) -> Reply:
        """The next answer, ``within`` seconds if given. Raises: Unavailable if containerd closes the call."""
        bound = self._within if within is None else within
        with self._translated(), anyio.fail_after(bound), self._raising_status():
            answer = await self._stream.recv_message()
            if answer is None:
                # the status is in the trailers, and is raised from there if it is a failure
                await self._stream.recv_trailing_metadata()
        if answer is None:
            raise errors.Unavailable("containerd closed the call without an answer")
        return answer

    @contextmanager
    def _raising_status(self) -> Iterator[None]:
        """Raise the status of the server, if the server closed the call.

        A server that answers while the client may still send resets the stream after its status. grpclib reads that
        status only when the call is closed, which is too late to distinguish a failure from a lost connection.
        """
        try:
            yield
        except StreamTerminatedError:
            self._stream._maybe_raise()
            raise


@asynccontextmanager
async def _opened(stream: Stream[Request, Reply]) -> AsyncIterator[Stream[Request, Reply]]:
    """A call until the block ends. After a block without failure the status of the call is ignored."""
    is_complete = False
    try:
        async with stream:
            yield stream
            is_complete = True
            # A reset makes containerd close its side; a plain exit would wait for trailers that may never arrive.
            await stream.cancel()
    except (GRPCError, StreamTerminatedError, ProtocolError, StreamClosedError, OSError):
        if not is_complete:
            raise


def _metadata(namespace: str, lease: str = "") -> dict[str, str]:
    metadata = {"containerd-namespace": namespace}
    return {**metadata, "containerd-lease": lease} if lease else metadata


def _verb(method: str) -> str:
    service, _, verb = method.rpartition("/")
    return f"{service.rpartition('.')[2]}.{verb}"


# ---------------------------------------------------------------------------------------------------- large messages


_DATA = 0
_NO_FLAGS = 0


async def send_large(stream: TransportStream, message: bytes) -> None:
    """Send one message, serialised, on a stream that is open and stays open. One task may send at a time.

    Raises: as grpclib, if the stream or its connection is closed meanwhile.
    """
    left = memoryview(struct.pack(">BL", 0, len(message)) + message)
    assert stream.wrapper is not None, "the stream of a client"
    with stream.wrapper:  # by which grpclib wakes this task when the stream or its connection is closed
        while left:
            left = left[await _send_some(stream, left) :]


async def _send_some(stream: TransportStream, data: memoryview) -> int:
    """Send what the peer's windows admit; the number of bytes, 0 after a wait for a window."""
    assert stream.id is not None, "the request was sent"
    await stream.connection.write_ready.wait()
    h2 = stream._h2_connection
    window = h2.local_flow_control_window(stream.id)
    if window <= 0:  # RFC 9113, 6.9.2: it may be negative
        stream.window_updated.clear()
        await stream.window_updated.wait()
        return 0
    size = h2.max_outbound_frame_size
    now = data[:window]
    h2.send_data(stream.id, now[:size])
    parts: list[bytes | memoryview] = [h2.data_to_send()]
    if rest := now[size:]:
        h2.outbound_flow_control_window -= len(rest)
        h2.streams[stream.id].outbound_flow_control_window -= len(rest)
        for at in range(0, len(rest), size):
            piece = rest[at : at + size]
            parts += (_header(len(piece), stream.id), piece)
    stream._transport.writelines(parts)
    stream.data_sent += len(now)
    stream.connection.data_sent += len(now)
    stream.connection.data_send_process()
    return len(now)


def _header(length: int, stream_id: int) -> bytes:
    return struct.pack(">BHBBL", length >> 16, length & 0xFFFF, _DATA, _NO_FLAGS, stream_id)
