"""The API on its unix socket."""

import grp
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from aiohttp import web

from moorage import errors
from moorage._version import __version__
from moorage.api.backend import Backend
from moorage.api.errors import answer_failure
from moorage.api.request import Request
from moorage.api.routes import find_route, split_version
from moorage.api.wire import API_VERSION

__all__ = ("serve_api",)

log = logging.getLogger(__name__)

_HEADERS = {
    "Server": f"Docker/{__version__} (linux)",
    "Api-Version": f"{API_VERSION[0]}.{API_VERSION[1]}",
    "Ostype": "linux",
    "Docker-Experimental": "false",
}
_LAST_ANSWERS = 1.0
"""Seconds that requests have to end when the server does."""


@asynccontextmanager
async def serve_api(backend: Backend, path: Path, group: str | None) -> AsyncIterator[None]:
    """The API, listening until the block ends. The socket is root's and the group's, if one is given.

    Raises: Invalid for a path or a group that cannot be used; Conflict where another program listens there.
    """
    closing = anyio.Event()

    async def handle(http: web.Request) -> web.StreamResponse:
        return await _answer(http, backend, closing)

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)

    application = web.Application(client_max_size=0)
    application.router.add_route("*", "/{path:.*}", handle)
    application.on_response_prepare.append(add_headers)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_LAST_ANSWERS, handler_cancellation=False)
    await runner.setup()
    listener = _listen(path, group)
    inode = os.stat(path).st_ino
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        closing.set()
        with anyio.CancelScope(shield=True):
            await runner.cleanup()
        listener.close()
        _remove(path, inode)


async def _answer(http: web.Request, backend: Backend, closing: anyio.Event) -> web.StreamResponse:
    what = f"{http.method} {http.rel_url.raw_path}"
    try:
        route, values = find_route(http.method, split_version(http.rel_url.raw_path))
        return await route.handler(Request(http, backend, values, closing))
    except Exception as error:  # noqa: BLE001 - told to the client, and logged whole where it was not foreseen
        return answer_failure(error, what)


def _listen(path: Path, group: str | None) -> socket.socket:
    """The listening socket; a file that a killed engine left is replaced."""
    try:
        owner = grp.getgrnam(group).gr_gid if group else 0
    except KeyError as error:
        raise errors.Invalid(f"cannot serve the API: there is no group {group} on this machine") from error
    if _is_listened_on(path):
        raise errors.Conflict(f"cannot serve the API: another program listens on {path}")
    half = path.with_name(f".{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        half.unlink(missing_ok=True)
        listener.bind(str(half))  # made beside, so that nobody connects before it is the group's
        os.chmod(half, 0o660)
        os.chown(half, 0, owner)
        listener.listen(1024)
        os.rename(half, path)
    except OSError as error:
        listener.close()
        half.unlink(missing_ok=True)
        raise errors.Invalid(f"cannot serve the API on {path}: {error.strerror or error}") from error
    return listener


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _remove(path: Path, inode: int) -> None:
    """Remove the socket file, unless it is another's by now."""
    try:
        if os.stat(path).st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass
