"""The page of an engine that was started with one: a process of its own, so that no fault of it harms the engine."""

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from moorage._lib.backoff import Backoff
from moorage._lib.task_groups import background_tasks
from moorage.timeouts import PageTimeouts

__all__ = ("TOKEN_FILE", "page_process")

log = logging.getLogger(__name__)

TOKEN_FILE = "ui-token"
"""In the data directory."""

_OF_THE_SERVICE = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")


@asynccontextmanager
async def page_process(address: str, api_socket: Path, root: Path, timeouts: PageTimeouts) -> AsyncIterator[None]:
    """A process with the page until the block ends; one that exits is started again, ever less often.

    Without an address there is none.
    """
    if not address:
        yield
        return
    async with background_tasks() as tasks:
        tasks.start_soon(_keep_running, _command(address, api_socket, root / TOKEN_FILE), timeouts)
        yield


def _command(address: str, api_socket: Path, token_file: Path) -> list[str]:
    program = [sys.executable, "-s", "-P", "-m", "moorage", "--host", f"unix://{api_socket}"]
    return [*program, "ui", "--listen", address, "--token-file", str(token_file), "--until-eof"]


async def _keep_running(command: list[str], timeouts: PageTimeouts) -> None:
    backoff = Backoff(timeouts.reconnect_first, timeouts.reconnect_limit, timeouts.steady)
    environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_SERVICE}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    while True:
        await anyio.sleep(backoff.next())
        try:
            # its standard input is closed when this process exits, however that happens
            process = await anyio.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=None, env=environment, cwd="/"
            )
        except OSError as error:
            log.warning("cannot start the page: %s", error.strerror)
            continue
        backoff.worked()
        try:
            status = await process.wait()
        finally:
            await _stop(process, timeouts)
        log.warning("the page exited with status %d; it is started again", status)


async def _stop(process: Process, timeouts: PageTimeouts) -> None:
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(timeouts.ui_stop):
                await process.wait()
        if process.returncode is None:
            process.kill()
            with anyio.move_on_after(timeouts.killed):
                await process.wait()
        if process.stdin is not None:
            await process.stdin.aclose()
