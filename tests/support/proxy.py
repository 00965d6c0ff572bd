"""A unix socket in front of a real containerd that counts gRPC calls and does harm at one of them.

It reads HTTP/2 frames and passes them on one by one. Header blocks are decoded and encoded again, each side with a
compression state of its own, so that a request or an answer can be left out without the two peers losing step.
"""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus
from hpack import Decoder, Encoder
from hyperframe.frame import Frame, HeadersFrame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER_BYTES = 9
_READ_BYTES = 64 * 1024


class _Stream:
    """A unix socket. (anyio's own stream, cancelled while data arrives, fails on uvloop with an invalid state.)"""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    @classmethod
    async def connect(cls, address: str) -> "_Stream":
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            end.connect(address)  # to a unix socket that listens this is immediate
        except OSError:
            end.close()
            raise
        return cls(end)

    async def receive(self) -> bytes:
        """The next bytes. Raises: OSError at the end of the stream, and when it is closed."""
        while True:
            try:
                data = self._end.recv(_READ_BYTES)
            except BlockingIOError:
                await _closing_is_an_error(anyio.wait_readable, self._end)
                continue
            if not data:
                raise ConnectionResetError("the other side has closed")
            return data

    async def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._end.send(data) :]
            except BlockingIOError:
                await _closing_is_an_error(anyio.wait_writable, self._end)

    def close(self) -> None:
        if self._end.fileno() >= 0:
            anyio.notify_closing(self._end)
            self._end.close()


async def _closing_is_an_error(wait: Callable[[socket.socket], Awaitable[None]], end: socket.socket) -> None:
    try:
        await wait(end)
    except anyio.ClosedResourceError:
        raise ConnectionAbortedError("closed") from None


class When(Enum):
    """Where in a call harm is done."""

    BEFORE = "before"
    """The call has arrived and is not passed on."""

    AMID = "amid"
    """The call is passed on; containerd works on it."""

    AFTER = "after"
    """Containerd has answered, and the answer is not passed on."""


@dataclass(eq=False)
class Exchange:
    """One call on one connection."""

    connection: "_Connection"
    stream_id: int
    method: str
    number: int | None
    """Its number among the counted calls; None for one that is not counted."""

    def cut(self) -> None:
        """End the connection."""
        self.connection.close()

    async def answer(self, code: int, message: str) -> None:
        """Answer for containerd with a gRPC status."""
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        await self.connection.to_client.headers(
            self.stream_id, [*headers, ("grpc-status", str(code)), ("grpc-message", message)], end=True
        )


Fault = Callable[[Exchange], Awaitable[None]]


@dataclass
class Proxy:
    """Counts calls from ``arm`` on, and does ``fault`` at one of them."""

    upstream: str
    address: str
    calls: list[str] = field(default_factory=list)
    """The counted calls, in order of arrival, as "Tasks/Create"."""

    reached: bool = False
    """The call was made at which harm was to be done."""

    done: anyio.Event = field(default_factory=anyio.Event)
    """Harm is done."""

    subscriptions: int = 0
    _target: tuple[int, When, Fault] | None = None
    _counting: bool = False
    _connections: set["_Connection"] = field(default_factory=set)
    _tasks: TaskGroup | None = None
    _listening: anyio.CancelScope | None = None

    def arm(self, number: int = -1, when: When = When.BEFORE, fault: Fault | None = None) -> None:
        """Count from now on; do harm at this call, counted from 0 (none, where no harm is given)."""
        self.calls.clear()
        self.reached, self.done = False, anyio.Event()
        self._counting = True
        self._target = (number, when, fault) if fault else None

    async def listen(self) -> None:
        """Take connections (again)."""
        assert self._tasks is not None
        await self._tasks.start(self._listen)

    def refuse(self) -> None:
        """Cut what there is and refuse connections until ``listen``."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        with suppress(FileNotFoundError):
            os.unlink(self.address)
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        for connection in list(self._connections):
            connection.close()

    async def _listen(self, *, task_status: TaskStatus[None]) -> None:
        assert self._tasks is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.setblocking(False)
            listener.bind(self.address)
            listener.listen()
            with anyio.CancelScope() as self._listening:
                task_status.started()
                while True:
                    await anyio.wait_readable(listener)
                    self._tasks.start_soon(self._serve, _Stream(listener.accept()[0]))

    async def _serve(self, client: _Stream) -> None:
        try:
            server = await _Stream.connect(self.upstream)
        except OSError:
            client.close()
            return
        connection = _Connection(self, client, server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            connection.close()

    def arrived(self, connection: "_Connection", stream_id: int, path: str) -> Exchange:
        service, _, method = path.rpartition("/")
        name = f"{service.rpartition('.')[2]}/{method}"
        self.subscriptions += name == "Events/Subscribe"
        # Subscriptions stay open during every operation, so they are none of its calls.
        if not self._counting or name.startswith("Events/"):
            return Exchange(connection, stream_id, name, None)
        self.calls.append(name)
        return Exchange(connection, stream_id, name, len(self.calls) - 1)

    def harm_for(self, exchange: Exchange, *whens: When) -> Fault | None:
        """What is to be done at this point of this call."""
        if self._target is None or exchange.number is None:
            return None
        number, when, fault = self._target
        return fault if number == exchange.number and when in whens else None

    async def do(self, fault: Fault, exchange: Exchange) -> None:
        self.reached = True
        try:
            await fault(exchange)
        finally:
            self.done.set()

    def do_beside(self, fault: Fault, exchange: Exchange) -> None:
        """Do it while frames continue."""
        assert self._tasks is not None
        self._tasks.start_soon(self.do, fault, exchange)


class _Side:
    """What is sent to one of the peers."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._encoder = Encoder()
        self._lock = anyio.Lock()

    async def frame(self, frame: Frame) -> None:
        async with self._lock:
            await self._stream.send(frame.serialize())

    async def raw(self, data: bytes) -> None:
        async with self._lock:
            await self._stream.send(data)

    async def headers(self, stream_id: int, headers: list[tuple[str, str]], *, end: bool) -> None:
        frame = HeadersFrame(stream_id, flags=["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"])
        async with self._lock:
            frame.data = self._encoder.encode(headers)
            await self._stream.send(frame.serialize())


class _Connection:
    """One client's connection and the proxy's to containerd for it."""

    def __init__(self, proxy: Proxy, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self.to_client, self._to_server = _Side(client), _Side(server)
        self._exchanges: dict[int, Exchange] = {}
        self._dropped: set[int] = set()
        self._scope = anyio.CancelScope()

    def close(self) -> None:
        self._scope.cancel()
        self._client.close()
        self._server.close()

    async def run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                for pump in (self._requests, self._answers):
                    tasks.start_soon(self._until_closed, pump)

    async def _until_closed(self, pump: Callable[[], Awaitable[None]]) -> None:
        with suppress(OSError):
            await pump()
        self._scope.cancel()

    async def _requests(self) -> None:
        reader = _Reader(self._client)
        await self._to_server.raw(await reader.exactly(len(_PREFACE)))
        async for frame, headers in reader.frames():
            if headers is not None:
                await self._request(frame, headers)
            elif frame.stream_id not in self._dropped:
                await self._to_server.frame(frame)

    async def _request(self, frame: Frame, headers: list[tuple[str, str]]) -> None:
        exchange = self._proxy.arrived(self, frame.stream_id, dict(headers)[":path"])
        self._exchanges[frame.stream_id] = exchange
        if fault := self._proxy.harm_for(exchange, When.BEFORE):
            self._dropped.add(frame.stream_id)
            self._proxy.do_beside(fault, exchange)
            return
        await self._to_server.headers(frame.stream_id, headers, end="END_STREAM" in frame.flags)
        if fault := self._proxy.harm_for(exchange, When.AMID):
            self._proxy.do_beside(fault, exchange)

    async def _answers(self) -> None:
        async for frame, headers in _Reader(self._server).frames():
            exchange = self._exchanges.get(frame.stream_id)
            fault = self._proxy.harm_for(exchange, When.AFTER) if exchange else None
            if exchange and fault:
                if "END_STREAM" in frame.flags:
                    self._proxy.do_beside(fault, exchange)
            elif headers is not None:
                await self.to_client.headers(frame.stream_id, headers, end="END_STREAM" in frame.flags)
            else:
                await self.to_client.frame(frame)


class _Reader:
    """The frames of one direction; those with headers come with what they say."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self._data = bytearray()

    async def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            self._data += await self._stream.receive()
        data = bytes(self._data[:count])
        del self._data[:count]
        return data

    async def frames(self) -> AsyncIterator[tuple[Frame, list[tuple[str, str]] | None]]:
        while True:
            frame, length = Frame.parse_frame_header(memoryview(await self.exactly(_FRAME_HEADER_BYTES)))
            frame.parse_body(memoryview(await self.exactly(length)))
            headers = None
            if isinstance(frame, HeadersFrame):
                assert "END_HEADERS" in frame.flags, "a header block in pieces is more than this proxy knows"
                headers = [(str(name), str(value)) for name, value in self._decoder.decode(frame.data)]
            yield frame, headers


@asynccontextmanager
async def proxy_before(upstream: str, directory: Path) -> AsyncIterator[Proxy]:
    """A proxy before the containerd at this address, with its socket in a directory, until the block ends."""
    proxy = Proxy(upstream, str(directory / "p.sock"))
    async with anyio.create_task_group() as proxy._tasks:
        await proxy.listen()
        yield proxy
        proxy.refuse()
        proxy._tasks.cancel_scope.cancel()


async def cut(exchange: Exchange) -> None:
    """The connection ends in the middle of the call."""
    exchange.cut()


def refuse(proxy: Proxy, seconds: float) -> Fault:
    """The connection ends, and there is no listener for a while."""

    async def fault(_exchange: Exchange) -> None:
        proxy.refuse()
        await anyio.sleep(seconds)
        await proxy.listen()

    return fault


def answer(code: int, message: str = "a fault of this test") -> Fault:
    """The call fails with this gRPC status."""

    async def fault(exchange: Exchange) -> None:
        await exchange.answer(code, message)

    return fault
