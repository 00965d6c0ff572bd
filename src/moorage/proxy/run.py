"""The event loop of the proxy's process."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from moorage.proxy.service import ProxyService

__all__ = ("run",)


class _ExitRequested(Exception):
    """Cancels the calls that are under way."""


def run(state: str, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until an engine, or SIGTERM, requests the exit; no socket is left behind."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    gc.freeze()
    try:
        asyncio.run(_serve(Path(state), listener, ready))
    except* _ExitRequested:
        pass


async def _serve(state: Path, listener: socket.socket, ready: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        service = ProxyService(state, listener, tasks)
        service.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.quit)
        ready()
        try:
            await service.stopped.wait()
        finally:
            service.close()
        raise _ExitRequested
