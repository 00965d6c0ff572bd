"""One side of an HTTP/1.1 connection on a non-blocking unix socket, with h11: events in, events out."""

import asyncio
import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

import h11

__all__ = ("HEAD_BYTES", "FrozenHeaders", "Headers", "Lost", "Peer", "header", "passed_on")

HEAD_BYTES = 64 * 1024
"""Of the head of a request or an answer."""
_FIRST_CHUNK, _CHUNK, _SMALL_CHUNK = 16 * 1024, 64 * 1024, 2 * 1024
"""Bytes that are read at once: at first, of a peer that sends pieces of some size, and of one that sends tiny ones."""
_SMALL_EVENT = 256
"""Bytes; many smaller pieces of a message take a long time to read: ten microseconds each, in which others wait."""

Headers = list[tuple[bytes, bytes]]
FrozenHeaders = tuple[tuple[bytes, bytes], ...]

_OWN = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"moorage-consumer",
        b"proxy-connection",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers of one connection, or that each side has its own of."""


class Lost(Exception):
    """The peer has closed the connection, or does not speak HTTP."""


class Peer:
    """A connection to a consumer (``h11.SERVER``) or to a plugin (``h11.CLIENT``). Owns the socket."""

    def __init__(self, connection: socket.socket, role: type[h11.SERVER] | type[h11.CLIENT]) -> None:
        self.socket = connection
        self.http = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES)
        self.has_finished = False
        """Whether the peer sends nothing more."""
        self._loop = asyncio.get_running_loop()
        self._chunk, self._events = 0, 0
        """Bytes that were read at most at once, last, and how many events they have been so far."""

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        """The next event of the peer. Others have a turn before each further piece is read. Raises: Lost."""
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                if self._chunk:
                    await asyncio.sleep(0)  # sock_recv does not wait for a peer that sends faster than this reads
                data = await self._loop.sock_recv(self.socket, self._next_chunk())
                self.has_finished = not data
                self.http.receive_data(data)
        except h11.RemoteProtocolError as error:
            if self.has_finished:
                raise Lost("it closed the connection") from error
            raise Lost(f"it sent what is no HTTP: {error}") from error
        except OSError as error:
            raise Lost(error.strerror or str(error)) from error
        self._events += 1
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    def _next_chunk(self) -> int:
        """How many bytes may be read now, so that reading them takes milliseconds whatever they are."""
        if not self._chunk:
            self._chunk = _FIRST_CHUNK
        else:
            self._chunk = _SMALL_CHUNK if self._events * _SMALL_EVENT > self._chunk else _CHUNK
        self._events = 0
        return self._chunk

    def next_now(self) -> h11.Event | type[h11.PAUSED] | None:
        """The next event, if it has come already. Raises: Lost."""
        try:
            event = self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise Lost(f"it sent what is no HTTP: {error}") from error
        self._events += 1
        return event if event is not h11.NEED_DATA else None  # type: ignore[return-value]  # that one is excluded

    def receive_now(self) -> None:
        """Read what has arrived. Raises: BlockingIOError if nothing has; Lost."""
        try:
            data = self.socket.recv(self._next_chunk())
        except BlockingIOError:
            raise
        except OSError as error:
            self.has_finished = True
            raise Lost(error.strerror or str(error)) from error
        self.has_finished = not data
        self.http.receive_data(data)

    async def send(self, *events: h11.Event) -> None:
        """Send events in one write. Raises: Lost."""
        try:
            await self.write(b"".join([self.http.send(event) or b"" for event in events]))
        except h11.LocalProtocolError as error:
            raise Lost(str(error)) from error

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises: Lost."""
        try:
            await self._loop.sock_sendall(self.socket, data)
        except OSError as error:
            raise Lost(error.strerror or str(error)) from error

    async def read_body(self, body: bytearray, may_grow: Callable[[int], bool]) -> bool:
        """Add the rest of the message; False if ``may_grow`` refused the bytes that came. Raises: Lost."""
        while isinstance(event := await self.receive(), h11.Data):
            if not may_grow(len(event.data)):
                return False
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            raise Lost("it closed the connection")
        return True

    def read_body_now(self, body: bytearray, may_grow: Callable[[int], bool]) -> bool | None:
        """Add what has come of the message; whether it is complete, None if ``may_grow`` refused. Raises: Lost."""
        while isinstance(event := self.next_now(), h11.Data):
            if not may_grow(len(event.data)):
                return None
            body += event.data
        return isinstance(event, h11.EndOfMessage)

    def has_nothing_more(self) -> bool:
        """Whether the peer has finished sending, as far as it was read. Raises: BlockingIOError if it sends nothing."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            raise
        except OSError:
            return True

    def watch(self, left: Callable[[], None]) -> None:
        """Call ``left`` when the peer has closed the connection, until ``unwatch``; meanwhile nothing receives.

        One that sends its next request meanwhile, or has only finished sending, is not watched any longer.
        """

        def check() -> None:
            try:
                has_finished = self.has_nothing_more()
            except BlockingIOError:
                return
            self.unwatch()
            if has_finished and self.has_hung_up():
                left()

        self._loop.add_reader(self.socket.fileno(), check)

    def unwatch(self) -> None:
        """The opposite of ``watch``. May be repeated."""
        if self.socket.fileno() >= 0:
            self._loop.remove_reader(self.socket.fileno())

    async def drain(self, most_bytes: int) -> None:
        """Discard the rest of a message, so that its sender can read an early answer. Raises: Lost."""
        while most_bytes > 0 and isinstance(event := await self.receive(), h11.Data):
            most_bytes -= len(event.data)

    def has_hung_up(self) -> bool:
        """Whether the peer has closed both directions; one that has only finished sending still reads."""
        with suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(self.socket, select.POLLHUP | select.POLLERR)
            return bool(poll.poll(0))
        return True

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a header, whose name is in lower case."""
    return next((value for key, value in headers if key == name), None)


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that are not of one connection only."""
    return [(key, value) for key, value in headers if key not in _OWN]
