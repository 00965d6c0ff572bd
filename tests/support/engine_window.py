"""Inside an engine process: acts after the exit of a run is reported, while that run is still being removed.

``EngineProcess.preamble`` has what is run in the process before the engine, as Python.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from moorage._lib.inbox import Inboxes
from moorage._lib.threads import run_blocking
from moorage.containerd.client import Client
from moorage.containerd.containers import BundledContainers
from moorage.engine.supervisor import Supervisor
from support.awaits import Awaits, drive

_TESTS = Path(__file__).parent.parent
_POLL = 0.01


def preamble(call: str) -> str:
    """The Python that makes this call of a function of this module."""
    return f"import sys; sys.path.append({str(_TESTS)!r})\nfrom support import engine_window\nengine_window.{call}\n"


def kill_at(number: int, armed: str) -> None:
    """SIGKILL at this await of the inboxes, counted from 0 at an exit that is reported while ``armed`` is a file."""
    is_open = False
    awaits = Awaits(number, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: is_open)
    handle_exit, work = Supervisor.handle_exit, Inboxes._work

    def handle(self: Supervisor, container: str, exit: Any) -> None:
        nonlocal is_open
        is_open = is_open or os.path.exists(armed)
        handle_exit(self, container, exit)

    async def driven(self: Inboxes[Any], key: Any) -> None:
        await drive(work(self, key), awaits)

    Supervisor.handle_exit = handle  # type: ignore[method-assign]  # for the life of this process
    Inboxes._work = driven  # type: ignore[method-assign]


def kill_before_start(armed: str) -> None:
    """SIGKILL between the creation and the start of a task while ``armed`` is a file."""
    start_task = Client.start_task

    def kill() -> None:
        if os.path.exists(armed):
            os.kill(os.getpid(), signal.SIGKILL)

    async def start(self: Client, id: str) -> int:
        kill()
        return await start_task(self, id)

    Client.start_task = start  # type: ignore[assignment, method-assign]


def delay_removals(directory: str) -> None:
    """No exited task is deleted before the file ``released`` is in this directory; each makes a file that says so."""
    delete_task = BundledContainers.delete_task

    async def delete(self: BundledContainers, id: str) -> Any:
        def wait() -> None:
            Path(directory, id).touch()
            while not Path(directory, "released").exists():
                time.sleep(_POLL)

        await run_blocking(wait)
        return await delete_task(self, id)

    BundledContainers.delete_task = delete  # type: ignore[method-assign]
