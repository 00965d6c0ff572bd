"""Calls to a plugin: one connection each, either read whole, or as streams in both directions (rows P06, P10)."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import h11

from moorage import errors
from moorage.host.sockets import PluginSocket
from moorage.proxy.core import calls
from moorage.proxy.http import Headers, Lost, Peer, header, passed_on
from moorage.proxy.protocol import PluginTable

__all__ = ("ConsumerLeft", "PluginBroken", "StreamConsumer", "call_stream", "call_whole")

_HOST = b"plugin.moby.localhost"  # as Docker sends it
_ACCEPT = b"application/vnd.docker.plugins.v1.2+json"


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


def _connect(table: PluginTable) -> Peer:
    """A connection; it never waits. Raises: PluginBroken."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with PluginSocket(Path(table.runtime), table.socket).open() as path:
            connection.connect(path)
    except BlockingIOError as error:
        connection.close()
        raise PluginBroken("its queue is full", was_sent=False) from error
    except (OSError, errors.Unavailable) as error:
        connection.close()
        raise PluginBroken(getattr(error, "strerror", None) or str(error), was_sent=False) from error
    return Peer(connection, h11.CLIENT)


def _request(path: str, headers: Headers, framing: Headers) -> h11.Request:
    sent = [(b"host", _HOST), *passed_on(headers), *framing, (b"connection", b"close")]
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


async def call_whole(
    table: PluginTable, path: str, body: bytes, headers: Headers, reserve: Callable[[int], bool]
) -> tuple[int, bytes]:
    """Status and body of the answer; ``reserve`` says whether so many bytes more of it may be stored.

    Raises: PluginBroken.
    """
    peer = _connect(table)
    try:
        request = _request(path, headers, [(b"content-length", str(len(body)).encode())])
        with suppress(Lost):  # it may answer without reading everything, and says why
            await peer.send(request, h11.Data(data=body), h11.EndOfMessage())
        response = await _response(peer)
        answer = await peer.read_body(reserve)
        if answer is None:
            return 502, b'{"Err": "the plugin\'s answer is too long"}'
        return response.status_code, answer
    except Lost as error:
        raise PluginBroken(str(error), was_sent=True) from error
    finally:
        peer.close()


async def call_stream(table: PluginTable, path: str, consumer: StreamConsumer, started: Callable[[], None]) -> None:
    """Pass a request to the plugin and its answer to the consumer, piece by piece; ``started`` when it begins.

    What one side does not read, the other one must not send: nothing is stored.

    Raises: PluginBroken where nothing came through.
    Raises: ConsumerLeft; Lost where the answer broke after it had begun.
    """
    peer = _connect(table)
    try:
        body = _RequestBody(consumer, peer)
        with suppress(Lost):  # it may answer without reading anything
            await body.send_head(path)
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(body.run())
            try:
                response = await _response(peer)
                started()
                await _download(peer, consumer, response)
            finally:
                consumer.is_reusable = consumer.is_reusable and body.is_complete
                sending.cancel()
    except BaseExceptionGroup as group:
        lost, others = group.split(Lost)
        if lost is None or others is not None:
            raise
        error = next((each for each in lost.exceptions if isinstance(each, ConsumerLeft)), lost.exceptions[0])
        if isinstance(error, ConsumerLeft) or consumer.peer.http.our_state is not h11.SEND_RESPONSE:
            raise error from None
        raise PluginBroken(str(error), was_sent=True) from None
    finally:
        peer.close()


class _RequestBody:
    """The body of a request on its way to the plugin."""

    def __init__(self, consumer: StreamConsumer, peer: Peer) -> None:
        self._consumer = consumer
        self._peer = peer
        self.is_complete = False
        length = header(consumer.headers, b"content-length")
        self._length = int(length) if length is not None else None
        self._is_chunked = header(consumer.headers, b"transfer-encoding") is not None

    async def send_head(self, path: str) -> None:
        """Send the head, and an empty object instead of no body. Raises: Lost."""
        has_body = bool(self._length) or self._is_chunked
        length = str(self._length) if has_body else "2"
        framing = [(b"transfer-encoding", b"chunked")] if self._is_chunked else [(b"content-length", length.encode())]
        request = _request(path, self._consumer.headers, framing)
        if has_body:
            await self._peer.send(request)
        else:
            await self._peer.send(request, h11.Data(data=b"{}"), h11.EndOfMessage())

    async def run(self) -> None:
        """Send the body. What the plugin does not read is the answer's to explain."""
        source = self._consumer.peer
        has_body = bool(self._length) or self._is_chunked
        try:
            if source.http.they_are_waiting_for_100_continue:
                await source.send(h11.InformationalResponse(status_code=100, headers=[]))
            while isinstance(event := await source.receive(), h11.Data):
                with suppress(Lost):
                    await self._peer.send(h11.Data(data=event.data))
        except Lost as error:
            raise ConsumerLeft(str(error)) from error
        if not isinstance(event, h11.EndOfMessage):
            raise ConsumerLeft("the consumer has left")
        self.is_complete = True
        if has_body:
            with suppress(Lost):
                await self._peer.send(h11.EndOfMessage())
        await source.wait_hang_up()
        raise ConsumerLeft("the consumer has left")


async def _download(peer: Peer, consumer: StreamConsumer, response: h11.Response) -> None:
    """Pass the answer on. Raises: Lost."""
    target = consumer.peer
    headers = passed_on(response.headers)
    length = header(response.headers, b"content-length")
    if length is not None:
        headers.append((b"content-length", length))
    # without a length, h11 chunks the answer for HTTP/1.1, and closes the connection after it for HTTP/1.0
    head: h11.Event = h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)
    await _send(target, head)
    while isinstance(event := await peer.receive(), h11.Data):
        await _send(target, h11.Data(data=event.data))
    if not isinstance(event, h11.EndOfMessage):
        raise Lost("it closed the connection within its answer")
    await _send(target, h11.EndOfMessage())


async def _send(target: Peer, event: h11.Event) -> None:
    try:
        await target.send(event)
    except Lost as error:
        raise ConsumerLeft(str(error)) from error
