"""The event loop of the proxy's process."""

import asyncio
import gc
import logging
import signal
import socket
from pathlib import Path

from moorage.proxy.guard import GuardLink, Handover
from moorage.proxy.service import ProxyService

__all__ = ("run",)


class _ExitRequested(Exception):
    """Cancels the calls that are under way."""


def run(state: str, listener: socket.socket, handover: Handover) -> None:
    """Serve until an engine, or SIGTERM, requests the exit; no socket is left behind."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    gc.freeze()
    try:
        asyncio.run(_serve(Path(state), listener, handover))
    except* _ExitRequested:
        pass


async def _serve(state: Path, listener: socket.socket, handover: Handover) -> None:
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        guard = GuardLink(handover.control, loop)
        service = ProxyService(state, listener, tasks, guard)
        service.start(handover.tables, handover.listeners)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, service.quit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGQUIT))
        guard.send_ready()
        await service.stopped.wait()
        service.close()
        guard.close()
        raise _ExitRequested
