"""The API on its unix socket."""

import grp
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from aiohttp import web

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage._version import __version__
from moorage.api.backend import Backend
from moorage.api.http.errors import answer_failure, refusal
from moorage.api.http.listener import BACKLOG, ListenerLimits, serve_http, share_of_descriptors
from moorage.api.request import Request
from moorage.api.routes import find_route, split_version
from moorage.api.schema.base import API_VERSION
from moorage.host.files import make_directory
from moorage.host.sockets import accepts_connections
from moorage.timeouts import DEFAULT

__all__ = ("serve_api",)

log = logging.getLogger(__name__)

_HEADERS = {
    "Server": f"Docker/{__version__} (linux)",
    "Api-Version": f"{API_VERSION[0]}.{API_VERSION[1]}",
    "Ostype": "linux",
    "Docker-Experimental": "false",
}
_LAST_ANSWERS = DEFAULT.api_shutdown
"""Seconds that requests have to end by themselves when the server does."""
_SHARE = 0.25
"""Of the descriptors that the process may have, what connections to the API may take."""
_UNDO = DEFAULT.api_undo
"""Seconds that those have to clean up which did not, and were cancelled."""


@asynccontextmanager
async def serve_api(backend: Backend, path: Path, group: str | None) -> AsyncIterator[None]:
    """The API, listening until the block ends. The socket is root's and the group's, if one is given.

    Raises: Invalid for a path or a group that cannot be used; Conflict where another program listens there.
    """
    under_way = _UnderWay()

    async def handle(http: web.BaseRequest) -> web.StreamResponse:
        return await _answer(http, backend, under_way)

    limits = ListenerLimits(share_of_descriptors(_SHARE, least=16, most=1024))
    listener, inode = await run_blocking(lambda: _listen(path, group))
    try:
        async with serve_http(listener, handle, limits, _HEADERS, last_answers=_LAST_ANSWERS) as stop_accepting:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):  # bounded: what is waited for has its limit each time
                    await stop_accepting()
                    await under_way.end()
    finally:
        with anyio.CancelScope(shield=True):
            listener.close()
            await run_blocking(lambda: _remove(path, inode))


class _UnderWay:
    """The requests that are being answered."""

    def __init__(self) -> None:
        self.closing = anyio.Event()
        self._scopes: set[anyio.CancelScope] = set()
        self._one_less = anyio.Event()

    @contextmanager
    def one(self) -> Iterator[anyio.CancelScope]:
        """The scope of one request."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)
                self._one_less.set()

    async def end(self) -> None:
        """End the streams, and wait a moment for the others; cancel the others, and wait until they are undone.

        aiohttp would cancel their tasks, and that would cut off the undo, too.
        """
        self.closing.set()
        await self._wait(_LAST_ANSWERS)
        for scope in list(self._scopes):
            scope.cancel()
        await self._wait(_UNDO)

    async def _wait(self, within: float) -> None:
        with anyio.move_on_after(within):
            while self._scopes:
                self._one_less = anyio.Event()
                await self._one_less.wait()


async def _answer(http: web.BaseRequest, backend: Backend, under_way: _UnderWay) -> web.StreamResponse:
    what = f"{http.method} {http.rel_url.raw_path}"
    started: list[web.StreamResponse] = []
    answer: web.StreamResponse = refusal(503, "the engine is being stopped")
    with under_way.one():
        try:
            path, version = split_version(http.rel_url.raw_path)
            route, values = find_route(http.method, path, version)
            request = Request(http, backend, values, under_way.closing, version, started)
            if (unexpected := await request.answer_expectation()) is not None:
                return unexpected
            return await route.handler(request)
        except Exception as error:  # noqa: BLE001 - reported to the client, and logged
            answer = answer_failure(error, what)
    if not started:
        return answer
    if http.transport is not None:
        http.transport.close()  # the client must not take a part for the whole
    return started[0]


def _listen(path: Path, group: str | None) -> tuple[socket.socket, int]:
    """The listening socket, and the inode of its file; a file that a killed engine left is replaced (blocking)."""
    try:
        owner = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise errors.Invalid(f"cannot serve the API: there is no group {group} on this machine") from error
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise errors.Invalid(f"cannot serve the API on {path}: there is something that is no socket")
    if accepts_connections(path):
        raise errors.Conflict(f"cannot serve the API: another program listens on {path}")
    half = path.with_name(f".{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if not path.parent.exists():
            make_directory(path.parent, 0o711)
        half.unlink(missing_ok=True)
        listener.bind(str(half))  # bound under another name, so that no client connects before it is the group's
        os.chmod(half, 0o660)
        os.chown(half, -1, owner)
        listener.listen(BACKLOG)
        inode = half.stat().st_ino
        os.rename(half, path)
    except OSError as error:
        listener.close()
        half.unlink(missing_ok=True)
        raise errors.Invalid(f"cannot serve the API on {path}: {error.strerror or error}") from error
    return listener, inode


def _remove(path: Path, inode: int) -> None:
    """Remove the socket file, unless it is another's by now (blocking)."""
    try:
        if os.stat(path).st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass
