"""Calls to a plugin: one connection each, either read whole, or as streams in both directions (rows P06, P10)."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Protocol

import h11

from moorage import errors
from moorage.host.sockets import PluginSocket
from moorage.proxy.core import calls
from moorage.proxy.http import FrozenHeaders, Headers, Lost, Peer, header, passed_on

__all__ = ("ConsumerLeft", "PluginBroken", "StreamConsumer", "WholeCall", "call_stream")

_HOST = b"plugin.moby.localhost"  # as Docker sends it
_ACCEPT = b"application/vnd.docker.plugins.v1.2+json"
_REMEMBERED = 32
"""Heads of requests; one has at most ``HEAD_BYTES``."""


class PluginBroken(Exception):
    """The plugin did not answer: it could not be reached (not ``was_sent``), or closed the connection."""

    def __init__(self, reason: str, *, was_sent: bool) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class ConsumerLeft(Lost):
    """The consumer of a stream has closed its connection."""


class StreamConsumer(Protocol):
    """The consumer of a stream."""

    peer: Peer
    headers: Headers
    is_reusable: bool
    """Whether another request may follow on its connection."""

    def watch(self) -> None:
        """Nothing reads from the consumer any more; if it leaves, the call is cancelled."""


def _connect(target: PluginSocket) -> Peer:
    """A connection; it never waits. Raises: PluginBroken."""
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with target.open() as path:
                connection.connect(path)
        except BaseException:
            connection.close()
            raise
    except BlockingIOError as error:
        raise PluginBroken("its queue is full", was_sent=False) from error
    except (OSError, errors.Unavailable) as error:
        raise PluginBroken(getattr(error, "strerror", None) or str(error), was_sent=False) from error
    return Peer(connection, h11.CLIENT)


@lru_cache(_REMEMBERED)
def _request(path: str, headers: FrozenHeaders, framing: tuple[bytes, bytes]) -> h11.Request:
    """The head of a request. Consumers send the same ones again and again, and h11 checks each header."""
    sent = [(b"host", _HOST), *passed_on(headers), framing, (b"connection", b"close")]
    if header(headers, b"accept") is None:
        sent.append((b"accept", _ACCEPT))
    if header(headers, b"content-type") is None:
        sent.append((b"content-type", calls.CONTENT_TYPE.encode()))
    return h11.Request(method=b"POST", target=path.encode(), headers=sent)


async def _response(peer: Peer) -> h11.Response:
    """The head of the answer. Raises: Lost."""
    while True:
        event = await peer.receive()
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise Lost("it closed the connection without an answer")


class WholeCall:
    """A call whose request and answer are complete texts. It needs no task: most calls take one wait only."""

    def __init__(
        self,
        target: PluginSocket,
        path: str,
        body: bytes,
        headers: Headers,
        *,
        reserve: Callable[[int], bool],
        answered: Callable[[int, bytes], None],
        broken: Callable[[PluginBroken], None],
    ) -> None:
        """Send it; ``answered`` or ``broken`` is called later, unless it is cancelled before.

        ``reserve`` says whether so many bytes more of the answer may be stored.
        """
        self._loop = asyncio.get_running_loop()
        self._reserve = reserve
        self._answered = answered
        self._broken = broken
        self._response: h11.Response | None = None
        self._answer = bytearray()
        self._peer: Peer | None = None
        try:
            self._peer = _connect(target)
        except PluginBroken as error:
            self._loop.call_soon(self._fail, error)
            return
        request = _request(path, tuple(headers), (b"content-length", str(len(body)).encode()))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        self._rest = memoryview(b"".join([self._peer.http.send(event) or b"" for event in events]))
        self._loop.add_reader(self._peer.socket.fileno(), self._read)
        self._write()

    def cancel(self) -> None:
        """Close the connection; nothing is called any more. May be repeated."""
        if self._peer is not None and self._peer.socket.fileno() >= 0:
            self._loop.remove_reader(self._peer.socket.fileno())
            self._loop.remove_writer(self._peer.socket.fileno())
            self._peer.close()
        self._answered, self._broken = _ignore, _ignore

    def _fail(self, error: PluginBroken) -> None:
        broken = self._broken
        self.cancel()
        broken(error)

    def _write(self) -> None:
        """The plugin may answer without reading everything, and says why; so an error is the reader's."""
        assert self._peer is not None
        try:
            self._rest = self._rest[self._peer.socket.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._rest = self._rest[:0]
        if self._rest:
            self._loop.add_writer(self._peer.socket.fileno(), self._write)
        else:
            self._loop.remove_writer(self._peer.socket.fileno())

    def _read(self) -> None:
        assert self._peer is not None
        try:
            self._peer.receive_now()
            while (event := self._peer.next_now()) is not None:
                if isinstance(event, h11.Response):
                    self._response = event
                elif isinstance(event, h11.Data) and not self._reserve(len(event.data)):
                    self._finish(502, b'{"Err": "the answer is too long"}')
                    return
                elif isinstance(event, h11.Data):
                    self._answer += event.data
                elif isinstance(event, h11.EndOfMessage) and self._response is not None:
                    self._finish(self._response.status_code, bytes(self._answer))
                    return
                elif not isinstance(event, h11.InformationalResponse):
                    raise Lost("it closed the connection without an answer")
        except BlockingIOError:
            pass
        except Lost as error:
            reason = "it closed the connection" if self._peer.has_finished else str(error)
            self._fail(PluginBroken(reason, was_sent=True))

    def _finish(self, status: int, answer: bytes) -> None:
        answered = self._answered
        self.cancel()
        answered(status, answer)


def _ignore(*_: object) -> None:
    pass


async def call_stream(target: PluginSocket, path: str, consumer: StreamConsumer, started: Callable[[], None]) -> None:
    """Pass a request to the plugin and its answer to the consumer, piece by piece; ``started`` when it begins.

    What one side does not read, the other one must not send: nothing is stored.

    Raises: PluginBroken where nothing came through.
    Raises: ConsumerLeft; Lost where the answer broke after it had begun.
    """
    peer = _connect(target)
    try:
        body = _RequestBody(consumer, peer)
        await body.send_first(path)
        if body.is_complete:
            await _download(peer, consumer, started)
            return
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(body.send_rest())
            try:
                await _download(peer, consumer, started)
            finally:
                consumer.is_reusable = consumer.is_reusable and body.is_complete
                sending.cancel()
    except Lost as error:
        raise _stream_error(error, consumer) from None
    except BaseExceptionGroup as group:
        lost, others = group.split(Lost)
        if lost is None or others is not None:
            raise
        found = next((each for each in lost.exceptions if isinstance(each, ConsumerLeft)), lost.exceptions[0])
        raise _stream_error(found, consumer) from None
    finally:
        peer.close()


def _stream_error(error: Exception, consumer: StreamConsumer) -> Exception:
    if isinstance(error, ConsumerLeft) or consumer.peer.http.our_state is not h11.SEND_RESPONSE:
        return error
    return PluginBroken(str(error), was_sent=True)


class _RequestBody:
    """The body of a request on its way to the plugin. What the plugin does not read is the answer's to explain."""

    def __init__(self, consumer: StreamConsumer, peer: Peer) -> None:
        self._consumer = consumer
        self._peer = peer
        self.is_complete = False

    async def send_first(self, path: str) -> None:
        """Send the head with what has come of the body, and an empty object instead of none, in one write.

        Raises: ConsumerLeft.
        """
        headers = self._consumer.headers
        length = header(headers, b"content-length")
        is_chunked = header(headers, b"transfer-encoding") is not None
        is_empty = not is_chunked and (length is None or not int(length))
        if is_chunked:
            framing = b"transfer-encoding", b"chunked"
        else:
            framing = b"content-length", length if length is not None and not is_empty else b"2"
        events: list[h11.Event] = [_request(path, tuple(headers), framing)]
        if is_empty:
            events.append(h11.Data(data=b"{}"))
        while not self.is_complete and (event := self._consumer.peer.next_now()) is not None:
            self._add(event, events)
        with suppress(Lost):
            await self._peer.send(*events)

    async def send_rest(self) -> None:
        """Send what comes. Raises: ConsumerLeft."""
        source = self._consumer.peer
        try:
            if source.http.they_are_waiting_for_100_continue:
                await source.send(h11.InformationalResponse(status_code=100, headers=[]))
            while not self.is_complete:
                events: list[h11.Event] = []
                self._add(await source.receive(), events)
                with suppress(Lost):
                    await self._peer.send(*events)
        except Lost as error:
            raise ConsumerLeft(str(error)) from error

    def _add(self, event: object, events: list[h11.Event]) -> None:
        """Raises: ConsumerLeft."""
        if isinstance(event, h11.Data):
            events.append(h11.Data(data=event.data))
        elif isinstance(event, h11.EndOfMessage):
            events.append(h11.EndOfMessage())
            self.is_complete = True
            self._consumer.watch()
        else:
            raise ConsumerLeft("the consumer has left")


async def _download(peer: Peer, consumer: StreamConsumer, started: Callable[[], None]) -> None:
    """Pass the answer on, all that has come in one write. Raises: Lost."""
    target = consumer.peer
    response = await _response(peer)
    started()
    headers = passed_on(response.headers)
    length = header(response.headers, b"content-length")
    if length is not None:
        headers.append((b"content-length", length))
    # without a length, h11 chunks the answer for HTTP/1.1, and closes the connection after it for HTTP/1.0
    head: list[h11.Event] = [h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)]
    pieces: list[bytes] = []
    while True:
        event = peer.next_now()
        if event is None:
            await _send(target, [*head, *_data(pieces)])
            head, pieces = [], []
            event = await peer.receive()
        if isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            await _send(target, [*head, *_data(pieces), h11.EndOfMessage()])
            return
        else:
            raise Lost("it closed the connection within its answer")


def _data(pieces: Sequence[bytes]) -> list[h11.Event]:
    """Pieces of a body as one, however small the chunks are that they came in."""
    return [h11.Data(data=b"".join(pieces))] if pieces else []


async def _send(target: Peer, events: Sequence[h11.Event]) -> None:
    try:
        await target.send(*events)
    except Lost as error:
        raise ConsumerLeft(str(error)) from error
