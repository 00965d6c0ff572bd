"""HTTP on a listening socket with limits: connections, descriptors, and the time that a client may take.

A listener never has more connections than its share of the process's descriptors. Where all are taken, the one whose
client has longest sent nothing that it owes, a request or the rest of a body, is closed for the next client; where all
are in use, the next client waits for a moment, in the kernel's queue, and is refused then. Connections on which
something is answered, a stream for example, are not touched, but for a listener that has no streams.
"""

import asyncio
import errno
import logging
import math
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
from aiohttp import web
from msgspec import Struct

from moorage._lib.task_groups import background_tasks
from moorage.api.http.connection import ClientConnection, Server, raw_refusal
from moorage.timeouts import DEFAULT

__all__ = ("BACKLOG", "ListenerLimits", "serve_http", "share_of_descriptors")

log = logging.getLogger(__name__)

BACKLOG = 65535
"""For listen(2): the kernel takes the lower one of this and net.core.somaxconn."""

_GRACE = DEFAULT.idle_connection
"""Seconds that a connection may be idle before it makes room for another, and that one waits where none is idle."""
_CHECK = 1.0  # seconds between two checks of all connections for what takes too long
_LAST_REQUESTS = DEFAULT.last_request  # seconds that a connection has for its request when the listener ends
_RETRY = 0.1  # seconds until the next accept(2), where the process or the machine has no descriptor left
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ListenerLimits(Struct, frozen=True):
    """What the clients of one listener may take; times in seconds."""

    connections: int
    """At the same time."""
    head: float = 10.0
    """From the first byte of a request to the end of its headers."""
    idle: float = 60.0
    """Without a request."""
    answer: float = math.inf
    """For a request and its answer, from the end of the headers on."""


def share_of_descriptors(part: float, *, least: int, most: int) -> int:
    """So many connections as are this part of the descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(least, min(most, int(soft * part)))


@asynccontextmanager
async def serve_http(
    listener: socket.socket,
    handler: Handler,
    limits: ListenerLimits,
    headers: Mapping[str, str],
    *,
    last_answers: float,
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Answer requests until the block ends, then idle connections are closed, and others after ``last_answers`` s.

    Yields what takes the connections that wait already, and no more. ``headers`` are added to every answer. The
    listening socket stays the caller's.
    """
    server = Server(handler, headers, keepalive_timeout=limits.idle)
    runner = web.ServerRunner(server, shutdown_timeout=last_answers)
    await runner.setup()
    connections = _Connections(server, limits, headers)
    listener.setblocking(False)
    listener.listen(BACKLOG)
    try:
        async with background_tasks() as tasks:
            tasks.start_soon(connections.accept_from, listener)
            tasks.start_soon(connections.close_slow)
            yield lambda: connections.stop_accepting(listener)
    finally:
        with anyio.CancelScope(shield=True):  # bounded by the time that aiohttp is given
            await runner.cleanup()


class _Connections:
    """The connections of one listener."""

    def __init__(self, server: Server, limits: ListenerLimits, headers: Mapping[str, str]) -> None:
        self._server = server
        self._limits = limits
        self._headers = headers
        self._some = anyio.Event()
        self._accepting = anyio.CancelScope()
        self._has_stopped = anyio.Event()

    async def accept_from(self, listener: socket.socket) -> None:
        """Accept connections as long as there is room."""
        try:
            with self._accepting:
                while True:
                    await self._accept_one(listener)
        finally:
            self._has_stopped.set()

    async def _accept_one(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                log.warning("cannot accept a connection: %s", error.strerror)
                await anyio.sleep(_RETRY)
        else:
            await self._admit(client)

    async def stop_accepting(self, listener: socket.socket) -> None:
        """Accept the connections that wait, give them a moment for their requests, and end ``accept_from``."""
        self._accepting.cancel()
        await self._has_stopped.wait()
        try:
            while self._has_room():
                client, _ = listener.accept()
                await self._connect(client)
        except OSError:
            pass  # no more are waiting
        await anyio.sleep(_LAST_REQUESTS)

    async def _admit(self, client: socket.socket) -> None:
        try:
            with anyio.move_on_after(_GRACE):
                while not self._has_room():
                    await self._server.wait_for_close(_CHECK)
            if not self._has_room():
                text = f"cannot serve another client: all {self._limits.connections} connections are in use"
                log.warning("%s", text)
                client.send(raw_refusal(503, text, self._headers))
                client.close()
                return
        except OSError:
            client.close()  # it is gone already
        except BaseException:
            client.close()
            raise
        else:
            await self._connect(client)

    async def _connect(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            with anyio.CancelScope(shield=True):  # one round of the event loop, and the socket is the loop's then
                await asyncio.get_running_loop().connect_accepted_socket(self._server, client)
        except OSError as error:
            log.info("a client was gone before it was served: %s", error)
            client.close()
        self._some.set()

    def _has_room(self) -> bool:
        """Whether there is room for one more, made by closing the one that has waited longest for its client."""
        live = self._server.live
        if len(live) < self._limits.connections:
            return True
        waiting = {each: since for each in live if (since := each.waits_since) is not None}
        idle = min(waiting, key=waiting.__getitem__, default=None)
        if idle is None or asyncio.get_running_loop().time() - waiting[idle] < _GRACE:
            return False
        idle.force_close()
        live.discard(idle)
        return True

    async def close_slow(self) -> None:
        """Close what takes too long; what is only idle, aiohttp closes."""
        while True:
            if not self._server.live:
                self._some = anyio.Event()
                await self._some.wait()
            await anyio.sleep(_CHECK)
            now = asyncio.get_running_loop().time()
            for each in list(self._server.live):
                self._close_if_slow(each, now)

    def _close_if_slow(self, each: ClientConnection, now: float) -> None:
        limits = self._limits
        if each.busy_since is not None:
            if now - each.busy_since > limits.answer:
                each.force_close()
        elif each.head_since is not None and now - each.head_since > limits.head:
            each.refuse(408, f"cannot read the request: its headers did not come within {limits.head:g} s")
