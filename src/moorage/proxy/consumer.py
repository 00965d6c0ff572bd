"""The connections of consumers: requests are read, calls are opened, answers go out in one write (rows P06, P14)."""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import h11

from moorage.host import proc
from moorage.proxy.core import calls
from moorage.proxy.core.answers import Answer, failure
from moorage.proxy.core.bounds import Budget, Share
from moorage.proxy.http import FrozenHeaders, Headers, Lost, Peer, header

__all__ = ("Connection", "Exchange", "ExchangeOpener", "PeerCredentials", "peer_credentials")

log = logging.getLogger(__name__)

_HEAD_LIMIT, _BODY_LIMIT = 30.0, 30.0  # seconds for the head of a request, and then for a body that is read whole
_UNREAD_LIMIT = 30.0  # seconds until a consumer has read its answer
_MOST_UNREAD = 16 * 1024 * 1024  # bytes
_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # Source: linux/asm-generic/socket.h, since Linux 4.13
_GROUPS_BYTES = 1024  # as much as Python allows; of a user with more groups, only the first one counts
_CONSUMER = b"moorage-consumer"
_REMEMBERED = 64  # heads of answers
_SHOWN = 40  # characters of what is no method
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
        self.completed: Callable[[Answer | None], None] | None = None
        """Called with the outcome, once, where no task waits for it."""
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
            if self.completed is not None:
                self.completed(answer)


class ExchangeOpener(Protocol):
    """What serves the calls of a connection."""

    def opened(self, exchange: Exchange, body: bytes | None) -> None:
        """A call has been read, of a stream its head."""

    def left(self, exchange: Exchange) -> None:
        """The consumer has left before the answer."""


class Connection:
    """One connection of a consumer.

    A call that comes complete, as most do, needs no task, which would double the time that it takes.
    """

    def __init__(
        self,
        connection: socket.socket,
        opener: ExchangeOpener,
        credentials: PeerCredentials,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        *,
        plugin: str,
        share: Share,
        is_internal: bool,
    ) -> None:
        """``spawn`` runs a task. The connection is one of this share as long as it exists."""
        self._peer = Peer(connection, h11.SERVER)
        self._opener = opener
        self._credentials = credentials
        self._spawn = spawn
        self._is_internal = is_internal
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        """The call that is under way, where no task serves it."""
        self._plugin, self._share = plugin, share
        self._budget = Budget(calls.MOST_BODY_BYTES, plugin)
        """Of its body."""
        self._is_watched = False
        self._task: asyncio.Task[None] | None = None
        """What serves the call that is under way, where a task does."""
        self._head: asyncio.TimerHandle | None = None
        """When a head that has begun must be complete."""

    def start(self) -> None:
        """Answer requests until one side closes the connection."""
        self._share.wait(self.close, self._loop.time())
        self._watch()

    def close(self) -> None:
        """Close it, although its client has not done what it waits for."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._close()

    def _watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._loop.add_reader(self._peer.socket.fileno(), self._readable)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._peer.socket.fileno())

    def _close(self) -> None:
        self._unwatch()
        self._limit_head(is_complete=True)
        self._budget.free()
        self._share.remove(self.close)
        self._peer.close()

    def _limit_head(self, *, is_complete: bool) -> None:
        """Only a head that does not come in one piece needs a timer."""
        if not is_complete and self._head is None:
            self._head = self._loop.call_later(_HEAD_LIMIT, self._close)
        elif is_complete and self._head is not None:
            self._head.cancel()
            self._head = None

    def _start(self, handling: Coroutine[Any, Any, bool]) -> None:
        self._unwatch()
        self._task = self._spawn(self._serve(handling))

    def _readable(self) -> None:
        try:
            if self._exchange is not None:
                self._check(self._exchange)
                return
            self._peer.receive_now()
            self._take_request()
        except BlockingIOError:
            pass
        except Lost:
            self._close()
        except Exception:
            log.exception("internal error")
            self._close()

    def _check(self, exchange: Exchange) -> None:
        """A consumer that sends its next request already, or has only finished sending, is not watched any longer."""
        has_closed = self._peer.has_nothing_more() and self._peer.has_hung_up()
        self._unwatch()
        if has_closed:
            self._left(exchange)

    def _take_request(self) -> None:
        """Begin with the request that has come, if it has. Raises: Lost."""
        request = self._peer.next_now()
        if request is None:
            self._limit_head(is_complete=not self._peer.http.trailing_data[0])
            self._watch()
            return
        self._limit_head(is_complete=True)
        if not isinstance(request, h11.Request):
            self._close()
            return
        exchange = self._make_exchange(request)
        if request.method == b"POST" and not calls.is_plain(exchange.path):
            self._start(self._refuse_and_close(failure("cannot call a plugin: no call has this path", 400)))
            return
        body, is_complete = bytearray(), None
        is_whole = request.method == b"POST" and (calls.is_whole(exchange.path) or exchange.path == calls.ACTIVATE)
        if is_whole and (is_complete := self._peer.read_body_now(body, self._budget.grow)):
            self._open(exchange, bytes(body))
        elif not is_whole:
            self._start(self._handle_stream(request, exchange))
        elif is_complete is None:
            self._start(self._refuse_long(exchange))
        else:
            self._start(self._handle_whole(exchange, body))

    def _open(self, exchange: Exchange, body: bytes) -> None:
        """Call the plugin; the consumer is watched meanwhile."""
        self._share.work(self.close)
        self._watch()
        self._exchange = exchange
        exchange.sender = self._send_now
        exchange.completed = lambda answer: self._completed(exchange, answer)
        self._opener.opened(exchange, body)

    def _completed(self, exchange: Exchange, answer: Answer | None) -> None:
        self._exchange = None
        self._budget.free()
        if answer is None:
            self._close()
        elif exchange.rest:
            self._start(self._write_rest(exchange.rest))
        else:
            self._continue()

    def _continue(self) -> None:
        """Wait for the next request, if another may follow.

        Nothing more is read before all requests that came in advance are answered: they would be stored.
        """
        if not self._is_reusable():
            self._close()
            return
        self._peer.http.start_next_cycle()
        self._share.wait(self.close, self._loop.time())
        if self._peer.http.trailing_data[0]:
            self._unwatch()
            self._loop.call_soon(self._read_again)
        else:
            self._watch()

    def _read_again(self) -> None:
        """The request that came with the one before it."""
        if self._peer.socket.fileno() < 0:
            return
        try:
            self._take_request()
        except Lost:
            self._close()

    async def _write_rest(self, rest: bytes) -> bool:
        """Whether another request may follow. Raises: Lost, TimeoutError for a consumer that does not read."""
        budget = Budget(_MOST_UNREAD, self._plugin)
        if not budget.grow(len(rest)):
            return False
        try:
            async with asyncio.timeout(_UNREAD_LIMIT):
                await self._peer.write(rest)
        finally:
            budget.free()
        return self._is_reusable()

    def _is_reusable(self) -> bool:
        http = self._peer.http
        return http.our_state is h11.DONE and http.their_state is h11.DONE

    def _make_exchange(self, request: h11.Request) -> Exchange:
        path = os.fsdecode(request.target).partition("?")[0]
        headers = list(request.headers)
        return Exchange(self._peer, path, headers, self._consumer(path, headers))

    async def _serve(self, handling: Coroutine[Any, Any, bool]) -> None:
        """What cannot be read at once, and all streams: ``handling`` says whether another request may follow."""
        is_reusable = False
        try:
            is_reusable = await handling
        except (Lost, h11.LocalProtocolError, TimeoutError):
            pass  # consumers hang up without reading, podman after most calls
        finally:
            self._task = None
            self._budget.free()
            if is_reusable:
                self._continue()
            else:
                self._close()

    async def _handle_stream(self, request: h11.Request, exchange: Exchange) -> bool:
        if request.method != b"POST":
            return await self._refuse_and_close(
                failure(f"{os.fsdecode(request.method)[:_SHOWN]} is no call to a plugin", 405)
            )
        self._share.work(self.close)
        self._opener.opened(exchange, None)
        answer = await self._outcome(exchange)
        if answer is None:
            return exchange.is_reusable and self._is_reusable()
        return await self._refuse_and_close(answer)

    async def _refuse_long(self, exchange: Exchange) -> bool:
        return await self._refuse_and_close(
            failure(f"cannot call {calls.method(exchange.path)}: its body is too long", 413)
        )

    def _consumer(self, path: str, headers: Headers) -> str:
        if not calls.needs_consumer(path):
            return ""
        if self._is_internal and (named := header(headers, _CONSUMER)) is not None:
            return named.decode(errors="replace")
        return self._credentials.name

    async def _handle_whole(self, exchange: Exchange, body: bytearray) -> bool:
        async with asyncio.timeout(_BODY_LIMIT):
            if self._peer.http.they_are_waiting_for_100_continue:
                await self._peer.send(h11.InformationalResponse(status_code=100, headers=[]))
            is_complete = await self._peer.read_body(body, self._budget.grow)
        if not is_complete:
            return await self._refuse_long(exchange)
        self._share.work(self.close)
        exchange.sender = self._send_now
        self._opener.opened(exchange, bytes(body))
        if await self._outcome(exchange) is None:
            return False
        return await self._write_rest(exchange.rest) if exchange.rest else self._is_reusable()

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

    async def _refuse_and_close(self, answer: Answer) -> bool:
        """Answer although the body has not been read. No request may follow. Raises: Lost, TimeoutError."""
        async with asyncio.timeout(_DRAIN_LIMIT):
            await self._answer(answer)
            await self._peer.drain(_DRAIN_BYTES)
        return False

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
    head = _head(answer.status, answer.content_type, len(answer.body), tuple(headers))
    return head, h11.Data(data=answer.body), h11.EndOfMessage()


@lru_cache(_REMEMBERED)
def _head(status: int, content_type: str, length: int, headers: FrozenHeaders) -> h11.Response:
    """The head of an answer; most are the same, and h11 checks each header."""
    own = [(b"content-type", content_type.encode()), (b"content-length", str(length).encode())]
    return h11.Response(status_code=status, headers=[*own, *headers])
