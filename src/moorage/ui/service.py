"""The page as a program: it watches an engine and answers browsers until a signal, or its parent's exit, stops it."""

import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.stop_signals import stop_signals
from moorage._lib.task_groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.timeouts import DEFAULT, PageTimeouts
from moorage.ui.access import Access, read_token
from moorage.ui.address import parse_listen, parse_origin
from moorage.ui.server import serve_page
from moorage.ui.watcher import EngineWatcher

__all__ = ("PageOptions", "run_page")

log = logging.getLogger(__name__)

_BACKLOG = 128


class PageOptions(Struct, frozen=True):
    """Where the page listens, and which engine it shows."""

    host: str
    """Of the engine, as the client takes it."""
    listen: str = "127.0.0.1:8377"
    token_file: Path | None = None
    """Has the token, and is created where it is missing; None for a new token each time."""
    origin: str = ""
    """Of a proxy before it, https://HOST."""
    until_eof: bool = False
    """Whether it also stops when its standard input is closed, because the engine that started it exited."""
    timeouts: PageTimeouts = DEFAULT


async def run_page(options: PageOptions, report: Callable[[str, str], None]) -> int:
    """Serve until a signal says so; the exit status. ``report`` gets the URL and the token when browsers can connect.

    Raises:
        errors.Invalid: an address, an origin or the file of the token cannot be used
        errors.Conflict: another program listens at the address
    """
    async with stop_signals("stopping the page") as stop:
        with stop.scope:
            async with _open(options) as (url, token), background_tasks() as tasks:
                if options.until_eof:
                    tasks.start_soon(_stop_at_eof, stop.scope)
                report(url, token)
                await anyio.sleep_forever()
    return 0


@asynccontextmanager
async def _open(options: PageOptions) -> AsyncIterator[tuple[str, str]]:
    origin = parse_origin(options.origin) if options.origin else ""
    listener = _listen(*parse_listen(options.listen))
    with listener:
        try:
            token = await run_blocking(lambda: read_token(options.token_file))
        except OSError as error:
            raise errors.Invalid(f"cannot use {options.token_file}: {error.strerror}") from error
        port: int = listener.getsockname()[1]
        watcher = EngineWatcher(options.host, options.timeouts)
        async with background_tasks() as tasks:
            tasks.start_soon(watcher.run)
            try:
                with anyio.move_on_after(options.timeouts.ui_first_answer):
                    await watcher.wait_change(0)
                async with serve_page(listener, watcher, Access(token, port, origin), options.timeouts):
                    yield origin or _url(listener), token
            finally:
                watcher.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise errors.Conflict(f"cannot serve the page on {host}:{port}: another program listens there") from error
        raise errors.Invalid(f"cannot serve the page on {host}:{port}: {error.strerror}") from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _stop_at_eof(scope: anyio.CancelScope) -> None:
    descriptor = sys.stdin.fileno()
    os.set_blocking(descriptor, False)
    while True:
        await anyio.wait_readable(descriptor)
        if not os.read(descriptor, 1024):
            log.info("the engine exited, stopping the page")
            scope.cancel()
            return
