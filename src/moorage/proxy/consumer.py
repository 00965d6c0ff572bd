"""The connections of consumers: requests are read, calls are opened, answers go out in one write (rows P06, P14)."""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import h11

from moorage.host import proc
from moorage.proxy.core import calls
from moorage.proxy.core.answers import Answer, failure
from moorage.proxy.http import Headers, Lost, Peer, header

__all__ = ("MOST_BYTES", "Budget", "Connection", "Exchange", "ExchangeOpener", "PeerCredentials", "peer_credentials")

log = logging.getLogger(__name__)

_REQUEST_LIMIT = 30.0  # seconds from the first byte of a request until a call that is read whole is complete
_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # Source: linux/asm-generic/socket.h, since Linux 4.13
_GROUPS_BYTES = 1024  # as much as Python allows; of a user with more groups, only the first one counts
MOST_BYTES = 128 * 1024 * 1024
"""Of all bodies that are stored at one time."""
_CONSUMER = b"moorage-consumer"
_DRAIN_BYTES, _DRAIN_LIMIT = 16 * 1024 * 1024, 2.0  # and seconds


class PeerCredentials:
    """The process at the other side of a connection, as the kernel recorded it when it connected."""

    def __init__(self, pid: int, uid: int, groups: frozenset[int]) -> None:
        self.pid = pid
        self.uid = uid
        self.groups = groups

    @property
    def name(self) -> str:
        """For people: ``podman (pid 812)``."""
        return f"{proc.command_name(self.pid) or 'a process'} (pid {self.pid})"

    def may_connect(self, mode: int, gid: int) -> bool:
        """Whether a socket with this mode and group is for it."""
        return self.uid == 0 or bool(mode & 0o002) or (gid >= 0 and bool(mode & 0o020) and gid in self.groups)


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Who has connected. Source: unix(7), SO_PEERCRED; SO_PEERGROUPS of Linux 4.13."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    groups = b""
    if uid != 0:
        with suppress(OSError):
            groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    return PeerCredentials(pid, uid, frozenset((gid, *(each for (each,) in struct.iter_unpack("I", groups)))))


class Exchange:
    """One call and its answer."""

    def __init__(self, peer: Peer, path: str, headers: Headers, consumer: str) -> None:
        self.peer = peer
        self.path = path
        self.headers = headers
        self.consumer = consumer
        self.is_reusable = True
        """Whether another request may follow on the connection."""
        self.outcome: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        """The answer; None where it has passed through as a stream, or the connection is to be closed."""
        self.sender: Callable[[Answer], bytes] | None = None
        """Sends an answer at once, and returns what could not be sent; None where a body is still to be read."""
        self.rest = b""
        self._left: Callable[[], None] | None = None

    def watch(self, left: Callable[[], None] | None = None) -> None:
        """Notice that the consumer has left, unless a stream reads from it; ``left`` of the first time stays."""
        self._left = left or self._left
        if self._left is not None and not self.outcome.done():
            self.peer.watch(self._left)

    def unwatch(self) -> None:
        """A stream reads from the consumer from now on."""
        self.peer.unwatch()

    def reply(self, answer: Answer | None) -> None:
        """Complete the call."""
        if not self.outcome.done():
            if answer is not None and self.sender is not None:
                self.rest = self.sender(answer)
            self.outcome.set_result(answer)


class ExchangeOpener(Protocol):
    """What serves the calls of a connection."""

    def opened(self, exchange: Exchange, body: bytes | None) -> None:
        """A call has been read, of a stream its head."""

    def left(self, exchange: Exchange) -> None:
        """The consumer has left before the answer."""


class Budget:
    """Bytes of bodies that are stored for one call, out of what all calls together may take."""

    total = 0
    """Of all calls."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0

    def grow(self, size: int) -> bool:
        """Whether so many bytes more may be stored."""
        if self._bytes + size > self._most or Budget.total + size > MOST_BYTES:
            return False
        self._bytes += size
        Budget.total += size
        return True

    def free(self) -> None:
        """Nothing is stored any more. May be repeated."""
        Budget.total -= self._bytes
        self._bytes = 0


class Connection:
    """One connection of a consumer."""

    def __init__(
        self, connection: socket.socket, opener: ExchangeOpener, credentials: PeerCredentials, *, is_internal: bool
    ) -> None:
        self._peer = Peer(connection, h11.SERVER)
        self._opener = opener
        self._credentials = credentials
        self._is_internal = is_internal

    async def serve(self) -> None:
        """Answer requests until one side closes the connection."""
        try:
            while True:
                request = await self._peer.receive()
                if not isinstance(request, h11.Request) or not await self._handle(request):
                    return
                self._peer.http.start_next_cycle()
        except (Lost, h11.LocalProtocolError, TimeoutError):
            pass  # consumers hang up without reading, podman after most calls
        finally:
            self._peer.close()

    async def _handle(self, request: h11.Request) -> bool:
        """Whether another request may follow."""
        path = os.fsdecode(request.target).partition("?")[0]
        headers = list(request.headers)
        exchange = Exchange(self._peer, path, headers, self._consumer(path, headers))
        if request.method != b"POST":
            await self._refuse(failure(f"{os.fsdecode(request.method)} is no call to a plugin", 405))
            return False
        if calls.is_whole(path) or path == calls.ACTIVATE:
            return await self._handle_whole(exchange)
        self._opener.opened(exchange, None)
        answer = await self._outcome(exchange)
        if answer is None:
            return exchange.is_reusable and self._peer.http.our_state is h11.DONE
        await self._refuse(answer)
        return False

    def _consumer(self, path: str, headers: Headers) -> str:
        if not calls.needs_consumer(path):
            return ""
        if self._is_internal and (named := header(headers, _CONSUMER)) is not None:
            return named.decode(errors="replace")
        return self._credentials.name

    async def _handle_whole(self, exchange: Exchange) -> bool:
        budget = Budget(calls.MOST_BODY_BYTES)
        try:
            async with asyncio.timeout(_REQUEST_LIMIT):
                if self._peer.http.they_are_waiting_for_100_continue:
                    await self._peer.send(h11.InformationalResponse(status_code=100, headers=[]))
                body = await self._peer.read_body(budget.grow)
            if body is None:
                await self._refuse(failure(f"cannot call {calls.method(exchange.path)}: its body is too long", 413))
                return False
            exchange.sender = self._send_now
            self._opener.opened(exchange, body)
            answer = await self._outcome(exchange)
        finally:
            budget.free()
        if answer is None:
            return False
        if exchange.rest:
            await self._peer.write(exchange.rest)
        return self._peer.http.our_state is h11.DONE and self._peer.http.their_state is h11.DONE

    async def _outcome(self, exchange: Exchange) -> Answer | None:
        """The answer; None for none. Meanwhile the consumer may leave."""
        exchange.watch(lambda: self._left(exchange))
        try:
            return await exchange.outcome
        finally:
            exchange.unwatch()

    def _left(self, exchange: Exchange) -> None:
        self._opener.left(exchange)
        exchange.reply(None)

    async def _refuse(self, answer: Answer) -> None:
        """Answer although the body has not been read, and close the connection. Raises: Lost, TimeoutError."""
        await self._answer(answer)
        async with asyncio.timeout(_DRAIN_LIMIT):
            await self._peer.drain(_DRAIN_BYTES)

    async def _answer(self, answer: Answer) -> None:
        """Answer and close the connection. Raises: Lost."""
        await self._peer.send(*_events(answer, [(b"connection", b"close")]))

    def _send_now(self, answer: Answer) -> bytes:
        """Send head and body in one write (row P06); what the consumer's buffer does not take is returned."""
        data = b"".join([self._peer.http.send(event) or b"" for event in _events(answer, [])])
        try:
            return data[self._peer.socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # it has hung up


def _events(answer: Answer, headers: Headers) -> tuple[h11.Event, ...]:
    length = str(len(answer.body)).encode()
    own = [(b"content-type", answer.content_type.encode()), (b"content-length", length)]
    head = h11.Response(status_code=answer.status, headers=own + headers)
    return head, h11.Data(data=answer.body), h11.EndOfMessage()
