"""A process that may be killed: it runs one operation of an executor per child it forks, as its parent says.

It is told on standard input, one JSON object a line, and answers so on standard output. Forking keeps a test of many
kills short: Python and Moorage are loaded once.
"""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process

from moorage.embedding import open_executor
from moorage.executor import Exit
from support.awaits import Awaits, drive, drive_inboxes
from support.places import TIMEOUTS, Place
from support.sinks import Memory


@dataclass(frozen=True)
class Fate:
    """How a child ended."""

    killed: bool
    """It was killed at the await that was asked for; otherwise it made fewer."""

    told: list[int | None]
    """The codes of the exits that its handler heard of."""


def _say(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class _Handler:
    def __init__(self) -> None:
        self.heard = anyio.Event()

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        _say(told=exit.code)
        self.heard.set()


async def _operate(order: dict[str, Any]) -> None:
    awaits = Awaits(order["at"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    handler = _Handler()
    async with open_executor(
        order["address"], order["root"], handler, namespace=order["namespace"], timeouts=TIMEOUTS
    ) as executor:
        match order["operation"]:
            case "create":
                await drive(executor.create("a", order["spec"], Memory(), Memory()), awaits)
            case "restore":
                await drive(executor.restore("a", Memory(), Memory()), awaits)
            case "exit":
                with drive_inboxes(awaits):
                    assert await executor.restore("a", Memory(), Memory())
                    _say(ready=os.getpid())
                    await handler.heard.wait()
            case other:
                raise ValueError(other)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            anyio.run(_operate, json.loads(line), backend_options={"use_uvloop": True})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(status=os.waitstatus_to_exitcode(status))


class Victim:
    """The parent's hand on it."""

    def __init__(self, place: Place, process: Process) -> None:
        self._place = place
        self._process = process
        self._data = b""

    async def begin(self, operation: str, at: int) -> None:
        order = {
            "operation": operation,
            "at": at,
            "address": self._place.containerd.address,
            "root": str(self._place.root),
            "namespace": self._place.namespace,
            "spec": self._place.shell("a", "exec sleep 1000000"),
        }
        assert self._process.stdin
        await self._process.stdin.send(json.dumps(order).encode() + b"\n")

    async def ready(self) -> int:
        """Wait until it holds the container; its pid."""
        pid: int = (await self._hear())["ready"]
        return pid

    async def end(self) -> Fate:
        told = []
        while "status" not in (heard := await self._hear()):
            told.append(heard["told"])
        assert heard["status"] in (0, -signal.SIGKILL), heard
        return Fate(heard["status"] != 0, told)

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        while b"\n" not in self._data:
            self._data += await self._process.stdout.receive()
        line, _, self._data = self._data.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard


@asynccontextmanager
async def victim(place: Place) -> AsyncIterator[Victim]:
    """Such a process, for the length of the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "support.victim"]
    process = await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None, env=environment)
    async with process:
        yield Victim(place, process)
        assert process.stdin
        await process.stdin.aclose()
        await process.wait()


if __name__ == "__main__":
    main()
